"""`dreamfleet submit`: runs a command as a job on a cluster and prints its log; the job outlives the connection."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.common.errors import UserError
from dreamfleet.deploy.submit.cluster import Cluster, LostContactError
from dreamfleet.deploy.submit.entry_point import EntryPoint, copy_to_send
from dreamfleet.deploy.workers.address import use_token

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

STOP_WAIT_S = 150
"""Time that Ray gives a job to write its last checkpoint before it kills it. Ray's own default is 3."""
EXIT_CODES = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 143}
QUIET_S = 60.0
"""Time without a line after which the cluster is asked whether it is still there."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
GIVE_UP_S = 600.0
"""Time without any contact after which following ends."""
MOST_READS = 4
"""Readings of a log in a row that may end early without new text, once the job is over."""


def submit(
    target: str, arguments: list[str], working_dir: Path | None, follow: str | None, stop: str | None, on: str | None
) -> int:
    """Run a dreamfleet command as a job and follow its log; or follow, or stop, a job submitted before.

    Args:
        target: a file that `ray up` was given, or http://HOST:PORT of a dashboard.
        arguments: the command, for example ["train", "--preset", "small"].
        working_dir: a directory whose modules all nodes are to have.
        follow: the id of a job to follow instead.
        stop: the id of a job to stop instead.
        on: the resource of the node that runs the command; by default the head does, or, where the cluster file
            declares `learner` for other nodes only, one of these.

    Returns:
        The exit code: 0 when the job succeeded, 1 when it failed or contact was lost, 143 when it was stopped, 130 when
        following was interrupted.

    Raises:
        UserError: for a command, target or token that is wrong.
    """
    if sum(map(bool, (arguments, follow, stop))) > 1:
        raise UserError("submit: a command, --follow and --stop exclude each other.")
    use_token()
    entry = None if follow or stop else EntryPoint.of(arguments, working_dir)
    with _exit_on_signals(), Cluster(target) as cluster:
        if entry:
            return _run(cluster, entry, working_dir, on or learner_resource(cluster))
        job = Job(cluster, follow or stop or "")
        try:
            details = job.details()
        except LostContactError as lost:  # what is not reached the first time is most likely not there
            raise UserError(f"submit: {target} cannot be reached: {lost}.") from None
        return _stop(job, details, target) if stop else _follow(job, target)


def _run(cluster: Cluster, entry: EntryPoint, working_dir: Path | None, resource: str) -> int:
    follow = _command(cluster.target, "--follow", entry.job_id)
    try:
        _send(cluster, entry, working_dir, resource)
    except KeyboardInterrupt:
        print(
            f"\ndreamfleet: interrupted; {follow} finds the job if it was submitted before that.",
            file=sys.stderr,
        )
        return 130
    print(f"job        {entry.job_id}")
    if entry.directory:
        where = f"the node with {resource}" if resource else "the head"
        print(f"writes to  {entry.directory} on {where}")
    print(f"follow     {follow} (Ctrl-C leaves, the job goes on)")
    print(f"stop       {_command(cluster.target, '--stop', entry.job_id)}", flush=True)
    return _follow(Job(cluster, entry.job_id), cluster.target)


def _send(cluster: Cluster, entry: EntryPoint, working_dir: Path | None, resource: str) -> None:
    with copy_to_send(working_dir) if working_dir else nullcontext() as package:
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
        environment |= {"working_dir": str(package)} if package else {}
        try:
            cluster.ask(
                lambda client: client.submit_job(
                    entrypoint=shlex.join(["bash", "-c", entry.script]),
                    submission_id=entry.job_id,
                    runtime_env=environment,
                    # A trace of it places the driver, and leaves the rest to the learner and the actors.
                    entrypoint_resources={resource: 0.001} if resource else None,
                )
            )
        except LostContactError as lost:
            try:
                Job(cluster, entry.job_id).details()  # the answer may have been lost, not the job
            except (LostContactError, UserError):
                raise UserError(f"submit: {cluster.target} could not be given the job: {lost}.") from None


def _follow(job: Job, target: str) -> int:
    """Print the job's log to its end, and how it ended."""
    follow = _command(target, "--follow", job.id)
    try:
        details = job.follow()
    except KeyboardInterrupt:
        print(f"\nthe job goes on.\nfollow     {follow}\nstop       {_command(target, '--stop', job.id)}")
        return 130
    except LostContactError as lost:
        print(
            f"dreamfleet: gave up, the cluster cannot be reached: {lost}. If it is there, the job goes on: {follow} "
            "follows it again.",
            file=sys.stderr,
        )
        return 1
    print(_ending(job, details), file=sys.stderr if details.status == "FAILED" else sys.stdout)
    return EXIT_CODES[details.status]


def _stop(job: Job, details: JobDetails, target: str) -> int:
    """Ask the job to stop and follow it until it has."""
    if details.status.is_terminal():
        print(_ending(job, details))
        return 0
    try:
        job.skip_log()
        job.stop()
    except LostContactError as lost:
        raise UserError(f"submit: {target} could not be asked to stop the job: {lost}.") from None
    print(f"asked {job.id} to stop; it writes a checkpoint first, for which it has {STOP_WAIT_S} s.", flush=True)
    code = _follow(job, target)
    return 0 if code == EXIT_CODES["STOPPED"] else code


def _ending(job: Job, details: JobDetails) -> str:
    if details.status == "FAILED":
        # Ray appends the end of the log, which was printed.
        cause = (details.message or "").partition(", last available logs")[0].removesuffix(".")
        cause = cause or "Ray does not say of what"
        if "exit code 127" in cause:
            cause += ": its node has no `dreamfleet` on the PATH of those who started Ray, see docs/cluster.md"
        return f"dreamfleet: {job.id} failed: {cause}."
    return f"{job.id} was stopped." if details.status == "STOPPED" else f"{job.id} succeeded."


def _declares_learner(kind: Any) -> bool:
    resources = kind.get("resources") if isinstance(kind, dict) else None
    return isinstance(resources, dict) and bool(resources.get("learner"))


def learner_resource(cluster: Cluster) -> str:
    """Return "learner" where the cluster file declares that resource, but not for the head."""
    types = cluster.config.get("available_node_types")
    if not isinstance(types, dict):
        return ""
    declare = [name for name, kind in types.items() if _declares_learner(kind)]
    return "learner" if declare and cluster.config.get("head_node_type") not in declare else ""


def _command(target: str, flag: str, job_id: str) -> str:
    return f"`{shlex.join(['dreamfleet', 'submit', target, flag, job_id])}`"


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Have SIGTERM and a terminal that closes end this process in order, since the tunnel would outlive it."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
