"""`dreamfleet dream` on a run: which sequences it dreams of, what it says of them, and that it only reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from make_chunks import cut
from moving_square import play_square, square_format
from small_runs import small_settings

from dreamfleet.common.errors import UserError
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.run.dream_sequences import dream_of
from dreamfleet.deploy.run.loaded_run import LoadedRun
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.replay.replay import Replay

SEQUENCE = 8


def make_run(
    path: Path, length: int, held_out_every: int = 4, keep_open: bool = False, **sections: Any
) -> tuple[RunDirectory, Replay]:
    """Return a run with an untrained model and 600 steps in episodes of `length`, of which a fourth is held out."""
    settings = small_settings(replay={"capacity_gb": 0.1, "held_out_every": held_out_every}, **sections)
    run = RunDirectory(path)
    run.create()
    run.write(settings, square_format().spaces)
    torch.manual_seed(0)
    state = {"model": WorldModel(square_format().spaces, settings.model, settings.loss).state_dict()}
    CheckpointStore(run.checkpoints, 2).save(1, state, {"spaces": square_format().spaces.to_json()})
    replay = open_writer(run, settings)
    for chunk in cut(square_format(), play_square(-(-600 // length), length, seed=0)):
        replay.append(chunk)
    if not keep_open:
        replay.close()
    return run, replay


def open_writer(run: RunDirectory, settings: Settings) -> Replay:
    return Replay(run.replay / "shard-0", square_format(), settings.replay, SEQUENCE, settings.seed)


def test_a_dream_beside_a_running_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While another holds the replay, a dream of held-out sequences succeeds and changes nothing in it."""
    run, writer = make_run(tmp_path, length=30, keep_open=True)
    files = {file: file.read_bytes() for file in (run.replay / "shard-0").iterdir()}
    assert main(["dream", "--run", str(run.path), "--sequences", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 sequences, 3 steps seen, 17 imagined: ")
    assert "held-out" not in out
    assert {file: file.read_bytes() for file in (run.replay / "shard-0").iterdir()} == files
    writer.close()


def test_a_model_without_a_decoder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`dream` and the library in one sentence, with the setting; states and rewards are there all the same."""
    loss = {"representation": "redundancy", "decoder_every": 0}
    run, _ = make_run(tmp_path, length=30, loss=loss)
    assert main(["dream", "--run", str(run.path), "--sequences", "3"]) == 2
    said = capsys.readouterr().err
    assert "this model has no decoder, which pictures and dreams are made with: train with --loss.decoder_every" in said
    assert "Traceback" not in said
    loaded = LoadedRun(run.path)
    states = loaded.observe({name: value[None, :4] for name, value in play_square(1, 30, seed=0).items()})
    assert loaded.world_model.predict_reward(states.feature).mean.shape == (1, 4)
    with pytest.raises(UserError, match=r"no decoder"):
        loaded.decode(states)


@pytest.mark.parametrize(("length", "imagined"), [(20, 17), (19, 8), (7, 4), (6, 2), (5, 2)])
def test_a_horizon_is_halved_until_a_held_out_sequence_is_long_enough(
    tmp_path: Path, length: int, imagined: int
) -> None:
    """Of the horizons 17, 8, 4 and 2, and the text says what was asked for."""
    run, _ = make_run(tmp_path, length)
    dreamt = dream_of(run, sequences=2)
    assert (dreamt.result.truth.shape[:2], dreamt.result.horizon) == ((2, 3 + imagined), imagined)
    note = f" (no held-out sequence has 20 steps: {imagined} are imagined instead of 17)"
    assert dreamt.describe().endswith(note) == (imagined < 17)


def test_a_dream_of_what_was_trained_on_says_so(tmp_path: Path) -> None:
    """With nothing held out, the sentence about the dream tells that its sequence was trained on."""
    run, _ = make_run(tmp_path, 30, held_out_every=0)
    dreamt = dream_of(run, sequences=8)
    assert dreamt.result.truth.shape[:2] == (1, SEQUENCE)
    assert dreamt.describe().endswith("(no held-out sequence has 5 steps: this is of a sequence that was trained on)")


@pytest.mark.parametrize(
    ("context", "horizon", "imagined"), [(25, None, 1), (25, 1, 1), (29, 1, 1), (29, 2, 1), (20, 100, 6)]
)
def test_a_long_context_is_seen_if_held_out_sequences_hold_it(
    tmp_path: Path, context: int, horizon: int | None, imagined: int
) -> None:
    """The context may be longer than the settings' pictures and than the learner's sequences."""
    run, _ = make_run(tmp_path, 30)
    dreamt = dream_of(run, 2, context, horizon)
    assert (dreamt.result.context, dreamt.result.horizon) == (context, imagined)


@pytest.mark.parametrize(("length", "every", "context"), [(30, 4, 30), (9, 4, 200), (30, 0, 8)])
def test_a_context_that_nothing_holds_is_refused_with_true_figures(
    tmp_path: Path, length: int, every: int, context: int
) -> None:
    """The sentence tells how long held-out sequences and those of training are."""
    run, _ = make_run(tmp_path, length, every)
    longest = length if every else 0
    trained = min(SEQUENCE, length)
    sentence = (
        f"flag --context: {context} steps leave nothing to imagine: the longest held-out sequence stored has "
        f"{longest} steps, and the longest drawn of what was trained on has {trained} "
    )
    with pytest.raises(UserError) as refused:
        dream_of(run, 16, context)
    assert str(refused.value).startswith(sentence)


def test_a_run_without_experience_has_nothing_to_dream_of(tmp_path: Path) -> None:
    """Neither held-out nor trained on, and then not even a shard: one sentence each."""
    run, _ = make_run(tmp_path, 30)
    for file in (run.replay / "shard-0").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="there is nothing to dream of yet: 0 steps in 0 chunks"):
        dream_of(run)
    (run.replay / "shard-0").rmdir()
    with pytest.raises(UserError, match="replay holds no replay: there is no directory 'shard-0' in it"):
        dream_of(run)
