"""Ctrl-C and SIGTERM: the first asks for a clean end, the second ends at once."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType


class StopRequest:
    """Notes signals while it is entered.

    Attributes:
        signal_number: the signal that asked to stop, or 0.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        """The code that a shell expects of a program that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal_number if self else 0

    def __enter__(self) -> StopRequest:
        """Take over SIGINT and SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self:
            sys.stderr.write("\ndreamfleet: stopped at once; the last checkpoint and all replay are kept.\n")
            sys.stderr.flush()
            _kill_descendants()
            os._exit(128 + number)
        self.signal_number = number
        sys.stderr.write("\ndreamfleet: stopping after the orders in flight; press Ctrl-C again to stop at once.\n")
        sys.stderr.flush()


def _kill_descendants() -> None:
    """End all processes that descend from this one: Ray's would follow it, but two of them only after a minute."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(file.parent.name))
    family = [os.getpid()]
    for process in family:
        family += children.get(process, [])
    for process in family[1:]:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
