"""The fleet loop, with simulated workers: the ratio, the exact counts, and what it does when workers fail."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from simulated_pool import SimulatedPool

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import RunFailedError, UserError, WrongHereError
from dreamfleet.common.process_log import LogRecord
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.deploy.fleet.worker_slot import WorkerSlot
from dreamfleet.deploy.workers.pool import WorkerFailedError, WorkerLostError
from dreamfleet.replay.interface import Shortage

CONFIG = FleetConfig(
    actors=3, environments=1, steps_per_order=16, updates_per_order=4, checkpoint_every=20, picture_every=50,
    actor_timeout_s=30.0, learner_timeout_s=60.0,
)  # fmt: skip
RATIO = TrainRatio(ratio=8.0, replayed_per_update=40, prefill=100, env_steps=1003)


class RatioCallbacks(Callbacks):
    """Asserts at every turn what the ratio promises."""

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self.turns = 0
        self.begun = False

    def on_start(self, fleet: FleetState, decisions: list[str]) -> None:
        self.begun = True

    def on_turn(self, fleet: FleetState) -> None:
        self.turns += 1
        assert fleet.ledger.updates <= fleet.ledger.ratio.updates_allowed(fleet.pool.replay.counters().total_steps)
        queue = 2 * fleet.config.updates_per_order
        per_step = fleet.ledger.ratio.ratio / fleet.ledger.ratio.replayed_per_update
        if self.begun and fleet.ledger.env_steps > fleet.ledger.ratio.prefill + self.in_flight:
            assert fleet.ledger.updates_allowed - fleet.ledger.updates <= 2 * queue + self.in_flight * per_step + 1


class Crew(Callbacks):
    """Keeps at every turn how many actors the fleet has."""

    def __init__(self, pool: SimulatedPool) -> None:
        self.pool = pool
        self.sizes: list[int] = []

    def on_turn(self, fleet: FleetState) -> None:
        self.sizes.append(len(fleet.roster.actors))


def run(pool: SimulatedPool, config: FleetConfig = CONFIG, ratio: TrainRatio = RATIO, **options: Any) -> FleetState:
    ratio_callbacks = RatioCallbacks(in_flight=2 * config.actors * config.steps_per_order)
    fleet = Fleet(pool, config, Ledger(ratio), [ratio_callbacks], clock=pool.clock, **options).run()
    assert ratio_callbacks.turns > 5
    return fleet


@pytest.mark.parametrize("actors", [1, 2, 7, 40])
@pytest.mark.parametrize("seconds_per_update", [0.001, 0.05, 1.0])
def test_steps_and_updates_are_exact(actors: int, seconds_per_update: float) -> None:
    """With any number of actors and a fast or slow learner, the run ends with exactly the steps and updates wanted."""
    pool = SimulatedPool(seconds_per_update=seconds_per_update)
    fleet = run(pool, dataclasses.replace(CONFIG, actors=actors))
    assert pool.total_steps == fleet.ledger.env_steps == RATIO.env_steps
    assert pool.updates == fleet.ledger.updates == RATIO.updates == 180


def test_actors_that_act_by_chance_are_sent_no_weights() -> None:
    """Published ones are for evaluations alone; where weights act, orders after the prefill name them."""
    for by_weights in (True, False):
        versions: list[int] = []

        class Notes(Callbacks):
            def on_steps(self, fleet: FleetState, slot: WorkerSlot, report: Any) -> None:
                versions.append(slot.version)  # noqa: B023 (called within the loop)

        config = dataclasses.replace(CONFIG, acts_by_weights=by_weights)
        Fleet(pool := SimulatedPool(), config, Ledger(RATIO), [Notes()], clock=pool.clock).run()
        assert (max(versions) > 0) is by_weights
        assert min(versions) == -1


def test_learner_and_actors_both_stay_busy() -> None:
    """When a learner and its actors are well matched, the run takes little longer than the slower of the two alone."""
    pool = SimulatedPool(seconds_per_step=0.02, seconds_per_update=0.05)
    run(pool)
    assert pool.now < 1.5 * max(180 * 0.05, 1003 * 0.02 * 1.25 / 3) + 3


def test_a_lost_actor_is_replaced_and_its_stored_steps_count() -> None:
    """An actor that dies after half its chunks were stored is replaced by the next incarnation; totals stay exact."""
    pool = SimulatedPool(lose=lambda actor, order: "lost" if order in (5, 11) else "")
    fleet = run(pool)
    assert fleet.ledger.env_steps == pool.total_steps == RATIO.env_steps
    assert fleet.ledger.updates == RATIO.updates
    assert fleet.roster.restarts == 2
    incarnations = [incarnation for _, incarnation in pool.started]
    assert len(pool.started) == 5
    assert incarnations == sorted(set(incarnations)), "no two incarnations bear the same number"


@pytest.mark.parametrize("order", range(58, 66))
def test_what_an_actor_stored_before_it_was_lost_is_not_collected_again(order: int) -> None:
    """The replay is asked for its count before the next orders, however seldom it is asked otherwise."""
    pool = SimulatedPool(lose=lambda actor, number: "lost" if number == order else "", counters_every_s=5.0)
    fleet = Fleet(pool, CONFIG, Ledger(RATIO), clock=pool.clock).run()
    assert pool.total_steps == fleet.ledger.env_steps == RATIO.env_steps


@pytest.mark.parametrize("counters_every_s", [0.1, 1.0])
def test_collecting_runs_no_further_ahead_where_the_replay_is_seldom_asked(counters_every_s: float) -> None:
    """What quick actors have answered counts, though the replay was not asked since: `RatioCallbacks` holds."""
    fleet = run(SimulatedPool(seconds_per_step=0.001, counters_every_s=counters_every_s))
    assert fleet.ledger.updates == RATIO.updates


def test_a_hung_actor_is_replaced() -> None:
    """An actor that gives no answer within its time is stopped and replaced."""
    pool = SimulatedPool(lose=lambda actor, order: "hung" if order == 4 else "")
    fleet = run(pool)
    assert pool.stopped == [f"actor {pool.started[3][0]}"]
    assert fleet.ledger.env_steps == RATIO.env_steps


def test_a_planner_is_not_taken_for_hung_after_a_quick_prefill() -> None:
    """Actors that fill the replay by chance within moments, and then plan for minutes at each order, are left alone."""
    pool = SimulatedPool(slower_on_weights=600.0)
    fleet = run(pool, dataclasses.replace(CONFIG, actor_timeout_s=300.0))
    assert fleet.roster.restarts == 0
    assert pool.now > 1000.0


LONG = dataclasses.replace(RATIO, env_steps=20_003)
"""Of a run of about half an hour on one actor with `SLOW`."""
SLOW = {"seconds_per_step": 0.08, "seconds_per_update": 0.02}


def test_one_healthy_actor_is_enough() -> None:
    """Actors that fail for ten minutes are given up; the run goes on with the one that works."""
    pool = SimulatedPool(lose=lambda actor, order: "failed" if actor != 1 else "", **SLOW)
    fleet = run(pool, ratio=LONG)
    assert [slot.given_up for slot in fleet.roster.actors] == [True, False, True]
    assert fleet.ledger.env_steps == LONG.env_steps
    assert pool.now > 1200.0
    tries = Counter(actor for actor, _ in pool.started)
    assert 15 < tries[0] < 25, "six within a minute, one a minute until the tenth, and one every ten minutes"


def test_a_slot_that_was_given_up_is_tried_again_and_can_work() -> None:
    """What kept an actor from working for a quarter of an hour may have gone."""
    pool = SimulatedPool(**SLOW)
    pool.lose = lambda actor, order: "failed" if actor == 0 and pool.now < 900.0 else ""
    turns = Turns()
    fleet = Fleet(pool, CONFIG, Ledger(dataclasses.replace(LONG, env_steps=60_003)), [turns], clock=pool.clock).run()
    assert not any(slot.given_up for slot in fleet.roster.actors)
    assert turns.orders["actor 0"] > 100


def test_an_outage_of_all_simulators_is_waited_out() -> None:
    """All fail for 20 seconds, and for five minutes: the run goes on, and is exact."""
    for seconds in (20.0, 300.0):
        pool = SimulatedPool()
        pool.lose = lambda actor, order, pool=pool, seconds=seconds: (  # type: ignore[misc]
            "failed" if 10.0 < pool.now < 10.0 + seconds else ""
        )
        fleet = run(pool, ratio=dataclasses.replace(RATIO, env_steps=7603))
        assert fleet.ledger.env_steps == pool.total_steps == 7603
        assert fleet.roster.restarts >= 3 * 5


def test_a_learner_that_is_killed_as_it_comes_up_is_waited_for() -> None:
    """Five times within ten seconds, before it ever worked, and for five minutes after it did."""
    pool = SimulatedPool()
    pool.lose_restoring = lambda now: now < 10.0
    assert run(pool).ledger.updates == RATIO.updates
    assert len(pool.restored_from) == 1
    pool = SimulatedPool(lose_learner_at=[48])
    pool.lose_restoring = lambda now: bool(pool.restored_from) and not pool.lose_learner_at and now < 300.0
    assert run(pool).ledger.updates == RATIO.updates
    assert pool.now > 300.0


def test_a_learner_may_compile_for_longer_than_an_order_may_take() -> None:
    """It is not replaced for it, how long it takes can be told, what it logged is heard, and the run is exact."""
    pool = SimulatedPool(seconds_to_prepare=5 * CONFIG.learner_timeout_s)
    heard: list[str] = []
    told_s: list[float] = []

    class Hears(Callbacks):
        def on_log(self, records: list[LogRecord]) -> None:
            heard.extend(text for _, text in records)

        def on_turn(self, fleet: FleetState) -> None:
            preparing_s = fleet.roster.learner.preparing_s(pool.now)
            told_s.extend([] if preparing_s is None else [preparing_s])

    fleet = Fleet(pool, CONFIG, Ledger(RATIO), [Hears()], clock=pool.clock).run()
    assert fleet.ledger.updates == RATIO.updates
    assert pool.restored_from == [0]
    assert heard.count("prepared") == 1
    assert told_s == sorted(told_s)
    assert max(told_s) > 0.9 * pool.seconds_to_prepare


def test_a_learner_that_cannot_work_ends_the_run_within_a_minute() -> None:
    """No learner ever came up: its cause is said soon."""
    pool = SimulatedPool(lose_restoring=lambda now: True)
    with pytest.raises(RunFailedError, match=r"the learner failed again and again, at last of: .* as it came up"):
        run(pool)
    assert pool.now < 60.0


def test_an_evaluator_that_is_killed_as_it_comes_up_evaluates_later() -> None:
    """Three deaths within four seconds do not cost the evaluations that follow."""
    pool = SimulatedPool(lose_evaluation=lambda evaluation: evaluation <= 3, seconds_per_evaluation=0.3)
    fleet, evaluations = evaluate(pool)
    assert not fleet.roster.evaluator.given_up
    assert evaluations.found[-1] == (RATIO.env_steps, RATIO.updates)


def test_the_run_fails_with_the_cause_when_no_actor_is_left() -> None:
    """When every actor fails again and again, the run ends and says of what."""
    pool = SimulatedPool(lose=lambda actor, order: "failed")
    with pytest.raises(RunFailedError, match="ZeroDivisionError: simulated"):
        run(pool)
    assert 25.0 < pool.now < 60.0


def test_environments_that_hang_before_their_first_answer_end_the_run_within_a_minute() -> None:
    """A process that has answered its greeting has no more than an order's time for its first one."""
    pool = SimulatedPool(lose=lambda actor, order: "hung")
    with pytest.raises(RunFailedError, match=r"no actor is left; .* at last of: it gave no answer for 3 s$"):
        run(pool, dataclasses.replace(CONFIG, actor_timeout_s=3.0))
    assert pool.now < 60.0


