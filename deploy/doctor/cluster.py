"""The nodes of a cluster: all asked at once, each checked for its part in a run; a silent one costs a time limit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamfleet.common import memory
from dreamfleet.common.errors import first_line
from dreamfleet.common.formatting import counted
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor import checks, facts, learner_machine
from dreamfleet.deploy.doctor.checks import Finding, Section, first_case
from dreamfleet.deploy.workers.placement import LEARNER_RESOURCE, Node, choose_home, list_nodes, room_for_actors
from dreamfleet.deploy.workers.ray_internals import token_mode

ANSWER_S = 60.0
"""A node that has not answered for this long counts as silent: starting a worker and an environment takes seconds."""
FETCH_S = 5.0
_PINGS = 11
FAR_S = 0.05
"""A round trip of more than this makes orders of a few dozen steps wait for the network."""
CLOCK_S = 1.0
"""Clocks further apart than this make logs hard to read side by side."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass
class NodeAnswer:
    """What a node answered: its facts, the median time of an empty call, and how far its clock is ahead of ours.

    What it did not answer is None, and `silent` says why, by question.
    """

    node: Node
    is_driver: bool = False
    machine: facts.MachineFacts | None = None
    environment: dict[str, Any] | None = None
    round_trip_s: float | None = None
    clock_ahead_s: float = 0.0
    silent: dict[str, str] = field(default_factory=dict)


def examine_cluster(settings: Settings, directory: str, dashboard: str) -> list[Section]:
    """Return the findings about the cluster that this process has joined, and about each of its nodes.

    `directory` is absolute; `dashboard` is the address where it listens, "" if it is off.
    """
    return ClusterReport(settings, ask_nodes(settings, directory), token_mode()).sections(dashboard, lost_nodes())


class ClusterReport:
    """Findings from the answers of all nodes, the driver's first, and the token `mode` (see `token_mode`)."""

    def __init__(self, settings: Settings, answers: Sequence[NodeAnswer], mode: str) -> None:
        self._settings, self._answers, self._mode = settings, answers, mode
        tried = [answer.environment for answer in answers if answer.environment and not answer.environment["error"]]
        self._usual_step_s = statistics.median(each["step_s"] for each in tried) if len(tried) > 1 else None
        self._footprint, self._model_findings = checks.run_sizes(settings, tried[0] if tried else None)
        wants_gpu = settings.learner.device != "cpu"
        nodes = [answer.node for answer in answers]
        self._home = choose_home(nodes, nodes[0].id, wants_gpu)
        learner_cpus = 0 if wants_gpu and self._home.has("GPU") else settings.learner.cpu_ranks  # as a run places it
        self._room = room_for_actors(nodes, self._home.id, learner_cpus, settings.actors.cpus)
        count = settings.actors.count
        self._actors = count if isinstance(count, int) else sum(self._room.values())

    def sections(self, dashboard: str, lost: Sequence[str]) -> list[Section]:
        """Return the findings about the cluster, then those about each node."""
        answers, home = self._answers, self._home
        whole = [
            check_room(self._settings.actors.count, list(self._room.values())),
            check_learner_place(home.address, answers[0].node.address, home.has(LEARNER_RESOURCE)),
            checks.check_token(self._mode, len(answers)),
            check_dashboard(dashboard),
        ]
        if lost:
            advice = "see on them why Ray ended, and start it again"
            whole.append(Finding("warning", "lost nodes", ", ".join(lost), advice))
        heading = f"cluster of {counted(len(answers), 'node')}, {self._settings.env.id}"
        return [Section(heading, [*whole, *self._model_findings]), *map(self._node, answers)]

    def _node(self, answer: NodeAnswer) -> Section:
        node, room = answer.node, self._room[answer.node.id]
        findings = check_silence(node.address, answer.silent)
        if answer.machine is not None:
            if self._answers[0].machine is not None:
                findings.append(checks.check_versions(answer.machine, self._answers[0].machine))
            if self._mode == "token":
                findings.append(checks.check_token_file(answer.machine, ray_is_up=True))
            findings.append(checks.check_files(answer.machine, raised=False))
            findings += self._storage(node, answer.machine, min(room, self._actors))
        if answer.environment is not None:
            findings.append(checks.check_environment(self._settings.env.id, answer.environment, self._usual_step_s))
        if answer.round_trip_s is not None and not answer.is_driver:
            findings.append(check_distance(answer.round_trip_s, answer.clock_ahead_s))
        roles = {
            "head": "node:__internal_head__" in node.resources,
            "driver": answer.is_driver,
            "learner and replay": node is self._home,
            f"{counted(room, 'actor')} at most": room > 0,
        }
        named = ", ".join(role for role, applies in roles.items() if applies)
        return Section(f"node {node.address}: {named or 'takes no part'}", findings)

    def _storage(self, node: Node, machine: facts.MachineFacts, actors: int) -> list[Finding]:
        """Check what a node stores: all of a run, or the weights and what its actors have in flight."""
        store = node.resources.get("object_store_memory", 0.0)
        if node is self._home:
            here = node.resources.get("GPU", 0.0)
            elsewhere = sum(answer.node.resources.get("GPU", 0.0) for answer in self._answers) - here
            return learner_machine.check_learner_machine(
                self._settings, machine, self._footprint, store, actors, self._actors, here, elsewhere
            )
        if self._footprint is None:
            return []
        needed = self._footprint.in_flight(actors)
        return [checks.check_shm(machine, store, needed), checks.check_store(store, needed, "weights and chunks")]


