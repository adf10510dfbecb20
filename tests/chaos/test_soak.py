"""What only time shows: outages that are waited out, nodes that leave and come, and sizes that must not grow."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from chaos_run import FAULTS, LENGTH, ChaosRun, chaos_settings
from command_runs import ROOT

from dreamfleet.replay.report import verify

NewRun = Callable[..., ChaosRun]
ENDLESS = {"env_steps": 10_000_000}
SOAK_S = int(os.environ.get("DREAMFLEET_SOAK_S", "480"))
GROWN_MB = 12.0
"""A process may be this much larger after the soak than after its first minute: allocators and caches fill."""


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.hangs_after(1200)
def test_an_outage_of_all_simulators_is_waited_out(new_run: NewRun) -> None:
    """For twenty seconds no environment works; then the run goes on."""
    run = new_run(chaos_settings(train=ENDLESS))
    outage = run.directory.with_name("outage")
    run.settings = chaos_settings(
        env={"kwargs": {"length": LENGTH, "delay_s": 0.002, "outage": str(outage)}}, train=ENDLESS
    )
    run.start()
    run.wait_for_more("updates", 2)
    outage.touch()
    FAULTS["outage of all simulators for 20 s"] += 1
    time.sleep(20.0)
    outage.unlink()
    run.wait_for_more("steps", 10)
    run.wait_for_more("updates", 2)
    run.stop()
    run.check(is_complete=False)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a Ray cluster of one node, with room for the learner and one actor."""
    from ray.cluster_utils import Cluster

    search = [str(ROOT / ".pkg"), str(ROOT / "tests" / "support")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(search))
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield started
    started.shutdown()


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.hangs_after(1800)
def test_nodes_are_lost_and_join(new_run: NewRun, cluster: Any) -> None:
    """Actors vanish with their node, three times, and others start on the next one."""
    run = new_run(chaos_settings(actors={"count": "auto", "environments": 2, "steps_per_order": 8}, train=ENDLESS))
    run.start("--address", cluster.address)
    run.wait_for_more("updates", 1)
    for _ in range(3):
        node = cluster.add_node(num_cpus=2)
        run.wait_for(lambda: "actors: 3 instead of" in run.since, "actors on the new node")
        run.wait_for_more("steps", 10)
        cluster.remove_node(node, allow_graceful=False)
        FAULTS["loss of a node"] += 1
        run.wait_for(lambda: "actors: 1 instead of" in run.since, "the fleet shrank")
        run.wait_for_more("steps", 4)
        run.mark()
    run.stop()
    run.check(is_complete=False)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.hangs_after(SOAK_S + 900)
def test_nothing_grows(new_run: NewRun) -> None:
    """Memory and open files of every process stay level, once the replay is full and drops as much as comes.

    Weights are published every 8 updates and saved every 10, far more often than in a real run.
    """
    train = {"env_steps": 1_000_000_000}
    run = new_run(chaos_settings(train=train, replay={"capacity_steps": 20_000}, records={"log_every_s": 10.0}))
    run.start()
    run.wait_for_more("updates", 2)
    time.sleep(min(60.0, SOAK_S / 4))
    before = sizes_of(run)
    time.sleep(SOAK_S)
    after = sizes_of(run)
    changes = {
        name: f"{before[name][0]:.0f} → {megabytes:.0f} MB, {before[name][1]} → {files} files"
        for name, (megabytes, files) in after.items()
        if name in before
    }
    for name, change in changes.items():
        print(f"{name}: {change}")
    grown = {
        name: change
        for name, change in changes.items()
        if after[name][0] > before[name][0] + GROWN_MB or after[name][1] > before[name][1] + 4
    }
    run.stop()
    print(f"{len(run.witnessed('steps'))} orders of steps and {len(run.witnessed('updates'))} of updates")
    assert verify(run.directory / "replay") == []
    assert not grown, grown


def sizes_of(run: ChaosRun) -> dict[str, tuple[float, int]]:
    """Return memory in MB and open files of each process of the run, by name and id."""
    found, names = {}, Counter[str]()
    for process in run.family():
        try:
            name = process.name()
            found[f"{name} {names[name]}"] = process.memory_info().rss / 1e6, process.num_fds()
            names[name] += 1
        except psutil.Error:
            continue
    return found
