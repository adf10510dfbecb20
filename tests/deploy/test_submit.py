"""`dreamfleet submit` against a job server that plays a script: what is sent, what is refused, and lost connections."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_dashboard import FakeDashboard
from patience import PATIENCE_S, wait_until

from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.submit import entry_point
from dreamfleet.deploy.submit import submit as submitting

NOWHERE = "http://127.0.0.1:9"  # a port at which nobody listens
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / ".pkg"
TRAIN = ["train", "--preset", "small", "--env.id", "Pendulum-v1"]


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDashboard]:
    fake = FakeDashboard(tmp_path / "fake")
    monkeypatch.setenv("PATH", str(fake.folder), prepend=os.pathsep)
    monkeypatch.setattr(submitting, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(submitting, "LONGEST_PAUSE_S", 0.02)
    yield fake
    fake.close()


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["submit", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("dreamfleet: ")
    assert printed.count("\n") == 1, "one sentence, on one line"
    return printed


def submitted(ray: FakeDashboard, *arguments: str) -> dict[str, Any]:
    """Submit a job that succeeds, and return what the server was given."""
    assert main(["submit", *arguments]) == 0
    return ray.submitted[-1]


def test_a_file_for_kubernetes_is_told_from_others(capsys: pytest.CaptureFixture[str]) -> None:
    """`submit` sends nothing there: kubectl starts both the cluster and the command."""
    file = ROOT / "deploy" / "kuberay.yaml"
    assert f"`kubectl apply -f {file}` starts cluster and command" in complaint(capsys, str(file), "--", "presets")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], ["no command", "'--'"]),
        (["--"], ["no command", "'--'"]),
        (["train"], ["'train'", "'--'"]),
        (["--", "trian"], ["Did you mean 'train'"]),
        (["--", "submit", NOWHERE], ["no command"]),
        (["--", "train", "--env.idd", "x"], ["Did you mean 'env.id'"]),
        (["--", "train", "--run", "old", "--learner.batch_size", "few"], ["'few'", "a whole number"]),
        (["--", "train", "--train.prefill", "9", "--train.env_steps", "5"], ["prefill 9"]),
        (["--", "train", "--preset", "smal"], ["Did you mean 'small'"]),
        (["--", "sweep", "table.yaml"], ["--out", "all nodes share"]),
        (["--", "sweep", "table.yaml", "--out", "/shared/runs"], ["table.yaml lies on this machine alone"]),
        (["--follow", "x", "--", "train"], ["exclude"]),
        (["--working-dir", "no/such", "--", *TRAIN], ["no/such", "no directory"]),
    ],
)
def test_what_cannot_work_is_refused_here(
    ray: FakeDashboard, capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: list[str]
) -> None:
    """A wrong command, flag or setting is one sentence, and nothing is sent."""
    for target in (ray.address, ray.cluster_file()):
        printed = complaint(capsys, target, *arguments)
        for part in wanted:
            assert part in printed
    assert ray.submitted == ray.tunnels() == []


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("no.yaml", ["no.yaml", "neither", "http://"]),
        ("10.0.0.1:8265", ["10.0.0.1:8265", "neither", "http://"]),
        ("http://:8265", ["no host"]),
        (NOWHERE, ["no Ray dashboard answers", NOWHERE]),
    ],
)
def test_a_target_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], target: str, wanted: list[str]) -> None:
    """One sentence says what would be right."""
    printed = complaint(capsys, target, "--", *TRAIN)
    for part in wanted:
        assert part in printed


def test_an_old_run_on_the_cluster_may_make_settings_fit(ray: FakeDashboard) -> None:
    """With --run, settings that fit together only with the run's own are left to the node to check."""
    sent = submitted(ray, ray.address, "--", "train", "--run", "runs/old", "--train.prefill", "999999999")
    assert "~/dreamfleet/runs/old" in sent["entrypoint"]


