"""Central inference: the actions of local acting, whoever joins or leaves; questions gathered within a bounded wait."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from rounding import agree

from dreamfleet.actors.gathering import EXPECTED_S, MOST_WAIT_S, WAIT_SHARE, Client, Gathering, Waiting
from dreamfleet.actors.inference import CentralPolicy, Inference
from dreamfleet.common.acting.acting_model import ActingModel
from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.acting.make_policy import make_random_policy, policy_seed
from dreamfleet.common.acting.model_policy import ModelPolicy
from dreamfleet.common.acting.remote_policy import Answer, InferenceLostError, Question, RemotePolicy, RetiredError
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.settings.schema import Settings

DISCRETE = ActionSpec("discrete", (3,))
BOX = ActionSpec("box", (2,), (-2.0, 0.0), (2.0, 1.0), (2,))
MIXED = ActionSpec("mixed", (3, 2), (-2.0, 0.0), (2.0, float("inf")))
KINDS = ("planner", "actor_critic")


def spaces_of(action: ActionSpec) -> Spaces:
    return Spaces((ObservationSpec("vector", (4,), "float32"),), action)


def settings_of(kind: str = "actor_critic", **behaviour: Any) -> Settings:
    small = {"horizon": 3, "candidates": 12, "iterations": 2, "elites": 3, "units": 8, "actor_layers": 1}
    return Settings(
        seed=4,
        model={"deterministic": 8, "stochastic": 3, "hidden": 8, "vector_units": 8, "reward_units": 8},
        behaviour=small | {"kind": kind, "exploration": 0.3} | behaviour,
    )


def weights_of(settings: Settings, spaces: Spaces, seed: int = 0) -> np.ndarray:
    torch.manual_seed(seed)
    agent = AgentNetworks(spaces, settings)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return flatten(agent.acting_parameters())


def central_of(settings: Settings, spaces: Spaces, threads: int = 1, device: str = "cpu") -> CentralPolicy:
    central = CentralPolicy(settings, ActingModel(settings, spaces, explores=True, device=device, threads=threads))
    central.adopt(1, weights_of(settings, spaces))
    return central


class Played:
    """An actor's observations and episode starts, drawn at random, and how far it has come."""

    def __init__(self, actor: int, incarnation: int, environments: int, steps: int = 12) -> None:
        rng = np.random.default_rng(100 * actor + incarnation)
        self.client = Client(actor, incarnation)
        self.observations = rng.normal(size=(steps, environments, 4)).astype(np.float32)
        self.is_first = rng.random((steps, environments)) < 0.2
        self.is_first[0] = True
        self.actions: list[np.ndarray] = []
        self.versions: list[int] = []

    def question(self, life: int = 0) -> Question:
        step = len(self.actions)
        return Question(*self.client, life, {"vector": self.observations[step]}, self.is_first[step])

    def took(self, answer: Answer) -> None:
        self.actions.append(answer.actions)
        self.versions.append(answer.version)

    def locally(self, settings: Settings, spaces: Spaces, weights: Sequence[np.ndarray]) -> np.ndarray:
        """Return what a policy in the actor's own process does, with the weights of each step."""
        seed = policy_seed(settings, *self.client)
        policy = ModelPolicy(settings, spaces, self.observations.shape[1], seed, explores=True)
        found = []
        for step, flat in enumerate(weights):
            policy.adopt(step, flat)
            found.append(policy.act({"vector": self.observations[step]}, self.is_first[step]))
        return np.stack(found)


def answer(central: CentralPolicy, *players: Played) -> None:
    """Have one batch answered."""
    for player, found in zip(players, central.answer([player.question() for player in players]), strict=True):
        player.took(found)


