"""`dreamfleet replay info` and `verify`: looks into a replay directory without changing it."""

from __future__ import annotations

from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.replay.report import describe
from dreamfleet.replay.report import verify as verify_directory


def info(directory: Path) -> int:
    """Print what a replay holds, and if it has several shards what each does; return the exit code."""
    for name, value in describe(_replay_directory(directory)).items():
        print(f"{name:<22} {value}")
    return 0


def verify(directory: Path) -> int:
    """Check every record and print what is wrong; return 0 if nothing is, else 1."""
    faults = verify_directory(_replay_directory(directory))
    for fault in faults:
        print(fault)
    print("no fault found" if not faults else f"{len(faults)} faults found")
    return 1 if faults else 0


def _replay_directory(directory: Path) -> Path:
    """Return the replay in a run's directory, or the directory itself: a replay's, or one shard's."""
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory: give a run's directory, a replay's or a shard's.")
    inner = directory / "replay"
    return inner if inner.is_dir() else directory
