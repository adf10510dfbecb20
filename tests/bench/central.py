"""Acting in the actors beside acting for all of them in one process: steps per second, and how old the weights are."""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray

from dreamfleet.actors.inference_process import InferenceProcess
from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.acting.ray_weights import put_weights
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from tests.bench.agents import SPACES, picture_spaces
from tests.bench.central_actors import TIMEOUT_S, Actors
from tests.bench.measure import Bench, say
from tests.bench.ray_session import local_ray
from tests.bench.report import Row

NAME = "central"
METHOD = """
Collectors with an environment of 64×64×3 pictures whose step sleeps for 10 ms, so that it takes no core, in orders of
64 steps; nothing is stored. All run on this machine: up to eight processes with the actors on threads of their own,
each choosing by its own policy on one thread of torch (local), or asking an `InferenceProcess` with a thread for each
core (central), which on a machine without a GPU has no more to compute with than they. A new version of the weights is
published every half second; an actor has it from its next order on, the inference process at once. Steps/s are of all
actors together, over the seconds measured after everybody has begun; the age of the weights is how long a newer
version had been published when a step was taken, 0 for the newest.
"""
_ACTORS = (1, 16, 64)
_MODELS = (("dreamer_v3", "size_1m"), ("dreamer_v3", "size_12m"))
_PROCESSES = 8
_PUBLISH_EVERY_S = 0.5
_STEP_S = 0.01


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures for each model, number of actors, and place to act."""
    with local_ray():
        for presets in _MODELS[: bench.choose(len(_MODELS), 1)]:
            for count in _ACTORS[: bench.choose(len(_ACTORS), 1)]:
                for inference in ("local", "central"):
                    say(f"{NAME}: {presets[1]}, {count} actors, {inference}")
                    yield _row(bench, presets, count, inference)


def _row(bench: Bench, presets: Sequence[str], count: int, inference: str) -> Row:
    """Return the figure of one cell."""
    settings = resolve(
        presets,
        [
            ("env.id", "tests.bench.waiting_pictures:make"),
            ("env.kwargs", f"{{seconds: {_STEP_S}}}"),
            ("actors.inference", inference),
            ("learner.device", "auto"),
        ],
    )
    flat = flatten(AgentNetworks(picture_spaces(SPACES["choice of 6"]), settings).acting_parameters())
    prefix = f"bench-{time.time_ns()}-" if inference == "central" else ""
    process = _start_inference(settings, prefix) if prefix else None
    processes = min(count, _PROCESSES)
    actors = [
        Actors.remote(settings, list(range(number, count, processes)), prefix)  # type: ignore[attr-defined]
        for number in range(processes)
    ]
    acted, published, begun, ended = _play(bench.choose(8, 2), actors, process, flat)
    for each in [*actors, *([process] if process else [])]:
        ray.kill(each)
    within = [(when, version) for when, version in acted if begun <= when < ended]
    ages = [_age(when, version, published) for when, version in within]
    what = f"{presets[1]}, {count} actor{'s' * (count > 1)}, {inference}"
    rate = f"{len(within) / (ended - begun):,.0f} steps/s"
    return Row(NAME, what, rate, f"age of the weights {1e3 * np.mean(ages):,.0f} ms, {_ninth(ages)} for one in ten")


def _play(
    seconds: float, actors: list[Any], process: Any, flat: np.ndarray
) -> tuple[list[tuple[float, int]], list[tuple[int, float]], float, float]:
    """Have all act for some seconds; return the steps, the versions with their times, and what counts."""
    published: list[tuple[int, float]] = []

    def publish() -> tuple[PublishedWeights, Any]:
        weights = put_weights(len(published), flat)
        published.append((weights.version, time.time()))
        return weights, process.adopt.remote(weights) if process else None

    weights, adopting = publish()
    if process:
        ray.get(adopting, timeout=TIMEOUT_S)
    ray.get([each.begin.remote(weights) for each in actors], timeout=TIMEOUT_S)
    time.sleep(3 * _PUBLISH_EVERY_S + seconds / 4)
    begun = time.time()
    held = [weights]
    while time.time() < begun + seconds:
        weights, _ = publish()
        held = [*held[-3:], weights]
        ray.get([each.publish.remote(weights) for each in actors], timeout=TIMEOUT_S)
        time.sleep(_PUBLISH_EVERY_S)
    ended = time.time()
    acted = [step for steps in ray.get([each.end.remote() for each in actors], timeout=TIMEOUT_S) for step in steps]
    return acted, published, begun, ended


def _age(when: float, version: int, published: Sequence[tuple[int, float]]) -> float:
    """Return for how many seconds a newer version had been published; 0 if there was none."""
    after = bisect.bisect_right(published, (version, float("inf")))
    return max(0.0, when - published[after][1]) if after < len(published) else 0.0


def _ninth(ages: Sequence[float]) -> str:
    return f"≥ {1e3 * float(np.quantile(ages, 0.9)):,.0f} ms"


def _start_inference(settings: Settings, prefix: str) -> Any:
    threads = str(len(os.sched_getaffinity(0)))
    options = {"name": f"{prefix}1", "num_cpus": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}}}
    process_class: Any = InferenceProcess
    return process_class.options(**options).remote(settings, picture_spaces(SPACES["choice of 6"]).to_json())