def test_causes_that_differ_are_waited_for() -> None:
    """Where actors that never worked fail in different ways, a cause that would explain all is not known."""
    pool = SimulatedPool()
    pool.lose = lambda actor, order: ("failed" if order % 2 else "lost") if pool.now < 200.0 else ""
    assert run(pool).ledger.env_steps == RATIO.env_steps


def test_actors_that_all_stop_working_end_the_run_after_ten_minutes() -> None:
    """They have worked, so that it may be an outage; nobody waits for it for ever."""
    pool = SimulatedPool()
    pool.lose = lambda actor, order: "failed" if pool.now > 5.0 else ""
    with pytest.raises(RunFailedError, match="ZeroDivisionError: simulated"):
        run(pool)
    assert 600.0 < pool.now < 800.0
    assert pool.saved["updates"] == pool.updates > 0


def test_a_lost_learner_goes_on_from_its_checkpoint() -> None:
    """After the learner dies, a new one restores the newest checkpoint; the run still ends with the exact updates."""
    pool = SimulatedPool(lose_learner_at=[48, 120])
    fleet = run(pool)
    assert len(pool.restored_from) == 3
    assert 40 <= pool.restored_from[1] <= 48
    assert 100 <= pool.restored_from[2] <= 120
    assert fleet.ledger.updates == pool.updates == RATIO.updates


