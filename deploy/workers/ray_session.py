"""Ray's start on this machine, for this process alone, or its connection to a cluster."""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.workers.ray_internals import local_node, send_output_to, sigterm_kept
from dreamfleet.deploy.workers.ray_output import OutputRouter

START_TRIALS = 3
"""Tries to start Ray: on a busy machine its node dies if one of its agents is not up in time."""

log = logging.getLogger("dreamfleet")


def start_local_ray(cpus: int, asked_to_stop: Callable[[], bool] = bool, **options: Any) -> None:
    """Start Ray with this many logical CPUs, for this machine alone, and again if it was not up in time.

    Args:
        asked_to_stop: whether it is not to be tried again.

    Raises:
        RuntimeError: if it was not up in time at any trial; `ray.init` may raise other errors.
    """
    keep_token_private()
    for trial in range(1, START_TRIALS + 1):
        try:
            with local_node():
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
        except Exception as error:
            if type(error) is not Exception:  # Ray has no class for a node that is late
                raise
            ray.shutdown()
            if asked_to_stop():
                raise RuntimeError(f"{error} It was not tried again, since a stop was asked for.") from error
            if trial == START_TRIALS:
                raise RuntimeError(f"{error} It was tried {START_TRIALS} times.") from error
            log.warning("Ray was not up in time on this machine, which is busy, and is started again: %s", error)
        else:
            return


def keep_token_private() -> None:
    """Make the token with which Ray admits processes, as Ray would, but readable by this user alone.

    A token that is there is kept, and hidden from others; one that the environment names is the user's own affair.
    """
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if named or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    file = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # a home that cannot be written: Ray says so
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                file.chmod(0o600)
        else:
            with os.fdopen(descriptor, "w") as written:
                written.write(secrets.token_hex(32))


def start_ray(settings: Settings, address: str | None, asked_to_stop: Callable[[], bool] = bool) -> None:
    """Start Ray on this machine with a logical CPU for each process, or join the cluster at `address`.

    Args:
        asked_to_stop: whether a start that failed is not to be tried again.

    Raises:
        RunFailedError: if Ray does not start.
        UserError: if the cluster cannot be joined.
    """
    send_output_to(OutputRouter())
    try:
        with sigterm_kept():
            if address:
                ray.init(address=address, logging_level=logging.ERROR)
            else:
                # A logical CPU for each actor and rank of the learner: the system's scheduler shares out the real ones.
                count = settings.actors.count
                actors = max(1, (os.cpu_count() or 1) - 1) if count == "auto" else count
                start_local_ray(actors + settings.learner.cpu_ranks, asked_to_stop, logging_level=logging.ERROR)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        if address:
            raise UserError(f"flag --address: {_why_not_joined(address, error)}") from None
        raise RunFailedError(f"Ray did not start: {error}") from error


def _why_not_joined(address: str, error: BaseException) -> str:
    chain: BaseException | None = error
    while chain is not None:
        if "uthenticat" in f"{type(chain).__name__} {chain}":
            return (
                f"the cluster at '{address}' asks for its token: put it into ~/.ray/auth_token (mode 600), as `ray up` "
                "does on its nodes."
            )
        chain = chain.__cause__ or chain.__context__
    return f"no Ray cluster answers at '{address}': {error}"
