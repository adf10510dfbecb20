"""The doctor's view of a cluster: all nodes asked, each judged by what it is to do in a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor import check_fleet, checks
from dreamfleet.deploy.doctor.check_learner import learner_lines, sizes
from dreamfleet.deploy.doctor.check_nodes import NodeAnswer, ask_nodes, lost_nodes, token_mode
from dreamfleet.deploy.doctor.checks import Line, Section
from dreamfleet.deploy.plan.footprint import Footprint
from dreamfleet.deploy.workers.placement import LEARNER_RESOURCE, choose_home, room_for_actors
from dreamfleet.replay.ray_replay import IN_FLIGHT


def examine_cluster(settings: Settings, directory: str, dashboard: str) -> list[Section]:
    """Return what there is to say of the cluster that this process has joined, and of each of its nodes.

    Args:
        settings: the run's.
        directory: the run's, absolute.
        dashboard: where the cluster's dashboard listens; "" if it has none.
    """
    return ClusterView(settings, ask_nodes(settings, directory), token_mode()).sections(dashboard, lost_nodes())


class ClusterView:
    """The answers of all nodes, and what each node is to do.

    Args:
        settings: the run's.
        answers: of the nodes, the driver's first.
        mode: of token authentication, see `token_mode`.
    """

    def __init__(self, settings: Settings, answers: Sequence[NodeAnswer], mode: str) -> None:
        self._settings, self._answers, self._mode = settings, list(answers), mode
        tried = [answer.environment for answer in answers if answer.environment and not answer.environment["error"]]
        self._usual_step_s = statistics.median(facts["step_s"] for facts in tried) if len(tried) > 1 else None
        self._footprint, self._faults = sizes(settings, tried[0] if tried else None)
        wants_gpu = settings.learner.device != "cpu"
        nodes = [answer.node for answer in answers]
        self._home = choose_home(nodes, nodes[0].id, wants_gpu)
        learner_cpus = 0 if wants_gpu and self._home.has("GPU") else 1  # as a run places it
        room = room_for_actors(nodes, self._home.id, learner_cpus, settings.actors.cpus)
        self._places = [room[node.id] for node in nodes]
        count = settings.actors.count
        self._actors = count if isinstance(count, int) else sum(self._places)

    def sections(self, dashboard: str, lost: Sequence[str]) -> list[Section]:
        """Return the findings about the cluster, then those about each node."""
        answers = self._answers
        declared = self._home.has(LEARNER_RESOURCE)
        whole = [
            check_fleet.check_places(self._settings.actors.count, self._places),
            check_fleet.check_learner_place(self._home.address, answers[0].node.address, declared),
            check_fleet.check_token(self._mode, len(answers)),
            check_fleet.check_dashboard(dashboard),
            *check_fleet.check_dead(lost),
            *self._faults,
        ]
        heading = f"cluster of {len(answers)} node{'s' * (len(answers) > 1)}, {self._settings.env.id}"
        nodes = [self._node(answer, places) for answer, places in zip(answers, self._places, strict=True)]
        return [Section(heading, whole), *nodes]

    def _node(self, answer: NodeAnswer, places: int) -> Section:
        """Judge a node by its answers, and by their absence."""
        lines = check_fleet.check_silence(answer.node.address, answer.silent)
        if answer.machine is not None:
            if self._answers[0].machine is not None:
                lines.append(check_fleet.check_versions(answer.machine, self._answers[0].machine))
            if self._mode == "token":
                lines.append(check_fleet.check_token_file(answer.machine, ray_is_up=True))
            lines += [
                checks.check_files(answer.machine, raised=False),
                *self._storage(answer, min(places, self._actors)),
            ]
        if answer.environment is not None:
            lines.append(checks.check_environment(self._settings.env.id, answer.environment, self._usual_step_s))
        if answer.round_trip_s is not None and not answer.is_driver:
            lines.append(check_fleet.check_round_trip(answer.round_trip_s, answer.clock_ahead_s))
        roles = (
            ["head"] * ("node:__internal_head__" in answer.node.resources)
            + ["driver"] * answer.is_driver
            + ["learner and replay"] * (answer.node is self._home)
        )
        roles += [f"{places} actors at most"] * (places > 0)
        return Section(f"node {answer.node.address}: {', '.join(roles) or 'takes no part'}", lines)

    def _storage(self, answer: NodeAnswer, actors: int) -> list[Line]:
        """Judge what a node stores: all of a run, or the weights and what its actors have under way."""
        assert answer.machine is not None
        store = answer.node.resources.get("object_store_memory", 0.0)
        if answer.node is self._home:
            gpus = answer.node.resources.get("GPU", 0.0)
            return learner_lines(
                self._settings, answer.machine, self._footprint, store, actors, self._actors, ray_gpus=gpus
            )
        if self._footprint is None:
            return []
        needed = _under_way(self._footprint, actors)
        return [
            checks.check_shm(answer.machine, store, needed),
            checks.check_store(store, needed, "weights and chunks"),
        ]


def _under_way(footprint: Footprint, actors: int) -> float:
    """Return the bytes of two versions of the weights, and of what so many actors have sent and not yet stored."""
    return 2 * footprint.weights + actors * IN_FLIGHT * footprint.chunk_steps * footprint.stored_step
