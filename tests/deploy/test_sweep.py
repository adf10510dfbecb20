"""`dreamfleet sweep`: which cells run and when, what becomes of failed and interrupted ones; mostly with a stub."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_runs import Command
from patience import PATIENCE_S, wait_until

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.resolve import resolve, write_settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.monitoring.progress import Console
from dreamfleet.deploy.state import StateWriter, read_state
from dreamfleet.deploy.sweep import dry_run as dry
from dreamfleet.deploy.sweep import local_cells, schedule
from dreamfleet.deploy.sweep.cell import Cell
from dreamfleet.deploy.sweep.need import Machine, Need
from dreamfleet.deploy.sweep.report import Report, expected, share_done, time_left
from dreamfleet.deploy.sweep.sweep import make_cells
from dreamfleet.deploy.sweep.sweep_file import read_sweep

STUB = Path(__file__).resolve().parents[1] / "support" / "sweep_stub.py"
FILE = """
presets: [small]
settings: {env: {id: CartPole-v1}, train: {env_steps: 6000}}
variants:
  first: {settings: {model: {depth: 8}}}
  second: {presets: [debug], settings: {train: {env_steps: 700}}}
seeds: [0, 1]
inline: true
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start the stub instead of runs; return the folder of what variants are to do, with a sweep's file in it."""
    search = os.pathsep.join([str(STUB.parents[2] / ".pkg"), str(STUB.parent)])
    monkeypatch.setenv("PYTHONPATH", search)
    monkeypatch.setenv("SWEEP_STUB", str(tmp_path))
    monkeypatch.setattr(local_cells, "PROGRAM", (sys.executable, str(STUB)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.yaml").write_text(FILE)
    return tmp_path


def states(folder: Path) -> dict[str, str]:
    """Return what sweep.json says became of each cell."""
    return {cell["cell"]: cell["state"] for cell in json.loads((folder / "sweep.json").read_text())["cells"]}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("variants: {a: {}}\nseed: [1]", ["there is no 'seed' here", "Did you mean 'seeds'"]),
        ("variants: {a: {}}\nseeds: [1, 1]", ["seeds has 1 twice"]),
        ("variants: {a: {}}\nseeds: [x]", ["seeds is ['x']", "[0, 1, 2]"]),
        ("variants: {}", ["variants is {}", "at least one"]),
        ("variants: {a b: {}}", ["'a b'", "folder"]),
        ("variants: {a: [small]}", ["variants.a is ['small']", "presets"]),
        ("variants: {a: {preset: [small]}}", ["variants.a", "no 'preset' here", "'presets'"]),
        ("variants: {a: {presets: [smal]}}", ["variants.a", "'smal'", "Did you mean 'small'"]),
        (
            "variants: {a: {settings: {train: {env_step: 3}}}}",
            ["variants.a.settings", "Did you mean 'train.env_steps'"],
        ),
        ("settings: {train: {ratio: few}}\nvariants: {a: {}}", ["table.yaml: settings:", "train.ratio is 'few'"]),
        ("settings: {seed: 3}\nvariants: {a: {}}", ["'seeds'", "leave it out"]),
        ("settings: {actors: {count: auto}}\nvariants: {a: {}}", ["variant a", "actors.count is auto"]),
        ("variants: {a: {resources: {cores: 0}}}", ["variants.a", "resources.cores is 0"]),
        ("variants: {a: {}, a: {}}", ["line 1", "'a' is there twice"]),
    ],
)
def test_a_bad_file_is_one_sentence_with_the_place(
    stub: Path, capsys: pytest.CaptureFixture[str], text: str, wanted: list[str]
) -> None:
    """It says what would be right, and nothing is made."""
    (stub / "table.yaml").write_text(text)
    assert main(["sweep", "table.yaml"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("dreamfleet: ")
    assert printed.count("\n") == 1
    assert [part for part in wanted if part not in printed] == [], printed
    assert not (stub / "runs").exists()


def test_the_folder_of_a_sweep_is_not_its_file(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is resumed by the file that it was started with."""
    assert main(["sweep", str(stub)]) == 2
    assert "is a folder; give the YAML file that the sweep was started with." in capsys.readouterr().err


def test_presets_lie_below_settings_and_the_files_below_the_variants(stub: Path) -> None:
    """Each cell has the settings that `train` would make of its command."""
    first, second = (variant.settings(1) for variant in read_sweep(Path("table.yaml")).variants)
    assert (first.model.depth, first.train.env_steps, first.seed, first.learner.batch_size) == (8, 6000, 1, 8)
    assert (second.model.depth, second.train.env_steps, second.learner.batch_size) == (4, 700, 4)
    assert (first.learner.threads, first.replay.cache_gb) == (1, 0.5), "cells leave each other cores and memory"
    for cell in make_cells(read_sweep(Path("table.yaml")), stub, has_gpus=False):
        words = cell.arguments(inline=True)
        presets = [words[number + 1] for number, word in enumerate(words) if word == "--preset"]
        flags = [word.removeprefix("--").partition("=")[::2] for word in words if "=" in word]
        assert resolve(presets, flags) == cell.settings


def test_a_failed_cell_is_named_and_the_others_go_on(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run again, the failed ones alone are tried again."""
    text = FILE.replace("variants:", "variants:\n  third: {}\n  fourth: {}").replace("[0, 1]", "1")
    (stub / "table.yaml").write_text(text)
    for variant, wish in (("first", "fail"), ("third", "crash"), ("fourth", "refuse")):
        (stub / variant).write_text(wish)
    assert main(["sweep", "table.yaml", "--out", "out", "--jobs", "4"]) == 1
    printed = capsys.readouterr().out
    for cause in (
        "first/seed-0 failed after [0-9]+ s: the loss is not finite at update 7",
        "third/seed-0 failed after [0-9]+ s: its process was ended by SIGKILL",
        "fourth/seed-0 failed after [0-9]+ s: env.id 'Nothing-v0' is not registered.",
    ):
        assert re.search(cause, printed), printed
    assert states(stub / "out") == {
        "third/seed-0": "failed", "fourth/seed-0": "failed", "first/seed-0": "failed", "second/seed-0": "complete",
    }  # fmt: skip
    before = (stub / "out/second/seed-0/note.json").read_text()
    for variant in ("first", "third", "fourth"):
        (stub / variant).write_text("finish")
    assert main(["sweep", "table.yaml", "--out", "out", "--jobs", "4"]) == 0
    assert set(states(stub / "out").values()) == {"complete"}
    assert (stub / "out/second/seed-0/note.json").read_text() == before, "a complete cell was run again"
    resumed = json.loads((stub / "out/first/seed-0/note.json").read_text())
    assert "--preset" not in resumed["arguments"], "a run that is there has its settings"
    assert resumed["threads"] == "1"


class FakeCells:
    """Cells that end after some looks at them, in this process."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.most, self.order = machine, 0, list[str]()

    def has_room(self, cell: Cell, running: Sequence[Cell]) -> bool:
        return self.machine.has_room(cell.need, [one.need for one in running])

    def start(self, cell: Cell) -> FakeProcess:
        self.order.append(cell.name)
        return FakeProcess(cell, looks=3 + len(self.order))

    adopt = start


class FakeProcess:
    said = "it was a fake"

    def __init__(self, cell: Cell, looks: int) -> None:
        self.cell, self.looks = cell, looks

    def poll(self) -> int | None:
        self.looks -= 1
        return None if self.looks > 0 else 1

    def stop(self) -> None:
        self.looks = 0

    kill = stop


@pytest.mark.parametrize(("jobs", "cores", "most"), [(None, 3, 3), (2, 8, 2), (None, 1, 1)])
def test_cells_run_at_once_as_there_is_room_and_as_is_said(
    stub: Path, monkeypatch: pytest.MonkeyPatch, jobs: int | None, cores: int, most: int
) -> None:
    """All run in the end, those of the first seed first."""
    monkeypatch.setattr(schedule, "POLL_S", 0.0)
    (stub / "table.yaml").write_text(FILE.replace("[0, 1]", "3"))
    cells = make_cells(read_sweep(Path("table.yaml")), stub, has_gpus=False)
    fakes, at_once = FakeCells(Machine(cores, -1.0, ())), []

    class Looking(Report):
        def show(self, running: Sequence[tuple[Cell, float]], waiting: int) -> None:
            at_once.append(len(running))

    schedule.Schedule(cells, fakes, Looking(cells, stub, Console()), lambda: False, jobs).run()
    assert max(at_once) == most
    assert fakes.order == [cell.name for cell in cells]
    assert {cell.state for cell in cells} == {"failed"}
    assert cells[0].cause == "it was a fake"


def test_ctrl_c_stops_all_cells_and_they_are_resumed(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each gets one interrupt, and says that it stopped; the same command continues."""
    for variant in ("first", "second"):
        (stub / variant).write_text("wait")

    def interrupt() -> None:
        cells = [stub / f"out/{variant}/seed-0" for variant in ("first", "second")]
        wait_until(lambda: all((found := read_state(cell)) and found.counted for cell in cells))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main(["sweep", "table.yaml", "--out", "out", "--jobs", "2"]) == 130
    thread.join()
    assert states(stub / "out") == {
        "first/seed-0": "stopped", "second/seed-0": "stopped", "first/seed-1": "new", "second/seed-1": "new",
    }  # fmt: skip
    stopped = read_state(stub / "out/first/seed-0")
    assert stopped is not None
    assert stopped.reason == "by SIGINT"
    assert "`dreamfleet sweep table.yaml --out out --jobs 2` continues" in capsys.readouterr().out
    for variant in ("first", "second"):
        (stub / variant).write_text("finish")
    assert main(["sweep", "table.yaml", "--out", "out", "--jobs", "2"]) == 0
    assert "first/seed-0 resumes" in capsys.readouterr().out


def test_a_cell_that_runs_already_is_waited_for(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep that was killed leaves its cells running, and the next one finds them."""
    (stub / "table.yaml").write_text(FILE.replace("[0, 1]", "1").replace("  second:", "  # second:"))
    (stub / "first").write_text("wait")
    [cell] = make_cells(read_sweep(Path("table.yaml")), stub / "out", has_gpus=False)
    process = local_cells.LocalCells(Machine(2, -1.0, ()), inline=True).start(cell)
    wait_until(lambda: (found := read_state(cell.run.path)) and found.counted)

    def release() -> None:
        wait_until((stub / "out/sweep.log").exists)
        process.stop()
        wait_until(lambda: process.poll() is not None)

    thread = threading.Thread(target=release)
    thread.start()
    assert main(["sweep", "table.yaml", "--out", "out"]) == 1
    thread.join()
    printed = capsys.readouterr().out
    assert "first/seed-0 runs already" in printed
    assert re.search("first/seed-0 failed after [0-9]+ s: it was stopped by SIGINT by somebody else", printed)


def test_what_a_run_is_follows_from_its_files(stub: Path) -> None:
    """A run of other settings is refused: it would be compared with what is not alike. A longer one is continued."""

    def cells(text: str = FILE) -> dict[str, Cell]:
        (stub / "table.yaml").write_text(text)
        made = make_cells(read_sweep(Path("table.yaml")), stub / "out", has_gpus=False)
        for cell in made:
            cell.look()
        return {cell.name: cell for cell in made}

    for name, cell in cells().items():
        assert cell.state == "new"
        cell.run.create()
        write_settings(cell.settings, cell.run.config_file)
        state = StateWriter(cell.run.path, "train", 5.0)
        with state:
            steps = cell.settings.train.env_steps
            state.beat({"env_steps": steps, "wanted/env_steps": steps})
            if name == "first/seed-1":
                state.stopped("by SIGTERM")
        if name == "second/seed-1":
            state.__exit__(OSError, OSError("the disk is full"), None)
    found = {name: cell.state for name, cell in cells().items()}
    assert found == {
        "first/seed-0": "complete", "second/seed-0": "complete", "first/seed-1": "stopped", "second/seed-1": "failed",
    }  # fmt: skip
    longer = cells(FILE.replace("env_steps: 700", "env_steps: 900"))["second/seed-0"]
    assert longer.state == "stopped"
    run = str(longer.run.path)
    assert longer.arguments(inline=True) == ["train", "--run", run, "--train.env_steps=900", "--inline"]
    with pytest.raises(UserError, match=r"first/seed-0 .*model.depth: 8 → 16.*--out"):
        cells(FILE.replace("depth: 8", "depth: 16"))


def test_a_cell_takes_cores_for_its_threads_and_actors() -> None:
    """GPUs where there are any; what the file says comes first."""
    settings = resolve(["small"], [("actors.count", "3"), ("learner.threads", "2"), ("replay.cache_gb", "0")])
    need = Need.of(settings, inline=False, has_gpus=False, said={})
    assert (need.cores, need.gpus, need.threads) == (5, 0, 2)
    assert need.memory == pytest.approx(6 * 5e8 + 8e8)  # driver, learner, three actors, replay; Ray
    assert Need.of(settings, inline=True, has_gpus=False, said={}).cores == 2
    on_gpu = Need.of(settings, inline=False, has_gpus=True, said={"memory_gb": 3})
    assert (on_gpu.cores, on_gpu.gpus, on_gpu.memory) == (4, 1, 3e9)
    assert Need.of(settings, inline=False, has_gpus=False, said={"cores": 1, "gpus": 0}).cores == 1


def test_a_machine_has_room_by_cores_memory_and_gpus() -> None:
    """One cell always runs, however big it is."""
    machine = Machine(cores=4, memory=8e9, gpus=("0", "1"))
    small, big = Need(2, 3e9, 0, 1), Need(8, 64e9, 0, 1)
    assert machine.has_room(big, [])
    assert machine.has_room(small, [small])
    assert not machine.has_room(small, [small, small]), "of cores there are 4"
    assert not machine.has_room(Need(1, 6e9, 0, 1), [small]), "of memory 8 GB"
    gpu = Need(1, 1e9, 1, 1)
    assert machine.has_room(gpu, [gpu])
    assert not machine.has_room(gpu, [gpu, gpu])
    assert machine.free_gpus(gpu, ["0"]) == ["1"]


def test_the_time_that_a_table_takes() -> None:
    """Six cells of a core and 10 s on two cores take 30 s; one that needs both waits for them."""
    machine = Machine(cores=2, memory=-1.0, gpus=())
    one, two = Need(1, 1e9, 0, 1), Need(2, 1e9, 0, 1)
    assert dry.makespan([one] * 6, [10.0] * 6, machine, None) == 30.0
    assert dry.makespan([one, two, one], [10.0, 5.0, 4.0], machine, None) == 15.0
    assert dry.makespan([one] * 6, [10.0] * 6, machine, 1) == 60.0
    assert dry.makespan([one] * 2, [0.0, 7.0], machine, None) == 7.0


def test_the_time_left_is_what_runs_and_what_waits() -> None:
    """Unknown while any of it is."""
    assert time_left([10.0, 20.0], [30.0, 30.0]) == 45.0
    assert time_left([10.0, 100.0], []) == 100.0
    assert time_left([None, 5.0], [30.0]) is None
    assert expected("a", {"a": [10.0, 20.0], "b": [90.0]}) == 15.0
    assert expected("c", {"a": [10.0, 20.0], "b": [90.0]}) == 40.0
    assert expected("c", {}) is None
    counters = {"env_steps": 50, "wanted/env_steps": 100, "updates": 0, "wanted/updates": 10}
    assert share_done(counters) == 0.25


def test_a_dry_run_shows_the_table_and_the_time_and_makes_nothing(
    stub: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variant is measured once."""
    measured = []
    monkeypatch.setattr(dry, "expected_seconds", lambda run, *_: measured.append(run.shown) or 60.0)
    assert main(["sweep", "table.yaml", "--dry-run", "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert len(measured) == 2
    assert "4 cells: 4 new" in printed
    assert "in all about 2:00 min" in printed
    assert printed.count("1 core, 1 GB") == 4
    assert not (stub / "runs").exists()


@pytest.mark.slow
def test_a_real_sweep_of_two_cells(tmp_path: Path) -> None:
    """Trained in one process each, they end with evaluations that compare draws."""
    (tmp_path / "tiny.yaml").write_text(
        "presets: [dreamer_v3, debug]\n"
        "settings:\n"
        "  env: {id: CartPole-v1}\n"
        "  train: {env_steps: 160, prefill: 64, ratio: 1.0}\n"
        "  records: {evaluate_every: 64, evaluation_steps: 20, picture_every: 1000}\n"
        "variants: {narrow: {}, wide: {settings: {model: {deterministic: 64}}}}\n"
        "inline: true\n"
    )
    command = Command(tmp_path, "sweep", "tiny.yaml", "--jobs", "2", OMP_NUM_THREADS="1")
    assert command.end(2 * PATIENCE_S) == 0, command.out + command.err
    assert "2 cells: 2 complete" in command.out
    assert "compare      dreamfleet compare" in command.out
    assert main(["compare", str(tmp_path / "runs/tiny"), "--against", "narrow"]) == 0
    data = json.loads((tmp_path / "runs/tiny/comparison.json").read_text())
    assert [group["name"] for group in data["tasks"][0]["groups"]] == ["narrow", "wide"]
    assert data["notes"] == []
