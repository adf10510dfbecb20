"""The pool on Ray: actors, learner and replay are processes, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import compress
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from dreamfleet.actors.actor import ActorProcess
from dreamfleet.actors.environments.user_objects import SentCode
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.acting.ray_weights import put_weights
from dreamfleet.common.errors import RunFailedError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.workers.control_watch import ControlWatch
from dreamfleet.deploy.workers.inference_processes import InferenceProcesses
from dreamfleet.deploy.workers.learner_ranks import LearnerRanks
from dreamfleet.deploy.workers.placement import Placement
from dreamfleet.deploy.workers.pool import ANSWER_S, ReplayChange, Worker
from dreamfleet.deploy.workers.ray_errors import answer_of
from dreamfleet.deploy.workers.ray_internals import have_started, logs_folder
from dreamfleet.deploy.workers.ray_session import start_ray
from dreamfleet.deploy.workers.replay_watch import ReplayWatch
from dreamfleet.learner.hardware import TorchThreads, torch_threads
from dreamfleet.learner.process import LearnerProcess, Seat
from dreamfleet.replay.ray_replay import RayReplay, start_replay_servers
from dreamfleet.replay.sharded import ShardedReplay, shard_of
from dreamfleet.replay.shards import missing_shards, plan_shards

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
        asked_to_stop: whether a start of Ray that failed is not to be tried again.

    Raises:
        RunFailedError: if Ray or the replay does not start.
        UserError: if the replay finds its directory at fault.
    """

    counters_every_s = 0.02
    workers_can_hang = True

    def __init__(
        self,
        settings: Settings,
        spaces: Spaces,
        run: RunDirectory,
        address: str | None = None,
        asked_to_stop: Callable[[], bool] = bool,
    ) -> None:
        self._settings = settings
        self._spaces = spaces
        self._run = run
        self._is_local = address is None
        self._done: SimpleQueue[Future[Any]] = SimpleQueue()
        self._actors: list[Worker] = []
        self._inference = InferenceProcesses(settings, spaces)
        self._room = 1
        start_ray(settings, address, asked_to_stop)
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
        length = settings.learner.sequence_length
        for sentence in missing_shards(experience):
            log.warning("%s", sentence)
        plans = plan_shards(experience.resolve(), settings.replay, length, settings.seed, read_only)
        at_home = self._placement.at_home
        self._servers = start_replay_servers(
            plans, StepFormat(self._spaces), length, read_only, scheduling_strategy=at_home
        )
        clients = [
            RayReplay(server, directory=plan.directory) for server, plan in zip(self._servers, plans, strict=True)
        ]
        self.replay = ShardedReplay(clients, settings.seed)
        self._watch = ReplayWatch(self._servers, clients, logs_folder(), here == self._placement.home.id)
        self._control = ControlWatch(ray.get_runtime_context().gcs_address)
        self._take_back_request()
        if not self._is_local:  # on one machine there is nothing to choose
            for sentence in self._placement.decisions(len(plans), settings.actors.count):
                log.info("cluster: %s", sentence)
        self._watch.start()  # at last: what fails before it leaves Ray, and no thread that would still call it

    def _take_back_request(self) -> None:
        """Ask the autoscaler for nothing: a request stands until another is made, also after who made it was killed."""
        if self._is_local or self._settings.actors.count != "auto":
            return
        try:
            self.ask_for_room(0)
        except RayError as error:
            log.warning("the request for more room could not be withdrawn from the cluster: %s", error)

    def start_actor(self, actor: int, incarnation: int) -> Worker:
        """Start an actor process; it sees no GPU and uses one thread."""
        quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        options = self._placement.actor_options() | {"max_restarts": 0, "runtime_env": {"env_vars": quiet}}
        server = self._servers[shard_of(actor, self.replay.alive)]
        actor_class: Any = ActorProcess
        target = actor_class.options(**options).remote(
            self._settings, actor, incarnation, server, self._sent_code, self._inference.prefix
        )
        self._actors.append(Worker(f"actor {actor}", target))
        return self._actors[-1]

    def start_evaluator(self) -> Worker:
        """Start the actor that only evaluates, beside the learner; it needs no room of its own."""
        options = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": self._placement.at_home}
        options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}}
        actor_class: Any = ActorProcess
        target = actor_class.options(**options).remote(self._settings, 0, 0, self._servers[0], self._sent_code)
        return Worker("evaluator", target)

    def start_inference(self) -> Worker:
        """Start a process that acts for all actors."""
        return self._inference.start(self._placement, self._is_local)

    def start_learner(self) -> Worker:
        """Start the learner process, beside the replay and with a GPU if that node has one; or one for each rank."""
        set_to = torch_threads() if self._is_local else None  # on a cluster Ray has set OMP_NUM_THREADS to 1
        variables = self._learner_variables(set_to)
        count, together = self._placement.ranks, self._placement.are_together
        learner_class: Any = LearnerProcess
        handles: list[Any] = []
        for number in range(count):
            options = self._placement.learner_options(number)
            options |= {"max_restarts": 0, "runtime_env": {"env_vars": variables}}
            handle = learner_class.options(**options).remote(
                self._settings,
                self._spaces.to_json(),
                self._servers,
                str(self._run.path.resolve()),
                self._busy_cores(),
                set_to,
                Seat(number, count, together, handles[0] if handles else None),
            )
            handles.append(handle)
        return Worker("learner", LearnerRanks(handles))

    def _learner_variables(self, set_to: TorchThreads | None) -> dict[str, str]:
        """Return the environment variables of a learner's process: ranks on one machine share its cores."""
        sharing = self._placement.ranks if self._placement.are_together else 1
        cores = (os.cpu_count() if self._is_local else int(self._placement.home.resources.get("CPU", 1))) or 1
        asked_for = set_to.number if set_to and set_to.is_asked_for else 0
        threads = self._settings.learner.threads or asked_for or max(1, cores // sharing)
        return {"OMP_NUM_THREADS": str(threads)} | ({} if self._placement.has_gpu else KEEP_MEMORY)

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
        if isinstance(worker.target, LearnerRanks):
            worker.target.kill()
        else:
            ray.kill(worker.target)
        if worker in self._actors:
            self._actors.remove(worker)

    def finish_early(self, worker: Worker) -> None:
        """Have the learner end its train orders after the update it is at."""
        worker.target.finish_early()

    def give(self, worker: Worker, method: str, *arguments: Any) -> Future[Any]:
        """Give an order and return its future, which comes out of `wait` once it is done."""
        future: Future[Any]
        if isinstance(worker.target, LearnerRanks):
            future = worker.target.give(method, *arguments)
        else:
            future = getattr(worker.target, method).remote(*arguments).future()
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
        return answer_of(future)

    def running(self, workers: Sequence[Worker]) -> list[Worker]:
        """Return those of these workers whose process has started: Ray found a node for them."""
        if self._control.is_silent:
            return []
        return list(compress(workers, have_started([worker.target for worker in workers])))

    def replay_changes(self) -> list[ReplayChange]:
        """Return which of the replay's processes died or came up again since the last call."""
        return self._watch.changes()

    def expect_answers(self, within_s: float) -> None:
        """Kill the replay's processes that give no answer within this time: Ray starts others, which have it all.

        May be called from a signal's handler, while this process waits for the replay.
        """
        self._watch.expect_answers(within_s)

    def interrupt(self) -> None:
        """See to it that a stop does not wait for what does not answer."""
        self.expect_answers(ANSWER_S)

    def fault(self) -> str:
        """Return that Ray's control process is gone, once it is."""
        return self._control.fault

    def room(self) -> int:
        """Return how many actors the cluster holds now, or held while Ray's control process answered."""
        if not self._control.is_silent:
            self._room = sum(self._placement.room().values())
        return self._room

    def ask_for_room(self, actors: int) -> None:
        """Have an autoscaling cluster grow so that it holds this many actors; it knows its own limits."""
        request_resources(bundles=[self._placement.actor_bundle()] * actors)

    def publish(self, version: int, flat: np.ndarray) -> PublishedWeights:
        """Put flat weights into the object store, where they last as long as they are held here."""
        return put_weights(version, flat)

    def close(self) -> None:
        """Close the replay and leave Ray, which ends all that this process started."""
        self._control.close()
        try:
            if not self._control.is_silent:
                self._close_environments()
                self._take_back_request()
            self.replay.close()
            if not self._control.is_silent:  # else this would wait for a minute; Ray gives them back with the job
                self._placement.release()
        except RunFailedError as error:
            log.warning("the replay was not closed in order, what it acknowledged is on disk: %s", error)
        finally:
            self._watch.close()
            ray.shutdown()

    def _close_environments(self) -> None:
        """Let actors close their environments, but not without limit; one that is busy or gone is left to Ray."""
        placed = self.running(self._actors)
        timeout_s = min(CLOSE_TIMEOUT_S, self._watch.end_by - time.monotonic())
        if placed and timeout_s > 0:
            ray.wait([worker.target.close.remote() for worker in placed], num_returns=len(placed), timeout=timeout_s)