def test_a_learner_that_dies_again_and_again_ends_the_run() -> None:
    """A learner that never gets an update done is not restarted for ever."""
    pool = SimulatedPool(lose_learner_at=[0] * 10)
    with pytest.raises(RunFailedError, match="the learner failed again and again"):
        run(pool)


def test_a_users_error_in_a_worker_ends_the_run_at_once() -> None:
    """A worker that finds the user's input at fault is not restarted: the user hears its sentence."""
    pool = SimulatedPool()

    def result(future: Any) -> Any:
        raise WorkerFailedError(UserError("the checkpoint is of another model"), "trace")

    pool.result = result  # type: ignore[method-assign]
    with pytest.raises(UserError, match="another model"):
        run(pool)
    assert len(pool.started) == CONFIG.actors


def test_what_was_learnt_before_a_fatal_failure_is_saved() -> None:
    """A learner that refuses to go on ends the run with its sentence, and a checkpoint of the updates before it."""
    pool = SimulatedPool(fail_learner_at=37)
    with pytest.raises(RunFailedError, match="not finite"):
        run(pool)
    assert 30 < pool.saved["updates"] == pool.updates <= 37


def test_an_actor_that_cannot_reach_the_replay_is_one_lost_actor() -> None:
    """The run goes on with those that reach the replay."""
    fleet = run(SimulatedPool(lose=lambda actor, order: "cut off" if actor == 2 else ""))
    assert [slot.failures.has_worked for slot in fleet.roster.actors] == [True, True, False]
    assert fleet.ledger.updates == RATIO.updates


