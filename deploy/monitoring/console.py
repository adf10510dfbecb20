"""What the user sees: lines that stay, and on a terminal a progress bar with one status line, written over."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from dreamfleet.common.process_log import LOGGER_NAME

BAR_WIDTH = 26
"""Columns of the progress bar, its percentage included."""


class Console(logging.Handler):
    """Prints the log and a status line without mixing them.

    On a terminal the status is one line at the bottom, rewritten, and begins with a progress bar; elsewhere a status is
    an ordinary line, printed when the caller says it is due.

    Args:
        stream: where to print, stdout by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(logging.INFO)
        self._stream = stream or sys.stdout
        self._shown = 0
        self.is_terminal = self._stream.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log record; warnings and errors say that they are."""
        if getattr(record, "only_to_file", False):
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.say(prefix + record.getMessage())

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.clear()
        self._write(text + "\n")

    def status(self, text: str, share: float) -> None:
        """Show how things stand, and which share of the whole is done, in [0, 1]."""
        if not self.is_terminal:
            self._write(text + "\n")
            return
        self.clear()
        room = shutil.get_terminal_size().columns - 1  # in the last column some terminals begin a new line
        text = f"{self._bar(share)} {text}"[:room]
        self._write(text)
        self._shown = len(text)

    def _bar(self, share: float) -> str:
        from tqdm import tqdm

        layout = "{percentage:3.0f}%|{bar}|"
        return str(tqdm.format_meter(share, 1, 0, ncols=BAR_WIDTH, bar_format=layout, ascii=not self._draws_blocks))

    @property
    def _draws_blocks(self) -> bool:
        """Whether the terminal's encoding has the characters of a bar."""
        try:
            "█▏".encode(self._stream.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def clear(self) -> None:
        """Take the status line away, so that whatever is printed next stands alone."""
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


@contextmanager
def open_log(console: Console, file: Path) -> Iterator[None]:
    """Send what the process logs to the console and, with times, to a file, while the block runs."""
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.level, logger.propagate
    to_file = logging.FileHandler(file)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    formatter.converter = time.gmtime
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%SZ"
    formatter.default_msec_format = ""
    to_file.setFormatter(formatter)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(console)
    logger.addHandler(to_file)
    try:
        yield
    finally:
        console.clear()
        logger.removeHandler(console)
        logger.removeHandler(to_file)
        to_file.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextmanager
def quiet_log() -> Iterator[None]:
    """Print nothing of what the process logs while the block runs, where no log is open."""
    logger, nowhere = logging.getLogger(LOGGER_NAME), logging.NullHandler()
    logger.addHandler(nowhere)
    try:
        yield
    finally:
        logger.removeHandler(nowhere)
