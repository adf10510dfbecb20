"""A model on held-out sequences: their loss and pictures, which change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from make_chunks import cut, make_stream
from moving_square import play_square, square_format
from small_runs import learner_on, small_settings

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.learner.learner import Learner
from dreamfleet.replay.interface import NotEnoughExperienceError
from dreamfleet.replay.replay import Replay


def test_the_held_out_loss_is_repeatable_and_only_measures(replay: Replay, tmp_path: Path) -> None:
    """Measured twice it is the same number; nothing of the model changes, batch norm's statistics included."""
    learner = learner_on(replay, tmp_path, small_settings(model={"batch_norm": True}))
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    assert learner.held_out_loss() == learner.held_out_loss()
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.model.state_dict().items())


def test_updates_after_measuring_are_those_of_a_run_that_never_measured(replay: Replay, tmp_path: Path) -> None:
    """Batch norm takes the batch's statistics again, and five-bit pictures have their noise."""
    settings = small_settings(model={"batch_norm": True, "image_input": "five_bit"})
    measured, other = (learner_on(replay, tmp_path / name, settings) for name in ("measured", "other"))
    for learner in (measured, other):
        learner.train(2)
    measured.held_out_loss()
    assert measured.train(2).metrics == other.train(2).metrics
    state = other.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in measured.model.state_dict().items())


def test_short_held_out_episodes_are_measured_too(tmp_path: Path) -> None:
    """Where no held-out episode has the training length, shorter ones are taken; with none there is no loss."""
    for every, expected in ((2, True), (0, False)):
        settings = ReplaySettings(capacity_gb=0.1, held_out_every=every)
        short = Replay(tmp_path / f"every-{every}", square_format(), settings, 8, seed=0)
        for chunk in cut(square_format(), play_square(60, 5, seed=0)):
            short.append(chunk)
        loss = learner_on(short, tmp_path).held_out_loss()
        assert (loss is not None) == expected
        short.close()


def test_pictures_show_a_held_out_sequence(replay: Replay, tmp_path: Path) -> None:
    """A still and a video in RGB, of even sides for the codec, from a sequence that is not trained on."""
    pictures = learner_on(replay, tmp_path).draw_pictures()
    assert pictures is not None
    assert pictures.facts["held_out"]
    assert pictures.facts["steps"] == 20
    assert pictures.still.dtype == np.uint8
    assert pictures.still.shape[2] == 3
    assert pictures.video is not None
    assert pictures.video.shape[0] == 20
    assert pictures.video.shape[1] % 2 == pictures.video.shape[2] % 2 == 0
    assert pictures.video[0].std() > 0


def test_pictures_fall_back_on_training_sequences(tmp_path: Path) -> None:
    """Without held-out episodes the picture is of a training sequence, cut where its episode ends."""
    settings = ReplaySettings(capacity_gb=0.1, held_out_every=0)
    replay = Replay(tmp_path / "replay", square_format(), settings, 8, seed=0)
    learner = learner_on(replay, tmp_path)
    assert learner.draw_pictures() is None
    with pytest.raises(NotEnoughExperienceError):
        learner.train(1)
    for chunk in cut(square_format(), play_square(8, 6, seed=0)):
        replay.append(chunk)
    pictures = learner.draw_pictures()
    assert pictures is not None
    assert not pictures.facts["held_out"]
    assert 3 < pictures.facts["steps"] <= 6
    replay.close()


def test_vector_observations_are_learnt_and_shown_as_charts(tmp_path: Path) -> None:
    """No picture among the observations: the still is a chart and there is no video."""
    spaces = Spaces((ObservationSpec("position", (3,), "float32"),), ActionSpec("box", (2,), (-1, -1), (1, 1), (2,)))
    replay = Replay(tmp_path / "replay", StepFormat(spaces), ReplaySettings(capacity_gb=0.1), 8, seed=0)
    for chunk in cut(StepFormat(spaces), make_stream(StepFormat(spaces), [30, 30, 30])):
        replay.append(chunk)
    learner = Learner(small_settings(), spaces, replay, tmp_path, prefetch=False)
    learner.train(2)
    pictures = learner.draw_pictures()
    assert pictures is not None
    assert pictures.video is None
    assert pictures.still.ndim == 3
    replay.close()
