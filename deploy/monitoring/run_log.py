"""Reads a run's train.log: how it ended, since when it runs, and what it complained of."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

TAIL_BYTES = 1_000_000
"""So much of the end of a log is read."""
_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) (INFO|WARNING|ERROR|CRITICAL) (.*)")
_START = re.compile(r"dreamfleet (\S+): (?:new|resuming|going on|continuing|collect|train)")


class Entry(NamedTuple):
    """One record of the log; `more` are the lines below its first, such as a traceback's."""

    time: str
    level: str
    text: str
    more: list[str]


class RunLog:
    """The last part of a log.

    Args:
        file: train.log; one that is missing is empty.
    """

    def __init__(self, file: Path) -> None:
        self._entries = _entries(file)
        starts = [number for number, entry in enumerate(self._entries) if _START.match(entry.text)]
        self._start = starts[-1] if starts else None

    def version(self) -> str | None:
        """Return the version of dreamfleet that was last started here."""
        found = None if self._start is None else _START.match(self._entries[self._start].text)
        return found[1] if found else None

    def started_unix(self) -> float | None:
        """Return when the run was last started."""
        if self._start is None:
            return None
        return datetime.fromisoformat(self._entries[self._start].time).timestamp()

    def end(self) -> tuple[str, str]:
        """Return how the last start ended, as (state, reason); ("", "") if the log says nothing of an end."""
        entries = self._entries[self._start or 0 :]
        for entry in reversed(entries):
            is_last = entry is entries[-1]  # a fault of the user's is logged last; other errors end nothing
            if entry.text.startswith("the run failed: ") or (entry.level == "ERROR" and is_last):
                return "failed", entry.text.removeprefix("the run failed: ")
            if entry.text.startswith("done:"):
                return "finished", ""
            if entry.text.startswith("stopped at "):
                return "stopped", ""
        return "", ""

    def mentions(self, words: str) -> bool:
        """Return whether the last start logged something that begins with these words."""
        return any(entry.text.startswith(words) for entry in self._entries[self._start or 0 :])

    def complaints(self, most: int = 3) -> dict[str, Any]:
        """Return how many warnings and errors the last start logged, and the last of them.

        Of a traceback, the last line is what says what happened.
        """
        found = [entry for entry in self._entries[self._start or 0 :] if entry.level != "INFO"]
        last = [
            {"time": entry.time, "level": entry.level.lower(), "text": " … ".join([entry.text, *entry.more[-1:]])}
            for entry in found[-most:]
        ]
        return {"count": len(found), "last": last}


def _entries(file: Path) -> list[Entry]:
    """Return the records in the last part of a log, in order."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    entries: list[Entry] = []
    for line in lines:
        head = _LINE.fullmatch(line)
        if head:
            entries.append(Entry(head[1], head[2], head[3], []))
        elif entries and line.strip():
            entries[-1].more.append(line.strip())
    return entries
