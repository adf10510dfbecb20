"""Acting on the model: states of their own, chance until there are weights, and the same actions for one or many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rounding import agree

from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.acting.model_policy import ModelPolicy
from dreamfleet.common.acting.policy import RandomPolicy
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.settings.schema import Settings

pytestmark = pytest.mark.numeric(dtype="float32")  # of stored actions and of weights as they travel

DISCRETE = ActionSpec("discrete", (3,))
MULTI = ActionSpec("multi_discrete", (2, 3))
MIXED = ActionSpec("mixed", (3, 2), (-2.0, 0.0), (2.0, float("inf")))
BOX = ActionSpec("box", (2,), (-2.0, 0.0), (2.0, 1.0), (2,))
KINDS = ("planner", "actor_critic")


def spaces_of(action: ActionSpec) -> Spaces:
    return Spaces((ObservationSpec("vector", (4,), "float32"),), action)


def settings_of(kind: str, **behaviour: Any) -> Settings:
    small = {"horizon": 3, "candidates": 12, "iterations": 2, "elites": 3, "units": 8, "actor_layers": 1}
    return Settings(
        model={"deterministic": 8, "stochastic": 3, "hidden": 8, "vector_units": 8, "reward_units": 8},
        behaviour=small | {"kind": kind} | behaviour,
    )


def weights_of(settings: Settings, spaces: Spaces, seed: int = 0) -> np.ndarray:
    """Return the weights of an agent whose parameters are drawn at random, larger than at a learner's start."""
    torch.manual_seed(seed)
    agent = AgentNetworks(spaces, settings)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return flatten(agent.acting_parameters())


def policy_of(settings: Settings, spaces: Spaces, environments: int, explores: bool = False) -> ModelPolicy:
    policy = ModelPolicy(settings, spaces, environments, 7, explores)
    policy.adopt(1, weights_of(settings, spaces))
    return policy


