"""A small environment with bad manners: what users' code does to its process, or returns instead of what it should.

By id: `rude_environment:make`.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

LONG_S = 3600.0


class RudeEnvironment(gymnasium.Env[Any, Any]):
    """Shows a vector of its step's number, in episodes of `length` steps.

    Args:
        manners: what it does, by name → the step, counted over all episodes, at which it does it; 0 is the reset.
        length: steps of an episode.
        made: what its constructor does: "exit" and "interrupt" leave it so, "changes" sets what a process has one of.
        returns: what it gives back at step 3 of an episode in place of the reward, or of `terminated` or `truncated`.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (so it is in Gymnasium)

    def __init__(
        self,
        manners: dict[str, int] | None = None,
        length: int = 10,
        made: str = "",
        returns: dict[str, Any] | None = None,
    ) -> None:
        self.observation_space = spaces.Box(-1e6, 1e6, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._manners, self._length, self._returns = manners or {}, length, returns or {}
        self._total_steps = self._step = 0
        self.closed = 0
        if made == "exit":
            raise SystemExit(3)
        if made == "interrupt":
            raise KeyboardInterrupt
        if made == "changes":
            os.chdir(tempfile.mkdtemp())
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._step = 0
        self._behave(0)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take a step."""
        del action
        self._step += 1
        self._total_steps += 1
        self._behave(self._total_steps)
        given: dict[str, Any] = {"reward": 1.0, "terminated": False, "truncated": self._step >= self._length}
        if self._step == 3:
            given |= self._returns
        return self._seen(), given["reward"], given["terminated"], given["truncated"], {}

    def close(self) -> None:
        """Close, or fail to."""
        self.closed += 1
        if "close" in self._manners:
            raise RuntimeError("close failed")

    def _seen(self) -> np.ndarray:
        return np.full(3, self._step, np.float32)

    def _behave(self, moment: int) -> None:
        wanted = [name for name, at in self._manners.items() if at == moment]
        if "exit" in wanted:
            raise SystemExit(3)
        if "interrupt" in wanted:
            raise KeyboardInterrupt
        if "die" in wanted:
            raise ConnectionError("the simulator is gone")
        if "stopped while it sleeps" in wanted:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(LONG_S)


def make(**kwargs: Any) -> RudeEnvironment:
    """Return a rude environment."""
    return RudeEnvironment(**kwargs)
