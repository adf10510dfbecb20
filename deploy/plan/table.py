"""Tables, numbers and counts as text, for all that is printed before a run: doctor, plan and dry run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

WIDTH = 100
"""Characters of a line at most."""
ARROW = "→ "
"""Begins advice; its further lines are indented below the words."""
_GAP = "  "


def table(rows: Sequence[Sequence[str]], least: Sequence[int] = (), right: bool = False) -> list[str]:
    """Return the lines of a table whose columns are as wide as their cells.

    Args:
        rows: the cells of each row, the same number in each.
        least: minimal widths of the first columns.
        right: align all but the first column to the right; if not, the last column is wrapped.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths = [max(pair) for pair in zip_longest(widths, least, fillvalue=0)]
    lines: list[str] = []
    for row in rows:
        cells = [cell.ljust(size) for cell, size in zip(row, widths, strict=True)]
        if right:
            numbers = [cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True)]
            lines.append(_GAP.join([cells[0], *numbers]).rstrip())
        else:
            lines += wrap(row[-1], "".join(cell + _GAP for cell in cells[:-1]))
    return lines


def wrap(text: str, start: str = "", hang: int = 0) -> list[str]:
    """Return a text in lines, the first after `start`, the others below it and `hang` characters further in."""
    hang += len(ARROW) * text.startswith(ARROW)
    below = " " * (len(start) + hang)
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )
    return lines or [start.rstrip()]


def number(value: float) -> str:
    """Return a number with three digits, or with all before the point if these are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def counted(count: int, noun: str) -> str:
    """Return `1 actor`, `2 actors`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
