"""Saving: a checkpoint is a snapshot of the state between two updates, written beside those that follow."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.settings.schema import RecordSettings
from dreamfleet.learner.checkpoints.copies import CheckpointCopies
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.learner.lane import Lane


class SavedCheckpoint(NamedTuple):
    """A checkpoint that is on the disk: its facts, and its weights, which may be evaluated."""

    facts: dict[str, Any]
    weights: PublishedWeights


class RunCheckpoints:
    """The checkpoints of a run and their copies: written one after another, in line or on a lane beside the updates.

    Attributes:
        decisions: where they are copied to, as a sentence, if they are.

    Args:
        directory: that holds them.
        records: the settings: how many are kept, and where they are copied to.
        writes: whether this process does; else it may only read them.

    Raises:
        UserError: if they cannot be copied to the URL that the settings name.
    """

    def __init__(self, directory: Path, records: RecordSettings, lane: Lane, writes: bool) -> None:
        self._store = CheckpointStore(directory, records.checkpoints_kept)
        if writes:
            self._store.remove_unfinished()
        url = records.checkpoint_url if writes else ""
        self._copies = CheckpointCopies(url, self._store) if url else None
        self._lane = lane
        self._begun: list[Future[SavedCheckpoint]] = []
        self.directory = directory
        self.decisions = [self._copies.decision] if self._copies else []

    def write(self, number: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write a checkpoint in line, after those that were begun, and return its facts.

        Raises:
            UserError: if it cannot be written; older ones are untouched.
        """
        self.wait()
        return self._write(number, state, facts)

    def begin(
        self, number: int, state: Mapping[str, Any], facts: Mapping[str, Any], weights: Future[PublishedWeights]
    ) -> None:
        """Have a checkpoint written, once the one before is; `take` returns it, or raises what went wrong.

        Args:
            weights: the state's, that are being published.

        Raises:
            torch.OutOfMemoryError: if the device has no room for a copy of the state; nothing was begun.
        """
        self.wait()
        held = snapshot(state)  # by the updates' stream, before the next one changes it
        taken = self._lane.mark()

        def write() -> SavedCheckpoint:
            with self._lane.side():
                self._lane.follow(taken)
                written = self._write(number, held, facts)
            return SavedCheckpoint(written, weights.result())

        self._begun.append(self._lane.start("save", write))

    def take(self) -> list[SavedCheckpoint]:
        """Return the checkpoints that were written since the last call.

        Raises:
            UserError: if one could not be written.
        """
        done = [future for future in self._begun if future.done()]
        self._begun = [future for future in self._begun if not future.done()]
        return [future.result() for future in done]

    def wait(self) -> None:
        """Wait until all that were begun are written, or have failed."""
        for future in self._begun:
            future.exception()

    def finish(self) -> None:
        """Wait for those that were begun and for the last copy, this within a limit."""
        self.wait()
        if self._copies:
            self._copies.finish()

    def record_evaluation(self, number: int, found: Mapping[str, Any]) -> bool:
        """Add the results of an evaluation to the facts of a checkpoint; False if it is gone.

        Raises:
            UserError: if it cannot be written.
        """
        self.wait()
        return self._store.record_evaluation(number, found)

    def load_newest(self, device: torch.device) -> tuple[tuple[dict[str, Any], dict[str, Any]] | None, list[str]]:
        """Return state and facts of the newest checkpoint that is whole, or None; and a sentence if it was fetched.

        Where there is none here but a copy, that is fetched first.

        Raises:
            UserError: if all are damaged, or of a format that is not known.
        """
        fetched = self._copies.fetch() if self._copies and self._store.is_empty else None
        return self._store.load_newest(device), [fetched] if fetched else []

    def _write(self, number: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        written = self._store.save(number, state, facts)
        if self._copies:
            self._copies.copy(number)
        return written


def snapshot(state: Any) -> Any:
    """Return a state with copies of its tensors, each where it was."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {name: snapshot(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(snapshot(value) for value in state)
    return state
