"""Ray on this machine, for the parts that need it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray

from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.deploy.workers.ray_internals import local_node
from dreamfleet.replay.ray_replay import RayReplay, start_replay_servers
from dreamfleet.replay.shards import ShardPlan
from tests.bench.machine import ROOT
from tests.bench.recording import Recording

_PROCESSES = 32
"""Logical CPUs, so that all processes start; they share the real ones as the system's scheduler sees fit."""


@contextmanager
def local_ray() -> Iterator[None]:
    """Start Ray for the block; its workers import this checkout."""
    with joined_ray(None):
        yield


@contextmanager
def joined_ray(address: str | None) -> Iterator[None]:
    """Join a cluster for the block, or start Ray here if `address` is None; workers import this checkout.

    On the cluster's nodes this checkout must lie under the same path.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    start: dict[str, Any] = {"address": address}
    if address is None:
        # Ray would otherwise write an authentication token to the home of whoever measures.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        start = {"address": "local", "num_cpus": _PROCESSES, "include_dashboard": False}
    path = os.pathsep.join([str(ROOT / ".pkg"), str(ROOT)])
    variables = {"env_vars": {"PYTHONPATH": path}}
    with local_node() if address is None else nullcontext():
        ray.init(**start, log_to_driver=False, logging_level=logging.WARNING, runtime_env=variables)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def replay_server(
    directory: Path, recording: Recording, length: int, copies: int = 0, settings: ReplaySettings | None = None
) -> Iterator[Any]:
    """Give the handle of a replay's process that holds the recording, each of its streams this many times.

    Args:
        directory: where it stores.
        recording: its format, and what it is filled with.
        length: of the sequences to be sampled.
        copies: how many times each stream is stored.
        settings: of the replay; a capacity of 4 GB and no episode held out, unless given.
    """
    settings = settings or ReplaySettings(capacity_gb=4.0, held_out_every=0)
    (server,) = start_replay_servers([ShardPlan(directory, settings, seed=0)], recording.step_format, length)
    replay = RayReplay(server)
    try:
        for chunk in recording.chunks(actor=1000, copies=copies):  # an actor's number that no other has
            replay.append(chunk)
        yield server
    finally:
        replay.close()
