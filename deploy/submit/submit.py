"""`dreamfleet submit`: a command as a job on a cluster, its log here; the connection may go, the job goes on."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.deploy.submit.entry_point import HOME, EntryPoint
from dreamfleet.deploy.submit.head import Head, LostContactError
from dreamfleet.deploy.submit.job import Job, JobState
from dreamfleet.deploy.submit.package import packed

STOP_WAIT_S = 150
"""Time that Ray gives a job to write its last checkpoint before it kills it. Ray's own default is 3."""
EXIT_CODES = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 143}


def submit(
    target: str, arguments: list[str], working_dir: Path | None, follow: str | None, stop: str | None, on: str | None
) -> int:
    """Run a dreamfleet command as a job and follow its log; or follow, or stop, one submitted before.

    Args:
        target: a file that `ray up` was given, or http://HOST:PORT of a dashboard.
        arguments: the command, for example ["train", "--preset", "small"].
        working_dir: a directory whose modules all nodes are to have.
        follow: the job to follow instead.
        stop: the job to stop instead.
        on: the resource of the node that runs the command; by default the head does, or, where the cluster file
            declares `learner` for other nodes alone, one of these.

    Returns:
        The exit code: 0 when the job succeeded, 1 when it failed or was lost sight of, 143 when it was stopped, 130
        when following was interrupted.

    Raises:
        UserError: for a command, target or token that would not do.
    """
    if sum(map(bool, (arguments, follow, stop))) > 1:
        raise UserError("submit: a command, --follow and --stop exclude each other.")
    if follow or stop:
        head = Head(target)
        job = Job(head, follow or stop or "")
        if stop:
            return _stop(job, target)
        _first_state(job, target)
        return _follow(job, target)
    entry = EntryPoint.of(arguments, working_dir)
    head = Head(target)
    resource = on or _learner_resource(head)
    try:
        _send(head, entry, working_dir, resource)
    except KeyboardInterrupt:
        print(f"\ndreamfleet: interrupted; {_command(target, '--follow', entry.job_id)} finds the job if it was "
              "submitted before that.", file=sys.stderr)  # fmt: skip
        return 130
    print(f"job        {entry.job_id}")
    if entry.directory:
        where = f"the node with {resource}" if resource else "the head"
        print(f"writes to  {entry.directory} on {where}")
    print(f"come back  {_command(target, '--follow', entry.job_id)} (Ctrl-C leaves, the job goes on)")
    print(f"stop       {_command(target, '--stop', entry.job_id)}", flush=True)
    return _follow(Job(head, entry.job_id), target)


def _send(head: Head, entry: EntryPoint, working_dir: Path | None, resource: str) -> None:
    """Submit the job.

    Raises:
        UserError: if the cluster cannot be reached, or refuses.
    """
    words = ["--no-wait", "--submission-id", entry.job_id]
    words += ["--runtime-env-json", json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}})]
    if resource:
        # A trace of it: the driver is placed by it, and all the rest is left to those who ask for one.
        words += ["--entrypoint-resources", json.dumps({resource: 0.001})]
    there = f"{HOME}/sent/{entry.job_id}"
    try:
        with packed(working_dir) if working_dir else nullcontext() as package:
            if package and head.file:
                head.send(package, there)
            if package:
                words += ["--working-dir", there if head.file else str(package)]
            head.job("submit", *words, "--", "bash", "-c", entry.script)
            if package and head.file:
                head.shell(f"rm -rf {there}")  # Ray keeps its own copy
    except LostContactError as lost:
        try:
            Job(head, entry.job_id).state()  # the answer may have been lost, not the job
        except (LostContactError, UserError):
            raise UserError(f"submit: {head.target} could not be given the job: {lost}.") from None


def _follow(job: Job, target: str) -> int:
    """Print the job's log to its end, and how it ended."""
    try:
        state = job.follow()
    except KeyboardInterrupt:
        print(f"\nthe job goes on.\ncome back  {_command(target, '--follow', job.id)}\n"
              f"stop       {_command(target, '--stop', job.id)}")  # fmt: skip
        return 130
    except LostContactError as lost:
        print(f"dreamfleet: gave up, the cluster cannot be reached: {lost}. If it is there, the job goes on: "
              f"{_command(target, '--follow', job.id)} comes back to it.", file=sys.stderr)  # fmt: skip
        return 1
    print(_ending(job, state), file=sys.stderr if state.name == "FAILED" else sys.stdout)
    return EXIT_CODES[state.name]


def _stop(job: Job, target: str) -> int:
    """Ask the job to stop and follow it until it has."""
    state = _first_state(job, target)
    if state.is_over:
        print(_ending(job, state))
        return 0
    try:
        job.skip_log()
        job.stop()
    except LostContactError as lost:
        raise UserError(f"submit: {target} could not be told to stop the job: {lost}.") from None
    print(f"asked {job.id} to stop; it writes a checkpoint first, for which it has {STOP_WAIT_S} s.", flush=True)
    code = _follow(job, target)
    return 0 if code == EXIT_CODES["STOPPED"] else code


def _first_state(job: Job, target: str) -> JobState:
    """Ask how the job is; what is not reached at the first time is most likely not there."""
    try:
        return job.state()
    except LostContactError as lost:
        raise UserError(f"submit: {target} cannot be reached: {lost}.") from None


def _ending(job: Job, state: JobState) -> str:
    if state.name == "FAILED":
        # Ray appends the end of the log, which was printed.
        cause = state.message.partition(", last available logs")[0].removesuffix(".") or "Ray does not say of what"
        if "exit code 127" in cause:
            cause += ": its node has no `dreamfleet` on the PATH of those who started Ray, see docs/cluster.md"
        return f"dreamfleet: {job.id} failed: {cause}."
    return f"{job.id} was stopped." if state.name == "STOPPED" else f"{job.id} succeeded."


def _learner_resource(head: Head) -> str:
    """Return "learner" where the cluster file declares that resource, but not for the head."""
    types = head.config.get("available_node_types")
    if not isinstance(types, dict):
        return ""
    declare = {name for name, kind in types.items() if (kind or {}).get("resources", {}).get("learner")}
    return "learner" if declare and head.config.get("head_node_type") not in declare else ""


def _command(target: str, flag: str, job_id: str) -> str:
    return f"`{shlex.join(['dreamfleet', 'submit', target, flag, job_id])}`"
