"""Errors that are the user's to mend: one sentence, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A fault in what the user gave: the sentence names the value, where it stood and what would be right."""


class WrongHereError(UserError):
    """A fault that may be of this machine alone, such as a package that is missing: on another it may be right."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'X'?" for the known name nearest to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


class RunFailedError(Exception):
    """A run that cannot go on: the sentence says of what; shown without a traceback, which the log holds."""
