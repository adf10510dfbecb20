"""`dreamfleet sweep --address`: Ray places cells on the nodes of a real cluster, all on this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_runs import ROOT, Command, write_workshop
from patience import PATIENCE_S, wait_until

from dreamfleet.deploy.state import read_state
from dreamfleet.deploy.workers import remote_command

PYTHON_PATH = os.pathsep.join([str(ROOT / ".pkg"), str(ROOT / "tests" / "support")])
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
TABLE = """
presets: [tiny.yaml]
settings: {actors: {count: 1}}
variants:
  one: {}
  other: {settings: {train: {ratio: 1.0}}}
  broken: {settings: {env: {id: "my_world:broken"}}}
resources: {cores: 1, memory_gb: 0.2}
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a Ray cluster of two nodes with room for a cell each; they find what they import."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([PYTHON_PATH, str(tmp_path)]))
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started.add_node(num_cpus=1)
    yield started
    started.shutdown()


def test_a_command_hears_signals_whatever_its_thread_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads in which Ray runs an actor's calls block the signals that stop a run."""
    script = "import time; print('up', flush=True); time.sleep(300)"
    monkeypatch.setattr(remote_command, "PROGRAM", (sys.executable, "-c", script))
    output, codes = tmp_path / "run.log", list[int]()
    host = remote_command._Host([], {}, str(output), str(tmp_path))

    def call() -> None:
        blocked = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        codes.append(host.run())
        assert blocked <= signal.pthread_sigmask(signal.SIG_BLOCK, ()), "the thread is as it was"

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: output.exists() and "up" in output.read_text())
    host.signal(signal.SIGINT)
    thread.join(PATIENCE_S)
    assert codes == [-signal.SIGINT]
    assert host.run() == 130, "what was stopped is not started"


@pytest.mark.ray
@pytest.mark.long
def test_cells_run_on_the_nodes_of_a_cluster(cluster: Any, tmp_path: Path) -> None:
    """Two at a time, each with a Ray of its own; a broken one is named, and Ctrl-C reaches those that run and wait."""
    write_workshop(tmp_path)
    (tmp_path / "table.yaml").write_text(TABLE)
    words = ("sweep", "table.yaml", "--out", "out", "--address", cluster.address)
    command = Command(tmp_path, *words, **QUIET)
    try:
        assert command.end(400) == 1, command.out + command.err
    finally:
        command.kill()
    found = {cell["cell"]: cell for cell in json.loads((tmp_path / "out/sweep.json").read_text())["cells"]}
    assert {name: cell["state"] for name, cell in found.items()} == {
        "one/seed-0": "complete", "other/seed-0": "complete", "broken/seed-0": "failed",
    }  # fmt: skip
    assert "the simulator is not installed" in found["broken/seed-0"]["cause"]
    assert "mode: Ray on this machine" in (tmp_path / "out/one/seed-0.log").read_text()

    longer = TABLE.replace("one: {}", "one: {settings: {train: {env_steps: 100000}}}").replace("cores: 1", "cores: 2")
    (tmp_path / "table.yaml").write_text(longer)
    cluster.add_node(num_cpus=2)
    command = Command(tmp_path, *words, **QUIET)
    try:
        one = tmp_path / "out/one/seed-0"
        wait_until(lambda: (state := read_state(one)) and (state.counters.get("env_steps") or 0) > 1100)
        command.interrupt()
        assert command.end() == 130, command.out + command.err
    finally:
        command.kill()
    state = read_state(one)
    assert state is not None
    assert (state.state, state.reason) == ("stopped", "by SIGINT")
    found = {cell["cell"]: cell for cell in json.loads((tmp_path / "out/sweep.json").read_text())["cells"]}
    assert found["one/seed-0"]["state"] == "stopped"
    assert found["broken/seed-0"]["state"] == "stopped", "it waited for the cores that the first one has"
