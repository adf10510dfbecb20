"""Whole runs on Ray whose processes are frozen before a Ctrl-C, or whose control process is killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from command_runs import Command, write_workshop
from patience import wait_until

from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import read_state
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.replay.report import describe, verify

NAMES = {
    "actor": "ray::ActorProcess",
    "learner": "ray::LearnerProcess",
    "replay": "ray::ReplayServer",
    "control": "gcs_server",
}
ALLOWED_S = 60.0
"""For what takes 16 to 27 s on a machine that others use, and 30 s are allowed on an idle one."""


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("kind", NAMES)
def test_nothing_that_hangs_holds_up_the_end(tmp_path: Path, kind: str) -> None:
    """The run ends soon, says why, saves what its learner has if that lives, and its state says how far it came."""
    write_workshop(tmp_path)
    arguments = ("train", "--preset", "tiny.yaml", "--run", "run", "--train.env_steps", "1000000")
    command = Command(tmp_path, *arguments, RAY_AUTH_MODE="disabled")
    try:
        command.wait_for("checkpoint at update", 2)
        hit = [process for process in command.family() if NAMES[kind] in " ".join(process.cmdline())]
        assert hit
        for process in hit:
            process.send_signal(signal.SIGKILL if kind == "control" else signal.SIGSTOP)
        begun = time.monotonic()
        if kind != "control":
            time.sleep(1.0)
            command.interrupt()
        assert command.end() == (1 if kind == "control" else 130)
        assert time.monotonic() - begun < ALLOWED_S
        wait_until(lambda: not any(process.is_running() for process in hit), "a frozen process is left")
    finally:
        command.kill()
    run = RunDirectory(tmp_path / "run")
    state, found = read_state(run.path), CheckpointStore(run.checkpoints, kept=1).load_newest()
    assert state
    assert found
    assert state.state == ("failed" if kind == "control" else "stopped")
    assert state.counters["updates"] == found[1]["updates"]
    assert verify(run.replay) == []
    stored = sum(
        describe(folder)["steps"] for folder in [run.replay, *run.replay.glob("shard-*")] if list(folder.glob("*.dfl"))
    )
    assert stored == state.counters["env_steps"]
    if kind == "control":
        assert "Ray's control process (GCS)" in state.reason
    else:
        assert {death.cause for death in state.deaths.last} == {"it gave no answer for 15 s, and the run is to end"}
