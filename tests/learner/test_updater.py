"""One update of a whole agent: who moves, by which rate, clipped to what, and when nothing does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rounding import agree
from torch import Tensor
from update_trial import BOX, CHOICE, Trial, make_batch, settings_of

from dreamfleet.common.experience.spaces import ActionSpec
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.stopwatch import Stopwatch

pytestmark = pytest.mark.numeric

EXPLORERS = [("dreamer_v3+explore", CHOICE), ("dreamer_v2+explore", CHOICE), ("dreamer_v1+explore", BOX)]


def changed(preset: str, **sections: dict[str, Any]) -> Settings:
    """Return a preset's settings at a small size, with others in some sections."""
    settings = settings_of(preset).model_dump()
    return Settings.model_validate({**settings, **{name: settings[name] | own for name, own in sections.items()}})


def update(trial: Trial, number: int = 1) -> dict[str, float]:
    """Make an update of a number with the same batch and the same noise at every call; return its metrics."""
    torch.manual_seed(0)
    made = trial.updater.update(number, make_batch(trial.action, 3), Stopwatch())
    assert made.sound
    return {name: value.item() for name, value in made.metrics.items()}


def parameters(trial: Trial) -> dict[str, Tensor]:
    """Return all that an optimiser moves, by name, as copies."""
    return {name: value for name, value in trial.state().items() if name in trial.gradients()}


# Who moves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "action"), EXPLORERS)
def test_all_that_learns_is_moved(preset: str, action: ActionSpec) -> None:
    """The whole model, both actors, both critics and every member of the ensemble have a gradient and a step."""
    trial = Trial(settings_of(preset), action)
    before = trial.state()
    trial.update()
    after = trial.state()
    still = {name for name, value in before.items() if torch.equal(value, after[name])}
    learns = {f"agent.{name}" for name, _ in trial.agent.named_parameters()}
    for prefix, network in (("behaviour", trial.actor_critic), ("exploration", trial.exploration)):
        assert network is not None
        learns |= {f"{prefix}.{name}" for name, _ in network.named_parameters() if "slow." not in name}
    assert {"agent.actor.output.weight", "agent.explorer.output.weight", "behaviour.critic.output.weight"} <= learns
    assert not still & learns
    assert any("normaliser" in name for name in after.keys() - still) == (preset == "dreamer_v3+explore")


def test_both_slow_critics_follow_at_each_update() -> None:
    """V3: 0.02 of the way to the critic after its step, the actor's and the explorer's."""
    trial = Trial(settings_of("dreamer_v3+explore"), CHOICE)
    before = trial.state()
    trial.update()
    after = trial.state()
    slow = [name for name in before if ".slow." in name and not name.endswith("bins")]
    assert {name.split(".slow.")[0] for name in slow} == {"behaviour", "exploration.actor_critic"}
    for name in slow:
        critic = after[name.replace(".slow.", ".critic.")]
        assert not torch.equal(critic, before[name])
        assert agree(after[name], 0.98 * before[name] + 0.02 * critic), name


def test_slow_critics_are_copied_when_it_is_due() -> None:
    """V2: at every so many updates, and nothing in between."""
    trial = Trial(changed("dreamer_v2+explore", behaviour={"slow_critic_every": 2}), CHOICE)
    for is_due in (False, True, False):
        before = trial.state()
        trial.update()
        after = trial.state()
        for name, value in after.items():
            if ".slow." in name and not name.endswith("bins"):
                wanted = after[name.replace(".slow.", ".critic.")] if is_due else before[name]
                assert torch.equal(value, wanted), name


# By which rate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "tensorflow_adam", "laprop"])
def test_the_rate_rises_once_and_stays(optimiser: str) -> None:
    """By a warm-up of 4: to a quarter at update 1, to all at update 4, and no further; LaProp counts its own steps."""

    def moved(number: int, warm_up: int) -> Tensor:
        learner = {"optimiser": optimiser, "warm_up": warm_up, "weight_decay": 0.0, "epsilon": 1e-8}
        trial = Trial(changed("dreamer_v1", learner=learner), BOX)
        before = trial.state()
        update(trial, number)
        return torch.cat([(value - before[name]).flatten() for name, value in parameters(trial).items()])

    whole = moved(1, 0)
    assert whole.abs().max() > 1e-3
    for number, share in ((1, 0.25),) if optimiser == "laprop" else ((1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)):
        torch.testing.assert_close(moved(number, 4), share * whole, rtol=1e-6, atol=1e-9)


def test_what_explores_learns_by_the_rates_of_what_it_is_like() -> None:
    """Adam's first step is the rate: the explorer's is the actor's, its critic's the critic's, members' the model's."""
    learner = {"optimiser": "adam", "epsilon": 1e-12, "warm_up": 0, "learning_rate": 1e-3}
    behaviour = {"actor_learning_rate": 2e-3, "critic_learning_rate": 4e-3}
    trial = Trial(changed("dreamer_v1+explore", learner=learner, behaviour=behaviour), BOX)
    before = trial.state()
    update(trial)
    for prefix, rate in (
        ("agent.world_model.", 1e-3),
        ("agent.actor.", 2e-3),
        ("agent.explorer.", 2e-3),
        ("behaviour.critic.", 4e-3),
        ("exploration.actor_critic.critic.", 4e-3),
        ("exploration.ensemble.", 1e-3),
    ):
        steps = [value - before[name] for name, value in parameters(trial).items() if name.startswith(prefix)]
        assert max(step.abs().max().item() for step in steps) == pytest.approx(rate, rel=1e-3), prefix


