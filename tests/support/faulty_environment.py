"""The counting environment, which also shows the action it received, and can be told to fail once among all actors.

By id: `faulty_environment:make`.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from counting_environment import CountingEnvironment
from gymnasium import spaces

HANG_S = 3600.0


_SUFFERED: list[str] = []
"""The fault that an environment of this process suffered."""


class FaultyEnvironment(CountingEnvironment):
    """Counts, shows the action that led to each observation, and suffers faults.

    The observation is a Dict of "count", as the counting environment's, and "received": the action that the last step
    took, -1 after a reset. With `picture` it is the image alone, with a bright column that moves by a pixel a step.

    Args:
        faults: kind of fault → step, of all that the process took, at which it strikes: "raise" raises an error, "hang"
            sleeps for an hour, "interrupt" and "terminate" send SIGINT and SIGTERM to the process.
        claims: a directory; of all incarnations of all actors only the first to reach a fault suffers it, and records
            it here; a process suffers one fault at most.
        picture: show only the image.
        works_in: id of the only process in which it can be made; 0 for all.
        outage: a file; while it exists every step and every making of an environment fails.
        **kwargs: the counting environment's.
    """

    def __init__(
        self,
        faults: dict[str, int] | None = None,
        claims: str = "",
        picture: bool = False,
        works_in: int = 0,
        outage: str = "",
        **kwargs: Any,
    ) -> None:
        if works_in not in {0, os.getpid()}:
            raise FileNotFoundError("the simulator is not installed on this node")
        self._outage = outage
        self._check_outage()
        super().__init__(**kwargs)
        self._faults, self._claims, self._picture = dict(faults or {}), claims, picture
        self._received = -1
        shown = dict(self.observation_space.spaces)
        if picture:
            self.observation_space: Any = shown["image"]
        else:
            self.observation_space = spaces.Dict(shown | {"received": spaces.Box(-1, 100, (1,), np.float32)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode."""
        self._received = -1
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step, or fail as told."""
        self._check_outage()
        for kind, at in self._faults.items():
            if self.total_steps + 1 == at and self._claim(kind):
                self._suffer(kind)
        self._received = int(action)
        return super().step(action)

    def _check_outage(self) -> None:
        if self._outage and Path(self._outage).exists():
            raise ConnectionError("the simulators are down")

    def _claim(self, kind: str) -> bool:
        """Return whether nobody has suffered this fault yet, and this process none."""
        if _SUFFERED:
            return False
        try:
            os.close(os.open(Path(self._claims) / kind, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        _SUFFERED.append(kind)
        return True

    def _suffer(self, kind: str) -> None:
        if kind == "raise":
            raise RuntimeError("the wheel came off")
        if kind == "hang":
            time.sleep(HANG_S)
        if kind in {"interrupt", "terminate"}:
            os.kill(os.getpid(), signal.SIGINT if kind == "interrupt" else signal.SIGTERM)

    def _observe(self) -> Any:
        shown = super()._observe()
        if not self._picture:
            return shown | {"received": np.array([self._received], np.float32)}
        picture = shown["image"] * 0
        picture[:, self.step_number % picture.shape[1]] = 200
        return picture


def make(**kwargs: Any) -> FaultyEnvironment:
    """Return a faulty environment."""
    return FaultyEnvironment(**kwargs)
