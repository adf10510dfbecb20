"""The parts in their order of importance, and how the time is divided among them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.gpu.findings import say
from tests.bench.gpu.page import Page, Result
from tests.bench.gpu.part_process import PartProcess

_LEAST_S = 10.0
"""With less than this left a part is not begun."""
_LAST_LINES = 12


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        share: of the time, in proportion to those of the parts after it; what one leaves goes to the others.
        module: what measures it.
        argument: which of the module's forms.
    """

    name: str
    share: float
    module: str
    argument: str = ""


PARTS = (
    Part("machine", 15, "tests.bench.gpu.card"),
    Part("trains", 65, "tests.bench.gpu.trains"),
    Part("parity", 90, "tests.bench.gpu.parity"),
    Part("eager", 30, "tests.bench.gpu.speed", "eager"),
    Part("captured", 80, "tests.bench.gpu.speed", "captured"),
    Part("profile", 25, "tests.bench.gpu.kernels"),
    Part("r2dreamer", 50, "tests.bench.gpu.rival"),
    Part("compiled", 40, "tests.bench.gpu.speed", "compiled"),
    Part("presets", 30, "tests.bench.gpu.presets"),
    Part("learning", 95, "tests.bench.gpu.learning"),
)
"""In order of importance; learning comes last because it takes what the others leave."""
NAMED = (
    Part("pipeline", 150, "tests.bench.gpu.service", "learner"),
    Part("central", 150, "tests.bench.gpu.service", "central"),
    Part("counted", 60, "tests.bench.gpu.counted"),
)
"""Parts that are measured only where they are named: eight minutes do not suffice for them, or they need no GPU."""


def run_parts(
    parts: Sequence[Part], page: Page, scratch: Path, deadline: float, dry: bool, r2dreamer: Path | None
) -> int:
    """Run the parts one after another, and write the page whenever one has found something.

    Args:
        scratch: an empty folder.
        deadline: of all of them, on `time.monotonic`'s clock.

    Returns:
        how many failed, were cut or killed, or were not begun.
    """
    to_run = [part for part in parts if part.name != "r2dreamer" or r2dreamer is not None]
    for part in parts:
        if part not in to_run:
            page.put(part.name, Result("skipped", "no checkout was given: --r2dreamer DIR"))
    failed = 0
    for place, part in enumerate(to_run):
        left_s = deadline - time.monotonic()
        limit_s = left_s * part.share / sum(other.share for other in to_run[place:])
        if limit_s < _LEAST_S:
            result = Result("not begun", f"{max(left_s, 0):.0f} s were left for all parts from here on")
        else:
            say(f"{part.name}: at most {limit_s:.0f} s")
            options = {"folder": str(page.path.parent.resolve()), "prefix": page.path.stem, "dry": dry}
            options |= {"figures": page.figures(), "r2dreamer": str(r2dreamer.resolve()) if r2dreamer else None}
            result = _run(part, page, scratch / part.name, limit_s, options)
        page.put(part.name, result)
        failed += result.status not in ("done", "skipped")
        say(f"{part.name}: {result.status} after {result.seconds:.0f} s{': ' if result.reason else ''}{result.reason}")
    return failed


def _run(part: Part, page: Page, folder: Path, limit_s: float, options: dict[str, object]) -> Result:
    """Run a part; what it finds is on the page as it comes."""
    folder.mkdir()
    process = PartProcess({**asdict(part), **options}, folder, limit_s)
    status, reason = process.follow(
        lambda findings: page.put(part.name, Result("under way", "", process.seconds, [], findings))
    )
    findings = process.findings()
    if findings.skipped:
        status, reason = "skipped", findings.skipped
    elif status == "failed":
        reason = findings.error or reason
    lines = process.lines[-_LAST_LINES:] if status not in ("done", "skipped") else []
    return Result(status, reason, process.seconds, lines, findings)
