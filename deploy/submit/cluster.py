"""A cluster's job server: asked at its address, or through a tunnel to the head of a `ray up` file's cluster.

The dashboard of such a cluster, which serves jobs, listens on the head's loopback only. `ray dashboard FILE` is Ray's
own way there: SSH with the file's user, key and proxy, and the head's address as the cloud knows it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from dreamfleet.common.errors import UserError, shown
from dreamfleet.common.settings.presets import read_yaml

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CALL_TIMEOUT_S = 120.0
"""Time for one answer, and for opening the tunnel: asking a cloud for the head's address takes seconds of it."""

_KUBERNETES = re.compile(r"^apiVersion:.*$[\s\S]*^kind:|^kind:.*$[\s\S]*^apiVersion:", re.MULTILINE)
_Answer = TypeVar("_Answer")


class LostContactError(Exception):
    """The job server did not answer, or not as it should; the sentence says how."""


class Cluster:
    """The job server of one cluster; leaving its `with` block closes the tunnel.

    Args:
        target: a file that `ray up` was given, or http://HOST:PORT of a dashboard.

    Attributes:
        config: what the file holds; empty for an address.

    Raises:
        UserError: if the target is neither.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.config: dict[str, Any] = {}
        self._tunnel: _Tunnel | None = None
        self._client: JobSubmissionClient | None = None
        if re.match(r"https?://", target):
            self._address = _check_address(target)
            return
        self.config = _read_cluster_file(target)
        starts = " ".join(_start_commands(self.config, target))
        port = re.search(r"--dashboard-port[= ](\d+)", starts)
        self._tunnel = _Tunnel(target, int(port[1]) if port else 8265)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self._disconnect()

    def ask(self, question: Callable[[JobSubmissionClient], _Answer]) -> _Answer:
        """Return what a call of Ray's client returns.

        Raises:
            UserError: for what trying again does not mend.
            LostContactError: if the job server was not reached or failed.
        """
        from ray.exceptions import AuthenticationError

        try:
            address = self._tunnel.open() if self._tunnel else self._address
            return _within(CALL_TIMEOUT_S, lambda: question(self._connect(address)))
        except AuthenticationError as error:
            raise UserError(self._about_token(str(error))) from None
        except TimeoutError:
            lost = f"no answer within {CALL_TIMEOUT_S:.0f} s"
        except RuntimeError as error:
            if re.search(r"[Jj]ob \S+ does not exist", str(error)):
                raise UserError(
                    f"submit: {self.target} knows no such job; `ray job list` on its head names those it has."
                ) from None
            lost = " ".join(str(error).split())[:300].rstrip(".")
        except OSError:
            lost = f"no Ray dashboard answers at {self._tunnel.far_end if self._tunnel else self._address}"
        except LostContactError as error:
            lost = str(error)
        self._disconnect()
        raise LostContactError(lost)

    def read_log(self, job_id: str, quiet_s: float) -> Iterator[str | None]:
        """Yield a job's log from its beginning as it grows, and None after each `quiet_s` without text.

        Raises:
            LostContactError: if the connection breaks before the log's end; UserError: as `ask`.
        """
        import aiohttp

        parts = self.ask(lambda client: client).tail_job_logs(job_id)

        async def next_part() -> str:
            return await anext(parts, "")

        with asyncio.Runner() as runner:
            while True:
                task = runner.get_loop().create_task(next_part())
                while not _run(runner, asyncio.wait({task}, timeout=quiet_s))[0]:
                    yield None
                try:
                    part = task.result()
                except (aiohttp.ClientError, OSError, RuntimeError) as error:
                    raise LostContactError(str(error)) from None
                if not part:
                    return
                yield part

    def _connect(self, address: str) -> JobSubmissionClient:
        if self._client is None:
            from ray.job_submission import JobSubmissionClient

            for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
                os.environ.pop(name, None)  # Ray's client would prefer them to the address it is given
            for handler in logging.getLogger("ray").handlers:
                handler.setLevel(logging.WARNING)  # the client logs each upload and each end of a log
            self._client = JobSubmissionClient(address)
        return self._client

    def _disconnect(self) -> None:
        self._client = None
        if self._tunnel:
            self._tunnel.close()

    def _about_token(self, refusal: str) -> str:
        if "Invalid authentication token" in refusal:
            fault = "refuses the token of this machine: it is another cluster's"
        else:
            fault = "asks for a token and this machine has none"
        where = "on its head, where `ray up` put it" if self._tunnel else "there"
        return (
            f"submit: {self.target} {fault}: the right one is in ~/.ray/auth_token {where}; copy it to the same place "
            "here, or name a copy in RAY_AUTH_TOKEN_PATH."
        )


class _Tunnel:
    """A port here that leads to the dashboard on the loopback of a cluster's head, made again when it broke."""

    def __init__(self, file: str, remote_port: int) -> None:
        self.far_end = f"http://127.0.0.1:{remote_port} on the head"
        self._file = file
        self._remote_port = remote_port
        self._ray = _find_ray()
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = f"{exempt},127.0.0.1" if exempt else "127.0.0.1"

    def open(self) -> str:
        """Return the dashboard's address here.

        Raises:
            UserError: if the cluster is not up, or refuses the login.
            LostContactError: if the head was not reached.
        """
        if not self._process or self._process.poll() is not None:
            self._start()
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """End the tunnel."""
        if self._process and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        words = [self._ray, "dashboard", self._file, "--port", str(self._port), "--remote-port", str(self._remote_port)]
        with TemporaryFile() as printed:
            # In a session of its own: Ctrl-C does not reach it, and SSH does not take the terminal.
            self._process = subprocess.Popen(  # noqa: S603
                words, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, start_new_session=True
            )
            deadline = time.monotonic() + CALL_TIMEOUT_S
            while not self._is_open():
                if self._process.poll() is not None:
                    printed.seek(0)
                    raise self._failure(printed.read().decode(errors="replace").replace("\r\n", "\n"))
                if time.monotonic() > deadline:
                    raise LostContactError(f"no SSH connection to the head within {CALL_TIMEOUT_S:.0f} s")
                time.sleep(0.1)

    def _is_open(self) -> bool:
        """Whether SSH listens here, which it does once it is logged in."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1.0):
            return True
        return False

    def _failure(self, output: str) -> Exception:
        if re.search(r"Head node of cluster .* not found", output):
            up = shlex.join(["ray", "up", self._file])
            return UserError(f"submit: the cluster of {self._file} is not up: `{up}` starts it.")
        if "Permission denied (" in output:
            return UserError(f"submit: the head of {self._file} refuses the SSH login; see auth in {self._file}.")
        lines = [line.strip() for line in output.partition("Error: ")[0].splitlines() if line.strip()]
        telling = [line for line in lines if re.search(r"ssh: |refused|timed out|Error", line)]
        return LostContactError((telling or lines or ["`ray dashboard` said nothing"])[-1][:300].rstrip("."))


def _read_cluster_file(target: str) -> dict[str, Any]:
    file = Path(target)
    if not file.is_file():
        raise UserError(
            f"submit: '{target}' is neither a file that is there nor an address such as http://127.0.0.1:8265 "
            "(`ray dashboard FILE` opens that one)."
        )
    if _KUBERNETES.search(file.read_text(errors="replace")):
        apply = shlex.join(["kubectl", "apply", "-f", target])
        raise UserError(
            f"file {target}: is for Kubernetes, where `{apply}` starts cluster and command; to submit to one that "
            "runs, give the address of its dashboard."
        )
    config = read_yaml(file, f"file {target}")
    if not {"cluster_name", "provider"} <= config.keys():
        raise UserError(f"file {target}: has no cluster_name or no provider: it is no file for `ray up`.")
    return config


def _start_commands(config: dict[str, Any], target: str) -> list[str]:
    commands = config.get("head_start_ray_commands") or []
    if not isinstance(commands, list) or not all(isinstance(command, str) for command in commands):
        raise UserError(f"file {target}: head_start_ray_commands is {shown(commands)}, but must be a list of commands.")
    return commands


def _check_address(address: str) -> str:
    parts = urlsplit(address)
    if parts.username or parts.password or parts.query:
        raise UserError(
            "submit: the address carries more than http://HOST:PORT; a token belongs in ~/.ray/auth_token, or in a "
            "file that RAY_AUTH_TOKEN_PATH names."
        )
    if not parts.hostname:
        raise UserError(f"submit: '{address}' names no host; http://HOST:8265 would be right.")
    return address.rstrip("/")


def _find_ray() -> str:
    """Return the path of `ray`: on PATH, or beside the Python that runs, whose environment may not be activated."""
    found = shutil.which("ray") or shutil.which("ray", path=str(Path(sys.executable).parent))
    if not found:
        raise UserError("submit: there is no `ray` on PATH: it comes with `pip install 'ray[default]'`.")
    return found


def _run(runner: asyncio.Runner, work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Run a coroutine to its end; a Ctrl-C that comes just as it begins is told by the runner as a cancellation."""
    try:
        return runner.run(work)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _within(seconds: float, work: Callable[[], _Answer]) -> _Answer:
    """Return what `work` returns; in a thread, since Ray's client waits for an answer without limit.

    Raises:
        TimeoutError: if it takes longer.
    """
    answer: Future[_Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except Exception as error:  # noqa: BLE001 (it is raised again where the answer is waited for)
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    return answer.result(seconds)
