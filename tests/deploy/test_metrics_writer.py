"""The run's metrics: each update once, evaluations beside them, and the run's own time."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from dreamfleet.common.video import encode_gif
from dreamfleet.deploy.monitoring.metrics_writer import MetricsWriter
from dreamfleet.deploy.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Return a run that has just been made."""
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run


def begun(run: RunDirectory, updates: int) -> MetricsWriter:
    """Return the writer of a start that resumes after these updates."""
    writer = MetricsWriter(run)
    writer.begin(updates)
    return writer


def evaluation(env_steps: int, updates: int) -> dict[str, Any]:
    """Return what an evaluation found."""
    return {"env_steps": env_steps, "updates": updates, "mean": 2.0, "std": 1.5, "returns": [0.5, 3.5]}


def row_seconds(file: Path) -> list[float]:
    return [json.loads(line)["run_seconds"] for line in file.read_text().splitlines()]


def test_resuming_drops_rows_of_updates_that_are_made_again(run: RunDirectory) -> None:
    """After a learner was lost, metrics.jsonl holds each update once, like TensorBoard, and continues after it."""
    exported: list[tuple[int, int]] = []

    class Exporter:
        def export(self, scalars: Any, env_steps: int, updates: int) -> None:
            exported.append((env_steps, updates))

    with run.metrics_file.open("a") as file:
        for updates in (0, 5, 10, 15):
            file.write(json.dumps({"time": 1.0, "env_steps": 100 * updates, "updates": updates}) + "\n")
        file.write('{"time": 1, "env_st')  # killed in the middle of a row
    writer = MetricsWriter(run, cast("Any", Exporter()))
    writer.begin(10)
    writer.scalars({"loss/total": 1.0}, 6000, 12)
    writer.close()
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [row["updates"] for row in rows] == [0, 5, 10, 12]
    assert exported == [(6000, 12)]
    assert [path.name for path in run.path.glob("*.tmp")] == []


def test_a_resume_keeps_the_evaluations_before_it_in_tensorboard(run: RunDirectory) -> None:
    """Rows of updates beyond the checkpoint go; evaluations, whose axis has far greater numbers, stay."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for updates in (0, 20):
        writer = begun(run, updates)
        for step in range(updates + 10, updates + 40, 10):
            writer.scalars({"loss/total": 1.0}, 100 * step, step)
            writer.evaluation(evaluation(100 * step, step))
        writer.close()
    steps = {}
    for folder, tag in ((run.tensorboard, "loss/total"), (run.tensorboard / "evaluation", "evaluation/return")):
        board = EventAccumulator(str(folder))
        board.Reload()
        steps[tag] = [event.step for event in board.Scalars(tag)]
    assert steps["loss/total"] == [10, 20, 30, 40, 50]
    assert steps["evaluation/return"] == [1000, 2000, 3000, 3000, 4000, 5000]


def test_a_run_s_seconds_leave_out_the_pauses_between_its_starts(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on from the last row that is kept, and do not go back where a lost learner is replaced."""
    now = 500.0
    monkeypatch.setattr("dreamfleet.deploy.monitoring.metrics_writer.time.monotonic", lambda: now)
    first = begun(run, 0)
    now += 30.0
    first.scalars({}, 300, 3)
    now += 10.0
    first.scalars({}, 400, 4)
    first.begin(3)  # a learner was lost
    now += 5.0
    first.scalars({}, 450, 5)
    first.close()
    now += 1000.0
    second = begun(run, 5)
    now += 2.0
    second.evaluation(evaluation(500, 5))
    second.close()
    assert row_seconds(run.metrics_file) == [30.0, 45.0]
    assert row_seconds(run.evaluations_file) == [47.0]


def test_a_return_that_is_not_finite_is_null(run: RunDirectory) -> None:
    """JSON has no number for it, and strict readers take no other."""
    writer = begun(run, 0)
    writer.evaluation({**evaluation(100, 1), "mean": float("nan"), "returns": [1.0, float("inf")]})
    writer.close()
    row = json.loads(run.evaluations_file.read_text(), parse_constant=pytest.fail)
    assert (row["mean"], row["returns"]) == (None, [1.0, None])


def test_rows_are_left_alone_where_none_is_too_many(run: RunDirectory) -> None:
    """Nothing is written anew without need, and a missing file is no fault."""
    file = run.metrics_file
    begun(run, 3).close()
    file.write_text('{"updates": 3}\n')
    before = file.stat()
    begun(run, 3).close()
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_films_of_evaluations_are_shown_now_and_then(run: RunDirectory) -> None:
    """The first, then one each twentieth of the run, and the last: as GIF images in TensorBoard's run `evaluation`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    gif = encode_gif(np.zeros((3, 20, 30, 3), np.uint8), fps=10)
    writer = begun(run, 0)
    shown = [step for step in range(10, 1001, 10) if writer.film(gif, step, of_steps=1000)]
    assert shown == [*range(10, 1000, 50), 1000]
    writer.close()
    board = EventAccumulator(str(run.tensorboard / "evaluation"), size_guidance={"images": 0}).Reload()
    images = board.Images("evaluation/video")
    assert [image.step for image in images] == shown
    assert (images[0].width, images[0].height, images[0].encoded_image_string) == (30, 20, gif)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_picture_that_does_not_fit_says_why(run: RunDirectory) -> None:
    """A run that ends of it names the full disk."""
    (run.pictures / "prediction-0000001.png").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        begun(run, 0).picture("prediction", np.zeros((8, 8, 3), np.uint8), 1)
    assert raised.value.errno == errno.ENOSPC
