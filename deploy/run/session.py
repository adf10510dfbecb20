"""One start of a run: its directory locked, its log open, signals taken, and its state written from start to end."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from dreamfleet import __version__
from dreamfleet.common.errors import OBSTACLES, RunFailedError, UserError, obstacle_in_words
from dreamfleet.common.lock import DirectoryLock
from dreamfleet.common.process_log import logged_once
from dreamfleet.common.settings.resolve import changes
from dreamfleet.common.stop_sign import StepInterrupted
from dreamfleet.deploy.fleet.ledger import SimulatorCount
from dreamfleet.deploy.monitoring.progress import Console, open_log
from dreamfleet.deploy.run.prepare import RunSpec, action_warnings
from dreamfleet.deploy.state import StateWriter, read_state

HOLD_EVERY_S = 0.2
"""Environments in this process may take the signals for themselves; they are taken back this often."""
LOCK_WAIT_S = 2.0
"""How long to wait for a directory that another run holds; its lock ends with its process, by SIGKILL too."""

log = logging.getLogger("dreamfleet")


class StopRequest:
    """Ctrl-C and SIGTERM while it is entered: the first asks for a clean end, the second ends at once.

    Python gives signals to the main thread alone: entered in another, it leaves them as they are.

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
        in_main = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM) if in_main else ():
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


@dataclass
class Session:
    """What one start of a run has open.

    Attributes:
        simulator: simulator steps counted by earlier starts.
        has_workers: whether the workers' pool was opened; a new run that fails before leaves no directory behind.
    """

    console: Console
    stop: StopRequest
    state: StateWriter
    simulator: SimulatorCount
    has_workers: bool = False


@contextmanager
def open_session(spec: RunSpec) -> Iterator[Session]:
    """Open what one start of a run needs, and log how it ends.

    Raises:
        UserError: if another run holds the directory.
        RunFailedError: from the block; it is in the log then.
    """
    run, console = spec.run, Console()
    with DirectoryLock(run.path, LOCK_WAIT_S, run.shown), StopRequest() as stop:
        earlier = read_state(run.path)  # before it is written over
        counters = earlier.counters if earlier else {}
        simulator = SimulatorCount.of_counters(counters)
        kind = "train" if spec.learns else "collect"
        state = StateWriter(run.path, kind, spec.settings.records.log_every_s, counters)
        session = Session(console, stop, state, simulator)
        try:
            with open_log(console, run.log_file), _logged_threads(), _logged_failures(spec), state:  # keeps warnings
                _log_start(spec)
                if not spec.old:  # an old run's are written over once its checkpoint is found to fit the new ones
                    run.write(spec.settings, spec.spaces)
                yield session
        except UserError:
            if not spec.old and not session.has_workers:
                run.discard()
            raise


@contextmanager
def _logged_failures(spec: RunSpec) -> Iterator[None]:
    try:
        with _refusing_disks_named(spec):
            yield
    except UserError as error:
        log.error("%s", error, extra={"only_to_file": True})  # noqa: TRY400 (the command line prints it)
        raise
    except RunFailedError as error:
        log.error("the run failed: %s", error)  # noqa: TRY400 (the sentence is what the user needs)
        file = spec.run.shown / spec.run.log_file.name
        log.info("The log is in %s; `%s` continues from what is stored.", file, spec.resume_command)
        raise
    except Exception:  # of a callback, most likely; Python prints the traceback
        log.exception("the run failed:", extra={"only_to_file": True})
        raise


@contextmanager
def _logged_threads() -> Iterator[None]:
    """Have a thread that fails, such as TensorBoard's, say so in a line; its traceback goes to the log."""

    def failed(raised: threading.ExceptHookArgs) -> None:
        name = raised.thread.name if raised.thread else "a thread"
        log.warning("%s failed: %s: %s", name, raised.exc_type.__name__, raised.exc_value)
        if raised.exc_value:
            log.info("its traceback:", exc_info=raised.exc_value, extra={"only_to_file": True})

    before, threading.excepthook = threading.excepthook, failed
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def _refusing_disks_named(spec: RunSpec) -> Iterator[None]:
    """Have a disk that is full, or a file's place that is taken, end the run as other failures do."""
    try:
        yield
    except OBSTACLES as error:
        raise RunFailedError(obstacle_in_words(error)) from error
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        file = error.filename or spec.run.shown
        raise RunFailedError(f"the disk is full: {file} cannot be written; free some space") from error


def _log_start(spec: RunSpec) -> None:
    log.info("dreamfleet %s: %s %s", __version__, "resuming" if spec.old else "new run", spec.run.shown)
    for change in changes(spec.old, spec.settings) if spec.old else []:
        log.info("changed since the last start: %s", change)
    for level, text in spec.log_records:
        log.log(level, "%s", text)
    spaces = spec.spaces
    shown = ", ".join(f"{entry.name} {'×'.join(map(str, entry.shape))} {entry.dtype}" for entry in spaces.observations)
    log.info("environment: %s, observes %s, acts by %s", spec.settings.env.id, shown, spaces.action.in_words)
    for warning in action_warnings(spaces.action):
        log.warning("%s", warning)
    for level, line in logged_once():  # as the environment was tried, when no log was open yet
        log.log(level, "%s", line)
