"""Copies of a run's checkpoints at a URL, which outlive the learner's node."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import Any

from dreamfleet.common.errors import UserError
from dreamfleet.learner.checkpoints.files import (
    DamagedCheckpointError,
    file_name,
    merit_of,
    number_of,
    parse_facts,
    worth_keeping,
)
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.learner.checkpoints.url import CheckpointUrl

FINISH_TIMEOUT_S = 60.0
"""How long the end of a run waits for the last copy."""
_LOG = logging.getLogger(__name__)


class CheckpointCopies:
    """Copies the checkpoints of a store to a URL, in a thread beside the training.

    The .pt is copied before its .json, so a copy that was cut off is not taken for a checkpoint. One round copies at a
    time; it copies all that is missing, so that the next round repeats what failed.

    Attributes:
        decision: where checkpoints are copied to, as a sentence.

    Raises:
        UserError: if the URL cannot be used.
    """

    def __init__(self, url: str, store: CheckpointStore) -> None:
        self._there = CheckpointUrl(url)
        self._store = store
        self._change = threading.Condition()
        self._wanted: int | None = None  # the newest checkpoint that no round has begun with
        self._is_copying = False
        self._facts: dict[int, dict[str, Any]] = {}  # of the checkpoints there, read once
        self._has_warned = False
        self.decision = f"checkpoints: each is copied to {self._there.shown}"

    # Copying --------------------------------------------------------------------------------------------------------

    def copy(self, number: int) -> None:
        """Copy the checkpoint just saved, and drop old copies, without waiting for it."""
        with self._change:
            self._wanted = number
            if not self._is_copying:
                self._is_copying = True
                threading.Thread(target=self._copy_what_is_wanted, name="checkpoint copies", daemon=True).start()

    def finish(self, timeout_s: float = FINISH_TIMEOUT_S) -> bool:
        """Wait for the last copy, and return whether it ended in time; if not, that is a warning in the log."""
        with self._change:
            ended = self._change.wait_for(lambda: not self._is_copying, timeout_s)
        if not ended:
            _LOG.warning(
                "copying checkpoints to %s took more than %.0f s and was left; the directory %s has them all",
                self._there.shown,
                timeout_s,
                self._store.directory,
            )
        return ended

    def _copy_what_is_wanted(self) -> None:
        """Copy until no newer checkpoint is wanted; the body of the thread."""
        while True:
            with self._change:
                number, self._wanted = self._wanted, None
                if number is None:
                    self._is_copying = False
                    self._change.notify_all()
                    return
            begun = time.monotonic()
            try:
                self._copy_missing(number)
                self._drop_old(number)
            except Exception as error:  # noqa: BLE001 (whatever a filesystem's package raises must not end the run)
                self._facts.clear()
                _LOG.warning(
                    "the checkpoint of update %d could not be copied to %s after %.1f s: %s; "
                    "it is tried again with the next one",
                    number,
                    self._there.shown,
                    time.monotonic() - begun,
                    self._there.describe(error),
                )

    def _copy_missing(self, saved: int) -> None:
        """Copy checkpoints that are worth keeping and not there yet, the newest first."""
        here = {}
        for number in self._store.numbers():
            with suppress(DamagedCheckpointError):  # loading it reports that
                here[number] = self._store.facts(number)
        self._read_facts()
        self._warn_of_later(saved)
        for number in sorted(self._keep(here, saved) & here.keys(), reverse=True):
            if number <= saved and self._facts.get(number) != here[number]:
                self._copy_one(number, here[number])

    def _copy_one(self, number: int, facts: dict[str, Any]) -> None:
        tensors, facts_name = file_name(number, "pt"), file_name(number, "json")
        folder = self._store.directory
        try:
            with (folder / facts_name).open("rb") as facts_file, (folder / tensors).open("rb") as tensors_file:
                there = self._facts.pop(number, None)
                if there is None or there["sha256"] != facts["sha256"]:  # else only the facts are others
                    if facts_name in self._there.names():
                        self._there.remove(facts_name)  # its tensors are about to be replaced
                    size = self._there.write(tensors, tensors_file)
                    if size not in (None, facts["bytes"]):
                        raise OSError(f"{tensors} arrived with {size} of its {facts['bytes']} bytes")
                self._there.write(facts_name, facts_file)
        except FileNotFoundError:
            if (folder / facts_name).exists():
                raise
            return  # dropped here meanwhile for newer ones, which the next round copies
        self._facts[number] = facts

    def _drop_old(self, saved: int) -> None:
        names, keep = self._there.names(), self._keep({}, saved)
        for ending in ("json", "pt"):  # in this order: without its facts it is no checkpoint
            for name in names:
                number = number_of(name, ending)
                if number is not None and number < saved and number not in keep:
                    self._there.remove(name)
                    self._facts.pop(number, None)

    def _keep(self, here: dict[int, dict[str, Any]], saved: int) -> set[int]:
        merits = {number: merit_of(facts) for number, facts in (self._facts | here).items()}
        return worth_keeping(merits, saved, self._store.kept)

    def _read_facts(self) -> None:
        """Read the facts of copies that are not known yet, and forget those that are gone."""
        numbers = self._numbers("json")
        self._facts = {number: facts for number, facts in self._facts.items() if number in numbers}
        for number in numbers - self._facts.keys():
            name = file_name(number, "json")
            with suppress(DamagedCheckpointError):  # a damaged copy counts as missing
                self._facts[number] = parse_facts(b"".join(self._there.read(name)), name)

    def _warn_of_later(self, saved: int) -> None:
        later = max(self._facts, default=saved)
        if later > saved and not self._has_warned:
            self._has_warned = True
            _LOG.warning(
                "%s holds a checkpoint of update %d, later than this run's of update %d: it is left there; "
                "is it another run's?",
                self._there.shown,
                later,
                saved,
            )

    # Fetching -------------------------------------------------------------------------------------------------------

    def fetch(self) -> str | None:
        """Fetch the newest whole copy into the store's directory; return that as a sentence, or None without any.

        A damaged copy is named in a warning and the one before it is taken.

        Raises:
            UserError: if the URL cannot be read, or all copies are damaged, or they are of an unknown format.
        """
        try:
            numbers = self._numbers("json")
            for number in sorted(self._numbers("pt") - numbers):
                _LOG.warning(
                    "the copy of the checkpoint of update %d at %s was never finished and is left alone",
                    number,
                    self._there.shown,
                )
            for number in sorted(numbers, reverse=True):
                if self._fetch_one(number):
                    return (
                        f"checkpoint: none in {self._store.directory}, so that of update {number} was fetched "
                        f"from {self._there.shown}"
                    )
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever the filesystem's package raises)
            raise UserError(
                f"records.checkpoint_url '{self._there.shown}' cannot be read, and there is no checkpoint in "
                f"{self._store.directory} to go on from: {self._there.describe(error)}; mend it, or give an empty "
                "records.checkpoint_url to begin without."
            ) from None
        if numbers:
            raise UserError(
                f"none of the {len(numbers)} checkpoints at {self._there.shown} is whole (see the warnings above); "
                "put back a copy of one, or remove them all to begin anew."
            )
        return None

    def _fetch_one(self, number: int) -> bool:
        """Fetch one checkpoint; return False if it is damaged."""
        try:
            facts = b"".join(self._there.read(file_name(number, "json")))
            self._store.take_in(number, facts, self._there.read(file_name(number, "pt")))
        except FileNotFoundError:
            damage = f"{file_name(number, 'pt')} is missing"
        except DamagedCheckpointError as error:
            damage = str(error)
        else:
            return True
        _LOG.warning("skipping the copy of the checkpoint of update %d at %s: %s", number, self._there.shown, damage)
        return False

    def _numbers(self, ending: str) -> set[int]:
        found = (number_of(name, ending) for name in self._there.names())
        return {number for number in found if number is not None}
