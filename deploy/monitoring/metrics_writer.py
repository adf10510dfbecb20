"""Writes a run's metrics: TensorBoard, metrics.jsonl, evaluations.jsonl, pictures and videos."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import cv2
import numpy as np

from dreamfleet.common.formatting import finite_or_none
from dreamfleet.common.video import encode_gif, write_webm
from dreamfleet.deploy.run_directory import RunDirectory

if TYPE_CHECKING:
    from dreamfleet.deploy.monitoring.prometheus import PrometheusExporter

FILM_EVERY = 0.05
"""Share of a run's environment steps between two films of evaluations: twenty in all, each of up to a megabyte."""

log = logging.getLogger("dreamfleet")


class MetricsWriter:
    """Writes to files and to TensorBoard alike, after what earlier starts of the run wrote; `begin` comes first.

    In metrics.jsonl `time` is that since 1970, and `run_seconds` leaves out the pauses between the starts. In
    TensorBoard evaluations are a run of their own, `evaluation`, over environment steps: rows of the others are purged
    by number of updates where a learner was lost, and that would remove evaluations with equal numbers of steps.

    Args:
        prometheus: exports the scalars as well.
    """

    def __init__(self, run: RunDirectory, prometheus: PrometheusExporter | None = None) -> None:
        self._run = run
        self._prometheus = prometheus
        self._metrics: TextIO | None = None
        self._board: Any = None
        self._evaluation_board: Any = None
        self._film_due: float | None = None  # environment steps; None: the first one of this start is shown
        self._started = time.monotonic()
        self._seconds_before: float | None = None  # of the run's earlier starts; None until it is known

    def begin(self, updates: int) -> None:
        """Start or resume after a number of updates; what a lost learner had written beyond them is dropped."""
        from torch.utils.tensorboard import SummaryWriter

        for file in (self._metrics, self._board):
            if file:
                file.close()
        dropped, seconds = _drop_rows_beyond(self._run.metrics_file, updates)
        if self._seconds_before is None:  # else a learner was lost: the clock keeps running
            self._seconds_before = seconds
        if dropped:
            log.info("metrics: %d rows of updates beyond %d are dropped: these are made again", dropped, updates)
        # Each line is flushed: the last rows of a run that is killed are there.
        self._metrics = self._run.metrics_file.open("a", buffering=1)
        purge_step = updates + 1 if updates or dropped else None
        self._board = SummaryWriter(str(self._run.tensorboard), purge_step=purge_step)

    def scalars(self, values: Mapping[str, float], env_steps: int, updates: int) -> None:
        """Write one row; TensorBoard's axis is the number of updates, and what is not finite is null in JSON."""
        assert self._metrics
        if self._prometheus:
            self._prometheus.export(values, env_steps, updates)
        row = {name: float(value) for name, value in values.items()}
        totals = {"env_steps": env_steps, "updates": updates}
        self._metrics.write(json.dumps({**self._times(), **totals, **finite_or_none(row)}) + "\n")
        for name, value in row.items():
            self._board.add_scalar(name, value, updates)

    def evaluation(self, found: Mapping[str, Any]) -> None:
        """Write an evaluation: `env_steps`, `updates`, `mean` and `std` of returns, and more; not finite is null."""
        with self._run.evaluations_file.open("a") as file:
            file.write(json.dumps({**self._times(), **finite_or_none(dict(found))}, allow_nan=False) + "\n")
        if self._prometheus:
            self._prometheus.export({"evaluation/return": found["mean"]}, found["env_steps"], found["updates"])
        for name, key in (("return", "mean"), ("return_std", "std")):
            self._evaluations().add_scalar(f"evaluation/{name}", found[key], found["env_steps"])

    def picture(self, name: str, image: np.ndarray, updates: int) -> Path:
        """Write a picture (H, W, 3) uint8 and return its file, named by the update."""
        file = self._run.pictures / f"{name}-{updates:07d}.png"
        _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        file.write_bytes(encoded.tobytes())  # unlike OpenCV, this says why it fails
        self._board.add_image(name, image, updates, dataformats="HWC")
        return file

    def video(self, name: str, frames: np.ndarray, updates: int, fps: int = 8) -> Path:
        """Write a video (T, H, W, 3) uint8 that a browser plays and return its file; TensorBoard shows it as a GIF."""
        file = self._run.pictures / f"{name}-{updates:07d}.webm"
        write_webm(file, frames, fps)
        _add_gif(self._board, f"{name}/video", encode_gif(frames, fps), updates)
        return file

    def film(self, gif: bytes, env_steps: int, of_steps: int) -> bool:
        """Show an evaluation's first episode, a GIF image, in TensorBoard, unless one was shown shortly before.

        Args:
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
        for file in (self._metrics, self._board, self._evaluation_board):
            if file:
                file.close()

    def _evaluations(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        self._evaluation_board = self._evaluation_board or SummaryWriter(str(self._run.tensorboard / "evaluation"))
        return self._evaluation_board

    def _times(self) -> dict[str, float]:
        seconds = (self._seconds_before or 0.0) + time.monotonic() - self._started
        return {"time": round(time.time(), 3), "run_seconds": round(seconds, 1)}


def _add_gif(board: Any, name: str, gif: bytes, step: int) -> None:
    """Have TensorBoard show a GIF image; torch's `add_video` would need an old moviepy."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = (int.from_bytes(gif[at : at + 2], "little") for at in (6, 8))
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
    board.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def _drop_rows_beyond(file: Path, updates: int) -> tuple[int, float]:
    """Drop the rows of a metrics.jsonl that are of more updates, and lines that a crash left torn.

    The file is replaced by a new one that is synced before, so that a crash at any instant leaves the old or the new;
    it is left alone if there is nothing to drop.

    Returns:
        How many whole rows were dropped, and the `run_seconds` of the last one kept: 0 if there is none.
    """
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    rows = [_parse_row(line) for line in lines]
    kept = [bool(row) and row["updates"] <= updates for row in rows]
    if not all(kept):
        new = file.with_name(file.name + ".tmp")
        with new.open("wb") as out:
            out.writelines(line for line, is_kept in zip(lines, kept, strict=True) if is_kept)
            out.flush()
            os.fsync(out.fileno())
        new.replace(file)
    last = [row for row, is_kept in zip(rows, kept, strict=True) if is_kept][-1:]
    seconds = float(last[0].get("run_seconds", 0.0)) if last else 0.0  # rows of an older version have none
    return sum(bool(row) for row in rows) - sum(kept), seconds


def _parse_row(line: bytes) -> dict[str, Any]:
    """Return a row, or an empty one if the line is torn."""
    try:
        row = json.loads(line)
        return {**row, "updates": int(row["updates"])} if line.endswith(b"\n") else {}
    except (ValueError, KeyError, TypeError):
        return {}
