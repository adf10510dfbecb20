"""The lock on a directory: two processes must not write to it at the same time."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from dreamfleet.common.errors import UserError

LOCK_NAME = ".lock"
_POLL_S = 0.05


class DirectoryLock:
    """Holds an existing directory for this process until released, or until its end, even by SIGKILL.

    `shown` is the directory's name in messages, its path if None.

    Raises:
        UserError: if another process (or another lock of this one) still has it after `wait_s`, or it cannot be locked.
    """

    def __init__(self, path: Path, wait_s: float = 0, shown: Path | None = None) -> None:
        self._shown = shown or path
        try:
            self._descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        except IsADirectoryError:
            raise UserError(
                f"{self._shown} cannot be locked: {LOCK_NAME} in it is a directory. Move that elsewhere."
            ) from None
        except OSError as error:  # a full disk has no room for a new file, one that is read-only takes none
            raise UserError(f"{self._shown} cannot be locked: {LOCK_NAME} in it: {error.strerror}.") from None
        try:
            self._acquire(wait_s)
        except BaseException:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        with suppress(OSError):  # a disk that is full has no room for the note; the lock holds without it
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Release the directory; a second call does nothing."""
        if self._descriptor >= 0:
            # The file stays: another process may be waiting for its lock.
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _acquire(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise UserError(
                        f"{self._shown} is in use by process {holder}: wait for it to end, or give another directory."
                    ) from None
                time.sleep(_POLL_S)
            else:
                return
