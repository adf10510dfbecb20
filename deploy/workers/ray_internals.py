"""What only Ray's private interface tells, and what breaks here when it changes. Tried with Ray 2.60."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

_LOCAL_NODE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_task_events_report_interval_ms": "0"}
"""Variables of a node on this machine: it listens on loopback, and keeps no record of each call."""


@contextmanager
def local_node() -> Iterator[None]:
    """Within, a node that is started on this machine is for this machine, and does not grow with the calls it makes.

    Ray turns a node address of 127.0.0.1 into the outer one, unless it takes clusters for impossible, as it does by
    default where a firewall would ask the user about each process: then all its processes listen on loopback. It reads
    that variable once, as it is imported, so the constant is set too. If either goes, a test of local Ray finds open
    ports.

    The control process keeps records of up to 100,000 calls for `ray list tasks`, 3 kB each: a thousand orders a second
    took 150 MB in two minutes, and none without them. Variables that the user has set stay as they are.
    """
    from ray._private import ray_constants

    was_possible = ray_constants.ENABLE_RAY_CLUSTER
    ours = {name: value for name, value in _LOCAL_NODE.items() if name not in os.environ}
    os.environ.update(ours)
    ray_constants.ENABLE_RAY_CLUSTER = was_possible and "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in ours
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was_possible
        for name in ours:
            del os.environ[name]


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Within, `ray.init` leaves SIGTERM to whoever has it.

    Ray's own handler ends the process at once, without a checkpoint and with exit code 15, also in the seconds that
    Ray takes to start. If the function goes, a SIGTERM within these seconds does so again; at the end it is taken back.
    Ray's library takes the signal too, as it connects, and aborts: that moment, a fraction of a second, is left to it.
    """
    utils: Any = ray._private.utils
    name, kept = "set_sigterm_handler", signal.getsignal(signal.SIGTERM)
    rays = getattr(utils, name, None)
    setattr(utils, name, lambda _: None)
    try:
        yield
    finally:
        setattr(utils, name, rays)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, kept)


def have_started(actors: Sequence[Any]) -> list[bool]:
    """Return for each of these Ray actors of this job whether its process has started.

    This alone tells them from those that wait for room: the public state API needs a dashboard, and a placement group
    for each actor would not spread them. Ray calls the function a debugging aid. If it goes, an actor that never
    answers its greeting is taken to be waiting for room, and is not replaced; and a cell of a sweep that is asked to
    stop is killed. An actor that Ray moved to another node with its old id would count as started.
    """
    from ray._private import state

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    found: dict[str, Any] = state.actors(job_id=job)  # one call, however many wait
    return [bool(found.get(actor._actor_id.hex(), {}).get("Pid")) for actor in actors]


def logs_folder() -> Path | None:
    """Return the folder of Ray's logs on this machine, or None if it cannot be told.

    If it goes, what a worker's process said at last is not in the sentence about its death.
    """
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    return Path(node.get_logs_dir_path()) if node is not None else None


def send_output_to(route: Callable[[Mapping[str, Any], Callable[[], None]], None]) -> None:
    """Have a function decide what becomes of what Ray would print here: its own messages, and its workers' output.

    To be called before Ray is started. If it goes, all of it is on the terminal, as Ray has it.

    Args:
        route: called with what Ray would print (`lines`, `pid`, `is_err`), and a function that prints it.
    """
    from ray._private import worker

    original = getattr(worker.print_to_stdstream, "original", worker.print_to_stdstream)

    def print_to_stdstream(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        route(data, lambda: original(data, ignore_prefix))

    print_to_stdstream.original = original  # type: ignore[attr-defined]
    worker.print_to_stdstream = print_to_stdstream


def token_mode() -> str:
    """Return `token` or `disabled` as Ray has it in this process, or `unknown` for a Ray that does not say.

    There is no public question for it. If it goes, `dreamfleet doctor` says that it does not know.
    """
    import importlib

    raylet: Any = importlib.import_module("ray._raylet")
    if not hasattr(raylet, "get_authentication_mode"):
        return "unknown"
    return "token" if raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN else "disabled"
