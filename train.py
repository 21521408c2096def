"""Trains a robot, by default by GoRL: PPO over latents and, between its stages, a refit of the flow decoder.

    python train.py task=HopperStand num_envs=4096

Read from `Trainer.train` on: it is the algorithm. `python train.py --help` lists the settings.
"""

from __future__ import annotations

import gc

gc.disable()  # what is imported stays: a fifth of the time would go into looking through it for garbage

from gorl_robotics.bytecode import keep_bytecode
from gorl_robotics.errors import InputError, end_quietly_on_interrupt, run_main

keep_bytecode()
end_quietly_on_interrupt()

import sys
from collections.abc import Callable
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import tasks
from envs.dry_run import dry_run
from envs.endings import close_once
from envs.engine import load_engine
from envs.health import look_once
from envs.user_code import blaming
from envs.vector_env import VectorEnv
from gorl_robotics import distributed, methods, run_folder
from gorl_robotics.audition import Audition, candidates, rows_of, steps_of
from gorl_robotics.checkpointer import Checkpointer
from gorl_robotics.compilation import compiling
from gorl_robotics.config import Config, check_budget, help_text, parse_arguments
from gorl_robotics.device import choose_device, prepare_device
from gorl_robotics.display import Display
from gorl_robotics.evaluation import Evaluator
from gorl_robotics.ppo import Learner
from gorl_robotics.progress import Progress
from gorl_robotics.recorder import Recorder, Recordings
from gorl_robotics.rollout import Collector
from gorl_robotics.signals import on_stop

