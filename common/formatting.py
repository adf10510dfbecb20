"""Numbers and tables as text, and numbers as JSON takes them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

WIDTH = 100
"""Characters of a line at most."""
ARROW = "→ "
"""Begins advice; its further lines are indented below the words."""
_GAP = "  "
MOST_TEXT = 2000
"""Characters of a text from elsewhere, such as an error of the user's code, that are worth keeping."""


def format_bytes(count: float) -> str:
    """Return a number of bytes for a reader: 640 B, 12.3 kB, 4.0 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} B"


def format_duration(seconds: float) -> str:
    """Return a duration for a reader: 45 s, 3:07 min, 2:05 h; from 48 hours on 2 days 5 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d} h"
    return f"{whole // 86_400} days {whole // 3600 % 24} h"


def finite_or_none(value: Any) -> Any:
    """Return plain data for JSON: arrays as lists, and None for each number that is not finite, which JSON lacks."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        plain = value.tolist()
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and np.isfinite(value).all():
            return plain
        value = plain
    if isinstance(value, Mapping):
        return {str(name): finite_or_none(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: Sequence[Sequence[str]], least: Sequence[int] = (), right: bool = False) -> list[str]:
    """Return the lines of a table whose columns are as wide as their cells.

    Args:
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


def shorten(text: str, most: int = MOST_TEXT) -> str:
    """Return a text of at most `most` characters: of a longer one two thirds of that from its start, and its end."""
    if len(text) <= most:
        return text
    mark = f" … ({len(text):,} characters) … "
    kept = max(0, most - len(mark))
    return text[: kept - kept // 3] + mark + text[len(text) - kept // 3 :]


def number(value: float) -> str:
    """Return a number with three digits, or with all before the point if these are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def counted(count: int, noun: str) -> str:
    """Return `1 actor`, `2 actors`, `2 losses`."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending if count != 1 else ''}"