@pytest.mark.numeric
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", [DISCRETE, BOX, MIXED], ids=["discrete", "box", "mixed"])
def test_every_environment_gets_the_actions_of_local_acting(kind: str, action: ActionSpec, threads: int) -> None:
    """Batches of any actors in any order, weights that change between: the same actions but for rounding."""
    settings, spaces = settings_of(kind), spaces_of(action)
    central = central_of(settings, spaces, threads)
    old, new = weights_of(settings, spaces), weights_of(settings, spaces, seed=1)
    one, two, three = Played(0, 0, 2), Played(1, 1, 1), Played(2, 5, 3)
    for step in range(8):
        if step == 4:
            central.adopt(9, new)
        answer(central, *([one, two, three] if step % 2 else [three, one]))
    answer(central, two)
    for player, acted in ((one, [old] * 4 + [new] * 4), (two, [old] * 2 + [new] * 3), (three, [old] * 4 + [new] * 4)):
        found, expected = np.stack(player.actions), player.locally(settings, spaces, acted)
        assert np.array_equal(found, expected) if action is DISCRETE else agree(found, expected)
    assert one.versions == [1] * 4 + [9] * 4


@pytest.mark.gpu
@pytest.mark.numeric
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", [DISCRETE, BOX, MIXED], ids=["discrete", "box", "mixed"])
def test_a_gpu_gives_the_actions_of_local_acting(kind: str, action: ActionSpec) -> None:
    """In float64, with the same random numbers, which are drawn on the host."""
    settings, spaces = settings_of(kind), spaces_of(action)
    central, player = central_of(settings, spaces, device="cuda"), Played(0, 0, 3)
    for _ in range(8):
        answer(central, player)
    expected = player.locally(settings, spaces, [weights_of(settings, spaces)] * 8)
    assert agree(np.stack(player.actions), expected)


def test_who_joins_or_leaves_changes_nothing_for_the_others_and_leaves_nothing() -> None:
    """States of an incarnation go with it: by name, or when the actor's next incarnation asks."""
    settings, spaces = settings_of(), spaces_of(BOX)
    central = central_of(settings, spaces)
    stays, replaced, gone = Played(0, 0, 1), Played(1, 1, 2), Played(2, 2, 1)
    successor = Played(1, 3, 2)
    answer(central, stays, replaced, gone)
    central.forget(gone.client)
    answer(central, stays, successor)
    assert set(central.memories) == {stays.client, successor.client}
    for retired in (replaced, gone):
        with pytest.raises(RetiredError, match="asks in incarnation"):
            central.check(retired.client)
    central.answer([gone.question()])  # it was in the batch already
    assert set(central.memories) == {stays.client, successor.client}
    central.check(successor.client)
    central.check(Client(2, 4))
    answer(central, stays, successor)
    weights = [weights_of(settings, spaces)] * 3
    assert agree(np.stack(stays.actions), stays.locally(settings, spaces, weights))
    assert agree(np.stack(successor.actions), successor.locally(settings, spaces, weights[:2]))


def test_a_new_life_begins_with_zero_states_and_other_random_numbers() -> None:
    """What was seen before the loss no longer counts, in the middle of an episode; the noise is not repeated."""
    settings, spaces = settings_of(), spaces_of(BOX)
    before, without = Played(0, 0, 1), Played(0, 0, 1)
    before.is_first[1:] = without.is_first[1:] = False
    without.observations[:3] += 1.0
    first = central_of(settings, spaces)
    for _ in range(3):
        answer(first, before)
    second = central_of(settings, spaces)
    found = second.answer([before.question(life=1)])[0].actions
    before.is_first[3] = True
    assert np.array_equal(found, central_of(settings, spaces).answer([before.question(life=1)])[0].actions)
    assert not np.array_equal(found, central_of(settings, spaces).answer([before.question(life=0)])[0].actions)
    again = first.answer([before.question(life=1)])[0].actions
    assert np.array_equal(found, again), "the same process, asked in a life that it does not know"


def waiting_of(actor: int, since: float, environments: int = 1) -> Waiting:
    is_first = np.zeros(environments, bool)
    return Waiting(Question(actor, 0, 0, {}, is_first), since, Future())


