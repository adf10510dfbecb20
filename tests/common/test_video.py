"""Videos: what is written can be read back."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dreamfleet.common.errors import UserError
from dreamfleet.common.video import encode_gif, write_webm


def moving(height: int, width: int, channels: int, count: int = 12) -> np.ndarray:
    """Return frames with a bright block that moves to the right; in colour it is red."""
    frames = np.zeros((count, height, width, channels), np.uint8)
    for t in range(count):
        frames[t, 8:24, 4 + 2 * t : 20 + 2 * t, 0] = 230
    return frames


def read(path: Path) -> tuple[np.ndarray, float]:
    """Return the frames (T, H, W, 3) of a video and its frames per second."""
    video = cv2.VideoCapture(str(path))
    frames = []
    while True:
        there, frame = video.read()
        if not there:
            return np.stack(frames), video.get(cv2.CAP_PROP_FPS)
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def test_a_webm_shows_what_was_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All frames are read back in order, in their colours and at their rate; nothing is printed."""
    frames = moving(48, 64, 3)
    write_webm(tmp_path / "a.webm", frames, 12.5)
    shown, fps = read(tmp_path / "a.webm")
    assert shown.shape == frames.shape
    assert fps == pytest.approx(12.5)
    assert np.abs(shown.astype(int) - frames).mean() < 6
    assert (tmp_path / "a.webm").read_bytes()[:4] == b"\x1aE\xdf\xa3"
    assert capfd.readouterr() == ("", "")


def test_odd_sides_and_grey_frames_are_written(tmp_path: Path) -> None:
    """A side of 33 grows to 34; one channel becomes three equal ones."""
    frames = moving(33, 45, 1)
    write_webm(tmp_path / "a.webm", frames, 10)
    shown, _ = read(tmp_path / "a.webm")
    assert shown.shape == (12, 34, 46, 3)
    assert np.abs(shown[:, :33, :45].astype(int) - frames).mean() < 6


def test_a_video_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A missing directory, and a file that cannot be opened, are named."""
    with pytest.raises(UserError, match="no directory"):
        write_webm(tmp_path / "missing" / "a.webm", moving(32, 64, 3), 10)
    (tmp_path / "a.webm").mkdir()
    with pytest.raises(UserError, match=r"a\.webm' cannot be written"):
        write_webm(tmp_path / "a.webm", moving(32, 64, 3), 10)


def test_wrong_frames_are_refused(tmp_path: Path) -> None:
    """Reals, four channels and no frames at all are no video."""
    for frames in (np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8, 4), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="frames are"):
            write_webm(tmp_path / "a.webm", frames, 10)
        with pytest.raises(ValueError, match="frames are"):
            encode_gif(frames, 10)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_repeats_for_ever_at_its_rate(channels: int) -> None:
    """Every frame is there, shown for 100 ms at ten a second, and the block is where it was."""
    frames = moving(32, 64, channels)
    image = Image.open(io.BytesIO(encode_gif(frames, 10)))
    assert image.format == "GIF"
    assert image.info["loop"] == 0
    assert image.info["duration"] == 100
    assert image.n_frames == 12  # type: ignore[attr-defined]
    for t in (0, 7):
        image.seek(t)
        shown = np.asarray(image.convert("RGB"), int)[..., 0]
        assert np.abs(shown - frames[t, ..., 0]).mean() < 3
