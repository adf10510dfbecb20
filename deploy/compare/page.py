"""The comparison as Markdown: how it was made, tables, published scores with their sources, and what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

import numpy as np

from dreamfleet.common.formatting import format_duration
from dreamfleet.deploy.compare.comparison import Comparison, GroupFigures, TaskComparison
from dreamfleet.deploy.compare.statistics import COVERAGE, RESAMPLES, Estimate

_HOW = (
    "A curve is the interquartile mean over a group's runs (of up to three, their mean); the band and the figures in "
    "brackets are {coverage:.0%} stratified bootstrap intervals, of {resamples:,} draws of runs, as in "
    "arXiv 2108.13264. With one run there is no interval, and with three it is hardly narrower than from the worst to "
    "the best. Between two evaluations of a run its return is on the straight line. Steps are the simulator's; time is "
    "the runs' own, without pauses, on the machine that they shared."
)


def write_page(comparison: Comparison, picture: str, arguments: Sequence[str]) -> str:
    """Return the page; `picture` is its picture's name, `arguments` are those of the command that made it."""
    lines = [
        "# Comparison of runs",
        "",
        f"![return against steps and against time]({picture})",
        "",
        "```",
        shlex.join(["dreamfleet", "compare", *arguments]),
        "```",
        "",
        _HOW.format(coverage=COVERAGE, resamples=RESAMPLES),
    ]
    for task in comparison.tasks:
        lines += ["", f"## {task.task}", "", *table_of(task, comparison.against), *_published(task)]
    if comparison.over_tasks:
        rows = [[name, in_words(found)] for name, found in comparison.over_tasks.items()]
        lines += ["", "## Over all tasks", "", *_table(["group", "return at each task's equal steps"], rows)]
    if comparison.notes:
        lines += ["", "## Missing or incomplete", "", *(f"* {note}" for note in comparison.notes)]
    return "\n".join(lines) + "\n"


def table_of(task: TaskComparison, against: str | None) -> list[str]:
    """Return a task's table: what each group reaches at equal steps, with which updates and in which time."""
    heads = ["group", "runs", f"at {task.equal_steps:,.0f} steps", "mean on the way", "at the end"]
    heads += [f"against {against}"] if against else []
    heads += ["env steps", "updates", "time"]
    return _table(heads, [_row(figures, against) for figures in task.figures])


def _row(row: GroupFigures, against: str | None) -> list[str]:
    reached = int(np.isfinite(row.env_steps).sum())
    runs = str(len(row.group.runs)) if reached == len(row.group.runs) else f"{reached} of {len(row.group.runs)}"
    if not all(run.is_evaluated for run in row.group.runs):
        runs += ", training episodes"
    cells = [row.group.name, runs, in_words(row.at_equal), in_words(row.area), in_words(row.at_end)]
    if against:
        cells.append("" if row.group.name == against else in_words(row.ahead, sign="+"))
    return [*cells, _range(row.env_steps), _range(row.updates), _time_range(row.seconds)]


def in_words(found: Estimate | None, sign: str = "") -> str:
    """Return `812 [790, 833]`, without brackets where the interval is a point."""
    if found is None:
        return "–"
    value, low, high = (f"{float(number):{sign}.4g}" for number in found)
    return value if low == high else f"{value} [{low}, {high}]"


def _range(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    if not known.size:
        return "–"
    low, high = f"{known.min():,.0f}", f"{known.max():,.0f}"
    return low if low == high else f"{low} to {high}"


def _time_range(seconds: np.ndarray) -> str:
    known = seconds[np.isfinite(seconds)]
    if not known.size:
        return "not known"
    low, high = format_duration(known.min()), format_duration(known.max())
    return low if low == high else f"{low} to {high}"


def _published(task: TaskComparison) -> list[str]:
    if not task.published:
        return []
    last = max(float(row.by_steps.x[-1]) for row in task.figures)
    rows = [
        [
            f"{score.algorithm}, {score.observed}",
            f"{score.steps:,}",
            f"{score.score:g}" + (f" ± {score.std:g}" if score.std is not None else ""),
            f"{score.seeds or 'not known'}",
        ]
        for score in task.published
    ]
    sources = dict.fromkeys(f"{score.algorithm}, {score.observed}: {score.source}." for score in task.published)
    beyond = min(score.steps for score in task.published) > last
    more = f" All of it is after more steps than the {last:,.0f} here." if beyond else ""
    heads = ["published", "simulator steps", "return", "seeds"]
    return ["", f"Published scores of the same task.{more}", "", *_table(heads, rows), "", *_bullets(sources)]


def _bullets(texts: Iterable[str]) -> list[str]:
    return [f"* {text}" for text in texts]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table whose first column is text, and the others numbers."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows)]
