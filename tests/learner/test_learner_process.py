"""The learner in a process of its own, with the replay in another."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from make_chunks import cut
from moving_square import play_square, square_format
from patience import PATIENCE_S
from ray.exceptions import RayError
from small_runs import small_settings

from dreamfleet.common.acting.ray_weights import fetch_weights
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.deploy.workers.learner_ranks import LearnerRanks
from dreamfleet.learner.process import LearnerProcess
from dreamfleet.replay.ray_replay import RayReplay, start_replay_servers
from dreamfleet.replay.shards import ShardPlan


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_killed_learner_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Weights are published at the start and every so often; after SIGKILL a new process ends where the old one was."""
    # So wide that its weights are an object of the store: what has less than 100 kB travels within answers.
    settings = small_settings(
        model={"deterministic": 128}, learner={"publish_every": 4, "threads": 1}, behaviour={"kind": "planner"}
    )
    plan = ShardPlan(tmp_path / "replay", ReplaySettings(capacity_gb=0.1, held_out_every=5), seed=1)
    (server,) = start_replay_servers([plan], square_format(), 8)
    replay = RayReplay(server)
    for record in cut(square_format(), play_square(20, 40, seed=1)):
        replay.append(record)

    def start() -> LearnerRanks:
        handle = LearnerProcess.options(num_cpus=0).remote(  # type: ignore[attr-defined]
            settings, square_format().spaces.to_json(), [server], str(tmp_path)
        )
        return LearnerRanks([handle])

    def ask(learner: LearnerRanks, method: str, *arguments: object) -> Any:
        return learner.give(method, *arguments).result(PATIENCE_S)

    first = start()
    updates, published, decisions, *_ = ask(first, "restore")
    assert updates == published.version == 0
    assert any("device" in decision for decision in decisions)
    assert ask(first, "train", 3).published is None
    saved, kept = ask(first, "save", {"env_steps": 400})
    assert saved["updates"] == kept.version == 3
    assert saved["held_out_loss"] > 0
    report: Any = ask(first, "train", 3)
    assert report.published.version == report.updates == 6
    weights = np.array(fetch_weights(report.published, PATIENCE_S))
    assert weights.nbytes > 200_000
    pictures = ask(first, "draw_pictures")
    assert pictures.still.dtype == np.uint8

    os.kill(ask(first, "ping"), signal.SIGKILL)
    with pytest.raises(RayError):
        ask(first, "train", 1)
    elsewhere = ray.remote(fetch_weights).options(num_cpus=0).remote(report.published, PATIENCE_S)
    assert np.array_equal(ray.get(elsewhere, timeout=PATIENCE_S), weights), "they outlive the learner"
    second = start()
    updates, published, *_ = ask(second, "restore")
    assert updates == published.version == 3
    again: Any = ask(second, "train", 3)
    assert again.metrics == report.metrics
    assert np.array_equal(fetch_weights(again.published, PATIENCE_S), weights)
    second.kill()
    replay.close()
