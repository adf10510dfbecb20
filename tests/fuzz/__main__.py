"""`make fuzz`: inputs drawn anew in rounds over all targets until there were enough; prints the seed and the counts.

python -m tests.fuzz --inputs 1000000 --seed 7 --only chunks
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]

from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from targets import Target, remove_scratch, targets  # noqa: E402
from watch import check  # noqa: E402

LINE = 2000
"""Characters shown of a line, which may hold an input."""
ROUND = 25
"""Inputs of a target of share 1 in one round."""


def fuzz(inputs: int, first_seed: int, only: list[str], most_s: float) -> int:
    """Run rounds over the targets until that many inputs were read; return how many targets failed."""
    chosen = {name: target for name, target in targets().items() if not only or name in only}
    counts = dict.fromkeys(chosen, 0)
    failed: set[str] = set()
    begun, shown, number = time.monotonic(), 0.0, 0
    while sum(counts.values()) < inputs and len(failed) < len(chosen) and time.monotonic() - begun < most_s:
        for name, target in chosen.items():
            if name in failed:
                continue
            try:
                _round(target, counts, name, first_seed + number)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failed.add(name)
                print(f"\n{name}, seed {first_seed + number}:", flush=True)
                for line in "".join(traceback.format_exception(error, limit=-8)).splitlines():
                    print(line[:LINE], flush=True)
        number += 1
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            print(
                f"{sum(counts.values()):>9} inputs in {shown - begun:.0f} s, {len(failed)} targets failed", flush=True
            )
    for name, count in counts.items():
        print(f"{name:<20} {count:>9} inputs{', failed' if name in failed else ''}")
    total = sum(counts.values())
    print(f"{total} inputs in {time.monotonic() - begun:.0f} s, seed {first_seed}, {len(failed)} targets failed")
    remove_scratch()
    return len(failed)


def _round(target: Target, counts: dict[str, int], name: str, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=ROUND * target.share,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(target.inputs)
    def read(data: Any) -> None:
        counts[name] += 1
        check(target, data, measure_memory=counts[name] % 50 == 0)

    read()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after this time")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", action="append", default=[], help="a target's name; may be given several times")
    given_flags = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if os.access("/dev/shm", os.W_OK):  # noqa: S108 (folders are made there under names of their own)
        tempfile.tempdir = "/dev/shm"  # noqa: S108 (in memory: on a disk a third of the time is making folders and syncing)
    print(f"seed {given_flags.seed}", flush=True)
    sys.exit(min(1, fuzz(given_flags.inputs, given_flags.seed, given_flags.only, given_flags.seconds)))
