"""The agent: one set of parts for learner and actors, and what of it travels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dreamfleet.common.acting.action_distributions import BoundedNormal, JointAction, OneHotChoice, TanhNormal
from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten, load_flat
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.settings.schema import Settings

pytestmark = pytest.mark.numeric

CHOICE = ActionSpec("multi_discrete", (3, 2))
MIXED = ActionSpec("mixed", (3, 2), (-1.0,), (1.0,))
BOX = ActionSpec("box", (2,), (-1.0, -2.0), (1.0, 2.0), (2,))


def make_agent(action: ActionSpec = CHOICE, seed: int = 0, **behaviour: Any) -> AgentNetworks:
    """Return a small agent that observes four numbers."""
    torch.manual_seed(seed)
    sizes = {"deterministic": 12, "stochastic": 4, "hidden": 8, "vector_units": 8, "reward_units": 8}
    settings = Settings.model_validate({"model": sizes, "behaviour": {"kind": "actor_critic", "units": 8} | behaviour})
    return AgentNetworks(Spaces((ObservationSpec("state", (4,), "float32"),), action), settings)


@pytest.mark.parametrize(
    ("action", "box_policy", "expected"),
    [
        (CHOICE, "bounded_normal", OneHotChoice),
        (BOX, "bounded_normal", BoundedNormal),
        (BOX, "tanh_normal", TanhNormal),
        (MIXED, "bounded_normal", JointAction),
        (MIXED, "tanh_normal", JointAction),
    ],
)
def test_the_policy_fits_the_action(action: ActionSpec, box_policy: str, expected: type) -> None:
    """Choices are one-hots side by side, boxes the Normal that the settings name, for features of any leading axes."""
    agent = make_agent(action, box_policy=box_policy)
    policy = agent.policy(torch.randn(2, 3, agent.world_model.feature_width))
    assert isinstance(policy, expected)
    assert policy.sample().shape == policy.mode.shape == (2, 3, action.width)
    assert policy.log_prob(policy.sample().detach()).shape == policy.entropy().shape == (2, 3)


def test_a_scaled_down_last_layer_begins_with_almost_equal_choices() -> None:
    """V3's actor begins by chance; unimix keeps every choice possible whatever the network says."""
    feature = torch.randn(50, make_agent().world_model.feature_width)
    near, far = make_agent(actor_output_scale=0.01), make_agent()
    with torch.no_grad():
        assert (near.policy(feature).log_prob(torch.tensor([1.0, 0, 0, 1, 0])) - np.log(1 / 6)).abs().max() < 0.02
        assert (far.policy(feature).log_prob(torch.tensor([1.0, 0, 0, 1, 0])) - np.log(1 / 6)).abs().max() > 0.05
        mixed = make_agent(unimix=0.3)
        assert mixed.actor is not None
        mixed.actor.output.bias += torch.tensor([100.0, 0, 0, 0, 0])
        chosen = mixed.policy(feature).log_prob(torch.tensor([0.0, 1, 0, 0, 0])).exp()  # of the first group alone
    assert torch.allclose(chosen, torch.tensor(0.1), atol=1e-5)


@pytest.mark.numeric(dtype="float32")
@pytest.mark.parametrize("kind", ["random", "planner", "actor_critic"])
def test_what_acting_needs_travels_as_one_array(kind: str) -> None:
    """Flat weights of one agent make another act as the first does; the decoder and what only learns stay at home."""
    one, other = make_agent(seed=1, kind=kind), make_agent(seed=2, kind=kind)
    names = one.acting_parameters().keys()
    assert {name.split(".")[0] for name in names} == {"encoder", "dynamics"} | {
        "random": set(),
        "planner": {"reward"},
        "actor_critic": {"actor"},
    }[kind]
    load_flat(other.acting_parameters(), flatten(one.acting_parameters()))
    feature = torch.randn(5, one.world_model.feature_width)
    if kind == "actor_critic":
        assert torch.equal(one.policy(feature).mode, other.policy(feature).mode)
        noise = torch.rand(5, 2)
        assert torch.equal(one.policy(feature).sample(noise), other.policy(feature).sample(noise))
    if kind == "planner":
        assert torch.equal(one.world_model.predict_reward(feature).mean, other.world_model.predict_reward(feature).mean)


def test_chance_and_planner_have_no_actor() -> None:
    """And their world model is, number for number, the one that an actor–critic of the same seed begins with."""
    models = [make_agent(kind=kind).world_model.state_dict() for kind in ("random", "planner", "actor_critic")]
    assert make_agent(kind="random").actor is None
    assert make_agent(kind="planner").actor is None
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name])
        assert torch.equal(tensor, models[2][name])
