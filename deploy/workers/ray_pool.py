"""The pool on Ray: actors, learner and replay are processes, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import compress
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError, RayTaskError

from dreamfleet.actors.actor import ActorProcess
from dreamfleet.actors.environments.user_objects import SentCode
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.workers.placement import Placement
from dreamfleet.deploy.workers.pool import Worker, WorkerFailedError, WorkerLostError
from dreamfleet.deploy.workers.ray_internals import have_started
from dreamfleet.deploy.workers.ray_session import start_ray
from dreamfleet.learner.hardware import torch_threads
from dreamfleet.learner.process import LearnerProcess
from dreamfleet.replay.ray_replay import RayReplay, start_replay_servers
from dreamfleet.replay.sharded import ShardedReplay, shard_of
from dreamfleet.replay.shards import plan_shards

KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Has glibc keep freed memory: a CPU learner asks for it again at every update, and page faults cost it a sixth."""

CLOSE_TIMEOUT_S = 10.0
"""How long the end of a run waits for environments to be closed: their simulators may be processes of their own."""

log = logging.getLogger("dreamfleet")


class RayPool:
    """Starts Ray, or joins a cluster, and the replay on it; then actors and the learner as they are asked for.

    Args:
        address: a cluster to join; None starts Ray on this machine, for this process alone.

    Raises:
        RunFailedError: if Ray or the replay does not start.
        UserError: if the replay finds its directory at fault.
    """

    counters_every_s = 0.02
    workers_can_hang = True

    def __init__(self, settings: Settings, spaces: Spaces, run: RunDirectory, address: str | None = None) -> None:
        self._settings = settings
        self._spaces = spaces
        self._run = run
        self._is_local = address is None
        self._done: SimpleQueue[Future[Any]] = SimpleQueue()
        self._actors: list[Worker] = []
        start_ray(settings, address)
        try:
            self._begin()
        except BaseException:
            ray.shutdown()
            raise

    def _begin(self) -> None:
        """Look at what the cluster has, and start the replay."""
        settings = self._settings
        here = ray.get_runtime_context().get_node_id()
        self._sent_code = None if settings.train.dataset else SentCode.of(settings.env, here)
        self._placement = Placement(settings)
        if not self._is_local:
            self._placement.check_home(self._run.path)
        experience, read_only = self._run.experience(settings)
        plans = plan_shards(
            experience.resolve(), settings.replay, settings.learner.sequence_length, settings.seed, read_only
        )
        self._servers = start_replay_servers(
            plans,
            StepFormat(self._spaces),
            settings.learner.sequence_length,
            read_only,
            scheduling_strategy=self._placement.at_home,
        )
        clients = [
            RayReplay(server, directory=plan.directory) for server, plan in zip(self._servers, plans, strict=True)
        ]
        self.replay = ShardedReplay(clients, settings.seed)
        self._take_back_request()
        for sentence in self._decisions():
            log.info("cluster: %s", sentence)

    def _take_back_request(self) -> None:
        """Ask the autoscaler for nothing: a request stands until another is made, also after who made it was killed."""
        if self._is_local or self._settings.actors.count != "auto":
            return
        try:
            self.ask_for_room(0)
        except RayError as error:
            log.warning("the request for more room could not be withdrawn from the cluster: %s", error)

    def _decisions(self) -> list[str]:
        """Return a sentence for each place that was chosen; on one machine there is nothing to choose."""
        if self._is_local:
            return []
        home, room = self._placement.home, self._placement.room()
        nodes = len(room)
        count = self._settings.actors.count
        return [
            f"joined the one at {ray.get_runtime_context().gcs_address}",
            f"replay shards: {len(self._servers)}, on {home.address}, which is the learner's place"
            + (", with a GPU" if self._placement.has_gpu else ""),
            f"room for {sum(room.values())} actors on {nodes} nodes; "
            + ("all of it is used" if count == "auto" else f"{count} are wanted"),
        ]

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        """Start an actor process; it sees no GPU and uses one thread."""
        quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        options = self._placement.actor_options() | {"max_restarts": 0, "runtime_env": {"env_vars": quiet}}
        server = self._servers[shard_of(actor, self.replay.alive)]
        actor_class: Any = ActorProcess
        target = actor_class.options(**options).remote(self._settings, actor, incarnation, server, self._sent_code)
        self._actors.append(Worker(f"actor {actor}", target))
        return self._actors[-1]

    def start_evaluator(self) -> Worker:
        """Start the actor that only evaluates, beside the learner; it needs no room of its own."""
        options = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": self._placement.at_home}
        options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}}
        actor_class: Any = ActorProcess
        target = actor_class.options(**options).remote(self._settings, 0, 0, self._servers[0], self._sent_code)
        return Worker("evaluator", target)

    def start_learner(self) -> Worker:
        """Start the learner process, beside the replay and with a GPU if that node has one."""
        cores = os.cpu_count() if self._is_local else int(self._placement.home.resources.get("CPU", 1))
        set_to = torch_threads() if self._is_local else None  # on a cluster Ray has set OMP_NUM_THREADS to 1
        threads = self._settings.learner.threads or (set_to.number if set_to and set_to.is_asked_for else cores) or 1
        variables = {"OMP_NUM_THREADS": str(threads)} | ({} if self._placement.has_gpu else KEEP_MEMORY)
        options = self._placement.learner_options() | {"max_restarts": 0, "runtime_env": {"env_vars": variables}}
        learner_class: Any = LearnerProcess
        target = learner_class.options(**options).remote(
            self._settings,
            self._spaces.to_json(),
            self._servers,
            str(self._run.path.resolve()),
            self._busy_cores(),
            set_to,
        )
        return Worker("learner", target)

    def _busy_cores(self) -> int:
        """Return how many actors are on the learner's node."""
        if self._settings.train.dataset:
            return 0
        count = self._settings.actors.count
        if self._is_local and count != "auto":
            return count
        return self._placement.room()[self._placement.home.id]

    def stop(self, worker: Worker) -> None:
        """Kill a worker's process."""
        ray.kill(worker.target)
        if worker in self._actors:
            self._actors.remove(worker)

    def finish_early(self, worker: Worker) -> None:
        """Have the learner end its train orders after the update it is at."""
        worker.target.finish_early.remote()

    def give(self, worker: Worker, method: str, *arguments: Any) -> Future[Any]:
        """Give an order and return its future, which comes out of `wait` once it is done."""
        future: Future[Any] = getattr(worker.target, method).remote(*arguments).future()
        future.add_done_callback(self._done.put)
        return future

    def wait(self, timeout_s: float) -> list[Future[Any]]:
        """Return the futures whose orders were done since the last call."""
        done: list[Future[Any]] = []
        try:
            done.append(self._done.get(timeout=timeout_s))
            while True:
                done.append(self._done.get_nowait())
        except Empty:
            return done

    def result(self, future: Future[Any]) -> Any:
        """Return what a done order brought.

        Raises:
            WorkerLostError: if the worker's process is gone.
            WorkerFailedError: if its code raised.
        """
        try:
            return future.result(timeout=0)
        except RayTaskError as error:
            raise WorkerFailedError(_cause(error), _plain(error)) from None
        except RayError as error:  # it died, has no place any more, or was ended for want of memory
            cause = _construction_cause(error)
            if cause is not None:
                raise WorkerFailedError(cause, _plain(error)) from None
            raise WorkerLostError(str(error).strip().splitlines()[0]) from None

    def running(self, workers: Sequence[Worker]) -> list[Worker]:
        """Return those of these workers whose process has started: Ray found a node for them."""
        return list(compress(workers, have_started([worker.target for worker in workers])))

    def room(self) -> int:
        """Return how many actors the cluster holds now."""
        return sum(self._placement.room().values())

    def ask_for_room(self, actors: int) -> None:
        """Have an autoscaling cluster grow so that it holds this many actors; it knows its own limits."""
        request_resources(bundles=[self._placement.actor_bundle()] * actors)

    def publish(self, flat: np.ndarray) -> Any:
        """Put flat weights into the object store, and hold them there."""
        self._published = ray.put(flat)
        return self._published

    def close(self) -> None:
        """Close the replay and leave Ray, which ends all that this process started."""
        try:
            self._close_environments()
            self._take_back_request()
            self.replay.close()
        except RunFailedError as error:
            log.warning("the replay was not closed in order, what it acknowledged is on disk: %s", error)
        finally:
            ray.shutdown()

    def _close_environments(self) -> None:
        """Let actors close their environments, but not without limit; one that is busy or gone is left to Ray."""
        placed = self.running(self._actors)
        if placed:
            ray.wait(
                [worker.target.close.remote() for worker in placed], num_returns=len(placed), timeout=CLOSE_TIMEOUT_S
            )


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
