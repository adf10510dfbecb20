"""What a checkpoint's .json holds, what its files are called, and which checkpoints are worth keeping."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

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
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{origin} cannot be read: {error}") from error
    if not isinstance(facts, dict) or not {"format", "sha256", "bytes", "updates"} <= facts.keys():
        raise DamagedCheckpointError(f"{origin} lacks what the facts of a checkpoint hold")
    kinds = {"sha256": str, "bytes": int, "updates": int}
    if facts["format"] == FORMAT and not all(type(facts[name]) is kind for name, kind in kinds.items()):
        raise DamagedCheckpointError(f"{origin} does not say the size, the SHA-256 and the update of its checkpoint")
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
    evaluation_return, held_out_loss = facts.get("evaluation_return"), facts.get("held_out_loss")
    if _is_measurement(evaluation_return):
        return 0, -float(evaluation_return)
    if _is_measurement(held_out_loss):
        return 1, float(held_out_loss)
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


def to_json(facts: Mapping[str, Any]) -> bytes:
    """Return facts as strict JSON; measurements that are not finite, alone or in a list, become null.

    A loss that is not finite is no measurement. What describes something, such as spaces, is not changed: infinities
    there have to be written in a way that reads back, or are refused.

    Raises:
        ValueError: if there is a number elsewhere that JSON cannot say, or facts contain themselves.
        TypeError: if a value is of no kind that JSON has.
    """
    return json.dumps({name: _measured(fact) for name, fact in facts.items()}, indent=1, allow_nan=False).encode()


def _measured(fact: Any) -> Any:
    if isinstance(fact, list):
        return [_measured(one) for one in fact]
    return None if isinstance(fact, float) and not math.isfinite(fact) else fact


def _is_measurement(fact: Any) -> TypeGuard[float]:
    """Whether this is a finite number; facts that were written elsewhere may hold anything."""
    return isinstance(fact, int | float) and math.isfinite(fact)
