"""A picture made smaller or bigger, and grey: one way for environments and for what is imported."""

from __future__ import annotations

import cv2
import numpy as np

CV2_CHANNELS = 4
"""`cv2.resize` averages areas for at most so many channels at once."""


def resize_picture(picture: np.ndarray, side: tuple[int, int]) -> np.ndarray:
    """Return the picture (H, W, C) resized by area interpolation to (side[0], side[1], C), any C."""
    parts = [picture[..., first : first + CV2_CHANNELS] for first in range(0, picture.shape[-1], CV2_CHANNELS)]
    resized = [cv2.resize(part, side[::-1], interpolation=cv2.INTER_AREA).reshape(*side, -1) for part in parts]
    return resized[0] if len(resized) == 1 else np.concatenate(resized, axis=-1)


def make_grey(picture: np.ndarray) -> np.ndarray:
    """Return the picture (H, W, 3) as (H, W, 1)."""
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
