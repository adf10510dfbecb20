"""The watch over the replay's processes: each death is named once, whichever news of it comes first."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from patience import wait_until

from dreamfleet.deploy.workers import replay_watch
from dreamfleet.deploy.workers.pool import ReplayChange
from dreamfleet.deploy.workers.replay_watch import ReplayWatch


class Method:
    """A method of a server: each call's answer is given by the test."""

    def __init__(self) -> None:
        self.calls: list[Future[Any]] = []

    def remote(self) -> Any:
        self.calls.append(Future())
        return self

    def future(self) -> Future[Any]:
        return self.calls[-1]


class Server:
    """Stands for the handle of a replay server."""

    def __init__(self) -> None:
        self.watch = Method()
        self.health = Method()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process with the name of one of Ray's, which may be killed."""
    program = "import sys, time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, "ray::ReplayServer"], stdout=subprocess.PIPE) as process:  # noqa: S603 (our own program)
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


@pytest.fixture
def killed_by_ray(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Take down what Ray is told to kill."""
    killed: list[Any] = []
    monkeypatch.setattr(replay_watch.ray, "kill", lambda handle, no_restart: killed.append(handle))
    return killed


def look(watch: ReplayWatch, seconds: float = 0.0) -> list[ReplayChange]:
    """Look for this long, as the thread does, and return what was found."""
    for _ in range(max(1, round(seconds / replay_watch.LOOK_S))):
        watch.look()
    return watch.changes()


def test_a_frozen_server_is_killed_and_named_at_once_and_once(
    process: subprocess.Popen[bytes], killed_by_ray: list[Any]
) -> None:
    server = Server()
    watch = ReplayWatch([server], [], None)
    server.watch.calls[0].set_result(process.pid)
    assert look(watch) == []
    assert look(watch, replay_watch.SILENT_S - 1.0) == []
    assert process.poll() is None, "it may still answer"
    assert look(watch, 1.0) == [ReplayChange("replay", "it gave no answer for 30 s")], "the call has not failed yet"
    assert process.wait(10.0) == -signal.SIGKILL
    server.watch.calls[1].set_exception(ConnectionError("reset by peer"))
    assert look(watch, 100.0) == [], "the old process's call fails late, and tells of nothing new"
    server.health.calls[-1].set_result(process.pid + 1)
    assert look(watch) == [ReplayChange("replay")]
    server.watch.calls[2].set_exception(ConnectionError("reset by peer"))
    assert [bool(change.cause) for change in look(watch)] == [True], "the new process dies"
    assert killed_by_ray == []


def test_a_server_that_opens_its_directory_is_left_to_it(
    process: subprocess.Popen[bytes], killed_by_ray: list[Any]
) -> None:
    """After its death, for as long as it takes, also when the run is to end."""
    server = Server()
    watch = ReplayWatch([server], [], None)
    server.watch.calls[0].set_result(process.pid)
    look(watch)
    server.watch.calls[1].set_exception(ConnectionError("reset by peer"))
    assert len(look(watch)) == 1
    watch.expect_answers(15.0)
    assert look(watch, 200.0) == []
    assert process.poll() is None
    assert killed_by_ray == []


def test_at_the_end_silence_is_found_sooner(process: subprocess.Popen[bytes]) -> None:
    client = SimpleNamespace(end_by=float("inf"))
    server = Server()
    watch = ReplayWatch([server], [client], None)  # type: ignore[list-item]
    server.watch.calls[0].set_result(process.pid)
    assert look(watch, 10.0) == []
    watch.expect_answers(15.0)
    assert client.end_by == watch.end_by < float("inf")
    assert look(watch, 6.0) == [ReplayChange("replay", "it gave no answer for 15 s, and the run is to end")]
    assert process.wait(10.0) == -signal.SIGKILL


def test_a_process_of_another_machine_is_killed_by_ray(
    process: subprocess.Popen[bytes], killed_by_ray: list[Any]
) -> None:
    """Its number may be another process's here."""
    server = Server()
    watch = ReplayWatch([server], [], None, are_here=False)
    server.watch.calls[0].set_result(process.pid)
    look(watch)
    (change,) = look(watch, replay_watch.SILENT_S)
    assert change.cause
    assert killed_by_ray == [server]
    assert process.poll() is None


def test_a_thread_looks_until_it_is_closed() -> None:
    """Though nobody asks for changes, a call is always on its way; and Ray is called no more once it is left."""
    server = Server()
    watch = ReplayWatch([server], [], None)
    watch.start()
    for number in range(3):
        wait_until(lambda number=number: len(server.watch.calls) == number + 1)  # type: ignore[misc]
        server.watch.calls[number].set_result(11)
    wait_until(lambda: len(server.watch.calls) == 4)
    watch.close()
    server.watch.calls[3].set_result(11)
    time.sleep(2 * replay_watch.LOOK_S)
    assert len(server.watch.calls) == 4


def test_a_death_that_only_the_call_on_its_way_tells_of(process: subprocess.Popen[bytes]) -> None:
    server = Server()
    watch = ReplayWatch([server, Server()], [], None)
    server.watch.calls[0].set_exception(ConnectionError("reset by peer"))
    (change,) = look(watch)
    assert change.who == "shard 0 of the replay"
    assert change.cause
    server.health.calls[-1].set_result(process.pid)
    assert look(watch) == [ReplayChange("shard 0 of the replay")]


def test_another_process_that_answers_tells_of_a_death_unseen() -> None:
    server = Server()
    watch = ReplayWatch([server], [], None)
    server.watch.calls[0].set_result(11)
    assert look(watch) == []
    server.watch.calls[1].set_result(12)
    died, back = look(watch)
    assert died.cause
    assert back == ReplayChange("replay")
