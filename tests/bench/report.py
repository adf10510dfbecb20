"""The table of figures, on the screen and as dated Markdown."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_HEADINGS = ("part", "what", "ours", "beside", "ratio", "aim", "met")


@dataclass(frozen=True)
class Aim:
    """What a figure should be, and whether it is."""

    text: str
    met: bool


def at_least(value: float, limit: float, unit: str = "") -> Aim:
    """Return the aim that `value` is `limit` or more."""
    return Aim(f"≥ {limit:,g}{unit}", value >= limit)


def at_most(value: float, limit: float, unit: str = "") -> Aim:
    """Return the aim that `value` is `limit` or less."""
    return Aim(f"≤ {limit:,.3g}{unit}", value <= limit)


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        part: the part of the benchmark.
        what: what is measured.
        ours: our figure, with its unit.
        beside: the yardstick's name and figure; empty if there is none.
        ratio: ours to the yardstick's, None without one.
        aim: what it should be; None where the figure is for information.
    """

    part: str
    what: str
    ours: str
    beside: str = ""
    ratio: float | None = None
    aim: Aim | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the row as the table shows it."""
        ratio = "" if self.ratio is None else _round(self.ratio)
        aim, met = (self.aim.text, "yes" if self.aim.met else "**no**") if self.aim else ("", "")
        return self.part, self.what, self.ours, self.beside, ratio, aim, met


def _round(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio < 1 else f"{ratio:.2f}"


def render_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table whose columns also line up on a terminal."""
    lines = [_HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([shown[0], rule, *shown[1:]])


def render_misses(rows: Sequence[Row]) -> str:
    """Return one line for each aim that is missed, or one that says that none is."""
    lines = [_describe_miss(row, row.aim) for row in rows if row.aim and not row.aim.met]
    return "\n".join(lines) or "Every aim is met."


def _describe_miss(row: Row, aim: Aim) -> str:
    beside = f" beside {row.beside}" if row.beside else ""
    ratio = f"the ratio is {_round(row.ratio)}, " if row.ratio is not None else ""
    return f"* {row.part}, {row.what}: {row.ours}{beside}; {ratio}the aim is {aim.text}."


def render_page(
    rows: Sequence[Row], command: str, facts: Mapping[str, str], methods: Mapping[str, str], took_s: float
) -> str:
    """Return the whole Markdown page.

    Args:
        rows: all figures.
        command: how the benchmark was called.
        facts: of the machine, the versions and the commit.
        methods: for each part how it measures.
        took_s: seconds the whole run took.
    """
    now = dt.datetime.now().astimezone()
    sections = [
        f"# Benchmark, {now:%Y-%m-%d %H:%M}",
        f"`{command}`, {took_s / 60:.1f} minutes",
        "\n".join(f"* {name}: {value}" for name, value in facts.items()),
        "Ours and its yardstick alternate in one run; figures are medians, and a ratio is the median of the "
        "turns' ratios, so that it may differ a little from the quotient of the two figures beside it.",
        render_table(rows),
        "## Aims missed",
        render_misses(rows),
        "## How it is measured",
        *(f"**{part}.** {text.strip()}" for part, text in methods.items()),
    ]
    return "\n\n".join(sections) + "\n"


def write_page(directory: Path, name_parts: Sequence[str], page: str) -> Path:
    """Write the page as `bench-DATE[-part...].md` and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    today = dt.datetime.now().astimezone().date().isoformat()
    path = directory / ("-".join(["bench", today, *name_parts]) + ".md")
    path.write_text(page, encoding="utf-8")
    return path
