"""LaProp (arXiv 2002.04839): RMSProp first, momentum second; what Dreamer V3 is trained with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LaProp(Optimizer):
    """Gradients are divided by their own size before they enter the momentum; Adam divides the momentum.

    One step, at update t:

        v ← β₂·v + (1 − β₂)·g²
        m ← β₁·m + (1 − β₁)·g/(√(v/(1 − β₂ᵗ)) + ε)
        w ← w − lr·min(1, t/warmup)·m/(1 − β₁ᵗ)

    Each tensor operation runs over all parameters at once, and t and what follows from it are a tensor on the device:
    no number comes back, so that a step can be part of a captured CUDA graph.

    One t counts the steps of a whole group; a parameter without a gradient is passed over, as elsewhere in torch.

    Args:
        params: parameters or groups of them, on one device.
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
