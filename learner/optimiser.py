"""Optimisers: LaProp, Adam as TensorFlow has it, and moments out of a checkpoint.

No number comes back from the device. Whether a step is made is a tensor on it too: an optimiser's `found_inf`, as in
torch's fused Adam, is 1 if the gradients were not finite, and then neither parameters, moments nor counts change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import LearnerSettings
from dreamfleet.learner.clipping import ParameterGroup


def make_optimiser(groups: Sequence[ParameterGroup], settings: LearnerSettings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name, for parameters on one device."""
    described: list[dict[str, Any]] = [{"params": group.parameters, "lr": group.learning_rate} for group in groups]
    if settings.optimiser == "laprop":
        return LaProp(described, settings.learning_rate, epsilon=settings.epsilon, warmup_steps=settings.warm_up)
    if settings.optimiser == "tensorflow_adam":
        return TensorFlowAdam(described, settings.learning_rate, epsilon=settings.epsilon)
    on_gpu = groups[0].parameters[0].is_cuda  # there torch must be told that its step may be captured in a graph
    return torch.optim.Adam(described, settings.learning_rate, eps=settings.epsilon, fused=True, capturable=on_gpu)


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
    try:
        saved = "laprop" if "warmup_steps" in state["param_groups"][0] else "adam"
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{origin} holds no moments: it is damaged, or of another program.") from None
    if saved != wanted.removeprefix("tensorflow_"):  # both Adams have the same moments
        raise UserError(
            f"{origin} was trained with learner.optimiser {saved}, and the settings say {wanted}: "
            f"give --learner.optimiser {saved}."
        )


# LaProp ---------------------------------------------------------------------------------------------------------------


class LaProp(torch.optim.Optimizer):
    """LaProp (arXiv 2002.04839), with which Dreamer V3 is trained: RMSProp first, momentum second.

    Gradients are divided by their own size before they enter the momentum; Adam divides the momentum. At update t:

        v ← β₂·v + (1 − β₂)·g²
        m ← β₁·m + (1 − β₁)·g/(√(v/(1 − β₂ᵗ)) + ε)
        w ← w − lr·min(1, t/warmup)·m/(1 − β₁ᵗ)

    Each tensor operation runs over all parameters at once, and t and what follows from it are a tensor on the device,
    so that a step can be part of a captured CUDA graph. Where `found_inf` is 1 the gradients have to be zeros.

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
        self.found_inf: Tensor | None = None

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
        updates = self._count(group["params"][0]).to(moved[0].dtype).clamp(min=1.0)  # 0 if the first is skipped
        made = _made(self.found_inf, updates)
        states = [self._moments(parameter) for parameter in moved]
        gradients = [parameter.grad for parameter in moved]
        momenta = [state["momentum"] for state in states]
        squares = [state["square"] for state in states]
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(squares, _decay(beta2, made))
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - beta2)
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_mul_(sizes, _correction(beta2, updates).rsqrt())
        torch._foreach_add_(sizes, group["eps"])
        torch._foreach_mul_(momenta, _decay(beta1, made))
        torch._foreach_addcdiv_(momenta, gradients, sizes, 1.0 - beta1)
        rate = group["lr"] / _correction(beta1, updates)
        if group["warmup_steps"]:
            rate = rate * (updates / group["warmup_steps"]).clamp(max=1.0)
        torch._foreach_add_(moved, torch._foreach_mul(momenta, -rate * made))

    def _count(self, first: Tensor) -> Tensor:
        """Return the number of this update, kept in the state of the group's first parameter and on its device.

        Under a name of our own: `load_state_dict` leaves what is called `step` on the CPU.
        """
        state = self.state[first]
        if "updates" not in state:
            state["updates"] = torch.zeros((), dtype=torch.float32, device=first.device)
        count: Tensor = state["updates"]
        return count.add_(_made(self.found_inf, count))

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if "square" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        return state


def _correction(beta: float, updates: Tensor) -> Tensor:
    """Return 1 − βᵗ, which in float32 would lose four digits at t = 1 if written so."""
    return -torch.expm1(updates * math.log(beta))


def _made(found_inf: Tensor | None, like: Tensor) -> Tensor:
    """Return 1 for a step that is made, else 0, as a scalar."""
    return like.new_ones(()) if found_inf is None else 1.0 - found_inf.to(like.dtype)


def _decay(beta: float, made: Tensor) -> Tensor:
    """Return β for a step that is made, else 1."""
    return 1.0 - made * (1.0 - beta)


# Adam -----------------------------------------------------------------------------------------------------------------


class TensorFlowAdam(torch.optim.Optimizer):
    """Adam as TensorFlow has it, with which PlaNet and Dreamers V1 and V2 were trained.

        m ← β₁·m + (1 − β₁)·g,   v ← β₂·v + (1 − β₂)·g²
        w ← w − lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·m/(√v + ε)

    torch adds ε to √(v/(1 − β₂ᵗ)): so ε counts 1/√(1 − β₂ᵗ) times as much there, 32 times at t = 1. The state has the
    layout of torch's Adam, so that each resumes the other. Where `found_inf` is 1 the gradients have to be zeros.
    """

    def __init__(
        self, params: Any, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-7
    ) -> None:
        # `capturable` has `load_state_dict` keep the counts of steps on the device.
        super().__init__(params, {"lr": learning_rate, "betas": betas, "eps": epsilon, "capturable": True})
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step."""
        assert closure is None
        for group in self.param_groups:
            self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        moved = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not moved:
            return
        states = [self._moments(parameter) for parameter in moved]
        gradients = [parameter.grad for parameter in moved]
        means, squares, counts = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        made = _made(self.found_inf, moved[0])
        torch._foreach_add_(counts, [made.to(counts[0].dtype)] * len(counts))
        updates = counts[0].to(made.dtype).clamp(min=1.0)  # 0 if the first is skipped
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(means, _decay(beta1, made))
        torch._foreach_add_(means, gradients, alpha=1.0 - beta1)
        torch._foreach_mul_(squares, _decay(beta2, made))
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - beta2)
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_add_(sizes, group["eps"])
        rate = group["lr"] * _correction(beta2, updates).sqrt() / _correction(beta1, updates)
        steps = torch._foreach_div(means, sizes)
        torch._foreach_add_(moved, torch._foreach_mul(steps, -rate * made))

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
