"""Open-loop imagination beside the truth: how far ahead a model predicts what will be seen.

A dream sees the first `context` steps of a sequence and imagines the others from the actions alone. At each horizon its
error is compared with those of two predictions that need no model: the last seen frame again, and the mean frame. A
model that has learnt nothing of what moves is no better than these.

Shapes: B sequences, T steps, H horizon (steps imagined, T - context).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamfleet.common.acting.action_encoding import encode_actions, previous_actions
from dreamfleet.common.experience.spaces import ObservationSpec, Spaces
from dreamfleet.common.model.rssm import State
from dreamfleet.common.model.world_model import WorldModel

Batch = Mapping[str, np.ndarray]
_GROUP = 8
"""Sequences that are imagined at once, which bounds the memory."""


class Unrolled(NamedTuple):
    """A model's view of sequences: each entry of the observation as (B, T, …), pictures in bytes, and the rewards.

    Attributes:
        reconstruction: each step from the state that has seen it.
        prediction: likewise up to `context`, then one sampled open loop.
        mean_prediction: the mean of several such, in float32; pictures in units of bytes still.
        reward: (B, T), mean rewards of the states of `prediction`.
    """

    reconstruction: dict[str, np.ndarray]
    prediction: dict[str, np.ndarray]
    mean_prediction: dict[str, np.ndarray]
    reward: np.ndarray


class HorizonErrors(NamedTuple):
    """Mean squared errors at each horizon, (H,) each: of the model, the last seen frame again, and the mean frame."""

    model: np.ndarray
    last_frame: np.ndarray
    mean_frame: np.ndarray


@dataclass(frozen=True)
class DreamResult:
    """One dream of several sequences, and its errors; `context` steps of each are seen.

    Attributes:
        observation: name of the entry that was compared.
        is_image: whether it is a picture; errors are then per pixel in units of [0, 1], else per dimension as it is.
        truth: (B, T, …) of that entry.
        imagination: (B, T, …): reconstructed while seen, then one sampled future.
        predicted_reward: (B, T), along `imagination`.
        errors: at horizons 1 to H.
        beats_both_until: the greatest horizon up to which the model is better than both others at each; 0 if at none.
        samples: how many sampled futures the model's prediction is the mean of.
    """

    observation: str
    is_image: bool
    context: int
    truth: np.ndarray
    imagination: np.ndarray
    true_reward: np.ndarray
    predicted_reward: np.ndarray
    errors: HorizonErrors
    beats_both_until: int
    samples: int

    @property
    def horizon(self) -> int:
        """Steps imagined."""
        return self.truth.shape[1] - self.context


def dream(model: WorldModel, batch: Batch, context: int, samples: int = 4, seed: int = 0) -> DreamResult:
    """Have a model imagine what follows the first steps of sequences, and compare with what happened.

    The prediction that is measured is the mean of several sampled futures, since the mean frame that it is compared
    with is a mean too; the one that is shown is a single sample.

    Args:
        model: on any device; its mode is restored.
        batch: fields of the step format (B, T, …), none of which runs into another episode.
        context: steps seen, at least 1 and less than T.
        samples: futures to sample.

    Raises:
        ValueError: if the context leaves nothing to predict, or a sequence runs into another episode.
    """
    spec = shown_observation(model.spaces)
    truth = batch[spec.name]
    torch.manual_seed(seed)
    groups = range(0, len(truth), _GROUP)
    dreams = [
        unroll(model, {name: part[g : g + _GROUP] for name, part in batch.items()}, context, samples) for g in groups
    ]
    mean = np.concatenate([group.mean_prediction[spec.name] for group in dreams])
    errors = horizon_errors(in_units(truth, spec), in_units(mean, spec), context)
    return DreamResult(
        observation=spec.name,
        is_image=spec.is_image,
        context=context,
        truth=truth,
        imagination=np.concatenate([group.prediction[spec.name] for group in dreams]),
        true_reward=batch["reward"],
        predicted_reward=np.concatenate([group.reward for group in dreams]),
        errors=errors,
        beats_both_until=beats_both_until(errors),
        samples=samples,
    )


def unroll(model: WorldModel, batch: Batch, context: int, samples: int = 1) -> Unrolled:
    """Return a model's reconstructions of sequences, and its predictions after `context` steps; chance is torch's.

    Args:
        model: its mode is restored.
        batch: fields of the step format (B, T, …).
        samples: futures whose mean is taken, each from a state sampled anew.

    Raises:
        ValueError: if the context leaves nothing to predict, or a sequence runs into another episode.
    """
    steps = batch["reward"].shape[1]
    if not 1 <= context < steps:
        raise ValueError(f"a context of {context} steps leaves nothing to predict of {steps}")
    if batch["is_first"][:, 1:].any():
        raise ValueError("a sequence runs into another episode, which its actions cannot predict")
    device = next(model.parameters()).device
    names = [spec.name for spec in model.spaces.observations]
    tensors = {name: torch.as_tensor(batch[name], device=device) for name in (*names, "action", "is_first")}
    with torch.no_grad(), _eval_mode(model):
        is_first = tensors["is_first"]
        actions = previous_actions(encode_actions(model.spaces.action, tensors["action"]), is_first)
        embedding = model.encode({name: tensors[name] for name in names})
        seen = model.observe(embedding, actions, is_first).states
        ahead = _continue(model, seen, actions, context)
        prediction = _shown(model, model.decode(ahead.feature))
        mean = {name: value.astype(np.float32) / samples for name, value in prediction.items()}
        for _ in range(samples - 1):
            again = model.observe(embedding[:, :context], actions[:, :context], is_first[:, :context]).states
            for name, value in _shown(model, model.decode(_continue(model, again, actions, context).feature)).items():
                mean[name] += value.astype(np.float32) / samples
        reward = model.predict_reward(ahead.feature).mean.float().cpu().numpy()
        return Unrolled(_shown(model, model.decode(seen.feature)), prediction, mean, reward)


def _continue(model: WorldModel, seen: State, actions: Tensor, context: int) -> State:
    """Return the states (B, T, …): those seen up to `context`, then imagined ones."""
    imagined = model.imagine(seen.map(lambda part: part[:, context - 1]), actions[:, context:])
    return State(*(torch.cat([s[:, :context], i], dim=1) for s, i in zip(seen, imagined, strict=True)))


def horizon_errors(truth: np.ndarray, prediction: np.ndarray, context: int) -> HorizonErrors:
    """Return the mean squared errors at each horizon after `context`, for truth and prediction (B, T, …).

    The mean frame is that of the whole truth, frames to be predicted among them: the best that any one frame can do.
    """
    mean_frame = truth.mean(axis=(0, 1))
    ahead = truth[:, context:]

    def error(guess: np.ndarray) -> np.ndarray:
        squares = np.square(ahead - guess)
        return squares.mean(axis=(0, *range(2, squares.ndim)))

    return HorizonErrors(error(prediction[:, context:]), error(truth[:, context - 1 : context]), error(mean_frame))


def beats_both_until(errors: HorizonErrors) -> int:
    """Return the greatest horizon k such that the model is better than both others at each of 1 to k, or 0."""
    better = (errors.model < errors.last_frame) & (errors.model < errors.mean_frame)
    return len(better) if better.all() else int(np.argmin(better))


def longest_episode(batch: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """Return a batch of one: the sequence with the longest first episode, cut to that and to `most` steps."""
    firsts = batch["is_first"].astype(bool).copy()
    firsts[:, 0] = False
    lengths = np.where(firsts.any(axis=1), firsts.argmax(axis=1), firsts.shape[1])
    row = int(lengths.argmax())
    return {name: array[row : row + 1, : min(int(lengths[row]), most)] for name, array in batch.items()}


def shown_observation(spaces: Spaces) -> ObservationSpec:
    """Return the entry of the observation that is shown and compared: the first picture, else the first vector."""
    return (*spaces.images, *spaces.vectors)[0]


def in_units(values: np.ndarray, spec: ObservationSpec) -> np.ndarray:
    """Return pictures' bytes in [0, 1], vectors as they are, in float64."""
    return values.astype(np.float64) / (255.0 if spec.is_image else 1.0)


def _shown(model: WorldModel, means: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return decoded means in the environment's units, as they can be shown: pictures in bytes."""
    return {name: value.cpu().numpy() for name, value in model.denormalise(means).items()}


@contextmanager
def _eval_mode(model: WorldModel) -> Iterator[None]:
    """Without noise on the pictures and with batch norm's running statistics; the mode is restored."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
