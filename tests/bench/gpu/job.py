"""What a part is given: where it computes, how long it may take, and what parts before it found."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Job:
    """What a part is given.

    Attributes:
        folder: of the page, for pictures; their names begin with `prefix`.
        until: when the part should have ended by itself, on `time.monotonic`'s clock.
        dry: tiny sizes, on the CPU where there is no GPU: to see that all runs.
        figures: those of earlier parts, by name.
        r2dreamer: a checkout of it, or None.
        argument: which of its forms a part is to measure, such as "captured".
    """

    folder: Path
    prefix: str
    until: float
    dry: bool = False
    figures: dict[str, float] = field(default_factory=dict)
    r2dreamer: Path | None = None
    argument: str = ""

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self.until - time.monotonic()

    def choose(self, full: int, dry: int) -> int:
        """Return the one number in a real run, the other in a dry one."""
        return dry if self.dry else full

    @property
    def device(self) -> torch.device:
        """The GPU; in a dry run without one the CPU."""
        import torch

        from tests.bench.gpu.findings import SkippedError

        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        if self.dry:
            return torch.device("cpu")
        raise SkippedError("torch finds no GPU here")
