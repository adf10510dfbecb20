"""What an action's real reaches: the interval of the environment's units that is [-1, 1] for the networks.

    bounds                    reached
    [low, high]               [low, high]
    none                      [-1, 1]
    [low, ∞)                  [-1, 1], or [low, low + 2] where low is greater than -1
    (-∞, high]                [-1, 1], or [high - 2, high] where high is less than 1

Planner and actor keep the middle of what they do within it. A real's own bounds alone clip it: on a side without one,
noise may go beyond.
"""

from __future__ import annotations

ENDLESS = 1e18
"""A bound of this size is none: its square is too great for float32, and some environments give a type's largest."""


def reach_of(low: float, high: float) -> tuple[float, float]:
    """Return the first and the last number that are reached of a real with these bounds."""
    if is_bounded(low, high):
        return low, high
    if low > -ENDLESS:
        first = max(low, -1.0)
        return first, first + 2.0
    last = min(high, 1.0)
    return last - 2.0, last


def is_bounded(low: float, high: float) -> bool:
    """Return whether a real has two bounds."""
    return low > -ENDLESS and high < ENDLESS
