"""Charts drawn with OpenCV, without a plotting library: curves over one axis, with numbers, labels and a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

Colour = tuple[int, int, int]
"""Red, green, blue."""
BLUE: Colour = (31, 119, 180)
ORANGE: Colour = (230, 120, 20)
GREY: Colour = (130, 130, 130)
GREEN: Colour = (40, 150, 60)
BLACK: Colour = (20, 20, 20)
WHITE: Colour = (255, 255, 255)
_PALE: Colour = (225, 225, 225)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TINT = 0.18
"""Share of a curve's colour in its band."""
_LEGEND_ROW = 18
_BESIDE_LEGEND = 110
"""Pixels that the vertical axis' label takes of the legend's rows."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its points and its colour, and a band from `low` to `high` behind it.

    Without a label it is not in the legend.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: Colour
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    is_dots: bool = False
    """Whether the points stand by themselves, without a line."""


def draw_text(picture: np.ndarray, text: str, x: int, y: int, colour: Colour, size: float = 0.42) -> None:
    """Write a line of ASCII text into the picture, its baseline's left end at (x, y)."""
    cv2.putText(picture, text, (x, y), _FONT, size, colour, 1, cv2.LINE_AA)


def text_width(text: str, size: float = 0.42) -> int:
    """Return how many pixels wide `draw_text` writes it."""
    return int(cv2.getTextSize(text, _FONT, size, 1)[0][0])


def draw_chart(
    curves: Sequence[Curve],
    title: str,
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (720, 420),
    marker: tuple[float, str] | None = None,
    from_zero: bool = True,
) -> np.ndarray:
    """Return a chart of curves as a picture (height, width, 3), uint8 RGB.

    Args:
        curves: points that are not finite are left out.
        size: width and height in pixels.
        marker: x of a vertical line, and the text at its foot.
        from_zero: whether the vertical axis begins at 0 rather than at the least value.
    """
    picture = np.full((size[1], size[0], 3), 255, np.uint8)
    frame = _Frame(curves, size, from_zero)
    _draw_axes(picture, frame, x_label, y_label, marker)
    draw_text(picture, title, frame.left, 20, BLACK, 0.5)
    for curve in curves:
        _draw_band(picture, frame, curve)
    for curve in curves:
        points = frame.pixels(curve.x, curve.y)
        if curve.is_dots:
            for point in points:
                cv2.circle(picture, point, 5, curve.colour, 2, cv2.LINE_AA)
        elif points:
            cv2.polylines(picture, [np.array(points, np.int32)], False, curve.colour, 2, cv2.LINE_AA)
    _draw_legend(picture, frame)
    return picture


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3), uint8 RGB, as PNG.

    Raises:
        OSError: if it cannot be written.
    """
    written, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not written:
        raise OSError(f"a picture of {picture.shape} cannot be made a PNG")
    path.write_bytes(data.tobytes())


class _Frame:
    """The plotting area, and the pixel of a value."""

    def __init__(self, curves: Sequence[Curve], size: tuple[int, int], from_zero: bool) -> None:
        self.left, self.right, self.bottom = 70, size[0] - 20, size[1] - 46
        self.legend = _rows_of_legend([curve for curve in curves if curve.label], self.right - self.left)
        self.top = 54 + _LEGEND_ROW * (len(self.legend) - 1)
        x = np.concatenate([curve.x for curve in curves]).astype(float)
        ends = [curve_y for curve in curves for curve_y in (curve.y, curve.low, curve.high) if curve_y is not None]
        y = np.concatenate(ends).astype(float)
        y = y[np.isfinite(y)] if np.isfinite(y).any() else np.zeros(1)
        self.x_ticks = _ticks(float(x.min()), float(x.max()), 8, whole=True)
        self.y_ticks = _ticks(0.0 if from_zero else float(y.min()), float(y.max()), 6, whole=False)
        self.x_range = (float(x.min()), float(x.max()))
        self.y_range = (self.y_ticks[0], self.y_ticks[-1])

    def column(self, x: float) -> int:
        low, high = self.x_range
        return self.left + round((x - low) / max(high - low, 1e-12) * (self.right - self.left))

    def row(self, y: float) -> int:
        low, high = self.y_range
        return self.bottom - round((float(y) - low) / max(high - low, 1e-12) * (self.bottom - self.top))

    def pixels(self, x: np.ndarray, y: np.ndarray) -> list[tuple[int, int]]:
        """Return the pixels of points, without those that are not finite."""
        return [(self.column(a), self.row(b)) for a, b in zip(x, y, strict=True) if math.isfinite(float(b))]


def _rows_of_legend(curves: Sequence[Curve], width: int) -> list[list[Curve]]:
    """Return the curves in as many rows as their names need, beside the vertical axis' label."""
    rows: list[list[Curve]] = [[]]
    left = width - _BESIDE_LEGEND
    for curve in curves:
        needed = text_width(curve.label) + 44
        if rows[-1] and needed > left:
            rows.append([])
            left = width - _BESIDE_LEGEND
        rows[-1].append(curve)
        left -= needed
    return rows


