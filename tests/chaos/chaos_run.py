"""A run to break: started as a process, broken at chosen or random moments, and counted from its files afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from command_runs import ROOT, still_running
from counted_streams import faults_of, faults_of_batch, read_streams
from patience import PATIENCE_S
from small_runs import small_settings

from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.state import read_state
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.interface import NotEnoughExperienceError
from dreamfleet.replay.report import verify
from dreamfleet.replay.shards import open_shards

LENGTH = 20
"""Actions per episode."""
TITLES = {
    "actor": "ray::ActorProcess",
    "learner": "ray::LearnerProcess",
    "replay": "ray::ReplayServer",
    "control": "gcs_server",
    "raylet": "raylet",
}
"""How the command lines of a run's processes begin; an evaluator is an actor too."""
FAULTS: Counter[str] = Counter()
"""Faults injected by all tests of this session, by kind."""


def chaos_settings(**changes: dict[str, Any]) -> Settings:
    """Return settings of a run of a model of nothing, on the counting environment; `changes` are sections."""
    sections: dict[str, dict[str, Any]] = {
        "env": {
            "id": "faulty_environment:make",
            "kwargs": {"length": LENGTH, "delay_s": 0.002},
            "image_size": 0,
        },
        "model": {"vector_units": 8, "vector_layers": 1},
        "actors": {"count": 3, "environments": 2, "steps_per_order": 8, "order_timeout_s": 20.0},
        "replay": {"capacity_gb": 0.1, "held_out_every": 5},
        "learner": {"updates_per_order": 4, "publish_every": 8, "order_timeout_s": 60.0},
        "train": {"env_steps": 3001, "prefill": 100, "ratio": 4.0},
        "records": {"checkpoint_every": 10, "picture_every": 1000, "log_every_s": 1.0},
    }
    for name, section in changes.items():
        sections[name] = sections.get(name, {}) | section
    return small_settings(**sections)


