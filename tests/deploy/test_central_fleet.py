"""The fleet with a process that acts for all actors, on simulated workers: what it is given, and its loss."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest
from simulated_pool import SimulatedPool

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import RunFailedError
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.deploy.run.open_pool import describe_actors
from dreamfleet.deploy.run.prepare import make_settings
from dreamfleet.deploy.workers.pool import Worker

CONFIG = FleetConfig(
    actors=3, environments=1, steps_per_order=16, updates_per_order=4, checkpoint_every=20, picture_every=50,
    actor_timeout_s=30.0, learner_timeout_s=60.0, acts_centrally=True,
)  # fmt: skip
RATIO = TrainRatio(ratio=8.0, replayed_per_update=40, prefill=100, env_steps=5003)


class WatchedPool(SimulatedPool):
    """Keeps, for each collect order by weights, how many processes there were to act by then, and what the last had."""

    acted: list[tuple[int, list[int]]]

    def _collect(self, worker: Worker, steps: int, weights: PublishedWeights | None) -> tuple[float, Callable[[], Any]]:
        if weights:
            self.acted.append((len(self.adopted), list(self.adopted[-1]) if self.adopted else []))
        return super()._collect(worker, steps, weights)


def run(pool: SimulatedPool, config: FleetConfig = CONFIG, **options: Any) -> Fleet:
    pool.acted = []  # type: ignore[attr-defined]
    fleet = Fleet(pool, config, Ledger(RATIO), clock=pool.clock, **options)
    fleet.run()
    assert pool.total_steps == fleet.state.ledger.env_steps == RATIO.env_steps
    assert fleet.state.ledger.updates == RATIO.updates
    return fleet


def test_every_version_goes_to_the_process_before_anyone_acts_with_it() -> None:
    """It adopts what is published, in order; nobody is sent to collect by weights before it has some."""
    pool = WatchedPool()
    fleet = run(pool)
    assert len(pool.adopted) == 1
    versions = pool.adopted[0]
    assert versions == sorted(set(versions))
    assert len(versions) > 20
    assert pool.acted
    assert all(adopted for _, adopted in pool.acted)
    assert fleet.state.roster.restarts == 0


def test_a_fleet_that_acts_locally_has_no_such_process() -> None:
    """Nor has one whose actors act by chance, or a dataset's, or an inline run."""
    pool = WatchedPool()
    run(pool, dataclasses.replace(CONFIG, acts_centrally=False))
    assert pool.adopted == []
    central = {"actors": {"inference": "central"}}
    learned = Settings.model_validate(central | {"behaviour": {"kind": "actor_critic"}})
    assert FleetConfig.of(learned).acts_centrally
    assert not FleetConfig.of(learned, inline=True).acts_centrally
    assert not FleetConfig.of(Settings.model_validate(central)).acts_centrally
    dataset = learned.train.model_copy(update={"dataset": "data"})
    assert not FleetConfig.of(learned.model_copy(update={"train": dataset})).acts_centrally


def test_a_lost_process_is_replaced_and_gets_the_newest_weights(caplog: pytest.LogCaptureFixture) -> None:
    """Totals are exact; the loss is named, and that states begin at zero; no order is given while nobody can act."""
    pool = WatchedPool(lose_inference_at=[10.0, 20.0])
    with caplog.at_level(logging.WARNING, "dreamfleet"):
        fleet = run(pool)
    assert fleet.state.roster.restarts == 2
    assert len(pool.adopted) == 3
    assert all(adopted for _, adopted in pool.acted)
    assert {number for number, _ in pool.acted} == {1, 2, 3}
    assert pool.adopted[1][0] >= pool.adopted[0][-1]
    assert sum("inference is replaced: its process was lost" in message for message in caplog.messages) == 2
    assert sum("states of all environments begin at zero" in message for message in caplog.messages) == 2


