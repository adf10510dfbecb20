"""The watch over the replay's processes: each death is named once, whichever news of it comes first."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from dreamfleet.deploy.workers import replay_watch
from dreamfleet.deploy.workers.pool import ReplayChange
from dreamfleet.deploy.workers.replay_watch import ReplayWatch

SILENT = "it gave no answer for 15 s, and the run is to end"


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


def test_a_server_killed_for_its_silence_is_named_at_once_and_once(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    watch = ReplayWatch([server], [], None)
    server.watch.calls[0].set_result(process.pid)
    assert watch.changes() == []
    monkeypatch.setattr(replay_watch.ray, "wait", lambda asked, **_: ([], asked))
    watch.end_silent(15.0)
    assert process.wait(10.0) != 0
    assert watch.changes() == [ReplayChange("replay", SILENT)], "the call on its way has not failed yet"
    server.health.calls[-1].set_result(process.pid + 1)
    assert watch.changes() == [ReplayChange("replay")]
    server.watch.calls[1].set_exception(ConnectionError("reset by peer"))
    assert watch.changes() == [], "the old process's call fails late, and tells of nothing new"
    server.watch.calls[2].set_exception(ConnectionError("reset by peer"))
    assert [bool(change.cause) for change in watch.changes()] == [True], "the new process dies"


def test_a_frozen_server_is_killed_though_nobody_asks(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_watch, "SILENT_S", 0.2)
    monkeypatch.setattr(replay_watch, "_LOOK_S", 0.05)
    server = Server()
    watch = ReplayWatch([server], [], None)
    server.watch.calls[0].set_result(process.pid)
    assert watch.changes() == []
    process.send_signal(signal.SIGSTOP)
    assert process.wait(10.0) == -signal.SIGKILL, "though who would ask for changes waits for the server"
    server.watch.calls[1].set_exception(ConnectionError("reset by peer"))
    (change,) = watch.changes()
    assert change == ReplayChange("replay", "it gave no answer for 0 s")
    server.health.calls[-1].set_result(process.pid + 1)
    assert watch.changes() == [ReplayChange("replay")]
    watch.close()


def test_a_server_that_opens_its_directory_or_is_not_asked_again_is_not_killed(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_watch, "SILENT_S", 0.2)
    monkeypatch.setattr(replay_watch, "_LOOK_S", 0.05)
    opening, unasked = Server(), Server()
    watch = ReplayWatch([opening, unasked], [], None)
    opening.watch.calls[0].set_exception(ConnectionError("reset by peer"))
    unasked.watch.calls[0].set_result(process.pid)  # and the answer is not taken, as while the run waits for something
    opening.health.calls.clear()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.6)
    unasked.watch.calls[0] = Future()
    assert len(watch.changes()) == 1, "one death, and no silence"
    watch.close()


def test_a_death_that_only_the_call_on_its_way_tells_of(process: subprocess.Popen[bytes]) -> None:
    server = Server()
    watch = ReplayWatch([server, Server()], [], None)
    server.watch.calls[0].set_exception(ConnectionError("reset by peer"))
    (change,) = watch.changes()
    assert change.who == "shard 0 of the replay"
    assert change.cause
    server.health.calls[-1].set_result(process.pid)
    assert watch.changes() == [ReplayChange("shard 0 of the replay")]


def test_another_process_that_answers_tells_of_a_death_unseen() -> None:
    server = Server()
    watch = ReplayWatch([server], [], None)
    server.watch.calls[0].set_result(11)
    assert watch.changes() == []
    server.watch.calls[1].set_result(12)
    died, back = watch.changes()
    assert died.cause
    assert back == ReplayChange("replay")
