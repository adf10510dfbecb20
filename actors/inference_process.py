"""The process that acts for all actors: a Ray shell around `Inference`."""

from __future__ import annotations

import asyncio
import os
import platform
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from dreamfleet.actors.inference import (
    MOST_ENVIRONMENTS,
    MOST_PLANNED,
    CentralPolicy,
    Inference,
    InferenceReport,
)
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.acting.ray_weights import fetch_weights_beside
from dreamfleet.common.acting.remote_policy import Answer, Question
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.process_log import WorkerLog
from dreamfleet.common.settings.schema import Settings

REPORT_EVERY_S = 2.0
"""Between two reports: an order for one is always under way, so that a lost process is noticed at once."""
WEIGHTS_TIMEOUT_S = 20.0
"""New weights that do not arrive within this time are left out, and asked for again if there are none yet. The process
itself is taken to hang after two minutes."""
MOST_CALLS = 10_000
"""Calls that may wait at a time: one of each actor."""


@ray.remote(max_concurrency=MOST_CALLS)  # type: ignore[call-overload]  # missing in Ray's overloads
class InferenceProcess:
    """An `Inference` in a process of its own, on the GPU that Ray gives it, if any.

    It is built with the first weights; who asks before waits for them. The networks compute in float32 on a GPU as on a
    CPU, so that the actions do not depend on where they are chosen, but for rounding.

    Args:
        spaces: as `Spaces.to_json` gives them.
    """

    def __init__(self, settings: Settings, spaces: dict[str, Any]) -> None:
        self._log = WorkerLog.install()
        self._settings, self._spaces = settings, Spaces.from_json(spaces)
        self._inference: Inference | None = None
        self._is_built, self._has_failed, self._adopting = asyncio.Event(), asyncio.Event(), asyncio.Lock()

    async def greet(self) -> str:
        """Return the name of the machine; an answer means that Ray has placed the process."""
        return platform.node()

    async def adopt(self, weights: PublishedWeights) -> bool:
        """Act with these weights from the next batch on; return False if they cannot be fetched."""
        async with self._adopting:
            try:
                flat = await fetch_weights_beside(weights, WEIGHTS_TIMEOUT_S)
            except (ObjectLostError, TimeoutError):
                return False
            if self._inference is not None:
                await asyncio.to_thread(self._inference.adopt, weights.version, flat)
                return True
            self._inference = await asyncio.to_thread(self._build, weights.version, flat)
            loop = asyncio.get_running_loop()
            self._inference.failed.add_done_callback(lambda _: loop.call_soon_threadsafe(self._has_failed.set))
            self._is_built.set()
            return True

    async def act(self, question: Question) -> Answer:
        """Answer a question with the next batch.

        Raises:
            RetiredError: if the incarnation was given up.
            InferenceLostError: if answering has failed.
        """
        await self._is_built.wait()
        assert self._inference
        return await asyncio.wrap_future(self._inference.ask(question))

    async def forget(self, actor: int, incarnation: int) -> None:
        """Drop the states of an incarnation of an actor."""
        if self._inference:
            await asyncio.to_thread(self._inference.forget, actor, incarnation)

    async def report(self) -> InferenceReport:
        """Return what was done, after `REPORT_EVERY_S`; raise at once what made answering fail."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_failed.wait(), REPORT_EVERY_S)
        report = InferenceReport()
        if self._inference:
            if self._has_failed.is_set():
                self._inference.failed.result()
            report = self._inference.report()
        report.log_records = self._log.take()
        return report

    async def ping(self) -> int:
        """Return the process id."""
        return os.getpid()

    def _build(self, version: int, flat: Any) -> Inference:
        import torch

        from dreamfleet.common.acting.acting_model import ActingModel

        device = "cuda" if self._settings.learner.device != "cpu" and torch.cuda.is_available() else "cpu"
        torch.backends.cudnn.allow_tf32 = False
        threads = len(os.sched_getaffinity(0)) if device == "cuda" else torch.get_num_threads()
        model = ActingModel(self._settings, self._spaces, explores=True, device=device, threads=threads)
        most = MOST_PLANNED if self._settings.behaviour.kind == "planner" else MOST_ENVIRONMENTS
        return Inference(CentralPolicy(self._settings, model), most, version, flat)
