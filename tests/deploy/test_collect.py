"""`dreamfleet collect` and `train --dataset`: exact counts, going on after a stop, training without environments."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command_runs import Command, write_workshop
from counted_streams import read_streams
from patience import PATIENCE_S

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.run import prepare_collecting
from dreamfleet.deploy.run.prepare_collecting import keep_all
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.replay.report import describe, verify
from dreamfleet.replay.shards import shard_directories

COLLECT = ("collect", "--preset", "tiny.yaml", "--out", "data")
QUICK = ("--env.kwargs.delay_s", "0")
TRAIN = ("train", "--preset", "tiny.yaml", "--inline", "--run", "run")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a preset and an environment."""
    write_workshop(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Command]]:
    """Start commands in the folder, and end what still runs after the test."""
    commands: list[Command] = []

    def begin(*arguments: str) -> Command:
        commands.append(Command(folder, *arguments))
        return commands[-1]

    yield begin
    for command in commands:
        command.kill()


def wait_for_steps(path: Path, steps: int) -> None:
    """Wait until a dataset that is being collected holds this many steps."""
    deadline = time.monotonic() + PATIENCE_S
    while not (path / "replay").is_dir() or not any(shard_directories(path / "replay")) or stored(path) < steps:
        assert time.monotonic() < deadline, "nothing is collected"
        time.sleep(0.1)


def stored(path: Path) -> int:
    return int(describe(path / "replay")["total_steps"])


def assert_dataset(path: Path, steps: int) -> None:
    """Assert that a dataset holds exactly this many steps, each once, in whole streams."""
    run = RunDirectory(path)
    assert describe(run.replay)["total_steps"] == describe(run.replay)["steps"] == steps
    assert verify(run.replay) == []
    step_format = StepFormat(run.spaces())
    streams = [
        stream for shard in shard_directories(run.replay) for stream in read_streams(shard, step_format).values()
    ]
    assert sum(len(stream["reward"]) for stream in streams) == steps


