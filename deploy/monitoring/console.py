"""What the user sees: lines that stay and, on a terminal, a progress bar with a status line that is rewritten."""

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

    Elsewhere than on a terminal each status is an ordinary line.

    Args:
        stream: where to print, stdout by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(logging.INFO)
        self._stream = stream or sys.stdout
        self._shown = 0
        self.is_terminal = self._stream.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log record, with its level if it is a warning or an error."""
        if getattr(record, "only_to_file", False):
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.clear()
        self._write(f"{prefix}{record.getMessage()}\n")

    def status(self, text: str, share: float) -> None:
        """Show the status and the share of the run that is done, in [0, 1]."""
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
        return str(tqdm.format_meter(share, 1, 0, ncols=BAR_WIDTH, bar_format=layout, ascii=not self._has_blocks()))

    def _has_blocks(self) -> bool:
        """Return whether the terminal's encoding has the characters of a bar."""
        try:
            "█▏".encode(self._stream.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def clear(self) -> None:
        """Remove the status line, so that what is printed next has a line of its own."""
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


@contextmanager
def open_log(console: Console, file: Path) -> Iterator[None]:
    """Log to the console and, with times, to a file, while the block runs."""
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.level, logger.propagate
    to_file = logging.FileHandler(file)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
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
    """Print nothing of what is logged while the block runs, unless a log is open."""
    logger, nowhere = logging.getLogger(LOGGER_NAME), logging.NullHandler()
    logger.addHandler(nowhere)
    try:
        yield
    finally:
        logger.removeHandler(nowhere)
