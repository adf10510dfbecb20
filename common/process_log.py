"""What a worker process has to say: its log, kept until its next answer carries it to the run's log."""

from __future__ import annotations

import logging
from collections import deque

LOGGER_NAME = "dreamfleet"
MOST_NOTES = 200
"""Notes kept; a worker that has more to say between two answers loses the oldest."""

Note = tuple[int, str]
"""The level and the text of one log record."""


class NoteTaker(logging.Handler):
    """Keeps what this process logs. In the run's own process, which writes its log itself, none is installed."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._notes: deque[Note] = deque(maxlen=MOST_NOTES)

    @classmethod
    def install(cls) -> NoteTaker:
        """Take the log of this process from now on."""
        taker = cls()
        logger = logging.getLogger(LOGGER_NAME)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # else Ray would print each one too, into the status line
        logger.addHandler(taker)
        return taker

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._notes.append((record.levelno, record.getMessage()))

    def take(self) -> list[Note]:
        """Return the notes since the last call."""
        notes = []
        while self._notes:
            notes.append(self._notes.popleft())
        return notes
