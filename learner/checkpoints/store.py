"""The checkpoints of a run: each is a file of tensors and a file of facts with their hash, written after it.

    checkpoint-000001000.pt      the state: tensors, numbers and names only, read with `weights_only=True`
    checkpoint-000001000.json    the facts: size and SHA-256 of the .pt, updates, steps, held-out loss, spaces, version

Both are written and synced under temporary names, then renamed, the .pt first: a checkpoint exists from the moment its
.json has its name. Files that a crash leaves before that are no checkpoint, and are skipped. After a crash between the
two renames, the next start finds the .pt to match the temporary .json and renames that.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dreamfleet import __version__
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.learner.checkpoints.files import (
    FORMAT,
    DamagedCheckpointError,
    Merit,
    best_of,
    file_name,
    merit_of,
    number_of,
    parse_facts,
    rename_synced,
    temporary,
    to_json,
    worth_keeping,
    write_synced,
)

_LOG = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints in one directory, of which the newest `kept` and the best are kept.

    Reading changes nothing in the directory, so that a run can be read while it trains.
    """

    def __init__(self, directory: Path, kept: int) -> None:
        self.directory = Path(directory)
        self.kept = kept

    def numbers(self) -> list[int]:
        """Return the numbers of updates of all checkpoints that have facts, oldest first; none is verified."""
        return self._numbers("json")

    @property
    def is_empty(self) -> bool:
        """Whether no checkpoint was ever finished here: there are no facts, whole or not."""
        return not self.numbers()

    def save(self, number: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write a checkpoint, then drop those that are neither among the newest nor the best.

        Args:
            number: its number of updates; a checkpoint of the same number is replaced.
            state: tensors, numbers, strings, and lists and dicts of these.
            facts: plain JSON data; `merit_of` says which are read to find the best. They are returned as written.

        Raises:
            UserError: if it cannot be written, for example because the disk is full; the others are untouched.
            RunFailedError: if the facts are not plain JSON data; nothing is written.
        """
        path = self._path(number, "pt")
        self._facts_text(number, facts)  # fails before anything is written, if it fails
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            size_and_hash = write_synced(temporary(path), lambda file: torch.save(dict(state), file))
            text = self._facts_text(number, {**facts, **size_and_hash})
            self._finish(number, text)
        except OSError as error:
            raise UserError(
                f"the checkpoint {path} could not be written: {error.strerror or error}; "
                "older checkpoints are as they were"
            ) from error
        finally:
            self._remove_temporaries(number)
        self._prune(number)
        written: dict[str, Any] = json.loads(text)
        return written

    def take_in(self, number: int, facts: bytes, tensors: Iterable[bytes]) -> None:
        """Write a checkpoint that comes from elsewhere, if it is what its facts say.

        Args:
            number: its number of updates.
            facts: its .json.
            tensors: its .pt, in parts.

        Raises:
            DamagedCheckpointError: if it is torn or altered; nothing is written.
            UserError: if it is of another format.
            OSError: if it cannot be written.
        """
        known = parse_facts(facts, file_name(number, "json"))
        tensors_file = self._path(number, "pt")
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            came = write_synced(temporary(tensors_file), lambda file: [file.write(part) for part in tensors])
            if known["updates"] != number or came != {name: known[name] for name in came}:
                raise DamagedCheckpointError(
                    f"{tensors_file.name} has {came['bytes']} bytes of SHA-256 {came['sha256']:.8}…, and its facts say "
                    f"{known['bytes']} of {known['sha256']:.8}… at update {known['updates']}"
                )
            self._finish(number, facts)
        finally:
            self._remove_temporaries(number)

    def load(self, number: int, map_location: str | torch.device = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the state and the facts of one checkpoint, verified.

        Raises:
            DamagedCheckpointError: if a file is missing, torn or altered.
        """
        facts, path = self.facts(number), self._path(number, "pt")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from error
        if len(data) != facts["bytes"]:
            raise DamagedCheckpointError(f"{path} has {len(data)} bytes, and was written with {facts['bytes']}")
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise DamagedCheckpointError(f"{path} is not what was written: its SHA-256 differs")
        try:
            state = torch.load(io.BytesIO(data), weights_only=True, map_location=map_location)
        except Exception as error:
            raise DamagedCheckpointError(f"{path} cannot be read as tensors: {error}") from error
        return state, facts

    def load_newest(self, map_location: str | torch.device = "cpu") -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return the newest checkpoint that is whole, as (state, facts), or None if there is none at all.

        A damaged one is named in a warning and the one before it is taken; so is one that was never finished, which
        does not count as a checkpoint.

        Raises:
            UserError: if there are checkpoints and all are damaged, or they are of a format that is not known.
        """
        finished = self.numbers()
        for number in sorted({*finished, *self._numbers("pt")}, reverse=True):
            try:
                return self.load(number, map_location)
            except DamagedCheckpointError as error:
                _LOG.warning("skipping the checkpoint of update %d: %s", number, error)
        if finished:
            raise UserError(
                f"none of the {len(finished)} checkpoints in {self.directory} is whole (see the warnings above); "
                "put back a copy of one, or remove them all to begin anew with the experience that is stored"
            )
        return None

    def newest_outline(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return state and facts of the newest checkpoint that can be read, its tensors without values, or None.

        The values are not read and so not verified: `load_newest` may yet take an earlier one.
        """
        for number in reversed(self.numbers()):
            with suppress(Exception):  # load_newest reports damage
                facts = self.facts(number)
                return torch.load(self._path(number, "pt"), weights_only=True, map_location="meta", mmap=True), facts
        return None

    def best(self) -> int | None:
        """Return the number of the best checkpoint, or None if none was measured; see `merit_of`."""
        return best_of(self._merits())

    def record_evaluation(self, number: int, found: Mapping[str, Any]) -> bool:
        """Add results such as `evaluation_return` to a checkpoint's facts; False if it is gone.

        Raises:
            UserError: if they cannot be written.
            RunFailedError: if they are not plain JSON data.
        """
        path = self._path(number, "json")
        try:
            text = self._facts_text(number, self.facts(number) | dict(found))
            write_synced(temporary(path), lambda file: file.write(text))
            rename_synced(temporary(path), path)
        except DamagedCheckpointError:
            return False
        except OSError as error:
            raise UserError(f"the facts {path} could not be written: {error.strerror or error}") from error
        finally:
            self._remove_temporaries(number)
        return True

    def facts(self, number: int) -> dict[str, Any]:
        """Return the facts of one checkpoint; its tensors are not read.

        Raises:
            DamagedCheckpointError: if they are missing or not whole.
            UserError: if they are of another format.
        """
        path = self._path(number, "json")
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{path} is missing: the checkpoint was never finished") from error
        except OSError as error:
            raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
        facts = parse_facts(data, path)
        if facts["updates"] != number:
            raise DamagedCheckpointError(f"{path} was written at update {facts['updates']}: it was renamed or copied")
        return facts

    def remove_unfinished(self) -> None:
        """Finish the checkpoint that a crash left between its two renames, and remove what it left half written.

        Only for the process that saves here, while it does not.
        """
        for path in self.directory.glob("checkpoint-*.json.tmp"):
            number = number_of(path.name.removesuffix(".tmp"), "json")
            if number is not None and self._matches(path, number):
                rename_synced(path, self._path(number, "json"))
        for path in self.directory.glob("checkpoint-*.tmp"):
            path.unlink()

    def _matches(self, facts_file: Path, number: int) -> bool:
        """Whether these facts have the hash of the .pt of this number."""
        try:
            facts = parse_facts(facts_file.read_bytes(), facts_file)
            with self._path(number, "pt").open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]
        except (OSError, DamagedCheckpointError, UserError):
            return False

    def _facts_text(self, number: int, facts: Mapping[str, Any]) -> bytes:
        """Return the text of the .json.

        Raises:
            RunFailedError: if the facts are not plain JSON data.
        """
        everything = {"format": FORMAT, "dreamfleet": __version__, **facts, "updates": number}
        try:
            return to_json(everything)
        except (ValueError, TypeError) as error:
            raise RunFailedError(
                f"the checkpoint of update {number} could not be written, since its facts are no JSON: {error}; "
                "older checkpoints are as they were"
            ) from error

    def _finish(self, number: int, facts: bytes) -> None:
        """Make a checkpoint of the .pt that is written under its temporary name and these facts."""
        write_synced(temporary(self._path(number, "json")), lambda file: file.write(facts))
        for ending in ("pt", "json"):
            rename_synced(temporary(self._path(number, ending)), self._path(number, ending))

    def _remove_temporaries(self, number: int) -> None:
        with suppress(OSError):  # a directory that cannot be written to has none either
            for ending in ("pt", "json"):
                temporary(self._path(number, ending)).unlink(missing_ok=True)

    def _merits(self) -> dict[int, Merit | None]:
        merits: dict[int, Merit | None] = {}
        for number in self.numbers():
            with suppress(DamagedCheckpointError):  # load_newest reports damage
                merits[number] = merit_of(self.facts(number))
        return merits

    def _prune(self, saved: int) -> None:
        """Drop checkpoints that are not worth keeping; those later than the one just saved are damaged.

        What cannot be removed stays, with a warning: the one just saved is whole.
        """
        keep = worth_keeping(self._merits(), saved, self.kept)
        for ending in ("json", "pt"):  # in this order: without its facts it is no checkpoint
            for number in self._numbers(ending):
                if number < saved and number not in keep:
                    self._drop(self._path(number, ending))

    def _drop(self, file: Path) -> None:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("the old checkpoint file %s cannot be removed and stays: %s", file, error.strerror)

    def _numbers(self, ending: str) -> list[int]:
        found = (number_of(path.name, ending) for path in self.directory.glob(f"checkpoint-*.{ending}"))
        return sorted(number for number in found if number is not None)

    def _path(self, number: int, ending: str) -> Path:
        return self.directory / file_name(number, ending)
