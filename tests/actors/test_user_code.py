"""What users' environments raise, return and do to their process, and what becomes of it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import small_settings

from dreamfleet.actors.collector import build_collector
from dreamfleet.actors.environment_batch import EnvironmentBatch, EnvironmentFailedError
from dreamfleet.actors.environments.make import make_environment, probe_environment
from dreamfleet.actors.environments.user_code import WrongStepError, flag_of, process_kept, reward_of
from dreamfleet.actors.evaluator import play_episodes
from dreamfleet.common.acting.policy import RandomPolicy
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.settings.schema import Settings
from dreamfleet.common.torch_state import TorchState
from dreamfleet.deploy.run.runs import train
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.replay.report import count_steps


def rude(repeat: int = 1, **kwargs: Any) -> EnvironmentSettings:
    return EnvironmentSettings(id="rude_environment:make", kwargs=kwargs, action_repeat=repeat)


def walk(settings: EnvironmentSettings, steps: int = 20) -> EnvironmentBatch:
    """Return a batch of two environments after this many steps."""
    batch = EnvironmentBatch(settings, [1, 2], actor=4)
    batch.reset()
    for _ in range(steps):
        batch.step(np.zeros(2, np.int32))
    return batch


# What it returns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reward", [0.5, np.float32(0.5), np.array(0.5), np.array([0.5]), [[0.5]], torch.tensor([0.5])], ids=repr
)
def test_whatever_holds_one_number_is_a_reward(reward: Any) -> None:
    """An array of one element is harmless, of whatever shape."""
    assert reward_of(reward) == 0.5
    assert type(reward_of(reward)) is float


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (None, "its reward is None: one number is wanted"),
        ([0.0, 1.0], r"its reward is an array of shape \(2,\): one number is wanted"),
        (np.zeros((2, 3)), r"its reward is an array of shape \(2, 3\)"),
        ([], r"its reward is an array of shape \(0,\)"),
        ("3", "its reward is '3'"),
        ({"a": 1.0}, "its reward is {'a': 1.0}"),
        (float("nan"), "its reward is nan"),
        (-float("inf"), "its reward is -inf"),
        (1e39, r"its reward is 1e\+39, and at most 3.4e\+38 is stored"),
        (np.array([1e39]), r"its reward is 1e\+39"),
        (10**400, "its reward is 1000"),
    ],
    ids=repr,
)
def test_what_is_no_reward_is_named(reward: Any, words: str) -> None:
    """The sentence says reward, and what stood there."""
    with pytest.raises(WrongStepError, match=words):
        reward_of(reward)


def test_flags_say_yes_or_no() -> None:
    """One truth value in an array is one; None and several are none, and named."""
    for value in (True, np.True_, 1, np.array([True]), torch.tensor(True)):
        assert flag_of("truncated", value) is True
    assert flag_of("truncated", np.zeros((1, 1), bool)) is False
    for value in (None, "no", np.zeros(2, bool), 0.5):
        with pytest.raises(WrongStepError, match=r"its truncated is .*: True or False is wanted"):
            flag_of("truncated", value)


@pytest.mark.parametrize("repeat", [1, 2])
@pytest.mark.parametrize(
    ("returns", "words"),
    [
        ({"reward": None}, "its reward is None"),
        ({"reward": np.zeros(3)}, r"its reward is an array of shape \(3,\)"),
        ({"terminated": None}, "its terminated is None"),
        ({"truncated": np.zeros(2, bool)}, r"its truncated is an array of shape \(2,\)"),
    ],
    ids=str,
)
def test_a_wrong_step_is_named_with_its_place(returns: dict[str, Any], words: str, repeat: int) -> None:
    """Also below an action repeat, which would sum and join what it cannot."""
    with pytest.raises(EnvironmentFailedError, match=rf"\(actor 4, environment 0\) failed in episode 0.*: {words}"):
        walk(rude(repeat, returns=returns))
    with pytest.raises(UserError, match=words):
        probe_environment(rude(repeat, returns=returns))


@pytest.mark.parametrize("repeat", [1, 2])
def test_arrays_of_one_element_are_taken(repeat: int) -> None:
    """Rewards and flags of shape (1,) play as numbers do."""
    batch = walk(
        rude(repeat, returns={"reward": np.array([5.0]), "terminated": np.array([True])}), steps=3 if repeat == 1 else 2
    )
    assert batch.buffer.current.reward.tolist() == [5.0, 5.0], "the end of an episode ends the repeat"
    assert batch.buffer.current.is_terminal.all()


# What it raises -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "words"), [("exit", r"it called sys.exit\(3\)"), ("interrupt", "KeyboardInterrupt")])
def test_leaving_the_process_is_a_failure_of_the_environment(kind: str, words: str) -> None:
    """`sys.exit` and KeyboardInterrupt out of users' code are errors like others, with their place."""
    with pytest.raises(EnvironmentFailedError, match=rf"episode 0 at step 4: {words}"):
        walk(rude(manners={kind: 4}))
    with pytest.raises(EnvironmentFailedError, match=rf"at step 0: at its reset: {words}"):
        walk(rude(manners={kind: 0}))
    settings = Settings(env=rude(made=kind))
    with pytest.raises(UserError, match=rf"'rude_environment:make' could not be made: {words}"):
        build_collector(settings, 0, 0, writer=None)  # type: ignore[arg-type]


