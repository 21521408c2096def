"""PPO's losses (Schulman et al. 2017) as pure functions of a minibatch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gorl_robotics.networks import fits_critic_kernel, gaussian_entropy, gaussian_log_prob
from gorl_robotics.policy import PolicyLoss

# In a state far from all others a policy may change by any amount; beyond this a sample says nothing any more.
LARGEST_CHANGE = 3.0


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> PolicyLoss:
    """PPO's surrogate to be minimised, from the logarithm of ratios and their advantages, both (B, ...).

    Where a ratio is beyond e³ or its inverse it is that, and no gradient comes from it.
    """
    log_ratio = log_ratio.clamp(-LARGEST_CHANGE, LARGEST_CHANGE)
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
    # Schulman's low-variance estimator of KL(old, new), never negative.
    kl = (ratio - 1 - log_ratio).detach().mean()
    clipped = ((ratio.detach() - 1).abs() > clip).float().mean()
    return PolicyLoss(-surrogate, kl, clipped)


def policy_loss(
    mean: Tensor,
    std: Tensor,
    latent: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip: float,
    regularisation: Tensor,
) -> PolicyLoss:
    """Clipped surrogate, minus an entropy bonus, plus a pull of μ and σ towards zero.

    Args:
        mean: (B, a) of the present policy.
        std: (B, a) of the present policy.
        latent: (B, a), what was sampled.
        old_log_prob: (B,) of it when it was sampled.
        advantage: (B,), normalised.
        clip: range of the probability ratio.
        regularisation: weights of the Gaussian's entropy and, summed over actuators, of μ² and of σ², (3,).
    """
    terms = clipped_surrogate(gaussian_log_prob(latent, mean, std) - old_log_prob, advantage, clip)
    entropy = gaussian_entropy(std).mean()
    pull = (regularisation[1] * mean**2 + regularisation[2] * std**2).sum(dim=-1).mean()
    loss = terms.loss - regularisation[0] * entropy + pull
    return terms._replace(loss=loss, entropy=entropy.detach(), std=std.detach().mean())


def value_gradients(critic: nn.Sequential, observation: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    """Leaves the gradients of half the mean squared error with the critic's parameters; returns that mean, ().

    Args:
        critic: an `mlp` of one output.
        observation: normalised, (S, obs).
        target: what the critic should give, (S,).
        rows: which of them are the minibatch, (B,), int64.
    """
    if fits_critic_kernel(critic):
        from gorl_robotics import critic_kernel

        gradients, loss = critic_kernel.gradients(critic, observation, target, rows, critic_kernel.BESIDE)
        for parameter, gradient in zip(critic.parameters(), gradients, strict=True):
            parameter.grad = gradient
        return loss
    loss = ((critic(observation[rows]).squeeze(-1) - target[rows]) ** 2).mean()
    critic.zero_grad(set_to_none=True)
    (0.5 * loss).backward()
    return loss.detach()
