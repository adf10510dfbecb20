"""The comparison as one picture: a row for each task, returns against steps on the left, against time on the right."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dreamfleet.deploy.compare.comparison import Comparison, GroupCurve, TaskComparison
from dreamfleet.learner.pictures.charts import BLUE, GREEN, ORANGE, Colour, Curve, draw_chart

SIZE = (760, 460)
COLOURS: Sequence[Colour] = (
    BLUE, ORANGE, GREEN, (130, 80, 180), (200, 40, 50), (20, 150, 160), (130, 85, 70), (210, 90, 170),
)  # fmt: skip
_UNITS = ((7200.0, 3600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
"""From how many seconds on, of how many seconds, and the name of what time is drawn over."""


def draw_comparison(comparison: Comparison) -> np.ndarray:
    """Return the picture (height, width, 3), uint8 RGB; published scores are rings, where a task's steps reach them."""
    rows = [np.hstack([_over_steps(task), _over_time(task)]) for task in comparison.tasks]
    return np.vstack(rows)


def _over_steps(task: TaskComparison) -> np.ndarray:
    curves = [
        line for number, row in enumerate(task.figures) for line in _lines(row.group.name, row.by_steps, 1.0, number)
    ]
    last = max(float(row.by_steps.x[-1]) for row in task.figures)
    for number, algorithm in enumerate(dict.fromkeys(score.algorithm for score in task.published)):
        scores = [score for score in task.published if score.algorithm == algorithm and score.steps <= last]
        if scores:
            x, y = (np.array([getattr(score, name) for score in scores], float) for name in ("steps", "score"))
            grey = 60 + 50 * (number % 3)
            curves.append(Curve(f"{algorithm}, published", x, y, (grey, grey, grey), is_dots=True))
    return draw_chart(curves, _ascii(task.task), "simulator steps", "return", SIZE, from_zero=_is_positive(curves))


def _over_time(task: TaskComparison) -> np.ndarray:
    timed = [(number, row) for number, row in enumerate(task.figures) if row.by_time]
    last = max((float(row.by_time.x[-1]) for _, row in timed if row.by_time), default=0.0)
    unit, name = next((unit, name) for least, unit, name in _UNITS if last >= least)
    curves = [
        line for number, row in timed if row.by_time for line in _lines(row.group.name, row.by_time, unit, number)
    ]
    if not curves:
        return np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    return draw_chart(curves, "", f"{name} of running", "return", SIZE, from_zero=_is_positive(curves))


def _lines(name: str, curve: GroupCurve, unit: float, number: int) -> list[Curve]:
    """Return a group's curve, in pieces where a run ends or begins: a line across would look as if returns fell."""
    colour, (value, low, high) = COLOURS[number % len(COLOURS)], curve.returns
    cuts = [0, *(np.flatnonzero(np.diff(curve.runs)) + 1), len(curve.x)]
    parts = [slice(begin, end) for begin, end in itertools.pairwise(cuts)]
    parts = [part for part in parts if part.stop - part.start > 1] or parts  # runs begin a few steps apart
    longest = max(parts, key=lambda part: part.stop - part.start)
    pieces = [
        Curve(
            _ascii(name) if part is longest else "",
            curve.x[part] / unit,
            value[part],
            colour,
            low[part],
            high[part],
            is_dots=part.stop - part.start == 1,
        )
        for part in parts
    ]
    return [_from_zero(pieces[0]), *pieces[1:]]


def _from_zero(curve: Curve) -> Curve:
    """Return a curve with a point at 0 that is not drawn, so that the axis begins there."""
    assert curve.low is not None
    assert curve.high is not None
    y, low, high = (np.concatenate([[np.nan], part]) for part in (curve.y, curve.low, curve.high))
    return replace(curve, x=np.concatenate([[0.0], curve.x]), y=y, low=low, high=high)


def _is_positive(curves: Sequence[Curve]) -> bool:
    lows = np.concatenate([curve.y if curve.low is None else curve.low for curve in curves])
    return not (lows < 0).any()


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()
