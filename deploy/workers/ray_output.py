"""What Ray would print over the terminal: its own messages and crashed workers' dumps go to the run's log instead."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from dreamfleet.common.formatting import shorten
from dreamfleet.deploy.workers.ray_errors import EXIT_WORDS

RAYS_OWN = ("raylet", "autoscaler", "gcs_server")
"""Who says it, where it is not a worker."""
_CRASH = re.compile(r"\*\*\* SIG[A-Z]+ received|Fatal Python error: ")
_EVENT = ":event_summary:"
_RAYS_LINE = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:,.]+ [A-Z] \d+ \d+\]")
"""How lines of Ray's own begin in a worker's output."""

log = logging.getLogger("dreamfleet")


class OutputRouter:
    """Leaves what environments print on the terminal, and writes the rest to the log's file alone."""

    def __init__(self) -> None:
        self._crashed: set[Any] = set()  # processes: all that they print from their crash on is the dump

    def __call__(self, data: Mapping[str, Any], print_it: Callable[[], None]) -> None:
        """Take some lines of one process, which `print_it` would print."""
        lines, who = data.get("lines") or [], data.get("pid")
        if who == "autoscaler":  # of which Ray prints events alone
            lines = [line.partition(_EVENT)[2] for line in lines if _EVENT in line]
        if any(_CRASH.search(line) for line in lines):
            self._crashed.add(who)
        is_dump = who in self._crashed and data.get("is_err")
        if who in RAYS_OWN or is_dump or (lines and all(_is_rays(line) for line in lines)):
            for line in lines:
                log.info("Ray, %s: %s", who, shorten(line), extra={"only_to_file": True})
        else:
            print_it()


def _is_rays(line: str) -> bool:
    return not line.strip() or EXIT_WORDS in line or bool(_RAYS_LINE.match(line))
