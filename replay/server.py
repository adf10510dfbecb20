"""The replay as a process: a thin Ray shell around `Replay`."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.process_log import LogRecord, WorkerLog
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.packed import PackedBatch
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.shards import ShardPlan
from dreamfleet.replay.shortage import Shortage

LOCK_WAIT_S = 60.0
"""How long a new server waits for the directory: the process that it replaces may take a moment to die."""
START_TIMEOUT_S = 300.0
"""A server that has not opened its directory for so long counts as failed; 5 million steps take seconds."""
_CONCURRENCY = {"insert": 1, "sample": 2, "health": 1}


class ReplayServer:
    """Owns a replay directory; a server that dies is started again on the same node, and finds all it acknowledged.

    Appending, sampling and questions about its health run in threads of their own, so that none waits behind another.
    The first call opens the directory: an error in a Ray actor's constructor cannot be told in one sentence.
    The arguments are `Replay`'s; `step_format` is what `StepFormat.to_json` gives.
    """

    def __init__(
        self,
        directory: str,
        step_format: dict[str, Any],
        settings: ReplaySettings,
        sequence_length: int,
        seed: int,
        read_only: bool = False,
    ) -> None:
        self._arguments = (Path(directory), StepFormat.from_json(step_format), settings, sequence_length, seed)
        self._read_only = read_only
        self._log = WorkerLog.install()
        self._opened: Replay | None = None
        self._opening = threading.Lock()

    def _open(self) -> Replay:
        """Return the replay, opened by the first call."""
        with self._opening:
            if self._opened is None:
                self._opened = Replay(*self._arguments, lock_wait_s=LOCK_WAIT_S, read_only=self._read_only)
            return self._opened

    @ray.method(concurrency_group="insert")
    def append(self, record: bytes) -> bool:
        """See `Replay.append`."""
        return self._open().append(record)

    @ray.method(concurrency_group="insert")
    def retire(self, actor: int, incarnation: int) -> int:
        """See `Replay.retire`; in turn with the chunks, so that those that came before are stored and counted."""
        return self._open().retire(actor, incarnation)

    @ray.method(concurrency_group="insert")
    def sync(self) -> None:
        """See `Replay.sync`."""
        self._open().sync()

    @ray.method(concurrency_group="sample")
    def sample(self, batch_number: int, batch_size: int) -> PackedBatch:
        """See `Replay.sample`."""
        return self._open().sample(batch_number, batch_size)

    @ray.method(concurrency_group="sample")
    def sample_held_out(self, batch_number: int, batch_size: int, length: int) -> PackedBatch | None:
        """See `Replay.sample_held_out`."""
        return self._open().sample_held_out(batch_number, batch_size, length)

    @ray.method(concurrency_group="health")
    def stats(self) -> dict[str, float]:
        """See `Replay.stats`."""
        return self._open().stats()

    @ray.method(concurrency_group="health")
    def counters(self) -> tuple[int, int, int]:
        """See `Replay.counters`."""
        return self._open().counters()

    @ray.method(concurrency_group="health")
    def shortage(self) -> Shortage:
        """See `Replay.shortage`."""
        return self._open().shortage()

    @ray.method(concurrency_group="health")
    def log_records(self) -> list[LogRecord]:
        """Return what this process logged since the last call, such as what was damaged; 200 records at most."""
        return self._log.take()

    @ray.method(concurrency_group="health")
    def health(self) -> int:
        """Return the id of this process, once the directory is open."""
        self._open()
        return os.getpid()

    @ray.method(concurrency_group="insert")
    def close(self) -> None:
        """See `Replay.close`."""
        self._open().close()

    def __ray_shutdown__(self) -> None:
        if self._opened is not None:
            self._opened.close()


def start_replay_server(
    directory: Path,
    step_format: StepFormat,
    settings: ReplaySettings,
    sequence_length: int,
    seed: int,
    read_only: bool = False,
    **options: Any,
) -> Any:
    """Start a replay server on this node, which has the directory, and return its handle once it is open.

    Args:
        directory: as `Replay`'s.
        step_format: as `Replay`'s, and so on.
        settings: see `Replay`.
        sequence_length: see `Replay`.
        seed: see `Replay`.
        read_only: see `Replay`.
        **options: of the Ray actor, instead of the usual ones.

    Raises:
        UserError: if the directory is in use or holds something else.
        RunFailedError: if the process does not start.
    """
    plan = ShardPlan(directory, settings, seed)
    return start_replay_servers([plan], step_format, sequence_length, read_only, **options)[0]


def start_replay_servers(
    plans: Sequence[ShardPlan],
    step_format: StepFormat,
    sequence_length: int,
    read_only: bool = False,
    **options: Any,
) -> list[Any]:
    """Start a server for each shard on this node, which has their directories, and return their handles in order.

    They open their directories side by side; if one cannot, none is left running. Arguments and errors are those of
    `start_replay_server`, and `plans` what `shards.plan_shards` gives.
    """
    usual: dict[str, Any] = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
        "runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}},
    }
    remote: Any = ray.remote  # its type hints know nothing of concurrency groups
    actor = remote(concurrency_groups=_CONCURRENCY)(ReplayServer).options(**(usual | options))
    told = step_format.to_json()
    servers = [
        actor.remote(str(plan.directory.resolve()), told, plan.settings, sequence_length, plan.seed, read_only)
        for plan in plans
    ]
    try:
        for server, plan in zip(servers, plans, strict=True):
            _wait_until_open(server, plan.directory)
    except BaseException:
        for server in servers:
            ray.kill(server)
        raise
    return servers


def _wait_until_open(server: Any, directory: Path) -> None:
    try:
        ray.get(server.health.remote(), timeout=START_TIMEOUT_S)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise RunFailedError(f"the replay server on {directory} did not start: {error}") from error
    except (RayActorError, GetTimeoutError) as error:
        raise RunFailedError(f"the replay server on {directory} did not start: {error}") from error
