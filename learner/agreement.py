"""Whether an update that is made another way does what the eager one does, as far as rounding lets one tell.

Compiled kernels add up in another order and round at other places, so that no two ways agree in every bit; how far they
may part depends on the model and its state, since a rounding may change a sampled class, and the optimisers divide each
gradient by its own size. So it is measured: a second eager update, from weights that are changed by one unit in the
last place of the arithmetic, parts from the first by as much as rounding does. Another way may part from it by
`FACTOR` times as much, and always by `TOLERANCE`; but by no more than `MOST`, since a gradient that is missing, doubled
or of another batch is off by about as much as it is large. Where rounding alone takes a tensor half as far as that,
such an error cannot be told from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

FACTOR = 8.0
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""By the type of the products: of a tensor's change by its norm, of a metric by 1 + its size."""
MOST = 0.7
"""Of a tensor's size; or by twice as much as rounding, where this takes it further than a third of its size."""
FEW = 64
"""Tensors with fewer numbers are compared together: of a few one cannot say how far rounding may take them."""


def metric_differences(
    names: Sequence[str], eager: Sequence[float], disturbed: Sequence[float], found: Sequence[float], tolerance: float
) -> list[str]:
    """Return a phrase for each metric, losses and gradient norms among them, that is off."""
    scales = [1.0 + abs(wanted) for wanted in eager]
    noises = [_gap(other, wanted) / scale for other, wanted, scale in zip(disturbed, eager, scales, strict=True)]
    usual = _usual(noises)
    phrases = []
    for name, wanted, value, scale, noise in zip(names, eager, found, scales, noises, strict=True):
        allowed = scale * (tolerance + FACTOR * max(noise, usual))
        if not _gap(value, wanted) <= allowed:  # a gap that is not a number is none that is allowed
            phrases.append(f"{name} is {value:.6g}, eagerly {wanted:.6g} ± {allowed:.2g}")
    return phrases


class Changes(Mapping[str, Tensor]):
    """By how much each tensor of a state changed, in float64; one that was not there before began at zero.

    Each is computed when it is asked for: all at once would take twice the memory of the state.
    """

    def __init__(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        self._before, self._after = before, after

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor's change."""
        value = self._after[name].double()
        return value - self._before[name].double() if name in self._before else value

    def __iter__(self) -> Iterator[str]:
        """Go through the names of the state after it."""
        return iter(self._after)

    def __len__(self) -> int:
        """Return how many tensors there are."""
        return len(self._after)


def tensor_differences(
    verb: str,
    eager: Mapping[str, Tensor],
    disturbed: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    tolerance: float,
) -> list[str]:
    """Return a phrase for each gradient, or each parameter's, moment's and buffer's change, that is off.

    Args:
        verb: what the tensors are found to do or be otherwise.
    """
    phrases = []
    for name, group in _groups(eager).items():
        wanted, other, value = (
            torch.cat([of[member].flatten() for member in group]) for of in (eager, disturbed, found)
        )
        size, noise = wanted.norm().item(), (other - wanted).norm().item()
        gap, allowed = (value - wanted).norm().item(), _allowed(size, noise, tolerance)
        if not gap <= allowed:
            share = f"{gap / size:.2g} of its size" if size else "and eagerly not at all"
            phrases.append(f"{name} {verb} otherwise, by {share}, where {allowed / (size or 1.0):.2g} is allowed")
    return phrases


def norm_differences(eager: Sequence[float], disturbed: Sequence[float], found: Sequence[float]) -> list[str]:
    """Return a phrase if gradients differ in their norms before clipping, which may have made them alike.

    Only by `MOST`: where single numbers part by less, the tensors tell more surely whether that is rounding.
    """
    if len(eager) != len(found):
        return [f"{len(found)} gradients were clipped, eagerly {len(eager)}"]
    off = []
    for wanted, other, value in zip(eager, disturbed, found, strict=True):
        allowed = _most(min(wanted, value), abs(other - wanted))  # of the smaller: a half is as far off as a double
        if not abs(value - wanted) <= allowed:
            off.append(f"one of {value:.3g} where {wanted:.3g} ± {allowed:.2g} is right")
    return [f"{len(off)} of {len(eager)} gradients have another norm before clipping, {off[0]}"] if off else []


def _allowed(size: float, noise: float, tolerance: float) -> float:
    """Return how far a tensor of this size may be off, if rounding alone takes it so far as `noise`."""
    return min(tolerance * size + FACTOR * noise, _most(size, noise))


def _most(size: float, noise: float) -> float:
    return max(MOST * size, 2.0 * noise)


def _usual(noises: Sequence[float]) -> float:
    """Return the upper quartile of how far rounding takes single numbers.

    One of them may hardly move by chance, where another rounding moves it as far as the rest; a tensor's many do not.
    """
    return sorted(noises)[3 * (len(noises) - 1) // 4] if noises else 0.0


def _groups(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the names to compare together: a large tensor alone, small ones by network and kind of moment."""
    groups: dict[str, list[str]] = {}
    for name, tensor in state.items():
        whole, _, kind = name.partition(": ")
        of_kind = f": {kind}" if kind else ""
        few = f"the small tensors of {whole.split('.')[0]}{of_kind}"
        groups.setdefault(name if tensor.numel() >= FEW else few, []).append(name)
    return groups


def _gap(value: float, wanted: float) -> float:
    both_infinite = math.isinf(value) and value == wanted
    return 0.0 if both_infinite else abs(value - wanted)
