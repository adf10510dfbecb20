"""An agent that makes updates as a learner does, on the device and in the way that is to be measured.

Shapes: B batch, T time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.networks import make_networks
from dreamfleet.learner.hardware import Hardware, Mode
from dreamfleet.learner.held_out import seed_torch
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.updater import Update, Updater
from tests.bench.agents import SPACES, make_batch, picture_spaces
from tests.bench.gpu import devices
from tests.bench.gpu.devices import Mark, forget_peak, peak_gib, wait_for
from tests.bench.gpu.job import Job

ACTION = "box of 6"
_TINY = ("debug",)
_TINY_FLAGS = [("learner.batch_size", "2"), ("learner.sequence_length", "4"), ("behaviour.horizon", "2")]


class NotThisWayError(Exception):
    """Updates cannot be made in the way that was asked for; the text says why."""


def settings_of(presets: Sequence[str], dry: bool) -> Settings:
    """Return the presets' settings; in a dry run the smallest agent of their kind."""
    return resolve([*presets, *(_TINY if dry else ())], _TINY_FLAGS if dry else [])


class _Warnings(logging.Handler):
    """Keeps what was warned of, until it is taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's text."""
        self.said.append(record.getMessage())

    def take(self) -> str:
        """Return what was warned of since the last call, as one text."""
        said, self.said = "; ".join(self.said), []
        return said


WARNINGS = _Warnings()
logging.getLogger("dreamfleet").addHandler(WARNINGS)


class Trial:
    """An agent that learns from one batch again and again.

    Attributes:
        settings: its own.
        batch: on its device, (B, T, …).

    Args:
        way: in which updates are to be made; on a CPU, where it is dry, all are eager.
        bfloat16: None for what a run on this device would take.
        insists: whether they are made so also where the learner finds that this gives other results.
    """

    def __init__(
        self, settings: Settings, device: torch.device, way: Mode, bfloat16: bool | None = None, insists: bool = True
    ) -> None:
        self.settings, self.device = settings, device
        self._way: Mode = way if devices.is_gpu(device) else "eager"
        spaces = picture_spaces(SPACES[ACTION])
        torch.manual_seed(0)
        self.batch = make_batch(spaces, settings.learner.batch_size, settings.learner.sequence_length, device)
        networks = make_networks(spaces, settings).to(device)
        self.agent, self.actor_critic, _ = networks
        lower = devices.is_gpu(device) if bfloat16 is None else bfloat16
        hardware = Hardware(device, lower, 1, (), self._way, insists)
        self.updater = Updater(networks, settings, hardware)
        self._made = 0
        self._last: Update | None = None

    @property
    def parameters(self) -> int:
        """Numbers that its optimiser changes."""
        groups = self.updater.optimiser.param_groups
        return sum(parameter.numel() for group in groups for parameter in group["params"])

    def update(self) -> Update:
        """Make one update; as in a learner, whether the one before it was finite is read once it is under way."""
        self._made += 1
        seed_torch(0, "update", self._made)
        made, before = self.updater.update(self._made, self.batch, Stopwatch()), self._last
        self._last = made
        assert before is None or before.sound, f"update {self._made - 1} was not finite: {before.not_finite}"
        return made

    def prepare(self) -> None:
        """Compile and capture, as a learner does before its first order."""
        self.updater.prepare(self.batch)

    def check_way(self) -> None:
        """Raise if updates are not made in the way that was asked for."""
        if self.updater.mode != self._way:
            why = WARNINGS.take() or "the log does not say why"
            raise NotThisWayError(f"updates are {self.updater.mode} in place of {self._way}: {why}")

    def state(self) -> dict[str, Tensor]:
        """Return all that was learnt, and the optimiser's moments, as a copy."""
        found = {f"agent.{name}": value for name, value in self.agent.state_dict().items()}
        if self.actor_critic is not None:
            found |= {f"behaviour.{name}": value for name, value in self.actor_critic.state_dict().items()}
        for number, moments in self.updater.optimiser.state_dict()["state"].items():
            found |= {f"moments.{number}.{name}": value for name, value in moments.items() if torch.is_tensor(value)}
        return {name: value.detach().clone() for name, value in found.items()}


@dataclass(frozen=True)
class Pace:
    """How long updates take.

    Attributes:
        device_ms: from the beginning of one update on the device to that of the next, median.
        host_ms: that the host spends on giving one to the device, median.
        first_s: until the first one was made, with compiling and capturing.
        peak_gib: the device's memory at its fullest; 0 on a CPU.
        updates: that were measured.
    """

    device_ms: float
    host_ms: float
    first_s: float
    peak_gib: float
    updates: int


def measure_pace(trial: Trial, job: Job, most_s: float, checks: bool = True) -> Pace:
    """Make updates one upon the other for `most_s` seconds at most, after some that do not count.

    Args:
        checks: whether to raise if they are not made in the way that was asked for.
    """
    device = trial.device
    forget_peak(device)
    begun = time.perf_counter()
    trial.prepare()
    trial.update()
    wait_for(device)
    first_s = time.perf_counter() - begun
    for _ in range(job.choose(5, 1)):
        trial.update()
    wait_for(device)
    if checks:
        trial.check_way()
    marks, hosts, ends = [Mark(device)], [], time.monotonic() + most_s
    for _ in range(job.choose(200, 2)):
        begun = time.perf_counter()
        trial.update()
        hosts.append(time.perf_counter() - begun)
        marks.append(Mark(device))
        if time.monotonic() > ends and len(hosts) >= _FEWEST:
            break
    wait_for(device)
    took = [later.ms_since(mark) for mark, later in pairwise(marks)]
    return Pace(median(took), 1000 * median(hosts), first_s, peak_gib(device), len(took))


_FEWEST = 5


@dataclass(frozen=True)
class Kernel:
    """A kernel of an update: how often it is launched, and its milliseconds, in one update."""

    name: str
    launches: float
    ms: float


def profile_updates(trial: Trial, updates: int) -> list[Kernel]:
    """Return the kernels of an update, the longest first; on a CPU its operations."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    is_gpu = devices.is_gpu(trial.device)
    wait_for(trial.device)
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(updates):
            trial.update()
        wait_for(trial.device)
    wanted = DeviceType.CUDA if is_gpu else DeviceType.CPU
    found = []
    for event in profiler.key_averages():
        if event.device_type != wanted or getattr(event, "is_user_annotation", False):
            continue
        took_us = event.self_device_time_total if is_gpu else event.self_cpu_time_total
        found.append(Kernel(event.key, event.count / updates, took_us / 1000 / updates))
    return sorted(found, key=lambda kernel: -kernel.ms)


def arithmetic(trial: Trial) -> float:
    """Return the floating-point operations of an (eager) update, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        trial.update()
    return float(counter.get_total_flops())
