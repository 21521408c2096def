"""Run folders: one for each run, continued where the newest checkpoint is, copied from an older one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fake_environment import small_config

from gorl_robotics import __version__, checkpoint, run_folder
from gorl_robotics.config import Config, from_yaml
from gorl_robotics.errors import InputError


def config(folder: Path) -> Config:
    return small_config(runs=str(folder / "runs"), task="Fake", seed=3)


def test_a_new_run_has_its_folder_and_configuration(tmp_path: Path) -> None:
    settings = config(tmp_path)
    folder = run_folder.create(settings)
    assert folder.parent == tmp_path / "runs" / "Fake"
    assert folder.name.endswith("-s3")
    assert from_yaml((folder / "config.yaml").read_text()) == settings
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_runs_of_the_same_second_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20240102-030405")
    names = [run_folder.create(config(tmp_path)).name for _ in range(3)]
    assert names == ["20240102-030405-s3", "20240102-030405-s3-2", "20240102-030405-s3-3"]


def finished_run(tmp_path: Path) -> Path:
    """A run in its third stage, with checkpoints of every stage."""
    folder = run_folder.create(config(tmp_path))
    for name in (checkpoint.LATEST, "stage-1.pt", "stage-2.pt"):
        checkpoint.save(folder / "checkpoints" / name, {})
    (folder / "metrics.csv").write_text("steps\n1\n")
    (folder / "rollouts").mkdir()
    for stage in (1, 2, 3):
        (folder / "rollouts" / f"stage-{stage}-rank-0.h5").write_text(f"stage {stage}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_from_the_newest_checkpoint_a_run_goes_on_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished_run(tmp_path)
    before = contents(folder)
    latest = folder / "checkpoints" / checkpoint.LATEST
    assert run_folder.continued(latest, config(tmp_path), 2) == folder
    monkeypatch.chdir(latest.parent)
    assert run_folder.continued(Path(checkpoint.LATEST), config(tmp_path), 2) == folder
    assert contents(folder) == before


def test_from_an_older_checkpoint_it_goes_on_in_a_new_one(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    before = contents(folder)
    again = run_folder.continued(folder / "checkpoints" / "stage-1.pt", config(tmp_path), 1)
    assert again != folder
    assert again.parent == folder.parent
    assert contents(folder) == before
    copied = contents(again)
    assert set(copied) == {"config.yaml", "metrics.csv", "rollouts/stage-2-rank-0.h5"}
    assert all(copied[name] == before[name] for name in ("metrics.csv", "rollouts/stage-2-rank-0.h5"))


def test_a_copy_elsewhere_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    (tmp_path / "thesis.txt").touch()
    for name in (checkpoint.LATEST, "stage-1.pt"):
        checkpoint.save(tmp_path / "backups" / name, {})
        with pytest.raises(InputError, match="in no run folder; expected RUN/checkpoints"):
            run_folder.continued(tmp_path / "backups" / name, config(tmp_path), 1)
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "thesis.txt").exists()


def test_every_processs_recording_is_copied(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    for name in ("rank-1", "rank-0-part-2"):
        (folder / "rollouts" / f"stage-2-{name}.h5").write_text(name)
    again = run_folder.continued(folder / "checkpoints" / "stage-1.pt", config(tmp_path), 1)
    found = {path.name for path in (again / "rollouts").iterdir()}
    assert found == {"stage-2-rank-0.h5", "stage-2-rank-1.h5", "stage-2-rank-0-part-2.h5"}


def test_what_an_older_run_lacks_is_not_copied(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    (folder / "metrics.csv").unlink()
    again = run_folder.continued(folder / "checkpoints" / "stage-2.pt", config(tmp_path), 3)
    assert set(contents(again)) == {"config.yaml"}


def test_provenance_names_version_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_folder.provenance()
    assert found["gorl_robotics"] == __version__
    assert isinstance(found["commit"], str)
    assert found["commit"]

    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(run_folder.subprocess, "run", no_git)
    assert run_folder.provenance()["commit"] == "unknown"
