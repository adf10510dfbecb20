"""A cluster's head as `ray job` reaches it: by SSH with the file of `ray up`, or by the address of the dashboard."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any
from urllib.parse import urlsplit

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.resolve import read_yaml
from dreamfleet.deploy.submit.entry_point import ENVIRONMENT
from dreamfleet.deploy.workers.token import has_token

CALL_TIMEOUT_S = 120.0
"""Time for one `ray` command that answers at once; asking a cloud for the head's address takes seconds of it."""
RECORDS = ("--log-style", "record", "--log-color", "false")
"""Makes `ray job` begin what it says itself with a time and a place, so that it can be told from a job's log."""


_KUBERNETES = re.compile(r"^apiVersion:.*$[\s\S]*^kind:|^kind:.*$[\s\S]*^apiVersion:", re.MULTILINE)


class LostContactError(Exception):
    """The head did not answer, or not as it should; the sentence says how."""


class Head:
    """Runs `ray job` commands against one cluster.

    Args:
        target: a file that `ray up` was given, or http://HOST:PORT of a dashboard.

    Attributes:
        file: the cluster file, or None.
        config: what the file holds.

    Raises:
        UserError: if it is neither.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.file: Path | None = None
        self.config: dict[str, Any] = {}
        self._ray = _find_ray()
        if re.match(r"https?://", target):
            self._address = _checked_address(target)
            return
        self.file = Path(target)
        if not self.file.is_file():
            raise UserError(f"submit: '{target}' is neither a file that is there nor an address such as "
                            "http://127.0.0.1:8265 (`ray dashboard FILE` opens that one).")  # fmt: skip
        if _KUBERNETES.search(self.file.read_text(errors="replace")):
            apply = shlex.join(["kubectl", "apply", "-f", target])
            raise UserError(
                f"file {target}: is for Kubernetes, where `{apply}` starts cluster and command; to submit to one that "
                "runs, give the address of its dashboard."
            )
        self.config = read_yaml(self.file, f"file {target}")
        if not {"cluster_name", "provider"} <= self.config.keys():
            raise UserError(f"file {target}: has no cluster_name or no provider: it is no file for `ray up`.")
        starts = " ".join(map(str, self.config.get("head_start_ray_commands") or []))
        port = re.search(r"--dashboard-port[= ](\d+)", starts)
        self._address = f"http://127.0.0.1:{port[1] if port else 8265}"  # as seen on the head

    def job(self, action: str, *words: str) -> str:
        """Run `ray job ACTION` and return what it printed.

        Raises:
            UserError: for what trying again does not mend.
            LostContactError: if the head was not reached.
        """
        return self._call(self._job_command(action, list(words)))

    def shell(self, script: str) -> str:
        """Run a line in the head's shell; needs a cluster file. Raises as `job` does."""
        return self._call([self._ray, "exec", str(self.file), script])

    def send(self, directory: Path, to: str) -> None:
        """Copy a directory's content into one on the head; needs a cluster file. Raises as `job` does."""
        self.shell(f"mkdir -p {to}")
        self._call([self._ray, "rsync-up", str(self.file), f"{directory}/", f"{to}/"])

    @contextmanager
    def reading(self, action: str, *words: str, quiet_s: float) -> Iterator[Iterator[str | None]]:
        """Run `ray job ACTION` while the block runs, and give its lines as they come, None each `quiet_s` without one.

        What it says on stderr is dropped; a line that was cut off is not given.
        """
        process = self._start(self._job_command(action, list(words), errors="2>/dev/null"), subprocess.PIPE,
                              subprocess.DEVNULL)  # fmt: skip
        lines: Queue[bytes] = Queue()
        reader = Thread(target=_pass_on, args=(process, lines), daemon=True)
        reader.start()
        try:
            yield _whole_lines(lines, quiet_s)
        finally:
            _end(process)
            reader.join(timeout=1.0)  # an old SSH's process for the next call may hold the pipe open

    def _job_command(self, action: str, words: list[str], errors: str = "") -> list[str]:
        command = ["job", action, "--address", self._address, *RECORDS, *words]
        if not self.file:
            return [self._ray, *command]
        # A word that begins with ~/ is left to the head's shell; unbuffered, so that a log's lines come as they are.
        quoted = [f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word) for word in command]
        return [self._ray, "exec", str(self.file), f"{ENVIRONMENT}; PYTHONUNBUFFERED=1 ray {' '.join(quoted)} {errors}"]

    def _start(self, command: list[str], output: IO[bytes] | int, errors: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own: Ctrl-C is for us, and SSH does not take the terminal."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if has_token():
            environment.setdefault("RAY_AUTH_MODE", "token")  # else Ray does not look for it
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,  # noqa: S603
                                start_new_session=True, env=environment)  # fmt: skip

    def _call(self, command: list[str]) -> str:
        with TemporaryFile() as printed:  # no pipe: SSH leaves a process behind for the next call, which holds it open
            process = self._start(command, printed, printed)
            try:
                process.wait(CALL_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise LostContactError(f"no answer within {CALL_TIMEOUT_S:.0f} s") from None
            finally:
                _end(process)
            printed.seek(0)
            output = printed.read().decode(errors="replace").replace("\r\n", "\n")
        if process.returncode:
            self._complain(output)
        return output

    def _complain(self, output: str) -> None:
        """Raise the sentence for what a failed command printed."""
        there = f"the head of {self.file}" if self.file else "this machine"
        up = shlex.join(["ray", "up", str(self.target)])
        mend = f"`{up}` ships ~/.ray/auth_token" if self.file else (
            "copy the cluster's to ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
        )  # fmt: skip
        for pattern, sentence in (
            (r"Missing authentication token|couldn't find an authentication token",
             f"submit: {self.target} asks for a token and {there} has none: {mend}."),
            (r"Invalid authentication token",
             f"submit: {self.target} refuses the token of {there}: it is another cluster's; {mend}."),
            (r"Head node of cluster .* not found",
             f"submit: the cluster of {self.target} is not up: `{up}` starts it."),
            (r"Permission denied \(", f"submit: {there} refuses the SSH login; see auth in {self.target}."),
            (r"ray: (command )?not found", f"submit: {there} has no `ray` on its PATH; see docs/cluster.md."),
            (r"[Jj]ob \S+ does not exist", f"submit: {self.target} knows no such job; "
             "`ray job list` on its head names those it has."),
        ):  # fmt: skip
            if re.search(pattern, output):
                raise UserError(sentence)
        if "Failed to connect to Ray at address" in output:
            raise LostContactError(f"no Ray dashboard answers at {self._address}")
        raise LostContactError(_cause(output))


def _cause(output: str) -> str:
    """Return the line of a failed command's output that says most."""
    lines = [line.strip() for line in output.partition("Error: Command failed")[0].splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"ssh: |rsync: |refused|timed out|Error", line)]
    return (telling or lines or ["it said nothing"])[-1][:300].rstrip(".")


