"""Amounts as a reader says them."""

from __future__ import annotations


def in_bytes(count: float) -> str:
    """Return a number of bytes as a reader says it: 640 B, 12.3 kB, 4.0 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} B"
