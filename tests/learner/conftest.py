"""What several tests of the learner have: a replay of the moving square."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moving_square import square_replay

from dreamfleet.replay.replay import Replay


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    """Give a replay of 40 episodes of 40 steps, a tenth of them held out, for sequences of 8."""
    stored = square_replay(tmp_path_factory.mktemp("replay"), sequence_length=8)
    yield stored
    stored.close()
