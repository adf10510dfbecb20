"""A cell of a sweep: one variant with one seed, which is a run in a directory of its own."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from dreamfleet.common.errors import UserError
from dreamfleet.common.formatting import shorten
from dreamfleet.common.settings.resolve import changes, leaves
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import RunState, read_state
from dreamfleet.deploy.sweep.need import Need
from dreamfleet.deploy.sweep.sweep_file import Variant

State = Literal["new", "stopped", "failed", "running", "complete"]
CLOCKS_S = 10.0
"""By how much the clocks of two machines may differ."""
MOST_CAUSE = 300
"""Characters of the sentence about a failure."""
_MAY_CHANGE = ("learner.threads", "replay.cache_gb")
"""Settings that change how fast a run is and nothing else."""
_BAD_INPUT = 2
"""Exit code of a run that was refused: its state.json, if there is one, is of an earlier start."""
_PREFIXES = ("dreamfleet: ", "error: ", "the run failed: ")


@dataclass
class Cell:
    """A cell and what is known of it.

    Attributes:
        seed: its seed; `settings` have it.
        need: what it takes of a machine.
        state: what became of it.
        cause: of its failure, a sentence.
    """

    variant: Variant
    seed: int
    settings: Settings
    run: RunDirectory
    need: Need
    state: State = "new"
    cause: str = ""

    @property
    def name(self) -> str:
        """Its name and its path in the sweep's folder."""
        return f"{self.variant.name}/seed-{self.seed}"

    @property
    def output_file(self) -> Path:
        """Where what it prints is written, beside its directory: a new run's must be empty."""
        return self.run.path.with_name(f"{self.run.path.name}.log")

    def look(self) -> None:
        """Find out from the run's files what became of it.

        Raises:
            UserError: if there is a run with other settings than the cell's.
        """
        if not self.run.config_file.is_file():
            self.run.check_usable("FILE")
            self.state, self.cause = "new", ""
            return
        self._check_settings()
        state = read_state(self.run.path)
        if state is None or state.state == "stopped":
            self.state, self.cause = "stopped", ""
        elif state.state == "running":
            killed = state.reason_killed(time.time())
            self.state, self.cause = ("stopped", killed) if killed else ("running", "")
        elif state.state == "failed":
            self.state, self.cause = "failed", state.reason
        else:
            wanted = state.counters.get("wanted/env_steps")
            is_all = self.settings.train.dataset or (wanted or 0) >= self.settings.train.env_steps
            self.state, self.cause = "complete" if is_all else "stopped", ""

    def _check_settings(self) -> None:
        """Refuse a run that is not of these settings: a curve of two kinds of run would compare nothing.

        More environment steps are no other settings: the run goes on.
        """
        old, new = self.run.settings(), self.settings
        parts = {"env": old.env, "train": old.train} if new.train.dataset else {}
        for change in changes(old, new.model_copy(update=parts)):
            path = change.split(":")[0]
            is_longer = path == "train.env_steps" and new.train.env_steps > old.train.env_steps
            if path not in _MAY_CHANGE and not is_longer:
                raise UserError(
                    f"{self.run.shown} was made with other settings than the file has for {self.name}: {change}. Name "
                    "another folder (--out), or remove this run."
                )

    def arguments(self, inline: bool) -> list[str]:
        """Return the command that begins or continues the run, without `dreamfleet`.

        A run that is there has its settings; a new one is given all that differs from the presets.
        """
        mode = ["--inline"] if inline else []
        if self.run.config_file.is_file():
            steps = self.settings.train.env_steps
            return ["train", "--run", str(self.run.path), f"--train.env_steps={steps}", *mode]
        presets = [word for preset in self.variant.presets for word in ("--preset", preset)]
        given = {path: value for layer, _ in self.variant.layers for path, value in leaves(layer)}
        given |= {path: dict(leaves(self.settings.model_dump()))[path] for path in (*_MAY_CHANGE, "seed")}
        flags = [f"--{path}={_as_text(value)}" for path, value in given.items()]
        return ["train", *presets, *flags, "--run", str(self.run.path), *mode]

    def ended(self, code: int, was_asked: bool, began: float, said: str = "") -> None:
        """Take note of how its process ended.

        Args:
            code: its exit code, negative for a signal.
            was_asked: whether it was asked to stop.
            began: when this process was started, in seconds since 1970.
            said: why there is no exit code, if there is none.
        """
        state = read_state(self.run.path)
        is_fresh = state is not None and state.updated_unix >= began - CLOCKS_S
        if code == 0 and state is not None and state.state == "finished":
            self.state, self.cause = "complete", ""
        elif was_asked and code in (0, 130, 143, -2, -15):
            self.state, self.cause = "stopped", ""
        else:
            self.state, self.cause = (
                "failed",
                shorten(said or self._cause(code, state if is_fresh else None), MOST_CAUSE),
            )

    def _cause(self, code: int, state: RunState | None) -> str:
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        if code != _BAD_INPUT and state is not None and state.state == "failed" and state.reason:
            return state.reason
        if state is not None and state.state == "stopped":
            return f"it was stopped {state.reason} by somebody else"
        return last_line(self.output_file) or f"it ended with exit code {code} and said nothing"


def last_line(file: Path) -> str:
    """Return the last line of what a process printed, without the words that begin an error; "" if there is none."""
    try:
        with file.open("rb") as printed:
            printed.seek(max(0, printed.seek(0, 2) - 10_000))
            lines = printed.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    for prefix in _PREFIXES:
        line = line.removeprefix(prefix)
    return line


def _as_text(value: object) -> str:
    """Return a value as a flag gives it."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1 << 20, allow_unicode=True).removesuffix("...\n").strip()
    )
