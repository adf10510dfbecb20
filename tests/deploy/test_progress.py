"""Progress: rates of what is made now, and how it is shown."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dreamfleet.deploy.monitoring.progress import BAR_WIDTH, Console, Progress, open_log


class Counted:
    """A run's counters and clock, set by the test, and the progress that reads them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **counters: int) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        self.ledger = SimpleNamespace(**counters)
        learner = SimpleNamespace(idle_until=lambda time_s: 0.0)
        fleet = SimpleNamespace(ledger=self.ledger, roster=SimpleNamespace(actors=[], learner=learner))
        self.progress = Progress(cast("Any", fleet))
        self.progress.read()

    def set(self, now: float, **counters: int) -> None:
        """Have this much time passed, and these counters reached."""
        self.now = now
        vars(self.ledger).update(counters)


def test_what_a_checkpoint_brings_is_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run begins with its updates; they were not made within the seconds that its learner took to start."""
    run = Counted(monkeypatch, env_steps=500, updates=0)
    run.set(110.0, updates=4000)
    run.progress.begin_anew()
    run.progress.read()
    run.set(120.0, updates=4050)
    run.progress.read()
    assert run.progress.rates()["updates_per_s"] == 5.0
    assert run.progress.overall()["updates_per_s"] == 5.0


def test_the_prefill_is_in_no_rate_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its 30 seconds there was one order of updates: at that rate hours would be left."""
    run = Counted(monkeypatch, env_steps=0, updates=0)
    run.set(130.0, env_steps=1000, updates=4)
    run.progress.training_begins()
    run.set(132.0, env_steps=1020, updates=12)
    run.progress.read()
    rates = run.progress.rates()
    assert (rates["env_steps_per_s"], rates["updates_per_s"]) == (10.0, 4.0)
    assert run.progress.overall()["updates_per_s"] == pytest.approx(12 / 32)


class Terminal(io.StringIO):
    """A terminal that keeps what stands in each of its lines once all was written."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        lines = []
        for line in self.getvalue().split("\n"):
            cells: list[str] = []
            column = 0
            for character in line:
                if character == "\r":
                    column = 0
                    continue
                cells[column : column + 1] = [character]
                column += 1
            lines.append("".join(cells).rstrip())
        return lines


def test_lines_and_bar_do_not_mix_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log lines stand alone above the bar, which is one line, fits the width, and is gone at the end."""
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    console = Console(terminal)
    with open_log(console, tmp_path / "log"):
        console.status("3 s left | " + "x" * 100, 0.5)
        assert len(terminal.lines) == 1
        assert len(terminal.lines[0]) == 59
        assert terminal.lines[0][BAR_WIDTH:].startswith(" 3 s left |")
        assert terminal.lines[0].startswith(" 50%|█")
        logging.getLogger("dreamfleet").info("checkpoint at update 10")
        console.status("short", 1.0)
        terminal.write("^C\ndreamfleet: stopping\n")  # what a terminal echoes, and what the signal's handler says
        console.status("short again", 1.0)
    assert terminal.lines[0] == "checkpoint at update 10"
    assert terminal.lines[1].startswith("100%|")
    assert terminal.lines[2:] == ["dreamfleet: stopping", ""]
    assert "█" not in (tmp_path / "log").read_text()


def test_a_terminal_without_blocks_gets_a_plain_bar() -> None:
    """An encoding that has no block characters is no reason to fail."""
    terminal = Terminal()
    terminal.encoding = "ascii"  # type: ignore[misc]
    Console(terminal).status("text", 0.5)
    assert terminal.getvalue().isascii()
    assert "#" in terminal.getvalue()


def test_off_a_terminal_the_status_is_a_line() -> None:
    """No bar, no carriage return."""
    stream = io.StringIO()
    Console(stream).status("steps 1/2", 0.5)
    assert stream.getvalue() == "steps 1/2\n"


@pytest.mark.parametrize(
    ("learns", "actors", "steps", "updates", "share"),
    [(True, 2, 50, 0, 0.25), (True, 2, 100, 30, 0.8), (True, 0, 100, 30, 0.6), (False, 2, 50, 0, 0.5),
     (True, 2, 200, 50, 1.0)],
)  # fmt: skip
def test_the_bar_shows_steps_and_updates(learns: bool, actors: int, steps: int, updates: int, share: float) -> None:
    """Half of it is collecting and half training; a dataset has only the one, collecting alone only the other."""
    ratio = SimpleNamespace(env_steps=100, updates=50 if learns else 0)
    ledger = SimpleNamespace(env_steps=steps, updates=updates, ratio=ratio)
    fleet = SimpleNamespace(ledger=ledger, config=SimpleNamespace(learns=learns, actors=actors))
    assert Progress(cast("Any", fleet)).share() == pytest.approx(share)
