"""Ctrl-C and SIGTERM: the first asks for a clean end, the second ends at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from dreamfleet.common.stop_sign import StepInterrupted

HOLD_EVERY_S = 0.2
"""Environments in this process may take the signals for themselves; they are taken back so often."""


class StopRequest:
    """Notes signals while it is entered.

    Attributes:
        signal_number: the signal that asked to stop, or 0.
        may_interrupt: whether the first signal may leave what runs now by `StepInterrupted`.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self.may_interrupt = False
        self._before: dict[int, object] = {}
        self._handler = self._note
        self._callbacks: list[Callable[[], None]] = []
        self._hold_due = 0.0

    def __bool__(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        """The code that a shell expects of a program that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal_number if self else 0

    def asked(self) -> bool:
        """Return whether a stop was asked for; see to it that signals still come here."""
        now = time.monotonic()
        if now >= self._hold_due:
            self._hold_due = now + HOLD_EVERY_S
            self.hold()
        return bool(self)

    def hold(self) -> None:
        """Take the signals back from whoever took them since; where they were never taken nothing is done."""
        for number in self._before:
            if signal.getsignal(number) is not self._handler:
                signal.signal(number, self._handler)

    def then(self, callback: Callable[[], None]) -> None:
        """Have something called at the first signal, between any two instructions of the main thread."""
        self._callbacks.append(callback)

    def __enter__(self) -> StopRequest:
        """Take over SIGINT and SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

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
        for callback in self._callbacks:
            callback()
        if self.may_interrupt:
            self.may_interrupt = False
            raise StepInterrupted


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
