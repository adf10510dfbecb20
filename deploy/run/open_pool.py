"""The pool of workers of a run: on Ray, or all in this process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from dreamfleet.common.formatting import counted
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run.prepare import RunSpec
from dreamfleet.deploy.run.session import StopRequest
from dreamfleet.deploy.workers.pool import Pool

if TYPE_CHECKING:
    from dreamfleet.deploy.workers.inline_pool import InlinePool
    from dreamfleet.deploy.workers.ray_pool import RayPool

log = logging.getLogger("dreamfleet")


def open_pool(spec: RunSpec, stop: StopRequest, inline: bool, address: str | None) -> Pool:
    """Return the pool, whose workers a stop interrupts, and say which it is."""
    pool: InlinePool | RayPool
    if inline:
        from dreamfleet.deploy.workers.inline_pool import InlinePool

        log.info("mode: inline, everything in this process")
        if spec.settings.acts_centrally:
            log.info("actors.inference central: inline, actors act by themselves, which gives the same actions")
        pool = InlinePool(spec.settings, spec.spaces, spec.run, stop)
        stop.then(pool.interrupt)
        return pool
    from dreamfleet.deploy.workers.ray_pool import RayPool

    where = f"Ray cluster at {address}" if address else "Ray on this machine"
    log.info("mode: %s, actors: %s", where, describe_actors(spec.settings))
    pool = RayPool(spec.settings, spec.spaces, spec.run, address, stop.asked)
    stop.then(pool.interrupt)
    return pool


def describe_actors(settings: Settings) -> str:
    """Return how many actors there are, of what, and whether another process acts for them."""
    if settings.train.dataset:
        return f"none, training on the dataset {Path(settings.train.dataset)}"
    count = "as many as there is room for" if settings.actors.count == "auto" else settings.actors.count
    text = f"{count}, of {counted(settings.actors.environments, 'environment')} each"
    if not settings.acts_by_weights:
        return f"{text}; actions are random (behaviour.kind), and no policy is learnt"
    return f"{text}; one process acts for all of them" if settings.acts_centrally else text
