"""Command lines of options: one line for what cannot be used, with the nearest right name."""

from __future__ import annotations

import pytest

from gorl_robotics.command_line import Parser
from gorl_robotics.errors import InputError


def parser(**options: bool) -> Parser:
    made = Parser(prog="play", **options)
    made.add_argument("run")
    made.add_argument("--episodes", type=int, default=20)
    made.add_argument("--video", required=True)
    return made


def refusal(made: Parser, *given: str) -> str:
    with pytest.raises(InputError) as refused:
        made.parse_args(given)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_what_is_right_is_parsed() -> None:
    given = parser().parse_args(["folder", "--episodes=3", "--vid", "a.mp4"])
    assert vars(given) == {"run": "folder", "episodes": 3, "video": "a.mp4"}
    assert parser().parse_args(["--video", "a.mp4", "--", "--odd"]).run == "--odd"


@pytest.mark.parametrize("given", ["--epsiodes", "--epsiodes=3", "--Episodes"])
def test_the_nearest_option_is_offered_before_anything_is_missed(given: str) -> None:
    name = given[2:].partition("=")[0]
    assert refusal(parser(), given) == f"unknown option '{name}'; did you mean 'episodes'?"


def test_an_option_like_no_other_is_told_all_there_are() -> None:
    assert refusal(parser(), "folder", "--x") == "unknown option 'x'; known: episodes, help, video"


def test_where_options_are_not_shortened_the_whole_name_is_offered() -> None:
    assert refusal(parser(allow_abbrev=False), "folder", "--vid", "x").endswith("did you mean 'video'?")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["folder"], "the following arguments are required: --video; see play --help"),
        (["folder", "--video", "a", "--episodes", "x"], "argument --episodes: invalid int value: 'x'; see play --help"),
        (["folder", "--video", "a", "b"], "unrecognized arguments: b; see play --help"),
    ],
)
def test_what_argparse_finds_is_one_line(given: list[str], message: str) -> None:
    assert refusal(parser(), *given) == message


def test_a_subcommands_options_are_its_own() -> None:
    made = Parser(prog="tasks")
    commands = made.add_subparsers(dest="command")
    commands.add_parser("new").add_argument("--model", required=True)
    commands.add_parser("check").add_argument("task")
    assert made.parse_args(["new", "--model", "x"]).model == "x"
    assert refusal(made, "new", "--modle", "x") == "unknown option 'modle'; did you mean 'model'?"
    assert refusal(made, "check", "A", "--model", "x") == "unknown option 'model'; known: help"
    assert "invalid choice: 'chekc'" in refusal(made, "chekc", "A")
