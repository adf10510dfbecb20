"""The train ratio as a property: whatever befalls a fleet of simulated workers, its counts are exact in the end."""

from __future__ import annotations

import dataclasses
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storing_pool import StoringPool

from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.replay.interface import ReplayLostError

LONGEST_S = 1e6
"""Of simulated time: a fleet that is not at its end by then goes round for ever."""


@dataclasses.dataclass(frozen=True)
class History:
    """What befalls a run: its size and speeds, when who fails, and after how many seconds each start of it is stopped.

    Attributes:
        faults: collect orders, counted over all actors, that end badly, each with its fate.
        learner_dies: updates at which it does, in rising order.
        stops: simulated seconds that each start lasts but the last, which comes to its end.
        ranks: that share the batches of each start, the last number also of those after it: each makes them as much
            faster, and the learner dies with any of them.
        shards: of the replay, which is a real one; what is stored is counted from disk by each start.
        shard_dies: for each shard, which of its appends in the first start end it, and how; there are others after it.
    """

    actors: int
    steps_per_order: int
    updates_per_order: int
    env_steps: int
    prefill: int
    ratio: float
    replayed_per_update: int
    seconds_per_step: float
    seconds_per_update: float
    evaluate_every: int
    faults: dict[int, str]
    learner_dies: list[int]
    evaluator_dies: set[int]
    seconds_per_write: float
    stops: list[float]
    seed: int
    ranks: list[int] = dataclasses.field(default_factory=lambda: [1])
    shards: int = 1
    shard_dies: dict[int, dict[int, str]] = dataclasses.field(default_factory=dict)


histories = st.builds(
    History,
    actors=st.integers(1, 6),
    steps_per_order=st.integers(1, 40),
    updates_per_order=st.integers(1, 9),
    env_steps=st.integers(60, 600),
    prefill=st.integers(0, 59),
    ratio=st.sampled_from([0.1, 0.3, 1.0, 1.7, 4.0, 8.0]),
    replayed_per_update=st.integers(4, 40),
    seconds_per_step=st.sampled_from([1e-4, 1e-2, 0.3]),
    seconds_per_update=st.sampled_from([1e-4, 5e-2, 2.0]),
    evaluate_every=st.sampled_from([0, 50, 1000]),
    faults=st.dictionaries(
        st.integers(1, 40), st.sampled_from(["lost", "failed", "hung", "cut off"]), max_size=5
    ).filter(
        lambda faults: list(faults.values()).count("hung") < 3  # three in a row, and no actor ever worked: a run's end
    ),
    learner_dies=st.lists(st.integers(0, 120), max_size=3)
    .map(sorted)
    .filter(lambda dies: len(dies) < 3 or dies[2] > 9),  # else none may have answered an order: a run's end, too
    evaluator_dies=st.sets(st.integers(1, 4), max_size=2),
    seconds_per_write=st.sampled_from([0.0, 0.7]),
    stops=st.lists(st.floats(0.0, 30.0), max_size=3),
    seed=st.integers(0, 2**31),
    ranks=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    shards=st.integers(1, 4),
    shard_dies=st.dictionaries(
        st.integers(0, 3),
        st.dictionaries(st.integers(1, 12), st.sampled_from(["lost before", "lost after", "restarted"]), max_size=3),
        max_size=3,
    ),
)


class Watcher(Callbacks):
    """Asserts at every turn that no update outruns the ratio, and that every order has an owner."""

    def __init__(self, pool: StoringPool) -> None:
        self.pool = pool

    def on_turn(self, fleet: FleetState) -> None:
        assert self.pool.now < LONGEST_S, "it goes round for ever"
        ledger = fleet.ledger
        assert ledger.updates <= ledger.ratio.updates_allowed(self.pool.total_steps + self.pool.unanswered)
        ordered = sum(order.steps for slot in fleet.roster for order in slot.orders)
        assert ledger.ordered_steps == ordered, "an order without an owner, or an owner without an order"
        wanted = max(0, ledger.ratio.env_steps - ledger.env_steps)  # 0 where a lost shard brought back more
        assert ledger.ordered_steps <= wanted, "more was ordered than is wanted"
        for slot in fleet.roster:
            assert slot.worker or not slot.orders


