"""What a worker's failures mean for its place: how long to wait before the next one, and when to give up."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST_PAUSE_S = 60.0
"""Before a slot is filled again."""
HOPELESS_AFTER_S = 25.0
"""Workers of which none ever worked are given up once they have failed for so long, of one cause: with the pauses
between them that takes three to six tries, and less than a minute where a try takes less than 19 seconds."""
HOPELESS_FAILURES = 3
"""They have failed at least this often, too."""


@dataclass
class Failures:
    """The failures of the workers of one slot.

    They are waited out: after the first the slot is filled again at once, then after 1, 3, 7, 15, 31 and 60 seconds.
    Giving up is a matter of time and progress: the slot is given up once its workers have failed for `give_up_after_s`
    without any progress between. It is tried again after as long a time, as long as the run goes on without it.

    Attributes:
        in_a_row: workers in a row that were of no use.
        given_up: until a worker makes progress again.
        has_worked: whether any worker of the slot ever made progress.
        cause: of the last failure.
    """

    give_up_after_s: float
    in_a_row: int = 0
    given_up: bool = False
    has_worked: bool = False
    cause: str = ""
    _since: float | None = None  # the first failure after the last progress
    _of_one_cause: int = 0  # failures in a row, each while an order was being carried out
    _of_one_cause_since: float = 0.0
    _of_one_cause_for_s: float = 0.0

    @property
    def kind(self) -> str:
        """The cause without what differs from one worker to the next: numbers and addresses."""
        return kind_of(self.cause)

    @property
    def are_many(self) -> bool:
        """Whether the next worker is likely to fail, too: more room for such would not help."""
        return self.given_up or self.in_a_row >= HOPELESS_FAILURES

    def made_progress(self) -> None:
        """Record that the worker did what had not been done before."""
        self.has_worked = True
        self.given_up = False
        self._since = None

    def add(self, now: float, cause: str, was_useful: bool, was_at_work: bool) -> float:
        """Record a failure; return how many seconds the slot is to stay empty.

        Args:
            was_useful: whether the worker did enough to be worth starting another at once.
            was_at_work: whether it failed in an order; what ends an idle worker is not its work.
        """
        is_same = kind_of(cause) == self.kind and self._of_one_cause > 0
        self.cause = cause
        if was_at_work:
            self._of_one_cause = self._of_one_cause + 1 if is_same else 1
            self._of_one_cause_since = self._of_one_cause_since if is_same else now
            self._of_one_cause_for_s = now - self._of_one_cause_since
        if was_useful:
            self._since = None
        self._since = now if self._since is None else self._since
        self.given_up = self.given_up or now - self._since >= self.give_up_after_s
        self.in_a_row = 0 if was_useful else self.in_a_row + 1
        if self.given_up:
            return max(self.give_up_after_s, LONGEST_PAUSE_S)
        return min(2.0 ** max(0, self.in_a_row - 1) - 1.0, LONGEST_PAUSE_S)

    @property
    def is_hopeless(self) -> bool:
        """Whether no worker of this slot ever worked, and all that was tried failed in the same way."""
        has_lasted = self._of_one_cause >= HOPELESS_FAILURES and self._of_one_cause_for_s >= HOPELESS_AFTER_S
        return has_lasted and not self.has_worked


def kind_of(cause: str) -> str:
    """Return a cause without numbers and addresses, which differ where the cause does not."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", cause)
