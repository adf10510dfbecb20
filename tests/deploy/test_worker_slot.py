"""A worker's place: how long an order may take, by what is known of the worker."""

from __future__ import annotations

from dreamfleet.deploy.fleet.failures import HOPELESS_AFTER_S, Failures
from dreamfleet.deploy.fleet.worker_slot import START_S, USEFUL_STEPS, Order, WorkerSlot
from dreamfleet.deploy.workers.pool import Worker

CHANCE, WEIGHTS = -1, 0
"""The version that chooses the actions of an order: none yet, or the first weights published."""


def quick_slot() -> WorkerSlot:
    """Return the slot of an actor with a limit of 300 seconds, or of 60 once its orders are known to be quick."""
    return WorkerSlot("actor 0", 300.0, Failures(give_up_after_s=600.0), patience_s=60.0)


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
    slot = WorkerSlot("learner", 1800.0, Failures(give_up_after_s=600.0))
    answer(slot, give(slot, "restore"), 1.0)
    answer(slot, give(slot, "train", now=1.0), 2.0)
    give(slot, "train", now=2.0)
    assert not slot.is_late(1800.0)
    assert slot.is_late(1803.0)


def lose(slot: WorkerSlot, now: float, stored: int = 0, cause: str = "it died") -> float:
    """Lose the worker that is in a slot, or would be; return how long the slot then stays empty."""
    slot.worker = Worker("actor 0", None)
    give(slot, now=now)
    slot.lost(now, cause, stored)
    return slot.restart_at - now


def test_pauses_are_for_incarnations_that_achieve_nothing() -> None:
    """They grow with each incarnation that stores less than a chunk, and end with the first that stores one."""
    slot = quick_slot()
    pauses = []
    for stored in (63, 63, 63, 64, 0, 0, 0, 0, 0, 0, 0, 0):
        slot.made_progress(is_useful=False)
        pauses.append(lose(slot, 100.0, stored))
    assert pauses == [0.0, 1.0, 3.0, 0.0, 0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 60.0, 60.0]
    assert not slot.given_up


def test_a_slot_is_given_up_after_time_without_progress_and_tried_again() -> None:
    """However many failures there are, only ten minutes of them count; a step forgives them all."""
    slot, now, tries = quick_slot(), 0.0, 0
    while not slot.given_up:
        assert now <= 600.0 + 60.0
        now += lose(slot, now)
        tries += 1
    assert 10 < tries < 20
    assert 600.0 <= now - 600.0 <= 660.0, "and the next try comes after as long a time again"
    slot.made_progress(is_useful=False)
    assert not slot.given_up
    assert lose(slot, now, USEFUL_STEPS) == 0.0


def test_a_worker_that_never_worked_is_hopeless_after_half_a_minute_of_one_cause() -> None:
    """Numbers in the cause do not count; another cause, or any work done, and it is an outage to be waited for."""

    def fail(causes: list[str], worked: bool = False, idle: bool = False) -> bool:
        slot, now = quick_slot(), 0.0
        if worked:
            slot.made_progress(is_useful=False)
        for cause in causes:
            if idle:
                slot.lost(now, cause)
            now = max(now + lose(slot, now, cause=cause), now) if not idle else max(now, slot.restart_at)
        assert not slot.given_up
        return slot.failures.is_hopeless

    assert not fail(["it died"] * 5), "0, 1, 3 and 7 seconds"
    assert fail([f"actor {n} failed at step {n}, 0x{n:x}ab" for n in range(6)])
    assert not fail(["it died"] * 5 + ["it hangs"])
    assert not fail(["it died"] * 9, worked=True)
    assert not fail(["it died"] * 9, idle=True), "what ends an idle worker is not its work"
    assert 15.0 < HOPELESS_AFTER_S < 26.0


def test_only_a_worker_without_a_place_may_be_silent_for_ever() -> None:
    """A greeting is late once the worker has had its place for so long as a first answer may take."""
    slot = quick_slot()
    give(slot, "greet")
    assert slot.waits_for_place
    assert not slot.is_late(1e6)
    slot.started(1e6)
    assert not slot.waits_for_place
    assert not slot.is_late(1e6 + START_S)
    assert slot.is_late(1e6 + 1.0 + START_S)
    slot.answered(slot.orders[0], 1e6)
    slot.is_placed = True
    give(slot, now=1e6)
    assert slot.allowed_s == 300.0, "its process runs"


def test_the_next_incarnation_waits_for_a_place_of_its_own() -> None:
    """A worker that was lost in its place says nothing of where the next one is."""
    slot = quick_slot()
    give(slot, "greet")
    slot.started(1.0)
    slot.lost(400.0, "it gave no answer")
    assert slot.failures.in_a_row == 1
    assert not slot.waits_for_place, "nobody is there"
    give(slot, "greet", now=400.0)
    assert slot.waits_for_place
    assert not slot.is_late(1e6)
