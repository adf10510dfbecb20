"""Whatever a file holds: a result, or a sentence; never a crash, an endless loop, or memory beyond the file's measure.

The same inputs every time; `make fuzz` draws others, a million of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from targets import remove_scratch, targets
from watch import check

TARGETS = targets()
INPUTS = 15
"""For a target of share 1, in the short form; at most six times as many for any."""


@pytest.fixture(scope="module", autouse=True)
def _tidy() -> Iterator[None]:
    yield
    remove_scratch()


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_a_file_holds_is_read_or_refused(name: str) -> None:
    """Inputs are almost right: values of other kinds, bits flipped, parts lost or doubled, checksums made right."""
    target, numbers = TARGETS[name], count()

    @settings(
        max_examples=INPUTS * min(6, target.share),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(target.inputs)
    def read(data: Any) -> None:
        check(target, data, measure_memory=next(numbers) % 5 == 0)  # which makes it slow

    read()
