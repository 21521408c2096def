"""The slow time scale: the decoder is fitted to what the policy has lately done, starting from noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gorl_robotics import distributed
from gorl_robotics.adam import Adam
from gorl_robotics.beside import Beside
from gorl_robotics.config import Refit
from gorl_robotics.decoder import Decoder
from gorl_robotics.graphs import captured

_VALIDATIONS = 20
_MOST_AT_ONCE = 10  # updates in one captured graph, whose launch takes as long as a dozen small kernels
# As many as there are to validate on, within these bounds: every sample is seen at a single time and noise.
_FEWEST_VALIDATION_SAMPLES = 16384
_VALIDATION_SAMPLES = 65536


@dataclass(frozen=True)
class RefitResult:
    """How a refit went: losses per action dimension, of what the decoder's kind predicts."""

    samples: int
    updates: int
    train_loss: float
    validation_loss: float
    best_update: int  # whose weights were kept


def refit(
    decoder: Decoder,
    observation: Tensor,
    action: Tensor,
    config: Refit,
    generator: torch.Generator,
    threads: int = 0,
) -> RefitResult:
    """Fits `decoder` in place, from new weights, to (S, N, obs) observations and (S, N, a) pre-tanh actions.

    The noise is drawn independently of the latents that gave the actions: the decoder learns the distribution of
    actions in a state, so that z ~ N(0, I) reproduces it. Actions are clipped where tanh is flat: without it, what a
    decoder gives, and the policy moves on from, grows from refit to refit. Some worlds are kept for validation, with
    all of their episodes; the weights with the best validation loss are the ones that remain. Several processes fit
    one decoder, each to its own data: gradients and validation losses are their means, and a batch is made of all
    their rows.

    Args:
        decoder: on the tensors' device.
        observation: raw observations, time first, then worlds.
        action: what the decoder shall give.
        config: settings.
        generator: of every random number here; on the same device.
        threads: that may be used on a CPU; 0 for this process's share of the cores.
    """
    action = action.clamp(-config.action_bound, config.action_bound)
    training, validation = _split(observation, action, config.validation, generator)
    decoder.restart(generator)
    distributed.broadcast(decoder.network)
    _set_statistics(decoder, training[0])
    fit = _Fit(decoder, training, config, generator, threads)
    every = max(1, config.updates // _VALIDATIONS)
    at_once = max(n for n in range(1, _MOST_AT_ONCE + 1) if every % n == config.updates % n == 0)
    advance = captured(lambda: fit.steps(at_once), generator.device, [generator])
    held_out = _held_out(decoder, validation, generator)
    best, best_update, best_weights = math.inf, 0, _copy(decoder)
    for update in range(at_once, config.updates + 1, at_once):
        advance()
        if update % every == 0 or update == config.updates:
            with torch.no_grad():
                validation_loss = decoder.loss(*held_out).cpu()
            distributed.average(validation_loss)
            loss = float(validation_loss)
            if loss < best:
                best, best_update, best_weights = loss, update, _copy(decoder)
    decoder.network.load_state_dict(best_weights)
    return RefitResult(distributed.total(training[0].shape[0]), config.updates, float(fit.loss), best, best_update)


class _Fit:
    """Gradient steps on random rows, with a rate that falls to zero along a cosine; they may be captured."""

    def __init__(
        self,
        decoder: Decoder,
        data: tuple[Tensor, Tensor],
        config: Refit,
        generator: torch.Generator,
        threads: int,
    ) -> None:
        self._decoder, self._config, self._generator = decoder, config, generator
        self._observation, self._action = data
        device = generator.device
        turn = torch.arange(config.updates, dtype=torch.float64) / config.updates
        self._rates = (config.learning_rate * 0.5 * (1 + torch.cos(math.pi * turn))).float().to(device)
        self._rate, self._turn = torch.zeros((), device=device), torch.zeros(1, dtype=torch.int64, device=device)
        self._parameters = list(decoder.network.parameters())
        self._halves = Beside(device, threads) if device.type == "cpu" else None
        self._optimizer = Adam(self._parameters, self._rate)
        self.loss = torch.zeros((), device=device)

    def steps(self, count: int) -> None:
        """The next so many."""
        for _ in range(count):
            self._step()

    def _step(self) -> None:
        self._rate.copy_(self._rates.index_select(0, self._turn).squeeze(0))
        self._turn.add_(1)
        device, draws = self._generator.device, self._config.draws
        share = math.ceil(self._config.batch / distributed.size())
        rows = torch.randint(self._action.shape[0], (share,), generator=self._generator, device=device)
        observation = self._decoder.normaliser(self._observation[rows]).repeat(draws, 1)
        action = self._action[rows].repeat(draws, 1)
        t = torch.rand(len(action), 1, generator=self._generator, device=device)
        noise = torch.randn(action.shape, generator=self._generator, device=device)
        self._decoder.network.zero_grad(set_to_none=True)
        loss = self._backward(observation, action, t, noise)
        distributed.average_gradients(self._decoder.network)
        self._optimizer.step()
        self.loss.copy_(loss)

    def _backward(self, *batch: Tensor) -> Tensor:
        """The loss of a batch; its gradients are left with the parameters.

        On a CPU halves of the batch are worked through beside each other, and one after the other where there is a
        single core, so that the sums are the same.
        """
        if self._halves is None or len(batch[0]) < 2:
            loss = self._decoder.loss(*batch)
            loss.backward()
            return loss.detach()
        cut = len(batch[0]) // 2
        first, second = self._halves(
            lambda: self._weighted(cut / len(batch[0]), *(each[:cut] for each in batch)),
            lambda: self._weighted(1 - cut / len(batch[0]), *(each[cut:] for each in batch)),
        )
        loss, *gradients = (one + other for one, other in zip(first, second, strict=True))
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss

    def _weighted(self, share: float, *batch: Tensor) -> list[Tensor]:
        """The loss, and its gradients with respect to the parameters, of a part of a batch, times the share it is."""
        loss = share * self._decoder.loss(*batch)
        return [loss.detach(), *torch.autograd.grad(loss, self._parameters)]


def _split(
    observation: Tensor, action: Tensor, share: float, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation rows. An episode lies within one world, so whole worlds are held out."""
    worlds = observation.shape[1]
    held = min(max(1, round(share * worlds)), worlds - 1) if worlds > 1 else 0
    order = torch.randperm(worlds, generator=generator, device=observation.device)

    def rows(index: Tensor) -> tuple[Tensor, Tensor]:
        return observation[:, index].flatten(0, 1), action[:, index].flatten(0, 1)

    training = rows(order[held:])
    return training, rows(order[:held]) if held else training


def _held_out(
    decoder: Decoder, data: tuple[Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Validation rows with times and noise drawn once, so that validation losses compare."""
    device = generator.device
    size = min(max(len(data[0]), _FEWEST_VALIDATION_SAMPLES), _VALIDATION_SAMPLES)
    rows = torch.randint(len(data[0]), (size,), generator=generator, device=device)
    action = data[1][rows]
    t = torch.rand(len(action), 1, generator=generator, device=device)
    return (
        decoder.normaliser(data[0][rows]),
        action,
        t,
        torch.randn(action.shape, generator=generator, device=device),
    )


def _set_statistics(decoder: Decoder, observation: Tensor) -> None:
    fresh = type(decoder.normaliser)(observation.shape[1]).to(observation.device)
    fresh.update(observation)
    decoder.normaliser.load_state_dict(fresh.state_dict())


def _copy(decoder: Decoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in decoder.network.state_dict().items()}
