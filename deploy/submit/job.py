"""A job on a cluster: its state, its end, and its log followed through lost connections."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from dreamfleet.deploy.submit.cluster import Cluster, LostContactError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

QUIET_S = 60.0
"""Time without a line after which the cluster is asked whether it is still there."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
GIVE_UP_S = 600.0
"""Time without any contact after which following ends."""
MOST_READS = 4
"""Readings of a log in a row that may end early without new text, once the job is over."""


class Job:
    """A job that was submitted with the name `job_id`.

    All methods raise UserError if the cluster does not know the job or refuses us, and LostContactError if it was not
    reached.
    """

    def __init__(self, cluster: Cluster, job_id: str) -> None:
        self._cluster = cluster
        self.id = job_id
        self._printed = 0  # characters of the log
        self._at_line_start = True

    def details(self) -> JobDetails:
        """Return the job's status and Ray's message about it."""
        return self._cluster.ask(lambda client: client.get_job_info(self.id))

    def stop(self) -> None:
        """Ask the job to stop, without waiting."""
        self._cluster.ask(lambda client: client.stop_job(self.id))

    def skip_log(self) -> None:
        """Count what the log holds as printed."""
        self._printed = len(self._cluster.ask(lambda client: client.get_job_logs(self.id)))

    def follow(self) -> JobDetails:
        """Print the log as it grows until the job is over, each character once, and return how it ended.

        Raises:
            LostContactError: after GIVE_UP_S without contact.
        """
        reads = 0  # that brought nothing new
        while True:
            before = self._printed
            whole = self._print_log()
            reads = 0 if self._printed > before else reads + 1
            if not whole and reads <= 1:
                _say("the connection to the log was lost; the job goes on, and so will its log here.")
            details = self._details_after_pauses()
            if details.status.is_terminal() and (whole or reads >= MOST_READS):
                if not self._at_line_start:
                    print(flush=True)
                if not whole:
                    _say("the job is over, but the end of its log cannot be read.")
                return details
            time.sleep(min(FIRST_PAUSE_S * 2.0**reads, LONGEST_PAUSE_S))

    def _print_log(self) -> bool:
        """Print what was not printed of the log yet; return whether it was read to the end that the server knows."""
        read = 0
        try:
            for text in self._cluster.read_log(self.id, QUIET_S):
                if text is None:
                    if not self._is_reached():
                        return False
                    continue
                read += len(text)
                if read > self._printed:
                    new = text[self._printed - read :]
                    print(new, end="", flush=True)
                    self._at_line_start = new.endswith("\n")
                    self._printed = read
        except LostContactError:
            return False
        return True

    def _is_reached(self) -> bool:
        """Whether the cluster answers; a job that waits for a node is reported."""
        try:
            details = self.details()
        except LostContactError:
            return False
        if details.status == "PENDING":
            _say("the job waits for a node with room for it, and for what it takes along.")
        return True

    def _details_after_pauses(self) -> JobDetails:
        """Ask for the job's details with growing pauses, for at most GIVE_UP_S."""
        since, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                details = self.details()
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
            return details


def _say(text: str) -> None:
    print(f"dreamfleet: {text}", file=sys.stderr, flush=True)