def test_a_run_that_could_train_on_nothing_says_so() -> None:
    """While more steps may help they are collected; if no sequence can be cut from them at last, the run fails."""
    pool = SimulatedPool(has_sequences=False)
    with pytest.raises(
        RunFailedError, match=r"no sequence of learner\.sequence_length 10 can be cut from the 1003 steps"
    ):
        run(pool)
    assert 3 < len(pool.shortages_asked) < 20, "it is asked for now and then, since it looks at every step"


@pytest.mark.parametrize(
    ("shortage", "cause"),
    [
        (
            Shortage(10, False, 200, 0, 3, 80, 2),
            "the longest episode has 2 steps, and with replay.across_episodes false",
        ),
        (Shortage(10, True, 90, 30, 12, 8, 8), "the replay keeps 90, at most 8 consecutive steps in each of 12"),
        (Shortage(10, True, 150, 0, 30, 6, 6), "they are of 30 short streams of environments, at most 6 consecutive"),
        (
            Shortage(200, True, 150, 0, 3, 17, 17),
            "they are of 3 environments, at most 17 consecutive steps in each",
        ),
    ],
)
def test_what_is_known_after_the_prefill_ends_the_run_there(shortage: Shortage, cause: str) -> None:
    """Where more steps of the kind would not help, a run is over after its prefill, with the cause."""
    pool = SimulatedPool(
        has_sequences=False,
        shortage_at=lambda steps: shortage._replace(steps=max(shortage.steps, steps - shortage.dropped)),
    )
    with pytest.raises(RunFailedError, match=cause):
        run(pool)
    assert RATIO.prefill <= pool.total_steps < RATIO.prefill + 200


def test_a_replay_that_does_not_keep_a_batch_ends_the_run() -> None:
    """As soon as so much was collected that it would hold one."""
    pool = SimulatedPool(kept_steps=39)
    with pytest.raises(RunFailedError, match=r"the replay keeps 39 of the .* steps collected, fewer than an update"):
        run(pool)
    assert pool.total_steps < RATIO.prefill + 200
    assert run(SimulatedPool(kept_steps=40)).ledger.updates == RATIO.updates


def test_a_resumed_run_counts_on() -> None:
    """A run stopped half way and started again makes up the same totals, and no update or step twice."""
    pool = SimulatedPool()
    first = run(pool, should_stop=lambda: pool.total_steps > 500)
    assert pool.saved["updates"] == first.ledger.updates < RATIO.updates
    assert first.ledger.updates <= RATIO.updates_allowed(first.ledger.env_steps)
    second = run(pool)
    assert second.ledger.env_steps == pool.total_steps == RATIO.env_steps
    assert second.ledger.updates == RATIO.updates
    assert pool.restored_from == [0, first.ledger.updates]


def test_a_stop_waits_for_orders_in_flight_and_saves() -> None:
    """When asked to stop, no new order is given, those in flight are taken, and a checkpoint is written."""
    pool = SimulatedPool()
    fleet = run(pool, should_stop=lambda: pool.now > 6.0)
    assert not any(slot.orders for slot in [*fleet.roster.actors, fleet.roster.learner])
    assert pool.saved["updates"] == fleet.ledger.updates > 0
    assert pool.syncs >= 1


def test_actors_get_newly_published_weights() -> None:
    """Collect orders carry the newest version published before them."""
    pool = SimulatedPool(publish_every=4)
    fleet = run(pool)
    assert fleet.weights
    assert fleet.weights.version == RATIO.updates
    assert all(slot.version > 100 for slot in fleet.roster.actors)


AUTO = dataclasses.replace(CONFIG, actors=None)


def test_auto_follows_the_cluster_as_it_grows() -> None:
    """With actors `auto` the fleet has as many as there is room for, and more as soon as there is more room."""
    pool = SimulatedPool(room_at=lambda now: 2 if now < 4 else 6, seconds_per_update=0.02)
    crew = Crew(pool)
    fleet = Fleet(pool, AUTO, Ledger(RATIO), [crew], clock=pool.clock).run()
    assert crew.sizes[0] == 2
    assert max(crew.sizes) == 6
    assert {actor for actor, _ in pool.started} == set(range(6))
    assert (fleet.ledger.env_steps, fleet.ledger.updates, fleet.roster.restarts) == (RATIO.env_steps, RATIO.updates, 0)