def _find_ray() -> str:
    """Return the path of `ray`: on PATH, or beside the Python that runs, whose environment may not be activated."""
    found = shutil.which("ray") or shutil.which("ray", path=str(Path(sys.executable).parent))
    if not found:
        raise UserError("submit: there is no `ray` on PATH: it comes with `pip install 'ray[default]'`.")
    return found


def _checked_address(address: str) -> str:
    parts = urlsplit(address)
    if parts.username or parts.password or parts.query:
        raise UserError("submit: the address carries more than http://HOST:PORT; a token belongs in ~/.ray/auth_token, "
                        "or in a file that RAY_AUTH_TOKEN_PATH names.")  # fmt: skip
    if not parts.hostname:
        raise UserError(f"submit: '{address}' names no host; http://HOST:8265 would be right.")
    return address.rstrip("/")


def _pass_on(process: subprocess.Popen[bytes], lines: Queue[bytes]) -> None:
    """Put each line into the queue, and an empty one after the last."""
    assert process.stdout
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(b"")


def _whole_lines(lines: Queue[bytes], quiet_s: float) -> Iterator[str | None]:
    while True:
        try:
            line = lines.get(timeout=quiet_s)
        except Empty:
            yield None
            continue
        if not line.endswith(b"\n"):
            return
        yield line.decode(errors="replace").rstrip("\r\n")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command with all that it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
