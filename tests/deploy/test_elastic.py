"""A fleet on a real Ray cluster of several nodes, all on this machine: it grows and shrinks with the cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_runs import ROOT, Command, write_workshop
from patience import PATIENCE_S

from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.workers.ray_internals import local_node
from dreamfleet.replay.report import describe, verify

PYTHON_PATH = os.pathsep.join([str(ROOT / ".pkg"), str(ROOT / "tests" / "support")])
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a Ray cluster of one node, with room for the learner and one actor; its nodes find what they import."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([PYTHON_PATH, str(tmp_path)]))
    with local_node():  # on loopback: nodes take the address of a local Ray of this process, if an earlier test has one
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        yield started
        started.shutdown()


@pytest.mark.ray
@pytest.mark.long
def test_auto_follows_a_real_cluster(cluster: Any, tmp_path: Path) -> None:
    """With actors `auto` a node that joins gets its actors while the run goes on, and may be lost again."""
    write_workshop(tmp_path)
    command = Command(
        tmp_path, "train", "--preset", "tiny.yaml", "--run", "run", "--train.env_steps", "1000000", "--actors.count",
        "auto", "--address", cluster.address, **QUIET, **LOOPBACK,
    )  # fmt: skip
    try:
        command.wait_for("room for 1 actors on 1 nodes; all of it is used")
        command.wait_for("updates 1")
        node = cluster.add_node(num_cpus=2)
        command.wait_for("actors: 3 instead of 1")
        command.wait_for("actors 3/3")
        streams_wanted(tmp_path, 6)
        cluster.remove_node(node, allow_graceful=False)
        command.wait_for("actors: 1 instead of 3")
        command.wait_for("actors 1/1")
        command.interrupt()
        assert command.end() == 130, command.out
    finally:
        command.kill()
    run = RunDirectory(tmp_path / "run")
    assert verify(run.replay) == []


def streams_wanted(folder: Path, streams: int) -> None:
    """Wait until experience of this many environments is stored: of all actors, in turn."""
    deadline = time.monotonic() + PATIENCE_S
    while describe(folder / "run" / "replay")["streams"] < streams:
        assert time.monotonic() < deadline, "not all actors are given work"
        time.sleep(0.2)
