"""What all tests of chaos share: runs to break, the seed of their random moments, and a table of what was broken."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from chaos_run import FAULTS, ChaosRun

SEED = int(os.environ.get("DREAMFLEET_CHAOS_SEED", "0"))
"""0: the short form's own; `make chaos` draws one and prints it."""
RESULTS = os.environ.get("DREAMFLEET_CHAOS_RESULTS", "")
"""File for the table; none if empty."""


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[Callable[..., ChaosRun]]:
    """Return a function that makes runs, each in a folder of its own, and end what is left of them."""
    runs: list[ChaosRun] = []

    def make(*arguments: Any, **options: Any) -> ChaosRun:
        folder = tmp_path / f"chaos-{len(runs)}"
        folder.mkdir()
        runs.append(ChaosRun(folder, SEED + len(runs), *arguments, **options))
        return runs[-1]

    yield make
    for run in runs:
        run.clean_up()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table of what was injected, if it was asked for."""
    if not RESULTS or not FAULTS:
        return
    outcome = f"{session.testscollected} tests, {session.testsfailed} failed"
    rows = "\n".join(f"| {fault} | {count} |" for fault, count in sorted(FAULTS.items()))
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    Path(RESULTS).write_text(
        f"# Faults injected on {now}\n\n"
        f"`make chaos`, seed {SEED}: {FAULTS.total()} faults in {outcome}. After each run all steps on the disk were\n"
        "counted and compared with what had been acknowledged.\n\n"
        f"| fault | times |\n| --- | --- |\n{rows}\n"
    )