@pytest.mark.parametrize(("preset", "action"), EXPLORERS)
def test_a_weight_decays_by_its_share_beside_the_step(preset: str, action: ActionSpec) -> None:
    """To (1 − share)·w − step, whatever the learning rate, for every parameter; the gradient is that of the old w."""
    found = []
    for decay in (0.0, 0.25):
        trial = Trial(changed(preset, learner={"weight_decay": decay}), action)
        before = trial.state()
        update(trial)
        found.append(parameters(trial))
    plain, decayed = found
    for name, value in plain.items():
        assert agree(decayed[name], value - 0.25 * before[name]), name


# Clipped to what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "action"), EXPLORERS[1:])
def test_each_group_is_clipped_to_its_own_norm(preset: str, action: ActionSpec) -> None:
    """The model's gradient to `learner.clip`, all others' to `actor_clip`; smaller ones stay; norms are before it."""
    groups = {
        "gradient/norm": "agent.world_model.",
        "gradient/actor_norm": "agent.actor.",
        "gradient/critic_norm": "behaviour.critic.",
        "explore/gradient/actor_norm": "agent.explorer.",
        "explore/gradient/critic_norm": "exploration.actor_critic.critic.",
        "explore/gradient/ensemble_norm": "exploration.ensemble.",
    }
    whole = Trial(changed(preset, learner={"clip": 1e9}, behaviour={"actor_clip": 1e9}), action)
    update(whole)
    plain = whole.gradients()
    norms = {
        metric: sum(value.square().sum().item() for name, value in plain.items() if name.startswith(prefix)) ** 0.5
        for metric, prefix in groups.items()
    }
    least, *_, most = sorted(norms[metric] for metric in groups if metric != "gradient/norm")
    limits = dict.fromkeys(groups, (least * most) ** 0.5) | {"gradient/norm": 0.7 * norms["gradient/norm"]}
    behaviour, learner = {"actor_clip": limits["gradient/actor_norm"]}, {"clip": limits["gradient/norm"]}
    trial = Trial(changed(preset, learner=learner, behaviour=behaviour), action)
    metrics = update(trial)
    assert any(norms[metric] < limits[metric] for metric in groups)
    for metric, prefix in groups.items():
        assert metrics[metric] == pytest.approx(norms[metric], rel=1e-5), metric
        share = min(1.0, limits[metric] / norms[metric])
        own = {name: value for name, value in trial.gradients().items() if name.startswith(prefix)}
        assert own, metric
        for name, value in own.items():
            torch.testing.assert_close(value, share * plain[name], rtol=1e-4, atol=1e-12, msg=name)


def test_what_is_computed_as_one_is_clipped_apart_in_an_update() -> None:
    """V3: each member of the ensemble and each half of a box's policy, by the size of its own weights."""
    whole, trial = (Trial(changed("dreamer_v3+explore", learner={"clip": clip}), BOX) for clip in (1e9, 1e-4))
    before = trial.state()
    for own in (whole, trial):
        update(own)
    for name, rows in (
        ("exploration.ensemble.layers.0.weight", 1),
        ("exploration.ensemble.layers.1.weight", 1),
        ("exploration.ensemble.layers.0.bias", 1),
        ("agent.actor.output.weight", 2),
        ("agent.explorer.output.weight", 2),
        ("agent.world_model.reward.output.weight", 1_000_000),
    ):
        clipped, gradient = trial.gradients()[name].split(rows), whole.gradients()[name].split(rows)
        shares = [
            min(1.0, 1e-4 * max(1e-3, weight.norm().item()) / part.norm().item())
            for weight, part in zip(before[name].split(rows), gradient, strict=True)
        ]
        assert max(shares) < 1.0, name
        for found, part, share in zip(clipped, gradient, shares, strict=True):
            assert agree(found, share * part), name


# When nothing moves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "action"), EXPLORERS)
@pytest.mark.parametrize("network", ["agent.actor", "agent.world_model", "exploration.ensemble"])
def test_a_gradient_that_is_not_finite_is_as_bad_as_such_a_loss(preset: str, action: ActionSpec, network: str) -> None:
    """Of one number, while all losses are finite: nothing changes, and the norm that shows it is named."""
    trial = Trial(changed(preset, learner={"weight_decay": 0.1}), action)
    trial.update()
    spoilt = next(value for name, value in trial.updater._state.tensors().items() if name.startswith(network))
    spoilt.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(0), torch.inf))
    before = trial.state()
    made = trial.try_update()
    assert not made.sound
    assert made.not_finite
    assert all(name.endswith("norm") for name in made.not_finite)
    for name, value in trial.state().items():
        assert name == "number" or torch.equal(value, before[name]), name
