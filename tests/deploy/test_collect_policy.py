"""`dreamfleet collect --policy`: what a run has learned acts, exploring, and its version is stored with each step."""

from __future__ import annotations

from pathlib import Path

import pytest
from counted_streams import read_streams
from dreamer_run import train_small_dreamer

from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.restore import load_acting_weights
from dreamfleet.replay.report import describe
from dreamfleet.replay.shards import shard_directories


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the smallest Dreamer V3, trained for some updates."""
    flags = ("--train.env_steps", "120", "--records.evaluate_every", "0", "--actors.count", "1")
    return train_small_dreamer(tmp_path_factory.mktemp("policy"), *flags)


@pytest.fixture(autouse=True)
def _beside_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's module lies beside the run."""
    monkeypatch.chdir(run.parent)


def versions(path: Path) -> set[int]:
    """Return the versions that chose a dataset's actions."""
    dataset = RunDirectory(path)
    step_format = StepFormat(dataset.spaces())
    streams = [
        stream for shard in shard_directories(dataset.replay) for stream in read_streams(shard, step_format).values()
    ]
    return {int(version) for stream in streams for version in stream["version"]}


def test_a_learned_policy_collects(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's settings become the dataset's, and every step is of the checkpoint's version; so when it goes on."""
    directory = RunDirectory(run)
    updates, _ = load_acting_weights(directory.checkpoints, directory.settings())
    collect = ("collect", "--out", "learned", "--policy", "run", "--inline")
    assert main([*collect, "--steps", "100"]) == 0
    printed = capsys.readouterr().out
    assert f"policy: actor_critic of run at update {updates:,}, exploring as in training" in printed
    assert describe(run.parent / "learned" / "replay")["steps"] == 100
    assert versions(run.parent / "learned") == {updates}
    settings = RunDirectory(run.parent / "learned").settings()
    assert (settings.env, settings.model) == (directory.settings().env, directory.settings().model)
    assert main([*collect, "--steps", "130", "--checkpoint", "best"]) == 0
    assert describe(run.parent / "learned" / "replay")["steps"] == 130


def test_a_dataset_of_chance_goes_on_with_a_policy(run: Path) -> None:
    """A dataset that was begun by chance can be continued with a learned policy."""
    chance = ("collect", "--out", "mixed", "--inline", "--env.id", "my_world:make", "--env.kwargs", "{length: 20}")
    assert main([*chance, "--env.image_size", "64", "--steps", "60", "--actors.count", "1"]) == 0
    assert main(["collect", "--out", "mixed", "--inline", "--steps", "100", "--policy", "run"]) == 0
    assert len(versions(run.parent / "mixed")) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--preset", "dreamer_v3"),
            "behaviour.kind is actor_critic, which acts with what a run has learned",
        ),
        (("--policy", "rnu"), "flag --policy: rnu does not exist. Did you mean 'run'?"),
        (("--policy", "run", "--behaviour.kind", "random"), "flag --policy: behaviour.kind of run is random"),
        (("--policy", "run", "--env.kwargs", "{picture: true, image: 16}"), "The run run is of another environment"),
        (("--policy", "run", "--model.deterministic", "48"), "The checkpoint of update"),
    ],
)
def test_a_policy_that_cannot_act_is_a_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    """What is missing or does not fit is named, and no dataset is made."""
    small = ("--env.id", "my_world:make") if "--policy" not in arguments else ()
    assert main(["collect", "--out", "none", "--inline", *small, *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (run.parent / "none").exists()