def check_dashboard(url: str) -> Finding:
    """Check that the dashboard listens on loopback: it takes jobs from whoever reaches it; "" if it is off."""
    local = url.removeprefix("http://").rsplit(":", 1)[0] in LOOPBACK
    advice = "start Ray with --dashboard-host 127.0.0.1 and use an SSH tunnel (`ray dashboard`)"
    exposed = f"listens on {url}, for whoever reaches that"
    ok = f"on loopback, {url}" if url else "off"
    return first_case("dashboard", ok, (bool(url) and not local, "warning", exposed, advice))


def check_distance(round_trip_s: float, clock_ahead_s: float) -> Finding:
    """Check how far a node is from the driver, and whether its clock agrees."""
    found = f"{1e3 * round_trip_s:.2g} ms from the driver and back"
    clock = f"{found}; its clock is {abs(clock_ahead_s):.1f} s {'ahead' if clock_ahead_s > 0 else 'behind'}"
    differ = abs(clock_ahead_s) > CLOCK_S + round_trip_s
    return first_case(
        "distance",
        f"{found}, clocks agree",
        (round_trip_s > FAR_S, "warning", found, "raise actors.steps_per_order, or take nodes closer by"),
        (differ, "warning", clock, "let NTP set the clocks of all nodes"),
    )


def check_room(count: int | str, room_by_node: Sequence[int]) -> Finding:
    """Check how many actors the cluster holds against how many the settings ask for."""
    total = sum(room_by_node)
    room = f"room for {total} on {counted(sum(room > 0 for room in room_by_node), 'node')}"
    declare = "declare the resource `actor` and enough CPUs where actors are to run"
    add = "add nodes (an autoscaler may do so), or set actors.count to auto"
    return first_case(
        "actors",
        f"auto: {room} now" if count == "auto" else f"{count} asked for, {room}",
        (total == 0, "error", f"{count} asked for, but no node takes any", declare),
        (isinstance(count, int) and total < count, "warning", f"{count} asked for, {room}", add),
    )


def check_learner_place(home: str, driver: str, declared: bool) -> Finding:
    """Check that learner and replay, and with them the run directory, are on the driver's node."""
    why = "which declares the resource `learner`" if declared else "since no node declares the resource `learner`"
    apart = f"with the replay on {home}, {why}, but the driver is on {driver}"
    advice = "run the command on the learner's node, or have the run directory on a file system that both share"
    ok = f"with the replay on {home}, beside the driver, {why}"
    return first_case("learner", ok, (home != driver, "warning", apart, advice))


def check_silence(address: str, silent: Mapping[str, str]) -> list[Finding]:
    """Report the questions that a node left unanswered, and why: as one finding if it answered none."""
    advice = "see whether the node is up and reached (`ray list nodes`), and that dreamfleet is installed there"
    if {"machine", "environment"} <= set(silent):
        silent = {"node": silent["machine"]}
    return [Finding("error", question, f"{address} did not answer: {why}", advice) for question, why in silent.items()]


def ask_nodes(settings: Settings, directory: str, answer_s: float = ANSWER_S) -> list[NodeAnswer]:
    """Ask all nodes of the cluster that this process has joined, within `answer_s`; the driver's node comes first."""
    here = ray.get_runtime_context().get_node_id()
    nodes = sorted(list_nodes(), key=lambda node: node.id != here)
    travelling = (facts, memory)
    for module in travelling:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        examiners = [_bind(ray.remote(facts.Examiner), node.id).remote() for node in nodes]
        machines = [examiner.machine.remote(directory) for examiner in examiners]
        trial, plain = ray.remote(max_retries=0)(facts.environment_facts), settings.env.model_dump()
        environments = [_bind(trial, node.id).remote(plain) for node in nodes]
    finally:
        for module in travelling:
            ray.cloudpickle.unregister_pickle_by_value(module)
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
    """Return the addresses of nodes that ended unexpectedly and have not returned."""
    nodes = ray.nodes()
    alive = {node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    lost = {node["NodeManagerAddress"] for node in nodes if "UNEXPECTED" in str(node.get("DeathReason", ""))}
    return sorted(lost - alive)


def _bind(remote: Any, node_id: str) -> Any:
    """Return a task or an actor class that is bound to a node and takes nothing of it."""
    bound = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return remote.options(num_cpus=0, num_gpus=0, scheduling_strategy=bound)


def _take(reference: Any, answer: NodeAnswer, question: str, answer_s: float) -> Any:
    """Return the answer to a question, or note why there is none and return None."""
    try:
        done, _ = ray.wait([reference], timeout=0)
        if done:
            return ray.get(reference, timeout=FETCH_S)
        if question == "environment":
            ray.cancel(reference, force=False)
        answer.silent[question] = f"no answer within {answer_s:.0f} s"
    except RayTaskError as error:
        answer.silent[question] = str(error).strip().splitlines()[-1]
    except GetTimeoutError:
        answer.silent[question] = f"its answer did not arrive within {FETCH_S:.0f} s"
    except RayError as error:
        answer.silent[question] = first_line(error)
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
        answer.silent["distance"] = first_line(error)
        return
    answer.round_trip_s, answer.clock_ahead_s = statistics.median(trips), statistics.median(ahead)
