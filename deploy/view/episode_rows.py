"""The row of an episode: what is known of it without its pictures, its filters, and what of it is told to a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamfleet.common.errors import UserError

SORTS = ("id", "return", "length", "when", "version", "held_out")
EPISODE = np.dtype(
    [
        ("actor", "u4"),
        ("incarnation", "u4"),
        ("stream", "u4"),
        ("first_step", "i8"),
        ("position", "i8"),
        ("length", "i8"),
        ("held_out", "i4"),
        ("whole", "?"),
        ("version", "i4"),
        ("return", "f8"),
        ("known", "?"),
        ("when", "f8"),
    ]
)
"""`position` counts steps over all chunks in order, `held_out` those never trained on; `when` is NaN if unknown."""


def chosen_of(episodes: np.ndarray, only: Mapping[str, str]) -> np.ndarray:
    """Return which rows pass filters: see `EpisodeTable.listed`."""
    chosen = np.ones(len(episodes), bool)
    for name, text in only.items():
        try:
            bound = float(text)
        except ValueError:
            raise UserError(f"the filter {name:.40} needs a number, not '{text:.40}'") from None
        kind, _, column = name.rpartition("_")
        if kind in ("min", "max") and column in ("return", "length", "version"):
            values = np.where(episodes["known"], episodes["return"], np.nan) if column == "return" else episodes[column]
            chosen &= values >= bound if kind == "min" else values <= bound
        elif name == "actor":
            chosen &= episodes["actor"] == bound
        elif name in ("held_out", "whole"):
            chosen &= (episodes[name] > 0) == bool(bound)
        else:
            raise UserError(f"there is no filter '{name:.40}' for episodes")
    return chosen


def plain_episode(row: Any) -> dict[str, Any]:
    """Return a row for JSON; what is not known is None."""
    place = [int(row[name]) for name in ("actor", "incarnation", "stream", "first_step")]
    total, when = float(row["return"]), float(row["when"])
    return {
        "id": ".".join(map(str, place)),
        "actor": place[0],
        "incarnation": place[1],
        "stream": place[2],
        "first_step": place[3],
        "length": int(row["length"]),
        "return": total if row["known"] and np.isfinite(total) else None,
        "version": int(row["version"]),
        "held_out": bool(row["held_out"]),
        "held_out_steps": int(row["held_out"]),
        "whole": bool(row["whole"]),
        "when": when if np.isfinite(when) else None,
    }
