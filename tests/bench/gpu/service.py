"""What only processes show: the learner's, fed by a replay's, and one that acts for all actors; see `make bench`."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

from tests.bench.gpu.findings import Recorder
from tests.bench.gpu.job import Job
from tests.bench.measure import Bench

METHOD = """
A part of `make bench`, whose page says how it measures, on a machine with a GPU: `learner` is what a learner's process
spends an update's time on, and what is hidden beside it; `central` is acting in one process on the GPU beside acting in
each actor.
"""
_HEADINGS = ("what", "found", "beside")


def measure(job: Job, recorder: Recorder) -> None:
    """Take down the part's figures as they come."""
    device = job.device  # without a GPU the part is skipped, unless dry
    recorder.note(f"on {device.type}")
    module = importlib.import_module(f"tests.bench.{job.argument}")
    with tempfile.TemporaryDirectory(prefix="dreamfleet-service-") as scratch:
        for row in module.measure(Bench(job.dry, Path(scratch))):
            recorder.row(job.argument, _HEADINGS, (row.what, row.ours, row.beside))
