"""Which kernels an update's time goes into, as it is made eagerly and as a run would make it."""

from __future__ import annotations

from dreamfleet.learner.hardware import Mode
from tests.bench.gpu.devices import release
from tests.bench.gpu.findings import Recorder
from tests.bench.gpu.job import Job
from tests.bench.gpu.trial import NotThisWayError, Trial, profile_updates, settings_of

METHOD = """
torch.profiler over five updates of `dreamer_v3` at 12m, after three that do not count: the kernels with the most time,
per update. Without a GPU, in a dry run, these are operations.
"""
_MOST = 30
_LONGEST_NAME = 110


def measure(job: Job, recorder: Recorder) -> None:
    """Take the kernels down, of captured updates first."""
    ways: tuple[Mode, ...] = ("captured", "eager")
    for way in ways:
        trial = Trial(settings_of(("dreamer_v3", "size_12m"), job.dry), job.device, way)
        trial.prepare()
        for _ in range(job.choose(3, 1)):
            trial.update()
        try:
            trial.check_way()
        except NotThisWayError as error:
            recorder.note(f"{error}.")
            continue
        found = profile_updates(trial, job.choose(5, 1))
        whole_ms = sum(kernel.ms for kernel in found)
        launches = sum(kernel.launches for kernel in found)
        recorder.note(f"{way}: {launches:,.0f} launches of {len(found)} kernels, {whole_ms:.3g} ms an update.")
        for kernel in found[:_MOST]:
            name = kernel.name if len(kernel.name) <= _LONGEST_NAME else kernel.name[: _LONGEST_NAME - 1] + "…"
            cells = (f"{kernel.ms:.3g}", f"{kernel.ms / whole_ms:.1%}", f"{kernel.launches:,.0f}", f"`{name}`")
            recorder.row(f"kernels of an update at 12m, {way}", ("ms", "share", "launches", "kernel"), cells)
        del trial
        release(job.device)
