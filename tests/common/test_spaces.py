"""Spaces as plain data: how they are written, and that they read back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.segment_header import SegmentHeader

SHOWN = (ObservationSpec("image", (64, 64, 3), "uint8"), ObservationSpec("v", (3,), "float32"))
UNBOUNDED = ActionSpec("box", (3,), (-math.inf, 0.0, -math.inf), (math.inf, math.inf, 2.5), (3,))
STORED_BEFORE = [
    (ActionSpec("discrete", (4,)), 1753725972),
    (ActionSpec("multi_discrete", (2, 3)), 2999800650),
    (ActionSpec("box", (2,), (-2.0, 0.1), (2.0, 0.5), (2,)), 3214075888),
    (ActionSpec("box", (2,), (-math.inf, 0.0), (math.inf, math.inf), (2,)), 4190600495),
]


def strict(data: Any) -> str:
    """Return JSON as any reader takes it."""
    return json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("action", [UNBOUNDED, *[action for action, _ in STORED_BEFORE]])
def test_spaces_read_back_from_strict_json(action: ActionSpec) -> None:
    """With any bounds, infinite ones included; alone and in the header of a segment."""
    spaces = Spaces(SHOWN, action)
    assert Spaces.from_json(json.loads(strict(spaces.to_json()))) == spaces
    header = SegmentHeader(StepFormat(spaces).to_json())
    written = header.encode()
    written_format = json.loads(written[written.index(b"{") :])["step_format"]
    assert StepFormat.from_json(written_format).spaces == spaces
    assert StepFormat.from_json(written_format).identity == StepFormat(spaces).identity


def test_infinities_of_older_files_are_read() -> None:
    """Which wrote the words that Python's JSON has for them."""
    spaces = Spaces(SHOWN, UNBOUNDED)
    assert Spaces.from_json(json.loads(json.dumps(spaces.plain()))) == spaces


@pytest.mark.parametrize(("action", "identity"), STORED_BEFORE)
def test_what_older_versions_stored_has_the_same_identity(action: ActionSpec, identity: int) -> None:
    """Every stored chunk bears it: another one would make all experience unreadable."""
    assert StepFormat(Spaces(SHOWN, action)).identity == identity
