"""How long-running code learns that it should stop: it polls, and marks where it may be interrupted at once."""

from __future__ import annotations

from typing import Protocol


class StepInterrupted(BaseException):  # not an Exception, so that user code that catches all errors does not catch it
    """A stop was requested during an environment's step, which is abandoned."""


class StopSign(Protocol):
    """Whether to stop."""

    may_interrupt: bool
    """Whether a stop request may raise `StepInterrupted` in the code that runs now."""

    def asked(self) -> bool:
        """Return whether a stop was requested."""

    def hold(self) -> None:
        """Install the signal handlers again, after code that may have replaced them."""


class NeverStop:
    """For orders that are short, or stopped by ending their process."""

    may_interrupt = False

    def asked(self) -> bool:
        """Return False."""
        return False

    def hold(self) -> None:
        """Do nothing."""
