"""Dreams: the arithmetic of their errors, what the model may see of the truth, and the files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from make_chunks import make_stream
from moving_square import play_square, square_format
from small_runs import small_settings

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.video import to_rgb
from dreamfleet.learner.pictures.charts import BLUE, Curve, draw_chart
from dreamfleet.learner.pictures.comparison import write_dream
from dreamfleet.learner.pictures.frames import draw_panels, draw_strips, enlarge
from dreamfleet.learner.pictures.open_loop import (
    DreamResult,
    HorizonErrors,
    beats_both_until,
    dream,
    horizon_errors,
    longest_episode,
    shown_observation,
    unroll,
)

Batch = dict[str, np.ndarray]


def square_batch(sequences: int = 3, steps: int = 12) -> Batch:
    arrays = play_square(sequences, steps, seed=5)
    return {name: array.reshape(sequences, steps, *array.shape[1:]) for name, array in arrays.items()}


def square_model(**model: object) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(square_format().spaces, small_settings(model=model).model)


# Errors --------------------------------------------------------------------------------------------------------------


def test_errors_are_those_worked_out_by_hand() -> None:
    """Two sequences of four steps of two pixels, one step seen."""
    truth = np.array([[[0, 0], [1, 0], [1, 1], [0, 0]], [[0, 1], [0, 1], [0, 1], [0, 1]]], float)
    prediction = np.array([[[9, 9], [1, 0], [0, 1], [0, 2]], [[9, 9], [0, 1], [0, 1], [0, 1]]], float)
    errors = horizon_errors(truth, prediction, context=1)
    assert errors.model.tolist() == [0.0, 0.25, 1.0]  # 1/4 of the pixels off by 1; 1/4 off by 2
    assert errors.last_frame.tolist() == [0.25, 0.5, 0.0]
    # The mean frame is (2/8, 5/8).
    assert errors.mean_frame == pytest.approx(
        [
            (0.75**2 + 0.625**2 + 0.25**2 + 0.375**2) / 4,
            (0.75**2 + 0.375**2 + 0.25**2 + 0.375**2) / 4,
            (0.25**2 + 0.625**2 + 0.25**2 + 0.375**2) / 4,
        ]
    )


@pytest.mark.parametrize(
    ("model", "last", "mean", "until"),
    [
        ([1, 1, 1], [2, 2, 2], [3, 3, 3], 3),
        ([1, 1, 1], [2, 2, 2], [3, 1, 3], 1),  # as good is not better
        ([1, 1, 5], [2, 2, 2], [3, 3, 9], 2),
        ([3, 1, 1], [2, 2, 2], [4, 4, 4], 0),  # better later on does not count
        ([np.nan, 1, 1], [2, 2, 2], [4, 4, 4], 0),
    ],
)
def test_a_model_beats_both_up_to_its_first_lapse(
    model: list[float], last: list[float], mean: list[float], until: int
) -> None:
    """Counted from horizon 1 without a gap."""
    assert beats_both_until(HorizonErrors(np.array(model), np.array(last), np.array(mean))) == until


# What the model sees -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_input", ["unit", "five_bit"])
def test_a_dream_knows_the_actions_and_nothing_else_of_what_comes(image_input: str) -> None:
    """Other pictures after the context leave the prediction alone; other actions from the last seen step on do not."""
    model, batch, context = square_model(image_input=image_input), square_batch(), 4

    def predicted(changed: Batch) -> np.ndarray:
        torch.manual_seed(1)
        unrolled = unroll(model, changed, context)
        pictures = unrolled.prediction["image"].reshape(*unrolled.reward.shape, -1)
        return np.concatenate([unrolled.reward[..., None], pictures], axis=-1)  # rewards show what bytes round off

    plain = predicted(batch)
    other_future = {**batch, "image": batch["image"].copy(), "reward": batch["reward"] + 1}
    other_future["image"][:, context:] = 0
    assert np.array_equal(predicted(other_future), plain)

    other_past = {**batch, "image": batch["image"].copy()}
    other_past["image"][:, context - 1] = 0
    assert not np.array_equal(predicted(other_past)[:, context:], plain[:, context:])

    for step, differs_from in ((context - 1, context), (context, context + 1)):
        other_action = {**batch, "action": batch["action"].copy()}
        other_action["action"][:, step] = (batch["action"][:, step] + 1) % 4
        changed = predicted(other_action)
        assert np.array_equal(changed[:, :differs_from], plain[:, :differs_from])
        assert not np.array_equal(changed[:, differs_from], plain[:, differs_from])

    last_action = {**batch, "action": batch["action"].copy()}
    last_action["action"][:, -1] = (batch["action"][:, -1] + 1) % 4  # leads out of the sequence
    assert np.array_equal(predicted(last_action), plain)


def test_a_dream_begins_as_the_reconstruction() -> None:
    """While the truth is seen both are the same; reward and pictures have the batch's shape."""
    model, batch = square_model(), square_batch()
    unrolled = unroll(model, batch, 5)
    reconstruction, prediction = unrolled.reconstruction["image"], unrolled.prediction["image"]
    assert reconstruction.shape == prediction.shape == batch["image"].shape
    assert reconstruction.dtype == np.uint8
    assert np.array_equal(reconstruction[:, :5], prediction[:, :5])
    assert not np.array_equal(reconstruction[:, 5:], prediction[:, 5:])
    assert unrolled.reward.shape == batch["reward"].shape


