"""Recordings: what goes in comes out, also after a resume, a kill and a full disk."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from gorl_robotics import recording as recording_format
from gorl_robotics import storage
from gorl_robotics.errors import InputError
from gorl_robotics.recording import DATASETS, STEPPED, TERMINAL, Recording, read_rollouts
from gorl_robotics.storage import RolloutWriter

STEPS, WORLDS, OBSERVATION, ACTION = 6, 4, 5, 3
PROVENANCE = {"task": "HopperStand", "seed": 7, "dt": 0.02}


def rollout(number: int, steps: int = STEPS, worlds: int = WORLDS) -> dict[str, Tensor]:
    """A rollout that the number determines; about a fifth of its steps end an episode."""
    draw = torch.Generator().manual_seed(number)
    sizes = {
        "observation": OBSERVATION,
        "terminal_observation": OBSERVATION,
        "latent": ACTION,
        "action": ACTION,
    }
    tensors = {name: torch.randn(steps, worlds, size, generator=draw) for name, size in sizes.items()}
    tensors["reward"] = torch.rand(steps, worlds, generator=draw)
    for name in ("terminated", "truncated"):
        tensors[name] = torch.rand(steps, worlds, generator=draw) < 0.1
    return tensors


def writer(path: Path, worlds: int = WORLDS, resume_steps: int = 0) -> RolloutWriter:
    return RolloutWriter(
        path,
        num_worlds=worlds,
        observation_size=OBSERVATION,
        action_size=ACTION,
        provenance=PROVENANCE,
        resume_steps=resume_steps,
    )


def record(path: Path, numbers: list[int]) -> None:
    recorder = writer(path)
    for number in numbers:
        recorder.append(rollout(number))
    recorder.close()
    assert recorder.failure is None


def assert_holds(recording: Recording, rollouts: list[dict[str, Tensor]], start: int = 0) -> None:
    """Compares rows from `start` on with what the reader gives for them."""
    whole = {name: torch.cat([r[name] for r in rollouts]).numpy() for name in rollouts[0]}
    step, world = np.nonzero(whole["terminated"] | whole["truncated"])
    expected = {name: whole[name] for name in STEPPED}
    expected["terminal_observation"] = whole["terminal_observation"][step, world]
    expected |= {"terminal_step": step + start, "terminal_world": world}
    found = recording.read(list(DATASETS), start, start + len(whole["reward"]))
    for name, values in expected.items():
        assert found[name].dtype == DATASETS[name].dtype
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_round_trip_with_ragged_terminals(tmp_path: Path) -> None:
    rollouts = [rollout(k, steps) for k, steps in enumerate((6, 6, 2, 130, 6))]
    recorder = writer(tmp_path / "new" / "a.h5")
    for each in rollouts:
        recorder.append(each)
    assert recorder.steps == 150
    recorder.flush()
    recorder.close()
    recorder.close()
    with read_rollouts(tmp_path / "new" / "a.h5") as recording:
        assert (recording.steps, recording.num_worlds) == (150, WORLDS)
        assert recording.provenance == PROVENANCE
        assert_holds(recording, rollouts)
        assert_holds(recording, rollouts[2:4], start=12)
        assert recording.read(["terminal_step"], 3, 3)["terminal_step"].shape == (0,)


def test_attributes_document_the_file(tmp_path: Path) -> None:
    record(tmp_path / "a.h5", [0])
    with h5py.File(tmp_path / "a.h5") as file:
        assert dict(file.attrs) == {
            "format": "gorl-robotics rollouts",
            "format_version": 1,
            "complete_steps": STEPS,
            **PROVENANCE,
        }
        assert file["observation"].attrs["axes"] == "step, world, observation"
        for name in (*STEPPED, *TERMINAL):
            attributes = file[name].attrs
            assert len(attributes["axes"].split(", ")) == file[name].ndim
            assert attributes["description"]
            assert attributes["unit"]


@pytest.mark.parametrize(("worlds", "observation"), [(1, 1), (4096, 60), (65536, 60), (8, 400_000)])
def test_chunks_are_a_few_megabytes_at_most(tmp_path: Path, worlds: int, observation: int) -> None:
    RolloutWriter(
        tmp_path / "a.h5", num_worlds=worlds, observation_size=observation, action_size=2, provenance={}
    ).close()
    with h5py.File(tmp_path / "a.h5") as file:
        for name in DATASETS:
            assert 0 < np.prod(file[name].chunks) * file[name].dtype.itemsize < 4e6


def test_resume_cuts_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    record(path, [0, 1, 2])
    recorder = writer(path, resume_steps=STEPS)
    assert recorder.steps == STEPS
    recorder.append(rollout(9))
    recorder.close()
    with read_rollouts(path) as recording:
        assert recording.steps == 2 * STEPS
        assert recording.provenance == PROVENANCE
        assert_holds(recording, [rollout(0), rollout(9)])


def test_resume_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    record(path, [0])
    with pytest.raises(InputError, match="6 complete steps, the checkpoint asks for 7"):
        writer(path, resume_steps=7)
    with pytest.raises(InputError, match="recorded with sizes"):
        writer(path, worlds=5, resume_steps=1)
    with pytest.raises(InputError, match="no recording at"):
        writer(tmp_path / "b.h5", resume_steps=1)


def test_nothing_recorded_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    record(path, [0])
    with pytest.raises(InputError, match=r"a\.h5 exists already"):
        writer(path)
    with read_rollouts(path) as recording:
        assert_holds(recording, [rollout(0)])


def test_failed_creation_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recording_format.Dataset, "create", full)
    with pytest.raises(OSError, match="No space left"):
        writer(tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())


def test_source_may_be_overwritten_after_append(tmp_path: Path) -> None:
    recorder = writer(tmp_path / "a.h5")
    source = {name: torch.empty_like(tensor) for name, tensor in rollout(0).items()}
    for number in range(20):
        for name, tensor in rollout(number).items():
            source[name].copy_(tensor)
        recorder.append(source)
    recorder.close()
    with read_rollouts(tmp_path / "a.h5") as recording:
        assert_holds(recording, [rollout(number) for number in range(20)])


def test_wrong_shapes_and_a_closed_writer_are_named(tmp_path: Path) -> None:
    recorder = writer(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="observation"):
        recorder.append(rollout(0, worlds=1))
    recorder.close()
    with pytest.raises(ValueError, match="closed"):
        recorder.append(rollout(0))


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
from test_storage import Path, rollout, writer
recorder = writer(Path({path!r}), worlds=256)
"""


