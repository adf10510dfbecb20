"""A sequence, its reconstruction and its open-loop prediction side by side, while training and as files of a dream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.video import to_rgb, write_webm
from dreamfleet.learner.pictures.charts import BLUE, GREY, ORANGE, Curve, draw_chart, write_png
from dreamfleet.learner.pictures.frames import difference, draw_panels, draw_strips, draw_wall
from dreamfleet.learner.pictures.open_loop import DreamResult, shown_observation, unroll

DIMENSIONS = 6
"""Dimensions of a vector that are drawn."""
STRIPS = 3
"""Sequences in dream.png."""
WALL = 6
"""Sequences in dream.webm."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of a model at one moment of its training.

    Attributes:
        still: (H, W, 3), uint8 RGB.
        video: (T, H, W, 3), uint8 RGB, or None where there is nothing that moves (vector observations).
        facts: plain data: `observation`, `held_out`, `context`, `steps`, `updates`.
    """

    still: np.ndarray
    video: np.ndarray | None
    facts: Mapping[str, Any]


def draw_pictures(
    model: WorldModel, batch: Mapping[str, np.ndarray], context: int, updates: int, held_out: bool
) -> Pictures:
    """Return pictures of a batch's first sequence, its reconstruction and its prediction; chance is torch's.

    Args:
        batch: fields of the step format (B, T, …); the first sequence runs into no other episode.
        context: steps that the prediction sees; from there on it follows from the actions alone.
        held_out: whether the sequence was kept from training.
    """
    first = {name: array[:1] for name, array in batch.items()}
    unrolled = unroll(model, first, context)
    spec = shown_observation(model.spaces)
    truth, true_reward, reward = first[spec.name][0], first["reward"][0], unrolled.reward[0]
    prediction = unrolled.prediction[spec.name][0]
    kind = "held-out sequence, never trained on" if held_out else "sequence from training"
    title = f"Update {updates}: observation '{spec.name}' of a {kind}"
    facts = {
        "observation": spec.name,
        "held_out": held_out,
        "context": context,
        "steps": len(truth),
        "updates": updates,
    }
    if not spec.is_image:
        return Pictures(draw_curves(title, truth, prediction, true_reward, reward, context), None, facts)
    true, rebuilt, predicted = (to_rgb(x) for x in (truth, unrolled.reconstruction[spec.name][0], prediction))
    images = (true, rebuilt, predicted, difference(true, predicted))
    names = (
        "truth",
        "reconstruction\n(sees each step)",
        f"open loop\n(sees the first {context})",
        "error:\n|truth - open loop|",
    )
    rewards = [("true reward", true_reward), ("open-loop reward", reward)]
    still = draw_strips(title, list(zip(names, images, strict=True)), context, rewards)
    captions = [
        f"reward: true {received:+.2f}, open loop {expected:+.2f}"
        for received, expected in zip(true_reward, reward, strict=True)
    ]
    panels = list(zip(("truth", "reconstruction", "open loop", "error"), images, strict=True))
    return Pictures(still, draw_panels(panels, captions, context), facts)


def draw_curves(
    title: str,
    truth: np.ndarray,
    prediction: np.ndarray,
    true_reward: np.ndarray,
    predicted_reward: np.ndarray,
    context: int,
) -> np.ndarray:
    """Return charts (H, W, 3) one under the other: the first dimensions of vectors (T, D) and the rewards (T,)."""
    steps = np.arange(len(truth))
    pairs = [
        (f"dimension {number}", truth[:, number], prediction[:, number])
        for number in range(min(DIMENSIONS, truth.shape[1]))
    ]
    pairs.append(("reward", true_reward, predicted_reward))
    charts = [
        draw_chart(
            [Curve("truth", steps, true, GREY), Curve("open loop", steps, predicted, BLUE)],
            f"{title}: {name}" if number == 0 else name,
            "step",
            name,
            size=(720, 220),
            marker=(context, "imagined from here"),
            from_zero=False,
        )
        for number, (name, true, predicted) in enumerate(pairs)
    ]
    return np.concatenate(charts)


def write_dream(directory: Path, result: DreamResult, fps: float = 8.0) -> list[Path]:
    """Write a dream and its errors; return the files.

    dream.webm (pictures only): truth over dream over error, several sequences side by side. dream.png: some sequences
    as strips of frames, or for vectors a chart of each dimension. error.png: the three errors against the horizon.
    error.json: the same as numbers.

    Raises:
        OSError: if a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / "dream.png", directory / "error.png", directory / "error.json"]
    if result.is_image:
        files.insert(0, directory / "dream.webm")
        write_webm(files[0], _wall(result), fps)
    write_png(directory / "dream.png", _strips(result) if result.is_image else _curves(result))
    write_png(directory / "error.png", draw_errors(result))
    (directory / "error.json").write_text(json.dumps(as_json(result), indent=1) + "\n")
    return files


