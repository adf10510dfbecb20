"""The service on Ray, with real actors and a real replay: what it promises of its steps, undisturbed and under faults.

A learner that checks every sequence stands where the real one stands.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counted_streams import faults_of, read_streams
from shared_ray_pool import Attendant, SharedRayPool, share_ray
from simulated_pool import SimulatedPool

from dreamfleet.actors.collector import CollectorBrokenError, build_collector
from dreamfleet.actors.environment_batch import EnvironmentFailedError
from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.deploy.workers.pool import Worker, WorkerFailedError, WorkerLostError
from dreamfleet.replay.interface import DirectChunkWriter
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.report import verify

LENGTH = 23
"""Actions per episode: chunks, orders and sequences end everywhere in it."""
HELD_OUT_EVERY = 4
Plot = Callable[[FleetState, Attendant], Iterator[None]]
RunFleet = Callable[..., tuple[FleetState, Attendant]]


def settings_of(
    env_steps: int = 1_000_000, ratio: float = 4.0, order_timeout_s: float = 300.0, **kwargs: Any
) -> Settings:
    """Return settings of 2 actors with 2 environments each; `kwargs` are the environment's."""
    return Settings.model_validate({
        "seed": 5,
        "env": {"id": "faulty_environment:make", "kwargs": {"length": LENGTH, **kwargs}},
        "actors": {"count": 2, "environments": 2, "steps_per_order": 9, "order_timeout_s": order_timeout_s},
        "replay": {"capacity_gb": 0.1, "held_out_every": HELD_OUT_EVERY},
        "learner": {"batch_size": 4, "sequence_length": 12, "updates_per_order": 3, "device": "cpu"},
        "train": {"env_steps": env_steps, "prefill": 200, "ratio": ratio},
        "records": {"checkpoint_every": 15, "picture_every": 1000},
    })  # fmt: skip


@pytest.fixture
def run_fleet(local_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RunFleet]:
    """Run a whole fleet with an attendant and a plot, check what must hold of any run, and return both."""
    share_ray(monkeypatch)
    pools = []

    def run(settings: Settings, plot: Plot | None = None) -> tuple[FleetState, Attendant]:
        pool = SharedRayPool(settings, tmp_path)
        pools.append(pool)
        attendant = Attendant(pool, plot)
        fleet = Fleet(pool, FleetConfig.of(settings), Ledger(TrainRatio.of(settings)), [attendant]).run()
        pools.pop().close()
        assert_exact(tmp_path, settings, fleet, attendant)
        return fleet, attendant

    yield run
    for pool in pools:
        pool.close()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Return what the fleet loop logs, a message each."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("dreamfleet")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def assert_exact(path: Path, settings: Settings, fleet: Fleet, attendant: Attendant) -> None:
    """Assert that steps and updates are exact, and that every step is stored once, in the order of play."""
    assert fleet.ledger.env_steps == fleet.ledger.ratio.env_steps
    assert fleet.ledger.updates == fleet.ledger.ratio.updates == attendant.saved_at[-1]
    assert verify(path / "replay") == []
    streams = read_streams(path / "replay", StepFormat(probe_environment(settings.env)))
    assert sum(len(steps["reward"]) for steps in streams.values()) == fleet.ledger.env_steps
    for key, steps in streams.items():
        assert faults_of(steps, LENGTH) == [], key
        assert steps["count"][0, 1:].tolist() == [0, 0, 0], f"{key} does not begin at the beginning of its incarnation"
    seeds = [steps["count"][0, 0] for steps in streams.values()]
    assert len(set(seeds)) == len(seeds), "one incarnation is stored under two names"
    for (actor, incarnation), acknowledged in attendant.acknowledged.items():
        stored = sum(len(streams[actor, incarnation, k]["reward"]) for k in range(2))
        assert stored >= acknowledged, f"actor {actor} in incarnation {incarnation}: acknowledged steps are lost"


