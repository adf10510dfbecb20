"""Waiting for what will come about, however busy the machine: for the thing itself, with a limit that no load meets."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 240.0
"""For how long a test waits for what takes seconds on an idle machine; below the alarm of a test that hangs."""


def wait_until(condition: Callable[[], object], missing: str = "it did not come about") -> None:
    """Return as soon as a condition holds; fail with what is missing after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, missing
        time.sleep(0.01)
