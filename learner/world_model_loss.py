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
from dreamfleet.common.model.rssm import Rollout
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.model import LossSettings
from dreamfleet.common.torch_state import as_input


class LossResult(NamedTuple):
    """The loss (a scalar), its detached parts by name, and the states it was computed on."""

    total: Tensor
    metrics: dict[str, Tensor]
    rollout: Rollout


def reconstruction_loss(target: Tensor, mean: Tensor) -> Tensor:
    """Return ½·Σ(target − mean)² over all axes but the first two, averaged over B and T.

    This is minus the log-likelihood under a unit-variance Normal without its constant, ½·log 2π for each number: in a
    picture of 64×64×3 that would be 11,292, which has no gradient and would hide what changes. Summed, not averaged,
    over a picture, since it is the likelihood of a whole observation that is weighed against one KL.

    Both are (B, T, …).
    """
    return 0.5 * (target - mean).square().flatten(2).sum(dim=-1).mean()


def likelihood_loss(prediction: Gaussian | Bernoulli | TwoHot, target: Tensor) -> Tensor:
    """Return minus the whole log-likelihood of a target (B, T), averaged; with a unit Normal 0.919 is the least."""
    return -prediction.log_prob(target).mean()


def free_nats(kl: Tensor, free: float, per: Literal["element", "mean"]) -> Tensor:
    """Return the mean of a KL (B, T) beyond `free` nats.

    `element`: mean of max(0, KL − free), as PlaNet. `mean`: max(0, mean KL − free), as Dreamer V1, whose max(mean KL,
    free) differs by a constant, as V2's and V3's do.
    """
    if per == "element":
        return (kl - free).clamp(min=0.0).mean()
    return (kl.mean() - free).clamp(min=0.0)


def kl_loss(rollout: Rollout, settings: LossSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the KL between posterior and prior before `kl_scale`, and its metrics.

    Split (V2, V3): dynamics_scale·free(KL(sg(q) ‖ p)) + representation_scale·free(KL(q ‖ sg(p))), each beyond free nats
    of its own; else free(KL(q ‖ p)), with one gradient for both.
    """
    free, per = settings.free_nats, settings.free_nats_per
    if settings.kl_split:
        kl, to_posterior = balanced_kl(rollout.posterior, rollout.prior)  # (B, T), equal in value
        dynamics, representation = free_nats(kl, free, per), free_nats(to_posterior, free, per)
        loss = settings.dynamics_scale * dynamics + settings.representation_scale * representation
    else:
        kl = state_kl(rollout.posterior, rollout.prior)  # (B, T)
        loss = free_nats(kl, free, per)
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


def world_model_loss(model: WorldModel, batch: Mapping[str, Tensor], settings: LossSettings) -> LossResult:
    """Return the evidence lower bound's negative (PlaNet, equation 3), with the settings' weights and free nats.

    Every step of a sequence takes part in every term. The reward at t is predicted from the state at t, on arriving at
    observation t; where an episode begins that is the reset's reward, 0, as in PlaNet.

    Args:
        model: in training mode to train it, in eval mode to measure it.
        batch: the fields of the step format as (B, T, …) on the model's device; actions as stored, pictures as bytes.

    Returns:
        total; metrics `loss/total`, `loss/reconstruction` (and `loss/reconstruction/NAME` if there are several
        entries), `loss/reward`, `loss/continue` (if predicted) and `loss/kl` (beyond the free nats), each before its
        weight; `kl/nats` (before the free nats), `kl/free_fraction` (share of the steps whose KL is within them),
        `kl/prior_std` and `kl/posterior_std` or, of categorical states, `_entropy` in nats, `reward/absolute_error`;
        and the rollout.
    """
    is_first = batch["is_first"].bool()
    targets = model.normalise(batch)
    actions = previous_actions(encode_actions(model.spaces.action, batch["action"]), is_first)
    rollout = model.observe(model.embed(targets), actions, is_first)
    feature = rollout.states.feature  # (B, T, D + S)

    means = model.decode(feature)
    by_name = {name: reconstruction_loss(targets[name], mean) for name, mean in means.items()}
    reconstruction = torch.stack(list(by_name.values())).sum()
    reward = model.predict_reward(feature)
    reward_loss = likelihood_loss(reward, batch["reward"])
    kl, kl_metrics = kl_loss(rollout, settings)

    total = (
        settings.reconstruction_scale * reconstruction + settings.reward_scale * reward_loss + settings.kl_scale * kl
    )
    metrics = {
        "loss/reconstruction": reconstruction,
        "loss/reward": reward_loss,
        **kl_metrics,
        "reward/absolute_error": (reward.mean - batch["reward"]).abs().mean(),
    }
    if len(by_name) > 1:
        metrics |= {f"loss/reconstruction/{name}": loss for name, loss in by_name.items()}
    if model.continuation is not None:
        goes_on = continue_target(batch["is_terminal"], settings.continue_horizon)
        continue_loss = likelihood_loss(model.predict_continue(feature), goes_on)
        total = total + settings.continue_scale * continue_loss
        metrics["loss/continue"] = continue_loss
    metrics["loss/total"] = total
    return LossResult(total, {name: value.detach() for name, value in metrics.items()}, rollout)