def _draw_band(picture: np.ndarray, frame: _Frame, curve: Curve) -> None:
    """Tint what lies between a curve's low and high."""
    if curve.low is None or curve.high is None:
        return
    edge = [*frame.pixels(curve.x, curve.low), *reversed(frame.pixels(curve.x, curve.high))]
    if len(edge) > 3:
        mask = np.zeros(picture.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.array(edge, np.int32)], 1)
        picture[mask > 0] = (picture[mask > 0] * (1 - _TINT) + np.array(curve.colour) * _TINT).astype(np.uint8)


def _ticks(low: float, high: float, most: int, whole: bool) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, and about `most` of them."""
    span = max(high - low, 1.0 if whole else 1e-9)
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _draw_axes(
    picture: np.ndarray, frame: _Frame, x_label: str, y_label: str, marker: tuple[float, str] | None
) -> None:
    digits = max(0, -math.floor(math.log10(frame.y_ticks[1] - frame.y_ticks[0]) + 1e-9))
    for y in frame.y_ticks:
        cv2.line(picture, (frame.left, frame.row(y)), (frame.right, frame.row(y)), _PALE, 1)
        text = f"{y:.{digits}f}" if digits <= 5 else f"{y:.1e}"
        draw_text(picture, text, frame.left - 8 - text_width(text), frame.row(y) + 4, BLACK)
    for x in frame.x_ticks:
        if frame.x_range[0] <= x <= frame.x_range[1]:
            cv2.line(picture, (frame.column(x), frame.bottom), (frame.column(x), frame.bottom + 4), BLACK, 1)
            text = f"{x:,.0f}" if abs(x) >= 1000 else f"{x:g}"
            draw_text(picture, text, frame.column(x) - text_width(text) // 2, frame.bottom + 18, BLACK)
    cv2.rectangle(picture, (frame.left, frame.top), (frame.right, frame.bottom), GREY, 1)
    draw_text(picture, y_label, frame.left, frame.top - 14, GREY)
    at, foot = frame.bottom + 38, frame.column(marker[0]) if marker else frame.right
    on_the_left = foot > (frame.left + frame.right) // 2  # the label keeps out of the marker's way
    draw_text(picture, x_label, frame.left if on_the_left else frame.right - text_width(x_label), at, BLACK)
    if marker is not None:
        cv2.line(picture, (foot, frame.top), (foot, frame.bottom), GREEN, 1, cv2.LINE_AA)
        draw_text(picture, marker[1], min(foot, frame.right - text_width(marker[1])), at, GREEN)


def _draw_legend(picture: np.ndarray, frame: _Frame) -> None:
    """Write the curves' names in rows at the right above the plotting area, each after a stretch of its line."""
    for number, curves in enumerate(reversed(frame.legend)):
        x, y = frame.right, frame.top - 14 - _LEGEND_ROW * number
        for curve in reversed(curves):
            x -= text_width(curve.label)
            draw_text(picture, curve.label, x, y, BLACK)
            if curve.is_dots:
                cv2.circle(picture, (x - 18, y - 4), 5, curve.colour, 2, cv2.LINE_AA)
            else:
                cv2.line(picture, (x - 28, y - 4), (x - 8, y - 4), curve.colour, 2, cv2.LINE_AA)
            x -= 44
