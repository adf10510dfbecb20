"""`dreamfleet submit`: runs a command as a job on a cluster and prints its log; the job outlives the connection."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.common.errors import UserError
from dreamfleet.deploy.submit.cluster import Cluster, LostContactError
from dreamfleet.deploy.submit.entry_point import EntryPoint, copy_to_send
from dreamfleet.deploy.submit.job import Job
from dreamfleet.deploy.workers.address import use_token

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

STOP_WAIT_S = 150
"""Time that Ray gives a job to write its last checkpoint before it kills it. Ray's own default is 3."""
EXIT_CODES = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 143}


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
            return _run(cluster, entry, working_dir, on or _learner_resource(cluster))
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


def _learner_resource(cluster: Cluster) -> str:
    """Return "learner" where the cluster file declares that resource, but not for the head."""
    types = cluster.config.get("available_node_types")
    if not isinstance(types, dict):
        return ""
    declare = {name for name, kind in types.items() if (kind or {}).get("resources", {}).get("learner")}
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
