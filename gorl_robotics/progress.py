"""Where a run stands: its counts and its clock, told to the metrics and to the display as it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gorl_robotics import distributed
from gorl_robotics.audition import Audition
from gorl_robotics.display import Display
from gorl_robotics.environment import Environment
from gorl_robotics.errors import InputError
from gorl_robotics.evaluation import Evaluation
from gorl_robotics.later import Later
from gorl_robotics.metrics import MetricsLog
from gorl_robotics.ppo import METRICS, Learner
from gorl_robotics.rollout import Collector

# In the order of `Progress.report`, behind which the learner's metrics come.
_REPORTED = ("return/monitor_mean", "return/monitor_p10", "reward/training_mean", "policy/learning_rate")
_COLUMNS = (
    *_REPORTED,
    *METRICS,
    *(f"evaluation/{kind}_{what}" for kind in ("deterministic", "stochastic") for what in ("mean", "std", "p10")),
    "evaluation/decoder_displacement",
    "worlds/lost",
    "time/steps_per_second",
)
_SHOWN = {"training reward": "reward/training_mean", "KL": "policy/kl", "latent std": "policy/std"}  # where there are


class Progress:
    """Counts what has been done and reports it, which the first process does for all.

    Args:
        folder: the run folder, which exists.
        display: shows what is going on.
        saved: a checkpoint to go on from, or None.

    Attributes:
        steps: environment steps done, of all processes.
        iteration: iterations done.
        stage: stages that are over.
        evaluation: the last frozen one, as a checkpoint keeps it: `steps`, `summary` and `initial_states`.

    Raises:
        InputError: the metrics to go on with are missing or too short.
    """

    def __init__(self, folder: Path, display: Display, saved: Mapping[str, Any] | None = None) -> None:
        self._display = display
        self.steps = self.iteration = self.stage = 0
        self.evaluation: dict[str, Any] | None = None
        self._before, self._since = 0.0, time.monotonic()
        self._reported_at = self._since
        self._told: set[bool] = set()  # faults: another process's, this one's
        self._pending: Callable[[], None] = _nothing
        if saved:
            self.stage, self.steps, self.iteration = saved["stage"], saved["steps"], saved["iteration"]
            self._before, self.evaluation = saved["elapsed"], saved["evaluation"]
        self._log = MetricsLog(folder, saved["rows"] if saved else None, _COLUMNS) if distributed.is_main() else None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; called on the first process."""
        assert self._log is not None
        return {
            "stage": self.stage,
            "steps": self.steps,
            "iteration": self.iteration,
            "elapsed": self._elapsed(time.monotonic()),
            "rows": self._log.rows,
            "evaluation": self.evaluation,
        }

    def advance(self, steps: int) -> None:
        """Counts an iteration of so many environment steps."""
        self.steps += steps
        self.iteration += 1

    def begin(self) -> None:
        """Iterations follow from here; what was done before counts in no speed."""
        self._reported_at = time.monotonic()

    def report(self, collector: Collector, learner: Learner | Audition, samples: int) -> None:
        """Reports an iteration, over the worlds of all processes, as soon as the next one has been launched.

        Args:
            collector: with its last rollout.
            learner: which has learnt from it.
            samples: environment steps of the iteration, of all processes.
        """
        env, counts = collector.env, self._counts()
        returns, reward = env.last_return[env.num_envs :].clone(), collector.rollout.reward.mean()
        faults = Later(env.faults())
        values = learner.metrics_later(returns, reward, learner.policy_rate.clone())
        names = (*_REPORTED, *learner.metric_names)
        before, self._pending = self._pending, lambda: self._tell(env, faults, values, names, counts, samples)
        before()

    def flush(self) -> None:
        """Reports what is still under way; before anything is saved, for it judges the environment."""
        pending, self._pending = self._pending, _nothing
        pending()

    def _tell(
        self,
        env: Environment,
        faults: Later,
        values: Later,
        names: Sequence[str],
        counts: Mapping[str, int],
        samples: int,
    ) -> None:
        fault, own = env.judge(faults.now()), values.now()
        own = torch.cat([own, own.new_tensor([bool(fault), env.lost])])
        *means, faulty, lost = _over_processes(own, len(names) + 2)
        if faulty and bool(fault) not in self._told:
            self._told.add(bool(fault))  # once is enough: it may come with every iteration
            self._display.note(f"{fault or 'what another process simulates does not fit everywhere'}; training goes on")
        row = dict(zip(names, means, strict=True))
        _check_losses(row, counts["steps"])
        if not distributed.is_main():
            return
        speed, self._reported_at = samples / (values.arrived - self._reported_at), values.arrived
        row |= {"worlds/lost": round(lost * distributed.size()), "time/steps_per_second": speed}
        self._write(row, counts, values.arrived)
        mean = row["return/monitor_mean"]
        self._display.update(
            stage=counts["stage"],
            steps=counts["steps"],
            steps_per_second=speed,
            monitor_return=None if mean != mean else mean,  # NaN while no episode has ended
            extra={name: row[column] for name, column in _SHOWN.items() if column in row},
        )

    def report_evaluation(self, when: str, result: Evaluation, starts: Mapping[str, Tensor], fault: str) -> None:
        """Reports a frozen evaluation, in a row of its own; called on the first process.

        Args:
            when: what had happened before.
            result: returns of N worlds without noise and of N with it.
            starts: the initial states of all 2N by name; a checkpoint keeps them with their returns.
            fault: what went wrong in it, empty if nothing did.
        """
        summary = result.summary()
        unknown = torch.full_like(result.stochastic, float("nan"))
        known = {**starts, "return": torch.cat([result.deterministic, unknown])}
        self.evaluation = {"steps": self.steps, "stage": self.stage, "summary": summary, "initial_states": known}
        self._write({f"evaluation/{name}": value for name, value in summary.items()}, self._counts(), time.monotonic())
        self._display.note(
            f"{when}: {self.steps:,} steps, return {summary['deterministic_mean']:.1f} "
            f"(10th percentile {summary['deterministic_p10']:.1f}), "
            f"stochastic {summary['stochastic_mean']:.1f}{fault and f'; {fault}'}"
        )

    def close(self) -> None:
        """Closes the metrics; nothing can be reported any more."""
        if self._log is not None:
            self._log.close()

    def _counts(self) -> dict[str, int]:
        return {"steps": self.steps, "iteration": self.iteration, "stage": self.stage + 1}

    def _write(self, values: Mapping[str, float], counts: Mapping[str, int], at: float) -> None:
        assert self._log is not None
        self._log.write({**counts, **dict.fromkeys(_COLUMNS, ""), **values, "time/elapsed": self._elapsed(at)})

    def _elapsed(self, at: float) -> float:
        """Seconds of training until `at`, those before an interruption included."""
        return self._before + at - self._since


def _over_processes(values: Tensor, count: int) -> list[float]:
    """As many numbers as are reported, from each process's values: its monitors' last returns, then the others."""
    every = distributed.gather(values)
    returns, others = every.split([every.shape[1] - count + 2, count - 2], dim=1)
    return [float(returns.nanmean()), float(returns.nanquantile(0.1)), *others.mean(dim=0).tolist()]


def _check_losses(row: Mapping[str, float], steps: int) -> None:
    """Raises InputError where a loss is no finite number: the weights are none either, and all else is for nothing."""
    for name in ("loss/value", "loss/policy"):  # the policy learns from what the critic says
        if not math.isfinite(row[name]):
            raise InputError(
                f"learning has broken down: {name} is {row[name]} after {steps:,} steps; lower ppo.learning_rate "
                f"(now {row['policy/learning_rate']:.1g}) or ppo.clip. The last checkpoint is from before"
            )


def _nothing() -> None:
    """Nothing is under way."""