@pytest.mark.ray
def test_counting(run_fleet: RunFleet, tmp_path: Path) -> None:
    """Undisturbed, every step is stored once, all that is sampled was played so, and the ratio holds at all times."""

    def see_both_at_work(fleet: Fleet, attendant: Attendant) -> Iterator[None]:
        while fleet.ledger.env_steps < 900 or len(attendant.acknowledged) < 2:
            yield

    model = {"deterministic": 8, "hidden": 8, "stochastic": 4, "depth": 2, "embedding": 8, "vector_units": 8}
    planner = {"kind": "planner", "candidates": 4, "iterations": 1, "elites": 2, "horizon": 2}
    settings = Settings.model_validate(
        settings_of(delay_s=0.001).model_dump() | {"model": model, "behaviour": planner}
    )  # so that published weights act
    fleet, attendant = run_fleet(settings, see_both_at_work)
    config, ratio = FleetConfig.of(settings), fleet.ledger.ratio
    in_flight = 2 * config.actors * config.steps_per_order
    ahead = [updates for steps, updates in attendant.ahead if ratio.prefill + in_flight < steps < ratio.env_steps]
    assert len(ahead) > 10
    queue = 2 * config.updates_per_order
    assert max(ahead) <= 2 * queue + in_flight * ratio.ratio / ratio.replayed_per_update + 1
    assert sum(attendant.acknowledged.values()) == ratio.env_steps, "what was acknowledged is what is stored"
    assert sorted(attendant.acknowledged) == [(0, 0), (1, 1)]
    assert fleet.roster.restarts == 0
    assert attendant.restored_from == [0]
    assert 100 < attendant.last_facts["held_out"] < attendant.last_facts["trained_on"]
    streams = read_streams(tmp_path / "replay", StepFormat(probe_environment(settings.env)))
    versions = np.concatenate([steps["version"] for steps in streams.values()])
    assert 0 < versions.max() < fleet.ledger.updates
    assert len(set(versions.tolist())) > 3


@pytest.mark.ray
def test_sigkill_of_each_process_loses_and_doubles_nothing(run_fleet: RunFleet, logged: list[str]) -> None:
    """An actor, the replay and the learner are killed one after the other; each is restarted, totals are exact."""
    at_kill: dict[str, int] = {}

    def kill_each(fleet: Fleet, attendant: Attendant) -> Iterator[None]:
        pool: Any = fleet.pool
        while fleet.ledger.updates < 20 or not all(attendant.incarnations_of(actor) for actor in (0, 1)):
            yield
        assert fleet.roster.actors[0].worker
        pool.kill_process(fleet.roster.actors[0].worker)
        while len(attendant.incarnations_of(0)) < 2:
            yield
        before = fleet.ledger.updates
        pool.kill_replay()
        while fleet.ledger.updates < before + 20:
            yield
        assert fleet.roster.learner.worker
        pool.kill_process(fleet.roster.learner.worker)
        at_kill.update(updates=fleet.ledger.updates, saved=attendant.saved_at[-1])
        while len(attendant.restored_from) < 2 or fleet.ledger.updates < at_kill["updates"]:
            yield

    settings = settings_of(ratio=3.0, delay_s=0.004)
    fleet, attendant = run_fleet(settings, kill_each)
    assert fleet.roster.restarts == 3, "an actor, the learner, and the replay, which Ray restarts"
    assert attendant.incarnations_of(0) == [0, 2]
    assert attendant.incarnations_of(1) == [1]
    assert 0 < at_kill["saved"] <= attendant.restored_from[1] <= at_kill["updates"] + 6, "from the last checkpoint"
    for who, fate in (("actor 0", "replaced"), ("replay", "restarted"), ("learner", "replaced")):
        named = [message for message in logged if message.startswith(f"{who} is {fate}")]
        assert len(named) == 1, "once each"
        assert "killed without a word of its own, as by SIGKILL" in named[0]
    deaths = fleet.roster.deaths.summary()
    assert sorted(death.who for death in deaths.last) == ["actor 0", "learner", "replay"]  # once each, as noticed
    assert all(death.replaced_after_s is not None and death.replaced_after_s < 60.0 for death in deaths.last)


