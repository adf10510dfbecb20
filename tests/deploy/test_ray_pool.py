"""The pool on Ray: what it knows of workers that have not answered."""

from __future__ import annotations

import time
from types import SimpleNamespace
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
    pool._control = SimpleNamespace(is_silent=False)  # type: ignore[assignment]
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


@pytest.mark.parametrize("is_silent", [False, True])
def test_without_rays_control_process_nothing_is_asked_of_it_at_the_end(
    monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    """Giving the ranks' places back would wait for it until Ray ends this process, before the run has said why."""
    done: list[str] = []
    pool = RayPool.__new__(RayPool)
    parts = {
        "_control": SimpleNamespace(is_silent=is_silent, close=lambda: None),
        "_watch": SimpleNamespace(close=lambda: None),
        "_placement": SimpleNamespace(release=lambda: done.append("places")),
        "replay": SimpleNamespace(close=lambda: done.append("replay")),
        "_close_environments": lambda: done.append("environments"),
        "_take_back_request": lambda: done.append("request"),
    }
    for name, part in parts.items():
        monkeypatch.setattr(pool, name, part, raising=False)
    monkeypatch.setattr(ray_pool.ray, "shutdown", lambda: done.append("Ray"))
    pool.close()
    asked = ["replay", "Ray"] if is_silent else ["environments", "request", "replay", "places", "Ray"]
    assert done == asked
