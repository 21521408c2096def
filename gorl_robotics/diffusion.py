"""The decoder by diffusion: deterministic denoising (DDIM, Song et al. 2021) from the latent z to the action.

Noise and action are mixed as x_t = √ᾱ·a + √(1 - ᾱ)·ε with ᾱ falling evenly from 1 at t = 0 to 0.001 at t = 1, where
hardly anything but noise is left: decoding may start from z ~ N(0, I). A DDIM step goes from x_t to what the same
predicted a and ε mix to at the next time. Here the network predicts that step, times the number of steps, instead of ε;
the best prediction of either gives the same step, which is linear in x_t and ε. Two things follow: a network of zeros
is the identity exactly, and an error counts in the loss as much as it moves the action, at any t.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gorl_robotics.decoder import Decoder

LAST_SIGNAL = 1e-3  # ᾱ at t = 1


class DiffusionDecoder(Decoder):
    """Learns the steps of a denoising."""

    def loss(self, observation: Tensor, action: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Squared error of a denoising step, times their number, at one of the decoding's times; see `Decoder.loss`."""
        before = (t * self.steps).ceil().clamp(min=1.0)
        here = _mixed(action, noise, before / self.steps)
        there = _mixed(action, noise, (before - 1) / self.steps)
        return F.mse_loss(self.velocity(observation, here, before / self.steps), (here - there) * self.steps)


def _mixed(action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    signal = 1 - (1 - LAST_SIGNAL) * t
    return signal.sqrt() * action + (1 - signal).sqrt() * noise
