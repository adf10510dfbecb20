"""Several ranks as one worker: their joint answer, their places, and on Ray a rank that is killed."""

from __future__ import annotations

import gc
import os
import signal
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from patience import PATIENCE_S
from ray.exceptions import RayActorError, RayTaskError
from shared_ray_pool import SharedRayPool, Unscheduled

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import LearnerSettings, Settings
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.deploy.run.prepare_training import prepare_training
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.workers import learner_ranks, placement, ray_pool
from dreamfleet.deploy.workers.learner_ranks import JointAnswer, LearnerRanks
from dreamfleet.deploy.workers.placement import Node, Placement, count_ranks
from dreamfleet.learner.batches import NotFiniteLossError
from dreamfleet.learner.ranks import OtherRankError
from dreamfleet.learner.reports import TrainReport

HEAD = Node("aa" * 28, "10.0.0.1", {"CPU": 8.0, "GPU": 2.0})
OTHER = Node("bb" * 28, "10.0.0.2", {"CPU": 8.0, "GPU": 4.0})


def failed(cause: Exception) -> RayTaskError:
    """Return what Ray raises for an order whose code raised."""
    return RayTaskError("train", "Traceback: ...", cause)


def joint(count: int = 2) -> tuple[list[Future[Any]], Future[Any]]:
    """Return the futures of some ranks, and that of their joint answer, which is a list."""
    given: list[Future[Any]] = [Future() for _ in range(count)]
    return given, JointAnswer(given, list).future


def test_the_answer_is_there_once_all_have_answered() -> None:
    """Rank 0's comes first, whoever was quicker."""
    given, answer = joint()
    given[1].set_result("second")
    assert not answer.done()
    given[0].set_result("first")
    assert answer.result(timeout=0) == ["first", "second"]


def test_answers_that_cannot_be_joined_are_an_error() -> None:
    """It is raised where the answer is wanted; the order is not left without one."""
    given: list[Future[Any]] = [Future()]
    answer = JointAnswer(given, lambda answers: [*answers[0]]).future
    given[0].set_result(None)
    with pytest.raises(TypeError, match="NoneType"):
        answer.result(timeout=0)


class Value:
    """Stands in for a reference to a value of a call."""

    def __init__(self) -> None:
        self.found: Future[Any] = Future()
        self.was_fetched = False

    def future(self) -> Future[Any]:
        self.was_fetched = True
        return self.found


class Handle:
    """Stands in for that of a learner's process that is given one train order."""

    def __init__(self) -> None:
        answer, are_there, held = self.answer, self.are_there, self.held = Value(), Value(), Value()
        self.train = SimpleNamespace(remote=lambda _: answer)
        self.weights = SimpleNamespace(remote=lambda: [are_there, held])


def test_an_answer_comes_once_its_weights_are_there() -> None:
    """The version in the first rank's answer is given the reference to them; they are not fetched."""
    handles = [Handle(), Handle()]
    answer = LearnerRanks(handles).give("train", 3)
    for handle in handles:
        handle.answer.found.set_result(TrainReport(3, {}, {}, published=PublishedWeights(3, None)))
    assert not answer.done()
    handles[0].are_there.found.set_result(None)
    assert answer.result(timeout=0).published == PublishedWeights(3, handles[0].held)
    assert not handles[0].held.was_fetched
    assert not handles[1].are_there.was_fetched


def test_a_process_that_dies_before_its_weights_are_there_has_not_answered(caplog: pytest.LogCaptureFixture) -> None:
    """The order fails, though it was carried out; a learner of one process has no ranks to speak of."""
    handle = Handle()
    answer = LearnerRanks([handle]).give("train", 3)
    handle.answer.found.set_result(TrainReport(3, {}, {}, published=PublishedWeights(3, None)))
    handle.are_there.found.set_exception(RayActorError())
    with pytest.raises(RayActorError):
        answer.result(timeout=0)
    assert not caplog.records


