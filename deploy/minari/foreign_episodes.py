"""Episodes that another tool wrote, converted to our steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from dreamfleet.actors.spaces.action_spaces import Part, describe_action, list_parts, values_of
from dreamfleet.actors.spaces.entries import Entry, NamedEntries
from dreamfleet.actors.spaces.observations import list_entries
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces, zero_action
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.replay.episodes import StoredEpisode

if TYPE_CHECKING:
    from minari.dataset.minari_storage import MinariStorage


class ForeignEpisodes:
    """Takes episodes as they are: each is whole, begins with a reset and ends where its data end.

    An episode of T transitions becomes T + 1 steps, laid out as in `common/experience/steps.py`. Its last step is
    terminal if its last transition is; else it was cut short, marked or not. All episodes follow each other in one
    stream.

    Attributes:
        messages: sentences on what could not be taken as it is; complete once all episodes were read.

    Args:
        named: what the user says of observations.

    Raises:
        UserError: if a space is not supported.
    """

    def __init__(self, storage: MinariStorage, named: NamedEntries) -> None:
        self.messages: list[str] = []
        try:
            self._entries = list_entries(storage.observation_space, image_size=0, grey=False, named=named)
            action = describe_action(storage.action_space)
        except UserError as error:
            raise UserError(f"{storage.data_path}: {error}") from None
        self._storage = storage
        self._rounded: dict[str, list[int]] = {}
        self.step_format = StepFormat(Spaces(tuple(entry.spec for entry in self._entries), action))
        self.messages.append(f"observations: {', '.join(map(str, self._entries))}")
        self._report_pictures()

    def episodes(self, episodes: Iterable[Mapping[str, Any]]) -> Iterator[StoredEpisode]:
        """Yield each episode, of stream 0 of actor 0.

        Raises:
            UserError: naming the first episode that contradicts its spaces or holds a number that is not finite.
        """
        first_step = ends_inside = 0
        for number, episode in enumerate(episodes):
            try:
                arrays = self._steps(episode, number)
                ends_inside += int(np.sum(np.logical_or(episode["terminations"], episode["truncations"])[:-1]))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise UserError(f"{self._storage.data_path}: episode {number}: {error}.") from None
            steps = np.arange(first_step, first_step + len(arrays["reward"]))
            yield StoredEpisode(0, 0, 0, first_step, steps // CHUNK_STEPS, arrays)
            first_step += len(steps)
        self._report_rounding()
        if ends_inside:
            self.messages.append(f"{ends_inside} transitions inside episodes are marked as their ends: ignored")

    def _steps(self, episode: Mapping[str, Any], number: int) -> dict[str, np.ndarray]:
        """Return an episode's steps, each field as (T + 1, *shape)."""
        transitions = len(episode["rewards"])
        arrays = {
            field.name: np.zeros((transitions + 1, *field.shape), field.dtype) for field in self.step_format.fields
        }
        for entry in self._entries:
            values = reduce(lambda part, key: part[key], entry.path, episode["observations"])
            if len(values) != transitions + 1:
                raise ValueError(f"it has {len(values)} observations '{entry.spec.name}' and {transitions} rewards")
            arrays[entry.spec.name][:] = self._convert(entry, np.asarray(values))
        arrays["action"] = self._actions(episode["actions"], transitions)
        arrays["reward"][1:] = self._to_float32("rewards", np.asarray(episode["rewards"]))
        arrays["is_first"][0] = arrays["is_last"][-1] = True
        arrays["is_terminal"][-1] = transitions > 0 and episode["terminations"][-1]
        arrays["episode"][:] = number
        for name, array in arrays.items():
            if array.dtype == np.float32 and not np.isfinite(array).all():
                raise ValueError(f"'{name}' holds a number that is not finite")
        return arrays

    def _convert(self, entry: Entry, values: np.ndarray) -> np.ndarray:
        """Return an observation's entry of all steps, (T + 1, *shape)."""
        converted = np.stack([entry.convert(value) for value in values])
        if entry.kind == "vector" and isinstance(self._space(entry), spaces.Box):
            self._count_rounded(entry.spec.name, values, converted)
        return converted

    def _actions(self, actions: Any, transitions: int) -> np.ndarray:
        """Return stored actions, (T + 1, *shape); the last, which nobody took, is zeros."""
        spec, space = self.step_format.spaces.action, self._storage.action_space
        stored = zero_action(spec, transitions + 1)
        rows = stored.reshape(transitions + 1, -1)
        for part, values in zip(list_parts(space), values_of(space, actions), strict=True):
            if len(values) != transitions:
                raise ValueError(f"it has {len(values)} actions and {transitions} rewards")
            taken = np.asarray(values).reshape(transitions, part.width)
            rows[:-1, part.first : part.first + part.width] = self._numbers(part, taken)
        return stored

    def _numbers(self, part: Part, taken: np.ndarray) -> np.ndarray:
        """Return what is stored of a part's actions (T, width)."""
        called = f" '{part.name}'" if part.name else ""
        if part.options is None:
            return self._to_float32(f"actions{called}", taken)
        choices = taken.astype(np.int64) - part.options.starts.reshape(-1).astype(np.int64)
        if ((choices < 0) | (choices >= np.array(part.options.sizes))).any():
            raise ValueError(f"an action{called} is not in {part.space}")
        return choices

    def _to_float32(self, name: str, values: np.ndarray) -> np.ndarray:
        converted = values.astype(np.float32)
        self._count_rounded(name, values, converted)
        return converted

    def _count_rounded(self, name: str, values: np.ndarray, converted: np.ndarray) -> None:
        """Count the numbers that float32 cannot hold as they are."""
        if not np.can_cast(values.dtype, np.float32, "safe"):
            counts = self._rounded.setdefault(f"'{name}' ({values.dtype})", [0, 0])
            counts[0] += int(np.sum(values.reshape(converted.shape) != converted))
            counts[1] += values.size

    def _report_rounding(self) -> None:
        for name, (changed, count) in self._rounded.items():
            lost = f"{changed:,} of {count:,} numbers are rounded: not lossless" if changed else "no number has changed"
            self.messages.append(f"{name} is stored as float32: {lost}")

    def _report_pictures(self) -> None:
        from minari.dataset.minari_storage import is_image_space

        for entry in self._entries:
            space, name = self._space(entry), entry.spec.name
            if entry.spec.is_image and space.dtype != np.uint8:
                self.messages.append(f"'{name}' ({space.dtype}) is stored as bytes 0 to 255, rounded: not lossless")
            if self._storage.jpeg_encoding and is_image_space(space):
                self.messages.append(
                    f"'{name}' was compressed as JPEG when the dataset was written, which is not lossless"
                )

    def _space(self, entry: Entry) -> spaces.Space[Any]:
        space: Any = reduce(lambda part, key: part.spaces[key], entry.path, self._storage.observation_space)
        found: spaces.Space[Any] = space
        return found
