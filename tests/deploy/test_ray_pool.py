"""The pool on Ray: what it knows of workers that have not answered."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray
from patience import PATIENCE_S

from dreamfleet.common.errors import RunFailedError
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.workers import ray_pool
from dreamfleet.deploy.workers.pool import Worker
from dreamfleet.deploy.workers.ray_pool import RayPool


@pytest.mark.ray
def test_a_silent_worker_in_its_place_is_told_from_one_that_waits_for_room(local_ray: None) -> None:
    """Neither answers; the pool names the one whose process started, and not the one that no node can take."""

    class Silent:
        def __init__(self, seconds: float) -> None:
            time.sleep(seconds)

    silent: Any = ray.remote(num_cpus=0)(Silent)
    placed = Worker("placed", silent.remote(600.0))
    waiting = Worker("waiting", silent.options(resources={"of which there is none": 1}).remote(0.0))
    pool = object.__new__(RayPool)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := pool.running([placed, waiting])) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found == [placed]
        assert pool.running([waiting]) == []
    finally:
        for worker in (placed, waiting):
            ray.kill(worker.target)


def test_ray_that_is_not_up_in_time_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a bare exception where its node was late, which ends the run as any other failure does."""

    def be_late(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 (as Ray does)

    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", be_late)
    with pytest.raises(RunFailedError, match="Ray did not start: The current node timed out during startup"):
        ray_pool.start_ray(Settings(), None)
