"""A dream that is steered: one imagined step for each action, back and on by another branch, beside the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamfleet.common.errors import UserError, shown
from dreamfleet.common.experience.spaces import ObservationSpec
from dreamfleet.common.model.distributions import StateDistribution
from dreamfleet.common.model.rssm import State
from dreamfleet.deploy.view.actions import checked_action
from dreamfleet.deploy.view.moment import ImageFormat, Moment
from dreamfleet.deploy.view.truth import TrueStep, Truth
from dreamfleet.deploy.view.viewed_model import Sight, ViewedModel, describe_state, entropy_of
from dreamfleet.learner.pictures.open_loop import in_units, shown_observation

FUTURES = (1, 4, 9, 16)
"""How many samples of one state may be imagined at once."""
MOST_STEPS = 2000
"""A path is no longer: all its states are kept."""
TAKE_FORMAT = 1
MOST_DRAWN = 8
"""Of a vector's numbers, as lines over the steps."""


@dataclass
class DreamStep:
    """One state of the path.

    Attributes:
        truth: what really happened at this step; None if nobody knows.
        action: that led here; None at the start.
        samples: whether it was sampled, or is the prior's mode.
    """

    state: State
    prior: StateDistribution | None
    sight: Sight
    truth: TrueStep | None
    action: np.ndarray | None
    samples: bool
    reward_sum: float
    errors: tuple[float, float, float] | None = None
    passed_at: int | None = None


