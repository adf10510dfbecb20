"""Settings of pictures where none is observed: a sentence at the start, and no refusal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from dreamfleet.common.process_log import LogRecord
from dreamfleet.deploy.command_line import main


class Unplayed:
    """Stands for a start of a run, and only keeps what would be logged first."""

    remarks: tuple[LogRecord, ...] = ()

    def __init__(self, *given: Any) -> None:
        Unplayed.remarks = tuple(given[-1])

    def play(self) -> int:
        return 0


def remarks_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> list[LogRecord]:
    """Return what a new run has to say before it begins."""
    monkeypatch.setattr("dreamfleet.deploy.run.train.Session", Unplayed)
    assert main(["train", *flags, "--run", str(folder / "run")]) == 0
    return list(Unplayed.remarks)


def test_a_preset_for_pictures_without_any_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the settings and their values, the environment and what it shows, and what would be right."""
    flags = ("--preset", "carracing", "--env.id", "CartPole-v1", "--env.grey", "true")
    assert remarks_of(tmp_path, monkeypatch, *flags) == [
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
    assert remarks_of(tmp_path, monkeypatch, "--env.id", "CartPole-v1", *flags) == []
