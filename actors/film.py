"""A film of an episode: its frames, all of them or so many spread over its length."""

from __future__ import annotations

import cv2
import numpy as np

VIDEO_SIDE = 320
"""The longer side of a recorded frame, in pixels: what is bigger shrinks to it, observations grow to it."""
SMALL_SIDE, SMALL_FRAMES = 128, 80
"""The longer side and at most twice the frames of a film that travels and lies in TensorBoard: some 100 kB to 1 MB."""


class Film:
    """Takes an episode's frames; where there are too many, every second is dropped and half as many taken from then on.

    Attributes:
        stride: environment steps from one frame to the next.

    Args:
        side: the longer side of its frames, in pixels.
        most: fewer than twice so many frames are kept; 0 keeps all.
    """

    def __init__(self, side: int = VIDEO_SIDE, most: int = 0) -> None:
        self.stride = 1
        self._side = side
        self._most = most
        self._is_stopped = False
        self._frames: list[np.ndarray] = []

    def wants(self, step: int) -> bool:
        """Whether the frame after so many steps of the episode is to be taken."""
        return not self._is_stopped and step % self.stride == 0

    def stop(self) -> None:
        """Take no more frames."""
        self._is_stopped = True

    def take(self, picture: np.ndarray) -> None:
        """Add a frame (H, W, 3) in uint8."""
        self._frames.append(_fit(picture, self._side))
        if self._most and len(self._frames) == 2 * self._most:
            self._frames = self._frames[::2]
            self.stride *= 2

    @property
    def frames(self) -> np.ndarray | None:
        """The frames (T, H, W, 3) in uint8; None if there are none."""
        return np.stack(self._frames) if self._frames else None


def _fit(picture: np.ndarray, side: int) -> np.ndarray:
    """Return the picture with its longer side at `side`; small ones grow without blurring."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(picture, np.uint8), size, interpolation=kind)
