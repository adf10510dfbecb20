"""Errors that end a command with one sentence and no traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """A fault in the user's input: the sentence names the value, where it came from and what would be right."""


class WrongHereError(UserError):
    """A fault that may be of this machine only, such as a missing package: on another the input may be right."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'X'?" for the known name nearest to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def shown(value: object, most: int = 200) -> str:
    """Return a value as Python writes it, cut where it would be longer than a sentence bears."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


OBSTACLES = (PermissionError, IsADirectoryError, NotADirectoryError)
"""What reading or writing raises where something stands in the way that its user can move."""


def obstacle_in_words(error: OSError) -> str:
    """Return which file cannot be read or written and why, without a full stop."""
    reason = {errno.EISDIR: "it is a folder", errno.ENOTDIR: "a part of its path is a file"}
    why = reason.get(error.errno or 0, "permission denied")
    return f"{error.filename or 'a file'} may not be read or written: {why}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without the pages that may follow; its class, if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class RunFailedError(Exception):
    """A run that cannot continue: the sentence gives the reason; the traceback is in the log only."""
