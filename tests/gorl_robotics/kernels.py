"""The fused kernels against plain torch in float64; as a script, in Triton's interpreter on the CPU."""

from __future__ import annotations

import math
from unittest import mock

import torch
from torch import Tensor, nn

from gorl_robotics import critic_kernel, mlp_kernel, policy_kernel, value_kernel
from gorl_robotics.adapt_kernel import adapt
from gorl_robotics.clip_kernel import clip
from gorl_robotics.config import Ppo
from gorl_robotics.decoder import VelocityField
from gorl_robotics.diffusion import DiffusionDecoder
from gorl_robotics.flow import FlowDecoder
from gorl_robotics.losses import policy_loss
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.mlp_kernel import mlp as fused
from gorl_robotics.mlp_kernel import squared_error
from gorl_robotics.networks import LatentPolicy, gaussian_log_prob, mlp
from gorl_robotics.ppo import Learner
from gorl_robotics.store_kernel import store

# Inputs, hidden widths, outputs, rows: none of the row counts is a multiple of a block, two need several turns.
MLPS = [
    (15, [64] * 3, 8, 1),
    (27, [64] * 4, 4, 77),
    (75, [64] * 4, 21, 300),
    (67, [64] * 3, 42, 100),
    (128, [16] * 2, 64, 270),
    (1, [32] * 5, 1, 40),
    (20, [128] * 2, 3, 50),
]
POLICIES = [(15, [64] * 3, 4, 77), (67, [64] * 3, 21, 100), (5, [16] * 2, 1, 300), (30, [32] * 4, 17, 1)]
DECODERS = [(15, 4, 77), (67, 21, 40), (1, 1, 1)]
# The third number is of rows, the last of programs: several blocks for some, and more programs than blocks.
CRITICS = [(15, [64] * 2, 1, 1), (67, [128] * 3, 200, 2), (128, [64] * 4, 130, 7), (5, [96] * 2, 300, 3)]
# Observation, action, the policy's hidden widths, the decoder's or none, rows.
ACTS: list[tuple[int, int, list[int], list[int] | None, int]] = [
    (15, 4, [64] * 3, None, 77),
    (15, 4, [64] * 3, [64] * 4, 77),
    (67, 21, [64] * 3, [64] * 4, 40),
    (5, 1, [16] * 2, [32] * 2, 1),
    (128, 17, [32] * 2, None, 33),
]
PATHS = [(15, 4, [64] * 4, 77), (3, 9, [16] * 2, 33), (200, 1, [128] * 2, 1)]
ADAPTS = [(None, 0.03), (None, math.nan), (0.9, 0.004), (1.1, 0.03), (0.9, 0.01), (math.nan, 0.0)]  # σ, KL
STATES: list[list[float] | list[int] | float] = [[1.0, 2.0, 3.0, 4.0, 5.0], [7], 7e-4, [0.0499, 0.125]]
NORMS = [0.5, 1e3, math.inf]


def random_weights(network: nn.Module, device: str) -> None:
    """No zeros anywhere, and outputs of order one."""
    for parameter in network.to(device).parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)


def check_mlp(inputs: int, hidden: list[int], outputs: int, rows: int, device: str) -> None:
    """Output, squared error, and every gradient of both."""
    torch.manual_seed(rows)
    network, exact = mlp(inputs, hidden, outputs), mlp(inputs, hidden, outputs).to(device).double()
    random_weights(network, device)
    exact.load_state_dict(network.state_dict())
    x, weight = torch.randn(rows, inputs, device=device), torch.randn(rows, outputs, device=device)
    y, expected = fused(network, x), exact(x.double())
    close(y, expected)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    for parameter, other in zip(network.parameters(), exact.parameters(), strict=True):
        close(parameter.grad, other.grad)
        parameter.grad = other.grad = None
    error, expected = squared_error(network, x, weight, 0.7), ((0.7 * exact(x.double()) - weight) ** 2).mean()
    close(error, expected)
    (3 * error).backward()
    (3 * expected).backward()
    for parameter, other in zip(network.parameters(), exact.parameters(), strict=True):
        close(parameter.grad, other.grad)


def check_policy(inputs: int, hidden: list[int], size: int, rows: int, device: str) -> None:
    """Every gradient and term of PPO's loss on some rows of twice as many, a third of them clipped, some far beyond."""
    torch.manual_seed(rows)
    policy, exact = LatentPolicy(inputs, size, hidden), LatentPolicy(inputs, size, hidden).to(device).double()
    random_weights(policy, device)
    exact.load_state_dict(policy.state_dict())
    observation, order = torch.randn(2 * rows, inputs, device=device), torch.randperm(2 * rows, device=device)[:rows]
    with torch.no_grad():
        mean, std = policy(observation)
        latent = mean + std * torch.randn_like(mean)
        old = gaussian_log_prob(latent, mean, std) + 0.2 * torch.randn(2 * rows, device=device)
        old[::7] += 4
        old[3::7] -= 100
    advantage, weights = torch.randn(2 * rows, device=device), torch.tensor([0.01, 0.3, 0.2], device=device)
    data = (observation, latent, old, advantage)
    gradients, terms = policy_kernel.improve(policy.network, *data, order, 0.2, weights)
    seen, *rest = (each[order].double() for each in data)
    expected = policy_loss(*exact(seen), *rest, 0.2, weights.double())
    expected.loss.backward()
    close(terms, torch.stack([term.detach() for term in expected if term is not None]))
    for gradient, parameter in zip(gradients, exact.parameters(), strict=True):
        close(gradient, parameter.grad)


