"""What only Ray's private interface tells, and what breaks here when it changes. Tried with Ray 2.60."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray


def have_started(actors: Sequence[Any]) -> list[bool]:
    """Return for each of these Ray actors of this job whether its process has started.

    This alone tells them from those that wait for room: the public state API needs a dashboard, and a placement group
    for each actor would not spread them. Ray calls the function a debugging aid. If it goes, an actor that never
    answers its greeting is taken to be waiting for room, and is not replaced. An actor that Ray moved to another node
    with its old id would count as started.
    """
    from ray._private import state

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    found: dict[str, Any] = state.actors(job_id=job)  # one call, however many wait
    return [bool(found.get(actor._actor_id.hex(), {}).get("Pid")) for actor in actors]


def token_mode() -> str:
    """Return `token` or `disabled` as Ray has it in this process, or `unknown` for a Ray that does not say.

    There is no public question for it. If it goes, `dreamfleet doctor` says that it does not know.
    """
    import importlib

    raylet: Any = importlib.import_module("ray._raylet")
    if not hasattr(raylet, "get_authentication_mode"):
        return "unknown"
    return "token" if raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN else "disabled"
