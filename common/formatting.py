"""Numbers as a reader, or JSON, takes them."""

from __future__ import annotations

import math
from typing import Any


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
    """Return plain data with None for each number, in lists and mappings too, that is not finite: JSON has none."""
    if isinstance(value, dict):
        return {name: finite_or_none(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite_or_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
