"""What was decided while an environment was made: logged once in each process, and kept for a log opened later.

A run tries its environment before there is a directory to log in, and repeats there what was announced meanwhile.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

_lines: dict[str, None] = {}


def announce(line: str) -> None:
    """Log a line, unless this process has logged it before."""
    if line not in _lines:
        _lines[line] = None
        log.info("%s", line)


def announced() -> list[str]:
    """Return all lines that this process announced, in their order."""
    return list(_lines)
