"""The pool on Ray: actors, learner and replay are processes, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
import re
import time
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamfleet.actors.actor import ActorProcess
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.notes import Note
from dreamfleet.common.settings import Settings
from dreamfleet.common.spaces import Spaces
from dreamfleet.common.steps import StepFormat
from dreamfleet.deploy.pool import Counters, Worker, WorkerFailedError, WorkerLostError
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.process import LearnerProcess
from dreamfleet.replay.client import RayReplay
from dreamfleet.replay.server import start_replay_server

FETCH_TIMEOUT_S = 120.0
"""An answer that is ready is fetched within this time, or its worker counts as lost."""

KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Has glibc keep freed memory: a CPU learner asks for it again at every update, and page faults cost it a sixth."""

log = logging.getLogger("dreamfleet")


class RayPool:
    """Starts Ray, or joins a cluster, and the replay on it; then actors and the learner as they are asked for.

    Args:
        settings: the run's.
        spaces: what the environment shows and takes.
        run: the run's directory.
        address: a cluster to join; None starts Ray on this machine, for this process alone.

    Raises:
        RunFailedError: if Ray or the replay does not start.
        UserError: if the replay finds its directory at fault.
    """

    def __init__(self, settings: Settings, spaces: Spaces, run: RunDirectory, address: str | None = None) -> None:
        self._settings = settings
        self._spaces = spaces
        self._run = run
        _start_ray(settings, address)
        try:
            self._begin()
        except BaseException:
            ray.shutdown()
            raise

    def _begin(self) -> None:
        """Look at what the cluster has, and start the replay."""
        settings, run = self._settings, self._run
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus < settings.actors.count + 1:
            raise UserError(f"actors.count {settings.actors.count} needs {settings.actors.count + 1} CPUs with the "
                            f"learner, but the cluster has {cpus}.")  # fmt: skip
        self._has_gpu = settings.learner.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
        self._replay_server = start_replay_server(
            run.replay.resolve(),
            StepFormat(self._spaces),
            settings.replay,
            settings.learner.sequence_length,
            settings.seed,
        )
        self._replay = RayReplay(self._replay_server)

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        """Start an actor process; it sees no GPU and uses one thread."""
        quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        options = {"num_cpus": 1, "num_gpus": 0, "max_restarts": 0, "runtime_env": {"env_vars": quiet}}
        actor_class: Any = ActorProcess
        target = actor_class.options(**options).remote(self._settings, actor, incarnation, self._replay_server)
        return Worker(f"actor {actor}", target)

    def start_learner(self) -> Worker:
        """Start the learner process, with a GPU if the cluster has one."""
        threads = self._settings.learner.threads or os.cpu_count() or 1
        # Beside the replay, on the node that has the run's directory: checkpoints go there.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {
            "scheduling_strategy": here,
            "num_cpus": 0 if self._has_gpu else 1,
            "num_gpus": int(self._has_gpu),
            "max_restarts": 0,
        }
        variables = {"OMP_NUM_THREADS": str(threads)} | ({} if self._has_gpu else KEEP_MEMORY)
        options["runtime_env"] = {"env_vars": variables}
        learner_class: Any = LearnerProcess
        target = learner_class.options(**options).remote(
            self._settings, self._spaces.to_json(), self._replay_server, str(self._run.path.resolve())
        )
        return Worker("learner", target)

    def stop(self, worker: Worker) -> None:
        """Kill a worker's process."""
        ray.kill(worker.target)

    def hurry(self, worker: Worker) -> None:
        """Have the learner end its train orders after the update it is at."""
        worker.target.hurry.remote()

    def give(self, worker: Worker, method: str, *arguments: Any) -> Any:
        """Give an order and return its reference."""
        return getattr(worker.target, method).remote(*arguments)

    def wait(self, futures: list[Any], timeout_s: float) -> list[Any]:
        """Return the references whose orders are done."""
        if not futures:
            time.sleep(timeout_s)
            return []
        done, _ = ray.wait(futures, num_returns=1, timeout=timeout_s)
        if not done:
            return []
        more, _ = ray.wait(futures, num_returns=len(futures), timeout=0)
        return list(more)

    def result(self, future: Any) -> Any:
        """Return what a done order brought.

        Raises:
            WorkerLostError: if the worker's process is gone.
            WorkerFailedError: if its code raised.
        """
        try:
            return ray.get(future, timeout=FETCH_TIMEOUT_S)
        except RayTaskError as error:
            raise WorkerFailedError(_cause(error), _plain(error)) from None
        except (RayActorError, ActorUnschedulableError, ObjectLostError, GetTimeoutError) as error:
            cause = _construction_cause(error)
            if cause is not None:
                raise WorkerFailedError(cause, _plain(error)) from None
            raise WorkerLostError(str(error).strip().splitlines()[0]) from None

    def counters(self) -> Counters:
        """Ask the replay for its counters."""
        return Counters(*self._replay.counters())

    def replay_stats(self) -> dict[str, float]:
        """Ask the replay for its figures."""
        return dict(self._replay.stats())

    def replay_notes(self) -> list[Note]:
        """Return what the replay logged since the last call."""
        return self._replay.notes()

    def sync_replay(self) -> None:
        """Have the replay write all it holds through to the disk."""
        self._replay.sync()

    def close(self) -> None:
        """Close the replay and leave Ray, which ends all that this process started."""
        try:
            self._replay.close()
        except RunFailedError as error:
            log.warning("the replay was not closed in order, what it acknowledged is on disk: %s", error)
        finally:
            ray.shutdown()


def _start_ray(settings: Settings, address: str | None) -> None:
    """Start Ray on this machine with a logical CPU for each process, or join the cluster at `address`."""
    try:
        if address:
            ray.init(address=address, logging_level=logging.ERROR)
        else:
            # One logical CPU a process: the system's scheduler shares out the real ones, be they two.
            processes = settings.actors.count + 2
            ray.init(address="local", num_cpus=processes, include_dashboard=False, logging_level=logging.ERROR)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        if address:
            raise UserError(f"flag --address: no Ray cluster answers at '{address}': {error}") from None
        raise RunFailedError(f"Ray did not start: {error}") from error


def _plain(error: BaseException) -> str:
    """Return a Ray error's traceback without the codes that colour it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error))


def _cause(error: RayTaskError) -> BaseException:
    """Return what the remote code raised."""
    cause = error.cause
    return cause if isinstance(cause, BaseException) else error


def _construction_cause(error: BaseException) -> BaseException | None:
    """Return what a worker's constructor raised, if that is why it died; of that, Ray hands on the traceback's text."""
    if not getattr(error, "actor_init_failed", False):
        return None
    last_line = _plain(error).strip().splitlines()[-1]
    name, _, sentence = last_line.partition(": ")
    for kind in (UserError, RunFailedError):
        if name == f"{kind.__module__}.{kind.__qualname__}":
            return kind(sentence)
    return RuntimeError(last_line)
