"""Milliseconds of an update at each size, in one of three ways."""

from __future__ import annotations

from typing import cast

from dreamfleet.learner.hardware import Mode
from tests.bench.gpu.devices import release
from tests.bench.gpu.findings import Recorder, say
from tests.bench.gpu.job import Job
from tests.bench.gpu.trial import (
    NotThisWayError,
    Pace,
    Trial,
    arithmetic,
    measure_pace,
    profile_updates,
    settings_of,
)

METHOD = """
Whole updates of `dreamer_v3` (`Updater.update`, in the precision of a run) one upon the other, on one batch of noise
that is on the device already: 16 sequences of 64 pictures of 64×64×3, a box of 6 dimensions; seeds and the late reading
of whether an update was finite are as in a learner. *Update* is from the beginning of one on the device to that of the
next (CUDA events, median, after six that do not count); *host* is what the host spends on giving one to the device;
*kernels* is the sum of their times in a profile made afterwards, and *launches* their number; *memory* is the most
that torch had given out; the *first* update compiles and captures. *Arithmetic* is counted in the eager update's
products and convolutions as they are made. *Share* is that over the update's time, as a part of the card's rate in a
large bfloat16 product, measured here. Sizes that the time did not suffice for are left out, and said.
"""
SIZES = ("12m", "200m", "50m", "1m")
"""In their order of importance."""
_HEADINGS = (
    "size", "parameters", "update", "host", "kernels", "launches", "update / kernels", "memory", "first",
    "arithmetic", "rate", "share",
)  # fmt: skip
_AIM_MS = 16.0
_AIM_READY_S = 60.0
_AIM_KERNELS = 1.5
_AIM_ARITHMETIC = 1.2
_AIM_SHARE = 0.6


def measure(job: Job, recorder: Recorder) -> None:
    """Take the sizes down one by one."""
    device, way = job.device, cast("Mode", job.argument)
    failed = []
    sizes = SIZES[: job.choose(len(SIZES), 2)]
    for place, size in enumerate(sizes):
        if job.left_s() < 3 and not job.dry:
            recorder.note(f"No time was left for {', '.join(sizes[place:])}.")
            break
        say(f"{way}, {size}")
        try:
            _measure_size(job, recorder, way, size, job.left_s() / (len(sizes) - place) / 3)
        except NotThisWayError as error:
            failed.append(f"{size}: {error}")
        except Exception as error:  # noqa: BLE001 (out of memory, or whatever a compiler raises: the next size may fit)
            failed.append(f"{size}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
        if failed and failed[-1].startswith(size):
            recorder.note(failed[-1])
        release(device)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(sizes)} sizes failed: {'; '.join(failed)}")


def _measure_size(job: Job, recorder: Recorder, way: Mode, size: str, most_s: float) -> None:
    trial = Trial(settings_of(("dreamer_v3", f"size_{size}"), job.dry), job.device, way)
    pace = measure_pace(trial, job, most_s)
    kernels = profile_updates(trial, job.choose(3, 1))
    kernels_ms = sum(kernel.ms for kernel in kernels)
    if way == "eager":
        recorder.figure(f"FLOP {size}", arithmetic(trial))
    recorder.figure(f"{way} {size} ms", pace.device_ms)
    flop = {**job.figures, **recorder.findings.figures}.get(f"FLOP {size}")
    best = job.figures.get("product bfloat16 FLOP/s")
    rate = flop / (pace.device_ms / 1000) if flop else None
    cells = (
        size,
        f"{trial.parameters:,}",
        f"{pace.device_ms:.3g} ms",
        f"{pace.host_ms:.3g} ms",
        f"{kernels_ms:.3g} ms",
        f"{sum(kernel.launches for kernel in kernels):,.0f}",
        f"{pace.device_ms / kernels_ms:.2f}" if kernels_ms else "",
        f"{pace.peak_gib:.2f} GiB",
        f"{pace.first_s:.1f} s",
        f"{flop / 1e12:.3g} TFLOP" if flop else "",
        f"{rate / 1e12:.3g} TFLOP/s" if rate else "",
        f"{rate / best:.1%}" if rate and best else "",
    )
    recorder.row(f"updates of dreamer_v3, {way}", _HEADINGS, cells)
    if way == "captured":
        _compare(recorder, size, pace, kernels_ms, flop, best)


def _compare(
    recorder: Recorder, size: str, pace: Pace, kernels_ms: float, flop: float | None, best: float | None
) -> None:
    """Take down what was aimed at."""
    if size == "12m":
        text = f"an update at 12m in {_AIM_MS:g} ms at most"
        recorder.aim(text, f"{pace.device_ms:.3g} ms", pace.device_ms <= _AIM_MS)
        recorder.aim(f"ready in {_AIM_READY_S:g} s", f"{pace.first_s:.0f} s", pace.first_s <= _AIM_READY_S)
        if kernels_ms:
            ratio = pace.device_ms / kernels_ms
            recorder.aim(
                f"within {_AIM_KERNELS:g} times the sum of its kernels' times", f"{ratio:.2f}", ratio <= _AIM_KERNELS
            )
    if size == "200m" and flop and best:
        ratio = pace.device_ms / 1000 / (flop / (_AIM_SHARE * best))
        text = f"200m within {_AIM_ARITHMETIC:g} times its arithmetic at {_AIM_SHARE:.0%} of the card's bfloat16 rate"
        recorder.aim(text, f"{ratio:.2f}", ratio <= _AIM_ARITHMETIC)
