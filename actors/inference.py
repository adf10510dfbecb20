"""Central inference: one process acts for the environments of all actors, with the newest weights it was given.

An actor asks with the observations of its K environments. Questions are gathered for a short while and answered as one
batch (`Gathering`); the recurrent state and the random generators of every environment stay here (`CentralPolicy`), and
are the ones that the actor would have itself, so that the actions are the same but for rounding.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from dreamfleet.actors.gathering import Client, Gathering, Waiting
from dreamfleet.common.acting.acting_model import ActingModel, Memory
from dreamfleet.common.acting.make_policy import policy_seed
from dreamfleet.common.acting.remote_policy import Answer, InferenceLostError, Question, RetiredError
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.settings.schema import Settings

MOST_ENVIRONMENTS, MOST_PLANNED = 1024, 64
"""In one batch; of those for which is planned fewer, since each imagines a thousand futures."""


class CentralPolicy:
    """Acts for the environments of many actors, each of which has the state and the random numbers of its own.

    Attributes:
        memories: by client, with the number of its life: how often its environments' states were lost before.
        version: of the weights that act.
    """

    def __init__(self, settings: Settings, model: ActingModel) -> None:
        self.memories: dict[Client, tuple[int, Memory]] = {}
        self.version = -1
        self._settings = settings
        self._model = model
        self._least: dict[int, int] = {}  # incarnation of each actor that may still ask

    def adopt(self, version: int, weights: np.ndarray) -> None:
        """Act with these weights from now on."""
        self._model.adopt(weights)
        self.version = version

    def check(self, client: Client) -> None:
        """Refuse a client that was retired, by name or by a newer incarnation of the same actor.

        Raises:
            RetiredError: if it was.
        """
        least = self._least.get(client.actor, 0)
        if client.incarnation < least:
            raise RetiredError(
                f"actor {client.actor} asks in incarnation {client.incarnation}, but only {least} and later may"
            )

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answers to questions of different clients, which were checked; each state takes one step."""
        memories = [self._memory_of(question) for question in questions]
        observations = {
            name: np.concatenate([question.observations[name] for question in questions])
            for name in questions[0].observations
        }
        is_first = np.concatenate([question.is_first for question in questions])
        actions = self._model.act(memories, observations, is_first)
        ends = np.cumsum([len(memory) for memory in memories])
        return [Answer(self.version, part) for part in np.split(actions, ends[:-1])]

    def forget(self, client: Client) -> None:
        """Drop the states of an incarnation, and those of the actor's before it, for good."""
        self._least[client.actor] = max(self._least.get(client.actor, 0), client.incarnation + 1)
        for known in [each for each in self.memories if each.actor == client.actor]:
            if known.incarnation <= client.incarnation:
                del self.memories[known]

    def _memory_of(self, question: Question) -> Memory:
        client = Client(question.actor, question.incarnation)
        life, memory = self.memories.get(client, (-1, None))
        if memory is None or life != question.life:
            seed = policy_seed(self._settings, *client)
            memory = self._model.begin(len(question.is_first), seed, *([question.life] if question.life else []))
            if client.incarnation >= self._least.get(client.actor, 0):  # else it was retired since it asked
                self.forget(client._replace(incarnation=client.incarnation - 1))  # those before it are over
                self.memories[client] = question.life, memory
        return memory


@dataclass
class InferenceReport:
    """What was done since the last report.

    Attributes:
        steps: environment steps answered; `batches` in which they were.
        waited_s: seconds from question to answer, summed over `questions`.
        busy_s: seconds in which batches were computed.
        clients: actors whose states are kept.
        version: of the weights that act.
    """

    steps: int = 0
    questions: int = 0
    batches: int = 0
    waited_s: float = 0.0
    busy_s: float = 0.0
    clients: int = 0
    version: int = -1
    log_records: list[LogRecord] = field(default_factory=list)


