"""Where a run's processes go: learner and replay together on one node, actors wherever there is room for them."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamfleet import __version__
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.settings.schema import Settings

ACTOR_RESOURCE = "actor"
"""Node resource: how many actors may run there."""
LEARNER_RESOURCE = "learner"
"""Node resource: this is the node for learner and replay."""
LOOK_TIMEOUT_S = 120.0
"""A node may have to start its first process for this."""

log = logging.getLogger("dreamfleet")


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its id, its address, and its logical resources in all, used or not."""

    id: str
    address: str
    resources: dict[str, float]

    def has(self, resource: str) -> bool:
        """Whether it declares at least one of a resource."""
        return self.resources.get(resource, 0) >= 1


def list_nodes() -> list[Node]:
    """Return the nodes that are alive."""
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], dict(node["Resources"]))
        for node in ray.nodes()
        if node["Alive"]
    ]


def declares_roles(nodes: list[Node]) -> bool:
    """Whether actors go only where `actor` is declared; where no node declares any role, free CPUs alone decide.

    A cluster that is coming up may consist of its learner's node alone: those that declare `actor` are yet to join.
    """
    return any(node.has(ACTOR_RESOURCE) or node.has(LEARNER_RESOURCE) for node in nodes)


def choose_home(nodes: list[Node], driver: str, wants_gpu: bool) -> Node:
    """Return the node for learner and replay: one with the resource `learner`, else one with a GPU, else the driver's.

    Of several that are alike the driver's is taken, since the run's directory is there.

    Args:
        nodes: those alive.
        wants_gpu: whether the learner may use a GPU.
    """
    own = next(node for node in nodes if node.id == driver)
    for resource in (LEARNER_RESOURCE, *(["GPU"] if wants_gpu else [])):
        suitable = [node for node in nodes if node.has(resource)]
        if suitable:
            return own if own in suitable else suitable[0]
    return own


def room_for_actors(nodes: list[Node], home: str, learner_cpus: float, actor_cpus: float) -> dict[str, int]:
    """Return for each node's id how many actors it holds, beside the learner on its home.

    Args:
        nodes: those alive.
        home: id of the learner's node.
        learner_cpus: logical CPUs that the learner takes there.
        actor_cpus: logical CPUs that an actor takes.
    """
    declared = declares_roles(nodes)
    room = {}
    for node in nodes:
        cpus = node.resources.get("CPU", 0) - (learner_cpus if node.id == home else 0)
        room[node.id] = max(0, int(cpus / actor_cpus + 1e-9))
        if declared:
            room[node.id] = min(room[node.id], int(node.resources.get(ACTOR_RESOURCE, 0)))
    return room


class Placement:
    """The places of one run's processes on a cluster.

    Attributes:
        home: the node of learner and replay.
        has_gpu: whether the learner gets a GPU there.
    """

    def __init__(self, settings: Settings) -> None:
        nodes = list_nodes()
        wants_gpu = settings.learner.device != "cpu"
        self.home = choose_home(nodes, ray.get_runtime_context().get_node_id(), wants_gpu)
        self.has_gpu = wants_gpu and self.home.has("GPU")
        self._learner_cpus = 0 if self.has_gpu else 1
        self._actor_cpus = settings.actors.cpus
        if settings.learner.device == "cuda" and not self.has_gpu:
            raise UserError(
                f"learner.device is cuda, but the node for the learner, {self.home.address}, declares no GPU to Ray."
            )

    @property
    def at_home(self) -> NodeAffinitySchedulingStrategy:
        """Ray's scheduling strategy for what belongs on the learner's node."""
        return NodeAffinitySchedulingStrategy(self.home.id, soft=False)

    def learner_options(self) -> dict[str, Any]:
        """Return Ray's options for the learner."""
        return {
            "scheduling_strategy": self.at_home,
            "num_cpus": self._learner_cpus,
            "num_gpus": int(self.has_gpu),
        }

    def actor_options(self) -> dict[str, Any]:
        """Return Ray's options for an actor; the least loaded nodes come first."""
        resources = self.actor_bundle()
        options: dict[str, Any] = {"num_cpus": resources.pop("CPU"), "num_gpus": 0, "scheduling_strategy": "SPREAD"}
        return options | ({"resources": resources} if resources else {})

    def actor_bundle(self) -> dict[str, float]:
        """Return what an actor takes, as Ray's autoscaler is asked for it."""
        bundle = {"CPU": self._actor_cpus}
        if declares_roles(list_nodes()):
            bundle[ACTOR_RESOURCE] = 1
        return bundle

    def room(self) -> dict[str, int]:
        """Return for each node's id how many actors it holds now."""
        return room_for_actors(list_nodes(), self.home.id, self._learner_cpus, self._actor_cpus)

    def check_home(self, directory: Path) -> None:
        """Refuse a learner's node that lacks dreamfleet, or does not see a directory of the driver's.

        Raises:
            UserError: if it is of no use.
            RunFailedError: if it does not answer.
        """
        mark = directory / f".seen-{secrets.token_hex(8)}"
        mark.touch()
        try:
            look: Any = ray.remote(num_cpus=0, max_retries=0)(_look)
            answer = look.options(scheduling_strategy=self.at_home).remote(str(mark.resolve()))
            version, seen = ray.get(answer, timeout=LOOK_TIMEOUT_S)
        except (GetTimeoutError, RayError) as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunFailedError(f"the learner's node {self.home.address} does not answer: {first_line}") from error
        finally:
            mark.unlink()
        if version != __version__:
            found = f"has dreamfleet {version}" if version else "cannot import dreamfleet"
            raise UserError(
                f"flag --address: the learner's node {self.home.address} {found}; install dreamfleet {__version__} in "
                "the environment that Ray was started from there (`dreamfleet doctor --address auto` checks all nodes)."
            )
        if not seen:
            raise UserError(
                f"flag --run: {directory} is here, but not on the learner's node {self.home.address}, where replay and "
                "checkpoints are written: name a directory that both see, or start the run on that node "
                "(`dreamfleet submit` does)."
            )


def _look(path: str) -> tuple[str, bool]:
    """Return a node's version of dreamfleet, or nothing, and whether it sees a path; imports nothing of ours."""
    import importlib
    import pathlib

    try:
        version = importlib.import_module("dreamfleet").__version__
    except ImportError:
        version = ""
    return version, pathlib.Path(path).exists()
