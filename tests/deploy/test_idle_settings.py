"""Settings of pictures where none is observed: a sentence at the start, and no refusal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from dreamfleet.common.process_log import LogRecord
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.run import runs
from dreamfleet.deploy.run.prepare import RunSpec
from dreamfleet.deploy.run.runs import RunResult


def log_records_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> list[LogRecord]:
    """Return what a new run logs before it begins."""
    found: list[LogRecord] = []

    def do_not_run(spec: RunSpec, *given: Any) -> RunResult:
        found.extend(spec.log_records)
        return RunResult(spec.run.path, 0, 0, {})

    monkeypatch.setattr(runs, "_run", do_not_run)
    assert main(["train", *flags, "--run", str(folder / "run")]) == 0
    return found


def test_a_preset_for_pictures_without_any_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the settings and their values, the environment and what it shows, and what would be right."""
    flags = ("--preset", "carracing", "--env.id", "CartPole-v1", "--env.grey", "true")
    assert log_records_of(tmp_path, monkeypatch, *flags) == [
        (
            logging.WARNING,
            "without effect: env.image_size 64 and env.grey true, since CartPole-v1 shows no picture, only vector 4; "
            "with --env.observe rendered the model sees what it renders",
        )
    ]


@pytest.mark.parametrize(
    "flags",
    [
        ("--preset", "small"),
        ("--env.image_size", "0", "--env.grey", "false"),
        ("--env.image_size", "64", "--env.observe", "rendered"),
    ],
    ids=["only a default", "asks for nothing", "pictures"],
)
def test_nothing_is_said_where_nothing_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    """A default that nobody gave is no mistake."""
    assert log_records_of(tmp_path, monkeypatch, "--env.id", "CartPole-v1", *flags) == []
