"""The replay's clients: sampling from a server, and the sinks that collectors push chunks into."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
)

from dreamfleet.common.process_log import LogRecord
from dreamfleet.replay.errors import ReplayLostError
from dreamfleet.replay.packed import PackedBatch
from dreamfleet.replay.sharded import Shard
from dreamfleet.replay.shortage import Shortage

IN_FLIGHT = 8
"""Most records that a sink has sent and not yet seen acknowledged."""
CALL_TIMEOUT_S = 120.0
"""A server that has not answered for so long, its restarts included, counts as lost."""
_RETRY_S = 0.5


class RayReplay:
    """A replay server's methods, under the names of `Replay`'s, with a time limit on every call.

    A call that meets a server in the middle of a restart is made again until the limit.

    Args:
        server: the handle of a `ReplayServer`.
        timeout_s: limit of one call, restarts included.
        directory: where the server stores, if that is known, to name it by.
    """

    def __init__(self, server: Any, timeout_s: float = CALL_TIMEOUT_S, directory: Path | None = None) -> None:
        self.directory = directory
        self._server = server
        self._timeout_s = timeout_s

    def append(self, record: bytes) -> bool:
        """See `Replay.append`."""
        return bool(self._call("append", record))

    def sample(self, batch_number: int, batch_size: int) -> PackedBatch:
        """See `Replay.sample`; the arrays lie in Ray's object store for as long as they are held."""
        batch: PackedBatch = self._call("sample", batch_number, batch_size)
        return batch

    def sample_held_out(self, batch_number: int, batch_size: int, length: int) -> PackedBatch | None:
        """See `Replay.sample_held_out`."""
        batch: PackedBatch | None = self._call("sample_held_out", batch_number, batch_size, length)
        return batch

    def counters(self) -> tuple[int, int, int]:
        """See `Replay.counters`."""
        total_steps, valid_starts, next_incarnation = self._call("counters")
        return total_steps, valid_starts, next_incarnation

    def retire(self, actor: int, incarnation: int) -> int:
        """See `Replay.retire`."""
        return int(self._call("retire", actor, incarnation))

    def stats(self) -> dict[str, float]:
        """See `Replay.stats`."""
        return dict(self._call("stats"))

    def shortage(self) -> Shortage:
        """See `Replay.shortage`."""
        return Shortage(*self._call("shortage"))

    def log_records(self) -> list[LogRecord]:
        """Return what the server's process logged since the last call."""
        return list(self._call("log_records"))

    def sync(self) -> None:
        """See `Replay.sync`."""
        self._call("sync")

    def close(self) -> None:
        """Close the replay and end its process."""
        try:
            self._call("close")
        finally:
            ray.kill(self._server)

    def _call(self, method: str, *arguments: Any) -> Any:
        """Return what the server's method returns, or raise what it raises.

        Raises:
            ReplayLostError: if there is no answer within the limit.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                reference = getattr(self._server, method).remote(*arguments)
                return ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
            except (ActorUnavailableError, ObjectLostError) as error:
                if time.monotonic() + _RETRY_S > deadline:
                    raise self._lost(method) from error
                time.sleep(_RETRY_S)
            except GetTimeoutError as error:
                raise self._lost(method) from error
            except ActorDiedError as error:
                raise ReplayLostError(f"the replay server is gone: {_first_line(error)}") from error
            except RayTaskError as error:
                raise _cause(error) from None

    def _lost(self, method: str) -> ReplayLostError:
        return ReplayLostError(f"the replay server did not answer '{method}' within {self._timeout_s:g} s")


class DirectSink:
    """Stores chunks in a shard of the same process."""

    def __init__(self, replay: Shard) -> None:
        self._replay = replay

    def append(self, record: bytes) -> None:
        """Store a record."""
        self._replay.append(record)

    def flush(self, timeout_s: float) -> None:
        """Return: whatever was appended is stored."""


class RaySink:
    """Sends chunks to a replay server without waiting for each; at most `in_flight` are on their way.

    A record whose fate is unknown is sent again: the server stores each chunk once.

    Args:
        server: the handle of a `ReplayServer`.
        in_flight: most records sent and not acknowledged.
        timeout_s: how long `append` waits for one of them to be.
    """

    def __init__(self, server: Any, in_flight: int = IN_FLIGHT, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._server = server
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._sent: dict[ray.ObjectRef[bool], bytes] = {}

    def append(self, record: bytes) -> None:
        """Send a record; wait first while too many are on their way.

        Raises:
            ReplayLostError: if the server acknowledges none of them in time.
            DamagedChunkError: if a record arrived damaged or is of another format.
        """
        deadline = time.monotonic() + self._timeout_s
        while len(self._sent) >= self._in_flight:
            self._settle_one(deadline)
        self._send(record)

    def flush(self, timeout_s: float) -> None:
        """Return once all records are acknowledged.

        Raises:
            ReplayLostError: if they are not within `timeout_s`.
            DamagedChunkError: if a record arrived damaged or is of another format.
        """
        deadline = time.monotonic() + timeout_s
        while self._sent:
            self._settle_one(deadline)

    def _send(self, record: bytes) -> None:
        self._sent[self._server.append.remote(record)] = record

    def _settle_one(self, deadline: float) -> None:
        """Wait for one record to be acknowledged, or send it again."""
        done, _ = ray.wait(list(self._sent), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            raise ReplayLostError(f"the replay server did not acknowledge {len(self._sent)} chunks in time")
        record = self._sent.pop(done[0])
        try:
            ray.get(done[0], timeout=self._timeout_s)
        except RayTaskError as error:
            raise _cause(error) from None
        except ActorDiedError as error:
            self._sent[done[0]] = record
            raise ReplayLostError(f"the replay server is gone: {_first_line(error)}") from error
        except (RayActorError, ObjectLostError, GetTimeoutError) as error:
            self._send(record)
            if time.monotonic() + _RETRY_S > deadline:
                raise ReplayLostError(f"the replay server did not come back: {_first_line(error)}") from error
            time.sleep(_RETRY_S)


def _cause(error: RayTaskError) -> BaseException:
    """Return what the server's code raised, which callers know how to handle."""
    cause = error.cause
    return cause if isinstance(cause, BaseException) else error


def _first_line(error: BaseException) -> str:
    """Return a Ray error without its pages of explanation."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
