"""Learning without a decoder: both losses against numpy, what their gradient reaches, and that states learn by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_square import play_square, square_format, square_replay
from random_batch import random_batch
from small_runs import learner_on, small_settings
from torch import Tensor

from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.networks import make_networks
from dreamfleet.learner.hardware import Hardware
from dreamfleet.learner.learner import Learner
from dreamfleet.learner.representation import contrastive_loss, redundancy_loss, representation_loss
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.updater import Updater
from dreamfleet.learner.world_model_loss import world_model_loss
from dreamfleet.replay.replay import Replay

ALGORITHMS = ("planet", "dreamer_v1", "dreamer_v2", "dreamer_v3")
DECODER_FREE = ("redundancy", "contrastive")
SMALL = {"model.deterministic": 16, "model.hidden": 16, "model.depth": 2, "model.stochastic": 4, "model.blocks": 2}
SMALL |= {"model.reward_units": 8, "behaviour.units": 8, "behaviour.horizon": 3, "model.encoder": "strided"}
SMALL |= {"learner.batch_size": 4, "learner.sequence_length": 6, "model.embedding": 12}


def settings_of(algorithm: str, representation: str, **changes: Any) -> Settings:
    """Return an algorithm's settings at the smallest size; a name's first part is the section: `loss_decoder_every`."""
    flags = {**SMALL, "loss.representation": representation}
    flags |= {name.replace("_", ".", 1): value for name, value in changes.items()}
    return resolve([algorithm], [(name, str(value)) for name, value in flags.items()])


def make_updater(settings: Settings) -> Updater:
    """Return an updater of an agent on the square's pictures, the same at every call."""
    torch.manual_seed(0)
    networks = make_networks(square_format().spaces, settings)
    return Updater(networks, settings, Hardware(torch.device("cpu"), bfloat16=False, threads=1, decisions=()))


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    batch = random_batch(square_format().spaces, 4, 6, seed)
    return {**batch, "is_last": batch["is_terminal"].clone()}


def model_of(updater: Updater) -> dict[str, Tensor]:
    """Return the parameters of the world model, as copies."""
    return {name: value.detach().clone() for name, value in updater._model.named_parameters()}


# The losses against numbers -------------------------------------------------------------------------------------------


def in_numpy(kind: str, projected: np.ndarray, embedding: np.ndarray, lambda_: float = 0.005) -> float:
    """Return a loss written number by number from the papers' formulas."""
    rows, width = projected.shape
    if kind == "redundancy":
        total = 0.0
        for i in range(width):
            for j in range(width):
                a, b = projected[:, i], embedding[:, j]
                deviations = np.sqrt(((a - a.mean()) ** 2).sum() * ((b - b.mean()) ** 2).sum()) / (rows - 1)
                c = ((a - a.mean()) * (b - b.mean())).sum() / rows / deviations
                total += (1 - c) ** 2 if i == j else lambda_ * c**2
        return total
    found = []
    for n in range(rows):
        scores = np.array([projected[n] @ embedding[m] for m in range(rows)])
        found.append(np.log(np.exp(scores).sum()) - scores[n])
    return float(np.mean(found))


def loss_of(kind: str, projected: Tensor, embedding: Tensor) -> Tensor:
    if kind == "redundancy":
        return redundancy_loss(projected, embedding, 0.005)
    return contrastive_loss(projected, embedding)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", DECODER_FREE)
def test_a_loss_is_the_formula_written_out(kind: str) -> None:
    """On numbers whose columns correlate, and have means and deviations of their own."""
    chance = np.random.default_rng(0)
    embedding = chance.normal(size=(30, 5)) @ chance.normal(size=(5, 5)) + chance.normal(size=5)
    projected = 0.7 * embedding + chance.normal(size=(30, 5)) - 1.0
    found = loss_of(kind, torch.from_numpy(projected), torch.from_numpy(embedding)).item()
    assert found == pytest.approx(in_numpy(kind, projected, embedding), rel=1e-7)  # 1e-8 is added to deviations
    assert found > 0.1


@pytest.mark.numeric
@pytest.mark.parametrize("kind", DECODER_FREE)
def test_the_gradient_is_that_of_the_numbers(kind: str) -> None:
    """Through means and deviations too."""
    torch.manual_seed(0)
    projected, embedding = torch.randn(7, 3, requires_grad=True), torch.randn(7, 3)
    torch.autograd.gradcheck(lambda x: loss_of(kind, x, embedding), projected)


@pytest.mark.numeric
def test_what_cannot_differ_is_no_reason_for_infinite_gradients() -> None:
    """A number that is always the same, on either side, correlates with nothing and costs a constant."""
    torch.manual_seed(0)
    projected, embedding = torch.randn(9, 3), torch.randn(9, 3)
    projected[:, 0], embedding[:, 1] = 0.5, 0.25
    projected.requires_grad_()
    loss = redundancy_loss(projected, embedding, 0.005)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() > 2.0
    assert projected.grad is not None
    assert torch.isfinite(projected.grad).all()
    assert projected.grad[:, 2].abs().max() > 0


