"""The lock on a directory."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from patience import PATIENCE_S

from dreamfleet.common.errors import UserError
from dreamfleet.common.lock import DirectoryLock

HOLD = """
import sys, time
from pathlib import Path
from dreamfleet.common.lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the directory."""
    root = Path(__file__).resolve().parents[2] / ".pkg"
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_directory_in_use_is_refused_with_the_holder_s_pid(tmp_path: Path) -> None:
    """The sentence names the directory and the process that has it."""
    process = holder(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} is in use by process {process.pid}"):
        DirectoryLock(tmp_path)
    process.kill()
    process.wait()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    """SIGKILL of the holder leaves nothing locked."""
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    DirectoryLock(tmp_path).release()


def test_two_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    """A second lock is refused until the first is released, and releasing twice is harmless."""
    lock = DirectoryLock(tmp_path)
    with pytest.raises(UserError, match=str(os.getpid())):
        DirectoryLock(tmp_path)
    lock.release()
    lock.release()
    with DirectoryLock(tmp_path):
        pass


def test_waiting_gets_the_lock_as_soon_as_it_is_free(tmp_path: Path) -> None:
    """A lock with time to wait outlasts a holder that lets go."""
    lock = DirectoryLock(tmp_path)
    begun = time.monotonic()
    threading.Timer(0.3, lock.release).start()
    DirectoryLock(tmp_path, wait_s=PATIENCE_S).release()
    assert 0.2 < time.monotonic() - begun < PATIENCE_S / 2


def refuse(*_: object) -> int:
    """Fail as a call does on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_directory_that_takes_no_file_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or one that is read-only."""
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=rf"{tmp_path} cannot be locked: \.lock in it: No space left on device\."):
        DirectoryLock(tmp_path)


def test_a_lock_holds_without_its_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full, and the file was there before."""
    monkeypatch.setattr(os, "pwrite", refuse)
    with DirectoryLock(tmp_path), pytest.raises(UserError, match="in use by process unknown"):
        DirectoryLock(tmp_path)
