"""Videos: `.webm` files for browsers, and GIF images for TensorBoard."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dreamfleet.common.errors import UserError

_TAG_WARNING = b"OpenCV: FFMPEG: tag"


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Return images (..., H, W, C) as RGB: one or two channels become grey, of more the first three are taken."""
    if images.shape[-1] >= 3:
        return images[..., :3]
    return np.repeat(images[..., :1], 3, axis=-1)


def write_webm(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write at least one frame, (T, H, W, 3) or (T, H, W, 1) in uint8, as a VP8 video; an existing file is replaced.

    The codec needs even sides: an odd one is extended by repeating the edge.

    Raises:
        UserError: if the file cannot be written or the video codec is missing.
        ValueError: if the frames are not as above, or the name does not end in `.webm`.
    """
    import cv2

    if path.suffix != ".webm":
        raise ValueError(f"'{path}' does not end in .webm, which chooses the container")
    if not path.parent.is_dir():
        raise UserError(f"The video '{path}' cannot be written: there is no directory '{path.parent}'.")
    colour = np.broadcast_to(_checked(frames), (*frames.shape[:3], 3))
    height, width = colour.shape[1:3]
    padded = np.pad(colour, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = (padded.shape[2], padded.shape[1])
    with _without_tag_warning():
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"VP80"), float(fps), size)
    if not writer.isOpened():
        raise UserError(
            f"The video '{path}' cannot be written: OpenCV {cv2.__version__} could not open the file for VP8. "
            "Is the directory writable, and is OpenCV the one of the opencv-python-headless wheel, which has FFmpeg?"
        )
    for frame in padded:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """Return at least one frame, (T, H, W, 3) or (T, H, W, 1) in uint8, as a GIF image that repeats forever.

    The format counts in hundredths of a second, and viewers slow down below two of them: at most 50 frames per second.

    Raises:
        ValueError: if the frames are not as above.
    """
    from PIL import Image

    checked = _checked(frames)
    pictures = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in checked]
    buffer = io.BytesIO()
    duration_ms = max(20, round(100 / fps) * 10)
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=duration_ms, loop=0, disposal=1
    )
    return buffer.getvalue()


def _checked(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3) or 0 in frames.shape:
        raise ValueError(f"frames are (T, H, W, 3) or (T, H, W, 1) in uint8, not {frames.dtype} {frames.shape}")
    return frames


@contextlib.contextmanager
def _without_tag_warning() -> Iterator[None]:
    """Keep one harmless line off the standard error; anything else that is written there passes.

    OpenCV prints from C, and cannot be silenced, that WebM has no tag for VP8; the file is right all the same.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            said = b"".join(line for line in caught if not line.startswith(_TAG_WARNING))
            if said:
                os.write(2, said)
