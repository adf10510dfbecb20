"""One start of a run: its directory locked, its log open, signals taken, and its state written from start to end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dreamfleet import __version__
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.lock import DirectoryLock
from dreamfleet.common.process_log import logged_once
from dreamfleet.common.settings.resolve import changes
from dreamfleet.deploy.fleet.ledger import SimulatorCount
from dreamfleet.deploy.monitoring.console import Console, open_log
from dreamfleet.deploy.run.action_warnings import action_warnings
from dreamfleet.deploy.run.prepare import RunSpec
from dreamfleet.deploy.run.stop import StopRequest
from dreamfleet.deploy.state import StateWriter, read_state

LOCK_WAIT_S = 2.0
"""How long to wait for a directory that another run holds; its lock ends with its process, by SIGKILL too."""

log = logging.getLogger("dreamfleet")


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
        simulator = SimulatorCount.of_counters(earlier.counters if earlier else {})
        state = StateWriter(run.path, "train" if spec.learns else "collect", spec.settings.records.log_every_s)
        session = Session(console, stop, state, simulator)
        try:
            with open_log(console, run.log_file), _logged_failures(spec), state:  # which keeps warnings from here on
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
        yield
    except UserError as error:
        log.error("%s", error, extra={"only_to_file": True})  # noqa: TRY400 (the command line prints it)
        raise
    except RunFailedError as error:
        log.error("the run failed: %s", error)  # noqa: TRY400 (the sentence is what the user needs)
        file = spec.run.shown / spec.run.log_file.name
        log.info("The log is in %s; `%s` continues from what is stored.", file, spec.resume_command)
        raise


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
