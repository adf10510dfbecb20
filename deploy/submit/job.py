"""A job on a cluster: asked how it is, stopped, and its log followed through lost connections."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass

from dreamfleet.deploy.submit.head import Head, LostContactError

QUIET_S = 60.0
"""Time without a line after which the cluster is asked whether it is still there."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
GIVE_UP_S = 600.0
"""Time without any contact after which following ends."""
MOST_READS = 4
"""Readings of a log in a row that may end early without a new line, once the job is over."""

_RAY_SAYS = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\t[A-Z]+ cli\.py:\d+ -- (?P<said>.*)")
_STATUS = re.compile(r"Status for job '[^']*': (?:JobStatus\.)?([A-Z]+)|Job '[^']*' (succeeded|failed|was stopped)")
_ENDED = {"succeeded": "SUCCEEDED", "failed": "FAILED", "was stopped": "STOPPED"}


@dataclass(frozen=True)
class JobState:
    """How a job is.

    Attributes:
        name: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: what Ray says of it, or an empty string.
    """

    name: str
    message: str

    @property
    def is_over(self) -> bool:
        """Whether nothing of the job runs any more."""
        return self.name in _ENDED.values()


class Job:
    """One job of a cluster.

    Args:
        head: the cluster's head.
        job_id: the name it was submitted with.
    """

    def __init__(self, head: Head, job_id: str) -> None:
        self._head = head
        self.id = job_id
        self._printed = 0  # lines of the log

    def state(self) -> JobState:
        """Ask how the job is.

        Raises:
            UserError: if the cluster does not know it or refuses us.
            LostContactError: if the head was not reached.
        """
        said = self._head.job("status", self.id)
        found = _STATUS.search(said)
        if not found:
            raise LostContactError("`ray job status` said nothing that was understood")
        message = said.partition("Status message: ")[2].strip()
        return JobState(found[1] or _ENDED[found[2]], message)

    def stop(self) -> None:
        """Ask the job to stop, without waiting; raises as `state` does."""
        self._head.job("stop", "--no-wait", self.id)

    def skip_log(self) -> None:
        """Count what the log holds as printed; raises as `state` does."""
        said = self._head.job("logs", self.id).partition("Job submission server address")[2]
        self._printed = said.count("\n") - 1

    def follow(self) -> JobState:
        """Print the log as it comes until the job is over, each line once, and return how it ended.

        Raises:
            LostContactError: after GIVE_UP_S without contact.
            UserError: as `state`.
        """
        reads = 0  # that brought nothing new
        while True:
            before = self._printed
            whole = self._print_log()
            reads = 0 if self._printed > before else reads + 1
            if not whole and reads <= 1:
                _say("the connection to the log was lost; the job goes on, and so will its log here.")
            state = self._state_at_last()
            if state.is_over and (whole or reads >= MOST_READS):
                if not whole:
                    _say("the job is over, but the end of its log cannot be read.")
                return state
            time.sleep(min(FIRST_PAUSE_S * 2.0**reads, LONGEST_PAUSE_S))

    def _print_log(self) -> bool:
        """Print the lines of the log that were not printed yet; return whether it was read to the job's end."""
        seen = 0
        begun = False
        with self._head.reading("logs", "--follow", self.id, quiet_s=QUIET_S) as lines:
            for line in lines:
                if line is None:
                    if not self._is_reached():
                        return False
                    continue
                ray_says = _RAY_SAYS.search(line)
                said = ray_says["said"] if ray_says else ""
                if said.startswith("Job submission server address"):
                    begun = True  # what came before is the shell's and SSH's
                    continue
                text = line[: ray_says.start()] if ray_says else line  # a log may end without a line break
                if begun and (text or not ray_says):
                    seen += 1
                    self._print(text, seen)
                if re.match(r"Job '[^']*' (succeeded|failed|was stopped)", said):
                    return True
        return False

    def _print(self, text: str, number: int) -> None:
        if number > self._printed:
            print(text, flush=True)
            self._printed = number

    def _is_reached(self) -> bool:
        """Whether the cluster answers; where it has no room for the job yet, that is said."""
        try:
            state = self.state()
        except LostContactError:
            return False
        if state.name == "PENDING":
            _say("the job waits for a node with room for it, and for what it takes along.")
        return True

    def _state_at_last(self) -> JobState:
        """Ask how the job is, again and again with growing pauses, for at most GIVE_UP_S."""
        since, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                state = self.state()
            except LostContactError as lost:
                if time.monotonic() - since > GIVE_UP_S:
                    raise
                if pause == FIRST_PAUSE_S:
                    _say(f"no contact ({lost}); trying again for {GIVE_UP_S / 60:.0f} minutes.")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            if pause > FIRST_PAUSE_S:
                _say("connected again.")
            return state


def _say(text: str) -> None:
    print(f"dreamfleet: {text}", file=sys.stderr, flush=True)
