"""What an update of the other algorithms takes, eager and captured."""

from __future__ import annotations

from dreamfleet.learner.hardware import Mode
from tests.bench.gpu.devices import release
from tests.bench.gpu.findings import Recorder
from tests.bench.gpu.job import Job
from tests.bench.gpu.trial import Trial, measure_pace, profile_updates, settings_of

METHOD = """
Updates of each preset at its own size of batch, on noise of 64×64×3 and a box of 6 dimensions, timed as those of
Dreamer V3 are.
"""
PRESETS = ("dreamer_v2", "dreamer_v1", "planet", "small", "article")
_HEADINGS = ("preset", "batch", "way", "update", "host", "kernels", "launches", "memory", "first")


def measure(job: Job, recorder: Recorder) -> None:
    """Take the presets down one by one."""
    ways: tuple[Mode, ...] = ("eager", "captured")
    failed = []
    turns = [(preset, way) for way in ways for preset in PRESETS[: job.choose(len(PRESETS), 1)]]
    for place, (preset, way) in enumerate(turns):
        if job.left_s() < 3 and not job.dry:
            recorder.note(f"No time was left for {', '.join(' '.join(turn) for turn in turns[place:])}.")
            break
        try:
            _measure_preset(job, recorder, preset, way, job.left_s() / (len(turns) - place) / 3)
        except Exception as error:  # noqa: BLE001 (whatever a compiler raises: the next may work)
            failed.append(f"{preset}, {way}")
            recorder.note(f"{failed[-1]}: {type(error).__name__}: {error}")
        release(job.device)
    if failed:
        raise RuntimeError(f"not measured: {'; '.join(failed)}")


def _measure_preset(job: Job, recorder: Recorder, preset: str, way: Mode, most_s: float) -> None:
    trial = Trial(settings_of((preset,), job.dry), job.device, way)
    pace = measure_pace(trial, job, most_s)
    kernels = profile_updates(trial, job.choose(3, 1))
    learner = trial.settings.learner
    cells = (
        preset,
        f"{learner.batch_size}×{learner.sequence_length}",
        way,
        f"{pace.device_ms:.3g} ms",
        f"{pace.host_ms:.3g} ms",
        f"{sum(kernel.ms for kernel in kernels):.3g} ms",
        f"{sum(kernel.launches for kernel in kernels):,.0f}",
        f"{pace.peak_gib:.2f} GiB",
        f"{pace.first_s:.1f} s",
    )
    recorder.row("updates of the other presets", _HEADINGS, cells)
