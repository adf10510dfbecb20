"""The learner with an actor: it learns what to do, resumes bit for bit with every Dreamer, and refuses what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from two_places import places_format, places_replay

from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.errors import UserError
from dreamfleet.common.model.rssm import State
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.checkpoints.restore import load_world_model
from dreamfleet.learner.learner import Learner
from dreamfleet.replay.replay import Replay

FAST: dict[str, Any] = {
    "learner.learning_rate": 3e-3,
    "behaviour.actor_learning_rate": 3e-3,
    "behaviour.critic_learning_rate": 3e-3,
    "learner.batch_size": 8,
}
V3_HERE: dict[str, Any] = {
    "loss.reconstruction_scale": 20,  # a place is one number: beside the KL it would not be worth knowing
    "behaviour.actor_learning_rate": 1e-3,  # it must not make up its mind before the model is good
    "behaviour.entropy": 0.03,
}
V2_HERE = V3_HERE | {
    "loss.free_nats": 0.5,
    "loss.continue_horizon": 10,
    "behaviour.slow_critic_every": 10,
    "behaviour.entropy": 0.1,
}
DREAMERS = ("dreamer_v1", "dreamer_v2", "dreamer_v3")


def dreamer(preset: str, *flags: tuple[str, Any]) -> Settings:
    """Return a Dreamer's settings at the size that tests have time for."""
    fixed = [("learner.device", "cpu"), ("learner.threads", "1"), ("learner.precision", "float32")]
    return resolve([*preset.split("+"), "debug"], [*fixed, *((name, str(value)) for name, value in flags)])


def learner_on(replay: Replay, directory: Path, settings: Settings, kind: str = "choices") -> Learner:
    return Learner(settings, places_format(kind).spaces, replay, directory, prefetch=False)


def behaviour_of(learner: Learner) -> dict[str, Tensor]:
    _, actor_critic, exploration = learner._networks
    assert actor_critic is not None
    explored = exploration.state_dict() if exploration is not None else {}
    return actor_critic.state_dict() | {f"exploration.{name}": value for name, value in explored.items()}


@torch.no_grad()
def states_at(agent: AgentNetworks, places: list[float]) -> State:
    """Return the states after places were seen at the beginning of an episode."""
    agent.eval()
    count, model = len(places), agent.world_model
    embedding = model.encode({"place": torch.tensor(places)[:, None, None]})[:, 0]
    action = torch.zeros(count, model.spaces.action.width)
    return model.dynamics.observe_step(
        model.dynamics.initial(count), action, embedding, torch.ones(count, dtype=torch.bool), False
    )


# It learns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "flags", "updates"), [("dreamer_v3", V3_HERE, 200), ("dreamer_v2", V2_HERE, 280)])
def test_the_better_choice_is_learnt_from_chance_alone(
    tmp_path: Path, preset: str, flags: dict[str, Any], updates: int
) -> None:
    """From random experience: go where nothing is to be had, stay where something is; and rewards rise to match."""
    replay = places_replay(tmp_path / "replay", "choices", sequence_length=8)
    learner = learner_on(replay, tmp_path, dreamer(preset, *(FAST | flags).items()))
    before = learner.train(10).metrics
    learner.train(updates)
    after = learner.train(10).metrics
    chosen = learner.agent.policy(states_at(learner.agent, [0.0, 1.0]).feature).mode.argmax(-1)
    replay.close()
    assert chosen.tolist() == [1, 0]
    assert after["policy/entropy"] < 0.6 * before["policy/entropy"]
    assert after["imagined/reward"] > 0.75 > 0.6 > before["imagined/reward"]
    assert after["return/mean"] > before["return/mean"] + 2.0


