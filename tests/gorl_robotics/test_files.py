"""Atomic files: whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gorl_robotics.files import atomic


def test_the_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # else the rename would copy
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_on_an_error_the_former_file_stays(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("former")

    def fail_half_way() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert path.read_text() == "former"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_former_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("first, longer", "second"):
        with atomic(path) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "second"


def test_it_is_on_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])
    with atomic(tmp_path / "file.txt") as temporary:
        temporary.write_text("whole")
    assert events == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_a_body_that_writes_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "file.txt"):
        pass
    assert os.listdir(tmp_path) == []
