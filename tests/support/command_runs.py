"""`python -m dreamfleet` in a process and a session of its own, as its users start it, to watch and to signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from patience import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent.parent

PRESET = """
env: {id: "my_world:make", kwargs: {picture: true, image: 16, length: 20, delay_s: 0.004}, image_size: 0}
actors: {count: 2, environments: 2, steps_per_order: 16}
replay: {capacity_gb: 0.1, held_out_every: 5}
model: {encoder: strided, depth: 4, embedding: 16, deterministic: 16, stochastic: 4, hidden: 16, reward_units: 8}
learner: {batch_size: 4, sequence_length: 8, device: cpu, threads: 1, updates_per_order: 4, publish_every: 8}
train: {env_steps: 1003, prefill: 200, ratio: 2.0}
records: {log_every_s: 0.5, checkpoint_every: 15, picture_every: 25, picture_context: 3, picture_steps: 12}
"""

WORLD = """
from faulty_environment import make
from fixed_environment import FixedEnvironment
from gymnasium import spaces

def broken():
    raise RuntimeError("the simulator is not installed")

def unsupported():
    return FixedEnvironment(spaces.Text(5), spaces.Discrete(2))
"""


class Command:
    """A command that runs.

    Args:
        folder: its working directory.
        arguments: what follows `dreamfleet`.
        variables: of its environment, beside the few it gets.
    """

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self._out, self._err = (folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        search = [str(ROOT / ".pkg"), str(ROOT / "tests" / "support")]
        variables |= {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": os.pathsep.join(search)}
        variables.setdefault("MUJOCO_GL", "off")  # nothing here draws with it, so no library need be tried
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "dreamfleet", *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=out,
                stderr=err, env=variables, start_new_session=True,
            )  # fmt: skip

    @property
    def out(self) -> str:
        """What it printed."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it printed as errors, but for Ray's own warnings."""
        lines = self._err.read_text().splitlines(keepends=True)
        return "".join(line for line in lines if "authentication_token_setup.py" not in line)

    def end(self, within_s: float = PATIENCE_S) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(within_s)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until it has printed a text this many times."""
        deadline = time.monotonic() + PATIENCE_S
        while self.out.count(text) < times:
            assert self.process.poll() is None, f"it ended before it printed '{text}':\n{self.out}\n{self.err}"
            assert time.monotonic() < deadline, f"it did not print '{text}':\n{self.out}\n{self.err}"
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        """Return its process and all that descend from it."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def interrupt(self) -> None:
        """Send what Ctrl-C in a terminal sends: SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """End it with SIGKILL, and whatever it started if that does not end by itself."""
        family = self.family() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for process in still_running(family, within_s=10):
            process.kill()


def still_running(family: list[psutil.Process], within_s: float = PATIENCE_S) -> list[psutil.Process]:
    """Return those of the processes that have not ended within this many seconds; one that waits to be reaped has."""
    deadline = time.monotonic() + within_s
    while (alive := [process for process in family if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def write_workshop(folder: Path) -> None:
    """Write a preset of a run of seconds, and a user's own environment, into a folder."""
    (folder / "tiny.yaml").write_text(PRESET)
    (folder / "my_world.py").write_text(WORLD)