def check_critic(
    inputs: int, hidden: list[int], rows: int, programs: int, device: str, tolerance: float = 2e-5
) -> None:
    """Every gradient of half the squared error on some rows of twice as many, and the error."""
    torch.manual_seed(rows)
    critic, exact = mlp(inputs, hidden, 1), mlp(inputs, hidden, 1).to(device).double()
    random_weights(critic, device)
    exact.load_state_dict(critic.state_dict())
    observation, target = torch.randn(2 * rows, inputs, device=device), torch.randn(2 * rows, device=device)
    order = torch.randperm(2 * rows, device=device)[:rows]
    gradients, error = critic_kernel.gradients(critic, observation, target, order, programs)
    expected = ((exact(observation[order].double()).squeeze(-1) - target[order].double()) ** 2).mean()
    (0.5 * expected).backward()
    close(error, expected, tolerance)
    for gradient, parameter in zip(gradients, exact.parameters(), strict=True):
        close(gradient, parameter.grad, tolerance)
    check_values(critic, exact, observation, programs, tolerance)


def check_values(
    critic: nn.Sequential, exact: nn.Sequential, observation: Tensor, programs: int, tolerance: float
) -> None:
    """All values, and those of a few rows of which whole blocks ask for none."""
    expected = exact(observation.double()).squeeze(-1)
    asked = torch.zeros(len(observation), dtype=torch.bool, device=observation.device)
    asked[-1] = asked[len(asked) // 3] = True
    with mock.patch.object(value_kernel, "PROGRAMS", programs):
        close(value_kernel.values(critic, observation), expected, tolerance)
        close(value_kernel.values(critic, observation, asked)[asked], expected[asked], tolerance)


def check_rounded_critic(inputs: int, hidden: list[int], rows: int, programs: int, device: str) -> None:
    """The same with products of TF32, whose ten bits are what is right of them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        check_critic(inputs, hidden, rows, programs, device, tolerance=5e-3)
    finally:
        torch.set_float32_matmul_precision(before)


def check_decoder(observation: int, size: int, rows: int, device: str) -> None:
    """A decoder's loss and gradients, from a batch on."""
    torch.manual_seed(0)
    made, exact = (FlowDecoder(observation, size, [64] * 4, 10).to(device) for _ in range(2))
    random_weights(made, device)
    exact.load_state_dict(made.state_dict())
    widths = (observation, size, 1, size)
    batch = [torch.rand(rows, width, device=device) for width in widths]
    with mock.patch("gorl_robotics.decoder.fits_kernel", lambda network: network is made.network):
        loss, expected = made.loss(*batch), exact.double().loss(*(each.double() for each in batch))
    close(loss, expected)
    loss.backward()
    expected.backward()
    for parameter, other in zip(made.network.parameters(), exact.network.parameters(), strict=True):
        close(parameter.grad, other.grad)


def check_act(
    observation: int, size: int, hidden: list[int], decoder_hidden: list[int] | None, rows: int, device: str
) -> None:
    """Latent, decoded, action and log_prob, some observations being beyond the clip."""
    torch.manual_seed(rows)
    policy, exact = (acting(observation, size, hidden, decoder_hidden or [16] * 2, device) for _ in range(2))
    exact.load_state_dict(policy.state_dict())
    policy.generative = exact.generative = decoder_hidden is not None
    seen, noise = 8 * torch.randn(rows, observation, device=device), torch.randn(rows, size, device=device)
    with (
        mock.patch("gorl_robotics.methods.gaussian.fits_kernel", lambda network: network is policy.latent.network),
        mock.patch.object(policy.decoder, "path_fits_kernel", return_value=True),
    ):
        sample, expected = policy.act(seen, noise), exact.double().act(seen.double(), noise.double())
    close(sample.latent, expected.latent)
    close(sample.decoded, expected.decoded)
    close(sample.action, expected.action)
    close(sample.stored["log_prob"], expected.stored["log_prob"])


def acting(observation: int, size: int, hidden: list[int], decoder_hidden: list[int], device: str) -> GorlPolicy:
    """A policy of random weights and statistics everywhere."""
    made = GorlPolicy(observation, size, hidden, decoder_hidden, 10).to(device)
    random_weights(made, device)
    for normaliser in (made.normaliser, made.decoder.normaliser):
        normaliser.update(1 + 2 * torch.randn(50, observation, device=device))
    return made


def check_path(observation: int, size: int, hidden: list[int], rows: int, device: str) -> None:
    """Where a decoding by diffusion, whose steps are of different lengths, leads."""
    _check_end(DiffusionDecoder(observation, size, hidden, 5), observation, size, rows, device)


def check_bounded_path(observation: int, size: int, hidden: list[int], rows: int, device: str) -> None:
    """Where a path leads whose velocities reach their bound."""
    _check_end(VelocityField(observation, size, hidden, 5, 0.25, bound=0.1), observation, size, rows, device)


def _check_end(made: VelocityField, observation: int, size: int, rows: int, device: str) -> None:
    torch.manual_seed(rows)
    made = made.to(device)
    random_weights(made, device)
    seen, z = torch.randn(rows, observation, device=device), torch.randn(rows, size, device=device)
    with torch.no_grad(), mock.patch.object(made, "path_fits_kernel", return_value=True):
        path_end = made.integrate(seen, z)
    close(path_end, made.double().path(seen.double(), z.double())[-1].detach())


def check_clip(largest: float, width: int, device: str) -> None:
    """Like torch's, whether or not there is anything to clip."""
    torch.manual_seed(0)
    network = mlp(15, [width] * 3, 8).to(device)
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    clipped = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    clip(clipped, largest)
    nn.utils.clip_grad_norm_(parameters, largest)
    for value, parameter in zip(clipped, parameters, strict=True):
        torch.testing.assert_close(value, parameter.grad, rtol=1e-5, atol=0)


def check_adapt(std: float | None, kl: float, device: str) -> None:
    """Sums, turn, rate and the entropy's weight, as the learner changes them where there is no kernel."""
    terms = [0.5, kl, 0.25, *([] if std is None else [1.5, std])]
    tensors, expected = ([torch.tensor(each, device=where) for each in STATES] for where in (device, "cpu"))
    sums, turn, rate, weight = tensors
    given, highest = torch.tensor(terms, device=device), torch.tensor(1e-3, device=device)
    adapt(given, sums[: len(terms)], turn, rate, weight, (0.01, 1.5, 1e-5, highest), (1.0, 1.005, 0.005, 0.05))
    learner = mock.MagicMock(spec=Learner)
    learner.config = Ppo(target_kl=0.01, learning_rate=1e-3, least_std=1.0, entropy=0.005)
    learner.policy_rate, learner.regularisation, learner._highest_rate = expected[2], expected[3], highest.cpu()
    Learner._adapt_rate(learner, torch.tensor(kl))
    if std is not None:
        Learner._adapt_entropy(learner, torch.tensor(std))
    expected[0][: len(terms)] += torch.tensor(terms)
    expected[1] += 1
    for value, other in zip(tensors, expected, strict=True):
        torch.testing.assert_close(value.cpu(), other, rtol=1e-6, atol=0, equal_nan=True)


def check_store(device: str) -> None:
    """Numbers and flags of several widths, some not dense, each in its row and in no other."""
    torch.manual_seed(0)
    rows, t = 700, torch.tensor([2], device=device)
    sources = [torch.randn(rows, *size, device=device) for size in [(15,), (), (3, 4)]]
    sources += [torch.randn(rows, 8, device=device)[:, ::2], torch.rand(rows, device=device) < 0.5]
    targets = [torch.zeros(4, *source.shape, dtype=source.dtype, device=device) for source in sources]
    store(targets, sources, t, 2)
    for target, source, row in zip(targets, sources, (2, 2, 3, 3, 3), strict=True):
        assert torch.equal(target[row], source)
        assert not target[[0, 1, 5 - row]].any()


def close(value: Tensor | None, expected: Tensor | None, tolerance: float = 2e-5) -> None:
    """To float32's accuracy, or another, of the largest entry."""
    assert value is not None
    assert expected is not None
    largest = float(expected.detach().abs().max().clamp(min=0.1))
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=tolerance * largest)


if __name__ == "__main__":
    mlp_kernel.PROGRAMS = 3  # of a few blocks each
    for mlp_case in MLPS:
        check_mlp(*mlp_case, "cpu")
    for policy_case in POLICIES:
        check_policy(*policy_case, "cpu")
    for critic_case in CRITICS:
        check_critic(*critic_case, "cpu")
    check_rounded_critic(*CRITICS[-1], "cpu")
    for decoder_case in DECODERS:
        check_decoder(*decoder_case, "cpu")
    for act_case in ACTS:
        check_act(*act_case, "cpu")
    for path_case in PATHS:
        check_path(*path_case, "cpu")
        check_bounded_path(*path_case, "cpu")
    for norm in NORMS:
        check_clip(norm, 64, "cpu")
        check_clip(norm, 256, "cpu")
    for adapt_case in ADAPTS:
        check_adapt(*adapt_case, "cpu")
    check_store("cpu")