gc.freeze()
gc.enable()
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
        display.doing("building worlds and compiling kernels (half a minute at the very first time)")
        device = prepare_device(choose_device(config.device), config.networks.tf32)
        torch.manual_seed(config.seed)
        seed, threads = distributed.own_seed(config.seed), distributed.threads(config.threads)
        self.generator = torch.Generator(device).manual_seed(seed)
        task = tasks.make(config.task)
        model, steps = task.compile(), config.ppo.rollout_steps
        layout = dry_run(task, model)  # sizes, before there are worlds: their kernels compile beside the learner's
        self.policy = methods.make(config, layout.observation_size, model.nu).to(device)
        self.learner = Learner(
            self.policy, layout.critic_observation_size, config, config.num_envs * steps, device, self.generator
        )
        sizes = (config.num_envs, config.num_envs + config.monitors, task.episode_length)
        endings = partial(close_once, *sizes, config.practice, device)
        health = partial(look_once, sizes[1], model.nq, model.nv, device)
        with compiling([*self.learner.parts(), endings, health], device):
            load_engine(device)
            self.env = VectorEnv(
                task,
                config.num_envs,
                device=device,
                seed=seed,
                monitors=config.monitors,
                practice=config.practice,
                threads=threads,
            )
        # All that a control step draws comes from one generator: each costs a graph's launch two small kernels.
        self.collector = Collector(self.env, self.policy, steps, self.env.generator)
        self.checkpointer = Checkpointer(folder, config, self.collector, self.learner, self.generator)
        # Made before all is restored, random numbers too, as it was made before all was saved.
        held = len(rows_of(saved)) if saved else 0
        self.audition = self.new_audition(held) if held and candidates(config, distributed.size(), held) else None
        recorded = self.checkpointer.restore(saved, self.audition) if saved else None
        distributed.broadcast(self.policy, *self.learner.networks)
        self.progress = Progress(folder, display, saved)
        terms = tuple(self.env.layout.observation)
        self.recordings = Recordings(
            folder, config, self.collector.rollout, terms, self.policy.refits, display, recorded
        )
        self._asked_to_stop = False

    @cached_property
    def watched(self) -> VectorEnv:
        """The worlds of frozen evaluations, made when they are first needed: a start need not wait for them."""
        threads, device = distributed.threads(self.config.threads), self.env.device
        return VectorEnv(self.env.task, 2 * self.config.evaluation_worlds, device=device, threads=threads, noise=False)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Evaluates the policy in them."""
        return Evaluator(self.watched, self.policy, EVALUATION_SEED)

    def train(self) -> None:
        """The algorithm: stages of PPO with the decoder frozen and, if there is one, a refit of it between them."""
        progress, ends = self.progress, self.stage_ends
        with on_stop(self._ask_to_stop):
            while progress.stage < len(ends):
                recorder = self.recordings.begin(progress.stage, ends[progress.stage])
                self.display.doing("training")
                if not (self.hold_audition(recorder) and self.learn(ends[progress.stage], self.learner, recorder)):
                    self.save(recorder)
                    self.recordings.end(recorder)
                    self.display.note(f"stopped; go on with: {distributed.launcher()} train.py resume={self.folder}")
                    return
                last = not self.policy.refits or progress.stage == len(ends) - 1
                self.evaluate(f"stage {progress.stage + 1} ends", None if last else partial(self.refit, recorder))
                self.recordings.end(recorder)
                progress.stage += 1
                self.save(None, f"stage-{progress.stage}.pt")
            self.display.doing("exporting")
            if distributed.is_main():
                from gorl_robotics.export import export_checkpoint  # not at the top: a start need not wait for ONNX

                self.display.note(f"exported to {export_checkpoint(self.folder)}")

    def hold_audition(self, recorder: Recorder) -> bool:
        """In a long run's first stage others show what they learn in the same time, and the best goes on.

        False if asked to stop.
        """
        if self.progress.stage > 0 or not candidates(self.config, distributed.size()):
            return True
        iterations, room = self.config.stages.audition, self.stage_ends[0] - self.config.refit.samples
        if self.audition is None:
            # A run that was resumed otherwise than it began may be too late: they would have fewer iterations than it.
            if self.progress.iteration > iterations or self._steps_at(2 * iterations) > room:
                return True
            if not self.learn(self._steps_at(iterations), self.learner, recorder):
                return False
        self.display.doing("auditioning")
        self.audition = self.audition or self.new_audition()
        with compiling(self.audition.parts(), self.env.device):
            self.collector.act_with(self.audition.cast)
        if not self.learn(min(self._steps_at(2 * iterations), room), self.audition, recorder):
            return False
        self.display.note(f"audition: {self.audition.elect(self.policy, self.learner)}")
        self.collector.act_with(self.policy)
        self.audition = None
        self.display.doing("training")
        return True

    def learn(self, end: int, learner: Learner | Audition, recorder: Recorder) -> bool:
        """Fast time scale: rollouts and PPO updates until `end` steps are used up; False if asked to stop."""
        progress, samples = self.progress, distributed.size() * self.collector.rollout.samples
        progress.begin()
        # Any process that is asked to stop stops all of them, after the same iteration.
        while not (stopping := distributed.any_process(self._asked_to_stop)) and progress.steps + samples <= end:
            rollout = self.collector.collect()
            progress.advance(samples)
            recorder.add(progress.steps)
            self._anneal()
            learner.update(rollout)
            progress.report(self.collector, learner, samples)
            if self._evaluation_due(samples):
                progress.flush()
                self.evaluate(f"stage {progress.stage + 1} goes on")
                self.save(recorder, f"steps-{progress.steps}.pt")  # this policy may be better than what comes of it
                progress.begin()
            # Asked of all here, where a process that has ended is noticed before any waits for it on a GPU.
            if distributed.any_process(self.checkpointer.due()):
                progress.flush()
                self.save(recorder)
        progress.flush()
        return not stopping

    def refit(self, recorder: Recorder) -> None:
        """Slow time scale: the decoder learns what the policy does; the latent policy goes back to N(0, I)."""
        self.display.doing("refitting the decoder")
        was_generative, data = self.policy.generative, recorder.data()
        if distributed.any_process(len(data[0]) == 0):
            self.display.note(f"no refit: nothing is recorded of stage {self.progress.stage + 1}")
            return
        result = self.policy.end_stage(*data, self.config.refit, self.generator)
        self.display.note(
            f"refit to {result.samples:,} samples: validation loss {result.validation_loss:.4f} "
            f"at update {result.best_update} of {result.updates}"
        )
        if self.policy.generative != was_generative:
            self.collector.recapture()
        self.learner.restart_policy(self.config.stages.later_regularisation)

    def evaluate(self, when: str, then: Callable[[], None] | None = None) -> None:
        """A frozen evaluation by the first process; what comes `then` is done beside it on a GPU."""
        then = then or (lambda: None)
        if not distributed.is_main():
            then()
        else:
            self.display.doing("evaluating")
            result = self.evaluator.beside(then)
            self.progress.report_evaluation(when, result, self.watched.initial_states(), self.watched.account())

    def save(self, recorder: Recorder | None, name: str | None = None) -> None:
        """Writes a checkpoint; see `Checkpointer.save`."""
        self.checkpointer.save(self.progress, recorder, name, self.audition)

    def new_audition(self, held: int | None = None) -> Audition:
        """Candidates with new weights; `held` as in `candidates`."""
        config, device, sizes = self.config, self.env.device, (self.env.observation_size, self.env.action_size)
        return Audition(
            lambda: methods.make(config, *sizes).to(device),
            self.policy,
            self.env.critic_observation_size,
            config,
            device,
            self.generator,
            held,
        )

    @cached_property
    def stage_ends(self) -> list[int]:
        """Counts of environment steps at which stages end; they share what an audition leaves."""
        config, processes = self.config, distributed.size()
        taken = steps_of(config, processes) if candidates(config, processes) else 0
        fractions, rest = config.stages.fractions, config.total_steps - taken
        return [taken + int(rest * sum(fractions[: k + 1]) + 0.5) for k in range(len(fractions))]

    def _steps_at(self, iteration: int) -> int:
        """Count of environment steps at an iteration, as many processes as now doing all until then."""
        samples = distributed.size() * self.collector.rollout.samples
        return self.progress.steps + (iteration - self.progress.iteration) * samples

    def _anneal(self) -> None:
        """What is solved may be unlearnt again, and a run ends with its last policy: a lower rate keeps it."""
        anneal, last = self.config.ppo.anneal, len(self.stage_ends) - 1
        if anneal > 0 and self.progress.stage == last:
            begin, end = [0, *self.stage_ends][last:]
            left = (end - self.progress.steps) / (end - begin)
            self.learner.bound_rate(min(1.0, left / anneal))

    def _evaluation_due(self, samples: int) -> bool:
        """Whether the last iteration passed a multiple of `evaluation_steps`; at a stage's end there is one anyway."""
        progress, interval = self.progress, self.config.evaluation_steps
        end = self.stage_ends[progress.stage]
        return interval > 0 and progress.steps % interval < samples and progress.steps + samples <= end

    def _ask_to_stop(self) -> None:
        self._asked_to_stop = True
        self.display.doing("stopping after this iteration")


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(help_text(methods.layers()))
        return
    given = parse_arguments(arguments)
    if given.get("task"):
        given["task"] = tasks.absolute(given["task"])  # what a run folder remembers must hold in any folder
    with distributed.processes():
        if given.get("test"):
            if distributed.is_main():
                _test(given)
        elif "resume" in given:
            _resume(given)
        else:
            _start(given)


