"""TensorBoard for one run, started when a visitor asks for it and ended with the view."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from dreamfleet.common.errors import UserError

_START_S = 60.0
_STOP_S = 5.0


class TensorBoard:
    """One process, or none; it listens on loopback alone, since it asks nobody for a token."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def start(self) -> str:
        """Start it unless it runs, wait until it answers, and return its address.

        Raises:
            UserError: if there is nothing to show, or it does not start.
        """
        with self._lock:
            if not self._directory.is_dir():
                raise UserError("there are no curves: this is a dataset, or the run has not begun")
            if self._process is None or self._process.poll() is not None:
                self._port = _free_port()
                arguments = ["--logdir", str(self._directory), "--host", "127.0.0.1", "--port", str(self._port)]
                self._process = subprocess.Popen(  # noqa: S603 - nothing in it comes from a request
                    [sys.executable, "-m", "tensorboard.main", *arguments],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._wait(self._process)
            return f"http://127.0.0.1:{self._port}/"

    def stop(self) -> None:
        """End it with the processes that it started."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_S)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if process.poll() is not None:
                raise UserError(f"TensorBoard ended with code {process.returncode} as it started")
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return
            time.sleep(0.1)
        raise UserError(f"TensorBoard did not answer within {_START_S:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
