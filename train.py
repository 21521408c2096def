"""Trains a robot, by default by GoRL: PPO over latents and, between its stages, a refit of the flow decoder.

    python train.py task=HopperStand num_envs=4096

Read from `Trainer.train` on: it is the algorithm. `python train.py --help` lists the settings.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import tasks
from envs.user_code import blaming
from envs.vector_env import VectorEnv
from gorl_robotics import checkpoint, distributed, methods, run_folder
from gorl_robotics.config import CPU_DEFAULTS, Config, check_budget, help_text, parse_arguments, resolve, to_yaml
from gorl_robotics.device import choose_device, prepare_device
from gorl_robotics.display import Display
from gorl_robotics.errors import InputError, run_main
from gorl_robotics.evaluation import Evaluator
from gorl_robotics.export import export_checkpoint
from gorl_robotics.metrics import MetricsLog
from gorl_robotics.ppo import METRICS, Learner
from gorl_robotics.recorder import Recorder, shared_out
from gorl_robotics.rollout import Collector
from gorl_robotics.signals import on_stop

EVALUATION_SEED = 1_000_003  # apart from any training seed's starts


class Trainer:
    """One training run.

    Args:
        config: all settings.
        folder: the run folder, which exists.
        display: shows what is going on.
        saved: a checkpoint to go on from, or None.
    """

    def __init__(self, config: Config, folder: Path, display: Display, saved: dict[str, Any] | None = None) -> None:
        self.config, self.folder, self.display = config, folder, display
        display.doing("building worlds and compiling kernels (a minute at the very first time)")
        device = prepare_device(choose_device(config.device))
        torch.manual_seed(config.seed)
        seed, threads = distributed.own_seed(config.seed), distributed.threads(config.threads)
        self.generator = torch.Generator(device).manual_seed(seed)
        task = tasks.make(config.task)
        self.env = VectorEnv(
            task,
            config.num_envs,
            device=device,
            seed=seed,
            monitors=config.monitors,
            practice=config.practice,
            threads=threads,
        )
        self.watched = VectorEnv(task, 2 * config.evaluation_worlds, device=device, threads=threads, noise=False)
        self.policy = methods.make(config, self.env.observation_size, self.env.action_size).to(device)
        steps = config.ppo.rollout_steps
        self.learner = Learner(
            self.policy,
            self.env.critic_observation_size,
            config,
            config.num_envs * steps,
            device,
            self.generator,
        )
        self.collector = Collector(self.env, self.policy, steps, self.generator)
        self.evaluator = Evaluator(self.watched, self.policy, EVALUATION_SEED)
        self.steps = self.iteration = self.stage = 0
        self.elapsed, self._since = 0.0, time.monotonic()
        self._evaluated: dict[str, Any] | None = None
        self._asked_to_stop, self._stop, self._saved_at = False, False, time.monotonic()
        self._resumed_recorder = self._restore(saved) if saved else None
        distributed.broadcast(self.policy, self.learner.critic)
        if distributed.is_main():
            self.log = MetricsLog(folder, resume_rows=saved["rows"] if saved else None)

    def train(self) -> None:
        """The algorithm: stages of PPO with the decoder frozen and, if there is one, a refit of it between them."""
        fractions = self.config.stages.fractions
        ends = [int(self.config.total_steps * sum(fractions[: k + 1]) + 0.5) for k in range(len(fractions))]
        with on_stop(self._ask_to_stop):
            if self._evaluated is None:
                self._evaluate("untrained")
            while self.stage < len(ends):
                recorder = self._recorder(ends[self.stage])
                self._learn(ends[self.stage], recorder)
                if self._stop:
                    self._save(recorder)
                    self._close(recorder)
                    self.display.note(f"stopped; go on with: {distributed.launcher()} train.py resume={self.folder}")
                    return
                self._evaluate(f"stage {self.stage + 1} ends")
                if self.policy.refits and self.stage < len(ends) - 1:
                    self._refit(recorder)
                self._close(recorder)
                self.stage += 1
                self._save(None, f"stage-{self.stage}.pt")
            self.display.doing("exporting")
            if distributed.is_main():
                self.display.note(f"exported to {export_checkpoint(self.folder)}")

    def _learn(self, stage_end: int, recorder: Recorder) -> None:
        """Fast time scale: rollouts and PPO updates until the stage's steps are used up."""
        samples = distributed.size() * self.collector.rollout.samples
        self.display.doing("training")
        while not self._stopping() and self.steps + samples <= stage_end:
            begin = time.monotonic()
            rollout = self.collector.collect()
            self.steps += samples
            self.iteration += 1
            recorder.add(self.steps)
            self.learner.update(rollout)
            self.env.check()
            # Asked of all here, where a process that the check has ended is noticed before any waits for it on a GPU.
            due = distributed.any_process(time.monotonic() - self._saved_at > self.config.checkpoint_seconds)
            self._report(samples / (time.monotonic() - begin))
            if due:
                self._save(recorder)

    def _refit(self, recorder: Recorder) -> None:
        """Slow time scale: the decoder learns what the policy does; the latent policy goes back to N(0, I)."""
        self.display.doing("refitting the decoder")
        was_generative = self.policy.generative
        result = self.policy.end_stage(*recorder.data(), self.config.refit, self.generator)
        self.display.note(
            f"refit to {result.samples:,} samples: validation loss {result.validation_loss:.4f} "
            f"at update {result.best_update} of {result.updates}"
        )
        if self.policy.generative != was_generative:
            self.collector.recapture()
            self.evaluator.recapture()
        self.learner.restart_policy(self.config.stages.later_regularisation)

    def _close(self, recorder: Recorder) -> None:
        recorder.close()
        for state in distributed.gather_states({"failure": recorder.failure}):
            if state["failure"]:
                self.display.note(f"going on without recording this stage, its samples in memory: {state['failure']}")

    def _evaluate(self, when: str) -> None:
        """A frozen evaluation, written as a row of its own."""
        if not distributed.is_main():
            return
        self.display.doing("evaluating")
        result = self.evaluator()
        summary = result.summary()
        unknown = torch.full_like(result.stochastic, float("nan"))
        starts = {**self.watched.initial_states(), "return": torch.cat([result.deterministic, unknown])}
        self._evaluated = {"steps": self.steps, "summary": summary, "initial_states": starts}
        self._write({f"evaluation/{name}": value for name, value in summary.items()})
        self.display.note(
            f"{when}: {self.steps:,} steps, return {summary['deterministic_mean']:.1f} "
            f"(10th percentile {summary['deterministic_p10']:.1f}), "
            f"stochastic {summary['stochastic_mean']:.1f}"
        )

    def _report(self, speed: float) -> None:
        """Metrics of an iteration, over the worlds of all processes: one transfer from the device."""
        watched = distributed.gather(self.env.last_return)[:, self.config.num_envs :].flatten()
        reward, metrics = self.collector.rollout.reward.mean(), self.learner.metrics()
        distributed.average(reward)
        if not distributed.is_main():
            return
        numbers = torch.stack(
            [
                watched.nanmean(),
                watched.nanquantile(0.1),
                reward,
                self.learner.policy_rate,
            ]
        )
        values = torch.cat([numbers, metrics]).tolist()
        names = ("return/monitor_mean", "return/monitor_p10", "reward/training_mean", "policy/learning_rate")
        row = dict(zip((*names, *self.learner.metric_names), values, strict=True))
        self._write({**row, "time/steps_per_second": speed})
        known = {name: None if value != value else value for name, value in row.items()}
        self.display.update(
            stage=self.stage + 1,
            steps=self.steps,
            steps_per_second=speed,
            monitor_return=known["return/monitor_mean"],
            extra={name: row[column] for name, column in SHOWN.items() if column in row},
        )

    def _write(self, values: dict[str, float]) -> None:
        counts = {"steps": self.steps, "iteration": self.iteration, "stage": self.stage + 1}
        clock = {"time/elapsed": self.elapsed + time.monotonic() - self._since}
        self.log.write({**counts, **dict.fromkeys(COLUMNS, ""), **values, **clock})

    def _recorder(self, stage_end: int) -> Recorder:
        path = self.folder / "rollouts" / f"stage-{self.stage + 1}-rank-{distributed.rank()}.h5"
        provenance = {**run_folder.provenance(), "task": self.config.task, "seed": self.config.seed}
        provenance.update(method=self.config.method, rank=distributed.rank(), processes=distributed.size())
        provenance["observation_terms"] = ", ".join(self.env.layout.observation)
        resumed, self._resumed_recorder = self._resumed_recorder, None
        # The last stage's samples are kept to be looked at, those of the others for a refit.
        last = self.stage == len(self.config.stages.fractions) - 1
        end = stage_end if (self.config.storage.enabled if last else self.policy.refits) else math.inf
        return Recorder(path, self.collector.rollout, end, self.config, provenance, resumed)

    def _save(self, recorder: Recorder | None, name: str | None = None) -> None:
        """Writes the newest checkpoint and, if named, a copy that stays; the first process does, for all."""
        own = {
            "environment": self.env.state_dict(),
            "generators": {"learner": self.generator.get_state(), "torch": torch.get_rng_state()},
            "recorder": recorder.state_dict() if recorder else None,
            "observations": self.collector.rollout.observation[-1, :256].clone(),
        }
        processes = distributed.gather_states(own)
        self._saved_at = time.monotonic()
        if not distributed.is_main():
            return
        content = {
            "config": to_yaml(self.config),
            "device": self.env.device.type,
            "stage": self.stage,
            "steps": self.steps,
            "iteration": self.iteration,
            "elapsed": self.elapsed + time.monotonic() - self._since,
            "rows": self.log.rows,
            "policy": self.policy.state_dict(),
            "generative": self.policy.generative,
            "learner": self.learner.state_dict(),
            "evaluation": self._evaluated,
            **own,
            "other_processes": processes[1:],
        }
        for target in filter(None, (name, checkpoint.LATEST)):
            checkpoint.save(self.folder / "checkpoints" / target, content)

    def _restore(self, saved: dict[str, Any]) -> dict[str, Any] | None:
        self.stage, self.steps, self.iteration = saved["stage"], saved["steps"], saved["iteration"]
        self.elapsed, self._evaluated = saved["elapsed"], saved["evaluation"]
        self.policy.load_state_dict(saved["policy"])
        self.policy.generative = saved["generative"]
        self.learner.load_state_dict(saved["learner"])
        torch.set_rng_state(saved["generators"]["torch"])  # of new weights, which are the same everywhere
        processes = [saved, *saved.get("other_processes", [])]
        rank, size = distributed.rank(), distributed.size()
        own = processes[rank % len(processes)]
        self.collector.rollout.observation[-1, :256] = own["observations"]  # if there is no rollout any more
        if len(processes) != size:  # the worlds begin anew
            return shared_out([process["recorder"] for process in processes], rank, size)
        if saved["device"] == self.env.device.type:
            self.env.load_state_dict(own["environment"])
            self.generator.set_state(own["generators"]["learner"])
        return own["recorder"]

    def _stopping(self) -> bool:
        """Whether any process was asked to stop: then all of them do, after the same iteration."""
        self._stop = distributed.any_process(self._asked_to_stop)
        return self._stop

    def _ask_to_stop(self) -> None:
        self._asked_to_stop = True
        self.display.doing("stopping after this iteration")