@pytest.mark.parametrize("kind", DECODER_FREE)
def test_the_losses_are_float32_under_autocast(kind: str) -> None:
    """Products of many steps and numbers lose all meaning in bfloat16."""
    torch.manual_seed(0)
    projected, embedding = torch.randn(64, 16), torch.randn(64, 16)
    plain = loss_of(kind, projected, embedding)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(kind, projected, embedding), plain)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", DECODER_FREE)
def test_the_settings_weigh_the_loss(kind: str) -> None:
    """By its scale and, of redundancy, by λ; from the states' projections, before the weight among the metrics."""
    own = {"loss_redundancy_scale": 0.3, "loss_contrastive_scale": 0.3, "loss_redundancy_lambda": 0.2}
    settings = settings_of("dreamer_v3", kind, loss_decoder_every=0, **own)
    model = make_updater(settings)._model
    feature, embedding = torch.randn(4, 6, model.feature_width), torch.randn(4, 6, model.encoder.width)
    found = representation_loss(model, feature, {}, embedding, settings.loss)
    assert model.projector is not None
    projected = feature.flatten(0, 1) @ model.projector.output.weight.T
    wanted = in_numpy(kind, projected.detach().numpy(), embedding.flatten(0, 1).numpy(), 0.2)
    assert found.metrics[f"loss/{kind}"].item() == pytest.approx(wanted, rel=1e-6)
    assert found.total.item() == pytest.approx(0.3 * wanted, rel=1e-6)


# What the gradient reaches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODER_FREE)
def test_the_embedding_is_a_target_and_the_decoder_only_reads(kind: str) -> None:
    """The loss reaches states and projector; a decoder aside reaches itself alone, from its own sequences."""
    settings = settings_of("dreamer_v3", kind, loss_decoder_every=2)
    model = make_updater(settings)._model
    targets = model.normalise(make_batch())
    embedding = model.embed(targets).detach().requires_grad_()
    feature = torch.randn(4, 6, model.feature_width, requires_grad=True)
    found = representation_loss(model, feature, targets, embedding, settings.loss)
    found.total.backward()  # type: ignore[no-untyped-call]
    assert embedding.grad is None
    assert feature.grad is not None
    assert (feature.grad.abs().amax((1, 2)) > 0).all()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"projector"}
    feature.grad = None
    model.zero_grad()
    assert isinstance(found.aside, Tensor)
    found.aside.backward()  # type: ignore[no-untyped-call]
    assert feature.grad is None
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"decoder"}
    for sequence, is_read in enumerate((True, False, True, False)):
        changed = {"image": targets["image"].clone()}
        changed["image"][sequence] += 1.0
        again = representation_loss(model, feature, changed, embedding, settings.loss)
        assert (again.metrics["loss/reconstruction"] != found.metrics["loss/reconstruction"]) == is_read


@pytest.mark.parametrize("kind", ["reconstruction", *DECODER_FREE])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_update_teaches_the_encoder(algorithm: str, kind: str) -> None:
    """With each algorithm, rewards and KL left out, so that nothing else does."""
    every = 8 if kind == "reconstruction" else 0
    nothing_else = {"loss_reward_scale": 0, "loss_kl_scale": 0, "loss_continue_scale": 0}
    if algorithm != "planet":
        nothing_else["behaviour_replay_value_scale"] = 0
    updater = make_updater(settings_of(algorithm, kind, loss_decoder_every=every, **nothing_else))
    before = model_of(updater)
    update = updater.update(1, make_batch(), Stopwatch())
    assert update.sound
    after = model_of(updater)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed >= {"encoder", "dynamics", "decoder" if kind == "reconstruction" else "projector"}
    assert f"loss/{kind}" in update.names
    assert ("loss/reconstruction" in update.names) == any(name.startswith("decoder.") for name in before)


@pytest.mark.numeric
@pytest.mark.parametrize("algorithm", ["dreamer_v1", "dreamer_v3"])
def test_a_decoder_aside_changes_nothing_else(algorithm: str) -> None:
    """Not by its gradients, nor by their norm, where the model's are clipped; and it does learn."""
    changes = {"learner_clip": 0.01, "learner_learning_rate": 1e-3}
    without = make_updater(settings_of(algorithm, "redundancy", loss_decoder_every=0, **changes))
    beside = make_updater(settings_of(algorithm, "redundancy", loss_decoder_every=2, **changes))
    beside._networks.agent.load_state_dict(without._networks.agent.state_dict(), strict=False)
    for ours, theirs in ((beside._networks.actor_critic, without._networks.actor_critic),):
        assert ours is not None
        assert theirs is not None
        ours.load_state_dict(theirs.state_dict())
    before = model_of(beside)
    for number in range(1, 4):
        for updater in (without, beside):
            torch.manual_seed(number)
            assert updater.update(number, make_batch(number), Stopwatch()).sound
    after = model_of(beside)
    for name, value in model_of(without).items():
        assert torch.allclose(after[name], value, rtol=1e-12, atol=0), name
    decoder = [name for name in after if name.startswith("decoder.")]
    assert all(not torch.equal(before[name], after[name]) for name in decoder)


