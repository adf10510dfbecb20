"""The run's records: TensorBoard, metrics.jsonl, pictures and videos."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dreamfleet.common.video import encode_gif, write_webm
from dreamfleet.deploy.run_directory import RunDirectory


class Records:
    """Writes scalars, pictures and videos of a run, to files and to TensorBoard alike.

    Args:
        run: the run's directory; records go on where an earlier life of the run left them.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._metrics = run.metrics_file.open("a", buffering=1)
        self._board: Any = None

    def begin(self, updates: int) -> None:
        """Begin to record after so many updates; TensorBoard drops what a lost learner had recorded beyond them."""
        from torch.utils.tensorboard import SummaryWriter

        if self._board:
            self._board.close()
        self._board = SummaryWriter(str(self._run.tensorboard), purge_step=updates + 1 if updates else None)

    def scalars(self, values: Mapping[str, float], env_steps: int, updates: int) -> None:
        """Write one row of scalars; TensorBoard's axis is the number of updates."""
        row = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        head = {"time": round(time.time(), 3), "env_steps": env_steps, "updates": updates}
        self._metrics.write(json.dumps(head | finite) + "\n")
        for name, value in row.items():
            self._board.add_scalar(name, value, updates)

    def picture(self, name: str, image: np.ndarray, updates: int) -> Path:
        """Write a picture (H, W, 3) uint8 and return its file, named by the update."""
        file = self._run.pictures / f"{name}-{updates:07d}.png"
        if not cv2.imwrite(str(file), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise OSError(f"{file} could not be written")
        self._board.add_image(name, image, updates, dataformats="HWC")
        return file

    def video(self, name: str, frames: np.ndarray, updates: int, fps: int = 8) -> Path:
        """Write a video (T, H, W, 3) uint8 that a browser plays and return its file; TensorBoard shows it as a GIF."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        file = self._run.pictures / f"{name}-{updates:07d}.webm"
        write_webm(file, frames, fps)
        image = Summary.Image(height=frames.shape[1], width=frames.shape[2], colorspace=3,
                              encoded_image_string=encode_gif(frames, fps))  # fmt: skip
        writer = self._board._get_file_writer()
        writer.add_summary(Summary(value=[Summary.Value(tag=f"{name}/video", image=image)]), updates)
        return file

    def close(self) -> None:
        """Write what is left and close the files."""
        self._metrics.close()
        if self._board:
            self._board.close()
