"""What makes steps of gradients: clipping, LaProp, Adam as TensorFlow has it, and moments out of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dreamfleet.common.errors import UserError
from dreamfleet.common.model.layers import ForkedLinear
from dreamfleet.common.settings.schema import LearnerSettings

Parts = Mapping[Tensor, tuple[int, ...]]
"""For parameters that hold several tensors: how many rows each of these has."""


class ParameterGroup:
    """Parameters that share a learning rate, and are clipped together where clipping is by their norm.

    Attributes:
        metric: name of their gradient's norm among the metrics.
        learning_rate: after the warm-up.
        clip: greatest norm of their gradient.
    """

    def __init__(self, metric: str, network: nn.Module, learning_rate: float, clip: float) -> None:
        self.metric = metric
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.learning_rate = learning_rate
        self.clip = clip


def make_optimiser(groups: Sequence[ParameterGroup], settings: LearnerSettings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name, for parameters on one device."""
    described: list[dict[str, Any]] = [{"params": group.parameters, "lr": group.learning_rate} for group in groups]
    if settings.optimiser == "laprop":
        return LaProp(described, settings.learning_rate, epsilon=settings.epsilon, warmup_steps=settings.warm_up)
    return torch.optim.Adam(described, lr=settings.learning_rate, eps=settings.epsilon, fused=True)


def correct_epsilon(optimiser: torch.optim.Optimizer, epsilon: float, number: int) -> None:
    """Give Adam the epsilon that makes its update of this number TensorFlow's.

    TensorFlow adds ε to √v, torch to √(v/(1 − β₂ᵗ)): so ε counts 1/√(1 − β₂ᵗ) times as much there, 32 times at t = 1.
    """
    for group in optimiser.param_groups:
        group["eps"] = epsilon / math.sqrt(1.0 - group["betas"][1] ** number)


# Moments out of a checkpoint ------------------------------------------------------------------------------------------


