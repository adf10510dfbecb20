"""A whole cluster on four test hosts: brought up, trained on, hurt in every way, and taken down. `make cluster-test`.

It needs root and some minutes; elsewhere it is skipped with the reason. What it saw, with times, is written as Markdown
to the file that DREAMFLEET_CLUSTER_LOG names.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hosts import ROOT, Hosts, fill_onprem_file, why_not_here

REASON = why_not_here() if os.environ.get("DREAMFLEET_CLUSTER_TEST") else "`make cluster-test` runs this, as root"
WORKERS = ("h2", "h3", "h4")
RUN = "proof"
TRAIN = (
    "train", "--preset", "small", "--env.id", "Pendulum-v1", "--actors.count", "auto", "--replay.shards", "2",
    "--learner.batch_size", "4", "--learner.sequence_length", "16", "--train.env_steps", "10_000_000",
    "--train.prefill", "500", "--train.ratio", "2", "--records.checkpoint_every", "50",
    "--records.picture_every", "100000",
    "--records.log_every_s", "2", "--run", f"runs/{RUN}",
)  # fmt: skip

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(REASON), reason=REASON)]


class Laptop:
    """Where the user sits: a home of its own with the cluster's token, and a cluster file.

    Args:
        home: its home directory.
        file: the cluster file.
    """

    def __init__(self, home: Path, file: Path) -> None:
        self.file = file
        self._environment = {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / ".pkg"),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TERM": "dumb",
        }

    def run(self, *words: str, within_s: float = 300, code: int | None = 0) -> str:
        """Run a command to its end and return what it printed."""
        done = subprocess.run(  # noqa: S603
            words, env=self._environment, cwd=ROOT, capture_output=True, text=True, timeout=within_s, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert code is None or done.returncode == code, f"{' '.join(words)}: exit code {done.returncode}\n{output}"
        return output

    def submit(self, *words: str, within_s: float = 300, code: int | None = 0) -> str:
        """Run `dreamfleet submit` on the cluster to its end."""
        return self.run("dreamfleet", "submit", str(self.file), *words, within_s=within_s, code=code)

    def start(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start a command whose output goes to a file."""
        with log.open("wb") as out:
            return subprocess.Popen(  # noqa: S603
                words, env=self._environment, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )


class Diary:
    """What was seen and when, printed as it happens and kept as a Markdown table."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._rows: list[str] = []

    @contextmanager
    def stage(self, title: str) -> Iterator[list[str]]:
        """Time a stage; what it finds is appended to the list that is given."""
        begun, found = time.monotonic(), list[str]()
        print(f"[{begun - self._begun:6.1f} s] {title}", flush=True)
        yield found
        seconds = time.monotonic() - begun
        self._rows.append(f"| {title} | {seconds:.1f} s | {'; '.join(found)} |")
        for line in found:
            print(f"           {line}", flush=True)

    def write(self, file: Path, log: str) -> None:
        """Write the table, and what the run said of actors, nodes and checkpoints."""
        output = [line for line in log.splitlines() if not line.startswith(("steps ", "prefill"))]
        table = "\n".join(["| stage | took | found |", "| --- | --- | --- |", *self._rows])
        file.write_text(f"{table}\n\n```\n" + "\n".join(output) + "\n```\n")


def wait_until(what: str, is_so: Callable[[], object], within_s: float, pause_s: float = 1.0) -> float:
    """Wait until something is so, and return the seconds that it took."""
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < within_s, f"after {within_s:.0f} s still not: {what}"
        time.sleep(pause_s)
    return time.monotonic() - begun


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Start four hosts, and end them."""
    with Hosts(4, tmp_path_factory.mktemp("hosts", numbered=True)) as started:
        yield started


@pytest.fixture
def laptop(hosts: Hosts, tmp_path: Path) -> Iterator[Laptop]:
    """Return a laptop whose cluster file names the hosts; the cluster is taken down whatever happens."""
    home = tmp_path / "home"
    home.mkdir()
    addresses = hosts.addresses()
    file = fill_onprem_file(
        tmp_path, [addresses[name] for name in hosts.names], hosts.key, Path(sys.executable), "proof"
    )
    machine = Laptop(home, file)
    machine.run("ray", "get-auth-token", "--generate")
    yield machine
    machine.run("ray", "down", "-y", str(file), code=None)


