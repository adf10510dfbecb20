"""The command line: `python -m tests.bench [--quick] [--only NAME ...] [--address ADDRESS] [--r2dreamer DIR] …`."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dreamfleet.common.errors import UserError
from tests.bench.machine import ROOT, busy_share, describe_machine
from tests.bench.measure import Bench, say
from tests.bench.report import Row, render_misses, render_page, render_table, write_page

PARTS = {"replay": "replay", "replay-ray": "replay_ray", "collect": "collect", "learner": "learner"}
"""Names of the parts, and the modules that measure them."""
NAMED = {
    "loop": "loop",
    "ingest": "ingest",
    "weights": "weights",
    "agents": "agents",
    "acting": "acting",
    "representation": "representation",
    "central": "central",
    "view": "view",
}
"""Parts that are measured only where they are named, such as how far one head carries, and what a page waits for."""
_BUSY = 0.1
"""A machine that is busier than this with other work gives no figures to rely on."""


def main() -> None:
    """Measure the parts asked for, print the table and write the page."""
    options = _parse()
    facts = describe_machine()
    busy_before = busy_share()
    for name, value in facts.items():
        say(f"{name}: {value}")
    if busy_before > _BUSY:
        say(f"WARNING: {busy_before:.0%} of the cores are busy already: figures will be low, and ratios unreliable")
    begun = time.monotonic()
    rows: list[Row] = []
    methods: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="dreamfleet-bench-") as scratch:
        bench = Bench(options.quick, Path(scratch), options.address, options.r2dreamer)
        for name in options.only:
            module = importlib.import_module(f"tests.bench.{(PARTS | NAMED)[name]}")
            methods[name] = " ".join(module.METHOD.split())
            for row in module.measure(bench):
                say(" | ".join(cell for cell in row.cells() if cell))
                rows.append(row)
    facts["busy with other work"] = _describe_load(busy_before, busy_share())
    print(render_table(rows), render_misses(rows), sep="\n\n")
    command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])
    page = render_page(rows, command, facts, methods, time.monotonic() - begun)
    chosen = [] if options.only == list(PARTS) else options.only
    say(f"written to {write_page(options.out, [*chosen, *(['quick'] if options.quick else [])], page)}")


def _describe_load(before: float, after: float) -> str:
    """Return how busy the machine was with other work, and what that means for the figures."""
    meaning = "; figures are low and ratios unreliable" if max(before, after) > _BUSY else ""
    return f"{before:.0%} of the cores before the run, {after:.0%} after it{meaning}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure dreamfleet beside its yardsticks."
    )
    parser.add_argument("--quick", action="store_true", help="measure less, to see that all runs")
    names = f"{', '.join(PARTS)} (all of these unless given), {', '.join(NAMED)}"
    parser.add_argument("--only", nargs="+", choices=PARTS | NAMED, default=list(PARTS), metavar="NAME", help=names)
    parser.add_argument("--address", help="a Ray cluster that the part weights joins; without, Ray is started here")
    parser.add_argument(
        "--r2dreamer", type=Path, metavar="DIR", help="a checkout of github.com/NM512/r2dreamer, run beside ours"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of the Markdown page")
    options = parser.parse_args()
    if options.r2dreamer:
        try:
            _check_r2dreamer(options.r2dreamer, options.only)
        except UserError as error:
            parser.error(str(error))
    return options


def _check_r2dreamer(checkout: Path, parts: Sequence[str]) -> None:
    """Refuse at the start what would fail, or be of no use, after the other parts."""
    from tests.bench.r2dreamer import check_checkout

    if not {"agents", "representation"}.intersection(parts):
        raise UserError(
            f"--r2dreamer {checkout}: no part that is to be measured compares with it; add --only agents or "
            "representation."
        )
    check_checkout(checkout)


if __name__ == "__main__":
    main()
