"""What the states learn to tell of the observation by: pure functions of tensors, and which of them the settings name.

Two of them need no decoder. They compare the embedding of each step with the projection of its state, on which alone
their gradient acts: it reaches the encoder through the states. The embedding is a target without gradient, as in
R2-Dreamer's release (github.com/NM512/r2dreamer at 546e4fa).

Shapes: B batch, T time, N states (B·T), E embedding, F feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.model import LossSettings
from dreamfleet.common.settings.schema import Settings
from dreamfleet.common.torch_state import full_precision, without_autocast
from dreamfleet.learner.ranks import ALONE, Ranks

LEAST_DEVIATION = 1e-8
"""Added to a deviation before it divides, as in R2-Dreamer: a number that never changes correlates with nothing."""


class RepresentationLoss(NamedTuple):
    """What the states learn by, weighted; the same of a decoder that learns aside, 0 without; and the parts by name."""

    total: Tensor
    aside: Tensor | float
    metrics: dict[str, Tensor]


def representation_loss(
    model: WorldModel,
    feature: Tensor,
    targets: Mapping[str, Tensor],
    embedding: Tensor | None,
    settings: LossSettings,
    ranks: Ranks = ALONE,
) -> RepresentationLoss:
    """Return the loss that `loss.representation` names, and that of a decoder which learns aside.

    A decoder aside learns from features without their gradient, of one in `decoder_every` sequences: always the same
    places of the batch, whose sequences are drawn anew for each update, and at least one on each rank.

    Args:
        feature: (B, T, F).
        targets: the observation in the network's units, (B, T, …).
        embedding: (B, T, E), of the same; None if the model reconstructs.
        ranks: that share the batch, of which this is a part.
    """
    if embedding is None:
        loss, metrics = _reconstruction(model, feature, targets)
        return RepresentationLoss(settings.reconstruction_scale * loss, 0.0, metrics)
    projected, seen = model.project(feature).flatten(0, 1), full_precision(embedding.detach()).flatten(0, 1)
    if settings.representation == "redundancy":
        loss = redundancy_loss(projected, seen, settings.redundancy_lambda, ranks)
        total, metrics = settings.redundancy_scale * loss, {"loss/redundancy": loss}
    else:
        loss = contrastive_loss(projected, seen, ranks)
        total, metrics = settings.contrastive_scale * loss, {"loss/contrastive": loss}
    if model.decoder is None:
        return RepresentationLoss(total, 0.0, metrics)
    every = settings.decoder_every
    few = {name: target[::every] for name, target in targets.items()}
    aside, of_decoder = _reconstruction(model, feature[::every].detach(), few)
    return RepresentationLoss(total, settings.reconstruction_scale * aside, metrics | of_decoder)


def _reconstruction(
    model: WorldModel, feature: Tensor, targets: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of all entries together, and each by itself if there are several."""
    by_name = {name: reconstruction_loss(targets[name], mean) for name, mean in model.decode(feature).items()}
    loss = torch.stack(list(by_name.values())).sum()
    metrics = {"loss/reconstruction": loss}
    if len(by_name) > 1:
        metrics |= {f"loss/reconstruction/{name}": part for name, part in by_name.items()}
    return loss, metrics


def reconstruction_loss(target: Tensor, mean: Tensor) -> Tensor:
    """Return ½·Σ(target − mean)² over all axes but the first two, averaged over B and T.

    This is minus the log-likelihood under a unit-variance Normal without its constant, ½·log 2π for each number: in a
    picture of 64×64×3 that would be 11,292, which has no gradient and would hide what changes. Summed, not averaged,
    over a picture, since it is the likelihood of a whole observation that is weighed against one KL.

    Both are (B, T, …).
    """
    return 0.5 * (target - mean).square().flatten(2).sum(dim=-1).mean()


def redundancy_loss(projected: Tensor, embedding: Tensor, lambda_: float, ranks: Ranks = ALONE) -> Tensor:
    """Return Σᵢ(1 − cᵢᵢ)² + λ·Σᵢ≠ⱼ cᵢⱼ² of the correlations c (E, E) between projections and embeddings, both (N, E).

    R2-Dreamer's redundancy reduction (arXiv 2603.18202), which is that of Barlow Twins (arXiv 2103.03230, equation 1):
    each number of a projection should follow its own of the embedding, and no other. As in R2-Dreamer's release the
    numbers are centred and divided by their unbiased deviation over all N, so that c is at most (N − 1)/N.

    Over several ranks, means, deviations and correlations are those of the whole batch.
    """
    with without_autocast(projected):
        size = len(projected) * ranks.count
        ours, theirs = (_standardised(x, size, ranks) for x in (projected, embedding))
        correlation = ranks.mean(ours.T @ theirs / len(projected))
        own = correlation.diagonal()
        between = correlation.square().sum() - own.square().sum()
        return (1.0 - own).square().sum() + lambda_ * between


def _standardised(x: Tensor, size: int, ranks: Ranks) -> Tensor:
    """Return numbers (N, E) with a mean of 0 and a deviation of 1 over all ranks' `size` rows."""
    centred = x - ranks.mean(x.mean(dim=0))
    variance = ranks.mean(centred.square().mean(dim=0)) * (size / (size - 1))
    # A root has no gradient at 0; below the square of what is added next, it makes no difference.
    deviation = variance.clamp(min=LEAST_DEVIATION**2).sqrt()
    return centred / (deviation + LEAST_DEVIATION)


def contrastive_loss(projected: Tensor, embedding: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Return the mean of −log(exp(pₙ·eₙ) / Σₘ exp(pₙ·eₘ)), for projections p and embeddings e (N, E).

    InfoNCE (arXiv 1807.03748) as R2-Dreamer's release has it beside its own loss, and as Dreamer V1 describes it
    (arXiv 1912.01603, its contrastive objective): a state should tell its own observation from those of all other steps
    of the batch. It is log N where all are alike, and 0 at best.

    Over several ranks the others are those of the whole batch.
    """
    with without_autocast(projected):
        logits = projected @ ranks.gather(embedding).T  # (N, N of all ranks)
        own = torch.arange(len(projected), device=projected.device) + ranks.number * len(projected)
        return F.cross_entropy(logits, own)


def describe(settings: Settings) -> list[str]:
    """Return in a sentence what the states learn by and what becomes of the decoder, unless they reconstruct."""
    loss = settings.loss
    if loss.representation == "reconstruction":
        return []
    learns = f"it learns aside, from one in {loss.decoder_every} sequences of a batch"
    none = "there is none (loss.decoder_every 0): no pictures are drawn"
    return [f"loss.representation {loss.representation}, decoder: {learns if loss.has_decoder else none}"]
