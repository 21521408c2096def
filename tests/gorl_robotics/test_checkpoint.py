"""Checkpoints: round trips, damage answered in one line, no code executed, and never half a file."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from gorl_robotics import checkpoint
from gorl_robotics.errors import InputError

CONTENT: dict[str, Any] = {
    "steps": 3,
    "elapsed": 1.5,
    "name": "α",
    "none": None,
    "flags": [True, False],
    "nested": {"weights": torch.arange(6.0).view(2, 3), "random": torch.get_rng_state()},
    "ordered": OrderedDict(a=torch.tensor(1)),
}


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        checkpoint.load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / checkpoint.LATEST
    checkpoint.save(path, CONTENT)
    loaded = checkpoint.load(path)
    for name in ("steps", "elapsed", "name", "none", "flags"):
        assert loaded[name] == CONTENT[name]
    for name, tensor in CONTENT["nested"].items():
        assert torch.equal(loaded["nested"][name], tensor)
    assert torch.equal(loaded["ordered"]["a"], torch.tensor(1))
    assert os.listdir(path.parent) == [checkpoint.LATEST]


def test_an_optimisers_state_survives(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([parameter], lr=torch.tensor(0.1), fused=True)
    parameter.square().sum().backward()
    adam.step()
    checkpoint.save(tmp_path / "a.pt", {"adam": adam.state_dict()})
    loaded = checkpoint.load(tmp_path / "a.pt")["adam"]
    assert torch.equal(loaded["state"][0]["exp_avg"], adam.state[parameter]["exp_avg"])
    assert float(loaded["param_groups"][0]["lr"]) == pytest.approx(0.1)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, CONTENT)
    whole = path.read_bytes()
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "not a readable checkpoint" in refused(path)


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    checkpoint.save(path, {"weights": torch.randn(10_000)})
    content = bytearray(path.read_bytes())
    content[20_000] ^= 1  # within the weights, which would load
    path.write_bytes(content)
    assert "damaged" in refused(path)


def test_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    path, draw = tmp_path / "a.pt", random.Random(0)
    checkpoint.save(path, {"x": torch.randn(50), "y": {"z": [1, 2.5, "t"]}})
    whole = path.read_bytes()
    refusals = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 5, 50])):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            checkpoint.load(path)
        except InputError:
            refusals += 1
    assert refusals > 50


@pytest.mark.parametrize("text", ["num_envs: 3\n", "hello", "N.", "{}", "a,b\n1,2\n", "\x89HDF\r\n"])
@pytest.mark.filterwarnings("error")  # a warning would be a second line on the user's screen
def test_a_text_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pt").write_text(text)
    assert "not a readable checkpoint" in refused(tmp_path / "a.pt")


def test_other_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a readable checkpoint" in refused(path)
    torch.save({"model": torch.zeros(2)}, path)
    assert "no checkpoint of gorl-robotics" in refused(path)
    torch.save(torch.zeros(2), path)
    assert "no checkpoint of gorl-robotics" in refused(path)


def test_another_format_version_is_named(tmp_path: Path) -> None:
    path, newer = tmp_path / "a.pt", checkpoint.FORMAT_VERSION + 1
    torch.save({"format": checkpoint.FORMAT, "format_version": newer}, path)
    assert f"format {newer}, this version reads {checkpoint.FORMAT_VERSION}" in refused(path)
    torch.save({"format": checkpoint.FORMAT}, path)
    assert "format None" in refused(path)


class Harmful:
    """Unpickled by an ordinary pickle it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_executes_code_is_refused_and_does_not(tmp_path: Path) -> None:
    path, trace = tmp_path / "a.pt", tmp_path / "executed"
    header = {"format": checkpoint.FORMAT, "format_version": checkpoint.FORMAT_VERSION}
    torch.save({**header, "policy": Harmful(trace)}, path)
    assert "not a readable checkpoint" in refused(path)
    torch.save({**header, "policy": Harmful(trace)}, path, _use_new_zipfile_serialization=False)
    assert "not a readable checkpoint" in refused(path)
    path.write_bytes(pickle.dumps({**header, "policy": Harmful(trace)}))
    assert "not a readable checkpoint" in refused(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # it would have


def test_a_failing_write_leaves_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / checkpoint.LATEST
    checkpoint.save(path, {"steps": 1})

    def save(content: object, where: Path) -> None:
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(path, {"steps": 2})
    assert checkpoint.load(path)["steps"] == 1
    assert os.listdir(tmp_path) == [checkpoint.LATEST]
    checkpoint.save(path, {"steps": 2})
    assert checkpoint.load(path)["steps"] == 2


def test_find_takes_a_run_folder_or_a_checkpoint_in_it(tmp_path: Path) -> None:
    latest, older = (tmp_path / "run" / "checkpoints" / name for name in (checkpoint.LATEST, "stage-1.pt"))
    for path in (latest, older):
        checkpoint.save(path, {})
    assert checkpoint.find(tmp_path / "run") == latest
    assert checkpoint.find(older) == older


def test_a_missing_run_folder_is_answered_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "20240101-s1").mkdir()
    with pytest.raises(InputError) as caught:
        checkpoint.find(tmp_path / "20240101-s2")
    text = str(caught.value)
    assert "does not exist" in text
    assert "20240101-s1" in text
    assert "\n" not in text
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.find(tmp_path / "absent" / "run")
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.find(tmp_path / "20240101-s1")
