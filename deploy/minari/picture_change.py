"""Stored pictures made another size, or grey, as the wrappers of an environment would have made them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dreamfleet.actors.spaces.pictures import make_grey, resize_picture
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.episodes import StoredEpisode


@dataclass(frozen=True)
class PictureChange:
    """What is to become of all pictures of a dataset.

    Attributes:
        image_size: side to which they are resized, by area; 0 keeps their size.
        grey: whether they become grey.
    """

    image_size: int = 0
    grey: bool = False

    def settings(self) -> dict[str, int | bool]:
        """Return the settings of the environment that say the same."""
        size = {"image_size": self.image_size} if self.image_size else {}
        return {**size, **({"grey": True} if self.grey else {})}

    def format(self, stored: StepFormat) -> StepFormat:
        """Return the format of the steps once their pictures are changed.

        Raises:
            UserError: if there are no pictures to change, or some cannot become grey.
        """
        if not self.settings():
            return stored
        spaces = stored.spaces
        if not spaces.images:
            flag = "--image-size" if self.image_size else "--grey"
            shown = ", ".join(f"'{spec.name}' {'×'.join(map(str, spec.shape))}" for spec in spaces.observations)
            raise UserError(f"flag {flag}: the dataset holds no picture, only {shown}; leave the flag out.")
        changed = tuple(self._spec(spec) if spec.is_image else spec for spec in spaces.observations)
        return StepFormat(Spaces(changed, spaces.action))

    def pieces(self, stored: StepFormat, pieces: Iterable[StoredEpisode]) -> Iterator[StoredEpisode]:
        """Yield the pieces with their pictures changed."""
        if not self.settings():
            yield from pieces
            return
        names = [spec.name for spec in stored.spaces.images]
        for piece in pieces:
            changed = {name: np.stack([self._change(picture) for picture in piece.arrays[name]]) for name in names}
            place = piece.actor, piece.incarnation, piece.stream, piece.first_step
            yield StoredEpisode(*place, piece.chunks, {**piece.arrays, **changed})

    def _spec(self, spec: ObservationSpec) -> ObservationSpec:
        height, width, channels = spec.shape
        if self.grey and channels not in (1, 3):
            raise UserError(f"flag --grey: it needs pictures of 3 channels (or 1), but '{spec.name}' has {channels}.")
        side = (self.image_size, self.image_size) if self.image_size else (height, width)
        return dataclasses.replace(spec, shape=(*side, 1 if self.grey else channels))

    def _change(self, picture: np.ndarray) -> np.ndarray:
        side = (self.image_size, self.image_size)
        resized = resize_picture(picture, side) if self.image_size and side != picture.shape[:2] else picture
        return make_grey(resized) if self.grey and picture.shape[-1] == 3 else resized


UNCHANGED = PictureChange()
