"""What a learner shows of its model while it trains: one sequence, rebuilt and predicted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.learner.pictures.open_loop import shown_observation, unroll
from dreamfleet.learner.pictures.pictures import Comparison, Pictures, compare_images, compare_vectors


def draw_pictures(
    model: WorldModel, batch: Mapping[str, np.ndarray], context: int, updates: int, held_out: bool
) -> Pictures:
    """Return the pictures of a batch's first sequence; chance is torch's.

    Args:
        model: on any device.
        batch: fields of the step format (B, T, …); the first sequence runs into no other episode.
        context: steps that the prediction sees.
        updates: made so far, for the title.
        held_out: whether the sequence was kept from training, for the title.
    """
    first = {name: array[:1] for name, array in batch.items()}
    unrolled = unroll(model, first, context)
    spec = shown_observation(model.spaces)
    comparison = Comparison(
        truth=first[spec.name][0],
        reconstruction=unrolled.reconstruction[spec.name][0],
        prediction=unrolled.prediction[spec.name][0],
        context=context,
        true_reward=first["reward"][0],
        predicted_reward=unrolled.reward[0],
    )
    kind = "held-out sequence, never trained on" if held_out else "sequence from training"
    title = f"Update {updates}: observation '{spec.name}' of a {kind}"
    facts = {
        "observation": spec.name,
        "held_out": held_out,
        "context": context,
        "steps": len(comparison.truth),
        "updates": updates,
    }
    if not spec.is_image:
        return Pictures(compare_vectors(comparison, title), None, facts)
    still, video = compare_images(comparison, title)
    return Pictures(still, video, facts)


def longest_episode(batch: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """Return as a batch of one the sequence that stays longest in its first episode, cut there and to `most`."""
    firsts = batch["is_first"].astype(bool).copy()
    firsts[:, 0] = False
    lengths = np.where(firsts.any(axis=1), firsts.argmax(axis=1), firsts.shape[1])
    row = int(lengths.argmax())
    return {name: array[row : row + 1, : min(int(lengths[row]), most)] for name, array in batch.items()}
