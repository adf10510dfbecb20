"""How many operations an eager update of each preset is, counted without a GPU."""

from __future__ import annotations

from dreamfleet.common.settings.resolve import resolve
from tests.bench.gpu.findings import Recorder
from tests.bench.gpu.job import Job
from tests.learner.test_device_update import BOX, CHOICE, LENGTH, count_operations

METHOD = """
Under fake tensors, which have shapes and no values, at each preset's own length of sequences: operations without views,
those over lists of tensors once where a GPU takes them at once, and norms as a CPU takes them apart. A GPU has fewer
kernels than that. Beside it the same at 16 steps, which a test holds to a budget.
"""
PRESETS = ("dreamer_v3", "dreamer_v2", "dreamer_v1", "planet", "small")


def measure(job: Job, recorder: Recorder) -> None:
    """Take the presets down one by one."""
    for preset in PRESETS[-job.choose(len(PRESETS), 1) :]:  # in a dry run the smallest
        own = LENGTH if job.dry else resolve([preset]).learner.sequence_length
        counts = [
            count_operations(preset, BOX if preset == "dreamer_v1" else CHOICE, length) for length in (own, LENGTH)
        ]
        recorder.row(
            "operations of an eager update",
            ("preset", "steps", "operations", f"at {LENGTH} steps"),
            (preset, own, *(f"{count:,}" for count in counts)),
        )