def child(path: Path, code: str) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parent)
    code = CHILD.format(tests=tests, path=str(path)) + code
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_killed_while_appending(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    code = """
for k in range(10**6):
    recorder.append(rollout(k, worlds=256))
    if k == 4:
        recorder.flush()
        print("flushed", flush=True)
"""
    process = child(path, code)
    assert process.stdout is not None
    assert process.stdout.readline() == "flushed\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with read_rollouts(path) as recording:
        assert recording.steps >= 5 * STEPS
        assert recording.steps % STEPS == 0
        assert_holds(recording, [rollout(k, worlds=256) for k in range(recording.steps // STEPS)])
    resumed = writer(path, worlds=256, resume_steps=4 * STEPS)
    resumed.append(rollout(99, worlds=256))
    resumed.close()
    with read_rollouts(path) as recording:
        assert_holds(recording, [rollout(k, worlds=256) for k in (0, 1, 2, 3, 99)])


def test_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    code = """
import os, resource, signal
for k in range(3):
    recorder.append(rollout(k, worlds=256))
recorder.flush()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(recorder.path) + 5000,) * 2)
for k in range(3, 60):
    recorder.append(rollout(k, worlds=256))
recorder.flush()
recorder.close()
print(recorder.failure)
"""
    output, _ = child(path, code).communicate(timeout=60)
    assert output == f"recording to {path} failed: File too large\n"
    with read_rollouts(path) as recording:
        assert recording.steps >= 3 * STEPS
        assert_holds(recording, [rollout(k, worlds=256) for k in range(recording.steps // STEPS)])


def test_failing_write_keeps_the_first_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = writer(tmp_path / "a.h5")
    recorder.append(rollout(0))
    recorder.flush()

    def fail(*_: object) -> None:
        raise RuntimeError("the disk\nis gone")

    monkeypatch.setattr(recorder, "_write", fail)
    for number in range(10):
        recorder.append(rollout(number))
    recorder.flush()
    recorder.close()
    assert recorder.failure == f"recording to {tmp_path / 'a.h5'} failed: the disk is gone"
    with read_rollouts(tmp_path / "a.h5") as recording:
        assert_holds(recording, [rollout(0)])
        assert recording.steps == STEPS


class Journal:
    """A file that notes every write, so that it can be shown as a kill after any of them would leave it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb+")
        self.writes: list[tuple[int, bytes]] = []

    def write(self, data: bytes) -> int:
        self.writes.append((self.file.tell(), bytes(data)))
        return self.file.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


@pytest.mark.parametrize(("recorded", "kept"), [(1, 1), (5, 3)])
def test_killed_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: int, kept: int) -> None:
    # Many chunks: the index of chunks is what a kill could tear.
    monkeypatch.setattr(recording_format, "STEPS_PER_CHUNK", 1)
    monkeypatch.setattr(recording_format, "TERMINALS_PER_CHUNK", 2)
    path, rollouts = tmp_path / "a.h5", [rollout(k, steps=16) for k in range(5)]
    recorder = writer(path)
    for each in rollouts[:recorded]:
        recorder.append(each)
    recorder.close()
    image, journal = bytearray(path.read_bytes()), Journal(path)
    open_file = storage._open
    monkeypatch.setattr(storage, "_open", lambda _: open_file(journal))
    recorder = writer(path, resume_steps=kept * 16)
    for each in rollouts[kept:]:
        recorder.append(each)
    recorder.close()
    killed = tmp_path / "killed.h5"
    seen = set()
    for offset, data in journal.writes:
        image[len(image) :] = bytes(max(0, offset - len(image)))
        image[offset : offset + len(data)] = data
        killed.write_bytes(image)
        with read_rollouts(killed) as recording:
            seen.add(recording.steps)
            assert_holds(recording, rollouts[: recording.steps // 16])
    assert seen == {16 * number for number in range(kept, 6)}


@pytest.mark.gpu
def test_gpu_tensors_may_be_overwritten_on_the_same_stream(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    worlds, numbers = 2048, range(8)
    rollouts = [rollout(number, worlds=worlds) for number in numbers]
    on_gpu = [{name: tensor.cuda() for name, tensor in each.items()} for each in rollouts]
    source = {name: torch.empty_like(tensor) for name, tensor in on_gpu[0].items()}
    recorder = writer(tmp_path / "a.h5", worlds=worlds)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        for each in on_gpu:
            torch.cuda._sleep(10_000_000)  # the copies must still be waiting when append returns
            for name, tensor in each.items():
                source[name].copy_(tensor)
            recorder.append(source)
            for tensor in source.values():
                tensor.fill_(True)
    recorder.close()
    assert recorder.failure is None
    with read_rollouts(tmp_path / "a.h5") as recording:
        assert_holds(recording, rollouts)


def damage(path: Path, kind: str) -> None:
    """Makes a good recording one that cannot be read."""
    if kind == "missing":
        path.unlink()
    elif kind == "text":
        path.write_text("observation,action\n")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    else:
        with h5py.File(path, "r+") as file:
            if kind == "newer":
                file.attrs["format_version"] = 2
            elif kind == "foreign":
                del file.attrs["format"]
            elif kind == "lacking":
                del file["latent"]
            elif kind == "short":
                file["reward"].resize(2, axis=0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no recording at"),
        ("text", "not a readable HDF5 file"),
        ("truncated", "not a readable HDF5 file"),
        ("newer", "has format version 2, this program reads version 1"),
        ("foreign", "is no recording"),
        ("lacking", "lacks latent"),
        ("short", "reward has shape"),
    ],
)
def test_unusable_files_are_told_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "a.h5"
    record(path, [0])
    damage(path, kind)
    with pytest.raises(InputError, match=message) as error:
        read_rollouts(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    record(tmp_path / "a.h5", [0])
    with read_rollouts(tmp_path / "a.h5") as recording:
        with pytest.raises(InputError, match="did you mean 'reward'"):
            recording.read(["rewards"])
        with pytest.raises(ValueError, match="rows 0 to 7"):
            recording.read(["reward"], 0, 7)
