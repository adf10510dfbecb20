"""The process that collects: a Ray shell around the collector."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
from typing import Any

import cv2
import numpy as np
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from dreamfleet.actors.collector import Collector, CollectReport, build_collector
from dreamfleet.actors.environments.user_objects import SentCode
from dreamfleet.actors.evaluator import EvaluationReport, evaluate_weights
from dreamfleet.actors.inference_client import AsksByName
from dreamfleet.actors.last_words import announce_exits
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.acting.ray_weights import fetch_weights
from dreamfleet.common.process_log import WorkerLog
from dreamfleet.common.settings.schema import Settings
from dreamfleet.replay.ray_replay import RayChunkWriter

WEIGHTS_TIMEOUT_S = 30.0
"""New weights that do not arrive within this time are tried again with the next order."""


@ray.remote
class ActorProcess:
    """Owns K environments and one policy, and sends their steps to the replay.

    Whoever creates it hides the GPUs from it; it computes on one thread, and with random actions it imports no torch.

    Args:
        sent_code: what this process needs of the one that started the run, if anything.
        inference: how the names of the processes begin that act for all actors; empty where each acts by itself.
    """

    def __init__(
        self,
        settings: Settings,
        actor: int,
        incarnation: int,
        replay: Any,
        sent_code: SentCode | None = None,
        inference: str = "",
    ) -> None:
        cv2.setNumThreads(1)
        if sent_code:
            sent_code.install(ray.get_runtime_context().get_node_id())
        announce_exits()
        self._log = WorkerLog.install()
        self._settings, self._actor, self._incarnation, self._replay = settings, actor, incarnation, replay
        self._ask = AsksByName(inference) if inference else None
        self._built: Collector | None = None

    @property
    def _collector(self) -> Collector:
        """Built at the first order: an error in an actor's constructor would come with pages of Ray's own text."""
        if self._built is None:
            writer = RayChunkWriter(self._replay)
            self._built = build_collector(self._settings, self._actor, self._incarnation, writer, self._ask)
        return self._built

    def greet(self) -> str:
        """Return the name of the machine; an answer means that Ray has placed the actor.

        What a policy needs is imported before: on a busy machine that takes seconds, which are not the environment's.
        """
        if self._settings.acts_by_weights and not self._ask:
            importlib.import_module("dreamfleet.common.acting.model_policy")
        return platform.node()

    def collect(self, steps: int, weights: PublishedWeights | None) -> CollectReport:
        """Adopt the weights, None for actions by chance, if they are newer; collect exactly this many steps.

        Raises:
            UserError: if the environment cannot be made.
            EnvironmentFailedError: if an environment fails.
        """
        lost = int(weights is not None and not self._adopt(weights))
        try:
            report = self._collector.collect(steps)
        except BaseException:  # KeyboardInterrupt, too
            self.close()  # processes that its environments started would outlive this one
            raise
        report.weights_lost = lost
        report.log_records = self._log.take()
        return report

    def evaluate(self, weights: PublishedWeights) -> EvaluationReport:
        """Play the evaluation's episodes with these weights.

        Raises:
            UserError: if the environment cannot be made.
        """
        flat = fetch_weights(weights, WEIGHTS_TIMEOUT_S)
        report = evaluate_weights(self._settings, weights.version, flat)
        return dataclasses.replace(report, log_records=self._log.take())

    def close(self) -> None:
        """Close the environments, if there are any: simulators may be processes of their own."""
        if self._built is not None:
            self._built.close()

    def ping(self) -> int:
        """Return the process id."""
        return os.getpid()

    def _adopt(self, weights: PublishedWeights) -> bool:
        """Adopt weights if they are newer; return False if they cannot be fetched, as when their node is lost."""
        if weights.version <= self._collector.version:
            return True
        if self._ask:
            self._collector.adopt(weights.version, np.empty(0, np.float32))  # they act elsewhere
            return True
        try:
            self._collector.adopt(weights.version, fetch_weights(weights, WEIGHTS_TIMEOUT_S))
        except (ObjectLostError, GetTimeoutError):
            return False
        return True
