"""The deaths of a run's workers: each named once, with its cause, what it left, and how soon it was replaced."""

from __future__ import annotations

import logging
from collections import deque

from dreamfleet.deploy.state import DEATHS_KEPT, Death, Deaths

log = logging.getLogger("dreamfleet")


class DeathRegister:
    """Names deaths in the log, and keeps the last of them for the run's state.

    Attributes:
        count: since this start of the run.
        changes: rises with each death and with each replacement.
    """

    def __init__(self) -> None:
        self.count = 0
        self.changes = 0
        self._last: deque[Death] = deque(maxlen=DEATHS_KEPT)
        self._open: dict[str, tuple[Death, float]] = {}  # by who: not replaced yet, and since when

    def died(self, now: float, death: Death, fate: str) -> None:
        """Record and log a death.

        Args:
            now: by the loop's clock.
            fate: what happens to the place, such as "replaced".
        """
        self.count += 1
        self.changes += 1
        self._last.append(death)
        self._open[death.who] = death, now
        where = f" (on {death.node})" if death.node else ""
        left = f"; {death.left_in_words}" if death.left_in_words else ""
        log.warning("%s is %s: %s%s%s", death.who, fate, death.cause, where, left, extra={"is_death": True})

    def replaced(self, now: float, who: str) -> None:
        """Record and log that somebody works in the place of who died, if anybody did."""
        if who not in self._open:
            return
        death, since = self._open.pop(who)
        death.replaced_after_s = round(now - since, 1)
        self.changes += 1
        log.info("%s works again, %.1f s after it was lost", who, now - since)

    def summary(self) -> Deaths:
        """Return what state.json says of them."""
        return Deaths(count=self.count, last=list(self._last))
