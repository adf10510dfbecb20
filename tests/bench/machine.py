"""What a run was made on: the machine, the versions of what matters, and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from dreamfleet import __version__

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = (
    "torch", "ray", "numpy", "gymnasium", "box2d", "zstandard", "opencv-python-headless", "torchrl", "tensordict",
)  # fmt: skip


def describe_machine() -> dict[str, str]:
    """Return what a figure depends on, ready to print."""
    import torch  # not at the top, for every process that this package starts

    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    return {
        "machine": f"{_processor()}, {cores} cores, {memory:.0f} GiB",
        "GPU": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "versions": ", ".join([f"dreamfleet {__version__}", *(f"{name} {_version(name)}" for name in _PACKAGES)]),
        "commit": describe_commit(),
    }


def busy_share() -> float:
    """Return how much of all cores is busy, 0 to 1, over the next two seconds."""
    return psutil.cpu_percent(interval=2) / 100


def _processor() -> str:
    """Return the processor's name, also its family where the name alone says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name", platform.machine())
    family = f" (family {found['cpu family']}, model {found['model']})" if {"cpu family", "model"} <= set(found) else ""
    return name + family


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def describe_commit() -> str:
    """Return the commit, and whether files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603, S607
        return done.stdout.strip()

    try:
        changed = [line for line in git("status", "--porcelain").splitlines() if "docs/results" not in line]
        return git("rev-parse", "--short=12", "HEAD") + (f" and {len(changed)} changed files" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
