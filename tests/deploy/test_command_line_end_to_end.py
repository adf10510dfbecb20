"""`dreamfleet` from the command line: whole runs on Ray, stopped and killed in every way, and resumed."""

from __future__ import annotations

import json
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from command_runs import Command, still_running, write_workshop
from counted_streams import read_streams
from patience import wait_until

from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.replay.report import describe, verify

Start = Callable[..., Command]
TRAIN = ("train", "--preset", "tiny.yaml", "--run", "run")
ENDLESS = ("--train.env_steps", "1000000")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start commands in a folder with a preset and an environment, and end what still runs after the test."""
    write_workshop(tmp_path)
    commands: list[Command] = []

    def begin(*arguments: str) -> Command:
        commands.append(Command(tmp_path, *arguments))
        return commands[-1]

    yield begin
    for command in commands:
        command.kill()


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def newest_facts(path: Path) -> dict[str, Any]:
    found = CheckpointStore(path / "checkpoints", kept=1).load_newest()
    assert found is not None
    return found[1]


def assert_complete(path: Path, env_steps: int) -> None:
    """Assert that a run made exactly its steps and updates, and that its replay holds each step once and is whole."""
    run = RunDirectory(path)
    settings = run.settings()
    assert settings.train.env_steps == env_steps
    facts = newest_facts(path)
    assert (facts["env_steps"], facts["updates"]) == (env_steps, TrainRatio.of(settings).updates)
    assert verify(run.replay) == []
    streams = read_streams(run.replay, StepFormat(run.spaces()))
    assert sum(len(steps["reward"]) for steps in streams.values()) == env_steps
    for steps in streams.values():
        assert (steps["reward"] == _number_in_episode(steps["is_first"])).all()


def _number_in_episode(is_first: Any) -> list[int]:
    number, numbers = 0, []
    for first in is_first:
        number = 0 if first else number + 1
        numbers.append(number)
    return numbers


@pytest.mark.ray
def test_a_run_from_beginning_to_end(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training on Ray ends with a summary and all files; eval, dream and replay work on them; it takes more steps."""
    command = start(*TRAIN)
    command.wait_for("checkpoint at update")
    family = command.family()
    assert command.end() == 0, command.err
    assert still_running(family) == []
    assert len(family) > 5
    for part in ("done:", "env steps    1,003", "updates      50 (ratio 2.0)", "reconstruction", "dream.webm"):
        assert part in command.out
    path = tmp_path / "run"
    assert_complete(path, 1003)
    updates = [row["updates"] for row in rows(path)]
    assert updates == sorted(updates)
    assert updates[-1] == 50
    assert any("loss/total" in row for row in rows(path))
    assert_filmed(path, ["pictures/prediction-*.webm", "dream/dream.webm"])
    assert list(path.glob("pictures/prediction-*.png"))
    assert tensorboard_tags(path) >= {"loss/total", "episode/return", "fleet/ratio", "replay/steps", "held_out/loss"}

    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["eval", "--run", "run", "--episodes", "2"]) == 0
    assert "return 210.00 ± 0.00 over 2 episodes, mean length 20.0" in capsys.readouterr().out
    assert_filmed(path, ["eval/episode-0.webm"])
    assert main(["dream", "--run", "run", "--sequences", "3", "--horizon", "4"]) == 0
    assert "3 sequences, 3 steps seen, 4 imagined" in capsys.readouterr().out
    assert main(["replay", "info", "run"]) == 0
    assert re.search(r"^total_steps +1003$", capsys.readouterr().out, re.MULTILINE)
    assert main(["replay", "verify", "run"]) == 0
    assert capsys.readouterr().out == "no fault found\n"

    said = complete_inline(monkeypatch, capsys, tmp_path, 1103)
    for part in ("resuming run", "from the checkpoint of update 50\n", "replay: 1,003 env steps", "env steps    1,103"):
        assert part in said


def assert_filmed(path: Path, patterns: list[str]) -> None:
    """Assert that there are videos of these names and that they can be played."""
    for pattern in patterns:
        files = list(path.glob(pattern))
        assert files, pattern
        film = cv2.VideoCapture(str(files[0]))
        assert film.read()[0], f"{files[0]} cannot be played"
        film.release()


def tensorboard_tags(path: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(path / "tensorboard"))
    board.Reload()
    return set(board.Tags()["scalars"])


