"""`dreamfleet view` as a process: it starts, prints one address, answers there, and ends with nothing left behind."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import torch
from dreamer_run import train_small_dreamer

from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.view.view import is_loopback

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small Dreamer's run."""
    return train_small_dreamer(tmp_path_factory.mktemp("viewed"), "--train.env_steps", "100")


@pytest.fixture
def process(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Return the command, running on that run."""
    code = "import sys; from dreamfleet.deploy.command_line import main; sys.exit(main(['view', 'run']))"
    paths = [str(ROOT / ".pkg"), str(ROOT / "tests" / "support")]
    started = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code],
        cwd=run.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield started
    if started.poll() is None:
        started.kill()
    started.communicate()


def answer(address: str, method: str, path: str, cookie: str = "") -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of what the process answers."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(method, path, headers={"Cookie": cookie} if cookie else {})
    found = connection.getresponse()
    result = found.status, dict(found.getheaders()), found.read()
    connection.close()
    return result


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted(process: subprocess.Popen[str]) -> None:
    """One address on loopback with a token; then TensorBoard too; after Ctrl-C neither process nor port is left."""
    assert process.stdout is not None
    url = urlsplit(process.stdout.readline().strip())
    assert re.fullmatch(r"127\.0\.0\.1:\d+", url.netloc)
    assert re.fullmatch(r"token=[\w-]{32}", url.query)
    assert psutil.Process(process.pid).nice() >= 10
    assert answer(url.netloc, "GET", "/api/run")[0] == 403
    status, headers, _ = answer(url.netloc, "GET", f"/?{url.query}")
    assert status == 303
    cookie = headers["Set-Cookie"].partition(";")[0]
    status, _, body = answer(url.netloc, "GET", "/api/run", cookie)
    assert (status, json.loads(body)["name"]) == (200, "run")
    status, _, body = answer(url.netloc, "POST", "/api/tensorboard", cookie)
    assert status == 200
    board = urlsplit(json.loads(body)["url"])
    assert answer(board.netloc, "GET", "/")[0] == 200
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    for netloc in (url.netloc, board.netloc):
        with socket.socket() as probe:
            host, _, port = netloc.partition(":")
            assert probe.connect_ex((host, int(port))) != 0


def test_what_cannot_be_viewed_is_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run, no such checkpoint, no such address: exit code 2, before anything is listened on."""
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr(os, "nice", lambda _: 0)  # it could not be taken back
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, words in (
            (["nowhere"], "nowhere does not exist"),
            (["run", "--checkpoint", "7"], "there is no checkpoint '7'"),
            (["run", "--checkpoint", "../x"], "'../x' is neither newest, nor best, nor a number"),
            (["run", "--port", str(taken.getsockname()[1])], "--port 0 takes a free one."),
            (["run", "--host", "192.0.2.1"], "--host takes an address of this machine."),
            (["run", "--device", "abacus"], "--device abacus: torch cannot use it: there is no such device; take cpu."),
        ):
            assert main(["view", *arguments]) == 2, arguments
            said = capsys.readouterr()
            assert words in said.err
            assert "http" not in said.out


def test_the_end_of_training_names_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the summary's last line, and a shell can run it."""
    train_small_dreamer(tmp_path, "--train.env_steps", "70")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert re.fullmatch(r"\s+view\s+\S*dreamfleet view run", lines[-1]), lines[-5:]


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("example.org", False)],
)
def test_only_loopback_is_for_this_machine(host: str, is_own: bool) -> None:
    """Others are warned of."""
    assert is_loopback(host) == is_own
