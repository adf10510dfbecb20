"""How code that runs for long is told to stop: it looks now and then, and says where it may be interrupted at once."""

from __future__ import annotations

from typing import Protocol


class StepInterrupted(BaseException):  # no Exception: user code that catches all errors is not to catch it
    """A stop was asked for within an environment's step, which need not be waited for."""


class StopSign(Protocol):
    """Whether to stop.

    Attributes:
        may_interrupt: whether what runs now may be left by `StepInterrupted` when a stop is asked for.
    """

    may_interrupt: bool

    def asked(self) -> bool:
        """Return whether a stop was asked for."""
        ...

    def hold(self) -> None:
        """See to it that whoever asks is heard, also after code that may have seen to the contrary."""
        ...


class NeverStop:
    """Where orders are short enough, or whoever wants them stopped ends their process."""

    may_interrupt = False

    def asked(self) -> bool:
        """Return False."""
        return False

    def hold(self) -> None:
        """Do nothing."""