def _start(given: dict[str, Any]) -> None:
    if not given.get("task"):
        raise InputError(f"task=NAME is missing; known: {', '.join(tasks.names())}")
    task = tasks.make(given["task"])
    on_cpu = choose_device(given.get("device", "auto")).type == "cpu"
    with blaming(task):
        actuators = task.compile().nu
    config = methods.configure(given, actuators, on_cpu, task.overrides)
    check_budget(config, distributed.size())
    _train(config, distributed.from_main(lambda: run_folder.create(config)))


def _resume(given: dict[str, Any]) -> None:
    path, saved, config = run_folder.reopen(given, "resume")
    samples = distributed.size() * config.num_envs * config.ppo.rollout_steps
    last = len(config.stages.fractions) - 1
    if saved["stage"] > last:
        if saved["steps"] + samples > config.total_steps:
            raise InputError(
                f"resume={given['resume']}: the run is complete at {saved['steps']:,} steps; raise total_steps, "
                f"to at least {saved['steps'] + samples}"
            )
        saved["stage"] = last  # which becomes longer
    check_budget(config, distributed.size(), saved["stage"] + (saved["recorder"] is not None))
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
        with closing(trainer.progress):
            trainer.train()


def _test(given: dict[str, Any]) -> None:
    """Evaluates a trained policy, without noise and with it, and prints the returns."""
    path, saved, config = run_folder.reopen(given, "checkpoint")
    device, task = prepare_device(choose_device(config.device), config.networks.tf32), tasks.make(config.task)
    env = VectorEnv(task, 2 * config.evaluation_worlds, device=device, threads=config.threads, noise=False)
    policy = methods.make(config, env.observation_size, env.action_size).to(device)
    policy.restore(saved)
    with blaming(task):
        summary = Evaluator(env, policy, EVALUATION_SEED)().summary()
    print(f"{config.task_name}, {saved['steps']:,} steps, {path}, {config.evaluation_worlds} episodes each:")
    for kind in ("deterministic", "stochastic"):
        mean, std, p10 = (summary[f"{kind}_{what}"] for what in ("mean", "std", "p10"))
        print(f"  {kind:<14} return {mean:8.2f}  standard deviation {std:7.2f}  10th percentile {p10:8.2f}")
    if fault := env.account():
        print(f"  {fault}")


if __name__ == "__main__":
    run_main(main)
