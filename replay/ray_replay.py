"""The replay on Ray: the process that owns a replay directory, its client, and the writer that sends it chunks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamfleet.common.errors import RunFailedError, UserError, first_line
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.process_log import LogRecord, WorkerLog
from dreamfleet.replay.interface import ReplayLostError, Shard
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.shards import ShardPlan

IN_FLIGHT = 8
"""Most chunks that a writer has sent and not yet seen acknowledged."""
CALL_TIMEOUT_S = 120.0
"""A server that has not answered within this time, its restarts included, counts as lost."""
LOCK_WAIT_S = 60.0
"""How long a new server waits for the directory: the process that it replaces may take a moment to die."""
START_TIMEOUT_S = 300.0
"""A server that has not opened its directory within this time counts as failed; 5 million steps take seconds."""
_RETRY_S = 0.5
_SLICE_S = 1.0
_CONCURRENCY = {"insert": 1, "sample": 2, "health": 1, "watch": 1}
WATCH_S = 2.0
"""How long a server keeps a call of `watch`: not for ever, since a process ends only once its calls are answered."""

P = ParamSpec("P")
T = TypeVar("T")


def _served(group: str, method: Callable[Concatenate[Replay, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Return a method of `ReplayServer` that calls this one of its replay, in the threads of a concurrency group."""

    @wraps(method)
    def call(server: ReplayServer, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(server.opened(), *args, **kwargs)

    return cast("Callable[..., T]", ray.method(concurrency_group=group)(call))


def _remote(method: Callable[Concatenate[Shard, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Return a method of `RayReplay` that calls the one of this name in the server."""

    @wraps(method)
    def call(client: RayReplay, *args: P.args, **kwargs: P.kwargs) -> T:
        return cast("T", client.call(method.__name__, *args, **kwargs))

    return call


class ReplayServer:
    """Owns a replay directory; a server that dies is started again on the same node, and finds all it acknowledged.

    Appending, sampling and questions about its health run in threads of their own, so that none waits behind another.
    The first call opens the directory: an error in a Ray actor's constructor cannot be reported in one sentence.
    `step_format` is what `StepFormat.to_json` gives.
    """

    def __init__(self, plan: ShardPlan, step_format: dict[str, Any], sequence_length: int, read_only: bool) -> None:
        self._arguments = (plan.directory, StepFormat.from_json(step_format), plan.settings, sequence_length, plan.seed)
        self._read_only = read_only
        self._log = WorkerLog.install()
        self._opened: Replay | None = None
        self._opening = threading.Lock()

    def opened(self) -> Replay:
        """Return the replay, opened by the first call."""
        with self._opening:
            if self._opened is None:
                self._opened = Replay(*self._arguments, lock_wait_s=LOCK_WAIT_S, read_only=self._read_only)
            return self._opened

    append = _served("insert", Replay.append)
    retire = _served("insert", Replay.retire)  # in turn with the chunks: those sent before are stored and counted
    sync = _served("insert", Replay.sync)
    close = _served("insert", Replay.close)
    sample = _served("sample", Replay.sample)
    sample_several = _served("sample", Replay.sample_several)
    sample_held_out = _served("sample", Replay.sample_held_out)
    stats = _served("health", Replay.stats)
    counters = _served("health", Replay.counters)
    shortage = _served("health", Replay.shortage)

    @ray.method(concurrency_group="health")
    def log_records(self) -> list[LogRecord]:
        """Return what this process logged since the last call; the newest 200 at most."""
        return self._log.take()

    @ray.method(concurrency_group="health")
    def health(self) -> int:
        """Return the id of this process, once the directory is open."""
        self.opened()
        return os.getpid()

    @ray.method(concurrency_group="watch", max_task_retries=0)
    def watch(self) -> int:
        """Return the id of this process after a while: a call that is never made again, so that it tells of a death."""
        time.sleep(WATCH_S)
        return os.getpid()

    def __ray_shutdown__(self) -> None:
        if self._opened is not None:
            self._opened.close()


class RayReplay:
    """A replay server's methods, under the names of `Shard`'s, with a time limit on every call.

    A call that meets a server in the middle of a restart is made again until the limit. Arrays that it returns lie in
    Ray's object store for as long as they are held. `server` is the handle of a `ReplayServer`.

    Attributes:
        end_by: when calls under way, too, are to be at their end, by the monotonic clock; one made later has a second.
    """

    def __init__(self, server: Any, timeout_s: float = CALL_TIMEOUT_S, directory: Path | None = None) -> None:
        self.directory = directory
        self.end_by = float("inf")
        self._server = server
        self._timeout_s = timeout_s

    append = _remote(Shard.append)
    sample = _remote(Shard.sample)
    sample_several = _remote(Shard.sample_several)
    sample_held_out = _remote(Shard.sample_held_out)
    counters = _remote(Shard.counters)
    retire = _remote(Shard.retire)
    stats = _remote(Shard.stats)
    shortage = _remote(Shard.shortage)
    log_records = _remote(Shard.log_records)
    sync = _remote(Shard.sync)

    def close(self) -> int:
        """Close the replay and end its process."""
        try:
            return cast("int", self.call("close"))
        finally:
            ray.kill(self._server)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return what the server's method returns, or raise what it raises.

        Raises:
            ReplayLostError: if there is no answer within the limit.
        """
        begun = time.monotonic()
        while True:
            try:
                return self._get(getattr(self._server, method).remote(*args, **kwargs), begun)
            except (ActorUnavailableError, ObjectLostError, GetTimeoutError) as error:
                if time.monotonic() + _RETRY_S > self._limit(begun):
                    sentence = f"the replay server did not answer '{method}' within {time.monotonic() - begun:.0f} s"
                    raise ReplayLostError(sentence) from error
                time.sleep(_RETRY_S)
            except ActorDiedError as error:
                raise ReplayLostError(f"the replay server is gone: {first_line(error)}") from error
            except RayTaskError as error:
                raise _cause(error) from None

    def _get(self, reference: Any, begun: float) -> Any:
        """Return an answer, or raise GetTimeoutError at the limit, which may change meanwhile."""
        while True:
            left_s = self._limit(begun) - time.monotonic()
            try:
                return ray.get(reference, timeout=max(0.0, min(left_s, _SLICE_S)))
            except GetTimeoutError:
                if left_s <= _SLICE_S:
                    raise

    def _limit(self, begun: float) -> float:
        return min(begun + self._timeout_s, max(self.end_by, begun + _SLICE_S))


class RayChunkWriter:
    """Sends chunks to a replay server without waiting for each; at most `in_flight` are on their way.

    A chunk whose fate is unknown is sent again: the server stores each chunk once. `timeout_s` is how long `append`
    waits for one of the chunks on their way to be acknowledged.
    """

    def __init__(self, server: Any, in_flight: int = IN_FLIGHT, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._server = server
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._sent: dict[ray.ObjectRef[bool], bytes] = {}

    def append(self, chunk: bytes) -> None:
        """Send a chunk; wait first while too many are on their way. Errors are those of `flush`."""
        deadline = time.monotonic() + self._timeout_s
        while len(self._sent) >= self._in_flight:
            self._settle_one(deadline, self._timeout_s)
        self._send(chunk)

    def flush(self, timeout_s: float) -> None:
        """Return once all chunks are acknowledged.

        Raises:
            ReplayLostError: if the server does not acknowledge them in time.
            DamagedChunkError: if a chunk arrived damaged or is of another format.
        """
        deadline = time.monotonic() + timeout_s
        while self._sent:
            self._settle_one(deadline, timeout_s)

    def _send(self, chunk: bytes) -> None:
        self._sent[self._server.append.remote(chunk)] = chunk

    def _settle_one(self, deadline: float, limit_s: float) -> None:
        """Wait for one chunk to be acknowledged, or send it again."""
        done, _ = ray.wait(list(self._sent), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            raise ReplayLostError(
                f"the replay server did not acknowledge {len(self._sent)} chunks within {limit_s:.0f} s"
            )
        chunk = self._sent.pop(done[0])
        try:
            ray.get(done[0], timeout=self._timeout_s)
        except RayTaskError as error:
            raise _cause(error) from None
        except ActorDiedError as error:
            self._sent[done[0]] = chunk
            raise ReplayLostError(f"the replay server is gone: {first_line(error)}") from error
        except (RayActorError, ObjectLostError, GetTimeoutError) as error:
            self._send(chunk)
            if time.monotonic() + _RETRY_S > deadline:
                raise ReplayLostError(f"the replay server was not restarted in time: {first_line(error)}") from error
            time.sleep(_RETRY_S)


def start_replay_servers(
    plans: Sequence[ShardPlan], step_format: StepFormat, sequence_length: int, read_only: bool = False, **options: Any
) -> list[Any]:
    """Start a server for each shard on this node, which has their directories, and return their handles in order.

    They open their directories side by side; if one cannot, none is left running. `plans` are what `plan_shards` gives,
    `options` are of the Ray actors, instead of the usual ones.

    Raises:
        UserError: if a directory is in use or holds something else.
        RunFailedError: if a process does not start.
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
    here = [plan._replace(directory=plan.directory.resolve()) for plan in plans]
    servers = [actor.remote(plan, step_format.to_json(), sequence_length, read_only) for plan in here]
    with ExitStack() as on_error:
        for server in servers:
            on_error.callback(ray.kill, server)
        for server, plan in zip(servers, plans, strict=True):
            try:
                ray.get(server.health.remote(), timeout=START_TIMEOUT_S)
            except (RayTaskError, RayActorError, GetTimeoutError) as error:
                if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
                    raise error.cause from None
                raise RunFailedError(f"the replay server on {plan.directory} did not start: {error}") from error
        on_error.pop_all()
    return servers


def _cause(error: RayTaskError) -> BaseException:
    """Return what the server's code raised, which callers know how to handle."""
    cause = error.cause
    return cause if isinstance(cause, BaseException) else error