def test_a_password_in_an_address_is_refused_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Secrets have a file, and are not repeated."""
    assert "secret" not in complaint(capsys, "http://me:secret@10.0.0.1:8265", "--", *TRAIN)


def test_words_reach_the_command_as_they_were_given(ray: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    """Spaces, quotes and dollars pass every shell between; relative paths begin in the node's dreamfleet directory."""
    odd = """my envs:make 'it' "$HOME" `id` \\ !"""
    ray.program("dreamfleet", f"import json, sys\njson.dump(sys.argv[1:], open({str(ray.folder / 'ran')!r}, 'w'))")
    home = ray.folder / "home"
    home.mkdir()
    command = ["collect", "--out", "my data", "--env.id", odd, "--actors.count", "auto"]
    line = submitted(ray, ray.address, "--", *command)["entrypoint"]
    subprocess.run(line, shell=True, check=True, env={**os.environ, "HOME": str(home)})  # noqa: S602
    ran = json.loads((ray.folder / "ran").read_text())
    data = f"{home}/dreamfleet/my data"
    assert ran == ["collect", "--out", data, "--address", "auto", f"--env.id={odd}", "--actors.count=auto"]
    assert "my data" in capsys.readouterr().out


@pytest.mark.parametrize("by_file", [True, False])
def test_a_job_says_where_it_writes_and_how_to_follow_it(
    ray: FakeDashboard, capsys: pytest.CaptureFixture[str], by_file: bool
) -> None:
    """The job and its run have one readable name, and Ray gives it time for its last checkpoint."""
    target = ray.cluster_file() if by_file else ray.address
    sent = submitted(ray, target, "--", *TRAIN)
    job_id = sent["submission_id"]
    assert job_id.startswith("train-pendulum-20")
    assert sent["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "150"}
    assert f"--run ~/dreamfleet/runs/{job_id} --address auto" in sent["entrypoint"]
    printed = capsys.readouterr().out
    assert f"~/dreamfleet/runs/{job_id} on the head" in printed
    for flag in ("--follow", "--stop"):
        assert f"`{shlex.join(['dreamfleet', 'submit', target, flag, job_id])}`" in printed
    assert len(ray.tunnels()) == by_file, "one tunnel serves all questions"


def test_a_tunnel_leads_to_the_port_of_the_dashboard(ray: FakeDashboard) -> None:
    """The cluster file's own port is taken, and no tunnel outlives the command."""
    file = ray.cluster_file("head_start_ray_commands: [ray stop, ray start --head --dashboard-port=8300]\n")
    submitted(ray, file, "--", *TRAIN)
    (words,) = ray.tunnels()
    assert words.startswith(f"dashboard {file} --port ")
    assert words.endswith("--remote-port 8300")
    assert open_tunnels(ray) == []


def open_tunnels(ray: FakeDashboard) -> list[psutil.Process]:
    program = str(ray.folder / "ray")
    return [process for process in psutil.process_iter(["cmdline"]) if program in (process.info["cmdline"] or [])]


def test_variables_of_ray_do_not_lead_elsewhere(ray: FakeDashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the address of another cluster nor a proxy stands between the command and its target."""
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)
    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.setenv("no_proxy", "example.org")
    submitted(ray, ray.cluster_file(), "--", *TRAIN)


@pytest.mark.parametrize("command", [["eval", "--run", "/r"], ["train", "--inline"], ["replay", "info", "data"]])
def test_only_what_takes_an_address_gets_one(ray: FakeDashboard, command: list[str]) -> None:
    """Commands without Ray run as they are."""
    assert "--address" not in submitted(ray, ray.address, "--", *command)["entrypoint"]


@pytest.mark.parametrize(
    ("declared", "wanted"), [({"head": 1, "worker": 0}, None), ({"worker": 1}, {"learner": 0.001}), ({}, None)]
)
def test_the_command_runs_where_the_learner_is(
    ray: FakeDashboard, declared: dict[str, int], wanted: dict[str, float] | None
) -> None:
    """Where the cluster file declares the learner's resource for other nodes than the head, one of these is taken."""
    kinds = {name: {"resources": {"learner": declared.get(name, 0)}} for name in ("head", "worker")}
    target = ray.cluster_file(f"head_node_type: head\navailable_node_types: {json.dumps(kinds)}\n")
    assert submitted(ray, target, "--", *TRAIN).get("entrypoint_resources") == wanted


def test_a_lost_connection_costs_no_text_and_doubles_none(
    ray: FakeDashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each reading begins at the log's beginning and may end anywhere; everything is printed once."""
    lines = ["a 1\n", "a 2\n", "b 3\n", "c"]
    ray.logs = [["a 1\n", "a 2\nb", "DROP"], ["DROP"], [*lines[:3], "DROP"], lines]
    ray.statuses = ["RUNNING", "RUNNING", "unreachable", "unreachable", "RUNNING", "RUNNING", "SUCCEEDED"]
    assert main(["submit", ray.address, "--follow", "x"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["a 1", "a 2", "b 3", "c", "x succeeded."]
    assert printed.err.count("no contact") == 1
    assert printed.err.count("connected again") == 1


def test_a_broken_tunnel_is_made_again(ray: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    """Following goes on through a new one."""
    ray.logs = [["a\n", "HANG"], ["a\n", "b\n"]]
    ray.statuses = ["RUNNING"]
    following = follow(ray.cluster_file())
    assert following.stdout
    assert following.stdout.readline() == "a\n"
    (tunnel,) = open_tunnels(ray)
    ray.statuses = ["SUCCEEDED"]
    tunnel.kill()
    assert following.communicate(timeout=PATIENCE_S)[0] == "b\nx succeeded.\n"
    assert len(ray.tunnels()) > 1
    assert open_tunnels(ray) == []


def follow(target: str) -> subprocess.Popen[str]:
    """Follow a job in a process of its own."""
    command = [sys.executable, "-m", "dreamfleet", "submit", target, "--follow", "x"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603


def test_a_silent_connection_is_tried(
    ray: FakeDashboard, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut network says nothing: after a while without text the cluster is asked, and the log read anew."""
    monkeypatch.setattr(submitting, "QUIET_S", 0.3)
    ray.logs = [["a\n", "HANG"], ["a\n", "b\n"]]
    ray.statuses = ["RUNNING", "PENDING", "unreachable", "STOPPED"]
    assert main(["submit", ray.address, "--follow", "x"]) == 143
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["a", "b", "x was stopped."]
    assert printed.err.count("waits for a node with room") == 1


def test_no_contact_for_long_ends_following(
    ray: FakeDashboard, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how to follow the job again."""
    monkeypatch.setattr(submitting, "GIVE_UP_S", 0.2)
    ray.logs = [["a\n", "DROP"]]
    ray.statuses = ["RUNNING", "unreachable"]
    assert main(["submit", ray.address, "--follow", "x"]) == 1
    assert f"`dreamfleet submit {ray.address} --follow x`" in capsys.readouterr().err


def test_a_failed_job_fails_here(ray: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    """Its log is printed once, and its cause comes last."""
    ray.logs = [["a 1\n"]]
    ray.statuses = ["FAILED"]
    assert main(["submit", ray.address, "--follow", "x"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "a 1\n"
    assert printed.err == "dreamfleet: x failed: Job entrypoint command failed with exit code 2.\n"


def test_stop_asks_and_follows_until_the_job_has_ended(ray: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    """What the log held before is not printed again."""
    ray.logs = [["old\n", "older\n"], ["old\n", "older\n", "checkpoint\n"]]
    ray.statuses = ["RUNNING", "STOPPED"]
    assert main(["submit", ray.cluster_file(), "--stop", "x"]) == 0
    assert ray.stopped == ["x"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:] == ["checkpoint", "x was stopped."]


def test_a_job_that_has_ended_is_not_stopped(ray: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said how it ended."""
    assert main(["submit", ray.address, "--stop", "x"]) == 0
    assert capsys.readouterr().out == "x succeeded.\n"
    assert ray.stopped == []


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        ("401 Unauthorized: Missing authentication token", ["has none", "~/.ray/auth_token"]),
        ("403 Forbidden: Invalid authentication token", ["refuses the token", "~/.ray/auth_token"]),
        ("404 Job x does not exist", ["no such job"]),
        ("500 Traceback:\n  everything is broken", ["everything is broken"]),
        ("unreachable", ["no Ray dashboard answers"]),
    ],
)
def test_a_refusal_is_one_sentence_with_what_to_do(
    ray: FakeDashboard, capsys: pytest.CaptureFixture[str], status: str, wanted: list[str]
) -> None:
    """No traceback of Ray's, whether the cluster is reached by file or by address."""
    ray.statuses = [status]
    for target in (ray.address, ray.cluster_file()):
        printed = complaint(capsys, target, "--follow", "x")
        for part in wanted:
            assert part in printed


@pytest.mark.parametrize(
    ("printed", "wanted"),
    [
        ("Error: Failed to forward ...\n The exception is: Head node of cluster (x) not found!", "`ray up "),
        ("ssh: connect to host 10.0.0.1 port 22: Connection refused\nError: Failed to forward", "Connection refused"),
        ("me@10.0.0.1: Permission denied (publickey).\nError: SSH command failed.", "refuses the SSH login"),
    ],
)
def test_a_tunnel_that_fails_is_one_sentence(
    ray: FakeDashboard, capsys: pytest.CaptureFixture[str], printed: str, wanted: str
) -> None:
    """What SSH and Ray say of the head is printed in a line."""
    (ray.folder / "refusal.txt").write_text(printed)
    assert wanted in complaint(capsys, ray.cluster_file(), "--follow", "x")


def test_no_token_is_on_a_command_line(
    ray: FakeDashboard, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in the environment or its file."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123secret")
    sent = submitted(ray, ray.cluster_file(), "--", *TRAIN)
    printed = capsys.readouterr()
    assert "0123secret" not in json.dumps(sent) + str(ray.tunnels()) + printed.out + printed.err


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "my work"
    (folder / "env").mkdir(parents=True)
    (folder / "env" / "game.py").write_text("x = 1")
    (folder / "mine.yaml").write_text("train: {prefill: 300}")
    (folder / ".gitignore").write_text("*.bin\n")
    (folder / "big.bin").write_bytes(bytes(2000))
    return folder


def test_a_working_directory_goes_along(ray: FakeDashboard, capsys: pytest.CaptureFixture[str], work: Path) -> None:
    """What .gitignore names stays; presets in it are named from it."""
    preset = str(work / "mine.yaml")
    sent = submitted(ray, ray.cluster_file(), "--working-dir", str(work), "--", *TRAIN, "--preset", preset)
    assert ray.packages == [[".gitignore", "env/game.py", "mine.yaml"]]
    assert sent["runtime_env"]["working_dir"].startswith("gcs://")
    assert "--preset small --preset mine.yaml" in sent["entrypoint"]
    assert "3 files" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("git"), reason="git lists what is ignored")
def test_a_big_working_directory_is_refused(
    ray: FakeDashboard, capsys: pytest.CaptureFixture[str], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its biggest file is named, and nothing is sent."""
    monkeypatch.setattr(entry_point, "MOST_BYTES", 1000)
    (work / ".gitignore").write_text("")
    assert "big.bin" in complaint(capsys, ray.address, "--working-dir", str(work), "--", *TRAIN)
    assert ray.packages == ray.submitted == []


def test_a_preset_that_stays_here_is_refused(
    ray: FakeDashboard, capsys: pytest.CaptureFixture[str], work: Path
) -> None:
    """A file that the cluster will not have is no preset there."""
    command = ["--", *TRAIN, "--preset", str(work / "mine.yaml")]
    assert "on this machine alone" in complaint(capsys, ray.address, *command)
    outside = complaint(capsys, ray.address, "--working-dir", str(work / "env"), *command)
    assert "outside --working-dir" in outside
    assert ray.submitted == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_the_job_running(ray: FakeDashboard, number: signal.Signals, code: int) -> None:
    """Ctrl-C prints how to follow and how to stop; nothing asks for a stop, and no tunnel is left."""
    ray.logs = [["a\n", "HANG"]]
    ray.statuses = ["RUNNING"]
    following = follow(ray.cluster_file())
    assert following.stdout
    assert following.stdout.readline() == "a\n"
    following.send_signal(number)
    rest = following.communicate(timeout=PATIENCE_S)[0]
    assert following.returncode == code
    if number == signal.SIGINT:
        assert "--follow x`" in rest
        assert "--stop x`" in rest
    assert ray.stopped == []
    wait_until(lambda: open_tunnels(ray) == [])


def test_an_unanswered_submission_is_looked_for(ray: FakeDashboard, capsys: pytest.CaptureFixture[str]) -> None:
    """A connection that is lost while submitting may have lost the answer alone."""
    ray.answers_submit = False
    submitted(ray, ray.address, "--", *TRAIN)
    ray.statuses = ["404 Job x does not exist"]
    assert "could not be given the job: no Ray dashboard answers" in complaint(capsys, ray.address, "--", *TRAIN)