def test_a_dream_is_repeatable_and_leaves_the_model_as_it_was() -> None:
    """The same seed gives the same errors, another seed others; batch norm's statistics and the mode are untouched."""
    model, batch = square_model(batch_norm=True).train(), square_batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, again, other = dream(model, batch, 4), dream(model, batch, 4), dream(model, batch, 4, seed=1)
    assert np.array_equal(one.errors.model, again.errors.model)
    assert not np.array_equal(one.errors.model, other.errors.model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_dream_of_many_sequences_has_them_all_in_order() -> None:
    """More sequences than are dreamt of at once come out complete; the mean of one sample is that sample."""
    model, batch = square_model(), square_batch(11)
    result = dream(model, batch, 4, samples=1)
    assert result.imagination.shape == batch["image"].shape
    assert result.predicted_reward.shape == (11, 12)
    expected = horizon_errors(batch["image"] / 255.0, result.imagination / 255.0, 4)
    assert result.errors.model == pytest.approx(expected.model, rel=1e-5)
    torch.manual_seed(0)
    unrolled = unroll(model, batch, 4, samples=3)
    assert np.abs(unrolled.mean_prediction["image"] - unrolled.prediction["image"]).max() > 0.1


def test_what_cannot_be_dreamt_is_refused() -> None:
    """Neither past the end of a sequence nor into another episode."""
    model, batch = square_model(), square_batch()
    for context in (0, 12):
        with pytest.raises(ValueError, match="leaves nothing to predict"):
            unroll(model, batch, context)
    batch["is_first"][1, 6] = True
    with pytest.raises(ValueError, match="another episode"):
        dream(model, batch, 4)


def test_the_longest_first_episode_is_taken() -> None:
    """The row that stays longest in one episode, up to where the next begins, and no longer than asked."""
    batch = square_batch(3, 12)
    batch["is_first"][0, 4] = batch["is_first"][1, 9] = batch["is_first"][2, 2] = True
    chosen = longest_episode(batch, most=20)
    assert np.array_equal(chosen["image"], batch["image"][1:2, :9])
    assert longest_episode(batch, most=5)["reward"].shape == (1, 5)


# Files ---------------------------------------------------------------------------------------------------------------


def test_the_files_of_a_dream(tmp_path: Path) -> None:
    """Video, strips, curve and numbers are written, and the numbers are the dream's."""
    pytest.importorskip("dreamfleet.common.video")
    result = dream(square_model(), square_batch(), 4)
    files = write_dream(tmp_path / "dream", result)
    assert [file.name for file in files] == ["dream.webm", "dream.png", "error.png", "error.json"]
    numbers = json.loads(files[-1].read_text())
    assert numbers["error"]["model"] == result.errors.model.tolist()
    assert numbers["horizon"] == list(range(1, 9))
    assert numbers["context"] == 4
    assert numbers["beats_both_until"] == result.beats_both_until
    assert all(cv2.imread(str(file)).std() > 0 for file in files[1:3])
    video = cv2.VideoCapture(str(files[0]))
    assert video.get(cv2.CAP_PROP_FRAME_WIDTH) > 3 * 96
    assert sum(video.read()[0] for _ in range(20)) == 12


def test_a_dream_of_vectors_has_charts_and_no_video(tmp_path: Path) -> None:
    """Errors are per dimension in the observation's own units, and the numbers' file says why there is no video."""
    spaces = Spaces((ObservationSpec("position", (3,), "float32"),), ActionSpec("box", (2,), (-1, -1), (1, 1), (2,)))
    arrays = make_stream(StepFormat(spaces), [10, 10])
    batch = {name: array.reshape(2, 10, *array.shape[1:]) for name, array in arrays.items()}
    torch.manual_seed(0)
    result = dream(WorldModel(spaces, small_settings().model), batch, 3)
    assert not result.is_image
    expected = np.square(batch["position"][:, 3:].astype(float) - batch["position"][:, 2:3]).mean(axis=(0, 2))
    assert result.errors.last_frame == pytest.approx(expected)
    files = write_dream(tmp_path, result)
    assert [file.name for file in files] == ["dream.png", "error.png", "error.json"]
    assert json.loads(files[-1].read_text())["video"].startswith("none")


def test_the_first_picture_is_what_is_shown() -> None:
    """Among pictures and vectors the first picture by name."""
    names = [("a", (3,), "float32"), ("c", (16, 16, 1), "uint8"), ("b", (16, 16, 3), "uint8")]
    spaces = Spaces(tuple(ObservationSpec(*entry) for entry in names), ActionSpec("discrete", (2,)))
    assert shown_observation(spaces).name == "b"


# Drawing -------------------------------------------------------------------------------------------------------------


def test_pictures_of_any_channels_become_rgb() -> None:
    """Grey is repeated, further channels are left out."""
    for channels in (1, 2, 3, 4):
        images = np.random.default_rng(0).integers(0, 255, (2, 8, 8, channels), np.uint8)
        shown = to_rgb(images)
        assert shown.shape == (2, 8, 8, 3)
        assert np.array_equal(shown[..., 0], images[..., 0])


def test_panels_are_enlarged_by_whole_pixels() -> None:
    """Each panel of a video has at least 128 pixels a side, each pixel repeated, whatever its shape."""
    frames = np.random.default_rng(0).integers(0, 255, (2, 48, 30, 3), np.uint8)
    large = enlarge(frames, 128)
    assert large.shape == (2, 240, 150, 3)
    assert np.array_equal(large[:, ::5, ::5], frames)
    assert draw_panels([("a", frames), ("b", frames)], ["", ""], 1).shape[0] == 2


@pytest.mark.parametrize("steps", [2, 3, 7, 60])
def test_strips_show_the_last_seen_and_the_first_and_last_imagined_step(steps: int) -> None:
    """Whatever the length, these frames are among the columns, found by their brightness."""
    frames = np.zeros((steps, 80, 80, 3), np.uint8) + (np.arange(steps) * 4 + 3).astype(np.uint8)[:, None, None, None]
    context = max(1, steps // 3)
    picture = draw_strips("title", [("row", frames)], context)
    row = picture[110]
    for step in (context - 1, context, steps - 1):
        assert (row == step * 4 + 3).all(axis=-1).sum() >= 80


def test_a_chart_draws_its_curves_where_they_belong() -> None:
    """A constant curve is a level line; one that is nowhere finite draws nothing and breaks nothing."""
    x = np.arange(1, 11)
    picture = draw_chart(
        [Curve("half", x, np.full(10, 0.5), BLUE), Curve("one", x, np.ones(10), (200, 0, 0))], "t", "x", "y"
    )
    blue = np.flatnonzero((picture[:, 300] == BLUE).all(axis=-1))
    red = np.flatnonzero((picture[:, 300] == (200, 0, 0)).all(axis=-1))
    bottom = 420 - 46
    assert abs((bottom - blue.mean()) / (bottom - red.mean()) - 0.5) < 0.02
    empty = draw_chart([Curve("none", x, np.full(10, np.nan), BLUE)], "t", "x", "y")
    assert not (empty[60:370, 75:690] == BLUE).all(axis=-1).any()


def test_a_dream_counts_its_horizon() -> None:
    """The horizon is what is left after the context."""
    result = dream(square_model(), square_batch(2, 9), 4, samples=1)
    assert isinstance(result, DreamResult)
    assert result.horizon == len(result.errors.model) == 5
