"""What a checkpoint's .json holds, what its files are called, and which checkpoints are worth keeping."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from dreamfleet import __version__
from dreamfleet.common.errors import UserError

FORMAT = 1
"""Version of the layout of state and facts."""
Merit = tuple[int, float]
"""What checkpoints are compared by: see `merit_of`."""
_NAME = re.compile(r"checkpoint-(\d{9,})\.(pt|json)")


class DamagedCheckpointError(Exception):
    """A checkpoint that is torn, incomplete or not what its facts say."""


def file_name(number: int, ending: str) -> str:
    """Return the name of one of a checkpoint's two files; the ending is pt or json."""
    return f"checkpoint-{number:09d}.{ending}"


def number_of(name: str, ending: str) -> int | None:
    """Return the number of updates in the name of a file with this ending, or None if it is of no checkpoint."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and match[2] == ending else None


def parse_facts(data: bytes, origin: object) -> dict[str, Any]:
    """Return the facts of a checkpoint.

    Args:
        data: what the .json holds.
        origin: where it was read, for the message.

    Raises:
        DamagedCheckpointError: if they are not whole.
        UserError: if they are of another format.
    """
    try:
        facts = json.loads(data)
    except ValueError as error:
        raise DamagedCheckpointError(f"{origin} cannot be read: {error}") from error
    if not isinstance(facts, dict) or not {"format", "sha256", "bytes", "updates"} <= facts.keys():
        raise DamagedCheckpointError(f"{origin} lacks what the facts of a checkpoint hold")
    if facts["format"] != FORMAT:
        raise UserError(
            f"{origin} is of format {facts['format']}, written by dreamfleet {facts.get('dreamfleet')}; "
            f"this is dreamfleet {__version__}, which reads format {FORMAT}"
        )
    return facts


def merit_of(facts: Mapping[str, Any]) -> Merit | None:
    """Return how good a checkpoint is, the smaller the better, or None if nobody has measured it.

    Those whose policy was evaluated come first, by their return; then the others, by their held-out loss.
    """
    if facts.get("evaluation_return") is not None:
        return 0, -float(facts["evaluation_return"])
    if facts.get("held_out_loss") is not None:
        return 1, float(facts["held_out_loss"])
    return None


def best_of(merits: Mapping[int, Merit | None]) -> int | None:
    """Return the number of the best checkpoint, the earlier of two alike, or None if none was measured."""
    measured = {number: merit for number, merit in merits.items() if merit is not None}
    return min(measured, key=lambda number: (measured[number], number)) if measured else None


def worth_keeping(merits: Mapping[int, Merit | None], saved: int, kept: int) -> set[int]:
    """Return which checkpoints to keep: the newest up to the one just saved, and the best.

    Args:
        merits: of each by its number, None where it has none.
        saved: the one just saved; later ones are damaged, or of another life.
        kept: how many of the newest.
    """
    newest = sorted(number for number in merits if number <= saved)[-kept:]
    best = best_of(merits)
    return {*newest} if best is None else {*newest, best}


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts with None for numbers that JSON cannot say: a loss that is not finite is no measurement."""
    return {name: None if isinstance(fact, float) and not math.isfinite(fact) else fact for name, fact in facts.items()}
