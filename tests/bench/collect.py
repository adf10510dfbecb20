"""Collecting in one process and on Ray, beside loops around the same environments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ray

from dreamfleet.actors.actor import ActorProcess
from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from tests.bench.bare_loops import BareLoop, VectorLoop, pin
from tests.bench.measure import Bench, Turns, say, take_turns
from tests.bench.one_process import METHOD as ONE_PROCESS
from tests.bench.one_process import measure_one_process
from tests.bench.ray_session import local_ray, replay_server
from tests.bench.recording import Recording
from tests.bench.report import Row, at_least

NAME = "collect"
_ON_RAY = """
On Ray: actors as the service has them, `ActorProcess`, pushing to a replay's process, two orders queued for each as the
fleet loop does, on CarRacing with the preset quickstart (64×64 grey, action repeat 4, episodes of at most 100 steps).
The yardstick is a loop around the same wrapped environment in plain processes, nothing stored, with the seeds and
actions of our actors: both take the very same steps. One actor and its replay share one core, two actors and their
replay two cores, and so do the plain processes; Ray's own processes run where they are. `AsyncVectorEnv` steps two of
the environments, again with the same seeds and actions.
"""
METHOD = ONE_PROCESS + _ON_RAY
_TIMEOUT_S = 300
_QUEUED_ORDERS = 2


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures of collecting."""
    yield from measure_one_process(bench, NAME)
    settings = resolve(["quickstart"])
    format_only = Recording(probe_environment(settings.env), [])
    with local_ray(), replay_server(bench.scratch / "collect", format_only, 50) as server:
        steps = bench.choose(320, 32)
        turns = _race(settings, server, steps, bench.choose(5, 2))
    for count, peer, name in (
        (1, "bare 1", "plain loop"),
        (2, "bare 2", "plain loops"),
        (2, "vector", "AsyncVectorEnv"),
    ):
        ours = f"ours {count}"
        ratio = turns.ratio(peer, ours)
        rates = [f"{count * steps / turns.median(who):.1f} steps/s" for who in (ours, peer)]
        aim = None if peer == "vector" else at_least(ratio, 0.95)
        yield Row(
            NAME, f"steps collected, {count} actor{'s' * (count > 1)}", rates[0], f"{name} {rates[1]}", ratio, aim
        )


def _race(settings: Settings, server: Any, steps: int, turns: int) -> Turns:
    """Return the seconds in which each contestant takes this many steps of each of its environments."""
    say(f"{NAME}: starting actors, plain processes and AsyncVectorEnv")
    loops: dict[str, ActorLoop | BareLoop | VectorLoop] = {
        "ours 1": ActorLoop(settings, server, first=10, count=1),
        "bare 1": BareLoop(settings, first=10, count=1),
        "ours 2": ActorLoop(settings, server, first=20, count=2),
        "bare 2": BareLoop(settings, first=20, count=2),
        "vector": VectorLoop(settings, first=20, count=2),
    }
    say(f"{NAME}: {steps} steps of each environment in each turn")
    contestants: dict[str, Callable[[], object]] = {
        name: lambda loop=loop: loop.run(steps)  # type: ignore[misc]
        for name, loop in loops.items()
    }
    try:
        return take_turns(contestants, turns)
    finally:
        for loop in loops.values():
            loop.close()


class ActorLoop:
    """Actors on Ray, with as many cores for them and their replay as there are of them.

    Args:
        settings: theirs.
        server: the replay's process.
        first: number of the first actor.
        count: how many.
    """

    def __init__(self, settings: Settings, server: Any, first: int, count: int) -> None:
        quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        actor = ActorProcess.options(num_cpus=1, runtime_env={"env_vars": quiet})  # type: ignore[attr-defined]
        self._actors = [actor.remote(settings, first + number, 0, server) for number in range(count)]
        self._order_steps = settings.actors.steps_per_order * settings.actors.environments
        self._server = server
        ray.get([actor.ping.remote() for actor in self._actors], timeout=_TIMEOUT_S)

    def run(self, steps: int) -> None:
        """Have each actor collect this many steps, in orders of the usual size."""
        asked = [self._server.health.remote(), *(actor.ping.remote() for actor in self._actors)]
        pin(ray.get(asked, timeout=_TIMEOUT_S), cores=len(self._actors))
        left = dict.fromkeys(range(len(self._actors)), steps)
        under_way: dict[Any, int] = {}
        for number in left:
            for _ in range(_QUEUED_ORDERS):
                self._order(number, left, under_way)
        while under_way:
            (done,), _ = ray.wait(list(under_way), num_returns=1, timeout=_TIMEOUT_S)
            ray.get(done, timeout=_TIMEOUT_S)
            self._order(under_way.pop(done), left, under_way)

    def _order(self, number: int, left: dict[int, int], under_way: dict[Any, int]) -> None:
        """Give an actor its next order, if it has steps left to collect."""
        steps = min(left[number], self._order_steps)
        if steps:
            left[number] -= steps
            under_way[self._actors[number].collect.remote(steps, None)] = number

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
