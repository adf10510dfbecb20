"""What was found out while an environment was made and tried: logged once in each process, and kept for a later log.

A run tries its environment before there is a directory to log in, and repeats there what was announced meanwhile. What
its actors announce again, each in its own process, is left out there: see `announced_notes`.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable

from dreamfleet.common.process_log import Note

log = logging.getLogger(__name__)

_lines: dict[str, int] = {}
_told: set[Hashable] = set()


def announce(line: str, level: int = logging.INFO) -> None:
    """Log a line, unless this process has logged it before."""
    if line not in _lines:
        _lines[line] = level
        log.log(level, "%s", line)


def announce_once(subject: Hashable, line: str) -> None:
    """Warn, unless this process has warned of this subject before, in whatever words."""
    if subject not in _told:
        _told.add(subject)
        announce(line, logging.WARNING)


def announced() -> list[str]:
    """Return all lines that this process announced, in their order."""
    return list(_lines)


def announced_notes() -> list[Note]:
    """Return all lines that this process announced, in their order, each with its level."""
    return [(level, line) for line, level in _lines.items()]