SHOWN = {"training reward": "reward/training_mean", "KL": "policy/kl", "latent std": "policy/std"}  # where there are
COLUMNS = (
    "return/monitor_mean",
    "return/monitor_p10",
    "reward/training_mean",
    "policy/learning_rate",
    *METRICS,
    *(f"evaluation/{kind}_{what}" for kind in ("deterministic", "stochastic") for what in ("mean", "std", "p10")),
    "evaluation/decoder_displacement",
    "time/steps_per_second",
)


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(help_text({"cpu": CPU_DEFAULTS, **methods.layers()}))
        return
    given = parse_arguments(arguments)
    if given.get("task"):
        given["task"] = tasks.absolute(given["task"])  # what a run folder remembers must hold in any folder
    with distributed.processes():
        if given.get("test"):
            if distributed.is_main():
                _test(given)
        elif given.get("resume"):
            _resume(given)
        else:
            _start(given)


def _start(given: dict[str, Any]) -> None:
    if not given.get("task"):
        raise InputError(f"task=NAME is missing; known: {', '.join(tasks.names())}")
    task = tasks.make(given["task"])
    device = choose_device(given.get("device", "auto"))
    method = methods.find(given.get("method", Config().method))
    config = resolve(given, CPU_DEFAULTS if device.type == "cpu" else {}, method.defaults, task.overrides)
    check_budget(config, distributed.size())
    _train(config, distributed.from_main(lambda: run_folder.create(config)))


