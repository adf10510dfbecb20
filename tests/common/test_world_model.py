"""The world model as one module."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from random_batch import random_batch
from torch import Tensor

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.model import LossSettings, ModelSettings
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.clipping import Gradients, ParameterGroup, clip_adaptively
from dreamfleet.learner.optimiser import make_optimiser
from dreamfleet.learner.world_model_loss import world_model_loss

pytestmark = pytest.mark.numeric

GREY = Spaces((ObservationSpec("image", (64, 64, 1), "uint8"),), ActionSpec("discrete", (5,)))
SMALL = {"depth": 4, "embedding": 32, "deterministic": 24, "stochastic": 6, "hidden": 24, "reward_units": 24}
V3 = {
    "encoder": "dreamer",
    "convolution_activation": "silu",
    "recurrence": "block_gru",
    "latent": "categorical",
    "classes": 4,
    "activation": "silu",
    "norm": "rms",
    "initialisation": "truncated_normal",
    "reward_distribution": "two_hot",
    "continue_head": True,
    "vector_symlog": True,
}


def small(**changes: object) -> ModelSettings:
    """Return settings of a small model."""
    return ModelSettings.model_validate({**SMALL, **changes})


def preset(*names: str) -> tuple[Spaces, Settings]:
    """Return the settings of presets laid over each other, and the spaces CarRacing has with them."""
    settings = resolve(names)
    side, channels = settings.env.image_size, 1 if settings.env.grey else 3
    box = ActionSpec("box", (3,), (-1, 0, 0), (1, 1, 1), (3,))
    action = box if settings.env.kwargs.get("continuous", True) else ActionSpec("discrete", (5,))
    return Spaces((ObservationSpec("image", (side, side, channels), "uint8"),), action), settings


@pytest.mark.parametrize(
    "names", [["quickstart"], ["article"], ["planet"], ["dreamer_v1"], ["dreamer_v2", "debug"], ["dreamer_v3", "debug"]]
)
def test_gradients_reach_every_parameter_of_a_preset(names: list[str]) -> None:
    """No part of a preset's model is left out of its loss, once V3's reward model has left its first zeros."""
    spaces, settings = preset(*names)
    torch.manual_seed(0)
    model = WorldModel(spaces, settings.model)
    if settings.model.reward_output_scale == 0.0:
        torch.nn.init.normal_(model.reward.output.weight)
    without_free_nats = settings.loss.model_copy(update={"free_nats": 0.0})
    world_model_loss(model, random_batch(spaces, 2, 4), without_free_nats).total.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@pytest.mark.parametrize(
    ("spaces", "changes"),
    [
        (GREY, {}),
        (Spaces((ObservationSpec("image", (128, 96, 3), "uint8"),), GREY.action), {"encoder": "strided"}),
        (
            Spaces(
                (ObservationSpec("left", (64, 64, 3), "uint8"), ObservationSpec("right", (64, 64, 1), "uint8")),
                ActionSpec("multi_discrete", (3, 2)),
            ),
            {"image_input": "five_bit"},
        ),
        (Spaces((ObservationSpec("vector", (7,), "float32"),), ActionSpec("box", (2,), (-1, -1), (1, 1), (2,))), {}),
        (
            Spaces(
                (ObservationSpec("camera", (32, 32, 3), "uint8"), ObservationSpec("speed", (2,), "float32")),
                GREY.action,
            ),
            {"encoder": "strided", "batch_norm": True, "continue_head": True, "gru_layers": 2},
        ),
        (
            Spaces(
                (ObservationSpec("camera", (48, 64, 3), "uint8"), ObservationSpec("speed", (2,), "float32")),
                GREY.action,
            ),
            V3,
        ),
    ],
)
def test_every_kind_of_space_passes_through(spaces: Spaces, changes: dict[str, object]) -> None:
    """Encode, observe, imagine, decode and predict give the announced shapes for pictures, vectors and both."""
    model = WorldModel(spaces, small(**changes))
    batch = random_batch(spaces, 2, 5)
    embedding = model.encode(batch)
    assert embedding.shape == (2, 5, model.encoder.width)
    actions = torch.zeros(2, 5, spaces.action.width)
    states = model.observe(embedding, actions, batch["is_first"]).states
    imagined = model.imagine(states.map(lambda part: part[:, -1]), actions[:, :3])
    for feature in (states.feature, imagined.feature, states.feature[:, 0]):
        means = model.decode(feature)
        assert {name: tuple(mean.shape) for name, mean in means.items()} == {
            spec.name: (*feature.shape[:-1], *spec.shape) for spec in spaces.observations
        }
        assert model.predict_reward(feature).mean.shape == feature.shape[:-1]
        if model.settings.continue_head:
            assert model.predict_continue(feature).mean.shape == feature.shape[:-1]
    assert world_model_loss(model, batch, LossSettings()).total.isfinite()


@pytest.mark.parametrize(
    ("size", "millions"), [("1m", 0.69), ("12m", 10.5), ("25m", 23.5), ("50m", 41.7), ("200m", 166.0), ("400m", 373.0)]
)
def test_v3s_sizes_have_their_parameters(size: str, millions: float) -> None:
    """With V3's actor and critic counted by hand; the names say a little more than what is there."""
    spaces, settings = preset("dreamer_v3", f"size_{size}")
    with torch.device("meta"):
        model = WorldModel(spaces, settings.model)
    units, actions = settings.model.reward_units, 2 * spaces.action.width
    trunk = model.feature_width * units + 2 * units + 2 * (units * units + 2 * units)
    outputs = (units + 1) * (actions + 255)
    assert (model.parameter_count() + 2 * trunk + outputs) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", ["planet", "dreamer_v1", "dreamer_v2", "dreamer_v3"])