def test_a_cluster_from_up_to_down(hosts: Hosts, laptop: Laptop, tmp_path: Path) -> None:
    """Up, checked, trained on, cut, killed, mended, stopped, down: nothing acknowledged is lost and nothing is left."""
    diary, log = Diary(), tmp_path / "train.log"

    def said() -> str:
        return log.read_text(errors="replace")

    def on_head(command: str, check: bool = True) -> str:
        return hosts.ssh("h1", f"bash -lc '. ~/dreamfleet/deploy/environment.sh && {command}'", 120, check)

    def nodes() -> int:
        found = re.findall(r"^ (\d+) ", on_head("ray status", check=False).split("Pending")[0], re.MULTILINE)
        return sum(map(int, found))

    def actors(host: str) -> int:
        return sum("ray::ActorProcess" in line for line in hosts.ray_processes(host))

    def steps() -> int:
        output = re.findall(r"steps ([\d,]+)/", said())
        return int(output[-1].replace(",", "")) if output else 0

    with diary.stage("`ray up` on four hosts") as found:
        laptop.run("ray", "up", "-y", "--no-config-cache", str(laptop.file), within_s=400)
        wait_until("four nodes", lambda: nodes() == 4, 240, pause_s=3)
        found.append("4 nodes")

    with diary.stage("who may come in") as found:
        listening = hosts.ssh("h1", "ss -Hltn 'sport = :8265'")
        assert "127.0.0.1:8265" in listening and "0.0.0.0:8265" not in listening, listening  # noqa: PT018
        refused = hosts.ssh(
            "h2", "mkdir -p /tmp/ray/none && HOME=/tmp/ray/none RAY_AUTH_MODE=disabled "
            f"{Path(sys.executable).parent}/ray status --address {hosts.addresses()['h1']}:6379 2>&1", 120, check=False,
        )  # fmt: skip
        assert re.search(r"[Aa]uthenticat|[Uu]nauthenticated", refused), refused
        found += ["the dashboard listens on loopback alone", "without the token: refused"]

    with diary.stage("`dreamfleet doctor` on the cluster") as found:
        output = laptop.submit("--", "doctor", "--preset", "small", "--env.id", "Pendulum-v1", "--actors.count", "auto",
                             within_s=400, code=None)  # fmt: skip
        assert all(hosts.addresses()[name] in output for name in hosts.names), output
        found.append((re.findall(r"\d+ ok.*", output) or output.splitlines())[-1])

    train = laptop.start(log, "dreamfleet", "submit", str(laptop.file), "--", *TRAIN)
    try:
        with diary.stage("training begins, actors on the three workers") as found:
            wait_until("updates", lambda: re.search(r"updates [1-9]", said()), 400)
            wait_until("all actors", lambda: re.search(r"actors 6/6", said()), 200)
            spread = {name: actors(name) for name in hosts.names}
            assert spread == {"h1": 0, "h2": 2, "h3": 2, "h4": 2}, spread
            assert any("LearnerProcess" in line for line in hosts.ray_processes("h1"))
            found += [f"actors by host {spread}", "learner and two replay shards on h1"]

        with diary.stage("h3's network is cut") as found:
            hosts.cut("h3")
            seconds = wait_until("h3's actors are missed", lambda: "actors: 4 instead of 6" in said(), 240)
            before = steps()
            wait_until("training goes on", lambda: steps() > before + 500, 120)
            found.append(f"its actors were given up after {seconds:.0f} s; training went on with four")

        with diary.stage("h3's network is mended") as found:
            hosts.mend("h3")
            wait_until(
                "six actors again", lambda: said().rsplit("actors: 4 instead of 6", 1)[-1].count("actors 6/6"), 400
            )
            found.append("its actors are back")

        with diary.stage("h4 is killed") as found:
            shrunk = said().count("actors: 4 instead of 6")
            hosts.kill("h4")
            seconds = wait_until("its actors are missed", lambda: said().count("actors: 4 instead of 6") > shrunk, 240)
            found.append(f"its actors were given up after {seconds:.0f} s")

        with diary.stage("h4 is started again, empty") as found:
            hosts.start("h4")
            wait_until(
                "six actors again", lambda: said().rsplit("actors: 4 instead of 6", 1)[-1].count("actors 6/6"), 600
            )
            assert actors("h4") == 2
            found.append("Ray was started there again and its actors are back")

        with diary.stage("`dreamfleet status` on the head") as found:
            status = on_head(f"dreamfleet status ~/dreamfleet/runs/{RUN}")
            assert "running" in status.splitlines()[0], status
            found += [line.strip() for line in status.splitlines() if line.startswith(("progress", "actors", "replay"))]

        with diary.stage("`dreamfleet submit --stop`") as found:
            job = re.search(r"--stop ([\w-]+)", said())
            assert job, said()
            laptop.submit("--stop", job[1], within_s=300)
            train.wait(120)
            stopped = re.search(r"stopped at (\d+) env steps and (\d+) updates", said())
            assert stopped, said()
            found.append(stopped[0])
    finally:
        if train.poll() is None:
            train.terminate()
            train.wait(30)

    with diary.stage("what is stored") as found:
        assert "no fault found" in on_head(f"dreamfleet replay verify ~/dreamfleet/runs/{RUN}")
        info = on_head(f"dreamfleet replay info ~/dreamfleet/runs/{RUN}")
        total = re.search(r"total_steps +(\d+)", info)
        assert total and total[1] == stopped[1], info  # noqa: PT018
        found += [f"{total[1]} env steps, as the run said; no fault found"]

    with diary.stage("`ray down`") as found:
        laptop.run("ray", "down", "-y", str(laptop.file), within_s=300)
        wait_until("no process of Ray", lambda: not any(hosts.ray_processes(name) for name in hosts.names), 120, 3)
        found.append("no process of Ray is left on any host")
    diary.write(Path(os.environ.get("DREAMFLEET_CLUSTER_LOG", tmp_path / "cluster.md")), said())
