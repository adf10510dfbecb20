"""A part in a process of its own: started, followed, and ended when its time is up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.bench.gpu.findings import Findings, read_findings
from tests.bench.machine import ROOT

_POLL_S = 0.2
_GRACE_S = 6.0
"""How long before its limit a part should end by itself; half of it later it is asked to, and at the limit killed."""


class PartProcess:
    """A part's process, what it prints and what it finds.

    Attributes:
        lines: that it has printed.

    Args:
        options: what `tests.bench.gpu.part` reads.
        folder: an empty one, for its files.
        limit_s: seconds after which it is killed.
    """

    def __init__(self, options: Mapping[str, object], folder: Path, limit_s: float) -> None:
        self.lines: list[str] = []
        self._begun = time.monotonic()
        self._limit_s = limit_s
        grace_s = min(_GRACE_S, limit_s / 2)
        self._asked_s = limit_s - grace_s / 2
        self._found, self._log, self._read = folder / "found.json", folder / "log", 0
        given = json.dumps({**options, "found": str(self._found), "seconds": limit_s - grace_s})
        paths = [str(ROOT), str(ROOT / ".pkg"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
        if options.get("dry"):
            environment.setdefault("OMP_NUM_THREADS", "1")  # tiny networks gain nothing by more
        command = [sys.executable, "-m", "tests.bench.gpu.part", given]
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(  # noqa: S603
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def seconds(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._begun

    def follow(self, hear: Callable[[Findings], None]) -> tuple[str, str]:
        """Wait for its end, and return how it ended and why.

        Args:
            hear: called with what it has found whenever that is more.
        """
        seen, is_asked = 0, False
        try:
            while self._process.poll() is None and self.seconds < self._limit_s:
                time.sleep(_POLL_S)
                self._relay()
                if self._found.exists() and self._found.stat().st_mtime_ns != seen:
                    seen = self._found.stat().st_mtime_ns
                    hear(self.findings())
                if self.seconds > self._asked_s and not is_asked:
                    is_asked = True
                    self._signal(signal.SIGTERM)
            code = self._process.poll()
        finally:
            self._signal(signal.SIGKILL)  # also what it started
            self._process.wait()
        self._relay()
        if code == 0:
            return "done", ""
        if is_asked or code is None:
            return "cut", f"it was not done after {self._asked_s:.0f} s, all it could have"
        if code < 0:
            return "killed", f"by signal {signal.Signals(-code).name}"
        return "failed", f"exit code {code}"

    def findings(self) -> Findings:
        """Return what it has found."""
        return read_findings(self._found)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and what it started: its session has the number of the process."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _relay(self) -> None:
        """Print the lines that are new."""
        with self._log.open("rb") as stream:
            stream.seek(self._read)
            new = stream.read()
        self._read += len(new)
        for line in new.decode(errors="replace").replace("\r", "\n").splitlines():
            self.lines += [line] if line.strip() else []
            print(f"    {line}", flush=True)