# States learn by it ---------------------------------------------------------------------------------------------------


def told_of_the_place(learner: Learner, settings: Settings) -> float:
    """Return how well a linear fit tells the square's place from states, 0 to 1, in episodes of another play.

    It is fitted to sixteen episodes and measured on sixteen others: the share of the places' variance that it explains.
    """
    found = []
    for seed in (99, 98):
        episodes = play_square(16, 16, seed)
        batch = {name: torch.from_numpy(value.reshape(16, 16, *value.shape[1:])) for name, value in episodes.items()}
        lit = episodes["image"][..., 0] > 100
        places = np.stack([lit.any(2).argmax(1), lit.any(1).argmax(1)], axis=1).astype(float)
        learner.model.eval()
        torch.manual_seed(0)
        with torch.no_grad():
            states = world_model_loss(learner.model, batch, settings.loss).rollout.states.feature.flatten(0, 1)
        found.append((np.c_[states.double().numpy(), np.ones(len(states))], places))
    (known, known_places), (new, new_places) = found
    weights, *_ = np.linalg.lstsq(known, known_places, rcond=None)
    return float(1 - (new @ weights - new_places).var() / new_places.var())


@pytest.mark.parametrize(("kind", "gain"), [("redundancy", 0.25), ("contrastive", 0.1)])
def test_states_come_to_tell_what_was_seen(tmp_path: Path, kind: str, gain: float) -> None:
    """Without decoder and rewards, from pictures of a moving square: seen are 0.16 before, then 0.64 and 0.45."""
    loss = {"representation": kind, "decoder_every": 0, "reward_scale": 0.0, "free_nats": 3.0, "redundancy_scale": 1.0}
    settings = small_settings(loss=loss, learner={"batch_size": 8, "learning_rate": 5e-3})
    replay = square_replay(tmp_path / "replay", sequence_length=8)
    learner = learner_on(replay, tmp_path, settings)
    before = told_of_the_place(learner, settings)
    first = learner.train(5).metrics
    learner.train(50)
    last = learner.train(5).metrics
    replay.close()
    assert last[f"loss/{kind}"] < 0.95 * first[f"loss/{kind}"]
    assert told_of_the_place(learner, settings) > before + gain


# A run without a decoder ----------------------------------------------------------------------------------------------


def test_reconstruction_without_a_decoder_is_refused() -> None:
    """One sentence says which of the two to change."""
    with pytest.raises(UserError, match=r"loss\.decoder_every 0 leaves out the decoder, by which .* reconstruction"):
        resolve(["dreamer_v3"], [("loss.decoder_every", "0")])
    with pytest.raises(UserError, match=r"take redundancy or contrastive"):
        resolve(["dreamer_v3", "decoder_free"], [("loss.representation", "reconstruction")])


def test_without_a_decoder_a_run_learns_saves_and_draws_nothing(replay: Replay, tmp_path: Path) -> None:
    """It resumes, its held-out loss is measured, and its log says that there are no pictures."""
    settings = small_settings(loss={"representation": "redundancy", "decoder_every": 0})
    learner = learner_on(replay, tmp_path, settings)
    assert any("decoder: there is none (loss.decoder_every 0)" in text for text in learner.decisions)
    learner.train(2)
    assert learner.draw_pictures() is None
    assert learner.held_out_loss() is not None
    learner.save({})
    again = learner_on(replay, tmp_path, settings)
    assert again.restore().updates == 2
    with pytest.raises(UserError, match=r"it has no further parameter|has parameter 'decoder"):
        learner_on(replay, tmp_path, small_settings()).restore()
    with pytest.raises(UserError, match=r"no decoder.*--loss\.decoder_every 8"):
        learner.model.decode(torch.zeros(1, learner.model.feature_width))


def test_the_held_out_loss_leaves_a_decoder_aside_out(replay: Replay, tmp_path: Path) -> None:
    """Else the best checkpoint would be chosen by the pictures."""
    settings = small_settings(loss={"representation": "redundancy", "decoder_every": 1, "reconstruction_scale": 1e6})
    loss = learner_on(replay, tmp_path, settings).held_out_loss()
    assert loss is not None
    assert loss < 1e3
    batch = random_batch(square_format().spaces, 4, 8)
    torch.manual_seed(0)
    model = AgentNetworks(square_format().spaces, settings).world_model
    found = world_model_loss(model, batch, settings.loss)
    assert found.total > 1e4 > found.metrics["loss/total"]
