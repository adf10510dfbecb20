"""The agent's networks: the same for learner and actors, and the weights that travel."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from moving_square import square_format

from dreamfleet.common.acting.action_distributions import BoundedNormal, JointAction, OneHotChoice, TanhNormal
from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten, load_flat
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.model import ModelSettings
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


SMALL = ModelSettings(encoder="strided", batch_norm=True, depth=2, embedding=8, deterministic=6, stochastic=3, hidden=5)


def small_model(seed: int) -> WorldModel:
    torch.manual_seed(seed)
    return WorldModel(square_format().spaces, SMALL)


@pytest.mark.numeric(dtype="float32")
def test_weights_arrive_bit_for_bit() -> None:
    """What one model acts by, another acts by after the way through a flat array that nobody may write to."""
    sent, received = small_model(0), small_model(1)
    flat = flatten(sent.acting_parameters())
    flat.flags.writeable = False  # as Ray hands it out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_flat(received.acting_parameters(), flat)
    assert flat.dtype == np.float32
    assert flat.shape == (sum(tensor.numel() for tensor in sent.acting_parameters().values()),)
    for name, tensor in sent.acting_parameters().items():
        assert torch.equal(tensor, received.acting_parameters()[name]), name
    image = torch.randint(0, 255, (1, 2, 16, 16, 1), dtype=torch.uint8)
    assert torch.equal(sent.eval().encode({"image": image}), received.eval().encode({"image": image}))


@pytest.mark.numeric(dtype="float32")
@pytest.mark.parametrize("names", [["a", "b"], ["a"]])
def test_published_weights_do_not_change_with_the_model(names: list[str]) -> None:
    """Neither the array that was published nor the parameters that took it over share memory with the other side."""
    parameters = {name: torch.ones(3) for name in names}
    flat = flatten(parameters)
    parameters["a"].zero_()
    assert flat[0] == 1.0
    load_flat(parameters, flat)
    flat[:] = 7.0
    assert parameters["a"][0] == 1.0


@pytest.mark.numeric(dtype="float32")
@pytest.mark.parametrize("shape", [(3,), (5,), (2, 2)])
def test_weights_of_another_model_are_refused(shape: tuple[int, ...]) -> None:
    """Too few or too many values are an error, and nothing is written."""
    parameters = {"a": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="weights have shape"):
        load_flat(parameters, np.ones(shape, np.float32))
    assert not parameters["a"].any()
