"""Adam (Kingma & Ba 2015) by torch's own fused kernels, without the import of torch's compiler.

`torch.optim.Adam` imports `torch._dynamo` when the first one is made: seconds of a start, for what is not used here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # as torch.optim.Adam names them in what it saves


class Adam:
    """Steps along the gradients that are left with some parameters; without one, a parameter stays as it is.

    Args:
        parameters: all on one device.
        rate: of learning; a tensor () on that device may be changed in place, also where `step` is captured.

    Attributes:
        rate: as given.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: Tensor | float) -> None:
        self.rate = rate
        self._parameters = list(parameters)
        device = self._parameters[0].device
        self._step = [torch.zeros((), device=device) for _ in self._parameters]
        self._exp_avg = [torch.zeros_like(each) for each in self._parameters]
        self._exp_avg_sq = [torch.zeros_like(each) for each in self._parameters]

    @torch.no_grad()
    def step(self) -> None:
        """One step; launches device work only."""
        learning = [i for i, each in enumerate(self._parameters) if each.grad is not None]
        columns = (self._parameters, [each.grad for each in self._parameters], self._exp_avg, self._exp_avg_sq)
        parameters, gradients, exp_avg, exp_avg_sq = ([column[i] for i in learning] for column in columns)
        adam(
            parameters,  # type: ignore[arg-type]
            gradients,  # type: ignore[arg-type]
            exp_avg,  # type: ignore[arg-type]
            exp_avg_sq,  # type: ignore[arg-type]
            [],
            [self._step[i] for i in learning],
            fused=True,
            capturable=self._step[0].is_cuda,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    @torch.no_grad()
    def reset(self) -> None:
        """Forgets all steps so far, in place."""
        for each in (*self._step, *self._exp_avg, *self._exp_avg_sq):
            each.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Moments and rate, the tensors themselves, in the form in which `torch.optim.Adam` saves them."""
        rows = zip(self._step, self._exp_avg, self._exp_avg_sq, strict=True)
        state = {i: dict(zip(_MOMENTS, row, strict=True)) for i, row in enumerate(rows)}
        return {"state": state, "param_groups": [{"lr": self.rate}]}

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restores, in place, what was saved on any device by this class or by torch's; a rate that is fixed stays."""
        self.reset()  # torch's has no moments of a parameter that has not been stepped yet
        own = self.state_dict()["state"]
        for i, moments in saved["state"].items():
            for name in _MOMENTS:
                own[i][name].copy_(moments[name])
        if isinstance(self.rate, Tensor):
            self.rate.copy_(saved["param_groups"][0]["lr"])
