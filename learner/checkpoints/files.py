"""A checkpoint's two files: their names, the facts in the .json, which are worth keeping, and how they are written."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from dreamfleet import __version__
from dreamfleet.common.errors import UserError
from dreamfleet.common.formatting import finite_or_none

FORMAT = 1
"""Version of the layout of state and facts."""
Merit = tuple[int, float]
"""Checkpoints are compared by this: see `merit_of`."""
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
    """Return the facts in a .json.

    Args:
        origin: its file or URL, for the message.

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
    """Return how good a checkpoint is, the smaller the better, or None if it was not measured.

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
        merits: by the checkpoints' numbers, None where one was not measured.
        saved: the one just saved; later ones are damaged, or of another incarnation.
        kept: how many of the newest.
    """
    newest = sorted(number for number in merits if number <= saved)[-kept:]
    best = best_of(merits)
    return {*newest} if best is None else {*newest, best}


def to_json(facts: Mapping[str, Any]) -> bytes:
    """Return facts as strict JSON; measurements that are not finite, alone or in a list, become null.

    A loss that is not finite is no measurement. Descriptions, such as the spaces, are not changed: infinities there
    have to be written in a way that reads back, or are refused.

    Raises:
        ValueError: if there is a number elsewhere that JSON cannot express, or facts contain themselves.
        TypeError: if a value is of no kind that JSON has.
    """
    strict = {name: fact if isinstance(fact, dict) else finite_or_none(fact) for name, fact in facts.items()}
    return json.dumps(strict, indent=1, allow_nan=False).encode()


def _is_measurement(fact: Any) -> TypeGuard[float]:
    """Whether this is a finite number: facts that were written elsewhere may hold anything."""
    return isinstance(fact, int | float) and math.isfinite(fact)


class _HashingFile:
    """A file that keeps the size and hash of the bytes written to it, and the error that stopped it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._hash.update(data)
        self._bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        self._file.flush()

    def size_and_hash(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}


def write_synced(path: Path, write: Callable[[Any], object]) -> dict[str, Any]:
    """Let `write` fill the file, sync it, and return its size and hash."""
    with path.open("wb") as file:
        hashing = _HashingFile(file)
        try:
            write(hashing)
        except Exception:
            if hashing.error is not None:  # torch wraps the system's error in one of its own
                raise hashing.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return hashing.size_and_hash()


def rename_synced(source: Path, target: Path) -> None:
    """Rename a file so that the new name outlives a crash of the machine."""
    source.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def temporary(path: Path) -> Path:
    """Return the name that a file has until it is whole."""
    return path.with_name(path.name + ".tmp")
