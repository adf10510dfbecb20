"""A run in a process of its own, whose callbacks write down at once what the run has acknowledged.

`python driver.py DIRECTORY SETTINGS.json WITNESS ENOUGH [--inline | --address A]`: trains in DIRECTORY, appends a JSON
line to WITNESS for every answer, and stops cleanly once the file ENOUGH exists.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # while Python imports, nothing is there to be stopped

import dreamfleet as df  # noqa: E402
from dreamfleet.common.errors import RunFailedError, UserError  # noqa: E402
from dreamfleet.common.settings.schema import Settings  # noqa: E402


class Witness(df.Callbacks):
    """Appends what the fleet was answered to a file, a line with one write each: a kill loses none that was written."""

    def __init__(self, file: Path, enough: Path) -> None:
        self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._enough = enough

    def _write(self, **facts: Any) -> None:
        os.write(self._descriptor, json.dumps(facts).encode() + b"\n")

    def on_start(self, fleet: Any, decisions: list[str]) -> None:
        """The learner is ready."""
        self._write(kind="start", updates=fleet.ledger.updates, env_steps=fleet.ledger.env_steps)

    def on_steps(self, fleet: Any, slot: Any, report: Any) -> None:
        """All steps of a collect order are acknowledged."""
        self._write(kind="steps", actor=slot.number, incarnation=slot.incarnation, steps=report.steps)

    def on_updates(self, fleet: Any, report: Any) -> None:
        """A train order is answered."""
        self._write(kind="updates", updates=report.updates, env_steps=fleet.ledger.env_steps)

    def on_checkpoint(self, fleet: Any, facts: dict[str, Any]) -> None:
        """A checkpoint was written."""
        self._write(kind="checkpoint", updates=facts["updates"])

    def on_turn(self, fleet: Any) -> None:
        """Stop once there were faults enough."""
        if self._enough.exists():
            fleet.stop("there were faults enough")


def main() -> int:
    """Run, and return the exit code that the command line would return."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    directory, settings, witness, enough, *flags = sys.argv[1:]
    read = Settings.model_validate_json(Path(settings).read_text())
    try:
        found = df.train(
            read,
            directory=directory,
            callbacks=[Witness(Path(witness), Path(enough))],
            inline="--inline" in flags,
            address=flags[-1] if "--address" in flags else None,
        )
    except (UserError, RunFailedError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main())
