"""One moment of a session as it travels: a header in JSON, and pictures behind it in one binary message."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np

from dreamfleet.common.formatting import finite_or_none

ImageFormat = Literal["jpeg", "png"]
_JPEG_QUALITY = 90


@dataclass
class Moment:
    """What a page shows of one step.

    Attributes:
        header: plain data; numbers that are not finite become null, which JSON has.
        images: encoded, each with its role, name and future in `header["images"]`.
    """

    header: dict[str, Any]
    images: list[bytes] = field(default_factory=list)

    def add_image(self, role: str, name: str, picture: np.ndarray, image_format: ImageFormat, future: int = 0) -> None:
        """Add a picture (H, W, C) of bytes, grey or colour."""
        encoded = encode_picture(picture, image_format)
        place = {"role": role, "name": name, "future": future, "bytes": len(encoded)}
        self.header.setdefault("images", []).append(place)
        self.images.append(encoded)

    def to_bytes(self) -> bytes:
        """Return the message: the header's length (uint32, little-endian), the header, the pictures end to end."""
        self.header.setdefault("images", [])
        text = json.dumps(finite_or_none(self.header), allow_nan=False, separators=(",", ":")).encode()
        return b"".join([struct.pack("<I", len(text)), text, *self.images])


def encode_picture(picture: np.ndarray, image_format: ImageFormat) -> bytes:
    """Return a picture (H, W, C) of bytes as JPEG or, without loss, as PNG."""
    shown = picture[..., ::-1] if picture.shape[-1] == 3 else picture[..., 0]  # OpenCV's order is blue, green, red
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if image_format == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    done, encoded = cv2.imencode(".jpg" if image_format == "jpeg" else ".png", np.ascontiguousarray(shown), options)
    assert done, f"a picture of {picture.shape} could not be encoded"
    return encoded.tobytes()
