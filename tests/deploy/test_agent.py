"""The library: an agent is loaded in a line, and acts in a plain script as it does in the evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dreamer_run import train_small_dreamer

from dreamfleet.actors.evaluator import evaluation_seed, reset_seed
from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run.agent import Agent
from dreamfleet.deploy.run_directory import RunDirectory

PAYING_WORLD = """
import gymnasium
from faulty_environment import make as make_counting

class PayingWorld(gymnasium.Wrapper):
    def step(self, action):
        shown, _, terminated, truncated, info = self.env.step(action)
        return shown, (action - 5) / 3.0**self.env.step_number, terminated, truncated, info

def make(**kwargs):
    return PayingWorld(make_counting(**kwargs))
"""
"""A return spells out the actions 5, 6 and 7 that led to it, as the digits of a number to the base of 3."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the smallest Dreamer V3, trained for some updates and evaluated on the way."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "paying_world.py").write_text(PAYING_WORLD)
    flags = ("--train.env_steps", "200", "--records.evaluate_every", "100", "--records.evaluation_episodes", "2")
    return train_small_dreamer(folder, *flags, "--env.id", "paying_world:make")


@pytest.fixture(autouse=True)
def _beside_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's module lies beside the run."""
    monkeypatch.chdir(run.parent)


def play(agent: Agent, steps: int) -> list[int]:
    env = agent.make_environment()
    observation, _ = env.reset(seed=5)
    agent.reset()
    actions = []
    for _ in range(steps):
        actions.append(agent.act(observation))
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        if terminated or truncated:
            observation, _ = env.reset()
            agent.reset()
    env.close()
    return actions


def test_a_loaded_agent_acts_and_repeats_itself(run: Path) -> None:
    """Three lines load a run and act; without exploration the same observations give the same actions."""
    agent = Agent.load(run)
    assert agent.updates > 0
    first = play(agent, 30)
    assert all(agent.make_environment().action_space.contains(action) for action in first)
    assert play(Agent.load(run), 30) == first


def test_a_plain_script_gets_the_returns_of_the_evaluation(run: Path) -> None:
    """The agent that was evaluated takes the same actions in a loop of one's own, episode by episode."""
    evaluation = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    settings = RunDirectory(run).settings()
    seed = evaluation_seed(settings)
    agent = Agent.load(run, seed=seed)
    assert agent.updates == evaluation["updates"]
    env, returns = agent.make_environment(), []
    for number in range(settings.records.evaluation_episodes):
        observation, _ = env.reset(seed=reset_seed(seed, number))
        agent.reset()
        returns.append(0.0)
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            returns[-1] += float(reward)
            ended = terminated or truncated
    env.close()
    assert returns == evaluation["returns"]
    assert len(set(returns)) == len(returns), "else actions that never change would do"


def test_one_environment_among_several_gets_what_it_gets_alone(run: Path) -> None:
    """A batch of environments is a call; the first gets the actions that it gets alone."""
    alone, together = Agent.load(run), Agent.load(run, environments=3)
    env = alone.make_environment()
    observation, _ = env.reset(seed=5)
    for step in range(12):
        batch = {name: np.stack([value, value * 0, value]) for name, value in observation.items()}
        actions = together.act(batch, is_first=step == 0)
        action = alone.act(observation)
        assert actions.shape == (3,)
        assert actions[0] + env.action_space.start == action, "stored actions count from 0"
        observation, *_ = env.step(action)


def test_one_entry_may_be_given_as_the_array_that_it_is(run: Path) -> None:
    """As a plain Gymnasium environment gives it, in its own or in double precision; several need their names."""
    spaces = Spaces((ObservationSpec("state", (4,), "float32"),), ActionSpec("discrete", (2,)))
    settings = Settings.model_validate({"env": {"id": "CartPole-v1"}, "behaviour": {"kind": "actor_critic"}})
    torch.manual_seed(2)  # not every fresh network does one thing in some places and another in others
    weights = (1, flatten(AgentNetworks(spaces, settings).acting_parameters()))
    for precision in (np.float32, np.float64):
        named, bare = Agent(settings, spaces, weights), Agent(settings, spaces, weights)
        arrays = list(np.random.default_rng(0).normal(0.0, 5.0, (12, 4)).astype(precision))
        actions = [bare.act(array) for array in arrays]
        assert actions == [named.act({"state": array.astype(np.float32)}) for array in arrays]
        assert set(actions) == {0, 1}, "else one that ignores the array would do"
    with pytest.raises(UserError, match="is one array"):
        Agent.load(run).act(np.zeros(3))


def test_the_best_checkpoint_is_the_one_with_the_highest_evaluation(run: Path) -> None:
    """What was evaluated is compared by its return, and can be loaded."""
    facts = [json.loads(path.read_text()) for path in (run / "checkpoints").glob("*.json")]
    evaluated = {entry["updates"]: entry["evaluation_return"] for entry in facts if "evaluation_return" in entry}
    assert evaluated
    best = max(evaluated.values())
    assert Agent.load(run, checkpoint="best").updates == min(u for u, found in evaluated.items() if found == best)
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert {line["updates"] for line in lines} >= set(evaluated)
    assert {
        "time",
        "env_steps",
        "simulator_steps",
        "mean",
        "std",
        "returns",
        "lengths",
        "seconds",
        "run_seconds",
    } <= set(lines[0])


def test_what_does_not_fit_is_a_sentence(run: Path, tmp_path: Path) -> None:
    """A missing run, a missing entry and a wrong shape are named."""
    with pytest.raises(UserError, match="does not exist"):
        Agent.load(tmp_path / "none")
    agent = Agent.load(run)
    name = agent.spaces.observations[0].name
    with pytest.raises(UserError, match=f"lacks '{name}'"):
        agent.act({"other": np.zeros(3)})
    with pytest.raises(UserError, match="has the shape"):
        agent.act({name: np.zeros((2, 99), np.float32)})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("image", np.full((64, 64, 3), 0.5), r"'image' is float64, .*bytes \(uint8\) from 0 to 255.*make_environment"),
        ("image", np.full((64, 64, 3), 1, np.int64), "'image' is int64"),
        ("state", np.array([0, np.nan]), "'state' holds nan, which is not finite"),
        ("state", np.array([1e39, 0]), r"'state' holds 1e\+39, which is not finite in float32"),
        ("state", np.array(["a", "b"]), "'state' is <U1, not numbers"),
    ],
)
def test_an_agent_refuses_values_that_its_environment_never_shows(name: str, value: np.ndarray, words: str) -> None:
    """A picture divided by 255 would be a black one; what is not finite would be remembered for ever."""
    image, state = ObservationSpec("image", (64, 64, 3), "uint8"), ObservationSpec("state", (2,), "float32")
    agent = Agent(Settings(), Spaces((image, state), ActionSpec("discrete", (2,))), None)
    right = {"image": np.zeros((64, 64, 3), np.uint8), "state": [1, 2]}
    with pytest.raises(UserError, match=words):
        agent.act(right | {name: value})
