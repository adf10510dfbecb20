"""Where a run's processes go: learner and replay together on one node, actors wherever there is room for them.

A learner of several ranks is a placement group: on the learner's node if that has enough GPUs, else packed around it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from dreamfleet import __version__
from dreamfleet.common.errors import RunFailedError, UserError, first_line
from dreamfleet.common.formatting import counted
from dreamfleet.common.settings.schema import LearnerSettings, Settings

ACTOR_RESOURCE = "actor"
"""Node resource: how many actors may run there."""
LEARNER_RESOURCE = "learner"
"""Node resource: this is the node for learner and replay."""
SHARED_GPU = 0.5
"""Of the only GPU, the share that inference takes from the learner in Ray's accounts; it limits neither of them."""
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


def count_ranks(settings: LearnerSettings, nodes: Sequence[Node], home: Node, has_gpu: bool) -> int:
    """Return how many ranks the learner has, as `learner.gpus` says.

    Args:
        nodes: those alive.
        home: the learner's.
        has_gpu: whether the learner is to compute on GPUs.

    Raises:
        UserError: if there are too few GPUs, or CPUs where these are wanted.
    """
    here, everywhere = int(home.resources.get("GPU", 0)), sum(int(node.resources.get("GPU", 0)) for node in nodes)
    if settings.gpus == "auto":
        return settings.most_ranks(here) if has_gpu else 1
    if settings.gpus == 1:
        return 1
    if settings.device == "cpu":
        cpus = int(home.resources.get("CPU", 0))
        if settings.gpus > cpus:
            raise UserError(
                f"learner.gpus is {settings.gpus}, for as many ranks on CPUs, but the node for the learner, "
                f"{home.address}, declares {counted(cpus, 'CPU')} to Ray: set it to {settings.most_ranks(cpus)}."
            )
        return settings.gpus
    if not has_gpu:
        raise UserError(
            f"learner.gpus is {settings.gpus}, but the node for the learner, {home.address}, declares no GPU to Ray: "
            f"set it to 1 or auto, or learner.device to cpu for {settings.gpus} ranks on CPUs."
        )
    if settings.gpus > everywhere:
        raise UserError(
            f"learner.gpus is {settings.gpus}, but the cluster has {counted(everywhere, 'GPU')}, {here} of them on the "
            f"learner's node {home.address}: set it to {settings.most_ranks(everywhere)} or auto, or add nodes with "
            "GPUs before the run starts."
        )
    return settings.gpus


class Placement:
    """The places of one run's processes on a cluster.

    Attributes:
        home: the node of learner and replay.
        has_gpu: whether the learner gets a GPU there, each of its ranks one.
        ranks: how many the learner has.
        are_together: whether all of them are on one node.
    """

    def __init__(self, settings: Settings) -> None:
        nodes = list_nodes()
        wants_gpu = settings.learner.device != "cpu"
        self.home = choose_home(nodes, ray.get_runtime_context().get_node_id(), wants_gpu)
        self.has_gpu = wants_gpu and self.home.has("GPU")
        self.ranks = count_ranks(settings.learner, nodes, self.home, self.has_gpu)
        self.are_together = not self.has_gpu or self.home.resources["GPU"] >= self.ranks
        self._group: PlacementGroup | None = None
        self._rank_cpus = 0 if self.has_gpu else 1
        self._learner_cpus = self._rank_cpus * self.ranks
        fills_home = not self.are_together or self.home.resources.get("GPU", 0) <= self.ranks
        self._shares_gpu = settings.acts_centrally and self.has_gpu and fills_home
        self._actor_cpus = settings.actors.cpus
        if settings.learner.device == "cuda" and not self.has_gpu:
            raise UserError(
                f"learner.device is cuda, but the node for the learner, {self.home.address}, declares no GPU to Ray."
            )

    @property
    def at_home(self) -> NodeAffinitySchedulingStrategy:
        """Ray's scheduling strategy for what belongs on the learner's node."""
        return NodeAffinitySchedulingStrategy(self.home.id, soft=False)

    def learner_options(self, rank: int = 0) -> dict[str, Any]:
        """Return Ray's options for a rank of the learner; of several, all have their places or none has."""
        place: Any = self.at_home
        if self.ranks > 1:
            self._group = self._group or placement_group(self.rank_bundles(), self.strategy)
            place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
        return {"scheduling_strategy": place, "num_cpus": self._rank_cpus, "num_gpus": self._rank_gpus(rank)}

    def _rank_gpus(self, rank: int) -> float:
        """Return the GPUs that a rank takes: one if there are any, but rank 0 less if it shares its own."""
        return 1 - SHARED_GPU if self._shares_gpu and rank == 0 else int(self.has_gpu)

    @property
    def strategy(self) -> str:
        """Ray's strategy for the ranks' placement group."""
        return "STRICT_PACK" if self.are_together else "PACK"

    def rank_bundles(self) -> list[dict[str, float]]:
        """Return what each rank takes, as Ray's placement groups are asked for it; rank 0 is bound to the home."""
        cpus = {"CPU": float(self._rank_cpus)}
        bundles = [{"GPU": float(self._rank_gpus(r))} if self.has_gpu else dict(cpus) for r in range(self.ranks)]
        return [bundles[0] | {f"node:{self.home.address}": 0.001}, *bundles[1:]]

    def release(self) -> None:
        """Give the ranks' places back; they are kept from one learner to the next."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def inference_options(self) -> dict[str, Any]:
        """Return Ray's options for the process that acts for all actors: beside the learner, on a GPU if it has one.

        It has a GPU of its own if the learner leaves one there, else it shares that of the learner's first rank: Ray
        gives each a part of it, and the two take turns in computing.
        """
        num_gpus = SHARED_GPU if self._shares_gpu else int(self.has_gpu)
        return {"scheduling_strategy": self.at_home, "num_cpus": 0, "num_gpus": num_gpus}

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

    def decisions(self, shards: int, actors: int | str) -> list[str]:
        """Return a sentence for each place that was chosen, for this many shards and actors."""
        room = self.room()
        return [
            f"joined the one at {ray.get_runtime_context().gcs_address}",
            f"replay shards: {shards}, on {self.home.address}, which is the learner's place"
            + (", with a GPU" if self.has_gpu else ""),
            f"room for {sum(room.values())} actors on {len(room)} nodes; "
            + ("all of it is used" if actors == "auto" else f"{actors} are wanted"),
        ]

    def check_home(self, directory: Path) -> None:
        """Refuse a learner's node that lacks dreamfleet, or does not see a directory of the driver's.

        Raises:
            UserError: if it is of no use.
            RunFailedError: if it does not answer.
        """
        mark = directory / f".seen-{secrets.token_hex(8)}"
        mark.touch()
        try:
            remote: Any = ray.remote(num_cpus=0, max_retries=0)(look)
            answer = remote.options(scheduling_strategy=self.at_home).remote(str(mark.resolve()))
            version, seen = ray.get(answer, timeout=LOOK_TIMEOUT_S)
        except (GetTimeoutError, RayError) as error:
            raise RunFailedError(
                f"the learner's node {self.home.address} does not answer: {first_line(error)}"
            ) from error
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


def look(path: str) -> tuple[str, bool]:
    """Return a node's version of dreamfleet, or nothing, and whether it sees a path; imports nothing of ours."""
    import importlib
    import pathlib

    try:
        version = importlib.import_module("dreamfleet").__version__
    except ImportError:
        version = ""
    return version, pathlib.Path(path).exists()
