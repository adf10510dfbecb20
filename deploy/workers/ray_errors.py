"""What Ray's errors say of a worker: what its code raised, or what its process died of, in a few words."""

from __future__ import annotations

import re
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError, TaskCancelledError

from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.formatting import shorten
from dreamfleet.deploy.workers.pool import WorkerFailedError, WorkerLostError
from dreamfleet.deploy.workers.ray_internals import logs_folder

LAST_BYTES = 100_000
"""How much of the end of a worker's error stream is searched for its last words."""
LONGEST_CAUSE = 300
EXIT_WORDS = "dreamfleet: os._exit"
"""Begins what a worker writes before user code ends it this way (`actors/last_words.py`)."""

_SIGNAL = re.compile(r"\*\*\* (SIG[A-Z]+) received")
_FATAL = re.compile(r"^Fatal Python error: (.*)$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)


def answer_of(future: Future[Any]) -> Any:
    """Return what a done order brought.

    Raises:
        WorkerLostError: if the worker's process is gone.
        WorkerFailedError: if its code raised.
    """
    try:
        return future.result(timeout=0)
    except RayTaskError as error:
        raise WorkerFailedError(raised_by(error), plain(error)) from None
    except RayError as error:  # it died, has no place any more, or was ended for want of memory
        cause = raised_at_start(error)
        if cause is not None:
            raise WorkerFailedError(cause, plain(error)) from None
        raise WorkerLostError(cause_of_death(error, logs_folder())) from None


def plain(error: BaseException) -> str:
    """Return a Ray error's text without the codes that colour it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error))


def raised_by(error: RayTaskError) -> BaseException:
    """Return what the remote code raised."""
    cause = error.cause
    if isinstance(cause, TaskCancelledError) or isinstance(error, TaskCancelledError):  # nothing here cancels tasks
        return KeyboardInterrupt("raised by code in the worker's process, as an environment")
    return cause if isinstance(cause, BaseException) else error


def raised_at_start(error: BaseException) -> BaseException | None:
    """Return what a worker's constructor raised, if that is why it died; of that, Ray hands on the traceback's text."""
    if not getattr(error, "actor_init_failed", False):
        return None
    last_line = plain(error).strip().splitlines()[-1]
    name, _, sentence = last_line.partition(": ")
    for kind in (UserError, RunFailedError):
        if name == f"{kind.__module__}.{kind.__qualname__}":
            return kind(sentence)
    return RuntimeError(shorten(last_line))


def cause_of_death(error: RayError, logs: Path | None) -> str:
    """Return why a worker's process is gone, in words.

    Ray knows an exit code and SIGTERM. Of other signals it knows that the connection ended; whether it was a crash is
    in what the process wrote at last, which can be read where it ran on this machine.

    Args:
        logs: folder of Ray's logs on this machine.
    """
    text = plain(error)
    if isinstance(error, OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in text:
        return shorten(f"ended by Ray, since its node was out of memory: {_line(text, 'Memory on')}", LONGEST_CAUSE)
    if not isinstance(error, ActorDiedError):
        return shorten(_line(text), LONGEST_CAUSE)
    pid = re.search(r"^\s*pid: (\d+)$", text, re.MULTILINE)
    return describe_exit(text, int(pid[1]) if pid else 0, logs)


def describe_exit(text: str, pid: int, logs: Path | None) -> str:
    """Return how a process ended, by Ray's text about it and by its own last words."""
    if "connection error" in text:
        text += exit_words(pid, logs)
    code = re.search(r"exit code (-?\d+)", text)
    if "receives a SIGTERM" in text:
        return "ended by SIGTERM"
    if code:
        return f"exited with code {code[1]} (sys.exit)"
    if "connection error" not in text:
        return shorten(_line(text, "The actor"), LONGEST_CAUSE)
    said = _end_of_errors(pid, logs)
    if said is None:
        return f"ended; its last words, if any, are on its node in Ray's logs, worker-*-{pid}.err"
    return last_words(said) or "killed without a word of its own, as by SIGKILL"


def last_words(text: str) -> str:
    """Return of what a process crashed or exited, by the end of its error stream; "" if that does not say."""
    if EXIT_WORDS in text:
        code = text.rpartition(EXIT_WORDS)[2].strip().partition("\n")[0]
        return f"exited with code {code.strip('()')} (os._exit)"
    signal, fatal = _SIGNAL.search(text), _FATAL.search(text)
    if not signal and not fatal:
        return ""
    frame = _FRAME.search(text, fatal.end() if fatal else 0)
    where = f" in {frame[3]} ({frame[1]}, line {frame[2]})" if frame else ""
    name = f" with {signal[1]}" if signal else ""
    return shorten(f"crashed{name}: {fatal[1] if fatal else 'no further words'}{where}", LONGEST_CAUSE)


def exit_words(pid: int, logs: Path | None) -> str:
    """Return what Ray wrote into a process's own log as that exited; "" if it was cut off, or is on another machine."""
    for file in logs.glob(f"python-core-worker-*_{pid}.log") if logs and pid else ():
        found = re.findall(r"Executing worker exit: (.*)", _end_of(file))
        if found:
            return str(found[-1])
    return ""


def _end_of_errors(pid: int, logs: Path | None) -> str | None:
    """Return the end of what a process wrote to its error stream; None if it is not on this machine."""
    files = list(logs.glob(f"worker-*-{pid}.err")) if logs and pid else []
    return _end_of(files[-1]) if files else None


def _end_of(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, 2) - LAST_BYTES))
        return stream.read().decode(errors="replace")


def _line(text: str, start: str = "") -> str:
    """Return the first line that begins in this way, or else the first one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no cause is known"]
    return next((line for line in lines if start and line.startswith(start)), lines[0])
