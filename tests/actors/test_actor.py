"""The collecting process: orders, weights and errors as they pass through Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import ray
from chunk_shelf import start_shelf
from patience import PATIENCE_S

from dreamfleet.actors.actor import ActorProcess
from dreamfleet.actors.environment_batch import EnvironmentFailedError
from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.acting.policy import CHANCE, PublishedWeights
from dreamfleet.common.acting.ray_weights import put_weights
from dreamfleet.common.experience.chunk import decode_chunk
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings

MODEL = {"deterministic": 64, "hidden": 64, "stochastic": 4, "vector_units": 16, "embedding": 16, "reward_units": 16}
PLANNER = {"kind": "planner", "candidates": 4, "iterations": 1, "elites": 2, "horizon": 2}


class Owner:
    """Puts weights, which die with it."""

    def put(self, version: int, flat: np.ndarray) -> PublishedWeights:
        """Return weights of this version."""
        return put_weights(version, flat)


def counting(**kwargs: Any) -> Settings:
    return Settings.model_validate({"env": {"id": "counting_environment:make", "kwargs": kwargs, "image_size": 0}})


def start(shelf: Any, settings: Settings) -> Any:
    return ActorProcess.options(num_cpus=0).remote(settings, 1, 2, shelf)  # type: ignore[attr-defined]


def get(reference: Any) -> Any:
    return ray.get(reference, timeout=PATIENCE_S)


def wait_until_lost(reference: Any) -> None:
    """Return once an object whose owner was killed is gone; its node keeps it for a moment longer."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            get(reference)
        except ray.exceptions.ObjectLostError:
            return
        time.sleep(0.2)
    pytest.fail("the object outlived its owner")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_newer_weights_are_adopted_and_lost_ones_leave_the_old() -> None:
    """Versions rise and never fall; weights whose owner died are counted, and collecting goes on."""
    shelf = start_shelf()
    owner = ray.remote(Owner).options(num_cpus=0).remote()
    settings = Settings.model_validate({**counting(length=10).model_dump(), "model": MODEL, "behaviour": PLANNER})
    flat = flatten(AgentNetworks(probe_environment(settings.env), settings).acting_parameters())
    assert flat.nbytes > 100_000, "else they would travel with the order"
    actor = start(shelf, settings)
    three, two, four = (get(owner.put.remote(version, flat)) for version in (3, 2, 4))
    reports = [get(actor.collect.remote(5, weights)) for weights in (None, three, two)]
    ray.kill(owner)
    wait_until_lost(four.handle)
    reports.append(get(actor.collect.remote(5, four)))
    assert [report.version for report in reports] == [CHANCE, 3, 3, 3]
    assert [report.weights_lost for report in reports] == [0, 0, 0, 1]
    step_format = StepFormat(probe_environment(settings.env))
    chunks = [decode_chunk(step_format, record) for record in get(shelf.chunks.remote())]
    assert np.concatenate([chunk["version"] for chunk in chunks]).tolist() == [CHANCE] * 5 + [3] * 15
    assert np.concatenate([chunk["count"][:, 2] for chunk in chunks]).tolist() == [*range(11), *range(9)]
    ray.kill(actor)
    ray.kill(shelf)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_failing_environment_is_named_through_ray() -> None:
    """The caller gets the sentence and the cause's traceback; the process still answers."""
    shelf = start_shelf()
    actor = start(shelf, counting(fail_at=7))
    with pytest.raises(ray.exceptions.RayTaskError) as error:
        get(actor.collect.remote(20, None))
    assert isinstance(error.value.cause, EnvironmentFailedError)
    assert "actor 1, environment 0" in str(error.value.cause)
    assert "told to fail" in str(error.value)
    assert get(actor.ping.remote()) > 0
    ray.kill(actor)
    ray.kill(shelf)


def test_an_actor_imports_no_torch() -> None:
    """Torch would cost each of many actors its memory and seconds of their start."""
    code = "import sys, dreamfleet.actors.actor; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0  # noqa: S603