def test_a_batch_is_due_once_everyone_expected_has_asked_or_the_wait_is_over() -> None:
    """At first nobody is expected; then those who were answered are waited for, for half the time of a batch."""
    gathering = Gathering(most=100)
    assert gathering.due_in(0.0) is None
    gathering.add(waiting_of(0, since=0.0))
    gathering.add(waiting_of(1, since=0.0))
    assert gathering.due_in(0.0) == 0.0, "nobody is known who might ask"
    batch = gathering.take()
    assert [each.client.actor for each in batch] == [0, 1]
    gathering.answered(batch, now=1.0, took_s=0.02)
    assert gathering.limit_s == pytest.approx(0.02 * WAIT_SHARE)
    gathering.add(waiting_of(0, since=1.001))
    assert gathering.due_in(1.002) == pytest.approx(0.009)
    assert gathering.due_in(1.02) == 0.0, "the oldest has waited enough"
    gathering.add(waiting_of(1, since=1.003))
    assert gathering.due_in(1.003) == 0.0, "all are there"


def test_nobody_is_waited_for_who_has_been_silent() -> None:
    """Who was answered a while ago and has not asked since has completed its order, is slow or lost."""
    gathering = Gathering(most=100)
    for actor in (0, 1):
        gathering.add(waiting_of(actor, since=0.0))
    gathering.answered(gathering.take(), now=0.1, took_s=10.0)
    assert gathering.limit_s == MOST_WAIT_S
    gathering.add(waiting_of(0, since=0.1))
    assert gathering.due_in(0.1) == pytest.approx(MOST_WAIT_S)
    gathering.forget(Client(1, 0))
    assert gathering.due_in(0.1) == 0.0, "it was lost"
    gathering.answered(gathering.take(), now=0.2, took_s=10.0)
    gathering.add(waiting_of(2, since=0.2 + EXPECTED_S))
    assert gathering.due_in(0.2 + EXPECTED_S) == 0.0


def test_a_batch_holds_no_more_environments_than_it_may() -> None:
    """What does not fit waits for the next one, the oldest first; one question alone always fits."""
    gathering = Gathering(most=4)
    for actor, environments in enumerate((1, 2, 2, 9)):
        gathering.add(waiting_of(actor, since=float(actor), environments=environments))
    assert gathering.due_in(9.0) == 0.0
    assert [[each.client.actor for each in gathering.take()] for _ in range(4)] == [[0, 1], [2], [3], []]
    assert gathering.due_in(9.0) is None


def test_an_actor_that_asks_again_is_answered_once() -> None:
    """The question that it no longer waits for is given back, and the newer one is in the batch."""
    gathering = Gathering(most=4)
    older, newer = waiting_of(0, since=0.0), waiting_of(0, since=1.0)
    assert gathering.add(older) is None
    assert gathering.add(newer) is older
    assert gathering.take() == [newer]


def inference_of(settings: Settings, spaces: Spaces) -> Inference:
    policy = CentralPolicy(settings, ActingModel(settings, spaces, explores=True))
    return Inference(policy, 100, 1, weights_of(settings, spaces))


def test_actors_on_threads_of_their_own_are_answered_as_locally() -> None:
    """Four actors ask side by side, and are gathered; each gets its own actions."""
    settings, spaces = settings_of(), spaces_of(BOX)
    inference = inference_of(settings, spaces)
    players = [Played(actor, actor, 2) for actor in range(4)]

    def play(player: Played) -> None:
        for _ in range(10):
            player.took(inference.ask(player.question()).result(60))

    threads = [threading.Thread(target=play, args=(player,)) for player in players]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = inference.report()
    inference.close()
    assert (report.steps, report.questions, report.clients, report.version) == (80, 40, 4, 1)
    assert 10 <= report.batches < 40, "some were gathered"
    assert inference.report().steps == 0
    for player in players:
        assert agree(np.stack(player.actions), player.locally(settings, spaces, [weights_of(settings, spaces)] * 10))