def test_answers_hold_no_weights_that_nobody_has() -> None:
    """They go with the last who lets go of them, and do not wait for Python's collector of cycles."""
    gc.collect()
    gc.disable()
    try:
        handle = Handle()
        held = weakref.ref(handle.held)
        answer = LearnerRanks([handle]).give("train", 3)
        handle.are_there.found.set_result(None)
        handle.answer.found.set_result(TrainReport(3, {}, {}, published=PublishedWeights(3, None)))
        assert answer.result(timeout=0).published.handle is held()
        del handle, answer
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    "error",
    [RayActorError(), failed(NotFiniteLossError("update 4 was not made")), failed(UserError("the disk is full"))],
)
def test_who_blames_another_is_not_the_cause(error: Exception, order: tuple[int, int]) -> None:
    """Rank 0 hears nothing of rank 1, and what befell rank 1 is reported."""
    given, answer = joint()
    errors = [failed(OtherRankError("no answer from another rank")), error]
    for number in order:
        given[number].set_exception(errors[number])
    assert answer.exception(timeout=0) is error


def test_a_failure_is_reported_though_another_rank_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for the one that failed; an answer that comes too late is passed over."""
    monkeypatch.setattr(learner_ranks, "GRACE_S", 0.05)
    given, answer = joint()
    given[0].set_exception(failed(OtherRankError("no answer from another rank")))
    assert answer.exception(timeout=PATIENCE_S) is given[0].exception()
    given[1].set_result("late")


def test_ranks_are_as_many_as_there_are_gpus_and_as_divide_a_batch() -> None:
    """`auto` takes what the learner's node has; a number is taken, or refused in a sentence."""

    def count(gpus: Any, has_gpu: bool = True, nodes: tuple[Node, ...] = (HEAD, OTHER), **more: Any) -> int:
        return count_ranks(LearnerSettings(gpus=gpus, batch_size=12, **more), nodes, nodes[-1], has_gpu)

    assert count("auto") == 4
    assert count("auto", nodes=(HEAD, Node("c", "", {"GPU": 5.0}))) == 4, "5 do not divide 12"
    assert count("auto", has_gpu=False) == 1
    assert count(1, has_gpu=False) == 1
    assert count(6) == 6
    assert count(3, has_gpu=False, device="cpu") == 3
    with pytest.raises(
        UserError, match=r"learner.gpus is 12, but the cluster has 6 GPUs, 4 of them on .*set it to 6 or auto"
    ):
        count(12)
    with pytest.raises(UserError, match=r"12, for as many ranks on CPUs, but .* declares 8 CPUs to Ray: set it to 6"):
        count(12, has_gpu=False, device="cpu")
    with pytest.raises(UserError, match=r"declares no GPU to Ray.*learner.device to cpu for 2 ranks"):
        count(2, has_gpu=False)


@pytest.mark.parametrize(("gpus", "batch", "advice"), [(4, 50, "take 48 or 52, or 2 of them"), (8, 4, "take 8, or 4")])
def test_a_batch_that_does_not_divide_is_refused(gpus: int, batch: int, advice: str) -> None:
    """With what would be right."""
    with pytest.raises(ValueError, match=f"learner.batch_size {batch} cannot be divided among .* {advice}"):
        LearnerSettings(gpus=gpus, batch_size=batch)
    with pytest.raises(ValueError, match="must be a whole number of at least 1, or auto"):
        LearnerSettings(gpus=0)


def test_ranks_are_packed_on_the_learners_node_if_it_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else around it; rank 0 is bound to it in either case, and each has a GPU and no CPU of the actors'."""
    monkeypatch.setattr(placement, "list_nodes", lambda: [HEAD, OTHER])
    monkeypatch.setattr(ray, "get_runtime_context", type("Here", (), {"get_node_id": lambda _: HEAD.id}))
    here = Placement(Settings(learner=LearnerSettings(gpus=2)))
    assert (here.ranks, here.are_together, here.strategy) == (2, True, "STRICT_PACK")
    assert here.rank_bundles() == [{"GPU": 1.0, "node:10.0.0.1": 0.001}, {"GPU": 1.0}]
    apart = Placement(Settings(learner=LearnerSettings(gpus=5)))
    assert (apart.ranks, apart.are_together, apart.strategy) == (5, False, "PACK")
    on_cpus = Placement(Settings(learner=LearnerSettings(gpus=5, device="cpu")))
    assert (on_cpus.are_together, on_cpus.rank_bundles()[1]) == (True, {"CPU": 1.0})
    assert on_cpus.room()[HEAD.id] == 3
    assert Placement(Settings()).learner_options()["scheduling_strategy"].node_id == HEAD.id


