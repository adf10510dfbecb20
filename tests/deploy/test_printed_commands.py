"""Commands that are printed can be pasted into a shell, whatever directories are called."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.deploy.run.runs import collect, train
from dreamfleet.deploy.run.summary import _tensorboard_command
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.submit.submit import _command

ODD = "it's a $run; really"
ROOT = Path(__file__).resolve().parents[2]


def test_a_dataset_s_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What collect ends with, and what train answers to a dataset given as a run."""
    run = RunDirectory(tmp_path / ODD)
    settings = resolve(["small", "debug"], [("env.id", "CartPole-v1")])
    collect(settings, directory=run.shown, steps=64, inline=True)
    printed = next(line for line in capsys.readouterr().out.splitlines() if "train on it" in line)
    words = shlex.split(printed.split("train on it", 1)[1])
    assert words == ["dreamfleet", "train", "--dataset", str(run.path), "--preset", "NAME"]
    with pytest.raises(UserError) as refused:
        train(settings, directory=run.shown, inline=True)
    command = re.findall("`(.*)`", str(refused.value))[0]
    assert shlex.split(command) == ["dreamfleet", "train", "--dataset", str(run.path)]


def test_tensorboard_and_submit(tmp_path: Path) -> None:
    """The directory and the target are one word each."""
    assert shlex.split(_tensorboard_command(tmp_path / ODD))[1:] == ["--logdir", str(tmp_path / ODD)]
    command = _command("my files/cluster.yaml", "--follow", "raysubmit 1").strip("`")
    assert shlex.split(command) == ["dreamfleet", "submit", "my files/cluster.yaml", "--follow", "raysubmit 1"]


def test_no_command_is_printed_with_a_bare_path() -> None:
    """In the sources no command in backticks has a value put into it: it is put together by shlex, whole."""
    rooms = ("actors", "common", "deploy", "learner", "replay")
    files = [file for room in rooms for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    for file in files:
        for command in re.findall(r"`((?:dreamfleet|ray|kubectl|tensorboard) [^`\n]*\{[^`\n]*)`", file.read_text()):
            assert command == "dreamfleet {command}", f"{file}: {command}"
