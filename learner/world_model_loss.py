"""The world model's loss: pure functions of tensors.

Shapes: B batch, T time, D deterministic, S stochastic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dreamfleet.common.acting.action_encoding import encode_actions, previous_actions
from dreamfleet.common.model.distributions import Bernoulli, Gaussian, TwoHot, balanced_kl, state_kl
from dreamfleet.common.model.rssm import LoopInputs, Rollout, State
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.model import LossSettings
from dreamfleet.common.torch_state import as_input
from dreamfleet.learner.ranks import ALONE, Ranks
from dreamfleet.learner.representation import representation_loss


class LossResult(NamedTuple):
    """The loss (a scalar, with that of a decoder aside), its detached parts by name, and the states it is of."""

    total: Tensor
    metrics: dict[str, Tensor]
    rollout: Rollout


def likelihood_loss(prediction: Gaussian | Bernoulli | TwoHot, target: Tensor) -> Tensor:
    """Return minus the whole log-likelihood of a target (B, T), averaged; with a unit Normal 0.919 is the least."""
    return -prediction.log_prob(target).mean()


def free_nats(kl: Tensor, free: float, per: Literal["element", "mean"], ranks: Ranks = ALONE) -> Tensor:
    """Return the mean of a KL (B, T) beyond `free` nats.

    `element`: mean of max(0, KL − free), as PlaNet. `mean`: max(0, mean KL − free), as Dreamer V1, whose max(mean KL,
    free) differs by a constant, as V2's and V3's do. The mean is over the batches of all ranks: they decide together,
    and the mean of what they return is the loss.
    """
    if per == "element":
        return (kl - free).clamp(min=0.0).mean()
    mean = kl.mean()
    return torch.where(ranks.mean(mean.detach()) < free, 0.0, mean - free)


def kl_loss(rollout: Rollout, settings: LossSettings, ranks: Ranks = ALONE) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the KL between posterior and prior before `kl_scale`, and its metrics.

    Split (V2, V3): dynamics_scale·free(KL(sg(q) ‖ p)) + representation_scale·free(KL(q ‖ sg(p))), each beyond free nats
    of its own; else free(KL(q ‖ p)), with one gradient for both.
    """
    free, per = settings.free_nats, settings.free_nats_per
    if settings.kl_split:
        kl, to_posterior = balanced_kl(rollout.posterior, rollout.prior)  # (B, T), equal in value
        dynamics, representation = (free_nats(each, free, per, ranks) for each in (kl, to_posterior))
        loss = settings.dynamics_scale * dynamics + settings.representation_scale * representation
    else:
        kl = state_kl(rollout.posterior, rollout.prior)  # (B, T)
        loss = free_nats(kl, free, per, ranks)
    metrics = {"loss/kl": loss, "kl/nats": kl.mean(), "kl/free_fraction": (kl <= free).float().mean()}
    for name, distribution in (("prior", rollout.prior), ("posterior", rollout.posterior)):
        if isinstance(distribution, Gaussian):
            metrics[f"kl/{name}_std"] = distribution.std.mean()
        else:
            metrics[f"kl/{name}_entropy"] = distribution.detach().entropy().mean()
    return loss, metrics


def continue_target(is_terminal: Tensor, horizon: int) -> Tensor:
    """Return the continue head's target: (1 − is_terminal)·(1 − 1/horizon), without the factor if the horizon is 0.

    With the factor its mean is the discount of a step, and products of it are discounts over several.
    """
    alive = 1.0 - as_input(is_terminal)
    return alive * (1.0 - 1.0 / horizon) if horizon else alive


class Seen(NamedTuple):
    """What is known of a batch before the loop over time: its targets (B, T, …), previous actions and loop inputs.

    Attributes:
        embedding: (B, T, E), without gradient, where the states learn by it and not by a decoder; else None.
    """

    targets: dict[str, Tensor]
    actions: Tensor
    inputs: LoopInputs
    embedding: Tensor | None


def before_loop(model: WorldModel, batch: Mapping[str, Tensor]) -> Seen:
    """Return what the loop over a batch reads, and what is predicted after it."""
    is_first = batch["is_first"].bool()
    targets = model.normalise(batch)
    previous = previous_actions(encode_actions(model.spaces.action, batch["action"]), is_first)
    embedding = model.embed(targets)
    inputs, actions = model.dynamics.before_loop(embedding, previous, is_first)
    # A copy: compiled, this returns no view of what also goes into its inputs.
    return Seen(targets, actions, inputs, embedding.detach().clone() if model.projector is not None else None)


def world_model_loss(
    model: WorldModel, batch: Mapping[str, Tensor], settings: LossSettings, ranks: Ranks = ALONE
) -> LossResult:
    """Return the evidence lower bound's negative (PlaNet, equation 3), with the settings' weights and free nats.

    Where `loss.representation` names another, that is in the place of the observations' likelihood.

    Every step of a sequence takes part in every term. The reward at t is predicted from the state at t, on arriving at
    observation t; where an episode begins that is the reset's reward, 0, as in PlaNet.

    Args:
        model: in training mode to train it, in eval mode to measure it.
        batch: the fields of the step format as (B, T, …) on the model's device; actions as stored, pictures as bytes.
        ranks: that share the batch, of which this is a part.

    Returns:
        total; metrics `loss/total` (without that of a decoder aside), `loss/redundancy` or `loss/contrastive`,
        `loss/reconstruction` of a decoder (and `loss/reconstruction/NAME` of several entries), `loss/reward`,
        `loss/continue` (if predicted) and `loss/kl` (beyond the free nats), each before its weight; `kl/nats` (before
        the free nats), `kl/free_fraction` (share of the steps whose KL is within them), `kl/prior_std` and
        `kl/posterior_std` or, of categorical states, `_entropy` in nats, `reward/absolute_error`; and the rollout.
    """
    seen = before_loop(model, batch)
    states, raw = model.dynamics.loop(seen.inputs, model.dynamics.initial(len(seen.actions)))
    return after_loop(model, batch, seen, states, raw, settings, ranks)


def after_loop(
    model: WorldModel,
    batch: Mapping[str, Tensor],
    seen: Seen,
    states: State,
    raw: Tensor,
    settings: LossSettings,
    ranks: Ranks = ALONE,
) -> LossResult:
    """Return the loss of a batch from what the loop over it gave, see `RSSM.loop`."""
    rollout = model.dynamics.after_loop(states, raw, seen.actions)
    feature = rollout.states.feature  # (B, T, D + S)

    represented = representation_loss(model, feature, seen.targets, seen.embedding, settings, ranks)
    reward = model.predict_reward(feature)
    reward_loss = likelihood_loss(reward, batch["reward"])
    kl, kl_metrics = kl_loss(rollout, settings, ranks)

    total = represented.total + settings.reward_scale * reward_loss + settings.kl_scale * kl
    metrics = {
        **represented.metrics,
        "loss/reward": reward_loss,
        **kl_metrics,
        "reward/absolute_error": (reward.mean - batch["reward"]).abs().mean(),
    }
    if model.continuation is not None:
        goes_on = continue_target(batch["is_terminal"], settings.continue_horizon)
        continue_loss = likelihood_loss(model.predict_continue(feature), goes_on)
        total = total + settings.continue_scale * continue_loss
        metrics["loss/continue"] = continue_loss
    metrics["loss/total"] = total
    return LossResult(total + represented.aside, {name: value.detach() for name, value in metrics.items()}, rollout)
