"""The memory that this process's machine or container has."""

from __future__ import annotations

from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def usable_memory() -> tuple[int, int]:
    """Return the bytes of memory, in all and free, of the machine or of the container if it has less; -1 if unknown.

    Free is also what files that were read fill until it is needed.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return -1, -1
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    total, free = sizes["MemTotal"], sizes.get("MemAvailable", sizes["MemFree"])
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        return min(total, limit), min(free, limit - used + int(statistics.get("inactive_file", 0)))
    except (OSError, ValueError):  # not in a container, or one without a limit ("max")
        return total, free
