"""As many updates of Dreamer V3 12m on a real task as the time allows, with its curve and what it imagines."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tests.bench.gpu.findings import Recorder, SkippedError, say
from tests.bench.gpu.job import Job
from tests.bench.gpu.trains import call, read_metrics

METHOD = """
`dreamfleet train --preset dreamer_v3 --preset size_12m` with a suite's preset for the time that is left, ended as by
Ctrl-C, on Ray where it is installed; then `dreamfleet dream`. The curve is the mean return of the episodes that ended
within two seconds, while exploring; after so few updates it shows that a run works, not what it reaches.
"""
_TO_END_S = 30.0
"""For the last checkpoint, the pictures and the page."""
_TO_DREAM_S = 25.0
_HEADINGS = ("seconds", "env steps", "updates", "updates/s", "env steps/s", "return", "loss", "KL", "reconstruction")
_ROWS = 12
_SHARES = {
    "learner/wait_fraction": "waiting for batches",
    "learner/transfer_fraction": "waiting for their copies",
    "learner/forward_backward_fraction": "giving the device its work",
    "learner/confirm_fraction": "waiting for the device",
    "learner/publish_fraction": "publishing",
}
"""What a learner spends its time on, by metric."""


@dataclass(frozen=True)
class Task:
    """A task: its name, the flags that choose it, and the modules it needs."""

    name: str
    flags: tuple[str, ...]
    modules: tuple[str, ...]


_CART_POLE = Task("CartPole from its four numbers", ("--env.id", "CartPole-v1"), ("gymnasium",))
TASKS = (
    Task("DM Control walker walk from pictures", ("--preset", "dmc_vision"), ("gymnasium", "shimmy", "dm_control")),
    Task("CarRacing from pictures", ("--preset", "carracing"), ("gymnasium", "Box2D", "pygame")),
    _CART_POLE,
)
"""The first that works here is taken."""


def measure(job: Job, recorder: Recorder) -> None:
    """Train, and take down the curve."""
    device = job.device
    task = _CART_POLE if job.dry else _choose(recorder)
    inline = job.dry or find_spec("ray") is None
    if inline and not job.dry:
        recorder.note("Ray is not installed: the run is in one process, and collects and trains by turns.")
    with tempfile.TemporaryDirectory(prefix="dreamfleet-run-") as scratch:
        run = Path(scratch) / "run"
        command = [sys.executable, "-m", "dreamfleet", "train", *_flags(job, task, inline), "--run", str(run)]
        recorder.note(f"{task.name}, on {device.type}: `{' '.join(['dreamfleet', *command[3:-2]])}`.")
        for_training_s = job.left_s() - (0 if job.dry else _TO_END_S + _TO_DREAM_S)
        code, output = call(command, for_training_s, _TO_END_S)
        rows = read_metrics(run)
        _draw(job, recorder, task, rows)
        if code:
            raise RuntimeError(f"the run ended with {code}: {' ⏎ '.join(output[-6:])}")
        if not any("loss/total" in row for row in rows):
            raise RuntimeError(f"the run made no update in {for_training_s:.0f} s: {' ⏎ '.join(output[-6:])}")
        _dream(job, recorder, run)


def _choose(recorder: Recorder) -> Task:
    """Return the first task that works here, and say what is wrong with those before it."""
    for task in TASKS:
        missing = [name for name in task.modules if find_spec(name) is None]
        if missing:
            recorder.note(f"Not {task.name}: {' and '.join(missing)} not installed.")
            continue
        presets = [word for word in task.flags if not word.startswith("--")] if "--preset" in task.flags else []
        program = (
            "from dreamfleet.common.settings.resolve import resolve;"
            "from dreamfleet.actors.environments.make import probe_environment;"
            f"print(probe_environment(resolve({['dreamer_v3', *presets]!r}).env))"
        )
        code, output = call([sys.executable, "-c", program], 30.0) if presets else (0, [])
        if code == 0:
            return task
        recorder.note(f"Not {task.name}: {output[-1] if output else 'it gave no answer in 30 s'}.")
    raise SkippedError("gymnasium is not installed, and without it there is no environment")


def _flags(job: Job, task: Task, inline: bool) -> list[str]:
    flags = ["--inline"] if inline else []
    flags += ["--preset", "dreamer_v3", "--preset", "size_12m", *task.flags]
    if job.dry:
        return [*flags, "--preset", "debug", "--env.id", "CartPole-v1", "--records.log_every_s", "0.5"]
    flags += ["--train.prefill", "1000", "--records.log_every_s", "2", "--records.evaluate_every", "0"]
    flags += ["--records.checkpoint_every", "1000000"]
    if not inline:
        flags += ["--actors.count", str(max(2, len(os.sched_getaffinity(0)) - 6))]
    return flags


def _draw(job: Job, recorder: Recorder, task: Task, rows: Sequence[dict[str, float]]) -> None:
    """Draw the curve, and take down some of its points."""
    from dreamfleet.learner.pictures.charts import BLUE, ORANGE, Curve, draw_chart, write_png

    points = [row for row in rows if "episode/return" in row]
    trained = [row for row in rows if "loss/total" in row]
    if trained:
        recorder.figure("learning updates", trained[-1]["updates"])
    for row in _some([row for row in rows if "fleet/updates_per_s" in row]):
        shown = [row.get(name) for name in ("episode/return", "loss/total", "loss/kl", "loss/reconstruction")]
        rates = [row["fleet/updates_per_s"], row["fleet/env_steps_per_s"]]
        cells = [row["run_seconds"], row["env_steps"], row["updates"], *rates, *shown]
        recorder.row(task.name, _HEADINGS, ["" if cell is None else f"{cell:.4g}" for cell in cells])
    shares = {name: [row[name] for row in trained if name in row] for name in _SHARES}
    divided = ", ".join(f"{_SHARES[name]} {np.median(found):.1%}" for name, found in shares.items() if found)
    if divided:
        recorder.note(f"Shares of the learner's time, medians: {divided}.")
    for name, kept, field, along, colour in (
        ("return", points, "episode/return", "env_steps", BLUE),
        ("loss", trained, "loss/total", "updates", ORANGE),
    ):
        if not kept:
            continue
        x, y = (np.array([row[key] for row in kept]) for key in (along, field))
        curve = Curve(name, x, y, colour)
        file = f"{job.prefix}-{name}.png"
        write_png(job.folder / file, draw_chart([curve], task.name, along.replace("_", " "), name, from_zero=False))
        recorder.picture(file)


def _some(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return a dozen rows at equal distances, the last among them."""
    places = sorted({round(place) for place in np.linspace(0, len(rows) - 1, min(_ROWS, len(rows)))})
    return [rows[place] for place in places]


def _dream(job: Job, recorder: Recorder, run: Path) -> None:
    """Have the run's model dream, and keep the picture."""
    say("dream")
    code, output = call(
        [sys.executable, "-m", "dreamfleet", "dream", "--run", str(run), "--sequences", "8"], _TO_DREAM_S
    )
    drawn = run / "dream" / "dream.png"
    if code or not drawn.exists():
        recorder.note(f"No dream: {' ⏎ '.join(output[-3:]) if code is not None else 'it took too long'}")
        return
    file = f"{job.prefix}-dream.png"
    shutil.copyfile(drawn, job.folder / file)
    recorder.picture(file)
    recorder.note(" ".join(line.strip() for line in output if "imagined step" in line) or "The dream was drawn.")