def act(policy: ModelPolicy, observations: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """Return the actions (T, K, …) for observations (T, K, 4) and is_first (T, K)."""
    return np.stack([policy.act({"vector": seen}, first) for seen, first in zip(observations, is_first, strict=True)])


def recorded(steps: int, environments: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    is_first = rng.random((steps, environments)) < 0.2
    is_first[0] = True
    return rng.normal(size=(steps, environments, 4)).astype(np.float32), is_first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", [DISCRETE, MULTI, BOX, MIXED], ids=["discrete", "multi", "box", "mixed"])
def test_actions_are_of_the_stored_type_and_within_their_range(kind: str, action: ActionSpec) -> None:
    """Every kind of behaviour acts in every kind of space, exploring or not."""
    spaces = spaces_of(action)
    observations, is_first = recorded(6, 2)
    for explores in (False, True):
        actions = act(policy_of(settings_of(kind, exploration=0.5), spaces, 2, explores), observations, is_first)
        assert actions.shape == (6, 2, *action.stored_shape)
        assert actions.dtype == action.stored_dtype
        flat = actions.reshape(6, 2, -1)
        chosen, reals = flat[..., : len(action.choices)], flat[..., len(action.choices) :]
        assert (chosen == chosen.astype(int)).all()
        assert ((chosen >= 0) & (chosen < np.array(action.choices))).all()
        assert ((reals >= np.array(action.low)) & (reals <= np.array(action.high))).all()


@pytest.mark.numeric
@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_gets_the_same_actions_alone_and_among_others(kind: str) -> None:
    """What the first of three environments gets is what it gets alone, but for rounding, exploring too."""
    spaces = spaces_of(BOX)
    observations, is_first = recorded(8, 3)
    for explores in (False, True):
        settings = settings_of(kind, exploration=0.3)
        together = act(policy_of(settings, spaces, 3, explores), observations, is_first)
        alone = act(policy_of(settings, spaces, 1, explores), observations[:, :1], is_first[:, :1])
        assert agree(together[:, :1], alone)


def test_the_state_remembers_and_an_episode_forgets() -> None:
    """What was seen before changes what is done now; where an episode begins it no longer does."""
    spaces, settings = spaces_of(BOX), settings_of("actor_critic")
    observations, is_first = recorded(4, 1)
    other = observations.copy()
    other[0] += 1.0
    is_first[1:] = False
    assert not np.allclose(
        act(policy_of(settings, spaces, 1), observations, is_first)[3],
        act(policy_of(settings, spaces, 1), other, is_first)[3],
    )
    is_first[3] = True
    assert np.allclose(
        act(policy_of(settings, spaces, 1), observations, is_first)[3],
        act(policy_of(settings, spaces, 1), other, is_first)[3],
    )


def test_chance_acts_until_there_are_weights() -> None:
    """Before the first weights the version is -1 and the actions are chance's; with them the episode begins anew."""
    spaces, settings = spaces_of(DISCRETE), settings_of("actor_critic")
    policy = make_policy(settings, spaces, 2, 7)
    assert isinstance(policy, ModelPolicy)
    observations, is_first = recorded(5, 2)
    expected = act(RandomPolicy(DISCRETE, 2, 7), observations, is_first)
    assert np.array_equal(act(policy, observations, is_first), expected)
    assert policy.version == -1
    policy.adopt(0, weights_of(settings, spaces))
    begun = act(policy_of(settings, spaces, 2, explores=True), observations, _first_only(is_first))
    assert np.array_equal(act(policy, observations, np.zeros_like(is_first)), begun)
    assert policy.version == 0


def test_observations_may_lie_in_memory_as_they_like() -> None:
    """A renderer turns its picture by a negative stride; the actions are those for a copy of it."""
    settings, spaces = settings_of("actor_critic"), spaces_of(DISCRETE)
    observations, is_first = recorded(4, 3)
    turned = np.ascontiguousarray(observations[..., ::-1])[..., ::-1]
    assert turned.strides[-1] < 0
    found = act(policy_of(settings, spaces, 3), turned, is_first)
    assert np.array_equal(found, act(policy_of(settings, spaces, 3), observations, is_first))


def _first_only(is_first: np.ndarray) -> np.ndarray:
    only = np.zeros_like(is_first)
    only[0] = True
    return only


def test_the_actor_reads_what_the_learner_will_read() -> None:
    """The previous action of the state is the stored one, clipped and rounded, not what the policy had in mind."""
    spaces, settings = spaces_of(BOX), settings_of("actor_critic", exploration=10.0)
    policy = policy_of(settings, spaces, 1, explores=True)
    stored = policy.act({"vector": np.zeros((1, 4), np.float32)}, np.array([True]))
    assert set(np.abs(policy._memory.previous.numpy()).round(4).ravel()) == {1.0}, "noise of 10 ends at a bound"
    assert np.isin(stored[0, 0], (-2.0, 2.0))


def test_exploring_a_mixed_action_moves_both_kinds() -> None:
    """Choices are chance now and then, and reals get noise at every step, as alone."""
    policy = policy_of(settings_of("actor_critic", exploration=0.4), spaces_of(MIXED), 1, explores=True)
    policy._model._choose = lambda state, generators: torch.tensor([[1.0, 0, 0, 1, 0, 0.0, 0.0]])  # type: ignore[method-assign]
    actions = act(policy, np.zeros((600, 1, 4), np.float32), np.ones((600, 1), bool))[:, 0]
    assert abs(float((actions[:, 0] != 0).mean()) - 0.4 * 2 / 3) < 0.07
    assert abs(actions[:, 2].std() - 0.4 * 2) < 0.1  # in units of half the bounds' width
    assert (actions[:, 3] >= 0).all()


def test_exploring_a_choice_is_chance_now_and_then() -> None:
    """With exploration ε a choice is uniform in a share ε of the steps, and the policy's own in the others."""
    spaces = spaces_of(DISCRETE)
    observations = np.zeros((600, 1, 4), np.float32)
    is_first = np.ones((600, 1), bool)
    settled = settings_of("planner", exploration=0.0)
    usual = act(policy_of(settled, spaces, 1, explores=False), observations[:1], is_first[:1])[0, 0]
    # A planner of one candidate and no exploration is chance as well: let it find the same choice always.
    settings = settings_of("actor_critic", exploration=0.4)
    policy = policy_of(settings, spaces, 1, explores=True)
    policy._model._choose = lambda state, generators: torch.eye(3)[int(usual)][None]  # type: ignore[method-assign]
    share = float((act(policy, observations, is_first)[:, 0] != usual).mean())
    assert abs(share - 0.4 * 2 / 3) < 0.07


def test_weights_of_another_model_are_refused() -> None:
    """Weights that do not fit are an error, and change nothing."""
    spaces, settings = spaces_of(BOX), settings_of("actor_critic")
    policy = policy_of(settings, spaces, 1)
    with pytest.raises(ValueError, match="the weights have shape"):
        policy.adopt(2, np.zeros(5, np.float32))
    assert policy.version == 1
