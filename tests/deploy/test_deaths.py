"""Every death of a process of a run is named, once, in the log and in the status: who, why, what it left, how long."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from simulated_pool import SimulatedPool

from dreamfleet.actors.environments.user_code import describe
from dreamfleet.common.formatting import MOST_TEXT
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.deploy.monitoring.progress import Console, open_log
from dreamfleet.deploy.monitoring.run_status import read_run_status
from dreamfleet.deploy.monitoring.status import describe as describe_status
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import StateWriter
from dreamfleet.deploy.workers.pool import LONGEST_TRACE, ReplayChange, WorkerFailedError

CONFIG = FleetConfig(
    actors=3, environments=1, steps_per_order=16, updates_per_order=4, checkpoint_every=20, picture_every=1000,
    actor_timeout_s=30.0, learner_timeout_s=60.0, evaluate_every=300,
)  # fmt: skip
RATIO = TrainRatio(ratio=8.0, replayed_per_update=40, prefill=100, env_steps=1003)


class Recorder(Callbacks):
    """Gives deaths to the run's state as they happen, and lets the replay die once."""

    def __init__(self, pool: SimulatedPool, state: StateWriter) -> None:
        self.pool, self.state = pool, state
        self.moments = [3.0, 7.5]

    def on_turn(self, fleet: FleetState) -> None:
        self.state.died(fleet.roster.deaths.summary())
        if self.moments and self.pool.now > self.moments[0]:
            self.moments.pop(0)
            self.pool.changes.append(ReplayChange("replay", "crashed" if self.moments else ""))


def test_each_death_is_named_once_with_all_that_is_known(tmp_path: Path) -> None:
    """An actor, the replay, the learner and the evaluator: in the log, and in the status beside the warnings."""
    run = RunDirectory(tmp_path / "run")
    run.create()
    pool = SimulatedPool(
        lose=lambda actor, order: "lost" if order == 8 else "", lose_learner_at=[70],
        lose_evaluation=lambda evaluation: evaluation == 1, seconds_per_step=0.05,
    )  # fmt: skip
    with open_log(Console(), run.log_file), StateWriter(run.path, "train", 5.0) as state:
        fleet = Fleet(pool, CONFIG, Ledger(RATIO), [Recorder(pool, state)], clock=pool.clock).run()
    log = run.log_file.read_text()
    found = {death.who: death for death in read_run_status(run).deaths.last}
    assert {who.rstrip("012") for who in found} == {"actor ", "replay", "learner", "evaluator"}
    assert fleet.roster.deaths.count == 4
    for who, death in found.items():
        assert len(re.findall(rf"WARNING {who} is re(?:placed|started): ", log)) == 1
        assert death.replaced_after_s is not None
        assert f"{who} works again, {death.replaced_after_s:.1f} s after it was lost" in log
        if who.startswith("actor"):
            assert death.node == "a simulated node"
            assert death.steps_in_doubt in {16, 32}
            assert f"; {death.steps_in_doubt} steps in doubt" in log
        if who == "learner":
            assert 0 < death.updates_again <= 20 + 8
        if who == "replay":
            assert death.cause == "crashed"
            assert 4.0 < death.replaced_after_s < 6.0
    status = "\n".join(describe_status(read_run_status(run), 0.0))
    assert "lost         4 processes since this start:" in status
    for who in found:
        assert len(re.findall(rf"\d {who}(?: \(on .*\))?: ", status)) == 1, "not among the warnings, too"
    assert re.search(r"learner: .*; \d+ updates to be made again; replaced after 1\.\d s", status)


def test_a_process_that_is_not_replaced_yet_is_said_to_be_so(tmp_path: Path) -> None:
    """At the end of a run that fails for want of actors, their last deaths are open."""
    run = RunDirectory(tmp_path / "run")
    run.create()
    pool = SimulatedPool(lose=lambda actor, order: "failed")
    with open_log(Console(), run.log_file), StateWriter(run.path, "train", 5.0) as state, pytest.raises(Exception):  # noqa: B017, PT011
        Fleet(pool, CONFIG, Ledger(RATIO), [Recorder(pool, state)], clock=pool.clock).run()
    shown = "\n".join(describe_status(read_run_status(run), 0.0))
    assert re.search(r"lost +\d\d processes since this start, at last:", shown)
    assert "ZeroDivisionError: simulated; 32 steps in doubt; not replaced yet" in shown


def test_texts_of_any_length_are_cut(tmp_path: Path) -> None:
    """An error of 200 kB, raised again and again, makes a short log and a short status."""
    run = RunDirectory(tmp_path / "run")
    run.create()
    text = "b" * 200_000
    assert len(describe(ValueError(text))) < MOST_TEXT + 100
    error = WorkerFailedError(ValueError(text), f"Traceback:\n  File x\nValueError: {text}\n" * 3)
    assert len(error.trace) <= LONGEST_TRACE
    assert len(str(error)) <= MOST_TEXT
    pool = SimulatedPool(lose=lambda actor, order: "failed")
    pool.result = lambda future: _fail_collecting(future, error)  # type: ignore[method-assign]
    with open_log(Console(), run.log_file), StateWriter(run.path, "train", 5.0) as state, pytest.raises(Exception):  # noqa: B017, PT011
        Fleet(pool, CONFIG, Ledger(RATIO), [Recorder(pool, state)], clock=pool.clock).run()
    assert run.log_file.stat().st_size < 100_000
    status = read_run_status(run)
    assert len(status.model_dump_json()) < 60_000
    assert sum(map(len, describe_status(status, 0.0))) < 5_000


def _fail_collecting(future: Any, error: Exception) -> Any:
    answer = future.finish()
    if answer == "a simulated node":
        return answer
    raise error


def test_a_state_of_before_deaths_were_kept_is_read(tmp_path: Path) -> None:
    """state.json of an earlier version has none: nothing is said of them."""
    run = RunDirectory(tmp_path / "run")
    run.create()
    with StateWriter(run.path, "train", 5.0):
        pass
    file = run.path / "state.json"
    file.write_text(re.sub(r'"deaths": \{[^}]*\},', "", file.read_text()))
    assert "deaths" not in file.read_text()
    assert read_run_status(run).deaths.count == 0
    logging.getLogger("dreamfleet").debug("read")
    assert dataclasses.is_dataclass(CONFIG)
