"""Frames of sequences laid out as strips, panels and walls, with names, steps and numbers.

Frames are uint8 RGB (T, H, W, 3) here; `common/video.py` makes them of whatever an environment shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from dreamfleet.learner.pictures.charts import BLACK, GREEN, ORANGE, WHITE, Colour, draw_text

_LABELS = 104
"""Pixels left of the rows of a strip, for their names."""
_LINE = 20
"""Height of a line of text in pixels."""
_GAP = 4
"""Pixels between two panels."""
_COLUMNS_SEEN, _COLUMNS_IMAGINED = 3, 8
"""Most columns of a strip before and after the context."""


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the absolute difference of uint8 images."""
    return np.abs(one.astype(np.int16) - other.astype(np.int16)).astype(np.uint8)


def enlarge(frames: np.ndarray, least_px: int) -> np.ndarray:
    """Return frames (..., H, W, 3) with each pixel repeated until both sides have at least `least_px` pixels."""
    factor = max(1, -(-least_px // min(frames.shape[-3:-1])))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def draw_strips(
    title: str,
    rows: Sequence[tuple[str, np.ndarray]],
    context: int,
    footer: Sequence[tuple[str, np.ndarray]] = (),
) -> np.ndarray:
    """Return a picture (H, W, 3) of sequences as rows of frames, with the steps above and numbers below.

    Args:
        rows: name and frames (T, H, W, 3) of each row, all of one shape.
        context: the first step that was imagined.
        footer: name and values (T,) of each line of numbers under the frames.
    """
    steps = len(rows[0][1])
    columns = [
        *_spread(0, min(context, steps), min(_COLUMNS_SEEN, context)),
        *_spread(min(context, steps), steps, min(_COLUMNS_IMAGINED, steps - context)),
    ]
    rows = [(name, enlarge(frames[columns], 80)) for name, frames in rows]
    height, width = (size + _GAP for size in rows[0][1].shape[1:3])
    top = 3 * _LINE + 6
    picture = np.full(
        (_even(top + len(rows) * height + len(footer) * _LINE + 6), _even(_LABELS + len(columns) * width + 4), 3),
        255,
        np.uint8,
    )
    draw_text(picture, title, 6, 15, BLACK, 0.46)
    draw_text(picture, "step", 6, 2 * _LINE - 4, BLACK)
    for number, column in enumerate(columns):
        x = _LABELS + number * width
        _draw_heading(picture, x, width, column, context)
        for row, (_, frames) in enumerate(rows):
            _paste(picture, frames[number], x, top + row * height)
        for line, (_, values) in enumerate(footer):
            draw_text(picture, f"{values[column]:+.2f}", x + 2, top + len(rows) * height + line * _LINE + 14, BLACK)
    for row, (name, _) in enumerate(rows):
        _draw_lines(picture, name.split("\n"), 6, top + row * height + height // 2)
    for line, (name, _) in enumerate(footer):
        draw_text(picture, name, 6, top + len(rows) * height + line * _LINE + 14, BLACK, 0.38)
    return picture


def draw_panels(panels: Sequence[tuple[str, np.ndarray]], captions: Sequence[str], context: int) -> np.ndarray:
    """Return a video (T, H, W, 3) of panels side by side, each under its name, over a line about the step.

    Args:
        panels: name and frames (T, H, W, 3) of each, all of one shape.
        captions: for each step a text to add after its number and whether it was seen.
        context: the first step that was imagined; from there on the names are orange.
    """
    panels = [(name, enlarge(frames, 128)) for name, frames in panels]
    steps, height, width = panels[0][1].shape[:3]
    size = (_even(2 * _LINE + height + 4), _even(max(len(panels) * (width + _GAP) - _GAP, 520)))
    video = np.full((steps, *size, 3), 20, np.uint8)
    for step, picture in enumerate(video):
        colour: Colour = GREEN if step < context else ORANGE
        for number, (name, frames) in enumerate(panels):
            x = number * (width + _GAP)
            draw_text(picture, name, x + 4, 14, WHITE)
            _paste(picture, frames[step], x, _LINE)
        picture[_LINE + height + 1 : _LINE + height + 4] = colour
        word = "seen" if step < context else "imagined"
        draw_text(picture, f"step {step}", 4, height + 2 * _LINE - 1, WHITE)
        draw_text(picture, word, 64, height + 2 * _LINE - 1, colour)
        draw_text(picture, captions[step], 140, height + 2 * _LINE - 1, WHITE)
    return video


def draw_wall(rows: Sequence[tuple[str, np.ndarray]], context: int) -> np.ndarray:
    """Return a video (T, H, W, 3) of several sequences side by side, with rows such as truth over dream over error.

    Args:
        rows: name and frames (B, T, H, W, 3) of each row, all of one shape.
        context: the first step that was imagined.
    """
    rows = [(name, enlarge(frames, 96)) for name, frames in rows]
    count, steps, height, width = rows[0][1].shape[:4]
    least = _LABELS + 220  # the line of text below must fit
    size = (_even(len(rows) * (height + _GAP) + _LINE + 6), _even(max(_LABELS + count * (width + _GAP), least)))
    video = np.full((steps, *size, 3), 20, np.uint8)
    for step, picture in enumerate(video):
        for row, (name, frames) in enumerate(rows):
            y = row * (height + _GAP)
            _draw_lines(picture, name.split("\n"), 6, y + height // 2, WHITE)
            for column in range(count):
                _paste(picture, frames[column, step], _LABELS + column * (width + _GAP), y)
        colour: Colour = GREEN if step < context else ORANGE
        text = "seen by the model" if step < context else "imagined from the actions alone"
        draw_text(picture, f"step {step}", 6, size[0] - 9, WHITE)
        draw_text(picture, text, _LABELS, size[0] - 9, colour)
    return video


def _spread(start: int, stop: int, count: int) -> list[int]:
    """Return `count` numbers spread evenly over [start, stop), both ends among them where there are two or more."""
    if count == 1:
        return [stop - 1]
    return [int(number) for number in np.linspace(start, stop - 1, count).round()]


def _draw_heading(picture: np.ndarray, x: int, width: int, step: int, context: int) -> None:
    """Write a column's step, and under it a bar coloured by whether the model saw it."""
    seen = step < context
    draw_text(picture, f"{step}", x + 2, 2 * _LINE - 4, BLACK)
    draw_text(picture, "seen" if seen else "imagined", x + 2, 3 * _LINE - 6, GREEN if seen else ORANGE, 0.38)
    y = 3 * _LINE
    cv2.rectangle(picture, (x, y), (x + width - _GAP - 1, y + 3), GREEN if seen else ORANGE, -1)


def _draw_lines(picture: np.ndarray, lines: Sequence[str], x: int, middle: int, colour: Colour = BLACK) -> None:
    for number, line in enumerate(lines):
        y = middle + 4 + round((number - (len(lines) - 1) / 2) * 15)
        draw_text(picture, line, x, y, colour, 0.42 if number == 0 else 0.32)


def _paste(picture: np.ndarray, panel: np.ndarray, x: int, y: int) -> None:
    picture[y : y + panel.shape[0], x : x + panel.shape[1]] = panel


def _even(size: int) -> int:
    """Return the size or one more: video codecs want even sides."""
    return size + size % 2
