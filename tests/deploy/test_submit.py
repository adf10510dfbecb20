"""`dreamfleet submit` against a `ray` that plays a script: what is sent, what is refused, and lost connections."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_S

from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.submit import head, job, package

HTTP = "http://10.0.0.1:8265"
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / ".pkg"
TRAIN = ["train", "--preset", "small", "--env.id", "Pendulum-v1"]


class FakeRay:
    """The folder of a scripted `ray`, first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "home").mkdir(parents=True)
        script = (Path(__file__).resolve().parents[1] / "support" / "fake_ray.py").read_text()
        self.program("ray", script)
        self.script(statuses=["SUCCEEDED"], logs=[["succeeded"]])

    def program(self, name: str, script: str) -> None:
        (self.folder / name).write_text(f"#!{sys.executable} -S\n{script}")
        (self.folder / name).chmod(0o755)

    def script(self, **steps: list[object]) -> None:
        for name, what in steps.items():
            (self.folder / f"{name}.json").write_text(json.dumps(what))

    def calls(self) -> list[list[str]]:
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def call(self, *begin: str) -> list[str]:
        """Return the words of the one call that begins so."""
        [found] = [call for call in self.calls() if call[: len(begin)] == list(begin)]
        return found[:-1]

    def cluster(self, text: str = "") -> str:
        file = self.folder / "my cluster.yaml"
        file.write_text(f"cluster_name: x\nprovider: {{type: local}}\n{text}")
        return str(file)


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay(tmp_path / "fake")
    monkeypatch.setenv("PATH", str(fake.folder), prepend=os.pathsep)
    monkeypatch.setattr(job, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(job, "LONGEST_PAUSE_S", 0.02)
    return fake


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["submit", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dreamfleet: ")
    assert said.count("\n") == 1, "one sentence, on one line"
    return said


def test_a_file_for_kubernetes_is_told_from_others(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    """`submit` sends nothing there: kubectl starts both the cluster and the command."""
    file = ROOT / "deploy" / "kuberay.yaml"
    assert f"`kubectl apply -f {file}` starts cluster and command" in complaint(capsys, str(file), "--", "presets")
    assert ray.calls() == []


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([HTTP], ["no command", "'--'"]),
        ([HTTP, "--"], ["no command", "'--'"]),
        ([HTTP, "train"], ["'train'", "'--'"]),
        ([HTTP, "--", "trian"], ["Did you mean 'train'"]),
        ([HTTP, "--", "submit", HTTP], ["no command"]),
        ([HTTP, "--", "train", "--env.idd", "x"], ["Did you mean 'env.id'"]),
        ([HTTP, "--", "train", "--run", "old", "--learner.batch_size", "few"], ["'few'", "a whole number"]),
        ([HTTP, "--", "train", "--train.prefill", "9", "--train.env_steps", "5"], ["prefill 9"]),
        ([HTTP, "--", "train", "--preset", "smal"], ["Did you mean 'small'"]),
        ([HTTP, "--follow", "x", "--", "train"], ["exclude"]),
        (["no.yaml", "--", *TRAIN], ["no.yaml", "neither", "http://"]),
        (["10.0.0.1:8265", "--", *TRAIN], ["10.0.0.1:8265", "neither", "http://"]),
        (["http://:8265", "--", *TRAIN], ["no host"]),
        ([HTTP, "--working-dir", "no/such", "--", *TRAIN], ["no/such", "no directory"]),
    ],
)
def test_what_cannot_work_is_refused_here(
    ray: FakeRay, capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: list[str]
) -> None:
    """A wrong command, flag, setting or target is one sentence, and nothing is sent."""
    said = complaint(capsys, *arguments)
    for part in wanted:
        assert part in said
    assert ray.calls() == []


def test_an_old_run_on_the_cluster_may_make_settings_fit(ray: FakeRay) -> None:
    """With --run, settings that fit together only with the run's own are left to the node to judge."""
    assert main(["submit", HTTP, "--", "train", "--run", "runs/old", "--train.prefill", "999999999"]) == 0
    assert "~/dreamfleet/runs/old" in ray.call("job", "submit")[-1]


def test_a_password_in_an_address_is_refused_and_not_shown(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    """Secrets have a file, and are not repeated."""
    assert "secret" not in complaint(capsys, "http://me:secret@10.0.0.1:8265", "--", *TRAIN)


@pytest.mark.parametrize("by_file", [True, False])
def test_words_reach_the_command_as_they_were_given(ray: FakeRay, capsys: pytest.CaptureFixture[str],
                                                    by_file: bool) -> None:  # fmt: skip
    """Spaces, quotes and dollars pass every shell between; relative paths begin in the node's dreamfleet directory."""
    odd = """my envs:make 'it' "$HOME" `id` \\ !"""
    ray.program("dreamfleet", f"import json, sys\njson.dump(sys.argv[1:], open({str(ray.folder / 'ran')!r}, 'w'))")
    target = ray.cluster() if by_file else HTTP
    assert main(["submit", target, "--", "collect", "--out", "my data", "--env.id", odd, "--actors", "auto"]) == 0
    words = ray.call("job", "submit")
    home = ray.folder / "home"
    line = shlex.join(words[words.index("--") + 1 :])  # so does Ray
    subprocess.run(line, shell=True, check=True, env={**os.environ, "HOME": str(home)})  # noqa: S602
    ran = json.loads((ray.folder / "ran").read_text())
    assert ran == ["collect", "--out", f"{home}/dreamfleet/my data", "--actors", "auto", "--address", "auto",
                   f"--env.id={odd}"]  # fmt: skip
    assert "my data" in capsys.readouterr().out


def test_a_job_says_where_it_writes_and_how_to_come_back(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    """The job and its run have one readable name, and Ray gives it time for its last checkpoint."""
    assert main(["submit", HTTP, "--", *TRAIN]) == 0
    words = ray.call("job", "submit")
    job_id = words[words.index("--submission-id") + 1]
    assert job_id.startswith("train-pendulum-20")
    assert json.loads(words[words.index("--runtime-env-json") + 1]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "150"}}
    assert f"--run ~/dreamfleet/runs/{job_id} --address auto" in words[-1]
    said = capsys.readouterr().out
    assert f"~/dreamfleet/runs/{job_id} on the head" in said
    for flag in ("--follow", "--stop"):
        assert f"`dreamfleet submit {HTTP} {flag} {job_id}`" in said


@pytest.mark.parametrize("command", [["eval", "--run", "/r"], ["train", "--inline"], ["replay", "info", "data"]])
def test_only_what_takes_an_address_gets_one(ray: FakeRay, command: list[str]) -> None:
    """Commands without Ray run as they are."""
    assert main(["submit", HTTP, "--", *command]) == 0
    assert "--address" not in ray.call("job", "submit")[-1]


@pytest.mark.parametrize(
    ("declared", "wanted"), [({"head": 1, "worker": 0}, None), ({"worker": 1}, '{"learner": 0.001}'), ({}, None)]
)
def test_the_command_runs_where_the_learner_is(ray: FakeRay, declared: dict[str, int], wanted: str | None) -> None:
    """Where the cluster file declares the learner's resource for other nodes than the head, one of these is taken."""
    kinds = {name: {"resources": {"learner": declared.get(name, 0)}} for name in ("head", "worker")}
    target = ray.cluster(f"head_node_type: head\navailable_node_types: {json.dumps(kinds)}\n")
    assert main(["submit", target, "--", *TRAIN]) == 0
    words = ray.call("job", "submit")
    assert (words[words.index("--entrypoint-resources") + 1] if "--entrypoint-resources" in words else None) == wanted


def test_a_lost_connection_costs_no_line_and_doubles_none(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    """Each reading begins at the log's first line and may end anywhere; every line is printed once, Ray's own never."""
    ray.script(
        logs=[["a 1", "a 2", "CUT"], ["DROP"], ["a 1", "a 2", "b 3", "DROP"], ["a 1", "a 2", "b 3", "c", "succeeded"]],
        statuses=["RUNNING", "unreachable", "unreachable", "RUNNING", "RUNNING", "SUCCEEDED"],
    )
    assert main(["submit", HTTP, "--follow", "x"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["a 1", "a 2", "b 3", "c", "x succeeded."]
    assert said.err.count("no contact") == 1
    assert said.err.count("connected again") == 1


def test_a_silent_connection_is_tried(
    ray: FakeRay, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut network says nothing: after a while without a line the cluster is asked, and the log read anew."""
    monkeypatch.setattr(job, "QUIET_S", 0.3)
    ray.script(logs=[["a", "HANG"], ["a", "b", "was stopped"]], statuses=["RUNNING", "unreachable", "STOPPED"])
    assert main(["submit", HTTP, "--follow", "x"]) == 143
    assert capsys.readouterr().out.splitlines() == ["a", "b", "x was stopped."]


def test_no_contact_for_long_ends_following(
    ray: FakeRay, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how to come back."""
    monkeypatch.setattr(job, "GIVE_UP_S", 0.2)
    ray.script(logs=[["a", "DROP"]], statuses=["RUNNING", "unreachable"])
    assert main(["submit", HTTP, "--follow", "x"]) == 1
    assert f"`dreamfleet submit {HTTP} --follow x` comes back" in capsys.readouterr().err


def test_a_failed_job_fails_here(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    """Its log is printed once, and its cause comes last."""
    ray.script(logs=[["a 1", "failed"]], statuses=["FAILED"])
    assert main(["submit", HTTP, "--follow", "x"]) == 1
    said = capsys.readouterr()
    assert said.out == "a 1\n"
    assert said.err == "dreamfleet: x failed: Job entrypoint command failed with exit code 2.\n"


def test_stop_asks_and_follows_until_the_job_has_ended(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    """What the log held before is not printed again."""
    ray.script(logs=[["old", "older"], ["old", "older", "checkpoint", "was stopped"]], statuses=["RUNNING", "STOPPED"])
    assert main(["submit", ray.cluster(), "--stop", "x"]) == 0
    assert ray.call("job", "stop")[-2:] == ["--no-wait", "x"]
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == ["checkpoint", "x was stopped."]


def test_a_job_that_has_ended_is_not_stopped(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said how it ended."""
    assert main(["submit", HTTP, "--stop", "x"]) == 0
    assert capsys.readouterr().out == "x succeeded.\n"
    assert not [call for call in ray.calls() if call[1] == "stop"]


@pytest.mark.parametrize(
    ("printed", "wanted"),
    [
        ("AuthenticationError: Authentication required: Unauthorized: Missing authentication token", "has none"),
        ("AuthenticationError: Token authentication is enabled but Ray couldn't find an authentication token.", "none"),
        ("AuthenticationError: Authentication failed: Forbidden: Invalid authentication token", "refuses the token"),
        ("RuntimeError: Request failed with status code 404: Job x does not exist.", "no such job"),
        ("RuntimeError: Head node of cluster (x) not found!", "`ray up "),
        ("ssh: connect to host 10.0.0.1 port 22: Connection refused", "Connection refused"),
        ("me@10.0.0.1: Permission denied (publickey).\nError: Command failed:\n\n  ssh x", "refuses the SSH login"),
        ("unreachable", "no Ray dashboard answers"),
    ],
)
def test_a_refusal_is_one_sentence_with_what_to_do(
    ray: FakeRay, capsys: pytest.CaptureFixture[str], printed: str, wanted: str
) -> None:
    """No traceback of Ray's, whether the cluster is reached by file or by address."""
    ray.script(statuses=[printed])
    for target in (HTTP, ray.cluster()):
        assert wanted in complaint(capsys, target, "--follow", "x")


def test_no_token_is_on_a_command_line(ray: FakeRay, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """It stays in the environment or its file."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123secret")
    assert main(["submit", ray.cluster(), "--", *TRAIN]) == 0
    said = capsys.readouterr()
    assert "0123secret" not in (ray.folder / "calls.jsonl").read_text() + said.out + said.err


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "my work"
    (folder / "env").mkdir(parents=True)
    (folder / "env" / "game.py").write_text("x = 1")
    (folder / "mine.yaml").write_text("train: {prefill: 300}")
    (folder / ".gitignore").write_text("*.bin\n")
    (folder / "big.bin").write_bytes(bytes(2000))
    return folder


def test_a_working_directory_goes_along_by_rsync(ray: FakeRay, capsys: pytest.CaptureFixture[str], work: Path) -> None:
    """What .gitignore names stays; presets in it are named from it."""
    preset = str(work / "mine.yaml")
    assert main(["submit", ray.cluster(), "--working-dir", str(work), "--", *TRAIN, "--preset", preset]) == 0
    assert (ray.folder / "sent.txt").read_text().split() == [".gitignore", "env", "env/game.py", "mine.yaml"]
    words = ray.call("job", "submit")
    there = words[words.index("--working-dir") + 1]
    assert there.startswith(f"{ray.folder}/home/dreamfleet/sent/train-pendulum-")
    assert not Path(there).exists(), "removed once Ray has it"
    assert "--preset small --preset mine.yaml" in words[-1]
    assert "3 files" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("git"), reason="git lists what is ignored")
def test_a_big_working_directory_is_refused(ray: FakeRay, capsys: pytest.CaptureFixture[str], work: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Its biggest file is named, and nothing is sent."""
    monkeypatch.setattr(package, "MOST_BYTES", 1000)
    (work / ".gitignore").write_text("")
    assert "big.bin" in complaint(capsys, HTTP, "--working-dir", str(work), "--", *TRAIN)
    assert ray.calls() == []


def test_a_preset_that_stays_here_is_refused(ray: FakeRay, capsys: pytest.CaptureFixture[str], work: Path) -> None:
    """A file that the cluster will not have is no preset there."""
    preset = ["--preset", str(work / "mine.yaml")]
    assert "on this machine alone" in complaint(capsys, HTTP, "--", *TRAIN, *preset)
    assert "outside --working-dir" in complaint(capsys, HTTP, "--working-dir", str(work / "env"), "--", *TRAIN, *preset)
    assert ray.calls() == []


def test_ctrl_c_leaves_the_job_running(ray: FakeRay) -> None:
    """It prints how to come back and how to stop, asks for no stop, and leaves no process."""
    ray.script(logs=[["a", "HANG"]], statuses=["RUNNING"])
    command = [sys.executable, "-m", "dreamfleet", "submit", HTTP, "--follow", "x"]
    following = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,  # noqa: S603
                                 env={**os.environ, "PYTHONPATH": str(PACKAGE)})  # fmt: skip
    assert following.stdout
    assert following.stdout.readline() == "a\n"
    following.send_signal(signal.SIGINT)
    rest = following.communicate(timeout=PATIENCE_S)[0]
    assert following.returncode == 130
    assert "--follow x`" in rest
    assert "--stop x`" in rest
    assert not [call for call in ray.calls() if call[1] == "stop"]


def test_an_unanswered_submission_is_looked_for(ray: FakeRay, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A connection that is lost while submitting may have lost the answer alone."""
    real = head.Head.job

    def lossy(self: head.Head, action: str, *words: str) -> str:
        said = real(self, action, *words)
        if action == "submit":
            raise head.LostContactError("cut")
        return said

    monkeypatch.setattr(head.Head, "job", lossy)
    assert main(["submit", HTTP, "--", *TRAIN]) == 0
    ray.script(statuses=["RuntimeError: Job x does not exist"])
    assert "could not be given the job: cut" in complaint(capsys, HTTP, "--", *TRAIN)
