"""The command line: `python -m tests.bench.gpu [--minutes N] [--parts NAME ...] [--r2dreamer DIR] [--dry-run] …`."""

from __future__ import annotations

import argparse
import datetime as dt
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.gpu.findings import say
from tests.bench.gpu.page import Page
from tests.bench.gpu.schedule import NAMED, PARTS, run_parts
from tests.bench.machine import ROOT, describe_commit


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts, write the page after each, and return how many did not come to their end."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    today = dt.datetime.now().astimezone().date().isoformat()
    command = shlex.join(["python", "-m", "tests.bench.gpu", *(sys.argv[1:] if arguments is None else arguments)])
    page = Page(options.out, f"gpu-{today}{'-dry-run' if options.dry_run else ''}", command, describe_commit())
    parts = [part for part in (*PARTS, *NAMED) if part.name in options.parts]
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="dreamfleet-gpu-") as scratch:
        failed = run_parts(parts, page, Path(scratch), deadline, options.dry_run, options.r2dreamer)
    say(f"written to {page.path}")
    return failed


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu", description="Measure what only a GPU can show, the most important first."
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: 8)")
    names, named = ([part.name for part in parts] for parts in (PARTS, NAMED))
    known = f"some of {', '.join(names)} (all of these unless given), {', '.join(named)}"
    parser.add_argument("--parts", nargs="+", choices=names + named, default=names, metavar="NAME", help=known)
    parser.add_argument(
        "--r2dreamer", type=Path, metavar="DIR", help="a checkout of github.com/NM512/r2dreamer to run beside"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "results", help="folder of the page and its pictures"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, also without a GPU, to see that all runs")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes:g}: give a positive number.")
    return options


if __name__ == "__main__":
    sys.exit(main())
