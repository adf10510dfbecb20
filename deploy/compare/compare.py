"""`dreamfleet compare`: evaluation returns of groups of runs against steps and time, as picture, JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamfleet.common.errors import UserError
from dreamfleet.common.formatting import finite_or_none, table
from dreamfleet.deploy.compare.comparison import Comparison, as_data, compare_groups
from dreamfleet.deploy.compare.groups import find_groups
from dreamfleet.deploy.compare.page import table_of, write_page

NAME = "comparison"
"""Name of the files that are written."""


def compare(runs: str | Path | Sequence[str | Path], against: str | None = None) -> dict[str, Any]:
    """Return how runs compare, as plain data: what `dreamfleet compare` writes as JSON.

    Args:
        runs: directories of runs, of variants (their `seed-N` are one group) and of sweeps, or a single one.
        against: name of the group that the others are held against.

    Raises:
        UserError: if a directory holds no run, or there is no such group.
    """
    data: dict[str, Any] = finite_or_none(as_data(_compared([runs] if isinstance(runs, str | Path) else runs, against)))
    return data


def print_comparison(runs: Sequence[Path], out: Path | None, against: str | None) -> int:
    """Write comparison.png, .json and .md, print the tables, and return 0.

    Args:
        out: the folder for the files, by default that of the only argument, if it is one, or else comparison/.

    Raises:
        UserError: as `compare`, and if the files cannot be written.
    """
    found = _compared(runs, against)
    out = out or (runs[0] if len(runs) == 1 else Path(NAME))
    arguments = [*map(str, runs), *(["--against", against] if against else [])]
    from dreamfleet.deploy.compare.pictures import draw_comparison
    from dreamfleet.learner.pictures.charts import write_png

    files = {kind: out / f"{NAME}.{kind}" for kind in ("png", "json", "md")}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_png(files["png"], draw_comparison(found))
        files["json"].write_text(json.dumps(finite_or_none(as_data(found)), indent=1, allow_nan=False))
        files["md"].write_text(write_page(found, files["png"].name, arguments))
    except OSError as error:
        raise UserError(f"flag --out: {out} cannot be written: {error.strerror or error}.") from None
    for task in found.tasks:
        rows = [line.strip("| ").split(" | ") for line in table_of(task, against)]
        print(task.task, *table([rows[0], *rows[2:]], right=True), "", sep="\n")
    for note in found.notes:
        print(f"note: {note}")
    print(*(f"written to {file}" for file in files.values()), sep="\n")
    return 0


def _compared(runs: Sequence[str | Path], against: str | None) -> Comparison:
    return compare_groups(find_groups([Path(run) for run in runs]), against)
