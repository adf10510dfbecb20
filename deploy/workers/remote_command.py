"""A dreamfleet command on a node of a cluster: Ray places it by what it takes; it is started there, and signalled."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamfleet import __version__
from dreamfleet.common.errors import RunFailedError, UserError, first_line
from dreamfleet.deploy.workers.placement import LOOK_TIMEOUT_S, list_nodes, look
from dreamfleet.deploy.workers.ray_internals import have_started

PROGRAM = (sys.executable, "-m", "dreamfleet")
ANSWER_S = 30.0
"""Time for what is answered at once."""
_KEPT = ("RAY_AUTH_", "RAY_USAGE_")
"""Of Ray's variables in a worker, those that a Ray of its own may have too; others would tie it to the cluster's."""


class _Host:
    """Runs the command on its node, in an actor's process; one thread waits for it, another takes signals."""

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str], output: str, seen: str) -> None:
        self._arguments, self._variables, self._output, self._seen = arguments, variables, output, seen
        self._process: subprocess.Popen[bytes] | None = None
        self._lock, self._stopped_before = threading.Lock(), False

    def run(self) -> int:
        """Start the command, wait for its end and return its exit code."""
        with self._lock:
            if self._stopped_before:
                return 130
            if not Path(self._seen).exists():
                raise FileNotFoundError(f"{self._seen} is not there on node {ray.util.get_node_ip_address()}")
            kept = {n: v for n, v in os.environ.items() if not n.startswith("RAY_") or n.startswith(_KEPT)}
            Path(self._output).parent.mkdir(parents=True, exist_ok=True)
            with Path(self._output).open("ab") as printed, _signals_let_through():
                self._process = subprocess.Popen(  # noqa: S603
                    [*PROGRAM, *self._arguments], stdin=subprocess.DEVNULL, stdout=printed,
                    stderr=subprocess.STDOUT, env={**kept, **self._variables}, start_new_session=True,
                )  # fmt: skip
        return self._process.wait()

    def signal(self, number: int) -> None:
        """Send the command a signal; one that was not started yet will not be."""
        with self._lock:
            self._stopped_before = True
            if self._process and self._process.poll() is None:
                self._process.send_signal(number)


@contextmanager
def _signals_let_through() -> Iterator[None]:
    """Within, a process that this thread starts can be interrupted.

    Ray's threads in a worker, but for the main one, block SIGINT and SIGTERM, and a process has the mask of the thread
    that started it: a run would never hear that it is to stop.
    """
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class RemoteCommand:
    """A command that Ray places where there is room for it.

    Args:
        arguments: what follows `dreamfleet`.
        variables: of its environment, beside the node's.
        output: file to which it prints; `seen` is a folder that its node must see.
        cpus: logical CPUs that it takes; `gpus` and `memory` in bytes likewise.

    Attributes:
        said: why there is no exit code, "" if there is one.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        variables: Mapping[str, str],
        output: Path,
        seen: Path,
        cpus: int,
        gpus: int,
        memory: float,
    ) -> None:
        self.said = ""
        self._is_given_up = False
        host: Any = ray.remote(_Host)
        self._host = host.options(
            num_cpus=cpus, num_gpus=gpus, memory=int(memory), max_restarts=0, max_concurrency=2
        ).remote(list(arguments), dict(variables), str(output), str(seen))
        self._code = self._host.run.remote()

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs or waits for room; 1 if its node or its process was lost."""
        if self._is_given_up:
            return 130
        ready, _ = ray.wait([self._code], timeout=0)
        if not ready:
            return None
        try:
            code: int = ray.get(self._code, timeout=ANSWER_S)
        except RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.said = (
                f"its node or its process on the cluster was lost: {lines[-1] if lines else type(error).__name__}"
            )
            code = 1
        ray.kill(self._host)  # gives back what it took
        return code

    def stop(self) -> None:
        """Have it end in order; one that waits for room is given up."""
        if have_started([self._host])[0]:
            self._host.signal.remote(int(signal.SIGINT))
        else:
            self._is_given_up = True
            ray.kill(self._host)

    def kill(self) -> None:
        """End it with its process on the node."""
        with suppress(RayError, GetTimeoutError):
            ray.get(self._host.signal.remote(int(signal.SIGKILL)), timeout=ANSWER_S)
        ray.kill(self._host)


def check_nodes(folder: Path) -> None:
    """Refuse a folder that a node does not see, and a node without this dreamfleet.

    Raises:
        UserError: naming the node.
        RunFailedError: if a node does not answer.
    """
    mark = folder / f".seen-{secrets.token_hex(8)}"
    mark.touch()
    try:
        nodes = [node for node in list_nodes() if node.resources.get("CPU", 0) > 0]
        remote: Any = ray.remote(num_cpus=0, max_retries=0)(look)
        answers = [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(str(mark))
            for node in nodes
        ]
        found = ray.get(answers, timeout=LOOK_TIMEOUT_S)
    except (GetTimeoutError, RayError) as error:
        raise RunFailedError(f"a node of the cluster does not answer: {first_line(error)}") from error
    finally:
        mark.unlink()
    for node, (version, seen) in zip(nodes, found, strict=True):
        if version != __version__:
            has = f"has dreamfleet {version}" if version else "cannot import dreamfleet"
            raise UserError(f"flag --address: the node {node.address} {has}; install dreamfleet {__version__} there.")
        if not seen:
            raise UserError(
                f"flag --out: {folder} is here, but not on the node {node.address}, where cells may run: name a folder "
                "that all nodes share."
            )


def largest_node() -> dict[str, float]:
    """Return the most CPUs, GPUs and bytes of memory that any one node declares."""
    nodes = list_nodes()
    return {
        name: max((node.resources.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU", "memory")
    }