def live_through(history: History, pool: StoringPool) -> tuple[FleetState, TrainRatio]:
    """Run a fleet through a history, in as many starts as it has, and return how it stands at the end."""
    config = FleetConfig(
        actors=history.actors, environments=1, steps_per_order=history.steps_per_order,
        updates_per_order=history.updates_per_order, checkpoint_every=20, picture_every=50, actor_timeout_s=60.0,
        learner_timeout_s=600.0, evaluate_every=history.evaluate_every,
    )  # fmt: skip
    ratio = TrainRatio(history.env_steps, history.ratio, history.replayed_per_update, history.prefill)
    for start, stop in enumerate([*history.stops, LONGEST_S, LONGEST_S]):
        stored = pool.on_disk()
        assert stored == pool.total_steps + pool.unanswered, "what was acknowledged lies on disk, once"
        pool.seconds_per_update = history.seconds_per_update / history.ranks[min(start, len(history.ranks) - 1)]
        until = pool.now + stop
        ledger = Ledger(ratio, updates=pool.saved["updates"])
        fleet = Fleet(pool, config, ledger, [Watcher(pool)], lambda until=until: pool.now > until, pool.clock)
        try:
            state = fleet.run()
        except ReplayLostError:
            pool.count_unknown()
            assert not pool.replay.alive, "a run goes on with the shards that it has"
            continue
        pool.count_unknown()
        assert pool.saved["updates"] == state.ledger.updates, "a stop saves all that was learnt"
        if len(pool.replay.alive) == history.shards:
            assert state.ledger.env_steps == pool.total_steps + pool.unanswered
        if stop == LONGEST_S:
            break
    return state, ratio


def check(history: History) -> None:
    """Assert what is promised of any history."""
    pool = StoringPool(
        seconds_per_step=history.seconds_per_step, sequence_length=4, seed=history.seed, shards=history.shards,
        lose=lambda actor, order: history.faults.get(order, ""), lose_learner_at=list(history.learner_dies),
        lose_evaluation=lambda number: number in history.evaluator_dies, seconds_per_write=history.seconds_per_write,
        shard_dies=history.shard_dies,
    )  # fmt: skip
    with closing(pool):
        state, ratio = live_through(history, pool)
        assert pool.on_disk() == pool.total_steps + pool.unanswered, "each step once"
    # What a shard stored just before it was lost may have been collected anew by the time it was opened again.
    assert ratio.env_steps <= pool.total_steps + pool.unanswered <= ratio.env_steps + pool.unknown
    assert state.ledger.updates == pool.updates == ratio.updates
    owed = ratio.ratio * (ratio.env_steps - ratio.prefill) / ratio.replayed_per_update
    assert owed - 1.0 < state.ledger.updates <= owed + 1e-9


@given(histories)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_ratio_is_exact_in_any_history(history: History) -> None:
    """Random sizes, speeds, deaths, hangs, checkpoints beside the updates, stops and resumptions."""
    check(history)


@pytest.mark.chaos
@pytest.mark.hangs_after(3600)
@given(histories)
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_ratio_is_exact_in_a_thousand_histories(history: History) -> None:
    """The same with other histories each time; what fails is printed, to become a test by name."""
    check(history)


def test_a_history_without_faults() -> None:
    """The strategy's ground state holds, so that a failure of another is its own."""
    check(History(2, 16, 4, 300, 40, 4.0, 20, 0.01, 0.05, 0, {}, [], set(), 0.0, [], 1))


@pytest.mark.parametrize("replayed_per_update", [4, 5])
def test_the_steps_of_a_lost_shard_do_not_say_that_others_are_too_few(replayed_per_update: int) -> None:
    """The only shard with steps is lost: the others are empty, and have yet to be filled."""
    for steps_per_order in (1, 4, 17):
        check(dataclasses.replace(
            History(1, steps_per_order, 1, 60, 0, 0.1, replayed_per_update, 1e-4, 1e-4, 0, {}, [], set(), 0.0, [], 0),
            shards=2, shard_dies={0: {2: "lost before"}},
        ))  # fmt: skip
