"""Warnings about an action space, given once at the start of a run."""

from __future__ import annotations

from dreamfleet.common.experience.spaces import ActionSpec, is_bounded, reach_of

MOST_NUMBERS = 4096
"""Width of an action, as the networks take it, beyond which there is a warning."""
_NAMED = 4


def action_warnings(spec: ActionSpec) -> list[str]:
    """Return a sentence for each property of an action that its environment's author has likely not intended."""
    return [*_unbounded(spec), *_wide(spec)]


def _unbounded(spec: ActionSpec) -> list[str]:
    """Return which interval is used of reals that lack a bound, the first few by name."""
    bounds = list(zip(spec.low, spec.high, strict=True))
    lacking = [index for index, pair in enumerate(bounds) if not is_bounded(*pair)]
    if not lacking:
        return []
    used = []
    for index in lacking[:_NAMED]:
        low, high = bounds[index]
        first, last = reach_of(low, high)
        name = spec.name_of(len(spec.choices) + index)
        used.append(f"{name} ({low:g} to {high:g}) is acted on in [{first:g}, {last:g}]")
    more = f" and {len(lacking) - _NAMED} more likewise" if len(lacking) > _NAMED else ""
    remedy = "if the environment's own scale is another, give it bounds with a wrapper"
    return [f"action: {', '.join(used)}{more}, for lack of a bound; {remedy}"]


def _wide(spec: ActionSpec) -> list[str]:
    if spec.width <= MOST_NUMBERS:
        return []
    if not spec.choices:
        return [f"action: {spec.reals:,} reals, more than the policy and the planner are likely to master"]
    most = max(range(len(spec.choices)), key=lambda index: spec.choices[index])
    return [
        f"action: it takes {spec.width:,} numbers in the networks, one for each option of each choice; "
        f"{spec.name_of(most)} alone has {spec.choices[most]:,} options, more than are likely to be tried"
    ]