def test_a_dataset_is_exact_and_can_be_made_longer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Collecting ends at exactly the steps asked for; the same directory with more steps continues from there."""
    assert main([*COLLECT, "--inline", "--steps", "333"]) == 0
    assert_dataset(folder / "data", 333)
    assert "train on it  dreamfleet train --dataset data" in capsys.readouterr().out
    assert main(["collect", "--out", "data", "--inline", "--steps", "500", "--replay.shards", "2"]) == 0
    assert_dataset(folder / "data", 500)
    assert len(shard_directories(folder / "data" / "replay")) == 2
    assert main(["collect", "--out", "data", "--inline"]) == 0
    assert_dataset(folder / "data", 500)


def test_training_on_a_dataset_needs_no_environment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model trains on a dataset alone, makes the updates that ratio and steps allow, and leaves it as it is."""
    assert main([*COLLECT, "--inline", "--steps", "400"]) == 0
    before = {path: path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file()}
    (folder / "my_world.py").unlink()
    assert main([*TRAIN, "--dataset", "data"]) == 0
    run = RunDirectory(folder / "run")
    assert "updates      25" in capsys.readouterr().out, "ratio 2 · 400 steps / (4 · 8)"
    assert {path: path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file()} == before
    assert not shard_directories(run.replay)
    losses = [json.loads(line).get("loss/total") for line in run.metrics_file.read_text().splitlines()]
    assert any(loss is not None for loss in losses)
    assert main(["train", "--run", "run", "--inline", "--train.ratio", "3"]) == 0
    assert "updates      37" in capsys.readouterr().out, "resumed, with the dataset it began with"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((*TRAIN, "--dataset", "dat"), "flag --dataset: dat does not exist. Did you mean 'data'?"),
        ((*TRAIN, "--dataset", "."), "flag --dataset: . is neither a run nor a dataset: it holds no config.yaml."),
        ((*COLLECT[:3], "--out", "."), "flag --out: . holds files, but no run (no config.yaml)"),
        ((*COLLECT, "--steps", "0"), "argument --steps: 0 is less than 1"),
        (
            (*COLLECT, "--actors.count", "some"),
            "actors.count is 'some', but must be a whole number of at least 1, or auto",
        ),
        ((*COLLECT, "--inline", "--address", "auto"), "flag --address: a cluster has no part in a run with --inline"),
        (("collect", "--preset", "tiny.yaml"), "the following arguments are required: --out"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    """What is wrong is said in one line that names the flag."""
    (folder / "data").mkdir()
    (folder / "data" / "config.yaml").touch()
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1


def test_a_training_run_is_no_place_for_a_dataset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--out` refuses a directory with checkpoints: its settings and its replay's capacity are another matter."""
    checkpoints = folder / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "update-1.pt").touch()
    (folder / "run" / "config.yaml").touch()
    assert main(["collect", "--preset", "tiny.yaml", "--out", "run", "--inline"]) == 2
    assert "flag --out: run is a training run" in capsys.readouterr().err


def test_nothing_collected_is_ever_dropped() -> None:
    """The replay of a dataset is large enough for all steps uncompressed, whichever shard they come to."""
    spaces = Spaces((ObservationSpec("image", (64, 64, 3), "uint8"),), ActionSpec("discrete", (5,)))
    settings = keep_all(Settings(replay={"shards": 4, "capacity_gb": 0.5}), spaces, 2_000_000, 4)
    raw_gb = 2_000_000 * StepFormat(spaces).step_bytes / 1e9
    assert settings.replay.capacity_gb / 4 > raw_gb
    assert settings.replay.capacity_steps / 4 >= 2_000_000
    assert Settings.model_validate(settings.model_dump()) == settings
    small = keep_all(Settings(), spaces, 100, 1)
    assert Settings.model_validate(small.model_dump()) == small
    assert np.isclose(small.replay.capacity_gb, Settings().replay.capacity_gb)


def test_fewer_shards_asked_for_than_there_are_drop_nothing(folder: Path) -> None:
    """A dataset that has four shards and is continued with one keeps all steps: the capacity is shared by the four."""
    del folder
    small = ("--actors.count", "1", "--replay.capacity_steps", "2048", "--inline", *QUICK)
    assert main([*COLLECT, *small, "--steps", "300", "--replay.shards", "4"]) == 0
    assert main(["collect", "--out", "data", "--steps", "3000", "--replay.shards", "1", *small]) == 0
    assert_dataset(Path("data"), 3000)


def test_a_dataset_that_has_dropped_steps_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was dropped for want of room is printed, and the train ratio is that of what is left."""

    def keep_some(settings: Settings, spaces: Spaces, steps: int, shards: int) -> Settings:
        kept = keep_all(settings, spaces, steps, shards)
        return kept.model_copy(update={"replay": kept.replay.model_copy(update={"capacity_steps": 1000})})

    monkeypatch.setattr(prepare_collecting, "keep_all", keep_some)
    assert main([*COLLECT, "--inline", "--steps", "1600", "--actors.count", "1", *QUICK]) == 0
    held = describe(folder / "data" / "replay")["steps"]
    assert held < 1600
    assert f"data holds {held} of the 1600 steps collected" in capsys.readouterr().out
    assert main([*TRAIN, "--dataset", "data"]) == 0
    printed = capsys.readouterr().out
    assert f"data holds {held:,} steps, and has dropped {1600 - held}" in printed
    updates = 2 * held // 32
    assert f"updates      {updates} (ratio {updates * 32 / held:.1f})" in printed


def test_fewer_steps_than_there_are_keep_those(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dataset asked for less than it holds says so, and its settings go on to name what it holds."""
    assert main([*COLLECT, "--inline", "--steps", "300"]) == 0
    assert main(["collect", "--out", "data", "--inline", "--steps", "100"]) == 0
    printed = capsys.readouterr().out
    assert "data holds 300 steps already, more than the 100 asked for" in printed
    assert "nothing is left to do; a greater --steps continues the run" in printed
    assert RunDirectory(folder / "data").settings().train.env_steps == 300


def test_a_dataset_is_no_run_to_go_on_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`train --run` refuses a dataset and leaves it as it is; so does `collect --out` a run."""
    assert main([*COLLECT, "--inline", "--steps", "300"]) == 0
    before = {path: path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file()}
    assert main(["train", "--inline", "--run", "data"]) == 2
    assert "flag --run: data is a dataset; `dreamfleet train --dataset data` trains on it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file()} == before


def test_a_dataset_comes_with_its_environment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flag that wants another environment is refused; one that says what the dataset has is not."""
    del folder
    assert main([*COLLECT, "--inline", "--steps", "300"]) == 0
    assert main([*TRAIN, "--dataset", "data", "--env.id", "CartPole-v1"]) == 2
    sentence = (
        "flag --env.id: the dataset data has env.id my_world:make, not CartPole-v1: it comes with its environment"
    )
    assert sentence in capsys.readouterr().err
    assert main([*TRAIN, "--dataset", "data", "--env.kwargs.length", "9"]) == 2
    assert "flag --env.kwargs.length: the dataset data has env.kwargs.length 20, not 9" in capsys.readouterr().err
    assert main([*TRAIN, "--dataset", "data", "--env.id", "my_world:make"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--address", "127.0.0.1:9"), "flag --address: no Ray cluster answers at '127.0.0.1:9'"),
        (("--inline", "--replay.capacity_steps", "1000", "--replay.shards", "8"), "too small for replay.shards 8"),
        (("--inline", "--replay.capacity_gb", "0.000001"), "replay.capacity_gb"),
    ],
)
def test_what_cannot_begin_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    """A wrong address, and a capacity that is too small, are found before a run is made, or it is removed again."""
    assert main(["train", "--preset", "tiny.yaml", "--run", "run", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (folder / "run").exists()


@pytest.mark.ray
@pytest.mark.long
def test_collecting_survives_kill_and_ctrl_c(start: Callable[..., Command], folder: Path) -> None:
    """A collect that is killed, then stopped, then left alone ends with exactly the steps, over two shards."""
    shards = ("--replay.shards", "2", "--steps", "3000")
    first = start(*COLLECT, *shards)
    wait_for_steps(folder / "data", 200)
    first.kill()
    second = start(*COLLECT, *shards)
    second.wait_for("env steps collected so far")
    second.interrupt()
    assert second.end() == 130
    assert "`dreamfleet collect --out data` continues" in second.out
    last = start(*COLLECT, *shards)
    assert last.end() == 0
    assert_dataset(folder / "data", 3000)
    assert len(shard_directories(folder / "data" / "replay")) == 2