def test_every_algorithm_learns_a_batch_at_debug_size(name: str) -> None:
    """Its own loss, optimiser and clipping bring the loss of one small batch down, and nothing is ever not a number."""
    spaces, settings = preset(name, "debug")
    torch.manual_seed(0)
    model = WorldModel(spaces, settings.model)
    optimiser = make_optimiser([ParameterGroup("norm", model, 3e-3, settings.learner.clip)], settings.learner)
    batch = random_batch(spaces, 2, 4)
    batch["image"] = torch.full_like(batch["image"], 255)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        total = world_model_loss(model, batch, settings.loss).total
        total.backward()
        if settings.learner.clipping == "adaptive":
            clip_adaptively(Gradients(model.parameters()), settings.learner.clip)
        optimiser.step()
        losses.append(total.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.9 * losses[0]


def test_vectors_are_learnt_as_their_symlog() -> None:
    """With `vector_symlog` 1e6 is a small number to the network, is decoded as 1e6, and is wrong by its symlog."""
    spaces = Spaces((ObservationSpec("vector", (2,), "float32"),), GREY.action)
    model = WorldModel(spaces, small(vector_symlog=True))
    normalised = model.normalise({"vector": torch.tensor([[0.0, -1e6]])})["vector"]
    assert torch.allclose(normalised, torch.tensor([[0.0, -13.8155]]), atol=1e-3)
    assert torch.allclose(model.denormalise({"vector": normalised})["vector"], torch.tensor([[0.0, -1e6]]), rtol=1e-4)


def test_noise_is_for_training_only() -> None:
    """`five_bit` pictures differ from call to call in training mode and never in eval mode."""
    model = WorldModel(GREY, small(image_input="five_bit"))
    batch = random_batch(GREY, 1, 2)
    assert not torch.equal(model.normalise(batch)["image"], model.normalise(batch)["image"])
    model.eval()
    assert torch.equal(model.normalise(batch)["image"], model.normalise(batch)["image"])


def test_acting_needs_only_the_acting_parameters() -> None:
    """A model with another's acting parameters written into it acts alike, batch norm's statistics included."""
    settings = small(encoder="strided", batch_norm=True)
    torch.manual_seed(0)
    learner = WorldModel(GREY, settings)
    for seed in range(3):
        learner.encode(random_batch(GREY, 2, 4, seed))
    torch.manual_seed(1)
    actor = WorldModel(GREY, settings)
    theirs, ours = learner.acting_parameters(), actor.acting_parameters()
    assert list(theirs) == list(ours)
    for name, tensor in ours.items():
        tensor.copy_(theirs[name])
    states = []
    batch = random_batch(GREY, 2, 1, seed=9)
    for model in (learner.eval(), actor.eval()):
        torch.manual_seed(3)
        embedding = model.encode(batch)[:, 0]
        states.append(
            model.dynamics.observe_step(
                model.dynamics.initial(2), torch.zeros(2, 5), embedding, batch["is_first"][:, 0]
            )
        )
    assert torch.equal(states[0].feature, states[1].feature)


@pytest.mark.numeric(dtype="float32")
def test_acting_parameters_are_floats_of_encoder_and_dynamics_alone() -> None:
    """Running statistics are there; counters, decoder and heads are not; sizes add up."""
    model = WorldModel(GREY, small(encoder="strided", batch_norm=True))
    tensors = model.acting_parameters()
    assert {name.split(".")[0] for name in tensors} == {"encoder", "dynamics"}
    assert any(name.endswith("running_var") for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    statistics = sum(tensor.numel() for name, tensor in tensors.items() if "running" in name)
    trained = sum(p.numel() for part in (model.encoder, model.dynamics) for p in part.parameters())
    assert sum(tensor.numel() for tensor in tensors.values()) == trained + statistics


def test_the_articles_model_has_as_many_parameters_as_counted_by_hand() -> None:
    """Encoder, dynamics, decoder and reward model of the preset `article`, layer by layer."""
    spaces, settings = preset("article")
    conv = [(1, 32), (32, 64), (64, 128), (128, 256)]
    encoder = sum(9 * i * o + o + 2 * o for i, o in conv) - 256 + (256 * 8 * 8 + 1) * 1024
    gru = 3 * (1024 * 1024 + 1024 * 1024 + 2 * 1024)
    prior = (1024 + 5 + 1) * 1024 + 1025 * 1024
    posterior = (1024 + 1024 + 1) * 1024 + 1025 * 1024
    dynamics = (512 + 5 + 1) * 1024 + gru + prior + posterior
    decoder = (1536 + 1) * 1024 + 1025 * 256 * 8 * 8 + sum(9 * i * o + 2 * o for o, i in conv[1:]) + 9 * 32 + 1
    reward = 1537 * 1024 + 1025 * 1024 + 1025 * 2
    assert WorldModel(spaces, settings.model).parameter_count() == encoder + dynamics + decoder + reward


@pytest.mark.numeric(dtype="float32")
@pytest.mark.parametrize(
    "changes", [{"encoder": "strided", "batch_norm": True, "continue_head": True, "gru_layers": 2}, V3]
)
def test_bfloat16_stays_close_to_float32(changes: dict[str, object]) -> None:
    """Under autocast states, deviations and losses are float32 and near those of float32 arithmetic."""
    torch.manual_seed(0)
    model = WorldModel(GREY, small(**changes))
    batch = random_batch(GREY, 3, 6)
    results = []
    for enabled in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            result = world_model_loss(model, batch, LossSettings(free_nats=0.0))
            feature = result.rollout.states.feature
            reward = model.predict_reward(feature).mean
            outputs = [model.decode(feature)["image"], reward, *model.predict_continue(feature)]
        result.total.backward()
        results.append(result)
    exact, rounded = results
    floats = (
        *outputs,
        *rounded.rollout.states,
        *rounded.rollout.prior,
        *rounded.rollout.posterior,
        *rounded.metrics.values(),
    )
    assert {tensor.dtype for tensor in floats} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert not torch.equal(exact.total, rounded.total)
    for name, value in exact.metrics.items():
        assert torch.allclose(value, rounded.metrics[name], rtol=0.03, atol=0.01), name


def test_the_same_seed_gives_the_same_update() -> None:
    """Loss and gradients repeat bit for bit, and differ with another seed."""
    model = WorldModel(GREY, small(image_input="five_bit"))
    batch = random_batch(GREY, 2, 4)
    gradients = []
    for seed in (4, 4, 5):
        model.zero_grad()
        torch.manual_seed(seed)
        world_model_loss(model, batch, LossSettings()).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


def test_the_loss_falls_on_one_batch() -> None:
    """A small model learns a few short sequences of moving squares, and their rewards, by heart."""
    torch.manual_seed(0)
    spaces = dataclasses.replace(GREY, observations=(ObservationSpec("image", (32, 32, 1), "uint8"),))
    batch = random_batch(spaces, 4, 6)
    batch["image"].zero_()
    for b in range(4):
        for t in range(6):
            batch["image"][b, t, 4 * t : 4 * t + 6, 6 * b : 6 * b + 6] = 255
    batch["reward"] = torch.arange(6.0).expand(4, 6) - 2.5
    model = WorldModel(spaces, small(encoder="strided", depth=8))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    settings = LossSettings(free_nats=0.0, kl_scale=0.1)
    losses = []
    for _ in range(120):
        result = world_model_loss(model, batch, settings)
        optimiser.zero_grad()
        result.total.backward()
        optimiser.step()
        losses.append({name: value.item() for name, value in result.metrics.items()})
    assert losses[-1]["loss/reconstruction"] < 0.2 * losses[0]["loss/reconstruction"]
    assert losses[-1]["reward/absolute_error"] < 0.5 * losses[0]["reward/absolute_error"]


@pytest.mark.parametrize("changes", [{"continue_head": True, "gru_layers": 2, "image_input": "five_bit"}, V3])
def test_the_loss_is_one_graph(changes: dict[str, object]) -> None:
    """Nothing in the model depends on data or leaves torch, so that it compiles as a whole."""
    torch._dynamo.reset()
    model = WorldModel(GREY, small(**changes))
    batch = random_batch(GREY, 2, 3)
    settings = LossSettings()

    def total(data: dict[str, Tensor]) -> Tensor:
        return world_model_loss(model, data, settings).total

    totals = []
    for function in (total, torch.compile(total, backend="eager", fullgraph=True)):
        torch.manual_seed(0)
        totals.append(function(batch))
    assert torch.allclose(totals[0], totals[1])
