"""Whole runs on a replay in several shards: exact, resumed with another number of shards, and going on without one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from counted_streams import faults_of, read_streams
from shared_ray_pool import Attendant, SharedRayPool, share_ray
from small_runs import small_settings

from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.deploy.run.runs import train
from dreamfleet.replay.report import describe, verify
from dreamfleet.replay.shards import shard_directories

LENGTH = 20


def settings_of(shards: int, env_steps: int) -> Settings:
    """Return settings of four actors on the counting environment."""
    return small_settings(
        env={"id": "faulty_environment:make", "kwargs": {"length": LENGTH}, "image_size": 0},
        model={"vector_units": 8, "vector_layers": 1},
        actors={"count": 4, "environments": 1, "steps_per_order": 8},
        replay={"capacity_gb": 0.1, "held_out_every": 5, "shards": shards},
        learner={"updates_per_order": 4, "publish_every": 8},
        train={"env_steps": env_steps, "prefill": 100, "ratio": 4.0},
        records={"checkpoint_every": 10, "picture_every": 1000},
    )


def assert_stored(path: Path, settings: Settings, shards: int, steps: int) -> None:
    """Assert that each shard holds some of this many steps, and that all of them are as they were played."""
    directories = shard_directories(path / "replay")
    assert [directory.name for directory in directories] == [f"shard-{number}" for number in range(shards)]
    assert all(describe(directory)["steps"] for directory in directories)
    assert verify(path / "replay") == []
    streams = read_streams(path / "replay", StepFormat(probe_environment(settings.env)))
    assert [fault for stream in streams.values() for fault in faults_of(stream, LENGTH)] == []
    assert sum(len(stream["reward"]) for stream in streams.values()) == steps


def test_a_run_is_resumed_with_more_shards_and_then_with_fewer(tmp_path: Path) -> None:
    """One, then three, then two: all steps of all shards count, and none is left out."""
    path = tmp_path / "run"
    for shards, opened, env_steps in [(1, 1, 203), (3, 3, 403), (2, 3, 603)]:
        settings = settings_of(shards, env_steps)
        assert train(settings, directory=path, inline=True).exit_code == 0
        assert_stored(path, settings, opened, env_steps)
    said = (path / "train.log").read_text()
    assert "replay: 203 env steps" in said
    assert "replay: 403 env steps" in said


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_training_goes_on_without_a_shard_that_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of two servers is gone for good: it is named once, its actors store in the other, and S never falls."""
    share_ray(monkeypatch)
    settings = settings_of(2, 1_000_000)
    pool = SharedRayPool(settings, tmp_path)
    at_loss: dict[str, Any] = {}

    def lose_one(fleet: Fleet, attendant: Attendant) -> Iterator[None]:
        while fleet.ledger.updates < 20 or not all(attendant.incarnations_of(actor) for actor in (0, 2)):
            yield
        at_loss.update(updates=fleet.ledger.updates, steps=fleet.ledger.env_steps)
        ray.kill(pool._servers[0])
        while fleet.ledger.env_steps < at_loss["steps"] + 200 or fleet.ledger.updates < at_loss["updates"] + 20:
            yield
        while any(
            len(attendant.incarnations_of(actor)) < 2 for actor in (0, 2)
        ):  # which stored in the shard that is lost
            yield

    attendant = Attendant(pool, lose_one)
    loop = Fleet(pool, FleetConfig.of(settings), Ledger(TrainRatio.of(settings)), [attendant])
    fleet = loop.state
    try:
        with caplog.at_level(logging.WARNING, "dreamfleet"):
            loop.run()
        assert pool.replay.counters().total_steps == fleet.ledger.env_steps == fleet.ledger.ratio.env_steps
    finally:
        pool.close()
    assert fleet.ledger.updates == fleet.ledger.ratio.updates
    (named,) = [line for line in caplog.messages if line.startswith("replay shard")]
    assert f"shard 0 ({tmp_path}/replay/shard-0) is lost" in named
    assert "1 of 2 shards are left" in named
    assert verify(tmp_path / "replay") == []
    streams = read_streams(tmp_path / "replay", StepFormat(probe_environment(settings.env)))
    assert [fault for stream in streams.values() for fault in faults_of(stream, LENGTH)] == []
    assert sum(len(stream["reward"]) for stream in streams.values()) >= fleet.ledger.env_steps
