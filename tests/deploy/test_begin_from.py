"""`dreamfleet train --from RUN`: a run begins with what another has learnt, and everything else is its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from counted_streams import read_streams
from dreamer_run import train_small_dreamer

from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.plan.traffic import Forecast, Speeds, Work, forecast
from dreamfleet.deploy.run import dry_run
from dreamfleet.deploy.run.runs import train
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.learner.learner import Learner
from dreamfleet.replay.shards import open_shards, shard_directories


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that explored for some updates."""
    flags = ("--behaviour.kind", "explore", "--train.env_steps", "120", "--records.evaluate_every", "0")
    return train_small_dreamer(tmp_path_factory.mktemp("explored"), *flags, "--actors.count", "1")


@pytest.fixture(autouse=True)
def _beside_the_run(explored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's module lies beside the run."""
    monkeypatch.chdir(explored.parent)


def versions(path: Path) -> set[int]:
    """Return the versions of the weights that chose a run's actions."""
    run = RunDirectory(path)
    step_format = StepFormat(run.spaces())
    streams = [s for shard in shard_directories(run.replay) for s in read_streams(shard, step_format).values()]
    return {int(version) for stream in streams for version in stream["version"]}


def test_the_explorer_collects_datasets(explored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`collect --policy` with a run that explores."""
    assert main(["collect", "--out", "data", "--policy", "run", "--inline", "--steps", "60"]) == 0
    newest = CheckpointStore(explored / "checkpoints", 1).numbers()[-1]
    assert f"policy: explore of run at update {newest:,}, exploring as in training" in capsys.readouterr().out
    assert versions(Path("data")) == {newest}
    assert main(["eval", "--run", "data"]) == 2
    assert "There is no checkpoint in " in (said := capsys.readouterr().err)
    assert "this is a dataset, or a run" in said
    assert main(["train", "--from", "data", "--run", "other", "--inline"]) == 2
    sentence = "flag --from: data is a dataset, where nothing was learnt; --dataset trains on it."
    assert sentence in capsys.readouterr().err


def test_a_run_goes_on_from_what_another_has_learnt(explored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its policy acts from the first step, its counts begin at 0, and once it has a checkpoint that is resumed."""
    newest = CheckpointStore(explored / "checkpoints", 1).numbers()[-1]
    begin = ["train", "--from", "run", "--run", "tuned", "--inline"]
    assert main([*begin, "--train.env_steps", "100", "--train.prefill", "40"]) == 0
    tuned = RunDirectory(Path("tuned"))
    printed = capsys.readouterr().out
    assert f"start: from the beginning, with the model, actor and critic of update {newest} of " in printed
    assert "without effect: " not in printed, "the other's config.yaml has all settings, asked for or not"
    settings, theirs = tuned.settings(), RunDirectory(explored).settings()
    assert settings.behaviour == theirs.behaviour.model_copy(update={"kind": "actor_critic"})
    assert (settings.model, settings.env) == (theirs.model, theirs.env)
    assert (settings.train.from_run, settings.train.from_checkpoint) == (str(explored.resolve()), newest)
    assert 0 in versions(tuned.path)
    assert min(versions(tuned.path)) == 0, "chance would be -1"
    assert CheckpointStore(tuned.checkpoints, 1).numbers()[-1] == (100 - 40) * 4 // 32

    assert main([*begin, "--train.env_steps", "140"]) == 0
    assert "start: from the checkpoint of update 7" in capsys.readouterr().out
    assert main(["status", "tuned"]) == 0
    assert f"begun from   {explored.resolve()}, checkpoint {newest}" in capsys.readouterr().out
    assert main(["train", "--from", "tuned", "--run", "run", "--inline"]) == 2
    assert "the run run exists, and began with nothing learnt, not from tuned" in capsys.readouterr().err


def test_model_and_actor_are_the_others_and_the_moments_its_own(explored: Path, tmp_path: Path) -> None:
    """Bit for bit, with the slow critic and the normaliser; and of two that explore, what explores too."""
    state, _ = CheckpointStore(explored / "checkpoints", 1).load_newest() or ({}, {})
    run = RunDirectory(explored)
    settings, spaces = run.settings(), run.spaces()
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"from_run": str(explored)})})
    replay = open_shards(tmp_path, StepFormat(spaces), settings.replay, 8, 0)
    learner = Learner(settings, spaces, replay, tmp_path, prefetch=False)
    restored = learner.restore()
    replay.close()
    mine = learner._state()
    assert (restored.updates, mine["optimiser"]["state"]) == (0, {})
    assert state["optimiser"]["state"]
    for part in ("model", "behaviour", "exploration"):
        assert all(torch.equal(value, mine[part][name]) for name, value in state[part].items()), part


def test_the_library_begins_runs_so_too(explored: Path, tmp_path: Path) -> None:
    """`from_run` of `df.train`, with settings of one's own."""
    settings = RunDirectory(explored).settings()
    sections = {"train": settings.train.model_copy(update={"env_steps": 60, "prefill": 40})}
    result = train(settings.model_copy(update=sections), directory=tmp_path / "run", from_run=explored, inline=True)
    assert RunDirectory(result.directory).settings().train.from_run == str(explored.resolve())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--model.deterministic", "48"), "is of another model: parameter "),
        (("--env.kwargs", "{picture: true, image: 16}"), "is of another environment: "),
        (("--checkpoint", "999"), "there is no checkpoint '999'"),
        (("--checkpoint", "bst"), "argument --checkpoint: 'bst' is neither newest, nor best, nor a number of updates."),
        (("--from", "rnu"), "flag --from: rnu does not exist. Did you mean 'run'?"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    explored: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], sentence: str
) -> None:
    """And no run is made."""
    del explored
    assert main(["train", "--inline", "--from", "run", "--run", "other", *flags]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("other").exists()


def test_a_checkpoint_of_no_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """`--checkpoint` says which of --from, and of --policy."""
    assert main(["train", "--inline", "--checkpoint", "best", "--run", "other"]) == 2
    assert "flag --checkpoint: it is of --from RUN, which is not given" in capsys.readouterr().err
    assert main(["collect", "--inline", "--checkpoint", "best", "--out", "other"]) == 2
    assert "flag --checkpoint: it is of --policy RUN, which is not given" in capsys.readouterr().err


def test_the_dry_run_counts_on_the_policy_in_the_prefill(explored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random steps are quicker, but none are made."""
    del explored
    speeds = []
    monkeypatch.setattr(dry_run, "ACTOR_S", 0.01)
    monkeypatch.setattr(dry_run, "UPDATES_S", 0.01)

    def note(work: Work, found: Speeds, inline: bool) -> Forecast:
        speeds.append((found.random, found.on_model))
        return forecast(work, found, inline)

    monkeypatch.setattr(dry_run, "forecast", note)
    assert main(["train", "--from", "run", "--run", "other", "--inline", "--dry-run"]) == 0
    [(prefill, later)] = speeds
    assert prefill == later