@pytest.mark.ray
def test_environments_that_fail_or_hang_are_replaced(run_fleet: RunFleet, logged: list[str], tmp_path: Path) -> None:
    """One environment raises and another hangs: each actor is named in the log, with the traceback, and replaced."""
    (tmp_path / "claims").mkdir()
    sentences = "failed in episode 2 at step 14: RuntimeError: the wheel came off", "it gave no answer for 4 s"

    def see_both_replaced(fleet: Fleet, attendant: Attendant) -> Iterator[None]:
        while not all(any(sentence in message for message in logged) for sentence in sentences):
            yield
        incarnations = len(attendant.acknowledged)
        while len(attendant.acknowledged) == incarnations:
            yield

    settings = settings_of(
        ratio=1.0, delay_s=0.002, order_timeout_s=4.0,
        faults={"raise": 60, "hang": 61}, claims=str(tmp_path / "claims"),
    )  # fmt: skip
    fleet, _ = run_fleet(settings, see_both_replaced)
    assert fleet.roster.restarts >= 2, "and more where a busy machine makes a whole actor wait for 4 s"
    failed = [message for message in logged if re.match(r"actor [01] failed:\n", message)]
    assert len(failed) == 1
    assert re.search(r'faulty_environment.py", line \d+, in step(.|\n)*RuntimeError: the wheel came off', failed[0])
    assert "\x1b" not in failed[0], "no colours in a log"
    replaced = [message for message in logged if "is replaced" in message]
    assert all(any(sentence in message for message in replaced) for sentence in sentences)


@pytest.mark.ray
def test_an_environment_that_only_the_actors_lack_ends_the_run_with_one_sentence(run_fleet: RunFleet) -> None:
    """Where the driver has the environment and the actors' machine has not, the user hears why, and not of Ray."""
    settings = settings_of(works_in=os.getpid())
    with pytest.raises(UserError) as caught:
        run_fleet(settings)
    assert re.fullmatch(
        r"env.id 'faulty_environment:make' could not be made .*: the simulator is not .*", str(caught.value)
    )


SIMULATED = FleetConfig(
    actors=2, environments=1, steps_per_order=16, updates_per_order=4, checkpoint_every=20, picture_every=1000,
    actor_timeout_s=3.0, learner_timeout_s=60.0,
)  # fmt: skip
RATIO = TrainRatio(ratio=8.0, replayed_per_update=40, prefill=100, env_steps=503)


class LosesItsLastSave(SimulatedPool):
    """A pool whose learner dies while it writes the checkpoint after the last update."""

    last_saves = 0

    def _save(self, worker: Worker, facts: dict[str, Any]) -> tuple[float, Callable[[], Any]]:
        seconds, finish = super()._save(worker, facts)

        def die_or_finish() -> Any:
            self.last_saves += self.updates == RATIO.updates
            if self.last_saves == 1:
                raise WorkerLostError("the simulated learner died")
            return finish()

        return seconds, die_or_finish


class StartsSlowly(SimulatedPool):
    """A pool whose processes take ten times the actors' time limit to start."""

    def _started(self, worker: Worker) -> Worker:
        started = super()._started(worker)
        self._free_at[worker] += 30.0
        return started


def test_a_learner_that_dies_in_its_last_checkpoint_makes_it_again() -> None:
    """A run does not count as finished before its last update is saved."""
    pool = LosesItsLastSave()
    fleet = Fleet(pool, SIMULATED, Ledger(RATIO), clock=pool.clock).run()
    assert fleet.roster.restarts == 1
    assert pool.saved["updates"] == RATIO.updates == 80


def test_a_learner_that_always_dies_at_the_same_update_ends_the_run() -> None:
    """Updates made again after a restart are no progress: the run fails instead of going round for ever."""
    pool = SimulatedPool(lose_learner_at=[14] * 1000)
    fleet = Fleet(pool, SIMULATED, Ledger(RATIO), clock=pool.clock, should_stop=lambda: pool.now > 10_000)
    with pytest.raises(RunFailedError, match="the learner failed again and again"):
        fleet.run()


