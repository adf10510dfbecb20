"""Asks all nodes of a cluster at once what they are like; one that does not answer costs a time limit, no more."""

from __future__ import annotations

import importlib
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor import check_node
from dreamfleet.deploy.doctor.check_node import MachineFacts
from dreamfleet.deploy.workers.placement import Node, list_nodes

ANSWER_S = 60.0
"""A node that has not answered for so long counts as silent: starting a worker and an environment takes seconds."""
FETCH_S = 5.0
_PINGS = 11


@dataclass
class NodeAnswer:
    """What a node of a cluster answered; what it did not answer is None, and `silent` says why.

    Attributes:
        node: its id, its address and the resources that it declared.
        is_driver: whether this process runs on it.
        machine: `MachineFacts`.
        environment: see `environment_facts`.
        round_trip_s: median time of an empty call from here.
        clock_ahead_s: its clock less this machine's.
        silent: for each question without an answer, a sentence.
    """

    node: Node
    is_driver: bool = False
    machine: MachineFacts | None = None
    environment: dict[str, Any] | None = None
    round_trip_s: float | None = None
    clock_ahead_s: float = 0.0
    silent: dict[str, str] = field(default_factory=dict)


def ask_nodes(settings: Settings, directory: str, answer_s: float = ANSWER_S) -> list[NodeAnswer]:
    """Ask all nodes of the cluster that this process has joined; the driver's node comes first.

    Args:
        settings: the run's.
        directory: the run's, absolute.
        answer_s: how long all nodes together may take.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = sorted(list_nodes(), key=lambda node: node.id != here)
    ray.cloudpickle.register_pickle_by_value(check_node)
    try:
        examiners = [_start(ray.remote(check_node.Examiner), node.id).remote() for node in nodes]
        machines = [examiner.machine.remote(directory) for examiner in examiners]
        plain = settings.env.model_dump()
        trial = ray.remote(max_retries=0)(check_node.environment_facts)
        environments = [_start(trial, node.id).remote(plain) for node in nodes]
    finally:
        ray.cloudpickle.unregister_pickle_by_value(check_node)
    asked = [*machines, *environments]
    ray.wait(asked, num_returns=len(asked), timeout=answer_s)
    answers = []
    for node, examiner, machine, environment in zip(nodes, examiners, machines, environments, strict=True):
        answer = NodeAnswer(node, node.id == here)
        answer.machine = _take(machine, answer, "machine", answer_s)
        answer.environment = _take(environment, answer, "environment", answer_s)
        if answer.machine is not None:
            _measure_distance(examiner, answer)
        ray.kill(examiner)
        answers.append(answer)
    return answers


def lost_nodes() -> list[str]:
    """Return the addresses of nodes that ended without having been asked to, and have not come back."""
    alive = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    lost = {
        node["NodeManagerAddress"]
        for node in ray.nodes()
        if not node["Alive"] and "UNEXPECTED" in str(node.get("DeathReason", ""))
    }
    return sorted(lost - alive)


def token_mode() -> str:
    """Return `token` or `disabled` as Ray has it in this process, or `unknown` for a Ray without such tokens."""
    raylet: Any = importlib.import_module("ray._raylet")  # Ray has no public question for it
    if not hasattr(raylet, "get_authentication_mode"):
        return "unknown"
    return "token" if raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN else "disabled"


def _start(remote: Any, node_id: str) -> Any:
    """Return a task or an actor class that is bound to a node and takes nothing of it."""
    return remote.options(
        num_cpus=0, num_gpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
    )


def _take(reference: Any, answer: NodeAnswer, question: str, answer_s: float) -> Any:
    """Return the answer to a question, or note why there is none and return None."""
    try:
        done, _ = ray.wait([reference], timeout=0)
        if done:
            return ray.get(reference, timeout=FETCH_S)
        ray.cancel(reference, force=False) if question == "environment" else None
        answer.silent[question] = f"no answer within {answer_s:.0f} s"
    except RayTaskError as error:
        answer.silent[question] = str(error).strip().splitlines()[-1]
    except GetTimeoutError:
        answer.silent[question] = f"its answer did not arrive within {FETCH_S:.0f} s"
    except RayError as error:
        answer.silent[question] = str(error).strip().splitlines()[0]
    return None


def _measure_distance(examiner: Any, answer: NodeAnswer) -> None:
    """Time empty calls to a node, one after the other, and compare clocks."""
    trips, ahead = [], []
    try:
        for _ in range(_PINGS):
            began, wall = time.perf_counter(), time.time()
            theirs = ray.get(examiner.clock.remote(), timeout=FETCH_S)
            trips.append(time.perf_counter() - began)
            ahead.append(theirs - wall - trips[-1] / 2)
    except (RayError, GetTimeoutError) as error:
        answer.silent["distance"] = str(error).strip().splitlines()[0]
        return
    answer.round_trip_s, answer.clock_ahead_s = statistics.median(trips), statistics.median(ahead)
