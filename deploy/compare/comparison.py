"""The comparison: groups of one task beside each other, at equal steps, in the end and on the way, as numbers.

Between two of its evaluations a run's return is on the straight line; before the first and after the last it has none,
and a group is what those of its runs are that have one. Steps are the simulator's, which action repeats do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamfleet.common.errors import UserError, nearest
from dreamfleet.deploy.compare.groups import Group
from dreamfleet.deploy.compare.published import PublishedScore, published_scores
from dreamfleet.deploy.compare.run_curve import RunCurve
from dreamfleet.deploy.compare.statistics import Estimate, difference, estimate

GRID_POINTS = 101
SUITES = ("dm_control/",)
"""Environments whose returns are of one scale, so that a mean over tasks says something."""


@dataclass(frozen=True)
class GroupCurve:
    """A group along one axis: places, how many runs each is of, and the estimate there."""

    x: np.ndarray
    runs: np.ndarray
    returns: Estimate


@dataclass(frozen=True)
class GroupFigures:
    """A group's row of the table.

    `at_equal` and `at_end` are returns at the task's equal steps and at each run's last evaluation, `area` the mean
    return on the way to the equal steps, `ahead` how much better than the reference group it is there. Figures of the
    runs, each (runs,), are those at the equal steps, nan for a run that ended before.
    """

    group: Group
    by_steps: GroupCurve
    by_time: GroupCurve | None
    at_equal: Estimate | None
    at_end: Estimate
    area: Estimate | None
    ahead: Estimate | None
    env_steps: np.ndarray
    updates: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class TaskComparison:
    """Groups of one task, from and to the steps at which all of them have returns.

    `start_steps` is the first of which each group has a run, `equal_steps` the last that all finished runs reach.
    """

    task: str
    start_steps: float
    equal_steps: float
    figures: list[GroupFigures]
    published: list[PublishedScore]


@dataclass(frozen=True)
class Comparison:
    """All tasks; `over_tasks` has an estimate at equal steps for each group that is there on several of one suite."""

    tasks: list[TaskComparison]
    over_tasks: dict[str, Estimate]
    against: str | None
    notes: list[str]


def compare_groups(groups: Sequence[Group], against: str | None = None) -> Comparison:
    """Return the comparison of groups; `against` names the one that the others are held against.

    Raises:
        UserError: if there is no group of that name.
    """
    names = dict.fromkeys(group.name for group in groups)
    if against is not None and against not in names:
        hint = nearest(against, names) or f" There are {', '.join(names)}."
        raise UserError(f"flag --against: there is no group '{against}'.{hint}")
    by_task: dict[str, list[Group]] = {}
    for group in groups:
        by_task.setdefault(group.task, []).append(group)
    tasks = [_compare_task(task, found, against) for task, found in by_task.items()]
    return Comparison(tasks, _over_tasks(tasks), against, [note for group in groups for note in group.notes])


def _compare_task(task: str, groups: Sequence[Group], against: str | None) -> TaskComparison:
    start = max(min(run.span("simulator_steps")[0] for run in group.runs) for group in groups)
    equal = min(_last_steps(group) for group in groups)
    reference = next((group for group in groups if group.name == against), None)
    theirs = _scores_at(reference, equal) if reference else None
    figures = [_figures(group, start, equal, None if group is reference else theirs) for group in groups]
    kinds = {group.observed for group in groups}
    return TaskComparison(task, start, equal, figures, published_scores(task, kinds.pop() if len(kinds) == 1 else ""))


def _last_steps(group: Group) -> float:
    """Return the steps that all finished runs of a group reach, or the longest if none is finished."""
    lasts = [run.span("simulator_steps")[1] for run in group.runs]
    finished = [last for run, last in zip(group.runs, lasts, strict=True) if run.is_finished]
    return min(finished) if finished else max(lasts)


def _figures(group: Group, start: float, equal: float, theirs: np.ndarray | None) -> GroupFigures:
    ours, areas = _scores_at(group, equal), _areas(group, start, equal)
    at = {
        name: np.array([_value_at(run, equal, name) for run in group.runs])
        for name in ("env_steps", "updates", "run_seconds")
    }
    by_steps = _curve(group, "simulator_steps")
    assert by_steps
    return GroupFigures(
        group=group,
        by_steps=by_steps,
        by_time=_curve(group, "run_seconds"),
        at_equal=estimate([ours]) if ours.size else None,
        at_end=estimate([np.array([run.points["returns"][-1] for run in group.runs])]),
        area=estimate([areas]) if areas.size else None,
        ahead=difference(ours, theirs) if theirs is not None and theirs.size and ours.size else None,
        env_steps=at["env_steps"],
        updates=at["updates"],
        seconds=at["run_seconds"],
    )


def _value_at(run: RunCurve, steps: float, name: str) -> float:
    return float(run.at("simulator_steps", np.array([steps]), name)[0])


def _scores_at(group: Group, steps: float) -> np.ndarray:
    """Return the returns of the runs that reach these steps."""
    scores = np.array([_value_at(run, steps, "returns") for run in group.runs])
    return scores[np.isfinite(scores)]


def _areas(group: Group, start: float, equal: float) -> np.ndarray:
    """Return the mean return between two numbers of steps for each run that has both: its area, by their distance."""
    if not start < equal:
        return np.empty(0)
    means = []
    for run in group.runs:
        own = run.points["simulator_steps"]
        places = np.unique([start, *own[(own > start) & (own < equal)], equal])
        means.append(float(np.trapezoid(run.at("simulator_steps", places), places)) / (equal - start))
    return np.array([mean for mean in means if np.isfinite(mean)])


def _curve(group: Group, axis: str) -> GroupCurve | None:
    """Return the group along an axis, or None if no run has places there."""
    spans = [span for span in (run.span(axis) for run in group.runs) if np.isfinite(span[0])]
    if not spans:
        return None
    # With the places of the runs' own points, a curve passes through them.
    own = np.concatenate([run.points[axis][np.isfinite(run.points[axis])] for run in group.runs])
    even = np.linspace(min(first for first, _ in spans), max(last for _, last in spans), GRID_POINTS)
    grid = np.unique(np.concatenate([even, own])) if own.size <= GRID_POINTS else even
    returns = np.stack([run.at(axis, grid) for run in group.runs], axis=-1)  # (points, runs)
    there = np.isfinite(returns)
    value, low, high = (np.full(grid.shape, np.nan) for _ in range(3))
    for present in np.unique(there, axis=0):
        if present.any():
            rows = (there == present).all(axis=1)
            value[rows], low[rows], high[rows] = estimate([returns[rows][:, present]])
    return GroupCurve(grid, there.sum(axis=1), Estimate(value, low, high))


def _over_tasks(tasks: Sequence[TaskComparison]) -> dict[str, Estimate]:
    found: dict[str, list[np.ndarray]] = {}
    for task in tasks:
        for row in task.figures if task.task.startswith(SUITES) else ():
            scores = _scores_at(row.group, task.equal_steps)
            if scores.size:
                found.setdefault(row.group.name, []).append(scores)
    return {name: estimate(strata) for name, strata in found.items() if len(strata) > 1}


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain data; numbers that are not finite are in it."""
    return {
        "against": comparison.against,
        "notes": comparison.notes,
        "over_tasks": {name: found._asdict() for name, found in comparison.over_tasks.items()},
        "tasks": [
            {
                "task": task.task,
                "start_steps": task.start_steps,
                "equal_steps": task.equal_steps,
                "groups": [_group_data(row) for row in task.figures],
                "published": [score.model_dump() for score in task.published],
            }
            for task in comparison.tasks
        ],
    }


def _group_data(row: GroupFigures) -> dict[str, Any]:
    estimates = {name: getattr(row, name) for name in ("at_equal", "at_end", "area", "ahead")}
    return {
        "name": row.group.name,
        "observed": row.group.observed,
        **{name: found._asdict() if found else None for name, found in estimates.items()},
        "env_steps": row.env_steps,
        "updates": row.updates,
        "seconds": row.seconds,
        "by_steps": _curve_data(row.by_steps),
        "by_time": _curve_data(row.by_time) if row.by_time else None,
        "runs": [
            {"directory": str(run.directory), "evaluated": run.is_evaluated, "ended": run.ended, **run.points}
            for run in row.group.runs
        ],
    }


def _curve_data(curve: GroupCurve) -> dict[str, Any]:
    return {"x": curve.x, "runs": curve.runs, **curve.returns._asdict()}
