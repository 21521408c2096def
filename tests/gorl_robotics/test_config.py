"""Settings: what overrides what, what is a number, and one clear line for what cannot be used."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gorl_robotics.config import (
    CPU_DEFAULTS,
    Config,
    check_budget,
    config_values,
    from_yaml,
    help_text,
    parse_arguments,
    resolve,
    to_yaml,
)
from gorl_robotics.errors import InputError


def given(*arguments: str) -> Config:
    return resolve(parse_arguments(arguments))


def message(*arguments: str) -> str:
    """The one line that these arguments are answered with."""
    with pytest.raises(InputError) as caught:
        given(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "my.yaml"
    path.write_text(text)
    return f"config={path}"


def test_nothing_given_is_the_defaults() -> None:
    assert given() == Config()


def test_later_layers_override_earlier_ones_and_what_is_given_overrides_all() -> None:
    device = {"num_envs": 64, "ppo.epochs": 7, "ppo.clip": 0.11}
    task = {"ppo.epochs": 8, "ppo.clip": 0.12}
    config = resolve({"ppo.clip": 0.13}, device, task)
    assert (config.num_envs, config.ppo.epochs, config.ppo.clip) == (64, 8, 0.13)
    assert config.ppo.discount == Config().ppo.discount


def test_a_files_settings_are_overridden_by_the_command_line(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "num_envs: 64\nppo:\n  epochs: 7\nppo.clip: 0.11\n")
    for arguments in (("ppo.epochs=9", file), (file, "ppo.epochs=9")):
        config = resolve(parse_arguments(arguments), {"num_envs": 32, "ppo.clip": 0.5})
        assert (config.num_envs, config.ppo.epochs, config.ppo.clip) == (64, 9, 0.11)
    assert config.config == file.removeprefix("config=")


def test_the_cpus_defaults_are_settings() -> None:
    config = config_values(resolve({}, CPU_DEFAULTS))
    assert {name: config[name] for name in CPU_DEFAULTS} == CPU_DEFAULTS


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e8", 10**8), ("100_000_000", 10**8), ("010", 10), ("2.0e3", 2000), (" 7 ", 7), ("+7", 7)],
)
def test_whole_numbers(text: str, number: int, tmp_path: Path) -> None:
    config = given(f"total_steps={text}")
    assert config.total_steps == number
    assert type(config.total_steps) is int


@pytest.mark.parametrize("text", ["1e8", "100_000_000", "100000000", "1.0e+8"])
def test_whole_numbers_in_a_file(text: str, tmp_path: Path) -> None:
    assert given(yaml_file(tmp_path, f"total_steps: {text}")).total_steps == 10**8


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("ppo.learning_rate=1e-4", 1e-4),
        ("ppo.learning_rate=1", 1.0),
        ("networks.policy=[32, 1e2]", [32, 100]),
        ("stages.fractions=[0.25,0.75]", [0.25, 0.75]),
        ("storage.enabled=false", False),
        ("storage.enabled=TRUE", True),
        ("runs=010", "010"),
        ("runs=a=b", "a=b"),
        ("runs=", ""),
    ],
)
def test_values_take_the_settings_type(argument: str, expected: Any) -> None:
    value = config_values(given(argument))[argument.partition("=")[0]]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("num_env", "num_envs"),
        ("--num_envs", "num_envs"),
        ("ppo.clp", "ppo.clip"),
        ("ppo.learning-rate", "ppo.learning_rate"),
        ("clip", "ppo.clip"),
        ("flow_steps", "networks.flow_steps"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest(name: str, nearest: str, tmp_path: Path) -> None:
    expected = f"unknown setting {name!r}; did you mean {nearest!r}?"
    assert message(f"{name}=3") == expected
    assert message(yaml_file(tmp_path, f"{name}: 3")) == expected
    with pytest.raises(InputError, match="did you mean"):
        resolve({}, {name: 3})


def test_a_setting_like_no_other_is_answered_with_help() -> None:
    assert message("xyzzy=3") == "unknown setting 'xyzzy'; see --help"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("num_envs", "NAME=VALUE"),
        ("num_envs=many", "num_envs='many': expected a whole number"),
        ("num_envs=1.5", "expected a whole number"),
        ("num_envs=true", "expected a whole number"),
        ("num_envs=", "expected a whole number"),
        ("num_envs=nan", "expected a whole number"),
        ("num_envs=inf", "expected a whole number"),
        ("ppo.clip=wide", "expected a number"),
        ("test=1", "expected true or false"),
        ("networks.policy=64", "expected a list [a, b]"),
        ("networks.policy=[64.5]", "expected a list [a, b]"),
        ("networks.policy=[64", "expected a list [a, b]"),
        ("networks.policy=abc", "expected a list [a, b]"),
        ("networks.policy=[]", "networks.policy=[]: expected widths"),
        ("networks.critic=[64, 0]", "networks.critic=[64, 0]: expected widths"),
        ("num_envs=0", "num_envs=0: expected at least 1"),
        ("num_envs=-4", "num_envs=-4: expected at least 1"),
        ("ppo.discount=1.01", "ppo.discount=1.01: expected from 0 to 1"),
        ("ppo.discount=-0.1", "expected from 0 to 1"),
        ("ppo.discount=nan", "ppo.discount=nan: expected from 0 to 1"),
        ("ppo.learning_rate=NaN", "ppo.learning_rate=nan: expected at least 0"),
        ("refit.validation=0.51", "expected from 0 to 0.5"),
        ("seed=1e30", "seed=1000000000000000019884624838656: expected from 0 to"),
        ("stages.fractions=[0.5, 0.4]", "expected positive shares that sum to 1"),
        ("stages.fractions=[1.5, -0.5]", "expected positive shares that sum to 1"),
        ("stages.fractions=[0.5, nan]", "expected positive shares that sum to 1"),
        ("stages.fractions=[nan]", "expected positive shares that sum to 1"),
        ("stages.fractions=[]", "expected positive shares that sum to 1"),
        ("runs=${nowhere}", "nowhere"),
        ("runs=???", "runs"),
    ],
)
def test_what_cannot_be_used_is_answered_in_one_line(argument: str, expected: str) -> None:
    assert expected in message(argument)


def test_minibatches_divide_the_rollout() -> None:
    arguments = ("num_envs=6", "ppo.rollout_steps=5")
    assert given(*arguments, "ppo.minibatches=15").ppo.minibatches == 15
    expected = "ppo.minibatches=4: expected a divisor of num_envs x ppo.rollout_steps = 30"
    assert message(*arguments, "ppo.minibatches=4") == expected


@pytest.mark.parametrize("name", ["ppo.discount", "refit.validation", "num_envs", "stages.first_regularisation"])
def test_ranges_include_their_ends(name: str) -> None:
    section, _, last = name.rpartition(".")
    owner = getattr(Config(), section) if section else Config()
    limits = next(f.metadata for f in dataclasses.fields(owner) if f.name == last)
    for end in (limits["low"], limits["high"]):
        if end is not None:
            assert config_values(resolve({name: end, "ppo.minibatches": 1}))[name] == end


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b: c", "is not YAML"),
        ("\x00", "is not YAML"),
        ("- num_envs", "holds no settings"),
        ("just text", "holds no settings"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("num_envs: null", "num_envs=None: expected a whole number"),
        ("task: 3", "task=3: expected text"),
        ("ppo:\n  clip: .nan", "ppo.clip=nan"),
        ("ppo:\n  clip: true", "expected a number"),
        ("ppo: 3", "unknown setting 'ppo'"),
        (f"num_envs: 1{'0' * 400}", "num_envs="),
        (f"ppo:\n  clip: 1{'0' * 400}", "expected a number"),
    ],
)
def test_a_file_that_cannot_be_used_is_answered_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(yaml_file(tmp_path, text))


def test_a_file_that_cannot_be_read_is_answered_in_one_line(tmp_path: Path) -> None:
    assert "No such file" in message(f"config={tmp_path / 'absent.yaml'}")
    assert "Is a directory" in message(f"config={tmp_path}")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00n")
    assert "expected a YAML file" in message(f"config={tmp_path / 'binary.yaml'}")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "# only a comment\n")
    assert dataclasses.replace(given(file), config="") == Config()


def test_yaml_gives_the_same_configuration_back() -> None:
    values: dict[str, Any] = {
        "task": "HopperStand",
        "num_envs": 100,
        "runs": "010",
        "resume": "2024-01-01",
        "checkpoint": "a: b # c",
        "ppo.learning_rate": 1e-05,
        "ppo.max_grad_norm": float("inf"),
        "networks.policy": [7, 9],
        "stages.fractions": [0.125, 0.875],
        "storage.enabled": False,
    }
    config = resolve(values)
    assert {name: config_values(config)[name] for name in values} == values
    assert from_yaml(to_yaml(config)) == config
    assert from_yaml(to_yaml(Config())) == Config()


def test_a_saved_configuration_is_checked_when_read() -> None:
    text = to_yaml(Config())
    with pytest.raises(InputError, match="unknown setting 'num_evns'; did you mean 'num_envs'"):
        from_yaml(text.replace("num_envs:", "num_evns:"))
    with pytest.raises(InputError, match="monitors=-1"):
        from_yaml(text.replace(f"monitors: {Config().monitors}", "monitors: -1"))


def test_a_run_saved_with_a_setting_that_there_was_goes_on() -> None:
    text = to_yaml(resolve({"seed": 7}))
    assert from_yaml(text.replace("networks:\n", "networks:\n  fused: false\n")) == from_yaml(text)


def test_resolving_changes_no_later_defaults() -> None:
    config = resolve({})
    config.networks.policy.append(1)
    assert resolve({}).networks.policy == Config().networks.policy != config.networks.policy


def test_help_has_one_line_for_each_setting() -> None:
    lines = help_text({"cpu": CPU_DEFAULTS, "other": {"ppo.clip": 0.9}}).splitlines()
    names = list(config_values(Config()))
    assert "ppo.learning_rate" in names
    for name in names:
        about = [line for line in lines if line.startswith(f"  {name}=")]
        assert len(about) == 1, name
        assert len(about[0].split(maxsplit=1)) == 2
        assert about[0].rstrip()[-1].isalnum() or about[0].rstrip()[-1] in "`)"
        if name in CPU_DEFAULTS:
            assert "(cpu " in about[0]
        assert ("(other 0.9)" in about[0]) is (name == "ppo.clip")
    assert len([line for line in lines if line.startswith("  ")]) == len(names)


def test_a_stage_has_a_rollout_of_all_processes() -> None:
    config = given(
        "num_envs=4",
        "ppo.rollout_steps=10",
        "ppo.minibatches=4",
        "total_steps=400",
        "stages.fractions=[0.2,0.8]",
    )
    check_budget(config, 2)
    with pytest.raises(InputError, match=r"at least 600, .*3 processes x num_envs x ppo.rollout_steps = 120"):
        check_budget(config, 3)
    check_budget(config, 8, begun=1)
    with pytest.raises(InputError, match=r"at least 450, .*9 processes x"):
        check_budget(config, 9, begun=1)
    check_budget(config, 9, begun=2)


def test_a_run_from_before_there_was_a_bonus_for_new_states_goes_on_without_it() -> None:
    text = to_yaml(Config())
    before = "".join(line for line in text.splitlines(keepends=True) if "novelty" not in line)
    assert before != text
    assert from_yaml(before).ppo.novelty == 0
    assert from_yaml(text).ppo.novelty == Config().ppo.novelty > 0
