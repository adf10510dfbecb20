"""Central inference on Ray, with real actors, a real replay and a real process that acts: what is promised of steps."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from counted_streams import faults_of, read_streams
from patience import PATIENCE_S, wait_until
from shared_ray_pool import Attendant, SharedRayPool, share_ray

from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.actors.inference_client import AsksByName
from dreamfleet.actors.inference_process import InferenceProcess
from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.acting.ray_weights import put_weights
from dreamfleet.common.acting.remote_policy import InferenceLostError, Question, RetiredError
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.replay.report import verify

LENGTH = 23
SMALL_MODEL = {"deterministic": 8, "stochastic": 3, "hidden": 8, "vector_units": 8, "reward_units": 8}


def settings_of(**kwargs: Any) -> Settings:
    """Return settings of 2 actors with 2 environments each, which act centrally; `kwargs` are the environment's."""
    return Settings.model_validate({
        "seed": 5,
        "env": {"id": "faulty_environment:make", "kwargs": {"length": LENGTH, **kwargs}},
        "actors": {"count": 2, "environments": 2, "steps_per_order": 9, "inference": "central"},
        "replay": {"capacity_gb": 0.1, "held_out_every": 4},
        "model": {**SMALL_MODEL, "encoder": "strided", "depth": 2, "embedding": 8},
        "behaviour": {"kind": "actor_critic", "units": 8, "actor_layers": 1},
        "learner": {"batch_size": 4, "sequence_length": 12, "updates_per_order": 3, "device": "cpu"},
        "train": {"env_steps": 1_000_000, "prefill": 200, "ratio": 4.0},
        "records": {"checkpoint_every": 15, "picture_every": 1000},
    })  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_no_step_is_lost_with_the_process_that_acts_or_with_an_actor(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The process that acts is killed, then an actor; episodes go on, and the loss is named in the log."""
    share_ray(monkeypatch)
    settings = settings_of(delay_s=0.002)
    pool = SharedRayPool(settings, tmp_path)

    def plot(fleet: Any, attendant: Attendant) -> Iterator[None]:
        while fleet.ledger.updates < 20 or fleet.roster.inference.version < 0:
            yield
        assert fleet.roster.inference.worker
        pool.kill_process(fleet.roster.inference.worker)
        while fleet.can_act:
            yield
        before = fleet.ledger.env_steps
        while not fleet.can_act or fleet.ledger.env_steps < before + 200:
            yield
        assert fleet.roster.actors[0].worker
        pool.kill_process(fleet.roster.actors[0].worker)
        while len(attendant.incarnations_of(0)) < 2:
            yield

    attendant = Attendant(pool, plot)
    with caplog.at_level(logging.INFO, "dreamfleet"):
        fleet = Fleet(pool, FleetConfig.of(settings), Ledger(TrainRatio.of(settings)), [attendant]).run()
    pool.close()
    assert fleet.ledger.env_steps == fleet.ledger.ratio.env_steps
    assert fleet.ledger.updates == fleet.ledger.ratio.updates
    assert fleet.roster.restarts == 2, "the process that acts and one actor; the other actors waited and went on"
    assert attendant.incarnations_of(1) == [1]
    assert verify(tmp_path / "replay") == []
    streams = read_streams(tmp_path / "replay", StepFormat(probe_environment(settings.env)))
    assert sum(len(steps["reward"]) for steps in streams.values()) == fleet.ledger.env_steps
    for key, steps in streams.items():
        assert faults_of(steps, LENGTH) == [], key
    versions = np.concatenate([steps["version"] for steps in streams.values()])
    assert 0 < versions.max() <= fleet.ledger.updates
    assert len(set(versions.tolist())) > 3
    assert any("inference is replaced: its process was lost" in message for message in caplog.messages)
    assert any("states of all environments begin at zero" in message for message in caplog.messages)


BOX = Spaces((ObservationSpec("vector", (4,), "float32"),), ActionSpec("box", (2,), (-2.0, 0.0), (2.0, 1.0), (2,)))


@pytest.fixture
def processes(local_ray: None) -> Iterator[list[Any]]:
    """Processes that are ended with the test."""
    started: list[Any] = []
    yield started
    for process in started:
        ray.kill(process)


def small_settings() -> Settings:
    return Settings.model_validate({
        "model": SMALL_MODEL,
        "behaviour": {"kind": "actor_critic", "units": 8, "actor_layers": 1},
        "learner": {"device": "cpu"},
    })  # fmt: skip


def start(processes: list[Any], name: str) -> Any:
    process_class: Any = InferenceProcess
    process = process_class.options(name=name, num_cpus=0).remote(small_settings(), BOX.to_json())
    processes.append(process)
    return process


def weights_of(version: int) -> PublishedWeights:
    return put_weights(version, flatten(AgentNetworks(BOX, small_settings()).acting_parameters()))


def question(actor: int = 0, incarnation: int = 0) -> Question:
    observations = {"vector": np.ones((3, 4), np.float32)}
    return Question(actor, incarnation, 0, observations, np.ones(3, bool))


@pytest.mark.ray
def test_the_newest_process_is_asked_and_tells_what_it_did(processes: list[Any]) -> None:
    """Who asks before the first weights waits for them; versions, states and reports are those of the one that acts."""
    ask = AsksByName("asked-")
    with pytest.raises(InferenceLostError, match="there is none at the moment"):
        ask(question(), 1.0)
    process = start(processes, "asked-9")
    with pytest.raises(InferenceLostError, match=r"[Tt]ime"):
        ask(question(), 2.0)
    assert ray.get(process.adopt.remote(weights_of(4)), timeout=PATIENCE_S)
    answer = ask(question(), PATIENCE_S)
    assert (answer.version, answer.actions.shape) == (4, (3, 2))
    assert ray.get(process.adopt.remote(weights_of(8)), timeout=PATIENCE_S)
    assert ask(question(1, 1), PATIENCE_S).version == 8
    report = ray.get(process.report.remote(), timeout=PATIENCE_S)
    assert (report.clients, report.version) == (2, 8)
    assert report.steps in (6, 9), "the question that was given up may have been answered too"
    ray.get(process.forget.remote(1, 1), timeout=PATIENCE_S)
    with pytest.raises(RetiredError):
        ask(question(1, 1), PATIENCE_S)
    successor = start(processes, "asked-10")
    ray.get(successor.adopt.remote(weights_of(12)), timeout=PATIENCE_S)
    os.kill(ray.get(process.ping.remote(), timeout=PATIENCE_S), signal.SIGKILL)

    def is_answered_by_the_successor() -> bool:
        try:
            return ask(question(), PATIENCE_S).version == 12
        except InferenceLostError:
            return False

    wait_until(is_answered_by_the_successor)


@pytest.mark.ray
def test_weights_that_are_lost_and_answers_that_fail_are_told(processes: list[Any]) -> None:
    """Weights of a dead owner leave the old ones; a failure of the networks is the answer to the next report."""
    process = start(processes, "fails-1")
    ray.get(process.adopt.remote(weights_of(1)), timeout=PATIENCE_S)
    ask = AsksByName("fails-")
    with pytest.raises(InferenceLostError, match="answering failed"):
        ask(question()._replace(observations={"vector": np.ones((3, 5), np.float32)}), PATIENCE_S)
    with pytest.raises(Exception, match="RuntimeError"):
        ray.get(process.report.remote(), timeout=PATIENCE_S)