@pytest.mark.ray
@pytest.mark.parametrize(
    ("ask", "exit_code"),
    [
        (Command.interrupt, 130),
        pytest.param(lambda command: command.process.terminate(), 143, marks=pytest.mark.long),
    ],
)
def test_ctrl_c_and_sigterm_end_cleanly_and_the_run_is_resumed(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ask: Callable[[Command], None],
    exit_code: int,
) -> None:
    """A second run on the directory is refused; Ctrl-C and SIGTERM save and leave nothing; resuming is exact."""
    path = tmp_path / "run"
    command = start(*TRAIN, *ENDLESS)
    command.wait_for("checkpoint at update")
    second = start("train", "--run", "run")
    assert second.end() == 2
    assert re.fullmatch(r"dreamfleet: run is in use by process \d+: .*\n", second.err)
    assert second.out == ""
    family = command.family()
    assert len(family) > 5
    ask(command)
    assert command.end() == exit_code
    assert still_running(family) == []
    stopped = re.search(r"stopped at (\d+) env steps and (\d+) updates", command.out)
    assert stopped
    steps, updates = int(stopped[1]), int(stopped[2])
    assert newest_facts(path)["updates"] == updates
    assert describe(path / "replay")["total_steps"] == steps
    said = complete_inline(monkeypatch, capsys, tmp_path, steps + 201)
    assert f"from the checkpoint of update {updates}\n" in said
    assert f"replay: {steps:,} env steps" in said
    assert f"train.env_steps: 1000000 → {steps + 201}" in said


@pytest.mark.ray
@pytest.mark.long
def test_sigkill_and_a_second_ctrl_c_lose_nothing_acknowledged(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose driver is killed, then resumed, then ended at once by a second Ctrl-C, is completed exactly."""
    path = tmp_path / "run"
    first = start(*TRAIN, *ENDLESS)
    first.wait_for("checkpoint at update", times=2)
    first_family = first.family()
    first.process.send_signal(signal.SIGKILL)
    first.end()
    acknowledged = rows(path)[-1]["env_steps"]

    second = start("train", "--run", "run", "--actors.steps_per_order", "4096")
    second.wait_for("env steps collected so far")
    begun = re.search(r"from the checkpoint of update (\d+)\n.*replay: ([\d,]+) env steps", second.out, re.DOTALL)
    assert begun
    assert begun[1] in re.findall(r"checkpoint at update (\d+)", first.out)[-2:]
    assert int(begun[2].replace(",", "")) >= acknowledged > 0
    agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # Ray's own, which hold nothing; they end after a minute
    assert [process for process in still_running(first_family, within_s=0) if process.name() not in agents] == []

    wait_until_more_is_stored(path)
    family = second.family()
    assert len(family) > 5
    second.interrupt()
    wait_until(lambda: "stopping after the orders in flight" in second.err, "the first Ctrl-C is not heard")
    assert second.process.poll() is None, "the first Ctrl-C waits for the orders in flight"
    second.interrupt()
    assert second.end() == 130
    assert "stopped at once" in second.err
    assert still_running(family) == []
    acknowledged = describe(path / "replay")["total_steps"]
    said = complete_inline(monkeypatch, capsys, tmp_path, acknowledged + 301, "--actors.steps_per_order", "16")
    assert f"replay: {acknowledged:,} env steps" in said


def wait_until_more_is_stored(path: Path) -> None:
    """Wait until some chunks were stored from now on."""
    before = describe(path / "replay")["steps"]
    wait_until(lambda: describe(path / "replay")["steps"] >= before + 200)


def complete_inline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, env_steps: int, *flags: str
) -> str:
    """Resume the run in this process to this many steps, assert that it is complete, and return what it said."""
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert main(["train", "--run", "run", "--inline", "--train.env_steps", str(env_steps), *flags]) == 0
    assert_complete(folder / "run", env_steps)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("CarRacin-v3", "Did you mean 'CarRacing-v3'?"),
        ("my_wurld:make", "Did you mean 'my_world'?"),
        ("my_world:broken", "could not be made with no env.kwargs: RuntimeError: the simulator is not installed"),
        ("my_world:unsupported", "Text"),
    ],
)
def test_an_environment_at_fault_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, wanted: str
) -> None:
    """The exit code is 2, Ray is not started, and nothing is left that would be in the way of the next attempt."""
    write_workshop(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    assert main(["train", "--run", "run", "--env.id", name]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"dreamfleet: .*\n", printed.err), "one line"
    assert f"env.id '{name}'" in printed.err
    assert wanted in printed.err
    assert not (tmp_path / "run").exists()


def test_an_environment_at_fault_is_told_of_soon(start: Start, tmp_path: Path) -> None:
    """From a shell, the sentence comes within 15 s of a processor, alone, and no Ray is started for it."""
    before = processor_s_of_children()
    command = start(*TRAIN, "--env.id", "my_world:broken", "--env.kwargs", "{}")
    assert command.end() == 2
    assert processor_s_of_children() - before < 15
    assert command.out == ""
    assert command.err.count("\n") == 1
    assert not (tmp_path / ".ray").exists(), "Ray would have written its token there"


def processor_s_of_children() -> float:
    """Return the processor time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
