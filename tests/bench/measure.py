"""Measuring in turn: ours, the yardstick, ours, the yardstick, so that a slow minute hits both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from tests.bench.recording import Recording, load_recording

_BEGUN = time.monotonic()
_REST_S = 0.005
"""Pause before each turn, as OpenMP's threads spin for a while after a call and would slow whoever is next. Not longer:
after some 20 ms of sleep Linux may run all threads of a process on one core at first, and spread them out late."""


def say(text: str) -> None:
    """Report progress."""
    print(f"[{time.monotonic() - _BEGUN:6.1f} s] {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Bench:
    """What the parts share.

    Attributes:
        quick: measure less, to see that all runs.
        scratch: an empty folder for what they write; removed at the end.
        address: of a Ray cluster for the parts that can use one; None starts Ray here.
        r2dreamer: a checkout of it, for the part that compares with it; None leaves that out.
    """

    quick: bool
    scratch: Path
    address: str | None = None
    r2dreamer: Path | None = None

    def choose(self, full: int, quick: int) -> int:
        """Return the one number in a full run, the other in a quick one."""
        return quick if self.quick else full

    @cached_property
    def recording(self) -> Recording:
        """Real CarRacing steps, recorded once and kept for later runs."""
        return load_recording(self.choose(2048, 256), say)


class Turns:
    """Seconds that each contestant took in each turn.

    Args:
        seconds: on the clock.
        processor: of this process's threads, added up; other work on the machine changes it less.
    """

    def __init__(self, seconds: Mapping[str, list[float]], processor: Mapping[str, list[float]]) -> None:
        self.seconds = seconds
        self._processor = processor

    def processor_time(self) -> Turns:
        """Return the same turns with processor time in place of the clock's."""
        return Turns(self._processor, self._processor)

    def median(self, name: str) -> float:
        """Return the median seconds of one contestant."""
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """Return the median over the turns of the seconds of one to those of the other."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True))


def take_turns(contestants: Mapping[str, Callable[[], object]], turns: int, warm_up: int = 1) -> Turns:
    """Run all contestants in order this many times; the first `warm_up` rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    processor: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_up + turns):
        for name, run in contestants.items():
            time.sleep(_REST_S)
            begun, begun_processor = time.perf_counter(), time.process_time()
            made = run()
            took, took_processor = time.perf_counter() - begun, time.process_time() - begun_processor
            del made  # before the next begins, or the memory it frees would be freed on the next one's time
            if turn >= warm_up:
                seconds[name].append(took)
                processor[name].append(took_processor)
    return Turns(seconds, processor)
