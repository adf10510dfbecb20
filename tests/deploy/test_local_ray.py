"""Starting Ray on a machine that is busy."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from command_runs import ROOT
from small_runs import small_settings

from dreamfleet.deploy.workers.ray_session import START_TRIALS, keep_token_private, start_local_ray, start_ray


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


def test_a_late_node_is_not_started_again_once_a_stop_was_asked_for(late: list[Exception]) -> None:
    """Each try takes half a minute, which whoever pressed Ctrl-C would wait for."""
    late += [Exception("The current node timed out during startup.")] * 100
    with pytest.raises(RuntimeError, match=r"during startup\. It was not tried again, since a stop was asked for\."):
        start_local_ray(3, lambda: True)
    assert len(late) == 99


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


LISTENERS = """
import json, sys
import psutil, ray
from dreamfleet.deploy.workers.ray_session import start_local_ray

@ray.remote
class Worker:
    def work(self):
        return 1

if __name__ == "__main__":
    start_local_ray(2, logging_level=40)
    worker = Worker.remote()
    assert ray.get(worker.work.remote(), timeout=100) == 1
    me = psutil.Process()
    open_to = [
        (process.name(), socket.laddr.ip)
        for process in [me, *me.children(recursive=True)]
        for socket in process.net_connections()
        if socket.status == psutil.CONN_LISTEN
    ]
    print("LISTENERS", json.dumps(open_to))
    ray.shutdown()
"""


@pytest.mark.ray
def test_all_of_local_ray_listens_on_loopback(tmp_path: Path) -> None:
    """Control process, raylet, agents, driver and workers: nobody on the network reaches them."""
    script = tmp_path / "listeners.py"
    script.write_text(LISTENERS)
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / ".pkg")}
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(script)], env=variables, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("LISTENERS"))[9:])
    assert len(found) >= 6, found
    assert {name for name, _ in found} & {"gcs_server", "raylet"} == {"gcs_server", "raylet"}
    outside = [entry for entry in found if entry[1].removeprefix("::ffff:") not in {"127.0.0.1", "::1"}]
    assert outside == []
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600


def test_a_token_is_made_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made once, hidden if others can read it, and left to the user where the environment names one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE")
    file = tmp_path / ".ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    keep_token_private()
    assert not file.exists()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    keep_token_private()
    made = file.read_text()
    assert (len(made), file.stat().st_mode & 0o777) == (64, 0o600)
    file.chmod(0o644)
    keep_token_private()
    assert (file.read_text(), file.stat().st_mode & 0o777) == (made, 0o600)