def test_auto_follows_the_cluster_as_it_shrinks() -> None:
    """Actors whose node went are not waited for; the fleet goes on with those that have room, with exact counts."""
    pool = SimulatedPool(room_at=lambda now: 6 if now < 4 else 2, seconds_per_update=0.02)
    crew = Crew(pool)
    fleet = Fleet(pool, AUTO, Ledger(RATIO), [crew], clock=pool.clock).run()
    assert (max(crew.sizes), crew.sizes[-1]) == (6, 2)
    assert (fleet.ledger.env_steps, fleet.ledger.updates) == (RATIO.env_steps, RATIO.updates)
    assert pool.total_steps == RATIO.env_steps


def test_auto_asks_for_room_only_while_experience_is_scarce() -> None:
    """A fleet that keeps its learner waiting asks for more room; one whose learner is the slower part does not."""
    slow_actors = SimulatedPool(room_at=lambda now: 2, seconds_per_step=0.1, seconds_per_update=0.001)
    Fleet(slow_actors, AUTO, Ledger(RATIO), clock=slow_actors.clock).run()
    assert slow_actors.asked_for[0] == 2 + 8
    slow_learner = SimulatedPool(room_at=lambda now: 2, seconds_per_step=0.001, seconds_per_update=2.0)
    Fleet(slow_learner, AUTO, Ledger(RATIO), clock=slow_learner.clock).run()
    assert not slow_learner.asked_for


def test_actors_without_room_are_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """A fixed number of actors of which some find no room trains with those that do, says so, and comes to its end."""
    pool = SimulatedPool(room_at=lambda now: 1, seconds_per_step=0.2)
    with caplog.at_level("WARNING", logger="dreamfleet"):
        fleet = run(pool)
    assert fleet.ledger.env_steps == RATIO.env_steps
    assert len(pool.started) == 3
    assert "2 of 3 actors have no place yet; there is room for 1" in caplog.text


def test_an_actor_that_has_its_place_and_stays_silent_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose process started, and that never answers its greeting, is lost like one that hangs."""
    pool = SimulatedPool(is_mute=lambda actor, incarnation: incarnation == 0, seconds_per_step=0.3)
    with caplog.at_level("WARNING", logger="dreamfleet"):
        fleet = run(pool)
    assert pool.stopped == ["actor 0"]
    assert pool.started == [(0, 0), (1, 1), (2, 2), (0, 3)]
    assert pool.retired == [(0, 0)]
    assert fleet.ledger.env_steps == RATIO.env_steps
    assert "actor 0 is replaced: it gave no answer for 60 s" in caplog.text
    assert "have no place yet" not in caplog.text


def test_actors_that_never_answer_are_not_restarted_for_ever() -> None:
    """When every actor stays silent in its place, one incarnation after another, the run ends and says so."""
    pool = SimulatedPool(is_mute=lambda actor, incarnation: True)
    with pytest.raises(RunFailedError, match=r"no actor is left; .* it gave no answer for 60 s"):
        run(pool)
    assert len(pool.started) == 3 * CONFIG.actors


def test_a_fleet_without_learner_collects_exactly() -> None:
    """A fleet that only collects ends with exactly the steps asked for, whatever its actors die of."""
    pool = SimulatedPool(lose=lambda actor, order: "lost" if order % 9 == 0 else "")
    ratio = TrainRatio(env_steps=1003)
    fleet = Fleet(pool, dataclasses.replace(CONFIG, learns=False), Ledger(ratio), clock=pool.clock).run()
    assert pool.total_steps == fleet.ledger.env_steps == 1003
    assert fleet.ledger.updates == 0
    assert not pool.restored_from


def test_a_fleet_without_actors_trains_on_what_is_stored() -> None:
    """A fleet of a learner alone makes all updates that the stored steps allow."""
    pool = SimulatedPool()
    pool.total_steps = 500
    ratio = TrainRatio(ratio=8.0, replayed_per_update=40, prefill=0, env_steps=500)
    fleet = Fleet(pool, dataclasses.replace(CONFIG, actors=0), Ledger(ratio), clock=pool.clock).run()
    assert fleet.ledger.updates == pool.updates == 100
    assert pool.total_steps == 500


def test_an_actor_that_never_lives_long_is_started_once_a_minute() -> None:
    """One that gets a few orders done in every incarnation, and then fails, is kept for what it brings."""
    orders_of_actor_0 = itertools.count(1)
    pool = SimulatedPool(
        lose=lambda actor, order: "failed" if actor == 0 and next(orders_of_actor_0) % 3 == 0 else "", **SLOW
    )
    fleet = Fleet(pool, CONFIG, Ledger(LONG), clock=pool.clock).run()
    assert not any(slot.given_up for slot in fleet.roster.actors)
    starts = sum(actor == 0 for actor, _ in pool.started)
    assert 5 < starts < 7 + pool.now / 60.0


@pytest.mark.parametrize("fate", ["failed", "lost"])
def test_an_actor_that_makes_progress_in_each_life_is_restarted_at_once(fate: str) -> None:
    """A simulator that dies every few hundred steps is no fault to wait for, however often it does."""
    orders = itertools.count(1)
    pool = SimulatedPool(lose=lambda actor, order: fate if next(orders) % 8 == 0 else "", seconds_per_step=0.001)
    fleet = run(pool, dataclasses.replace(CONFIG, actors=1), dataclasses.replace(RATIO, env_steps=6000))
    assert fleet.ledger.env_steps == pool.total_steps == 6000
    assert fleet.roster.restarts >= 40
    assert not fleet.roster.actors[0].given_up
    assert pool.now < 6000 * 0.001 * 2.0 + 2.0 * fleet.roster.restarts, (
        "a start takes a second and a half here, and no more"
    )


def test_work_goes_round_when_there_is_little_of_it() -> None:
    """When a slow learner leaves the actors little to do, each still gets its turn."""
    pool = SimulatedPool(seconds_per_step=0.0001, seconds_per_update=1.0)
    crew = Turns()
    Fleet(pool, CONFIG, Ledger(RATIO), [crew], clock=pool.clock).run()
    least, most = min(crew.orders.values()), max(crew.orders.values())
    assert set(crew.orders) == {"actor 0", "actor 1", "actor 2"}
    assert most - least <= 4


class Turns(Callbacks):
    """Counts the orders that each actor answered."""

    def __init__(self) -> None:
        self.orders: Counter[str] = Counter()

    def on_steps(self, fleet: FleetState, slot: WorkerSlot, report: Any) -> None:
        self.orders[slot.name] += 1


def test_checkpoints_are_evaluated_on_the_way_and_at_the_end() -> None:
    """At regular numbers of steps, and at the end, a checkpoint is written, and its facts get the return."""
    pool = SimulatedPool(seconds_per_update=0.2)
    fleet, evaluations = evaluate(pool)
    assert fleet.ledger.env_steps == pool.total_steps == RATIO.env_steps
    steps = [steps for steps, _ in evaluations.found]
    assert len(steps) >= 3
    assert steps == sorted(steps)
    assert evaluations.found[-1] == (RATIO.env_steps, RATIO.updates)
    assert pool.evaluated == [(version, 1.5) for _, version in evaluations.found]
    assert set(dict(pool.evaluated)) <= set(evaluations.saved_updates), "what is evaluated is a checkpoint"


def test_a_checkpoint_written_beside_the_updates_counts_once_it_is_on_the_disk() -> None:
    """Training goes on meanwhile, and reports, evaluations and the run's end know only what is written."""
    pool = SimulatedPool(seconds_per_update=0.2, seconds_per_write=1.5)
    fleet, evaluations = evaluate(pool)
    assert fleet.ledger.updates == pool.updates == pool.saved["updates"] == RATIO.updates
    assert evaluations.found[-1] == (RATIO.env_steps, RATIO.updates), "not one that was begun earlier"
    assert set(dict(pool.evaluated)) <= set(evaluations.saved_updates), "what is evaluated is a checkpoint"
    assert evaluations.saved_updates == sorted(evaluations.saved_updates)
    assert len(evaluations.saved_updates) >= 5, "each that was begun is heard of"


