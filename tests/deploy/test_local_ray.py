"""Starting Ray on a machine that is busy."""

from __future__ import annotations

import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from small_runs import small_settings

from dreamfleet.deploy.workers.ray_session import START_TRIALS, start_local_ray, start_ray


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Have Ray raise these, one at each start, before it starts."""
    errors: list[Exception] = []

    def start(**options: Any) -> None:
        assert options["num_cpus"] == 3
        if errors:
            raise errors.pop()

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return errors


def test_a_node_that_is_late_is_started_again(late: list[Exception], caplog: pytest.LogCaptureFixture) -> None:
    """Ray allows its node half a minute; each time it takes longer is logged."""
    late += [Exception("The current node timed out during startup.")] * (START_TRIALS - 1)
    with caplog.at_level(logging.WARNING, "dreamfleet"):
        start_local_ray(3)
    assert late == []
    assert caplog.text.count("started again: The current node timed out during startup.") == START_TRIALS - 1


def test_a_node_that_is_always_late_is_given_up(late: list[Exception]) -> None:
    """The error says how often it was tried."""
    late += [Exception("The current node timed out during startup.")] * 100
    with pytest.raises(RuntimeError, match=f"timed out during startup. It was tried {START_TRIALS} times"):
        start_local_ray(3)
    assert len(late) == 100 - START_TRIALS


def test_ray_starts_from_any_thread_and_leaves_signals_to_the_run(
    late: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes handlers of signals in the main thread alone; there, Ray's own is taken away again."""
    settings = small_settings(actors={"count": 2})
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    start_ray(settings, None)
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(ray, "init", lambda **_: None)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(start_ray, settings, None).result()


def test_another_error_is_not_tried_again(late: list[Exception]) -> None:
    """What is no matter of time comes through at once."""
    late += [ValueError("no such option"), ValueError("no such option")]
    with pytest.raises(ValueError, match="no such option"):
        start_local_ray(3)
    assert len(late) == 1
