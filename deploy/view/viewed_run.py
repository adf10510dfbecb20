"""The run that is looked at: its model, its episodes and its facts, from its files alone, also while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamfleet.common.errors import UserError, first_line
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.view import run_facts
from dreamfleet.deploy.view.dream_session import FUTURES, MOST_STEPS, DreamSession, start_of_take
from dreamfleet.deploy.view.episode_table import EpisodeTable
from dreamfleet.deploy.view.moment import ImageFormat, encode_picture
from dreamfleet.deploy.view.play_session import PlaySession
from dreamfleet.deploy.view.truth import CONTEXT_STEPS, PlayedTruth, RecordedTruth, Truth
from dreamfleet.deploy.view.viewed_model import ViewedModel, in_a_row
from dreamfleet.learner.checkpoints.store import CheckpointStore

MOST_PREDICTED = 64


class ViewedRun:
    """A run, or a dataset, which has no model.

    What takes a model is to be called from one thread.

    Attributes:
        model: of the checkpoint that was loaded last; None for a dataset, or before there is one.
        episodes: of its replay.

    Args:
        checkpoint: "newest", "best" or a number of updates.

    Raises:
        UserError: if there is no such run or checkpoint, or it cannot be read.
    """

    def __init__(self, run: RunDirectory, checkpoint: str = "newest", device: str = "cpu") -> None:
        self.run = run.existing("")
        self._device = _checked_device(device)
        self.settings, self.spaces = run.settings(), run.spaces()
        directory, _ = run.experience(self.settings)
        is_own = directory == run.replay
        every = self.settings.replay.held_out_every
        self.episodes = EpisodeTable(directory, every, run_facts.storing_times(run) if is_own else None)
        self._store = CheckpointStore(run.checkpoints, kept=1)
        self._keys = run_facts.default_keys(self.spaces.action)
        self._settings_facts = run_facts.settings_of(self.settings)
        self.model: ViewedModel | None = None
        if checkpoint != "newest" or self._store.numbers():
            self.load(checkpoint)

    def load(self, checkpoint: str) -> None:
        """Take another checkpoint; sessions that have begun keep theirs.

        Raises:
            UserError: if there is none of this name, or it cannot be read.
        """
        if self.run.is_dataset:
            raise UserError("a dataset has no model")
        self.model = ViewedModel(self.run, checkpoint, self._device)

    def ask_environment(self) -> None:
        """Find out which keys the environment itself names, which takes as long as making it."""
        self._keys = run_facts.environment_keys(self.settings, self.spaces.action)

    def facts(self) -> dict[str, Any]:
        """Return all that the page says of the run."""
        model, status = self.model, run_facts.status_of(self.run)
        facts = run_facts.spaces_facts(self.spaces) | self._settings_facts
        facts["actions"]["keys"] = self._keys
        return facts | {
            "name": self.run.path.name,
            "kind": "dataset" if self.run.is_dataset else "run",
            "status": status["status"],
            "state": status["state"],
            "has_model": model is not None,
            "updates": model.updates if model else None,
            "newest_updates": max(self._store.numbers(), default=None),
            "checkpoints": self._store.numbers(),
            "evaluations": run_facts.evaluations_of(self.run),
            "pictures": list(run_facts.pictures_of(self.run)),
            "futures": list(FUTURES),
            "has_value": bool(model and model.has_value),
            "has_continue": bool(model and model.has_continue),
            "has_policy": bool(model and model.has_policy),
            "dream_horizon": self.settings.behaviour.horizon if self.settings.acts_by_weights else None,
        }

    # Sessions -------------------------------------------------------------------------------------------------------

    def dream(
        self,
        start: Mapping[str, Any],
        futures: int = 1,
        samples: bool = True,
        seed: int = 0,
        image_format: ImageFormat = "jpeg",
    ) -> DreamSession:
        """Return a dream from {"episode": id, "step": t} or {"reset": seed}.

        Raises:
            UserError: if there is no such start, or no model.
        """
        return self._dream_of(self._model(), start, futures, samples, seed, image_format)

    def dream_of_take(self, take: Any, image_format: ImageFormat = "jpeg") -> DreamSession:
        """Return the dream that a take was made of, at its start, by the take's own checkpoint if that still exists."""
        start, seed, futures, samples = start_of_take(take)
        model, updates = self._model(), take.get("updates")
        if updates != model.updates and updates in self._store.numbers():
            model = ViewedModel(self.run, str(updates), self._device)
        return self._dream_of(model, start, futures, samples, seed, image_format)

    def play(self, seed: int, image_format: ImageFormat = "jpeg") -> PlaySession:
        """Return the agent in its environment."""
        return PlaySession(self._model(), seed, image_format)

    def _dream_of(
        self,
        model: ViewedModel,
        start: Mapping[str, Any],
        futures: int,
        samples: bool,
        seed: int,
        image_format: ImageFormat,
    ) -> DreamSession:
        truth, named = self._truth(model, start)
        try:
            return DreamSession(model, truth, named, futures, samples, seed, image_format)
        except BaseException:
            truth.close()
            raise

    def _truth(self, model: ViewedModel, start: Mapping[str, Any]) -> tuple[Truth, dict[str, Any]]:
        if "reset" in start:
            seed = natural(start["reset"], "a reset's seed")
            return PlayedTruth(model.settings.env, model.spaces, seed), {"reset": seed}
        name, at = str(start.get("episode", ""))[:100], natural(start.get("step"), "the step of an episode")
        first = max(0, at + 1 - CONTEXT_STEPS)
        steps = self.episodes.steps(name, first, at + MOST_STEPS)
        self._check_step(name, at, first, steps)
        return RecordedTruth(steps, at - first), {"episode": name, "step": at}

    # Looking at episodes --------------------------------------------------------------------------------------------

    def frame(self, episode: str, name: str, step: int, image_format: ImageFormat) -> bytes:
        """Return a recorded picture, encoded."""
        self._check_entry(name, is_image=True)
        return encode_picture(self.episodes.steps(episode, step, step + 1)[name][0], image_format)

    def vector(self, episode: str, name: str, step: int) -> list[float]:
        """Return a recorded vector."""
        self._check_entry(name, is_image=False)
        values: list[float] = self.episodes.steps(episode, step, step + 1)[name][0].astype(float).tolist()
        return values

    def reconstruction(self, episode: str, name: str, step: int) -> np.ndarray:
        """Return what the model sees in an entry, given the steps up to this one."""
        model, first = self._model(), max(0, step + 1 - CONTEXT_STEPS)
        self._check_entry(name)
        seen = self.episodes.steps(episode, first, step + 1)
        self._check_step(episode, step, first, seen)
        return model.decode(model.infer(seen, 1, 0))[name][0]

    def prediction(self, episode: str, name: str, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an entry as it was recorded after a step, and as it was imagined from there, each (n, *shape)."""
        self._check_entry(name)
        model, first = self._model(), max(0, step + 1 - CONTEXT_STEPS)
        steps = self.episodes.steps(episode, first, step + 1 + min(count, MOST_PREDICTED))
        self._check_step(episode, step, first, steps)
        at = step - first
        truth = RecordedTruth(steps, at)
        state, states = model.infer(truth.context, 1, 0), []
        for number in range(at, len(steps["reward"]) - 1):
            state, _ = model.imagine(state, steps["action"][number], 0, number, samples=False)
            states.append(state)
        if not states:
            raise UserError(f"episode {episode} has no step after {step} that could be predicted")
        return steps[name][at + 1 :], model.decode(in_a_row(states))[name]

    def _check_step(self, episode: str, step: int, first: int, steps: Mapping[str, np.ndarray]) -> None:
        if first + len(steps["reward"]) <= step:
            raise UserError(f"episode {episode} has no step {step}")

    def _check_entry(self, name: str, is_image: bool | None = None) -> None:
        names = [spec.name for spec in self.spaces.observations if is_image in (None, spec.is_image)]
        if name not in names:
            raise UserError(f"there is no such observation '{name:.60}': there are {', '.join(names) or 'none'}")

    def _model(self) -> ViewedModel:
        if self.model is None:
            raise UserError("there is no model to look into: this is a dataset, or the run has no checkpoint yet")
        return self.model

    def close(self) -> None:
        """End what runs beside."""
        self.episodes.close()


def natural(value: Any, what: str) -> int:
    """Return a whole number from 0 on that came from outside.

    Raises:
        UserError: if it is none.
    """
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise UserError(f"{what} is a whole number from 0 on, not {value!s:.40}")
    return value


def _checked_device(name: str) -> str:
    try:
        torch.zeros(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: this build of torch is for a CPU alone
        reason = first_line(error)[:200].rstrip(".")
        reason = "there is no such device" if reason.startswith("Expected one of") else reason
        raise UserError(f"flag --device {name:.40}: torch cannot use it: {reason}; take cpu.") from None
    return name


def view_of(directory: Path, checkpoint: str = "newest", device: str = "cpu") -> ViewedRun:
    """Return a run to look at; see `ViewedRun`."""
    return ViewedRun(RunDirectory(directory), checkpoint, device)
