"""The decoder by flow matching: a conditional flow from the latent z to the action, and how it is fitted.

Along the straight path x_t = t·ε + (1 - t)·a between noise ε ~ N(0, I) and an action a, a network learns the velocity
ε - a (conditional flow matching, Lipman et al. 2023; as used by GoRL, arXiv 2512.02581). Decoding starts from x_1 = z
and integrates to x_0, the pre-tanh action, in equal Euler steps.
"""

from __future__ import annotations

from torch import Tensor

from gorl_robotics.decoder import Decoder


class FlowDecoder(Decoder):
    """Learns the velocity of straight paths."""

    def loss(self, observation: Tensor, action: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Conditional flow-matching loss; see `Decoder.loss`."""
        x = t * noise + (1 - t) * action
        return self.squared_error(observation, x, t, noise - action)