def _resume(given: dict[str, Any]) -> None:
    path, saved, config = run_folder.reopen(given, "resume")
    samples = distributed.size() * config.num_envs * config.ppo.rollout_steps
    last = len(config.stages.fractions) - 1
    if saved["stage"] > last:
        if saved["steps"] + samples > config.total_steps:
            raise InputError(
                f"resume={given['resume']}: the run is complete at {saved['steps']:,} steps; raise total_steps"
            )
        saved["stage"] = last  # which becomes longer
    _train(config, distributed.from_main(lambda: run_folder.continued(path, config, saved["stage"])), saved)


def _train(config: Config, folder: Path, saved: dict[str, Any] | None = None) -> None:
    title = f"{config.task_name} · {config.method} · seed {config.seed} · {folder}"
    if distributed.size() > 1:
        title += f" · {distributed.size()} processes"
    console = None if distributed.is_main() else Console(quiet=True, force_interactive=False)
    display = Display(title, config.total_steps, len(config.stages.fractions), console)
    with blaming(tasks.make(config.task)), display:
        try:
            trainer = Trainer(config, folder, display, saved)
        except BaseException:
            run_folder.discard(folder)
            raise
        trainer.train()


def _test(given: dict[str, Any]) -> None:
    """Evaluates a trained policy, without noise and with it, and prints the returns."""
    path, saved, config = run_folder.reopen(given, "checkpoint")
    device, task = prepare_device(choose_device(config.device)), tasks.make(config.task)
    env = VectorEnv(task, 2 * config.evaluation_worlds, device=device, threads=config.threads, noise=False)
    policy = methods.make(config, env.observation_size, env.action_size).to(device)
    policy.load_state_dict(saved["policy"])
    policy.generative = saved["generative"]
    with blaming(task):
        summary = Evaluator(env, policy, EVALUATION_SEED)().summary()
    print(f"{config.task_name}, {saved['steps']:,} steps, {path}, {config.evaluation_worlds} episodes each:")
    for kind in ("deterministic", "stochastic"):
        mean, std, p10 = (summary[f"{kind}_{what}"] for what in ("mean", "std", "p10"))
        print(f"  {kind:<14} return {mean:8.2f}  standard deviation {std:7.2f}  10th percentile {p10:8.2f}")


if __name__ == "__main__":
    run_main(main)