def test_an_exit_at_the_first_steps_is_one_sentence() -> None:
    """So is one in the constructor, or in an evaluation."""
    for settings in (rude(made="exit"), rude(manners={"exit": 2})):
        with pytest.raises(UserError, match=r"'rude_environment:make' .*sys.exit\(3\)"):
            probe_environment(settings)
    with pytest.raises(EnvironmentFailedError, match=r"failed in episode 1 of an evaluation: it called sys.exit\(3\)"):
        play_episodes(rude(manners={"exit": 12}), lambda spaces: RandomPolicy(spaces.action, 1, 0), 3, seed=0)


def test_an_environment_that_cannot_be_closed_keeps_no_other_open(caplog: pytest.LogCaptureFixture) -> None:
    """It is a warning: nobody needs it any more."""
    batch = EnvironmentBatch(rude(manners={"close": 0}), [1, 2])
    batch.close()
    assert [env.unwrapped.closed for env in batch.environments] == [1, 1]  # type: ignore[attr-defined]
    assert caplog.text.count("'rude_environment:make' failed as it was closed: RuntimeError: close failed") == 2
    assert probe_environment(rude(manners={"close": 0})).observations


# What it does to its process ------------------------------------------------------------------------------------------


def process() -> tuple[Any, ...]:
    return Path.cwd(), signal.getsignal(signal.SIGINT), TorchState.now()


def test_an_environment_that_was_tried_out_leaves_no_trace() -> None:
    """Working directory, signals and torch's defaults are as before the probe."""
    before = process()
    probe_environment(rude(made="changes"))
    assert process() == before


def test_an_environment_that_goes_on_keeps_what_it_set() -> None:
    """It may need its directory and its defaults as long as it exists."""
    with process_kept():
        before = process()
        make_environment(rude(made="changes"))
        assert all(ours != its for ours, its in zip(before, process(), strict=True))
    assert process() == before


def run_settings(**kwargs: Any) -> Settings:
    return small_settings(
        env={"id": "rude_environment:make", "kwargs": kwargs},
        model={"vector_units": 8, "vector_layers": 1},
        actors={"count": 1, "environments": 2, "steps_per_order": 64},
        replay={"capacity_gb": 0.1},
        learner={"updates_per_order": 4, "threads": 0},
        train={"env_steps": 700, "prefill": 200, "ratio": 1.0},
        records={"checkpoint_every": 5},
    )


def test_a_run_holds_out_against_an_environment_that_changes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directory, signals and torch changed in the run's own process; Ctrl-C within a step that would take an hour.

    The run was given by a relative path. It ends as after any Ctrl-C: with a checkpoint, and all but the cut round of
    what it collected; and continues. The process is left as it was.
    """
    monkeypatch.chdir(tmp_path)
    before = process(), torch.get_num_threads()
    settings = run_settings(made="changes", manners={"stopped while it sleeps": 250})
    assert train(settings, directory="runs/rude", inline=True).exit_code == 130
    assert (process(), torch.get_num_threads()) == before
    run = RunDirectory(tmp_path / "runs" / "rude")
    assert count_steps(run.replay) == 2 * (249 + 25), "the steps before that one, and the first ones of 25 episodes"
    found = CheckpointStore(run.checkpoints, 1).load_newest()
    assert found is not None
    assert found[0]["updates"] > 0
    assert all(tensor.dtype is torch.float32 for tensor in found[0]["model"].values())
    assert train(run_settings(made="changes"), directory=run.shown, inline=True).exit_code == 0


@pytest.mark.parametrize("kind", ["exit", "die"])
def test_a_simulator_that_ends_again_and_again_ends_no_run_that_gets_on(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each incarnation stores more than a chunk of steps: the next begins at once, and the run comes to its end."""
    settings = run_settings(manners={kind: 50})
    assert train(settings, directory=tmp_path / "run", inline=True).exit_code == 0
    assert count_steps(tmp_path / "run" / "replay") == 700
    assert (tmp_path / "run" / "train.log").read_text().count("actor 0 is replaced") >= 5


def test_a_simulator_that_achieves_nothing_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    """There is a checkpoint of what there was, and the log has why."""
    path = tmp_path / "run"
    with pytest.raises(RunFailedError, match="no actor is left"):
        train(run_settings(manners={"exit": 9}), directory=path, inline=True)
    log = (path / "train.log").read_text()
    assert "the run failed: no actor is left" in log
    assert "it called sys.exit(3)" in log