def as_json(result: DreamResult) -> dict[str, Any]:
    """Return a dream's errors as plain data, and what was compared."""
    sequences, steps = result.truth.shape[:2]
    return {
        "observation": result.observation,
        "unit": "mean squared error per pixel, pixels in [0, 1]"
        if result.is_image
        else "mean squared error per dimension",
        "sequences": sequences,
        "steps": steps,
        "context": result.context,
        "samples": result.samples,
        "beats_both_until": result.beats_both_until,
        "horizon": list(range(1, result.horizon + 1)),
        "error": {
            "model": result.errors.model.tolist(),
            "last_seen_frame": result.errors.last_frame.tolist(),
            "mean_frame": result.errors.mean_frame.tolist(),
        },
        "video": "dream.webm" if result.is_image else "none: vector observations cannot be filmed",
    }


def draw_errors(result: DreamResult) -> np.ndarray:
    """Return a chart (H, W, 3) of the three errors against the horizon."""
    horizon = np.arange(1, result.horizon + 1)
    what = "frame" if result.is_image else "vector"
    curves = [
        Curve("model", horizon, result.errors.model, BLUE),
        Curve(f"last seen {what} again", horizon, result.errors.last_frame, ORANGE),
        Curve(f"mean {what}", horizon, result.errors.mean_frame, GREY),
    ]
    until = result.beats_both_until
    return draw_chart(
        curves,
        f"Error of open-loop predictions of '{result.observation}', mean of {len(result.truth)} sequences, "
        f"{result.context} steps seen",
        "horizon (steps imagined)",
        "squared error per pixel in [0, 1]" if result.is_image else "squared error per dimension",
        marker=(until, f"model better than both up to {until}") if until else (1, "model not better at horizon 1"),
    )


def _wall(result: DreamResult) -> np.ndarray:
    truth, imagination = to_rgb(result.truth[:WALL]), to_rgb(result.imagination[:WALL])
    error = difference(truth, imagination)
    return draw_wall([("truth", truth), ("dream", imagination), ("error\n|truth - dream|", error)], result.context)


def _strips(result: DreamResult) -> np.ndarray:
    rows = []
    for number in range(min(STRIPS, len(result.truth))):
        truth, imagination = to_rgb(result.truth[number]), to_rgb(result.imagination[number])
        rows += [
            (f"{number + 1}: truth", truth),
            (f"{number + 1}: dream", imagination),
            (f"{number + 1}: error\n|truth - dream|", difference(truth, imagination)),
        ]
    title = f"Dreams of '{result.observation}': {result.context} steps seen, then imagined from the actions alone"
    return draw_strips(title, rows, result.context)


def _curves(result: DreamResult) -> np.ndarray:
    title = f"Dream of '{result.observation}'"
    truth, imagination = result.truth[0], result.imagination[0]
    return draw_curves(title, truth, imagination, result.true_reward[0], result.predicted_reward[0], result.context)