def test_a_learner_lost_while_it_writes_goes_on_from_the_checkpoint_before() -> None:
    """What was begun and not written is no checkpoint, and the updates are made again."""
    pool = SimulatedPool(seconds_per_write=3.0, seconds_per_update=0.1, lose_learner_at=[61])
    fleet = Fleet(pool, CONFIG, Ledger(RATIO), clock=pool.clock).run()  # more is collected than a backlog of two orders
    assert pool.restored_from[1] <= 40, "that of update 60 was being written"
    assert fleet.ledger.updates == pool.updates == pool.saved["updates"] == RATIO.updates


def test_a_stop_waits_for_what_is_being_written() -> None:
    """A checkpoint of all updates that was begun before the stop is not written twice."""
    pool = SimulatedPool(seconds_per_write=5.0, seconds_per_update=0.2)
    fleet = run(pool, should_stop=lambda: pool.updates >= 20)
    assert pool.saved["updates"] == fleet.ledger.updates >= 20
    assert pool.finished_at_last


def test_weights_never_go_back_for_a_checkpoint_that_was_written_late() -> None:
    """Those of a checkpoint come with it, after newer ones were published; the actors keep the newer."""
    pool = SimulatedPool(seconds_per_write=2.0, seconds_per_update=0.05, publish_every=2)
    versions: list[int] = []

    class Versions(Callbacks):
        def on_turn(self, fleet: FleetState) -> None:
            if fleet.weights:
                versions.append(fleet.weights.version)

    Fleet(pool, CONFIG, Ledger(RATIO), [Versions()], clock=pool.clock).run()
    assert versions == sorted(versions)
    assert versions[-1] == RATIO.updates


