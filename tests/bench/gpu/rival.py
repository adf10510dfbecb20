"""r2dreamer's update beside ours, on the same batch."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import torch

from dreamfleet.common.errors import UserError
from tests.bench.agents import SPACES, picture_spaces
from tests.bench.gpu import devices
from tests.bench.gpu.devices import Mark, release, wait_for
from tests.bench.gpu.findings import Recorder, SkippedError, say
from tests.bench.gpu.job import Job
from tests.bench.gpu.trial import Trial, measure_pace, settings_of
from tests.bench.r2dreamer import R2Dreamer, check_checkout

METHOD = """
r2dreamer (github.com/NM512/r2dreamer) with its decoder, its own update called whole, at our widths of 12m and on our
batch, with its own defaults on a GPU: float16 under autocast, TF32 for float32 products, and, compiled, torch.compile
in the mode reduce-overhead. Eager comes first, since compiling its loop of 64 steps takes minutes: where the time does
not suffice, `--parts r2dreamer` gives it all of it. Ours is the captured figure of the same day where there is one,
else measured here.
"""
_AIM = 2.0
_HEADINGS = ("r2dreamer", "its update", "ours", "ratio", "its parameters")


def measure(job: Job, recorder: Recorder) -> None:
    """Take down its update eager, and then compiled."""
    if job.r2dreamer is None:
        raise SkippedError("no checkout was given: --r2dreamer DIR")
    device = job.device
    try:
        check_checkout(job.r2dreamer, device)
    except UserError as error:
        raise SkippedError(str(error)) from error
    ours_ms = job.figures.get("captured 12m ms") or _measure_ours(job, recorder)
    settings = settings_of(("dreamer_v3", "size_12m"), job.dry)
    batch = Trial(settings, device, "eager").batch
    torch.set_float32_matmul_precision("high")  # as its train.py does
    for compiled in (False, True) if devices.is_gpu(device) else (False,):
        say(f"r2dreamer, {'compiled' if compiled else 'eager'}")
        rival = R2Dreamer(job.r2dreamer, settings, picture_spaces(SPACES["box of 6"]), batch, device, compiled)
        its_ms = _measure_its(rival, device, job)
        way = f"{rival.name}, {'compiled' if compiled else 'eager'}"
        cells = (way, f"{its_ms:.3g} ms", f"{ours_ms:.3g} ms", f"{its_ms / ours_ms:.2f}", f"{rival.parameters:,}")
        recorder.row("an update at 12m", _HEADINGS, cells)
        if compiled:
            ratio = its_ms / ours_ms
            recorder.aim(f"an update in 1/{_AIM:g} of r2dreamer's, compiled", f"1/{ratio:.2f}", ratio >= _AIM)
        del rival
        release(device)


def _measure_ours(job: Job, recorder: Recorder) -> float:
    """Return the milliseconds of our update, captured if that works here."""
    trial = Trial(settings_of(("dreamer_v3", "size_12m"), job.dry), job.device, "captured", insists=False)
    found = measure_pace(trial, job, 5.0, checks=False).device_ms
    recorder.note(f"Our update was measured here; it was {trial.updater.mode}.")
    del trial
    release(job.device)
    return found


def _measure_its(rival: R2Dreamer, device: torch.device, job: Job) -> float:
    """Return the median milliseconds of its updates, after four that do not count: the graph is captured in these."""
    for _ in range(job.choose(4, 1)):
        rival.update()
    wait_for(device)
    marks = [Mark(device)]
    for _ in range(job.choose(30, 2)):
        rival.update()
        marks.append(Mark(device))
    wait_for(device)
    return median(later.ms_since(mark) for mark, later in pairwise(marks))