def test_a_failure_fails_every_question_and_is_told() -> None:
    """Nobody waits for an answer that will never come."""
    settings, spaces = settings_of(), spaces_of(BOX)
    inference = inference_of(settings, spaces)
    wrong = Question(0, 0, 0, {"vector": np.zeros((1, 3), np.float32)}, np.zeros(1, bool))
    with pytest.raises(InferenceLostError, match="answering failed: RuntimeError"):
        inference.ask(wrong).result(60)
    assert isinstance(inference.failed.exception(60), RuntimeError)
    with pytest.raises(InferenceLostError, match="failed before"):
        inference.ask(Played(0, 0, 1).question())
    inference.close()


def test_who_no_longer_waits_keeps_nobody_from_an_answer() -> None:
    """A coroutine that ends cancels the future that it waits for: answering goes on all the same."""
    settings, spaces = settings_of(), spaces_of(BOX)
    inference = inference_of(settings, spaces)
    for actor in range(2):
        waits = inference.ask(Played(actor, 0, 1).question())
        waits.cancel()
        assert waits.result(60).actions.shape == (1, 2)
    inference.close()


def test_a_retired_incarnation_that_waits_is_refused() -> None:
    """An actor that was given up while it waits for others is told so, and leaves no state."""
    settings, spaces = settings_of(), spaces_of(BOX)
    inference = inference_of(settings, spaces)
    stays, retired = Played(0, 0, 1), Played(1, 1, 1)
    inference.ask(retired.question()).result(60)
    inference.ask(stays.question()).result(60)
    inference._gathering.limit_s = 60.0  # `stays` is waited for
    waits = inference.ask(retired.question())
    inference.forget(1, 1)
    with pytest.raises(RetiredError, match="given up"):
        waits.result(60)
    with pytest.raises(RetiredError, match="only 2 and later"):
        inference.ask(retired.question())
    assert set(inference._policy.memories) == {stays.client}
    inference.close()


class Server:
    """What an actor asks: it answers, or is lost for a number of tries."""

    def __init__(self, central: CentralPolicy) -> None:
        self.central = central
        self.lost = 0
        self.lives: list[int] = []
        self.now = 0.0

    def __call__(self, question: Question, timeout_s: float) -> Answer:
        self.lives.append(question.life)
        if self.lost:
            self.lost -= 1
            self.now += 1.0
            raise InferenceLostError("the simulated process died")
        return self.central.answer([question])[0]

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_an_actor_acts_by_chance_then_asks_and_outlives_the_process_it_asked() -> None:
    """Its episodes go on from zero states in the next process; if none comes in time, that is an error."""
    settings, spaces = settings_of(), spaces_of(DISCRETE)
    server = Server(central_of(settings, spaces))
    player = Played(0, 0, 1)
    seed = policy_seed(settings, 0, 0)
    policy = RemotePolicy(
        server, 0, 0, make_random_policy(settings, spaces, 1, seed), 60.0, lambda: server.now, server.sleep
    )
    observations, first = {"vector": player.observations[0]}, player.is_first[0]
    expected = make_random_policy(settings, spaces, 1, seed).act(observations, first)
    assert np.array_equal(policy.act(observations, first), expected)
    assert (policy.version, server.lives) == (-1, [])
    policy.adopt(1, np.empty(0, np.float32))
    policy.act(observations, first)
    server.central.adopt(7, weights_of(settings, spaces, 3))
    policy.act(observations, first)
    assert (policy.version, server.lives) == (7, [0, 0])
    server.lost = 3
    server.central = central_of(settings, spaces)
    policy.act(observations, np.zeros(1, bool))
    policy.act(observations, np.zeros(1, bool))
    assert server.lives[2:] == [0, 1, 2, 3, 3]
    server.lost = 1000
    with pytest.raises(InferenceLostError, match="no inference process answered for 60 s, at last: the simulated"):
        policy.act(observations, first)
