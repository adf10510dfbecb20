"""The train ratio's arithmetic."""

from __future__ import annotations

import random

from dreamfleet.deploy.fleet.ledger import TrainRatio


def test_no_update_is_allowed_before_the_prefill() -> None:
    """Steps of the prefill allow nothing, and the first update comes when it has been paid for in full."""
    ratio = TrainRatio(ratio=2.0, replayed_per_update=100, prefill=500, env_steps=10_000)
    assert ratio.updates_allowed(0) == ratio.updates_allowed(500) == ratio.updates_allowed(549) == 0
    assert ratio.updates_allowed(550) == 1


def test_updates_never_outrun_the_ratio_by_a_whole_update() -> None:
    """At any number of steps the replayed steps are at most the ratio's, and less than one update short of it."""
    chance = random.Random(0)
    for _ in range(500):
        ratio = TrainRatio(
            10**6, chance.choice([0.1, 0.3, 1.7, 32.0, 512.0]), chance.choice([7, 160, 1024]), prefill=13
        )
        steps = chance.randrange(13, 10**6)
        owed = ratio.ratio * (steps - 13)
        replayed = ratio.updates_allowed(steps) * ratio.replayed_per_update
        assert replayed <= owed * (1 + 1e-12)
        assert replayed > owed * (1 - 1e-12) - ratio.replayed_per_update


def test_a_ratio_that_binary_floats_cannot_hold_is_exact() -> None:
    """A ratio of 0.1 over 3000 steps of one per update is 300 updates, not 299 or 301."""
    assert TrainRatio(ratio=0.1, replayed_per_update=1, prefill=0, env_steps=3000).updates == 300


def test_steps_beyond_the_run_allow_nothing_more() -> None:
    """Experience collected by an earlier, longer run does not prolong this one."""
    ratio = TrainRatio(ratio=1.0, replayed_per_update=10, prefill=0, env_steps=100)
    assert ratio.updates_allowed(1000) == ratio.updates == 10