class Inference:
    """A `CentralPolicy` that is asked from any thread, and answers on one of its own, batch by batch.

    Args:
        most: environments in one batch.
        version: of the weights to begin with.

    Attributes:
        failed: done with the error once answering has failed; from then on every question fails.
    """

    def __init__(
        self,
        policy: CentralPolicy,
        most: int,
        version: int,
        weights: np.ndarray,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.failed: Future[None] = Future()
        self._policy = policy
        self._gathering = Gathering(most)
        self._clock = clock
        self._changed = threading.Condition()  # guards what waits, the report and whether it is closing
        self._acting = threading.Lock()  # guards the policy
        self._report = InferenceReport()
        self._is_closing = False
        self.adopt(version, weights)
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def ask(self, question: Question) -> Future[Answer]:
        """Have a question answered with the next batch.

        Raises:
            RetiredError: if the incarnation was given up.
            InferenceLostError: if answering has failed before.
        """
        waiting = Waiting(question, self._clock(), Future())
        waiting.answer.set_running_or_notify_cancel()  # one that is cancelled could not be answered, nor those after it
        with self._changed:
            self._policy.check(waiting.client)
            if self.failed.done() or self._is_closing:
                raise InferenceLostError("answering has failed before" if self.failed.done() else "it is closing")
            older = self._gathering.add(waiting)
            self._changed.notify()
        if older:
            self._fail([older], InferenceLostError("the actor has asked again"))
        return waiting.answer

    def adopt(self, version: int, weights: np.ndarray) -> None:
        """Act with these weights from the next batch on."""
        with self._acting:
            self._policy.adopt(version, weights)

    def forget(self, actor: int, incarnation: int) -> None:
        """Drop the states of an incarnation of an actor, and refuse what it still asks."""
        client = Client(actor, incarnation)
        with self._acting, self._changed:
            self._policy.forget(client)
            waiting = self._gathering.forget(client)
            self._changed.notify()  # it may have been the last that was waited for
        if waiting:
            self._fail([waiting], RetiredError(f"actor {actor} was given up in incarnation {incarnation}"))

    def report(self) -> InferenceReport:
        """Return what was done since the last report."""
        with self._changed:
            report, self._report = self._report, InferenceReport()
            report.clients, report.version = len(self._policy.memories), self._policy.version
        return report

    def close(self) -> None:
        """Answer no more, and wait for the batch that is being computed."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()
        self._fail(self._gathering.take(), InferenceLostError("it was closed"))

    def _work(self) -> None:
        while batch := self._next():
            begun = self._clock()
            try:
                with self._acting:
                    answers = self._policy.answer([waiting.question for waiting in batch])
            except Exception as error:  # noqa: BLE001 (whatever it was, the process is replaced, and it is named then)
                with self._changed:
                    self.failed.set_exception(error)
                    batch += self._gathering.take()
                self._fail(batch, InferenceLostError(f"answering failed: {type(error).__name__}: {error}"))
                return
            self._note(batch, begun, self._clock())
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.answer.set_result(answer)

    def _next(self) -> list[Waiting]:
        """Return the next batch once it is due, nothing once this is closing."""
        with self._changed:
            while not self._is_closing:
                due_in = self._gathering.due_in(self._clock())
                if due_in == 0:
                    return self._gathering.take()
                self._changed.wait(due_in)
        return []

    def _note(self, batch: Sequence[Waiting], begun: float, now: float) -> None:
        with self._changed:
            self._gathering.answered(batch, now, now - begun)
            report = self._report
            report.steps += sum(len(waiting.question.is_first) for waiting in batch)
            report.questions += len(batch)
            report.batches += 1
            report.busy_s += now - begun
            report.waited_s += sum(now - waiting.since for waiting in batch)

    @staticmethod
    def _fail(batch: Sequence[Waiting], error: Exception) -> None:
        for waiting in batch:
            waiting.answer.set_exception(error)
