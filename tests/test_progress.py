"""Progress: rates of what is made now."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from dreamfleet.deploy.progress import Progress


def test_what_a_checkpoint_brings_is_no_rate(monkeypatch: Any) -> None:
    """A resumed run begins with its updates; they were not made within the seconds that its learner took to start."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    learner = SimpleNamespace(idle_until=lambda time_s: 0.0)
    fleet = SimpleNamespace(env_steps=500, updates=0, actors=[], learner=learner)
    progress = Progress(cast("Any", fleet), env_factor=1)
    progress.read()
    now, fleet.updates = 110.0, 4000
    progress.begin_anew()
    progress.read()
    now, fleet.updates = 120.0, 4050
    progress.read()
    assert progress.rates()["updates_per_s"] == 5.0
    assert progress.overall()["updates_per_s"] == 5.0