def test_an_evaluator_that_dies_in_the_last_evaluation_does_not_cost_it() -> None:
    """A run is not over before its last checkpoint is evaluated, by the next evaluator if need be."""
    whole, pool = SimulatedPool(), SimulatedPool()
    evaluate(whole)
    pool.lose_evaluation = lambda evaluation: evaluation == whole.evaluations
    fleet, evaluations = evaluate(pool)
    assert fleet.roster.restarts == 1
    assert pool.evaluations == whole.evaluations + 1
    assert evaluations.found[-1] == (RATIO.env_steps, RATIO.updates)


def test_an_evaluator_that_starts_slowly_still_evaluates_a_short_run() -> None:
    """Training may be over before the evaluator has its place: it is waited for."""
    pool = SimulatedPool(evaluator_starts_in_s=100.0)
    _, evaluations = evaluate(pool)
    assert evaluations.found == [(RATIO.env_steps, RATIO.updates)]


def test_an_evaluator_that_always_dies_keeps_no_run_from_its_end() -> None:
    """It is given up after some tries, and the run ends without evaluations."""
    fleet, evaluations = evaluate(SimulatedPool(lose_evaluation=lambda evaluation: True))
    assert fleet.roster.evaluator.given_up
    assert evaluations.found == []
    assert fleet.ledger.updates == RATIO.updates


def test_a_stop_does_not_wait_for_an_evaluator_that_never_comes() -> None:
    """A run that only waits for its last evaluation still ends when it is asked to."""
    pool = SimulatedPool(evaluator_starts_in_s=1e9)
    fleet, evaluations = evaluate(pool, stop=lambda: pool.now > 200.0)
    assert evaluations.found == []
    assert fleet.ledger.updates == RATIO.updates
    assert pool.now < 202.0


def test_a_long_evaluation_is_not_taken_for_a_hang() -> None:
    """One order plays all episodes, each of which may take as long as an order of the learner."""
    pool = SimulatedPool(seconds_per_evaluation=200.0)
    fleet, evaluations = evaluate(pool, dataclasses.replace(CONFIG, evaluation_episodes=5))
    assert fleet.roster.restarts == 0
    assert evaluations.found[-1] == (RATIO.env_steps, RATIO.updates)
    hanging, _ = evaluate(SimulatedPool(seconds_per_evaluation=1000.0),
                          dataclasses.replace(CONFIG, evaluation_episodes=5))  # fmt: skip
    assert hanging.roster.evaluator.given_up, "five times the learner's 60 seconds, and as much to start"


def test_an_evaluation_that_is_open_at_a_stop_does_not_cost_the_last_copy() -> None:
    """An evaluation that ends while slow actors are waited for is recorded before the learner ends its last copy."""
    pool = SimulatedPool(seconds_per_step=0.3)
    evaluated: list[int] = []

    def record_slowly(worker: Any, updates: int, found: Any) -> Any:
        evaluated.append(updates)
        return 60.0, lambda: True

    pool._record_evaluation = record_slowly  # type: ignore[method-assign]
    fleet, _ = evaluate(pool, stop=lambda: bool(pool.evaluations))
    assert evaluated, "the evaluation ended while actors were waited for"
    assert not fleet.roster.learner.orders
    assert pool.finished_at_last


def evaluate(
    pool: SimulatedPool, config: FleetConfig = CONFIG, stop: Callable[[], bool] = lambda: False
) -> tuple[FleetState, Evaluations]:
    """Run a fleet that evaluates each 300 steps, and return it and what was evaluated."""
    evaluations = Evaluations()
    config = dataclasses.replace(config, evaluate_every=300)
    fleet = Fleet(pool, config, Ledger(RATIO), [evaluations], stop, pool.clock).run()
    return fleet, evaluations


def test_without_evaluation_there_is_no_evaluator() -> None:
    """With evaluate_every 0 nobody is started for it."""
    pool = SimulatedPool()
    fleet = Fleet(pool, CONFIG, Ledger(RATIO), clock=pool.clock).run()
    assert fleet.roster.evaluator.worker is None


def test_actors_act_by_chance_until_the_prefill_is_there() -> None:
    """Weights are handed out only once the prefill is collected; what chose the actions before is version -1."""
    pool = SimulatedPool(seconds_per_step=0.05)
    versions = Versions()
    Fleet(pool, CONFIG, Ledger(RATIO), [versions], clock=pool.clock).run()
    assert {version for steps, version in versions.seen if steps < 60} == {-1}
    assert max(version for _, version in versions.seen) > 0


class Evaluations(Callbacks):
    """Keeps what was evaluated, and what was saved."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []
        self.saved_updates: list[int] = []

    def on_evaluation(self, fleet: FleetState, env_steps: int, report: Any) -> None:
        self.found.append((env_steps, report.version))

    def on_checkpoint(self, fleet: FleetState, facts: dict[str, Any]) -> None:
        self.saved_updates.append(facts["updates"])


class Versions(Callbacks):
    """Keeps which weights the actors had."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_steps(self, fleet: FleetState, slot: WorkerSlot, report: Any) -> None:
        self.seen.append((fleet.ledger.env_steps, slot.version))