def test_one_process_has_no_ranks(tmp_path: Path) -> None:
    """With --inline they are refused."""
    with pytest.raises(UserError, match=r"--inline: learner.gpus is 2, but one process is one rank"):
        prepare_training(RunDirectory(tmp_path / "run"), Settings(learner=LearnerSettings(gpus=2)), True, None)


# On Ray ---------------------------------------------------------------------------------------------------------------


class Assassin(Callbacks):
    """Kills rank 1 once some updates are made; notes where learners begin, and what is saved."""

    def __init__(self, pool: SharedRayPool, at: int) -> None:
        self.pool, self.at, self.killed = pool, at, False
        self.begun: list[int] = []
        self.saved: list[int] = []
        self.decisions: list[str] = []

    def on_start(self, fleet: FleetState, decisions: list[str]) -> None:
        self.begun.append(fleet.ledger.updates)
        self.decisions += decisions

    def on_updates(self, fleet: FleetState, report: Any) -> None:
        assert fleet.ledger.updates <= fleet.ledger.ratio.updates_allowed(self.pool.replay.counters().total_steps)
        worker = fleet.roster.learner.worker
        if fleet.ledger.updates >= self.at and not self.killed and worker:
            self.killed = True
            assert isinstance(worker.target, LearnerRanks)
            os.kill(ray.get(worker.target.handles[1].ping.remote(), timeout=PATIENCE_S), signal.SIGKILL)

    def on_checkpoint(self, fleet: FleetState, facts: dict[str, Any]) -> None:
        self.saved.append(facts["updates"])


@pytest.fixture
def two_ranks_pool(local_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SharedRayPool]:
    """Give a pool whose learner has two ranks on the tests' own Ray."""
    monkeypatch.setattr(ray_pool, "start_ray", lambda *_: None)
    monkeypatch.setattr(ray_pool.ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_pool, "ActorProcess", Unscheduled(ray_pool.ActorProcess))
    settings = Settings.model_validate({
        "seed": 5,
        "env": {"id": "moving_square_environment:make"},
        "actors": {"count": 1, "steps_per_order": 32},
        "replay": {"capacity_gb": 0.1},
        "model": {"encoder": "strided", "depth": 4, "embedding": 16, "deterministic": 16, "stochastic": 4,
                  "hidden": 16, "reward_units": 8},
        "learner": {"batch_size": 4, "sequence_length": 8, "updates_per_order": 3, "device": "cpu", "gpus": 2},
        "train": {"env_steps": 400, "prefill": 100, "ratio": 4.0},
        "records": {"checkpoint_every": 10, "picture_every": 1000},
    })  # fmt: skip
    pool = SharedRayPool(settings, tmp_path / "run")
    yield pool
    pool.close()


@pytest.mark.ray
def test_a_lost_rank_restarts_all_from_the_last_checkpoint(two_ranks_pool: SharedRayPool) -> None:
    """The run ends with exactly the updates that its steps allow, and no process of the first learner is left."""
    pool = two_ranks_pool
    settings = pool._settings
    callbacks = Assassin(pool, at=15)
    begun = time.monotonic()
    fleet = Fleet(pool, FleetConfig.of(settings), Ledger(TrainRatio.of(settings)), [callbacks]).run()
    assert callbacks.killed
    assert callbacks.begun[0] == 0
    assert len(callbacks.begun) == 2
    assert callbacks.begun[1] in callbacks.saved
    assert fleet.ledger.env_steps == 400
    assert fleet.ledger.updates == callbacks.saved[-1] == fleet.ledger.ratio.updates == 37
    assert fleet.roster.restarts == 1
    assert any(sentence.startswith("ranks: 2, each with 2 of 4 sequences") for sentence in callbacks.decisions)
    assert time.monotonic() - begun < PATIENCE_S
