"""Groups of runs that differ by their seeds alone: a variant of a sweep, or a single run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dreamfleet.common.errors import UserError
from dreamfleet.deploy.compare.run_curve import RunCurve, how_it_ended, read_run_curve
from dreamfleet.deploy.run_directory import RunDirectory

SWEEP_NAME = "sweep.json"
"""In a sweep's folder: its variants in order, and what became of each cell."""
_SEEDS = "seed-*/config.yaml"


@dataclass(frozen=True)
class Group:
    """Runs of one task that are drawn as one curve.

    Attributes:
        notes: sentences about runs that are missing, short or without evaluations.
    """

    name: str
    task: str
    runs: list[RunCurve]
    notes: list[str] = field(default_factory=list)

    @property
    def observed(self) -> str:
        """What its runs observe, "" where they differ."""
        found = {run.observed for run in self.runs}
        return found.pop() if len(found) == 1 else ""


def find_groups(paths: Sequence[Path]) -> list[Group]:
    """Return the groups of runs, folders of sweeps and folders of variants, in the order in which they are given.

    Raises:
        UserError: if a path holds no run, or a variant's runs are of different tasks, or nothing can be drawn.
    """
    groups = [group for path in paths for group in _groups_of(path)]
    notes = [note for group in groups for note in group.notes]
    drawn = [group for group in groups if group.runs]
    if not drawn:
        raise UserError(f"compare: there is nothing to draw: {' '.join(notes) or 'no run was given.'}")
    seen = Counter((group.name, group.task) for group in drawn)
    named = [replace(group, name=_longer_name(group)) if seen[group.name, group.task] > 1 else group for group in drawn]
    lost = [note for group in groups if not group.runs for note in group.notes]
    return [replace(named[0], notes=[*lost, *named[0].notes]), *named[1:]]


def _groups_of(path: Path) -> list[Group]:
    if (path / "config.yaml").is_file():
        return [_group(path.name, [path])]
    if any(path.glob(_SEEDS)):
        return [_group(path.name, _runs_in(path))]
    record = _sweep_record(path)
    folders = {file.parent.parent.name: file.parent.parent for file in sorted(path.glob(f"*/{_SEEDS}"))}
    order = [name for name in record.get("variants", []) if name in folders]
    groups = [_group(name, _runs_in(folders[name])) for name in dict.fromkeys([*order, *folders])]
    if not groups:
        RunDirectory(path).existing("")  # says what is wrong with it
    lost = [
        _sentence(f"{cell['cell']} has no run: {cell.get('cause') or cell.get('state')}")
        for cell in record.get("cells", [])
        if isinstance(cell, dict) and "cell" in cell and not (path / str(cell["cell"]) / "config.yaml").is_file()
    ]
    return [replace(groups[0], notes=[*lost, *groups[0].notes]), *groups[1:]]


def _runs_in(folder: Path) -> list[Path]:
    """Return the runs of a variant, ordered by seed."""
    return sorted((file.parent for file in folder.glob(_SEEDS)), key=lambda run: (len(run.name), run.name))


def _group(name: str, paths: Sequence[Path]) -> Group:
    runs, notes = [], []
    for path in paths:
        directory = RunDirectory(path)
        curve = read_run_curve(directory)
        if curve is None:
            notes.append(f"{path} has neither an evaluation nor a training episode yet; it {how_it_ended(directory)}.")
            continue
        runs.append(curve)
        if not curve.is_finished:
            notes.append(_sentence(f"{path} {curve.ended}"))
        if not curve.is_evaluated:
            notes.append(f"{path} has no evaluations (records.evaluate_every): training episodes, with exploration.")
    tasks = sorted({run.task for run in runs})
    if len(tasks) > 1:
        raise UserError(f"compare: the runs of {name} are of different environments, {' and '.join(tasks)}.")
    return Group(name, tasks[0] if tasks else "", runs, notes)


def _sentence(text: str) -> str:
    """Return a text that ends as a sentence does."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _longer_name(group: Group) -> str:
    """Return the path of a group's run, or of the folder of its runs."""
    first = group.runs[0].directory
    return str(first.parent if first.name.startswith("seed-") and first.name != group.name else first)


def _sweep_record(path: Path) -> dict[str, Any]:
    """Return what a sweep wrote of itself, an empty record if that cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads((path / SWEEP_NAME).read_bytes())
        if isinstance(record, dict):
            lists = {name: value for name, value in record.items() if isinstance(value, list)}
            return lists | {"variants": [name for name in lists.get("variants", []) if isinstance(name, str)]}
    return {}