def test_a_lost_life_is_retired_before_its_steps_are_counted() -> None:
    """Whatever a lost actor still had on its way must not be stored on top of what others collect in its place."""
    pool = SimulatedPool(lose=lambda actor, order: "lost" if order in (5, 11) else "")
    fleet = run(pool)
    assert fleet.roster.restarts == len(pool.retired) == 2
    assert set(pool.retired) <= set(pool.started)


def test_input_that_one_actor_finds_wrong_ends_the_run_only_at_first() -> None:
    """An environment that cannot be made is the user's fault; once an actor has collected, that of a place."""
    faults = {1: WrongHereError("there is no such environment")}

    def refuse(self: SimulatedPool, future: Any) -> Any:
        if future.worker.name == "actor 0" and faults:
            raise WorkerFailedError(faults.pop(1), "Traceback: simulated")
        return future.finish()

    late = SimulatedPool(seconds_per_step=0.01)
    late.result = lambda future: (  # type: ignore[method-assign]
        refuse(late, future) if late.total_steps > 100 else future.finish()
    )
    assert run(late).ledger.env_steps == RATIO.env_steps
    faults[1] = WrongHereError("there is no such environment")
    soon = SimulatedPool()
    soon.result = lambda future: refuse(soon, future)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no such environment"):
        run(soon)


def test_auto_asks_for_room_also_when_a_slot_is_given_up() -> None:
    """An actor that was given up does not keep the fleet from growing."""
    pool = SimulatedPool(room_at=lambda now: 3, seconds_per_step=0.1, seconds_per_update=0.001,
                         lose=lambda actor, order: "failed" if actor == 0 else "")  # fmt: skip
    Fleet(pool, AUTO, Ledger(RATIO), clock=pool.clock).run()
    assert pool.asked_for


def test_a_collecting_fleet_acts_on_the_weights_it_is_given() -> None:
    """Without a learner there is no prefill by chance: the weights given act from the first step on."""
    pool = SimulatedPool()
    versions = Versions()
    ratio = TrainRatio(env_steps=500)
    config = dataclasses.replace(CONFIG, learns=False)
    Fleet(pool, config, Ledger(ratio), [versions], clock=pool.clock, weights=PublishedWeights(77, "weights")).run()
    assert {version for _, version in versions.seen} == {77}


def test_an_evaluation_whose_checkpoint_was_lost_is_made_up_for() -> None:
    """A learner that dies while it writes the last checkpoint to be evaluated does not cost the evaluation."""
    pool = SimulatedPool(seconds_per_update=0.2)
    died = []

    def result(future: Any) -> Any:
        answer = future.finish()
        if isinstance(answer, tuple) and isinstance(answer[0], dict) and pool.updates == RATIO.updates and not died:
            died.append(True)
            raise WorkerLostError("the simulated learner died while it saved")
        return answer

    pool.result = result  # type: ignore[method-assign]
    _, evaluations = evaluate(pool)
    assert died
    assert evaluations.found[-1] == (RATIO.env_steps, RATIO.updates)


class Stopper(Callbacks):
    """Ends the run after its first checkpoint, by asking or by failing."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def on_checkpoint(self, fleet: FleetState, facts: dict[str, Any]) -> None:
        if self.error:
            raise self.error
        fleet.stop("it is good enough")


def test_a_callback_may_end_the_run() -> None:
    """The orders in flight are taken and a checkpoint is written, as after Ctrl-C; why it ended is known."""
    pool = SimulatedPool()
    fleet = Fleet(pool, CONFIG, Ledger(RATIO), [Stopper()], clock=pool.clock).run()
    assert fleet.stop_reason == "it is good enough"
    assert 0 < fleet.ledger.updates < RATIO.updates
    assert pool.saved["updates"] == fleet.ledger.updates
    assert not any(slot.orders for slot in fleet.roster)


def test_a_callback_that_fails_loses_nothing() -> None:
    """Its exception is raised, after what was learnt is saved."""
    pool = SimulatedPool()
    with pytest.raises(ZeroDivisionError):
        Fleet(pool, CONFIG, Ledger(RATIO), [Stopper(ZeroDivisionError())], clock=pool.clock).run()
    assert pool.saved["updates"] == pool.updates > 0


def test_a_callback_that_fails_at_every_checkpoint_does_not_cost_the_last_copy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It fails again as the last checkpoint is written: that one is there, and its copy is waited for."""
    pool = SimulatedPool()
    with pytest.raises(ZeroDivisionError):
        Fleet(pool, CONFIG, Ledger(RATIO), [Stopper(ZeroDivisionError())], clock=pool.clock).run()
    assert pool.finished_at_last
    assert "no last checkpoint" not in caplog.text
