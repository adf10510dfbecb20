"""The files of a dream: a video, strips of frames, a curve of errors, and the errors as numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.common.video import to_rgb
from dreamfleet.learner.pictures.charts import BLUE, GREY, ORANGE, Curve, draw_chart, write_png
from dreamfleet.learner.pictures.open_loop import DreamResult
from dreamfleet.learner.pictures.pictures import Comparison, compare_vectors, difference, draw_strips, draw_wall

STRIPS = 3
"""Sequences in dream.png."""
WALL = 6
"""Sequences in dream.webm."""


def write_dream(directory: Path, result: DreamResult, fps: float = 8.0) -> list[Path]:
    """Write what a dream was and how good it was; return the files.

    dream.webm (pictures only): truth over dream over error, several sequences side by side. dream.png: some sequences
    as strips of frames, or for vectors a chart of each dimension. error.png: the three errors against the horizon.
    error.json: the same as numbers.

    Args:
        directory: made if need be.
        result: the dream.
        fps: frames per second of the video.

    Raises:
        OSError: if a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / "dream.png", directory / "error.png", directory / "error.json"]
    if result.is_image:
        from dreamfleet.common.video import write_webm

        files.insert(0, directory / "dream.webm")
        write_webm(files[0], _wall(result), fps)
    write_png(directory / "dream.png", _strips(result) if result.is_image else _lines(result))
    write_png(directory / "error.png", draw_errors(result))
    (directory / "error.json").write_text(json.dumps(as_json(result), indent=1) + "\n")
    return files


def as_json(result: DreamResult) -> dict[str, Any]:
    """Return a dream's errors as plain data, with what they are of."""
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


def _lines(result: DreamResult) -> np.ndarray:
    first = Comparison(
        result.truth[0], result.imagination[0], result.imagination[0], result.context, result.true_reward[0],
        result.predicted_reward[0],
    )  # fmt: skip
    return compare_vectors(first, f"Dream of '{result.observation}'")
