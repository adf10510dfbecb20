"""Simulator steps of a run: exact for what the actors counted, and said where something was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from simulated_pool import SimulatedPool

from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.ledger import Ledger, SimulatorCount, TrainRatio
from dreamfleet.deploy.monitoring.progress import Progress
from dreamfleet.deploy.state import StateWriter, read_state

CONFIG = FleetConfig(
    actors=2, environments=1, steps_per_order=16, updates_per_order=4, checkpoint_every=20, picture_every=50,
    actor_timeout_s=30.0, learner_timeout_s=60.0,
)  # fmt: skip


def test_what_was_counted_is_exact_and_the_rest_is_estimated() -> None:
    """Steps that nobody counted are taken to be like the others, and named."""
    count = SimulatorCount()
    assert (count.of(0), count.of(5)) == (0, None)
    assert count.describe(5) == " (simulator steps were not counted)"
    count.add(100, 350)
    count.add(100, 390)
    assert count.describe(200) == " (740 simulator steps)"
    assert count.of(210) == 777
    assert count.describe(210) == " (about 777 simulator steps: 10 env steps were not counted)"


def test_the_count_survives_a_restart(tmp_path: Path) -> None:
    """The next start continues the count of state.json; one that is not there, or says something else, is no count."""
    assert read_state(tmp_path) is None
    with StateWriter(tmp_path, "train", 5.0) as state:
        state.beat(SimulatorCount(200, 740).to_state())
    written = read_state(tmp_path)
    assert written
    assert SimulatorCount.of_counters(written.counters) == SimulatorCount(200, 740)
    for counters in ({}, {"simulator/counted_env_steps": 3, "simulator/counted_steps": None}):
        assert SimulatorCount.of_counters(counters) == SimulatorCount()


@pytest.mark.parametrize("earlier", [None, SimulatorCount(160, 480)])
def test_the_fleet_adds_up_what_actors_report(earlier: SimulatorCount | None) -> None:
    """All reported steps are counted, also after an earlier start; half an order of a lost actor is not."""
    pool = SimulatedPool(lose=lambda actor, order: "lost" if order == 7 else "")
    pool.total_steps = 160 if earlier else 0
    ratio = TrainRatio(ratio=8.0, replayed_per_update=40, prefill=100, env_steps=800)
    fleet = Fleet(pool, CONFIG, Ledger(ratio, earlier or SimulatorCount()), clock=pool.clock).run()
    count = fleet.ledger.simulator
    assert count.env_steps == 800 - 8
    assert count.steps == count.env_steps + (320 if earlier else 0)
    assert "8 env steps were not counted" in count.describe(fleet.ledger.env_steps)
    scalars = Progress(fleet).counters()
    assert scalars["fleet/simulator_steps"] == count.of(fleet.ledger.env_steps)
    assert json.loads(json.dumps(scalars))["simulator/counted_steps"] == count.steps
