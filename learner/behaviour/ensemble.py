"""An ensemble of one-step predictors, whose disagreement tells where the model has not learnt enough (Plan2Explore).

The source is arXiv 2005.05960, section 3.2. All members are computed at once: their weights lie side by side.

Shapes: K members, S stochastic, I width of the input. Leading axes of the input are free.
"""

from __future__ import annotations

from torch import Tensor, nn

from dreamfleet.common.model.layers import ACTIVATIONS
from dreamfleet.common.model.members import MemberLinear, MemberNorm
from dreamfleet.common.settings.schema import Settings
from dreamfleet.common.torch_state import full_precision
from dreamfleet.learner.ranks import ALONE, Ranks


class Ensemble(nn.Module):
    """K predictors of the same target from the same input, as large as the critic, with the model's kind of layers.

    Each begins with other weights: where there were data they come to agree, elsewhere they do not.

    Args:
        inputs: I.
        target: S.
    """

    def __init__(self, inputs: int, target: int, settings: Settings) -> None:
        super().__init__()
        behaviour, model = settings.behaviour, settings.model
        members, units, kind = behaviour.ensemble, behaviour.units, model.initialisation
        layers: list[nn.Module] = []
        for layer in range(behaviour.critic_layers):
            layers.append(MemberLinear(members, units if layer else inputs, units, kind))
            layers += [MemberNorm(members, units, model.norm), ACTIVATIONS[model.activation]()]
        self.layers = nn.Sequential(*layers, MemberLinear(members, units, target, kind))

    def forward(self, x: Tensor) -> Tensor:
        """Return all members' predictions (K, …, S), float32, for inputs (…, I)."""
        predicted: Tensor = self.layers(x.flatten(0, -2))
        return full_precision(predicted).unflatten(1, x.shape[:-1])


def prediction_loss(predicted: Tensor, target: Tensor, is_known: Tensor) -> Tensor:
    """Return the sum over the members of ½·Σ(target − predicted)², averaged over the steps; a scalar.

    It is minus the log-likelihood of a Normal of deviation 1 (equation 3), without its constant; each member learns as
    it would alone. The mean is over all steps, those without a target included.

    Args:
        predicted: (K, B, T, S).
        target: (B, T, S), without gradient.
        is_known: (B, T), whether there is such a target.
    """
    error = (predicted - target.detach()).square().sum(-1)  # (K, B, T)
    return 0.5 * (error * is_known.to(error.dtype)).mean((1, 2)).sum()


def relative_to_mean(disagreed: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Return by how much of their mean disagreements (…) are above or below it: from −1 on, with a mean of 0.

    They shrink by orders of magnitude as the members learn, and all of them are above 0. As rewards they would make
    returns that a critic follows too late, so that every action seemed better than expected.

    Args:
        ranks: over whose disagreements the mean is; it has no gradient.
    """
    mean = ranks.mean(disagreed.detach().mean())
    return disagreed / mean.clamp(min=1e-12) - 1.0


def disagreement(predicted: Tensor) -> Tensor:
    """Return the variance over the members, averaged over the target's dimensions: (K, …, S) -> (…); equation 4.

    It is that of a sample, with K − 1 below the sum.
    """
    return predicted.var(0).mean(-1)
