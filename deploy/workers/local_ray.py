"""Ray on this machine, for this process alone."""

from __future__ import annotations

import logging
from typing import Any

import ray

START_TRIALS = 3
"""How often Ray is started before it is given up: its node dies where an agent of its own is not up in time."""

log = logging.getLogger("dreamfleet")


def start_local_ray(cpus: int, **options: Any) -> None:
    """Start Ray with so many logical CPUs, again where it was not up in time.

    Args:
        cpus: logical ones, of which actors and learner take one each.
        options: further ones of `ray.init`.

    Raises:
        RuntimeError: it was not up in time at any trial, or what `ray.init` raises else.
    """
    for trial in range(1, START_TRIALS + 1):
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
        except Exception as error:
            if type(error) is not Exception:  # Ray has no class for a node that is late
                raise
            ray.shutdown()
            if trial == START_TRIALS:
                raise RuntimeError(f"{error} It was tried {START_TRIALS} times.") from error
            log.warning("Ray was not up in time on this machine, which is busy, and is started again: %s", error)
        else:
            return
