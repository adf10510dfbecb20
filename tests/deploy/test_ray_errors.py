"""What a worker's process died of, in words: by Ray's texts (of Ray 2.60), by its own last words, and on a real Ray."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from patience import PATIENCE_S
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError

from dreamfleet.actors.last_words import announce_exits
from dreamfleet.deploy.workers.pool import WorkerFailedError, WorkerLostError
from dreamfleet.deploy.workers.ray_errors import cause_of_death, describe_exit, last_words
from dreamfleet.deploy.workers.ray_output import OutputRouter
from dreamfleet.deploy.workers.ray_pool import RayPool

DIED = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
CUT = DIED + "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: ..."
DUMP = """*** SIGSEGV received at time=1795926640 on cpu 0 ***
PC: @     0x7f1334f74219  (unknown)  (unknown)
Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/home/me/world.py", line 11 in step
"""


@pytest.mark.parametrize(
    ("text", "said", "sentence"),
    [
        (DIED + "Worker exits unexpectedly. Worker exits with an exit code 1. The process receives a SIGTERM.", "",
         "ended by SIGTERM"),
        (DIED + "Worker exits unexpectedly. Worker exits with an exit code 3.", "", "exited with code 3 (sys.exit)"),
        (CUT, DUMP, "crashed with SIGSEGV: Segmentation fault in string_at (/usr/lib/python3.11/ctypes/__init__.py, "
         "line 519)"),
        (CUT, "hello\ndreamfleet: os._exit(3)\n", "exited with code 3 (os._exit)"),
        (CUT, "hello", "killed without a word of its own, as by SIGKILL"),
        (CUT, None, "ended; its last words, if any, are on its node in Ray's logs, worker-*-77.err"),
        ("The actor died because its node has died. Node Id: ab", "",
         "The actor died because its node has died. Node Id: ab"),
    ],
)  # fmt: skip
def test_how_a_process_ended(tmp_path: Path, text: str, said: str | None, sentence: str) -> None:
    """An exit code and SIGTERM are Ray's to tell; a crash and a hard exit the process's own."""
    if said is not None:
        (tmp_path / "worker-abc-01000000-77.err").write_text(said)
    assert describe_exit(text, 77, tmp_path) == sentence


def test_what_ray_says_in_pages_is_one_short_line() -> None:
    """Of a worker without memory, and of one that cannot be reached."""
    memory = OutOfMemoryError(
        "Task was killed.\nMemory on the node (IP: 10.0.0.1) was 30.1GB / 32.0GB (0.94)\n\nmore\n"
    )
    sentence = "ended by Ray, since its node was out of memory: Memory on the node (IP: 10.0.0.1) was 30.1GB / 32.0GB"
    assert cause_of_death(memory, None).startswith(sentence)
    lost = ActorUnavailableError("RpcError: " + "x" * 9000, None)
    assert len(cause_of_death(lost, None)) <= 300
    assert cause_of_death(RayActorError(), None) == "The actor experienced an error before finishing this task."
    assert last_words("nothing of note") == ""


def test_rays_paragraphs_and_dumps_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """What an environment prints stays on the terminal; the rest is only in the file."""
    router, printed = OutputRouter(), []

    def take(pid: Any, lines: list[str], is_err: bool = True) -> None:
        router({"pid": pid, "lines": lines, "is_err": is_err}, lambda: printed.append(lines))

    with caplog.at_level("INFO", logger="dreamfleet"):
        take(12, ["loading the level"])
        take("raylet", ["A worker died or was killed while executing a task by an unexpected system error. To ..."])
        take(12, DUMP.splitlines())
        take(12, ["Extension modules: numpy"])
        take(13, ["[2026-11-29 04:30:41,911 E 1924 1924] logging.cc:474: PC: @"])
        take("autoscaler", ["Total Usage:", "x:event_summary:Resized to 4 CPUs."], is_err=False)
        take(12, ["the last word on stdout"], is_err=False)
    assert printed == [["loading the level"], ["the last word on stdout"]]
    assert all(record.only_to_file for record in caplog.records)  # type: ignore[attr-defined]
    assert "Ray, raylet: A worker died" in caplog.text
    assert "Ray, autoscaler: Resized to 4 CPUs." in caplog.text
    assert "Total Usage" not in caplog.text
    assert "Ray, 12: Extension modules" in caplog.text


class Victim:
    """Dies as it is told to."""

    def __init__(self) -> None:
        announce_exits()

    def ping(self) -> int:
        return os.getpid()

    def die(self, way: str) -> None:
        import ctypes
        import sys

        if way == "segfault":
            ctypes.string_at(0)
        elif way == "os._exit":
            os._exit(7)
        elif way == "sys.exit":
            sys.exit(3)
        elif way == "abort":
            os.abort()
        elif way == "interrupt":
            raise KeyboardInterrupt
        time.sleep(PATIENCE_S)


@pytest.mark.ray
def test_every_way_to_die_is_told_from_the_others(local_ray: None) -> None:
    """Of real processes on this machine, by the signal or the code that ended them."""
    pool = object.__new__(RayPool)
    ways = {
        "segfault": "crashed with SIGSEGV: Segmentation fault in string_at",
        "abort": "crashed with SIGABRT: Aborted in die",
        "os._exit": r"exited with code 7 \(os\._exit\)",
        "sys.exit": r"exited with code 3 \(sys\.exit\)",
        "kill 9": "killed without a word of its own, as by SIGKILL",
        "kill 15": "ended by SIGTERM|killed without a word",  # on a busy machine Ray's word for it is late
    }
    victim: Any = ray.remote(num_cpus=0, max_restarts=0)(Victim)
    victims = {way: victim.remote() for way in [*ways, "interrupt"]}
    for way, worker in victims.items():
        pid = ray.get(worker.ping.remote(), timeout=PATIENCE_S)
        future = worker.die.remote(way).future()
        if way.startswith("kill"):
            os.kill(pid, signal.Signals(int(way.split()[1])))
        with pytest.raises(RayError):
            future.result(timeout=PATIENCE_S)
        with pytest.raises(WorkerFailedError if way == "interrupt" else WorkerLostError, match=ways.get(way)) as caught:
            pool.result(future)
        if way == "interrupt":
            assert "KeyboardInterrupt: raised by code in the worker's process" in str(caught.value)
    for worker in victims.values():
        ray.kill(worker)
