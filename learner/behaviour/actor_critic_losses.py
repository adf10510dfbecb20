"""The losses of policy and critic: pure functions of tensors.

Shapes: H horizon. Imagined sequences have the states 0 … H along the last axis (see `returns.py`); losses are
taken on the states 0 … H − 1, and averaged over the horizon and everything before it. Those lengths are fixed, so one
mean over all is the mean over the horizon, then over B and T.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dreamfleet.common.model.distributions import Gaussian, TwoHot

PolicyGradient = Literal["reinforce", "dynamics", "both"]
"""Through the likelihood of the actions (V3; V2 for choices), through the model (V1; V2 for boxes), or a mix (V2)."""

Value = Gaussian | TwoHot
"""A critic's output: V1 and V2's Normal of unit deviation, V3's bins."""


def advantages(returns: Tensor, value: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Return (R_t − v_t)/scale (…, H), without gradient.

    Args:
        returns: R_0 … R_{H−1}, (…, H).
        value: v_0 … v_H of the online critic, (…, H + 1).
        scale: of the return normaliser.
    """
    return ((returns - value[..., :-1]) / scale).detach()


def reinforce_objective(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Return log π(sg(a))·sg(advantage) (…, H), to be maximised (V3).

    Args:
        log_prob: (…, H), of the actions taken in the states 0 … H − 1, which must not carry a gradient themselves.
        advantage: (…, H).
    """
    return log_prob * advantage.detach()


def policy_loss(
    gradient: PolicyGradient,
    weight: Tensor,
    *,
    returns: Tensor,
    log_prob: Tensor | None = None,
    advantage: Tensor | None = None,
    entropy: Tensor | None = None,
    entropy_scale: float = 0.0,
    mix: float = 0.1,
) -> Tensor:
    """Return −mean(sg(weight)·(objective + entropy_scale·entropy)), a scalar.

    The objective is, for `reinforce` (V3) log π(sg(a))·sg(advantage); for `dynamics` (V1, equation 7) the
    return itself, whose gradient comes through the model and the sampled actions; for `both` (V2) mix
    times the latter and 1 − mix times the former.

    Args:
        gradient: which objective.
        weight: (…, H), how much each state counts.
        returns: R_0 … R_{H−1}, (…, H); with their gradients for `dynamics` and `both`, not read for `reinforce`.
        log_prob: (…, H); not read for `dynamics`.
        advantage: (…, H); not read for `dynamics`. Its gradient is stopped.
        entropy: (…, H) of the policy in the states 0 … H − 1; may be left out where `entropy_scale` is 0.
        entropy_scale: V3: 3e-4.
        mix: share of `dynamics` in `both`.
    """
    if gradient == "dynamics":
        objective = returns
    else:
        assert log_prob is not None, f"the gradient '{gradient}' needs log-probabilities"
        assert advantage is not None, f"the gradient '{gradient}' needs advantages"
        objective = reinforce_objective(log_prob, advantage)
        if gradient == "both":
            objective = mix * returns + (1.0 - mix) * objective
    if entropy is not None:
        objective = objective + entropy_scale * entropy
    return -(weight.detach() * objective).mean()


def value_loss(
    value: Value, returns: Tensor, weight: Tensor, slow: Tensor | None = None, slow_scale: float = 1.0
) -> Tensor:
    """Return −mean(sg(weight)·(log p(sg(R)) + slow_scale·log p(sg(slow)))), a scalar.

    With a Normal of unit deviation this is V1's and V2's loss, its constant included; with bins V3's cross-entropy,
    whose second part keeps the critic near its slow copy. The same weighting serves V3's replayed sequences
    (`replay_value_loss`).

    Args:
        value: the critic in the states 0 … H, (…, H + 1).
        returns: R_0 … R_{H−1}, (…, H).
        weight: (…, H).
        slow: means of the slow critic in the states 0 … H, (…, H + 1); left out, the second part is.
        slow_scale: of the second part.
    """
    predicted = value.without_last()
    log_prob = predicted.log_prob(returns.detach())
    if slow is not None:
        log_prob = log_prob + slow_scale * predicted.log_prob(slow[..., :-1].detach())
    return -(weight.detach() * log_prob).mean()


def replay_value_loss(
    value: Value, returns: Tensor, is_last: Tensor, slow: Tensor | None = None, slow_scale: float = 1.0
) -> Tensor:
    """Return the value loss of replayed sequences, a scalar: `value_loss` with the weight 1 − is_last.

    The mean is over all steps, those without weight included. The gradient reaches whatever the critic read.

    Args:
        value: the critic in the states 0 … T − 1, (…, T).
        returns: of `replay_returns`, (…, T − 1).
        is_last: (…, T).
        slow: means of the slow critic, (…, T).
        slow_scale: of its part.
    """
    return value_loss(value, returns, 1.0 - is_last[..., :-1].to(returns.dtype), slow, slow_scale)