def load_moments(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the moments in a `state_dict`; learning rate, epsilon and their like stay those of the settings."""
    groups = zip(state["param_groups"], optimiser.param_groups, strict=True)
    kept = [before | {name: value for name, value in now.items() if name != "params"} for before, now in groups]
    optimiser.load_state_dict({"state": state["state"], "param_groups": kept})


def check_moments(state: Mapping[str, Any], wanted: str, origin: str) -> None:
    """Refuse the moments in a `state_dict` if they are not those of `learner.optimiser` as it is wanted.

    Raises:
        UserError: if they are another optimiser's.
    """
    saved = "laprop" if "warmup_steps" in state["param_groups"][0] else "adam"
    if saved != wanted.removeprefix("tensorflow_"):  # both Adams have the same moments
        raise UserError(
            f"{origin} was trained with learner.optimiser {saved}, and the settings say {wanted}: "
            f"give --learner.optimiser {saved}."
        )


# Adaptive clipping ----------------------------------------------------------------------------------------------------


class Clipped(NamedTuple):
    """What clipping found, as scalars on the device.

    Attributes:
        norm: of all gradients together, before clipping.
        share: of the tensors that were scaled down.
    """

    norm: Tensor
    share: Tensor


def find_parts(networks: Iterable[nn.Module]) -> Parts:
    """Return the parameters of the networks that are several tensors in one."""
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, ForkedLinear)]
    return {parameter: layer.widths for layer in layers if len(layer.widths) > 1 for parameter in layer.parameters()}


@torch.no_grad()
def clip_adaptively(
    parameters: Iterable[Tensor], clip: float = 0.3, floor: float = 1e-3, parts: Parts | None = None
) -> Clipped:
    """Scale every tensor's gradient in place so that ‖g‖ ≤ clip·max(floor, ‖w‖), with Euclidean norms.

    Adaptive gradient clipping (arXiv 2102.06171), per tensor as in Dreamer V3. Nothing is copied from the device. A
    gradient that is not finite stays so and shows in the norm.

    Args:
        parameters: on one device, at least one with a gradient; those without are passed over.
        floor: size that a tensor counts as at least: one of zeros could otherwise never leave them.
        parts: which parameters are several tensors, each to be clipped by itself.
    """
    pairs = [pair for parameter in parameters for pair in _tensors(parameter, (parts or {}).get(parameter))]
    weights, gradients = [weight for weight, _ in pairs], [gradient for _, gradient in pairs]
    assert weights, "no parameter has a gradient"
    norms = torch.stack(torch._foreach_norm(gradients))
    limits = clip * torch.stack(torch._foreach_norm(weights)).clamp(min=floor)
    factors = (limits / norms).clamp(max=1.0)  # a norm of 0 gives infinity, which is clamped to 1
    torch._foreach_mul_(gradients, factors.unbind())
    return Clipped(torch.linalg.vector_norm(norms), (factors < 1.0).float().mean())


def _tensors(parameter: Tensor, rows: tuple[int, ...] | None) -> list[tuple[Tensor, Tensor]]:
    """Return a parameter's tensors, each with its gradient; none without a gradient."""
    if parameter.grad is None:
        return []
    if rows is None:
        return [(parameter, parameter.grad)]
    return list(zip(parameter.split(rows), parameter.grad.split(rows), strict=True))


# LaProp ---------------------------------------------------------------------------------------------------------------


class LaProp(torch.optim.Optimizer):
    """LaProp (arXiv 2002.04839), with which Dreamer V3 is trained: RMSProp first, momentum second.

    Gradients are divided by their own size before they enter the momentum; Adam divides the momentum. At update t:

        v ← β₂·v + (1 − β₂)·g²
        m ← β₁·m + (1 − β₁)·g/(√(v/(1 − β₂ᵗ)) + ε)
        w ← w − lr·min(1, t/warmup)·m/(1 − β₁ᵗ)

    Each tensor operation runs over all parameters at once, and t and what follows from it are a tensor on the device:
    no number is copied from the device, so that a step can be part of a captured CUDA graph.

    One t counts the steps of a whole group; a parameter without a gradient is passed over, as elsewhere in torch.

    Args:
        learning_rate: after the warm-up.
        betas: β₁ and β₂.
        epsilon: ε; smaller than any gradient, so that a step's size does not depend on the loss's scale.
        warmup_steps: steps over which the learning rate rises linearly; 0 for none.
    """

    def __init__(
        self,
        params: Any,
        learning_rate: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-20,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(params, {"lr": learning_rate, "betas": betas, "eps": epsilon, "warmup_steps": warmup_steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; `closure`, if given, computes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        moved = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not moved:
            return
        updates = self._count(group["params"][0])
        states = [self._moments(parameter) for parameter in moved]
        gradients = [parameter.grad for parameter in moved]
        momenta = [state["momentum"] for state in states]
        squares = [state["square"] for state in states]
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - beta2)
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_mul_(sizes, _correction(beta2, updates).rsqrt())
        torch._foreach_add_(sizes, group["eps"])
        torch._foreach_mul_(momenta, beta1)
        torch._foreach_addcdiv_(momenta, gradients, sizes, 1.0 - beta1)
        rate = group["lr"] / _correction(beta1, updates)
        if group["warmup_steps"]:
            rate = rate * (updates / group["warmup_steps"]).clamp(max=1.0)
        torch._foreach_add_(moved, torch._foreach_mul(momenta, -rate))

    def _count(self, first: Tensor) -> Tensor:
        """Return the number of this update, kept in the state of the group's first parameter and on its device.

        Under a name of our own: `load_state_dict` leaves what is called `step` on the CPU.
        """
        state = self.state[first]
        if "updates" not in state:
            state["updates"] = torch.zeros((), dtype=torch.float32, device=first.device)
        count: Tensor = state["updates"]
        return count.add_(1.0)

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if "square" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        return state


def _correction(beta: float, updates: Tensor) -> Tensor:
    """Return 1 − βᵗ, which in float32 would lose four digits at t = 1 if written so."""
    return -torch.expm1(updates * math.log(beta))