def test_a_box_is_learnt_through_the_model(tmp_path: Path) -> None:
    """V1: from random moves the actor learns to go to the middle from either side."""
    replay = places_replay(tmp_path / "replay", "box", sequence_length=8)
    learner = learner_on(replay, tmp_path, dreamer("dreamer_v1", *FAST.items(), ("loss.free_nats", 0.5)), "box")
    before = learner.train(10).metrics
    learner.train(280)
    after = learner.train(10).metrics
    left, right = learner.agent.policy(states_at(learner.agent, [-0.8, 0.8]).feature).mode[:, 0].tolist()
    replay.close()
    assert left > 0.5
    assert right < -0.5
    assert after["imagined/reward"] > before["imagined/reward"] + 0.1


# It goes on where it was ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [*DREAMERS, "dreamer_v3+explore"])
def test_every_dreamer_resumes_bit_for_bit(tmp_path: Path, preset: str) -> None:
    """2N updates equal N, a checkpoint, a new learner and N more: model, actor, critic, its copy, the normaliser."""
    replay = places_replay(tmp_path / "replay", "box", sequence_length=8, steps=400)
    settings = dreamer(preset, ("behaviour.slow_critic_every", 2), ("learner.warm_up", 5))
    whole = learner_on(replay, tmp_path / "whole", settings, "box")
    whole.train(3)
    report = whole.train(3)
    first = learner_on(replay, tmp_path / "cut", settings, "box")
    first.train(3)
    first.save({})
    second = learner_on(replay, tmp_path / "cut", settings, "box")
    second.restore()
    resumed = second.train(3)
    replay.close()
    assert resumed.metrics == report.metrics
    for mine, others in (
        (whole.model.state_dict(), second.model.state_dict()),
        (behaviour_of(whole), behaviour_of(second)),
    ):
        assert mine.keys() == others.keys()
        assert all(torch.equal(mine[name], others[name]) for name in mine)
    assert (flatten(whole.agent.acting_parameters()) == second.publish().handle).all()


def test_dreaming_needs_no_actor(tmp_path: Path) -> None:
    """The world model of such a checkpoint loads by the model's settings; the actor's weights are published."""
    replay = places_replay(tmp_path / "replay", "choices", sequence_length=8, steps=400)
    settings = dreamer("dreamer_v3")
    learner = learner_on(replay, tmp_path, settings)
    learner.train(1)
    learner.save({})
    model, _ = load_world_model(tmp_path / "checkpoints", settings)
    replay.close()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in learner.model.state_dict().items())
    assert learner.publish().handle.size > flatten(model.acting_parameters()).size


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([("behaviour.units", 24)], r"parameter 'actor\..*' has shape \(16, 48\) there and \(24, 48\) by these"),
        ([("behaviour.kind", "explore")], r"has no explorer, and behaviour\.kind is explore"),
        ([("behaviour.kind", "random")], r"has an actor, and behaviour\.kind is random"),
        ([("learner.optimiser", "adam")], r"learner\.optimiser laprop, and the settings say adam"),
    ],
)
def test_a_checkpoint_of_another_behaviour_is_refused(
    tmp_path: Path, flags: list[tuple[str, Any]], message: str
) -> None:
    """One sentence with what it has and what the settings want."""
    replay = places_replay(tmp_path / "replay", "choices", sequence_length=8, steps=400)
    learner = learner_on(replay, tmp_path, dreamer("dreamer_v3"))
    learner.train(1)
    learner.save({})
    with pytest.raises(UserError, match=message):
        learner_on(replay, tmp_path, dreamer("dreamer_v3", *flags)).restore()
    replay.close()


def test_a_model_that_has_seen_no_actor_is_refused_too(tmp_path: Path) -> None:
    """A checkpoint of chance does not silently begin with a new actor."""
    replay = places_replay(tmp_path / "replay", "choices", sequence_length=8, steps=400)
    learner = learner_on(replay, tmp_path, dreamer("dreamer_v3", ("behaviour.kind", "random")))
    learner.train(1)
    learner.save({})
    with pytest.raises(UserError, match=r"has no actor, and behaviour\.kind is actor_critic"):
        learner_on(replay, tmp_path, dreamer("dreamer_v3")).restore()
    replay.close()
