"""What a worker process logs, kept until its next report carries it to the run's log; and what is logged only once.

A run tries its environment before it has a directory to log in, and repeats there what `logged_once` holds. Each actor
logs the same lines again in its own process; the run's log leaves those out.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable

log = logging.getLogger(__name__)

LOGGER_NAME = "dreamfleet"
MAX_RECORDS = 200
"""A worker that logs more between two reports loses the oldest records."""

LogRecord = tuple[int, str]
"""The level and the text of one log record."""

_logged_once: dict[str, int] = {}
_subjects: set[Hashable] = set()


class WorkerLog(logging.Handler):
    """Keeps what a worker process logs. The run's own process writes its log itself and installs none."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._records: deque[LogRecord] = deque(maxlen=MAX_RECORDS)

    @classmethod
    def install(cls) -> WorkerLog:
        """Keep what this process logs from now on."""
        worker_log = cls()
        logger = logging.getLogger(LOGGER_NAME)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # otherwise Ray would print each record too, into the status line
        logger.addHandler(worker_log)
        return worker_log

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._records.append((record.levelno, record.getMessage()))

    def take(self) -> list[LogRecord]:
        """Return the records since the last call."""
        records = []
        while self._records:
            records.append(self._records.popleft())
        return records


def log_once(line: str, level: int = logging.INFO) -> None:
    """Log a line, unless this process has logged it this way before."""
    if line not in _logged_once:
        _logged_once[line] = level
        log.log(level, "%s", line)


def warn_once(subject: Hashable, line: str) -> None:
    """Warn, unless this process has warned of this subject before, in whatever words."""
    if subject not in _subjects:
        _subjects.add(subject)
        log_once(line, logging.WARNING)


def forget_logged() -> None:
    """Have `log_once` and `warn_once` log everything again: another run starts in this process."""
    _logged_once.clear()
    _subjects.clear()


def logged_once() -> list[LogRecord]:
    """Return everything that `log_once` and `warn_once` logged for the present run of this process, in order."""
    return [(level, line) for line, level in _logged_once.items()]
