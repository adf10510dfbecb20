"""Watches Ray's control process: without it no worker is replaced, and after a minute Ray ends every process hard."""

from __future__ import annotations

import socket
import threading
import time

LOOK_EVERY_S = 2.0
LOOK_TIMEOUT_S = 5.0
LOST_AFTER_S = 8.0
"""It counts as lost once nobody has listened at its address for so long: Ray leaves a minute, of which a checkpoint and
the end of the run take most."""


class ControlWatch:
    """Tries to connect to Ray's control process (GCS) every two seconds, in a thread.

    Args:
        address: HOST:PORT.

    Attributes:
        is_silent: whether the last try failed: what is asked of it now would wait.
    """

    def __init__(self, address: str, look_every_s: float = LOOK_EVERY_S, lost_after_s: float = LOST_AFTER_S) -> None:
        self.is_silent = False
        self._address = address
        self._look_every_s, self._lost_after_s = look_every_s, lost_after_s
        self._silent_since: float | None = None
        self._why = ""
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="control watch", daemon=True).start()

    @property
    def fault(self) -> str:
        """What to say once it is lost; nothing before."""
        since = self._silent_since
        silent_s = time.monotonic() - since if since is not None else 0.0
        if silent_s < self._lost_after_s:
            return ""
        return (
            f"Ray's control process (GCS) at {self._address} is gone: for {silent_s:.0f} s nobody answered there "
            f"({self._why}), and Ray ends all processes without it"
        )

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _watch(self) -> None:
        host, _, port = self._address.rpartition(":")
        while not self._closed.wait(self._look_every_s):
            try:
                socket.create_connection((host.strip("[]"), int(port)), LOOK_TIMEOUT_S).close()
                self._silent_since = None
            except OSError as error:
                self._why = str(error)
                self._silent_since = time.monotonic() if self._silent_since is None else self._silent_since
            self.is_silent = self._silent_since is not None
