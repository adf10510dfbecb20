"""The run's records: TensorBoard, metrics.jsonl, pictures and videos."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from dreamfleet.common.video import encode_gif, write_webm
from dreamfleet.deploy.run_directory import RunDirectory

if TYPE_CHECKING:
    from dreamfleet.deploy.monitoring.prometheus import PrometheusExporter

FILM_EVERY = 0.05
"""Share of a run's environment steps between two films: with up to a megabyte each, some twenty in all."""

log = logging.getLogger("dreamfleet")


class MetricsWriter:
    """Writes scalars, pictures and videos of a run, to files and to TensorBoard alike.

    Args:
        run: the run's directory; what an earlier start of the run wrote is continued.
        prometheus: exports the scalars as well.
    """

    def __init__(self, run: RunDirectory, prometheus: PrometheusExporter | None = None) -> None:
        self._run = run
        self._prometheus = prometheus
        self._metrics = run.metrics_file.open("a", buffering=1)
        self._board: Any = None
        self._evaluation_board: Any = None
        self._film_due: float | None = None  # environment steps; None: the first one of this start is shown
        self._begun = time.monotonic()
        self._seconds_before: float | None = None  # of the run's earlier starts; None until it is known

    def begin(self, updates: int) -> None:
        """Begin to record after so many updates; what a lost learner had recorded beyond them is dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self._metrics.close()
        dropped = drop_rows_beyond(self._run.metrics_file, updates)
        if self._seconds_before is None:  # else a learner was lost: the clock goes on
            self._seconds_before = last_seconds(self._run.metrics_file)
        self._metrics = self._run.metrics_file.open("a", buffering=1)
        if dropped:
            log.info("metrics: %d rows of updates beyond %d are dropped: these are made again", dropped, updates)
        if self._board:
            self._board.close()
        purge_step = updates + 1 if updates or dropped else None
        self._board = SummaryWriter(str(self._run.tensorboard), purge_step=purge_step)

    def scalars(self, values: Mapping[str, float], env_steps: int, updates: int) -> None:
        """Write one row of scalars; TensorBoard's axis is the number of updates."""
        if self._prometheus:
            self._prometheus.export(values, env_steps, updates)
        row = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        head = self._moment() | {"env_steps": env_steps, "updates": updates}
        self._metrics.write(json.dumps(head | finite) + "\n")
        for name, value in row.items():
            self._board.add_scalar(name, value, updates)

    def evaluation(self, found: Mapping[str, Any]) -> None:
        """Write an evaluation to evaluations.jsonl; in TensorBoard its axis is the number of environment steps.

        There it is a run of its own, `evaluation`: where updates are made again, what is purged of the others' rows is
        purged by number of updates, and would take evaluations at as many environment steps with it.
        """
        with self._run.evaluations_file.open("a") as file:
            file.write(json.dumps(self._moment() | dict(found)) + "\n")
        if self._prometheus:
            self._prometheus.export({"evaluation/return": found["mean"]}, found["env_steps"], found["updates"])
        for name, key in (("return", "mean"), ("return_std", "std")):
            self._evaluations().add_scalar(f"evaluation/{name}", found[key], found["env_steps"])

    def picture(self, name: str, image: np.ndarray, updates: int) -> Path:
        """Write a picture (H, W, 3) uint8 and return its file, named by the update."""
        file = self._run.pictures / f"{name}-{updates:07d}.png"
        if not cv2.imwrite(str(file), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise OSError(f"{file} could not be written")
        self._board.add_image(name, image, updates, dataformats="HWC")
        return file

    def video(self, name: str, frames: np.ndarray, updates: int, fps: int = 8) -> Path:
        """Write a video (T, H, W, 3) uint8 that a browser plays and return its file; TensorBoard shows it as a GIF."""
        file = self._run.pictures / f"{name}-{updates:07d}.webm"
        write_webm(file, frames, fps)
        _add_gif(self._board, f"{name}/video", encode_gif(frames, fps), updates)
        return file

    def film(self, gif: bytes, env_steps: int, of_steps: int) -> bool:
        """Show an evaluation's first episode in TensorBoard's run `evaluation`, unless one was shown shortly before.

        Args:
            gif: the episode as a GIF image.
            env_steps: at which it was evaluated.
            of_steps: environment steps of the whole run: a film is shown each `FILM_EVERY` of them, and the last one.

        Returns:
            Whether it was shown.
        """
        due = self._film_due is None or env_steps >= min(self._film_due, of_steps)
        if due:
            self._film_due = env_steps + FILM_EVERY * of_steps
            _add_gif(self._evaluations(), "evaluation/video", gif, env_steps)
        return due

    def close(self) -> None:
        """Write what is left and close the files."""
        self._metrics.close()
        for board in (self._board, self._evaluation_board):
            if board:
                board.close()

    def _evaluations(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        self._evaluation_board = self._evaluation_board or SummaryWriter(str(self._run.tensorboard / "evaluation"))
        return self._evaluation_board

    def _moment(self) -> dict[str, float]:
        """Return the time, since 1970 and of the run alone: without the pauses between its starts."""
        seconds = (self._seconds_before or 0.0) + time.monotonic() - self._begun
        return {"time": round(time.time(), 3), "run_seconds": round(seconds, 1)}


def _add_gif(board: Any, name: str, gif: bytes, step: int) -> None:
    """Have TensorBoard show a GIF image; torch's `add_video` would want an old moviepy."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = (int.from_bytes(gif[at : at + 2], "little") for at in (6, 8))
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
    board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def last_seconds(file: Path) -> float:
    """Return the `run_seconds` of the last row of a metrics.jsonl; 0 where there is none, as in an older run's."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    return float(json.loads(lines[-1]).get("run_seconds", 0.0)) if lines else 0.0


def drop_rows_beyond(file: Path, updates: int) -> int:
    """Drop the rows of a metrics.jsonl that tell of more than so many updates, and a line that a crash left torn.

    The file is written anew under another name and renamed, so that a crash at any instant leaves the old or the new.

    Returns:
        How many whole rows were dropped.
    """
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    numbers = [_updates_of(line) for line in lines]
    kept = [line for line, number in zip(lines, numbers, strict=True) if number is not None and number <= updates]
    if len(kept) < len(lines):
        new = file.with_name(file.name + ".tmp")
        with new.open("wb") as out:
            out.writelines(kept)
            out.flush()
            os.fsync(out.fileno())
        new.replace(file)
    return sum(number is not None and number > updates for number in numbers)


def _updates_of(line: bytes) -> int | None:
    """Return the number of updates that a row tells of; None if it is no whole row."""
    try:
        row = json.loads(line)
        return int(row["updates"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