def test_a_process_that_hangs_is_replaced_within_half_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Its reports come every two seconds: thirty without one are too many."""

    class Hangs(WatchedPool):
        def _done_in(self, seconds: float, finish: Callable[[], Any]) -> tuple[float, Callable[[], Any]]:
            return (1e9 if len(self.adopted) == 1 and self.now + seconds > 10.0 else seconds), finish

        def _report(self, worker: Worker) -> tuple[float, Callable[[], Any]]:
            return self._done_in(*super()._report(worker))

        def _adopt(self, worker: Worker, weights: PublishedWeights) -> tuple[float, Callable[[], Any]]:
            return self._done_in(*super()._adopt(worker, weights))

    with caplog.at_level(logging.WARNING, "dreamfleet"):
        fleet = run(Hangs())
    assert fleet.state.roster.restarts == 1
    assert any("inference is replaced: it gave no answer for 30 s" in message for message in caplog.messages)


def test_a_process_that_reports_and_never_adopts_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """Its reports do not make up for weights that never act."""

    class NeverAdopts(WatchedPool):
        def _adopt(self, worker: Worker, weights: PublishedWeights) -> tuple[float, Callable[[], Any]]:
            seconds, finish = super()._adopt(worker, weights)
            return (1e9 if len(self.adopted) == 1 and self.now > 10.0 else seconds), finish

        def give(self, worker: Worker, method: str, *arguments: Any) -> Any:
            future = super().give(worker, method, *arguments)
            if method == "adopt":
                self._free_at[worker] = self.now  # nothing waits behind it
            return future

    with caplog.at_level(logging.WARNING, "dreamfleet"):
        fleet = run(NeverAdopts(slower_on_weights=12.0))
    assert fleet.state.roster.restarts == 1
    assert any("inference is replaced: it gave no answer for 120 s" in message for message in caplog.messages)


def test_a_process_whose_first_weights_did_not_arrive_asks_for_them_again() -> None:
    """There are no newer ones until somebody acts: it would wait for ever."""

    class ArriveAtLast(WatchedPool):
        tries = 0

        def _adopt(self, worker: Worker, weights: PublishedWeights) -> tuple[float, Callable[[], Any]]:
            seconds, finish = super()._adopt(worker, weights)
            self.tries += 1
            return (seconds, finish) if self.tries > 3 else (20.0, lambda: False)

    pool = ArriveAtLast()
    fleet = run(pool)
    assert fleet.state.roster.restarts == 0
    assert pool.now < 1000.0


def test_a_process_that_is_always_lost_ends_the_run() -> None:
    """Nothing is tried for ever."""

    class AlwaysLost(WatchedPool):
        def _adopt(self, worker: Worker, weights: PublishedWeights) -> tuple[float, Callable[[], Any]]:
            from dreamfleet.deploy.workers.pool import WorkerLostError

            def finish() -> bool:
                raise WorkerLostError("out of memory")

            return 0.1, finish

    with pytest.raises(RunFailedError, match=r"inference process failed again and again, at last of: .*out of mem"):
        run(AlwaysLost())


def test_a_lost_actor_is_forgotten() -> None:
    """The process is told of each incarnation that was given up."""
    pool = WatchedPool(lose=lambda actor, order: "lost" if order in (30, 41) else "")
    run(pool)
    assert pool.forgotten == pool.retired
    assert len(pool.forgotten) == 2


def test_a_process_that_is_lost_while_the_run_stops_is_replaced_for_those_who_wait() -> None:
    """Actors that have orders in flight would wait for its successor."""

    class Waits(WatchedPool):
        """Actors whose orders are done only once a second process is there."""

        def _collect(
            self, worker: Worker, steps: int, weights: PublishedWeights | None
        ) -> tuple[float, Callable[[], Any]]:
            seconds, finish = super()._collect(worker, steps, weights)
            return (8.0 if self.now > 9.0 else seconds), finish

    pool = Waits(lose_inference_at=[12.0])
    pool.acted = []
    fleet = Fleet(pool, CONFIG, Ledger(RATIO), clock=pool.clock, should_stop=lambda: pool.now > 11.0)
    fleet.run()
    assert len(pool.adopted) == 2
    assert pool.adopted[1]


def test_the_start_says_that_one_process_acts_for_all() -> None:
    """But not of actors that act by chance, which ask nobody."""
    central = {"count": 3, "inference": "central"}
    assert describe_actors(make_settings("dreamer_v3", actors=central)) == (
        "3, of 1 environment each; one process acts for all of them"
    )
    by_chance = "3, of 1 environment each; actions are random (behaviour.kind), and no policy is learnt"
    assert describe_actors(make_settings("small", actors=central)) == by_chance
