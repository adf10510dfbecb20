"""What is doubtful about an action space, said once at the start of a run."""

from __future__ import annotations

from dreamfleet.common.experience.spaces import ActionSpec, is_bounded, reach_of

MOST_NUMBERS = 4096
"""Numbers of an action for the networks, beyond which it is warned of."""
_NAMED = 4


def doubts_of(spec: ActionSpec) -> list[str]:
    """Return a sentence for each thing about an action that is likely not to be what its environment's author meant."""
    return [sentence for sentence in (_unbounded(spec), _wide(spec)) if sentence]


def _unbounded(spec: ActionSpec) -> str:
    """Return what is done with reals that lack a bound, the first few by name."""
    bounds = list(zip(spec.low, spec.high, strict=True))
    lacking = [number for number, pair in enumerate(bounds) if not is_bounded(*pair)]
    if not lacking:
        return ""
    told = []
    for number in lacking[:_NAMED]:
        low, high = bounds[number]
        first, last = reach_of(low, high)
        name = spec.name_of(len(spec.choices) + number)
        told.append(f"{name} ({low:g} to {high:g}) is acted on in [{first:g}, {last:g}]")
    more = f" and {len(lacking) - _NAMED} more likewise" if len(lacking) > _NAMED else ""
    return (
        f"action: {', '.join(told)}{more}, for lack of a bound; if the environment's own scale is another, give it "
        "bounds with a wrapper"
    )


def _wide(spec: ActionSpec) -> str:
    """Return how much the networks take for an action, where that is very much."""
    if spec.width <= MOST_NUMBERS:
        return ""
    if not spec.choices:
        return f"action: {spec.reals:,} reals, more than the policy and the planner are likely to master"
    most = max(range(len(spec.choices)), key=lambda number: spec.choices[number])
    return (
        f"action: it takes {spec.width:,} numbers in the networks, one for each option of each choice; "
        f"{spec.name_of(most)} alone has {spec.choices[most]:,} options, more than are likely to be tried"
    )