def test_a_slow_start_is_not_taken_for_a_hang() -> None:
    """An actor's time limit counts from when its process is up, however long that takes on a busy machine."""
    pool = StartsSlowly()
    fleet = Fleet(pool, SIMULATED, Ledger(RATIO), clock=pool.clock).run()
    assert fleet.roster.restarts == 0


def test_a_traceback_is_logged_once(logged: list[str]) -> None:
    """When an environment fails again and again in the same place, the log shows the traceback once."""
    pool = SimulatedPool(lose=lambda actor, order: "failed" if order % 5 == 0 else "")
    fleet = Fleet(pool, SIMULATED, Ledger(RATIO), clock=pool.clock).run()
    assert fleet.roster.restarts > 2
    assert len([message for message in logged if "Traceback" in message]) == 1
    assert len([message for message in logged if "is replaced" in message]) == fleet.roster.restarts


def test_a_worker_that_finds_the_input_at_fault_leaves_a_checkpoint() -> None:
    """When the run ends with a user's error or a failure of its own, what was learnt until then is saved."""

    class RefusesLate(SimulatedPool):
        def _collect(
            self, worker: Worker, steps: int, weights: PublishedWeights | None
        ) -> tuple[float, Callable[[], Any]]:
            seconds, finish = super()._collect(worker, steps, weights)
            return seconds, finish if self.updates < 30 else refuse

    def refuse() -> Any:
        raise WorkerFailedError(UserError("the disk is full"), "trace")

    pool = RefusesLate()
    fleet = Fleet(pool, SIMULATED, Ledger(RATIO), clock=pool.clock)
    with pytest.raises(UserError, match="the disk is full"):
        fleet.run()
    assert pool.saved["updates"] == pool.updates >= 30
    assert pool.saved["updates"] % SIMULATED.checkpoint_every, "a checkpoint that was not due by itself"


def test_a_stop_saves_before_it_waits_for_slow_actors() -> None:
    """An actor that hangs while the run stops keeps no learner from saving, and is waited for a minute at most."""
    saved_at: list[float] = []

    class Orders(Callbacks):
        def on_checkpoint(self, fleet: FleetState, facts: dict[str, Any]) -> None:
            saved_at.append(pool.now)

    pool = SimulatedPool(lose=lambda actor, order: "hung" if order == 24 else "")
    patient = dataclasses.replace(SIMULATED, actor_timeout_s=300.0)
    stopped_at = 12.0
    fleet = Fleet(
        pool, patient, Ledger(RATIO), [Orders()], should_stop=lambda: pool.now > stopped_at, clock=pool.clock
    ).run()
    assert pool.saved["updates"] == fleet.ledger.updates > 0
    assert stopped_at < saved_at[-1] < stopped_at + 5
    assert pool.now < stopped_at + 70


def test_an_order_queued_behind_one_that_failed_stores_no_gap(tmp_path: Path) -> None:
    """An actor has two orders at a time: after the first failed, the second must not go on without the lost steps."""
    settings = settings_of()
    step_format = StepFormat(probe_environment(settings.env))
    replay = Replay(tmp_path, step_format, settings.replay, settings.learner.sequence_length, settings.seed)
    collector = build_collector(settings, 0, 0, DirectChunkWriter(replay))
    collector.collect(41)
    second = collector._environments.environments[1]
    step = second.step

    def fail_once(action: Any) -> Any:
        second.step = step  # type: ignore[method-assign]
        raise RuntimeError("the wheel came off")

    second.step = fail_once  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFailedError, match="the wheel came off"):
        collector.collect(40)
    with pytest.raises(CollectorBrokenError):
        collector.collect(40)
    replay.close()
    for key, steps in read_streams(tmp_path, step_format).items():
        assert faults_of(steps, LENGTH) == [], key