class DreamSession:
    """A path of imagined steps, of which any may be returned to.

    The noise of a step follows from the seed and the step's number: the same take gives the same dream, and two
    branches differ by their actions alone.

    Args:
        start: how the truth's start is named in a take, such as {"episode": "0.0.0.0", "step": 12}.
        samples: whether states are sampled; else the mode of each prior is taken.
        futures: how many samples of the same state are imagined at once, one of `FUTURES`.
    """

    def __init__(
        self,
        model: ViewedModel,
        truth: Truth,
        start: Mapping[str, Any],
        futures: int = 1,
        samples: bool = True,
        seed: int = 0,
        image_format: ImageFormat = "jpeg",
    ) -> None:
        self._model, self._truth, self._start = model, truth, dict(start)
        self._seed, self._format = seed, image_format
        self._samples, self._futures = samples, checked_futures(futures)
        self._shown = shown_observation(model.spaces)
        state = model.infer(truth.context, self._futures, seed)
        self._path = [DreamStep(state, None, model.look(state), truth.after([]), None, samples, 0.0)]
        self.index = 0

    # Steering -------------------------------------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        """Of the checkpoint that dreams."""
        return self._model.updates

    def step(self, action: Any) -> Moment:
        """Imagine one step on from here, and forget what lay beyond: a stored action, "policy" or "recorded".

        Raises:
            UserError: if it is none of the environment's actions, nothing is recorded here, or the path is full.
        """
        if self.index + 1 >= MOST_STEPS:
            raise UserError(f"a dream has at most {MOST_STEPS} steps: go back, or start anew")
        del self._path[self.index + 1 :]
        self._imagine(self._chosen(action))
        return self.moment()

    def rewind(self, to: int) -> Moment:
        """Return to a moment of the path.

        Raises:
            UserError: if there is none.
        """
        if not 0 <= to < len(self._path):
            raise UserError(f"the dream has the moments 0 to {len(self._path) - 1}, and none with the number {to}")
        self.index = to
        return self.moment()

    def set(
        self, samples: bool | None = None, futures: int | None = None, image_format: ImageFormat | None = None
    ) -> Moment:
        """Change how the next steps are imagined, or how pictures travel.

        Raises:
            UserError: if there may not be so many futures.
        """
        self._futures = self._futures if futures is None else checked_futures(futures)
        self._samples = self._samples if samples is None else samples
        self._format = image_format or self._format
        return self.moment()

    def close(self) -> None:
        """Free what the truth holds."""
        self._truth.close()

    # Takes ----------------------------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """Return the take: start, seed and actions, from which `replay_take` makes the same dream."""
        steps = [
            {"action": step.action.tolist(), "samples": step.samples, "futures": len(step.state.stochastic)}
            for step in self._path[1:]
            if step.action is not None
        ]
        return {
            "format": TAKE_FORMAT,
            "updates": self._model.updates,
            "start": self._start,
            "seed": self._seed,
            "futures": len(self._path[0].state.stochastic),
            "samples": self._path[0].samples,
            "steps": steps,
        }

    def replay_take(self, take: Mapping[str, Any]) -> Moment:
        """Imagine the steps of a take, on a session that was made with its start, seed, futures and samples.

        Raises:
            UserError: if it is no take.
        """
        for _ in self.replay_steps(take):
            pass
        return self.moment()

    def replay_steps(self, take: Mapping[str, Any]) -> Iterator[int]:
        """See `replay_take`; yield the number of each step that was imagined."""
        try:
            steps = [(step["action"], bool(step["samples"]), int(step["futures"])) for step in take["steps"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"this is no take of a dream: {shown(error)}") from None
        for action, samples, futures in steps[: MOST_STEPS - 1]:
            self._samples, self._futures = samples, checked_futures(futures)
            self._imagine(self._chosen(action))
            yield self.index

    # Moments --------------------------------------------------------------------------------------------------------

    def moment(self) -> Moment:
        """Return what is shown of the step that the session is at."""
        step = self._path[self.index]
        header = self._figures(self.index) | {
            "kind": "moment",
            "last": len(self._path) - 1,
            "action": None if step.action is None else step.action.tolist(),
            "passed_baselines_at": step.passed_at,
            "episode_over": bool(step.truth and step.truth.is_over),
            "samples": self._samples,
            "futures": self._futures,
            "state": None if step.prior is None else describe_state(step.prior, step.state),
        }
        moment = Moment(header)
        for spec in self._model.spaces.images:
            true = step.truth and step.truth.observation[spec.name]
            self._add_pictures(moment, spec, step.sight.observations[spec.name], true)
        return moment

    def path(self) -> list[dict[str, Any]]:
        """Return the figures of every step, of vectors the first numbers alone, as a page draws them over time."""
        return [self._figures(index, MOST_DRAWN) for index in range(len(self._path))]

    def _figures(self, index: int, most_numbers: int | None = None) -> dict[str, Any]:
        step, shown = self._path[index], slice(most_numbers)
        sight, truth, errors = step.sight, step.truth, step.errors or (None, None, None)
        return {
            "index": index,
            "reward": float(sight.reward[0]),
            "reward_sum": step.reward_sum,
            "true_reward": truth.reward if truth else None,
            "continue": None if sight.goes_on is None else float(sight.goes_on[0]),
            "value": None if sight.value is None else float(sight.value[0]),
            "entropy": None if step.prior is None else entropy_of(step.prior),
            "error": errors[0],
            "error_last_frame": errors[1],
            "error_mean_frame": errors[2],
            "vectors": {
                name: {"dream": values[0][shown], "truth": truth.observation[name][shown] if truth else None}
                for name, values in sight.observations.items()
                if name in {spec.name for spec in self._model.spaces.vectors}
            },
        }

    def _add_pictures(self, moment: Moment, spec: ObservationSpec, dreamt: np.ndarray, true: np.ndarray | None) -> None:
        for future, picture in enumerate(dreamt):
            moment.add_image("dream", spec.name, picture, self._format, future)
        if true is not None:
            moment.add_image("truth", spec.name, true, self._format)
            difference = np.abs(dreamt[0].astype(np.int16) - true)
            moment.add_image("error", spec.name, difference.astype(np.uint8), self._format)
        if len(dreamt) > 1:
            spread = dreamt.astype(np.float32).std(axis=0).mean(axis=-1, keepdims=True)
            moment.add_image("variance", spec.name, np.clip(2.0 * spread, 0, 255).astype(np.uint8), self._format)

    # The path -------------------------------------------------------------------------------------------------------

    def _actions(self) -> list[np.ndarray]:
        return [step.action for step in self._path[1 : self.index + 1] if step.action is not None]

    def _chosen(self, action: Any) -> np.ndarray:
        here = self._path[self.index]
        if action == "policy":
            return self._model.choose(here.state, self._seed, self.index, self._samples)
        if action == "recorded":
            recorded = self._truth.recorded_action(self._actions())
            if recorded is None:
                raise UserError("no action is recorded from here on: the episode is over, or the dream has left it")
            return recorded
        return checked_action(self._model.spaces.action, action)

    def _imagine(self, action: np.ndarray) -> None:
        here = self._path[self.index]
        state = here.state
        if len(state.stochastic) != self._futures:  # the first future is the one that was chosen in
            state = state.map(lambda part: part[:1].expand(self._futures, *part.shape[1:]))
        after, prior = self._model.imagine(state, action, self._seed, self.index + 1, self._samples)
        sight = self._model.look(after)
        reward_sum = here.reward_sum + float(sight.reward[0])
        truth = self._truth.after([*self._actions(), action])
        step = DreamStep(after, prior, sight, truth, action, self._samples, reward_sum, passed_at=here.passed_at)
        self._path.append(step)
        self.index += 1
        self._measure(step)

    def _measure(self, step: DreamStep) -> None:
        """Compare the mean of all futures with the truth, where it is known, and with two guesses without a model."""
        if step.truth is None:
            return
        spec = self._shown
        true = in_units(step.truth.observation[spec.name], spec)
        guesses = (
            in_units(step.sight.observations[spec.name].mean(axis=0), spec),
            in_units(self._truth.context[spec.name][-1], spec),
            in_units(self._truth.mean_of(spec.name), spec),
        )
        model, last, mean = (float(np.square(true - guess).mean()) for guess in guesses)
        step.errors = model, last, mean
        if step.passed_at is None and model >= min(last, mean):
            step.passed_at = self.index


def checked_futures(futures: Any) -> int:
    """Return a number of futures.

    Raises:
        UserError: if it is none of `FUTURES`.
    """
    if futures not in FUTURES or isinstance(futures, bool):
        raise UserError(f"{shown(futures)} futures cannot be shown: there may be {', '.join(map(str, FUTURES))}")
    return int(futures)


def start_of_take(take: Any) -> tuple[Mapping[str, Any], int, int, bool]:
    """Return start, seed, futures and samples of a take.

    Raises:
        UserError: if it is no take.
    """
    try:
        if take["format"] != TAKE_FORMAT:
            found = shown(take["format"])
            raise UserError(f"a take of format {found} cannot be opened: this version knows {TAKE_FORMAT}")
        start, seed = take["start"], int(take["seed"])
        futures, samples = checked_futures(take["futures"]), bool(take["samples"])
        is_start = isinstance(start, Mapping) and isinstance(take["steps"], Sequence)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"this is no take of a dream: {shown(error)}") from None
    if not is_start or seed < 0:
        raise UserError("this is no take of a dream: it has no start, no seed, or no steps")
    return start, seed, futures, samples
