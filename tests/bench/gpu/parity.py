"""Whether compiled and captured updates are the eager ones: the tests that need a GPU, and the size that is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dreamfleet.learner.hardware import Mode
from tests.bench.gpu.devices import release
from tests.bench.gpu.findings import Recorder
from tests.bench.gpu.job import Job
from tests.bench.gpu.trial import WARNINGS, Trial, settings_of
from tests.bench.machine import ROOT

METHOD = """
First `dreamer_v3` at 12m: the same updates from the same beginning with the same noise, eager beside captured and
compiled, in float32 and in bfloat16. *Loss* is the largest difference of the total loss over the updates, relative;
*norm* that of the gradient's norm; *learnt* the largest difference of any tensor of parameters, buffers and moments
after them, as the norm of the difference relative to the tensor's. Rounding makes them grow from update to update, so
what eager updates differ by among themselves, made again, stands beside them. Then the tests that need a GPU, one by
one (`pytest -m gpu`), which hold every preset to stated tolerances.
"""
_UPDATES = 4
_HEADINGS = ("precision", "way", "loss", "norm", "learnt", "of which", "seconds")


class Learnt(NamedTuple):
    """What came of some updates: their losses, the norms of their gradients, and all tensors that they changed."""

    losses: list[float]
    norms: list[float]
    state: dict[str, torch.Tensor]


def measure(job: Job, recorder: Recorder) -> None:
    """Take down the differences, and then the tests as they end."""
    failed = _compare(job, recorder, ("eager", "captured"))
    _say_what_a_run_does(job, recorder)
    failed += _run_tests(recorder)
    failed += _compare(job, recorder, ("compiled",))
    if failed:
        raise RuntimeError(f"{len(failed)} failed: {', '.join(failed[:6])}{' …' if len(failed) > 6 else ''}")


def _compare(job: Job, recorder: Recorder, ways: Sequence[Mode]) -> list[str]:
    """Take down how far updates in these ways are from eager ones; return those that could not be made."""
    failed = []
    for bfloat16 in (False,) if job.dry else (False, True):
        precision = "bfloat16" if bfloat16 else "float32"
        expected = _learn(job, "eager", bfloat16)
        for way in ways:
            begun = time.monotonic()
            try:
                found = _learn(job, way, bfloat16)
            except Exception as error:  # noqa: BLE001 (whatever a compiler raises: the tests are to come all the same)
                failed.append(f"{way} in {precision}")
                recorder.note(f"{way}, {precision}: {type(error).__name__}: {error}")
                continue
            if said := WARNINGS.take():
                recorder.note(f"{way}, {precision}: {said}")
            loss, norm = _most(found.losses, expected.losses), _most(found.norms, expected.norms)
            name, most = _furthest(found.state, expected.state)
            shown = (f"{loss:.1e}", f"{norm:.1e}", f"{most:.1e}", f"`{name}`", f"{time.monotonic() - begun:.0f}")
            again = "eager, again" if way == "eager" else way
            recorder.row("beside eager updates, at 12m", _HEADINGS, (precision, again, *shown))
    return failed


def _say_what_a_run_does(job: Job, recorder: Recorder) -> None:
    """Take down how a learner makes updates that is left to find out by itself (`learner.compile auto`)."""
    trial = Trial(settings_of(("dreamer_v3", "size_12m"), job.dry), job.device, "captured", insists=False)
    trial.prepare()
    trial.update()
    said = WARNINGS.take()
    recorder.note(
        f"Left to itself (`learner.compile auto`), a learner makes updates that are {trial.updater.mode}. {said}"
    )
    del trial
    release(job.device)


def _learn(job: Job, way: Mode, bfloat16: bool) -> Learnt:
    """Return what came of a few updates."""
    trial = Trial(settings_of(("dreamer_v3", "size_12m"), job.dry), job.device, way, bfloat16)
    trial.prepare()
    losses, norms = [], []
    for _ in range(_UPDATES):
        metrics = trial.update().metrics
        losses.append(metrics["loss/total"].item())
        norms.append(metrics["gradient/norm"].item())
    trial.check_way()
    state = trial.state()
    del trial
    release(job.device)
    return Learnt(losses, norms, state)


def _most(found: list[float], expected: list[float]) -> float:
    """Return the largest relative difference."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True))


def _furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> tuple[str, float]:
    """Return the tensor that differs most, and by how much of its norm."""
    assert found.keys() == expected.keys()
    differences = {
        name: ((value.double() - expected[name].double()).norm() / (expected[name].double().norm() + 1e-12)).item()
        for name, value in found.items()
    }
    name = max(differences, key=lambda name: differences[name])
    return name, differences[name]


def _run_tests(recorder: Recorder) -> list[str]:
    """Run the tests that need a GPU; return the names of those that failed."""
    import pytest

    outcomes = _Outcomes(recorder)
    # Only the files that have such tests: others may need what is not installed.
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    code = pytest.main(["-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "-rfE", *files], plugins=[outcomes])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        recorder.note(f"pytest ended with {code!r}.")
        return ["pytest"]
    return outcomes.failed


class _Outcomes:
    """A plugin of pytest that takes down each test as it ends."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Take down a test's outcome: of its call, or of what kept it from being called."""
        if report.when != "call" and report.outcome == "passed":
            return
        name = f"{Path(report.location[0]).name}: {report.location[2]}"
        if report.outcome == "failed":
            self.failed.append(report.location[2])
        self._recorder.row(
            "tests that need a GPU",
            ("test", "outcome", "seconds", "why"),
            (name, report.outcome, f"{report.duration:.1f}", _reason(report)),
        )


def _reason(report: Any) -> str:
    """Return why a test was skipped or failed, in a line."""
    if report.outcome == "skipped":
        return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if report.outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        lines = (crash.message if crash is not None else str(report.longrepr)).strip().splitlines()
        return lines[0][:300] if lines else ""
    return ""
