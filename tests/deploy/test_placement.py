"""Placement: which node is the learner's, how many actors a cluster holds, and directories that nodes do not share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.workers import placement
from dreamfleet.deploy.workers.placement import Node, Placement, choose_home, room_for_actors

HEAD_ID, GPU_ID = "aa" * 28, "bb" * 28  # Ray refuses ids that are not of this form
HEAD = Node(HEAD_ID, "10.0.0.1", {"CPU": 8.0})
GPU = Node(GPU_ID, "10.0.0.2", {"CPU": 16.0, "GPU": 1.0})
NAMED = Node("named", "10.0.0.3", {"CPU": 4.0, "learner": 1.0})
WORKER = Node("worker", "10.0.0.4", {"CPU": 4.0, "actor": 3.0})


@pytest.mark.parametrize(
    ("nodes", "driver", "wants_gpu", "home"),
    [
        ([HEAD, WORKER], HEAD, True, HEAD),
        ([HEAD, GPU, WORKER], HEAD, True, GPU),
        ([HEAD, GPU, WORKER], HEAD, False, HEAD),
        ([HEAD, GPU, NAMED], HEAD, True, NAMED),
        ([HEAD, GPU, Node("gpu2", "10.0.0.9", {"GPU": 4.0})], GPU, True, GPU),
        ([GPU, Node("gpu2", "10.0.0.9", {"GPU": 4.0})], Node("gpu2", "10.0.0.9", {"GPU": 4.0}), True, "gpu2"),
    ],
)
def test_the_learner_goes_to_the_named_node_then_to_a_gpu_then_to_the_driver(
    nodes: list[Node], driver: Node, wants_gpu: bool, home: Any
) -> None:
    """The resource `learner` comes first, then a GPU if one is wanted, then the driver's node."""
    assert choose_home(nodes, driver.id, wants_gpu).id == (home if isinstance(home, str) else home.id)


def test_room_is_what_cpus_hold_beside_the_learner() -> None:
    """Without the resource `actor` the CPUs decide; the learner's are taken off on its node, and rounding is down."""
    assert room_for_actors([HEAD, GPU], HEAD_ID, 1, 1.0) == {HEAD_ID: 7, GPU_ID: 16}
    assert room_for_actors([HEAD, GPU], HEAD_ID, 0, 1.5) == {HEAD_ID: 5, GPU_ID: 10}
    assert room_for_actors([HEAD], HEAD_ID, 1, 0.1) == {HEAD_ID: 70}
    assert room_for_actors([Node("small", "", {"CPU": 1.0})], "small", 1, 1.0) == {"small": 0}


def test_where_a_node_declares_actors_only_such_nodes_hold_any() -> None:
    """As soon as one node declares the resource `actor`, no other takes actors, and it no more than it declares."""
    assert room_for_actors([HEAD, WORKER], HEAD_ID, 1, 1.0) == {HEAD_ID: 0, "worker": 3}
    assert room_for_actors([HEAD, WORKER], HEAD_ID, 1, 2.0) == {HEAD_ID: 0, "worker": 2}
    assert room_for_actors([NAMED], "named", 1, 1.0) == {"named": 0}, "the nodes for actors are yet to join"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """Give Ray two nodes, the first of which is the driver's."""
    nodes = [HEAD, WORKER]
    monkeypatch.setattr(placement, "list_nodes", lambda: nodes)
    context = SimpleNamespace(get_node_id=lambda: HEAD.id)
    monkeypatch.setattr(placement.ray, "get_runtime_context", lambda: context)
    return nodes


def test_actors_ask_for_the_resource_where_it_is_declared(cluster: list[Node]) -> None:
    """An actor takes one `actor` and its CPUs, never a GPU; where no node declares actors, CPUs alone."""
    places = Placement(Settings(actors={"cpus": 0.5}))
    options = places.actor_options()
    assert (options["num_cpus"], options["num_gpus"], options["resources"]) == (0.5, 0, {"actor": 1})
    assert places.actor_bundle() == {"CPU": 0.5, "actor": 1}
    cluster.remove(WORKER)
    assert "resources" not in places.actor_options()
    assert places.actor_bundle() == {"CPU": 0.5}


def test_the_learner_takes_the_gpu_of_its_node_or_a_cpu(cluster: list[Node]) -> None:
    """With a GPU the learner takes it and no CPU; without, one CPU."""
    assert (Placement(Settings()).learner_options()["num_gpus"], Placement(Settings()).has_gpu) == (0, False)
    assert Placement(Settings()).learner_options()["num_cpus"] == 1
    cluster.append(GPU)
    options = Placement(Settings()).learner_options()
    assert (options["num_gpus"], options["num_cpus"], options["scheduling_strategy"].node_id) == (1, 0, GPU_ID)


def test_inference_has_a_gpu_of_its_own_or_shares_the_learners(cluster: list[Node]) -> None:
    """Together they take no more than the node has, and neither gets a GPU that the other's node lacks."""
    central = Settings(actors={"inference": "central"}, behaviour={"kind": "actor_critic"})

    def gpus(settings: Settings) -> tuple[float, float]:
        places = Placement(settings)
        learner, inference = places.learner_options(), places.inference_options()
        assert inference["scheduling_strategy"].node_id == learner["scheduling_strategy"].node_id
        assert inference["num_cpus"] == 0
        return learner["num_gpus"], inference["num_gpus"]

    assert gpus(central) == (0, 0)
    cluster.append(GPU)
    assert gpus(central) == (0.5, 0.5)
    assert Placement(Settings()).learner_options()["num_gpus"] == 1
    cluster[-1] = dataclasses.replace(GPU, resources=GPU.resources | {"GPU": 2.0})
    assert gpus(central) == (1, 1)


def test_a_gpu_that_is_wanted_and_not_there_is_one_sentence(cluster: list[Node]) -> None:
    """With learner.device cuda a cluster without GPU is refused before anything starts."""
    with pytest.raises(
        UserError, match=r"learner\.device is cuda, but the node for the learner, 10\.0\.0\.1, declares"
    ):
        Placement(Settings(learner={"device": "cuda"}))


@pytest.mark.ray
def test_a_learners_node_that_is_of_no_use_is_refused(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The learner's node is asked for its dreamfleet and for a mark in the run's directory."""
    places = Placement(Settings())
    places.check_home(tmp_path)
    assert not list(tmp_path.iterdir())
    found = {"answer": ("", True)}
    monkeypatch.setattr(placement, "look", lambda path: found["answer"])
    with pytest.raises(UserError, match="cannot import dreamfleet; install dreamfleet"):
        places.check_home(tmp_path)
    found["answer"] = ("0.0.1", True)
    with pytest.raises(UserError, match=r"has dreamfleet 0\.0\.1; install"):
        places.check_home(tmp_path)
    found["answer"] = (placement.__version__, False)
    with pytest.raises(UserError, match="is here, but not on the learner's node"):
        places.check_home(tmp_path)
    assert not list(tmp_path.iterdir())
