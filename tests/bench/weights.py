"""Weights on their way from the learner to many actors: how long, and how many bytes each node receives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamfleet.common.acting.policy import PublishedWeights
from tests.bench.measure import Bench, say
from tests.bench.ray_session import joined_ray
from tests.bench.report import Row
from tests.bench.weight_holders import TIMEOUT_S, Holder, Publisher, received_bytes

NAME = "weights"
METHOD = """
One process publishes a flat float32 array of 12 MB (three million acting parameters) as the value of a call; the driver
hands its reference to all actors, with the version, as the fleet loop does, and each fetches it when newer and copies
it. The actors are small processes that do nothing else, spread over the nodes in turn, beginning with others than the
publisher's. Time: from the order to publish until the last actor has answered that it holds the version, at the driver.
Bytes: what the interface of each node received (all traffic of the node, Ray's own included) per version, beside the
size of one copy; on a single node nothing travels.
"""
VALUES = 3_000_000
_ACTORS = (1, 4, 16, 64)
_STARTED_AT_ONCE = 4
_MB = 1e6


@dataclass(frozen=True)
class Place:
    """A node of the cluster: its id and its address."""

    id: str
    address: str


def measure(bench: Bench) -> Iterator[Row]:
    """Yield time and bytes for each number of actors."""
    with joined_ray(bench.address):
        nodes = _nodes()
        publisher = Publisher.options(num_cpus=0, scheduling_strategy=_on(nodes[0])).remote()  # type: ignore[attr-defined]
        holders: list[Any] = []
        version = 0
        for count in _ACTORS if not bench.quick else _ACTORS[:2]:
            say(f"{NAME}: starting actors up to {count} on {len(nodes)} nodes")
            _start_up_to(count, holders, nodes)
            version = yield from _publishing(bench, publisher, holders, nodes, version)


def _publishing(bench: Bench, publisher: Any, holders: list[Any], nodes: list[Place], version: int) -> Any:
    """Yield the figures of this many actors; return the last version."""
    _publish(publisher, holders, version := version + 1)  # does not count: connections are made
    before = _received(nodes)
    turns = [_publish(publisher, holders, version := version + 1) for _ in range(bench.choose(15, 4))]
    after = _received(nodes)
    seconds = [total for total, _ in turns]
    what = f"{len(holders)} actor{'s' * (len(holders) > 1)} on {len(nodes)} node{'s' * (len(nodes) > 1)}"
    yield Row(
        NAME, f"published to last, {what}", f"{median(seconds) * 1e3:.0f} ms", f"most {max(seconds) * 1e3:.0f} ms"
    )
    fetches = [fetch for _, fetched in turns for fetch in fetched]
    yield Row(NAME, f"one actor's fetch and copy, {what}", f"{median(fetches) * 1e3:.0f} ms",
              f"most {max(fetches) * 1e3:.0f} ms")  # fmt: skip
    for place in nodes if len(nodes) > 1 else []:
        here = sum(1 for number in range(len(holders)) if _place(number, nodes) is place)
        role = "publisher and " * (place is nodes[0]) + f"{here} actors"
        expected = VALUES * 4 / _MB * (place is not nodes[0] and here > 0)
        received = (after[place.id] - before[place.id]) / len(turns) / _MB
        yield Row(NAME, f"received per version by {place.address} ({role}), {what}", f"{received:.2f} MB",
                  f"one copy a node {expected:.1f} MB")  # fmt: skip
    return version


def _publish(publisher: Any, holders: list[Any], version: int) -> tuple[float, list[float]]:
    """Return the seconds until all have a new version, and those that each one's fetch took."""
    begun = time.perf_counter()
    answer, values = publisher.publish.remote(version, VALUES)
    weights = PublishedWeights(ray.get(answer, timeout=TIMEOUT_S), values)
    fetched: list[float] = ray.get([holder.adopt.remote(weights) for holder in holders], timeout=TIMEOUT_S)
    return time.perf_counter() - begun, fetched


def _start_up_to(count: int, holders: list[Any], nodes: list[Place]) -> None:
    """Start further actors, a few at a time: each is a process, and starting one costs a second of a core."""
    while len(holders) < count:
        batch = [
            Holder.options(num_cpus=0.01, scheduling_strategy=_on(_place(number, nodes))).remote()  # type: ignore[attr-defined]
            for number in range(len(holders), min(count, len(holders) + _STARTED_AT_ONCE))
        ]
        ray.get([holder.ping.remote() for holder in batch], timeout=TIMEOUT_S)
        holders += batch


def _place(number: int, nodes: list[Place]) -> Place:
    """Return the node of an actor: the publisher's comes last."""
    return nodes[(number + 1) % len(nodes)]


def _nodes() -> list[Place]:
    """Return the nodes that are alive, this one first."""
    own = ray.get_runtime_context().get_node_id()
    found = [Place(node["NodeID"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
    return sorted(found, key=lambda place: (place.id != own, place.address))


def _received(nodes: list[Place]) -> dict[str, int]:
    answers = [received_bytes.options(scheduling_strategy=_on(place)).remote(place.address) for place in nodes]
    return dict(zip([place.id for place in nodes], ray.get(answers, timeout=TIMEOUT_S), strict=True))


def _on(place: Place) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(place.id, soft=False)