class ChaosRun:
    """A run in a folder of its own; `start` may be called again after it has ended, which resumes it.

    Args:
        folder: for the run's directory, its witness and its outputs.
        seed: of the random moments; every message of a failure names it.
    """

    def __init__(self, folder: Path, seed: int, settings: Settings | None = None, inline: bool = False) -> None:
        self.directory = folder / "run"
        self.settings = settings or chaos_settings()
        self.random = random.Random(seed)
        self._name = f"seed {seed}"
        self._folder, self._inline = folder, inline
        self._witness, self._enough = folder / "witness.jsonl", folder / "enough"
        self._starts = self._marked = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._family: list[psutil.Process] = []

    # Its life -------------------------------------------------------------------------------------------------------

    def start(self, *flags: str) -> None:
        """Start or resume it."""
        self._starts += 1
        self._enough.unlink(missing_ok=True)
        file = self._folder / "settings.json"
        file.write_text(self.settings.model_dump_json())
        search = [str(ROOT / ".pkg"), str(ROOT / "tests" / "support")]
        own = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "PYTHONPATH": os.pathsep.join(search)}
        own |= {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "off", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        places = [str(path) for path in (self.directory, file, self._witness, self._enough)]
        driver = str(Path(__file__).with_name("driver.py"))
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, driver, *places, *(["--inline"] if self._inline else []), *flags],
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=own,
                start_new_session=True,
            )  # fmt: skip

    def wait_for(self, condition: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> None:
        """Wait for a condition while the run lives.

        Raises:
            AssertionError: with what the run printed, if it ends first or the time is over.
        """
        deadline = time.monotonic() + within_s
        while not condition():
            assert self.is_running, f"{self._name}: the run ended before {what}:\n{self.printed}"
            assert time.monotonic() < deadline, f"{self._name}: no {what} within {within_s:.0f} s:\n{self.printed}"
            time.sleep(0.05)

    def wait_for_more(self, kind: str, count: int) -> None:
        """Wait for this many more answers of a kind: "steps", "updates" or "checkpoint"."""
        wanted = len(self.witnessed(kind)) + count
        self.wait_for(lambda: len(self.witnessed(kind)) >= wanted, f"{count} more answers of '{kind}'")

    def linger(self, least_s: float, most_s: float) -> None:
        """Wait for a random time."""
        time.sleep(self.random.uniform(least_s, most_s))

    def stop(self) -> None:
        """Have it end cleanly, and see to it that it does."""
        self._enough.touch()
        assert self.end() == 0, f"{self._name}: {self.printed}"

    def end(self, within_s: float = 2 * PATIENCE_S) -> int:
        """Wait for its end and return its exit code; nothing that it started may be left running."""
        assert self.process
        self._remember_family()
        deadline = time.monotonic() + within_s
        while self.is_running:
            assert time.monotonic() < deadline, f"{self._name}: it did not end within {within_s:.0f} s:\n{self.printed}"
            self._remember_family()
            time.sleep(0.1)
        left = still_running(self._family)
        assert not left, f"{self._name}: left running: {left}"
        self._family = []
        return self.process.wait()

    def clean_up(self) -> None:
        """End all that is left of it, whatever the test found."""
        if self.is_running:
            self._remember_family()
            os.killpg(self.process.pid, signal.SIGKILL)  # type: ignore[union-attr]
            self.process.wait()  # type: ignore[union-attr]
        for process in self._family:
            if process.is_running():
                process.kill()

    # Faults ---------------------------------------------------------------------------------------------------------

    def kill(self, role: str) -> bool:
        """Kill a random process of a role by SIGKILL, or the driver; False if there is none.

        Nothing is asked of the process: it may be anywhere in its work.
        """
        if role == "driver":
            assert self.process
            self._remember_family()
            self.process.kill()
            self.process.wait()
            for process in still_running(self._family, within_s=15.0):
                process.kill()  # two of Ray's agents would take a minute to find out
            self._family = []
        else:
            found = self.processes(role)
            if not found:
                return False
            self.random.choice(found).kill()
        FAULTS[f"SIGKILL of {_with_article(role)}"] += 1
        return True

    def freeze(self, role: str) -> list[psutil.Process]:
        """Stop all processes of a role by SIGSTOP, and return them."""
        found = self.processes(role)
        for process in found:
            process.suspend()
        FAULTS[f"SIGSTOP of {_with_article(role)}"] += len(found)
        return found

    def signal(self, number: signal.Signals, to_group: bool = False) -> None:
        """Send the driver a signal, or its whole process group, as a terminal does."""
        assert self.process
        self._remember_family()
        (os.killpg if to_group else os.kill)(self.process.pid, number)
        FAULTS[f"{number.name} of the driver"] += 1

    # What can be seen of it -----------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the driver lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def _output(self) -> Path:
        return self._folder / f"output-{self._starts}.txt"

    @property
    def printed(self) -> str:
        """The last that the newest start printed."""
        return self._output.read_text(errors="replace")[-6000:] if self._output.exists() else ""

    @property
    def log(self) -> str:
        """The run's log."""
        file = self.directory / "train.log"
        return file.read_text() if file.exists() else ""

    def mark(self) -> None:
        """Have `since` begin here."""
        self._marked = len(self.log)

    @property
    def since(self) -> str:
        """The run's log since `mark`."""
        return self.log[self._marked :]

    def family(self) -> list[psutil.Process]:
        """Return the driver and all that descends from it and lives."""
        assert self.process
        driver = psutil.Process(self.process.pid)
        return [driver, *driver.children(recursive=True)]

    def processes(self, role: str) -> list[psutil.Process]:
        """Return the living processes of a role."""
        found = []
        for process in self._remember_family():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and _plays(process, TITLES[role]):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def witnessed(self, kind: str) -> list[dict[str, Any]]:
        """Return the answers of a kind since the first start."""
        lines = self._witness.read_bytes().splitlines() if self._witness.exists() else []
        return [fact for fact in map(json.loads, lines) if fact["kind"] == kind]

    def _remember_family(self) -> list[psutil.Process]:
        """Return all that descends from the driver; what was seen once is remembered after the driver's death."""
        if self.is_running:
            try:
                driver = psutil.Process(self.process.pid)  # type: ignore[union-attr]
                now = driver.children(recursive=True)
            except psutil.NoSuchProcess:
                now = []
            known = set(self._family)
            self._family += [process for process in now if process not in known]
        return list(self._family)

    # The ledger -----------------------------------------------------------------------------------------------------

    def check(self, is_complete: bool) -> None:
        """Count all steps on the disk, and compare them with all that was ever acknowledged.

        Args:
            is_complete: whether the run has ended with all its steps and updates.
        """
        settings, name = self.settings, self._name
        step_format = StepFormat(Spaces.from_json(json.loads((self.directory / "spaces.json").read_text())))
        streams = read_streams(self.directory / "replay", step_format)
        assert verify(self.directory / "replay") == [], name
        for key, steps in streams.items():
            assert faults_of(steps, LENGTH) == [], f"{name}: {key}"
        seeds = [steps["count"][0, 0] for steps in streams.values()]
        assert len(set(seeds)) == len(seeds), f"{name}: one incarnation is stored under two names"
        stored: Counter[tuple[int, int]] = Counter()
        for (actor, incarnation, _), steps in streams.items():
            stored[actor, incarnation] += len(steps["reward"])
        acknowledged: Counter[tuple[int, int]] = Counter()
        for fact in self.witnessed("steps"):
            acknowledged[fact["actor"], fact["incarnation"]] += fact["steps"]
        for key, count in acknowledged.items():
            assert stored[key] >= count, f"{name}: (actor, incarnation) {key}: {count - stored[key]} steps are lost"
        ratio = TrainRatio.of(settings)
        for fact in self.witnessed("updates"):
            allowed = ratio.updates_allowed(fact["env_steps"])
            assert fact["updates"] <= allowed, f"{name}: {fact['updates']} updates, {allowed} are allowed"
        self._check_samples(step_format)
        if is_complete:
            assert sum(stored.values()) == settings.train.env_steps, name
            assert self.witnessed("updates")[-1]["updates"] == ratio.updates, name
            state = read_state(self.directory)
            assert state, name
            assert state.state == "finished", f"{name}: {state.reason}"
            assert (state.counters["env_steps"], state.counters["updates"]) == (ratio.env_steps, ratio.updates), name

    def _check_samples(self, step_format: StepFormat) -> None:
        """Draw sequences: each must be as it was played."""
        settings = self.settings
        directory, length = self.directory / "replay", settings.learner.sequence_length
        replay = open_shards(directory, step_format, settings.replay, length, seed=1, read_only=True)
        try:
            for number in range(20):
                batch = decompress(replay.sample(number, 16), step_format)
                assert faults_of_batch(batch, LENGTH) == [], self._name
        except NotEnoughExperienceError:
            assert not self.witnessed("updates"), self._name
        finally:
            replay.close()


def _with_article(role: str) -> str:
    return f"an {role}" if role[0] in "aeiou" else f"the {role}"


def _plays(process: psutil.Process, title: str) -> bool:
    command = process.cmdline()
    return bool(command) and (command[0].startswith(title) or Path(command[0]).name == title)
