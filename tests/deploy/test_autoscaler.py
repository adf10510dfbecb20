"""`actors.count auto` and Ray's autoscaler, with Ray's own simulated provider: nodes come because the fleet asks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from command_runs import ROOT, Command, still_running, write_workshop
from patience import PATIENCE_S

from dreamfleet.replay.report import verify

NODES = {
    "ray.head.default": {"resources": {"CPU": 2, "learner": 1}, "node_config": {}, "min_workers": 0, "max_workers": 0},
    "worker": {"resources": {"CPU": 2, "actor": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
}
CONFIG = {
    "cluster_name": "simulated",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "upscaling_speed": 10,
    "auth": {},
    "head_node_type": "ray.head.default",
    "available_node_types": NODES,
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "rsync_exclude": [],
    "rsync_filter": [],
}
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Start a head whose autoscaler adds simulated nodes on this machine, and end all of it."""
    from ray._private import services

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    config = tmp_path / "cluster.json"
    address = f"{services.get_node_ip_address()}:{port}"
    provider = {"type": "fake_multinode", "gcs_address": address, "disable_node_updaters": True}
    config.write_text(json.dumps(CONFIG | {"provider": provider}))
    search = [str(ROOT / ".pkg"), str(ROOT / "tests" / "support"), str(tmp_path)]
    environment = os.environ | QUIET | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0",
        "PYTHONPATH": os.pathsep.join(search), "HOME": str(tmp_path),
    }  # fmt: skip
    log = (tmp_path / "head.log").open("wb")
    head = subprocess.Popen(  # noqa: S603
        [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
            "--include-dashboard=false", f"--autoscaling-config={config}", '--resources={"learner": 1}',
            f"--temp-dir=/tmp/ray-{port}",
        ],
        env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    wait_for_listener(head, port, tmp_path / "head.log")
    yield address
    family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    os.killpg(head.pid, signal.SIGTERM)
    for process in still_running(family, within_s=15):
        process.kill()
    head.wait(PATIENCE_S)
    log.close()


def wait_for_listener(head: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the head listens: who joins is refused at once where nobody does."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.long
def test_a_fleet_that_lacks_experience_has_its_cluster_grow(address: str, tmp_path: Path) -> None:
    """From a head alone, the autoscaler adds the nodes that the fleet asks for, up to the cluster's own limit."""
    write_workshop(tmp_path)
    command = Command(
        tmp_path, "collect", "--preset", "tiny.yaml", "--out", "data", "--steps", "1000000", "--actors.count", "auto",
        "--address", address, **QUIET,
    )  # fmt: skip
    try:
        command.wait_for("room for 0 actors on 1 nodes; all of it is used")
        command.wait_for("actors: 2 instead of 1")
        command.wait_for("actors 2/2")
        command.wait_for("actors: 4 instead of 2")
        command.wait_for("actors 4/4")
        command.interrupt()
        assert command.end() == 130, command.out + command.err
    finally:
        command.kill()
    assert verify(tmp_path / "data" / "replay") == []
