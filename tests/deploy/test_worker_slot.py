"""A worker's place: how long an order may take, by what is known of the worker."""

from __future__ import annotations

from dreamfleet.deploy.fleet.worker_slot import SHORT_INCARNATIONS_IN_A_ROW, START_S, USEFUL_STEPS, Order, WorkerSlot
from dreamfleet.deploy.workers.pool import Worker

CHANCE, WEIGHTS = -1, 0
"""The version that chooses the actions of an order: none yet, or the first weights published."""


def quick_slot() -> WorkerSlot:
    """Return the slot of an actor with a limit of 300 seconds, or of 60 once its orders are known to be quick."""
    return WorkerSlot("actor 0", timeout_s=300.0, patience_s=60.0)


def give(slot: WorkerSlot, kind: str = "collect", now: float = 0.0, version: int = CHANCE) -> Order:
    """Queue an order of one step."""
    order = Order(None, kind, lambda answer: None, now, steps=1, version=version)
    slot.gave(order, now)
    return order


def answer(slot: WorkerSlot, order: Order, now: float, lost_weights: bool = False) -> None:
    """Answer an order in which an actor acted, with the weights meant for it if it could have them."""
    slot.answered(order, now)
    slot.acted(by_weights=order.version >= 0 and not lost_weights)


def test_an_actor_that_was_quick_is_found_hanging_soon() -> None:
    """An order's limit follows the orders before it: a minute after quick ones, ten times the slowest otherwise."""
    slot = quick_slot()
    order, now = give(slot), 0.0
    assert slot.allowed_s == 300.0 + START_S
    for seconds, allowed in ((1.0, 60.0), (12.0, 120.0), (2.0, 120.0), (100.0, 300.0)):
        following = give(slot)
        now += seconds
        answer(slot, order, now)
        assert slot.allowed_s == allowed
        order = following


def test_an_actor_that_plans_is_not_judged_by_what_chance_did() -> None:
    """The first order with weights has the whole limit, also if it was queued behind quick ones of chance."""
    slot = quick_slot()
    by_chance, planned = give(slot), give(slot, version=WEIGHTS)
    answer(slot, by_chance, 0.1)
    following = give(slot, version=WEIGHTS + 4)
    assert not slot.is_late(299.0)
    answer(slot, planned, 20.1)
    assert slot.allowed_s == 200.0, "ten times the order that planned"
    answer(slot, following, 21.0)
    give(slot, now=21.0, version=WEIGHTS + 8)
    assert slot.allowed_s == 200.0


def test_an_order_whose_weights_were_lost_says_nothing_of_weights() -> None:
    """Where weights cannot be had chance goes on acting, quickly: the first order that plans has the whole limit."""
    slot = quick_slot()
    without, planned = give(slot, version=WEIGHTS), give(slot, version=WEIGHTS)
    answer(slot, without, 0.1, lost_weights=True)
    assert slot.allowed_s == 300.0
    answer(slot, planned, 20.1)
    give(slot, now=20.1, version=WEIGHTS)
    assert slot.allowed_s == 200.0


def test_a_hanging_actor_is_still_found_soon_while_chance_acts() -> None:
    """The order by chance that is under way keeps the limit that quick ones left it when weights are queued behind."""
    slot = quick_slot()
    answer(slot, give(slot), 0.1)
    give(slot, now=0.1)
    give(slot, now=0.1, version=WEIGHTS)
    assert slot.is_late(61.0)


def test_an_order_without_patience_always_has_the_whole_limit() -> None:
    """The learner's first update may take far longer than its later ones, or these than it."""
    slot = WorkerSlot("learner", timeout_s=1800.0)
    answer(slot, give(slot, "restore"), 1.0)
    answer(slot, give(slot, "train", now=1.0), 2.0)
    give(slot, "train", now=2.0)
    assert not slot.is_late(1800.0)
    assert slot.is_late(1803.0)


def test_pauses_are_for_incarnations_that_achieve_nothing() -> None:
    """They grow with each incarnation that stores less than a chunk, and end with the first that stores one."""
    slot = quick_slot()
    pauses = []
    for stored in (63, 63, 63, 64, 0, 0):
        slot.worker = Worker("actor 0", None)
        slot.succeeded()
        slot.lost(100.0, "it died", stored)
        pauses.append(slot.restart_at - 100.0)
    assert pauses == [0.0, 1.0, 3.0, 0.0, 0.0, 1.0]
    assert not slot.given_up


def test_ten_incarnations_in_a_row_without_a_chunk_are_enough() -> None:
    """Incarnations that complete an order and store little are not restarted for ever."""
    slot = quick_slot()
    for _ in range(SHORT_INCARNATIONS_IN_A_ROW):
        assert not slot.given_up
        slot.succeeded()
        slot.lost(100.0, "it died", USEFUL_STEPS - 1)
    assert slot.given_up


def test_only_a_worker_without_a_place_may_be_silent_for_ever() -> None:
    """A greeting is late once the worker has had its place for so long as a first answer may take."""
    slot = quick_slot()
    give(slot, "greet")
    assert slot.waits_for_place
    assert not slot.is_late(1e6)
    slot.started(1e6)
    assert not slot.waits_for_place
    assert not slot.is_late(1e6 + 300.0 + START_S)
    assert slot.is_late(1e6 + 301.0 + START_S)


def test_the_next_incarnation_waits_for_a_place_of_its_own() -> None:
    """A worker that was lost in its place says nothing of where the next one is."""
    slot = quick_slot()
    give(slot, "greet")
    slot.started(1.0)
    slot.lost(400.0, "it gave no answer")
    assert slot.failures == 1
    assert not slot.waits_for_place, "nobody is there"
    give(slot, "greet", now=400.0)
    assert slot.waits_for_place
    assert not slot.is_late(1e6)
