"""Whether it trains at all: short runs by the command line, in one process and on Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.bench.gpu.findings import Recorder, SkippedError, say
from tests.bench.gpu.job import Job

METHOD = """
`dreamfleet train` as anyone would start it, shortened by flags, inline and on Ray; compiling takes a minute, so that
all but the last go without. A run is in order if it ends with 0,
made updates on the GPU, and ends with a loss that is a number. *Loss* is its first and its last in `metrics.jsonl`.
"""
_HEADINGS = ("run", "how it ended", "seconds", "env steps", "updates", "updates/s", "loss", "what the learner said")
_SHORT = ("--records.log_every_s", "1", "--train.prefill", "200")
_EAGER = ("--learner.compile", "off")
_TO_END_S = 10.0
"""For a run whose time is up to end by itself."""


@dataclass(frozen=True)
class Run:
    """A short run: its presets, and the flags that shorten it."""

    presets: tuple[str, ...]
    flags: tuple[str, ...]
    inline: bool

    def __str__(self) -> str:
        """Return how the page names it."""
        return f"{' '.join(self.presets)}, {'inline' if self.inline else 'on Ray'}"


def _runs(dry: bool, has_ray: bool) -> tuple[Run, ...]:
    presets, flags = ("dreamer_v3", "debug"), ("--env.time_limit", "30", *_SHORT, "--train.env_steps", "400")
    if dry:
        return (Run(presets, (*flags, "--env.id", "CartPole-v1", "--records.evaluate_every", "0"), True),)
    longer = (*_SHORT, "--train.env_steps", "1200")
    return (
        Run(presets, (*flags, *_EAGER), True),
        Run(presets, (*flags, *_EAGER), False),
        Run(("quickstart",), (*longer, *_EAGER), False),
        Run(("quickstart",), longer, inline=not has_ray),  # as it comes
    )


def measure(job: Job, recorder: Recorder) -> None:
    """Take down how the runs ended, one by one."""
    device = job.device  # a part that needs the GPU is skipped without one
    environment = () if job.dry else _environment(recorder)
    has_ray = find_spec("ray") is not None
    runs = _runs(job.dry, has_ray)
    failed = []
    for place, run in enumerate(runs):
        if not run.inline and not has_ray:
            recorder.note(f"{run}: left out, since Ray is not installed.")
            continue
        limit_s = job.left_s() / (len(runs) - place) * 1.5 if place + 1 < len(runs) else job.left_s()
        if not _is_in_order(run, environment, device.type, limit_s, recorder):
            failed.append(str(run))
    if failed:
        raise RuntimeError(f"not in order: {'; '.join(failed)}")


def _environment(recorder: Recorder) -> tuple[str, ...]:
    """Return the flags of an environment that is installed: that of the presets, or one that needs less."""
    if find_spec("gymnasium") is None:
        raise SkippedError("gymnasium is not installed, and without it there is no environment")
    if find_spec("Box2D") is not None:
        return ()
    recorder.note("Box2D is not installed: the runs are on CartPole-v1's numbers in place of CarRacing's pictures.")
    return ("--env.id", "CartPole-v1", "--env.action_repeat", "1")


def _is_in_order(run: Run, environment: Sequence[str], device: str, limit_s: float, recorder: Recorder) -> bool:
    """Make a run, take it down, and return whether it is in order."""
    with tempfile.TemporaryDirectory(prefix="dreamfleet-run-") as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "dreamfleet", "train", *(["--inline"] if run.inline else [])]
        for preset in run.presets:
            command += ["--preset", preset]
        command += [*run.flags, *environment, "--run", str(folder)]
        say(" ".join(command[2:]))
        begun = time.monotonic()
        code, output = call(command, limit_s)
        seconds = time.monotonic() - begun
        metrics = read_metrics(folder)
    said = [line.removeprefix("learner: ") for line in output if line.startswith("learner: ")]
    losses = [row["loss/total"] for row in metrics if "loss/total" in row]
    updates = metrics[-1]["updates"] if metrics else 0
    fault = _fault(code, updates, losses, device, said)
    cells = (
        str(run),
        fault or "in order",
        f"{seconds:.0f}",
        metrics[-1]["env_steps"] if metrics else 0,
        updates,
        f"{metrics[-1].get('fleet/updates_per_s', 0):.3g}" if metrics else "",
        f"{losses[0]:.4g} → {losses[-1]:.4g}" if losses else "",
        "; ".join(said[:4]),
    )
    recorder.row("short runs", _HEADINGS, cells)
    if fault:
        recorder.note(f"{run}: {fault}. Its last lines: {' ⏎ '.join(output[-6:])}")
    return not fault


def _fault(code: int | None, updates: float, losses: Sequence[float], device: str, said: Sequence[str]) -> str:
    """Return what is wrong with a run; nothing if it is in order."""
    if code is None:
        return "it did not end in its time"
    if code:
        return f"it ended with {code}"
    if not updates or not losses:
        return "it made no update"
    if losses[-1] != losses[-1]:
        return "its last loss is not a number"
    if not any(line.startswith(f"device: {device}") for line in said):
        return f"its learner did not say that it computes on {device}"
    return ""


def call(command: Sequence[str], limit_s: float, to_end_s: float = _TO_END_S) -> tuple[int | None, list[str]]:
    """Run a command; return its exit code, None if its time was up, and the lines of its output.

    When its time is up it is asked to end, as by Ctrl-C, and killed `to_end_s` later.
    """
    with tempfile.TemporaryFile("w+") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, text=True)  # noqa: S603
        try:
            code: int | None = process.wait(max(limit_s, 1.0))
        except subprocess.TimeoutExpired:
            code = None
            process.terminate()
            try:
                process.wait(to_end_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        stream.seek(0)
        return code, [line for line in stream.read().replace("\r", "\n").splitlines() if line.strip()]


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics; none if it wrote none."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a run that was killed
            break
    return rows
