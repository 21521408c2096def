"""The parts of training, each measured by itself on the objects that `train.py` trains with.

All rates are control steps per second of the worlds that are learnt from; the monitor worlds' time is in them.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console

from benchmarks.timing import BLOCKS, WARM_UP_CALLS, Timed, alternately, timed, wait
from envs.controls import action_range
from envs.engine import make_simulation
from gorl_robotics.audition import Audition, candidates
from gorl_robotics.config import Config
from gorl_robotics.display import Display
from gorl_robotics.graphs import captured
from gorl_robotics.recorder import Recorder
from train import Trainer

Numbers = dict[str, Any]
FAR = 10**18  # a stage's end so far away that nothing is recorded yet
# Iterations of a block on a GPU: the last one's critic learns beside no rollout, which in a run happens once a stage.
LONG = 24


class Bench:
    """One configuration of a training run, its parts run as often as it takes to time them.

    Args:
        config: all settings.
        folder: an empty folder on the disk that runs are recorded to.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        console = Console(quiet=True, force_interactive=False)
        self.config = config
        self.trainer = Trainer(config, folder, Display("", config.total_steps, 1, console))
        self.env, self.device = self.trainer.env, self.trainer.env.device
        self.steps = config.ppo.rollout_steps
        self.samples = config.num_envs * self.steps
        self._refits = getattr(self.trainer.policy, "refits", True)
        self._iterations: dict[str, Timed] = {}
        self._refitted: Numbers = {}
        self._recorder: Recorder | None = None

    def physics(self) -> dict[str, Numbers]:
        """The ceiling: `step()` of the learning worlds alone, random controls, a masked reset each control step.

        Beside it `step()` with neither, and the same as the ceiling with the monitor worlds.
        """
        step, alone = self._simulated(self.config.num_envs)
        step_all, _ = self._simulated(self.env.num_worlds)
        works = [self._repeated(function) for function in (step, alone, step_all)]
        ceiling, bare, everyone = alternately(works, self.device)
        del step, alone, step_all, works
        _forget(self.device)
        return {
            "physics": self._rate(ceiling),
            "physics_step": self._rate(bare),
            "physics_monitors": {**self._rate(everyone), "monitor_share": 1 - ceiling.seconds / everyone.seconds},
        }

    def environment(self) -> dict[str, Numbers]:
        """`apply`, `physics` and `finish` under random actions, starts drawn anew before each rollout."""
        env = self.env
        generator = torch.Generator(self.device).manual_seed(0)
        action = torch.zeros(env.num_worlds, env.action_size, device=self.device)

        def act() -> None:
            env.apply(action.uniform_(-1, 1, generator=generator))

        def finish() -> None:
            env.finish()

        steps = captured(act, self.device, [generator]), env.physics, captured(finish, self.device, [env.generator])

        def rollout() -> None:
            env.refresh_starts()
            for _ in range(self.steps):
                for step in steps:
                    step()

        return {"env": self._rate(timed(rollout, self.device))}

    def rollout(self) -> dict[str, Numbers]:
        """The collector, with the decoder still the identity and with it at work."""
        policy, collector = self.trainer.policy, self.trainer.collector
        numbers = {"rollout": self._rate(timed(collector.collect, self.device))}
        if self._refits and not policy.generative:
            policy.generative = True
            collector.recapture()
            try:
                numbers["rollout_fitted"] = self._rate(timed(collector.collect, self.device))
            finally:
                policy.generative = False
                collector.recapture()
        return numbers

    def update(self) -> dict[str, Numbers]:
        """One PPO update, advantages and statistics included, spread over the control steps of its rollout."""
        rollout = self.trainer.collector.collect()
        return {"update": self._rate(timed(lambda: self.trainer.learner.update(rollout), self.device))}

    def storage(self) -> dict[str, Numbers]:
        """Whole iterations, metrics included, that record nothing and that record to disk."""
        plain, recorded = self._iteration("plain"), self._iteration("recorded")
        numbers = {"iteration": self._rate(plain), "iteration_recorded": self._rate(recorded)}
        numbers["iteration_recorded"]["cost"] = recorded.seconds / plain.seconds - 1
        return numbers

    def refit(self) -> dict[str, Numbers]:
        """A refit of the configured size to what was recorded, reading it included."""
        refitted = self._refit_once()
        return {"refit": refitted} if refitted else {}

    def train(self) -> dict[str, Numbers]:
        """The whole of a run in its configured proportions, put together from the parts that were measured.

        Iterations of an audition, before and after the first refit, recording where it is on, refits, checkpoints;
        without compilation, frozen evaluations (one is timed beside it) and the export.
        """
        plain, recorded, fitted = (self._iteration(name).seconds for name in ("plain", "recorded", "fitted"))
        config = self.config
        auditioned = self._auditioned() if candidates(config, 1) else None
        auditions = config.stages.audition if auditioned else 0
        left = config.total_steps / self.samples - auditions
        rollouts = [max(1, round(share * left)) for share in config.stages.fractions]
        tail = math.ceil(config.refit.samples / self.samples)
        parts = {
            "audition": auditions * (auditioned.seconds if auditioned else 0.0),
            "first_stage": rollouts[0] * plain,
            "later_stages": sum(rollouts[1:]) * fitted,
            "recording": sum(min(tail, stage) for stage in rollouts) * (recorded - plain),
            "refits": (len(rollouts) - 1) * self._refitted.get("seconds", 0.0),
        }
        evaluation, checkpoint = self._beside()
        saves = len(rollouts) + sum(parts.values()) / max(config.checkpoint_seconds, checkpoint)
        parts["checkpoints"] = saves * checkpoint
        seconds = sum(parts.values())
        one = seconds / (auditions + sum(rollouts))
        shares = {name: value / seconds for name, value in parts.items()}
        return {
            **({"iteration_audition": self._rate(auditioned)} if auditioned else {}),
            "iteration_fitted": self._rate(self._iteration("fitted")),
            "train": {**self._rate(Timed(one, one, one, 1)), "run_seconds": seconds, "time_shares": shares},
            "evaluation": {"seconds": evaluation},
            "checkpoint": {"seconds": checkpoint},
        }

    def trace(self, path: Path) -> dict[str, Numbers]:
        """A timeline of a few iterations for chrome://tracing or Perfetto; a name that ends in .gz packs it."""
        from torch.profiler import ProfilerActivity, profile, record_function

        def iteration() -> None:
            with record_function("rollout"):
                rollout = self.trainer.collector.collect()
            with record_function("update"):
                self.trainer.learner.update(rollout)

        iteration()
        wait(self.device)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        with profile(activities=kinds) as profiler:
            for _ in range(2):
                iteration()
            wait(self.device)
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
        return {"trace": {"file": str(path), "bytes": path.stat().st_size}}

    def close(self) -> None:
        """Lets go of the files."""
        if self._recorder is not None:
            self._recorder.close()
        self.trainer.progress.close()

    def memory(self) -> dict[str, Numbers]:
        """Bytes on the GPU: what torch had at most, what Warp has, and what all processes have taken of the whole."""
        import warp as wp

        free, total = torch.cuda.mem_get_info(self.device)
        return {
            "memory": {
                "torch_peak": torch.cuda.max_memory_allocated(self.device),
                "torch_peak_reserved": torch.cuda.max_memory_reserved(self.device),
                "warp": wp.get_mempool_used_mem_current(wp.device_from_torch(self.device)),
                "device_used": total - free,
                "device_total": total,
            }
        }

    def _simulated(self, worlds: int) -> tuple[Callable[[], None], Callable[[], None]]:
        """One control step of the ceiling, and `step()` alone, of a simulation of its own."""
        env, device = self.env, self.device
        model = env.task.compile()
        sim = make_simulation(
            env.task, model, worlds, env.layout.fields, device, self.config.threads, env.task.randomised
        )
        start = env.starts.rows(torch.arange(worlds, device=device) % env.starts.size)
        low, high = (sim.tensor(bound.numpy()) for bound in action_range(model))
        generator = torch.Generator(device).manual_seed(0)
        uniform = torch.zeros(worlds, model.nu, dtype=sim.dtype, device=device)
        age = torch.randint(0, env.episode_length, (worlds,), generator=generator, device=device)

        def prepare() -> None:
            sim.ctrl.copy_(low + (high - low) * uniform.uniform_(generator=generator))
            age.add_(1).remainder_(env.episode_length)
            sim.place(age == 0, start.qpos, start.qvel, start.mocap_pos, start.mocap_quat)

        everyone = torch.ones(worlds, dtype=torch.bool, device=device)
        sim.reset(everyone, start.qpos, start.qvel, start.mocap_pos, start.mocap_quat)
        prepared = captured(prepare, device, [generator])

        def step() -> None:
            prepared()
            sim.step()

        return step, sim.step

    def _repeated(self, step: Callable[[], None]) -> Callable[[], None]:
        def rollout() -> None:
            for _ in range(self.steps):
                step()

        return rollout

    def _iteration(self, kind: str) -> Timed:
        """Of `plain` and `recorded` iterations and, after a refit, `fitted` ones; each is measured once."""
        if kind not in self._iterations:
            if kind == "fitted":
                self._refit_once()
                self._iterations[kind] = self._unrecorded()
            else:
                self._iterations.update(self._record())
        return self._iterations[kind]

    def _unrecorded(self) -> Timed:
        """Iterations that record nothing, in long blocks."""
        self._learn(WARM_UP_CALLS, self._begin(FAR))
        count = LONG if self.device.type == "cuda" else max(1, self._recorded_iterations() // BLOCKS)
        blocks = [self._block(count, self._begin(FAR)) for _ in range(BLOCKS)]
        return Timed(median(blocks), min(blocks), max(blocks), count)

    def _auditioned(self) -> Timed:
        """Iterations of an audition."""
        audition, count = self.trainer.new_audition(), LONG // 3
        self.trainer.collector.act_with(audition.cast)
        self._learn(WARM_UP_CALLS, self._begin(FAR), audition)
        blocks = [self._block(count, self._begin(FAR), audition) for _ in range(BLOCKS)]
        self.trainer.collector.act_with(self.trainer.policy)
        return Timed(median(blocks), min(blocks), max(blocks), count)

    def _record(self) -> dict[str, Timed]:
        """Fills a recording of the configured size, in blocks that take turns with as many that record nothing.

        These blocks may be short, but both kinds alike: what recording costs is the difference.
        """
        plain, wanted = self._unrecorded(), self._recorded_iterations()
        self._recorder = self._begin(self.trainer.progress.steps + self.config.refit.samples)
        recorders = {"plain": self._begin(FAR), "recorded": self._recorder}
        blocks: dict[str, list[float]] = {kind: [] for kind in recorders}
        count = min(BLOCKS, wanted)
        for block in range(count):
            iterations = wanted * (block + 1) // count - wanted * block // count
            for kind, recorder in recorders.items():
                blocks[kind].append(self._block(iterations, recorder))
        alike = plain.seconds - median(blocks["plain"])
        took = [alike + block for block in blocks["recorded"]]
        return {"plain": plain, "recorded": Timed(median(took), min(took), max(took), wanted // count)}

    def _recorded_iterations(self) -> int:
        """How many are recorded for a refit."""
        return math.ceil(self.config.refit.samples / self.samples)

    def _block(self, iterations: int, recorder: Recorder, audition: Audition | None = None) -> float:
        """Seconds of each of several iterations without a break, as in a run; the host waits after the last alone."""
        wait(self.device)
        began = perf_counter()
        self._learn(iterations, recorder, audition)
        wait(self.device)
        return (perf_counter() - began) / iterations

    def _refit_once(self) -> Numbers:
        """Refits to the recording, if the method does and it has not been done yet."""
        self._iteration("recorded")
        if self._refits and not self._refitted:
            assert self._recorder is not None
            self._compile_refit()
            began = perf_counter()
            self.trainer.refit(self._recorder)
            wait(self.device)
            seconds = perf_counter() - began
            samples = self._recorded_iterations() * self.samples
            self._refitted = {"seconds": seconds, "samples": samples, "updates": self.config.refit.updates}
        return self._refitted

    def _compile_refit(self) -> None:
        """A refit of two updates to one rollout, whose result the timed one replaces: kernels compile in it."""
        policy, rollout = self.trainer.policy, self.trainer.collector.rollout
        was_generative = policy.generative
        few = replace(self.config.refit, updates=2)
        policy.end_stage(rollout.observation, rollout.action, few, self.trainer.generator)
        policy.generative = was_generative
        wait(self.device)

    def _learn(self, iterations: int, recorder: Recorder, audition: Audition | None = None) -> None:
        trainer = self.trainer
        trainer.learn(trainer.progress.steps + iterations * self.samples, audition or trainer.learner, recorder)

    def _begin(self, stage_end: int) -> Recorder:
        return self.trainer.recordings.begin(self.trainer.progress.stage, stage_end)

    def _beside(self) -> tuple[float, float]:
        """Seconds of a frozen evaluation and of a checkpoint."""
        began = perf_counter()
        self.trainer.evaluator()
        evaluated = perf_counter()
        self.trainer.checkpointer.save(self.trainer.progress, None)
        return evaluated - began, perf_counter() - evaluated

    def _rate(self, result: Timed) -> Numbers:
        """What is reported of work that takes a rollout's control steps."""
        return {
            "seconds": result.seconds,
            "fastest": result.fastest,
            "slowest": result.slowest,
            "ms_per_control_step": 1e3 * result.seconds / self.steps,
            "steps_per_second": self.samples / result.seconds,
        }


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
