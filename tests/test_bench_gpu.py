"""The GPU benchmark: parts that fail do not keep the others from the page; and a dry run of all that it measures."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dreamfleet.common.settings.resolve import resolve
from dreamfleet.learner.updater import Updater
from tests.bench import central
from tests.bench.gpu import __main__ as command_line
from tests.bench.gpu import devices, learning, parity, speed, trains, trial
from tests.bench.gpu.findings import Findings, Recorder, read_findings
from tests.bench.gpu.job import Job
from tests.bench.gpu.page import Page, Result
from tests.bench.gpu.schedule import NAMED, PARTS, Part, run_parts
from tests.bench.report import Row

ROOT = Path(__file__).resolve().parents[1]
PYTHON_PATH = os.pathsep.join([str(ROOT), str(ROOT / ".pkg")])
FAULTY = "tests.support.faulty_part"


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """Return an empty page."""
    return Page(tmp_path, "gpu-2026-01-02", "python -m tests.bench.gpu", "0123abc")


def run(page: Page, seconds: float, *arguments: str) -> dict[str, Result]:
    """Run faulty parts in the places of real ones; return their results by what they were told to do."""
    names = [part.name for part in PARTS if part.name != "r2dreamer"]
    parts = [Part(name, 10, FAULTY, argument) for name, argument in zip(names, arguments, strict=False)]
    scratch = page.path.parent / "scratch"
    scratch.mkdir()
    failed = run_parts(parts, page, scratch, time.monotonic() + seconds, dry=True, r2dreamer=None)
    results = {part.argument: page._results[part.name] for part in parts}
    assert failed == sum(result.status not in ("done", "skipped") for result in results.values())
    return results


def is_alive(process: int) -> bool:
    """Return whether there is such a process, other than as one that has ended and was not waited for."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


# Parts that end otherwise ---------------------------------------------------------------------------------------------


def test_a_part_that_fails_says_so_and_the_next_one_runs(page: Page) -> None:
    """Also one that is killed, or exits by itself; what each had found before stays."""
    results = run(page, 120, "raises", "killed", "exits", "skips", "whole")
    assert {name: result.status for name, result in results.items()} == {
        "raises": "failed", "killed": "killed", "exits": "failed", "skips": "skipped", "whole": "done"
    }  # fmt: skip
    assert results["raises"].reason == "ValueError: no such kernel"
    assert results["killed"].reason == "by signal SIGKILL"
    assert results["exits"].reason == "SystemExit: 7"
    assert results["skips"].reason == "nothing to do it with"
    text = page.path.read_text()
    assert "| machine | **failed**: ValueError: no such kernel |" in text
    assert text.count("| 12m | ") == 5
    assert 'raise ValueError("no such kernel")' in text, "its last lines"
    assert "| within 1.5 times | 2.1 | **no** |" in text
    assert text.count("It is measured in no way at all.") == 1


@pytest.mark.long
def test_a_part_that_hangs_is_ended_with_what_it_started(page: Page) -> None:
    """Within the time for all; the part after it has what is left."""
    begun = time.monotonic()
    results = run(page, 33, "hangs", "deaf", "whole")
    assert time.monotonic() - begun < 40
    assert [result.status for result in results.values()] == ["cut", "cut", "done"]
    assert "it was not done after 8 s" in results["hangs"].reason
    (note,) = results["hangs"].findings.notes
    assert not is_alive(int(note.removeprefix("started ")))


def test_what_the_time_does_not_suffice_for_is_not_begun(page: Page) -> None:
    """And the page says so."""
    results = run(page, 5, "whole")
    assert results["whole"].status == "not begun"
    assert "| machine | **not begun**: 5 s were left for all parts from here on |" in page.path.read_text()


def test_figures_go_on_to_later_parts(page: Page) -> None:
    """As the rate of the card to the parts that compare with it."""
    results = run(page, 60, "first", "second")
    rows = [result.findings.tables["what came first"][1] for result in results.values()]
    assert rows == [["12m", "1.5 | more"], ["12m", "16.25 | more"]]


# The page -------------------------------------------------------------------------------------------------------------


def test_the_page_is_there_while_a_part_is_under_way(page: Page) -> None:
    """Whoever is cut then has what was found, on the page and as JSON; results of the day are kept."""
    page.put("machine", Result("done", findings=Findings(facts={"GPU": "a card"}, figures={"rate": 1.0})))
    page.put("eager", Result("under way", findings=Findings(tables={"updates": [["size"], ["12m"]]})))
    assert "**under way**" in page.path.read_text()
    later = Page(page.path.parent, "gpu-2026-01-02", "python -m tests.bench.gpu --parts eager", "4567def")
    later.put("eager", Result("done"))
    text = later.path.read_text()
    assert "* GPU: a card" in text
    assert ", commit 0123abc |" in text, "the part that was measured before"
    assert later.figures() == {"rate": 1.0}
    assert json.loads(later.path.with_suffix(".json").read_text())["machine"]["status"] == "done"


def test_a_cell_keeps_to_its_cell(page: Page) -> None:
    """Whatever an error says."""
    page.put("eager", Result("failed", "a | b\nc"))
    assert "| eager | **failed**: a \\| b c | 0 |" in page.path.read_text()


# The parts ------------------------------------------------------------------------------------------------------------


def measure_dry(name: str, folder: Path) -> Findings:
    """Measure a part in this process, in tiny."""
    part = next(part for part in (*PARTS, *NAMED) if part.name == name)
    recorder = Recorder(folder / "found.json")
    figures = {"product bfloat16 FLOP/s": 1e9, "FLOP 12m": 1e6, "FLOP 200m": 1e6}
    job = Job(folder, "gpu", time.monotonic() + 300, True, figures, argument=part.argument)
    module = importlib.import_module(part.module)
    recorder.method(module.METHOD)
    module.measure(job, recorder)
    found = read_findings(folder / "found.json")
    assert found == recorder.findings
    assert found.method
    return found


def test_the_machine_is_described(tmp_path: Path) -> None:
    """With rates of products, copies and launches."""
    found = measure_dry("machine", tmp_path)
    assert found.facts["GPU"]
    assert found.figures["product bfloat16 FLOP/s"] > 0
    assert len(found.tables["what the card can do"]) >= 5


@pytest.mark.parametrize("way", ["eager", "captured"])
def test_every_size_has_its_row(way: str, tmp_path: Path) -> None:
    """With what is aimed at where that is measured."""
    found = measure_dry(way, tmp_path)
    ((_, *rows),) = found.tables.values()
    assert [row[0] for row in rows] == ["12m", "200m"]
    assert all(float(row[2].removesuffix(" ms")) > 0 for row in rows)
    assert bool(found.aims) == (way == "captured")


def test_kernels_are_listed(tmp_path: Path) -> None:
    """The longest first, of eager and captured updates."""
    found = measure_dry("profile", tmp_path)
    for _, *rows in found.tables.values():
        milliseconds = [float(row[0]) for row in rows]
        assert milliseconds == sorted(milliseconds, reverse=True)
        assert len(rows) == 30
    assert len(found.tables) == 2


def test_ways_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager, captured and compiled, and what a learner does by itself; the tests that need a GPU have a test below."""
    monkeypatch.setattr(parity, "_run_tests", lambda _: [])
    for name in ("prepare", "check_way"):  # as if they had been captured and compiled
        monkeypatch.setattr(trial.Trial, name, lambda _: None)
    found = measure_dry("parity", tmp_path)
    ((_, *rows),) = found.tables.values()
    assert [row[1] for row in rows] == ["eager, again", "captured", "compiled"]
    assert rows[0][2:5] == ["0.0e+00"] * 3
    assert any(note.startswith("Left to itself") for note in found.notes)


def test_processes_are_measured_as_by_the_other_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are the part's."""
    rows = [Row("central", "size_1m, 1 actor", "10 steps/s", "age 3 ms"), Row("central", "size_1m, 16 actors", "9")]
    monkeypatch.setattr(central, "measure", lambda bench: rows if bench.quick else [])
    found = measure_dry("central", tmp_path)
    assert found.tables["central"][1:] == [
        ["size_1m, 1 actor", "10 steps/s", "age 3 ms"],
        ["size_1m, 16 actors", "9", ""],
    ]


@pytest.mark.parametrize(("part", "title"), [("presets", "updates of"), ("counted", "operations of")])
def test_presets_have_their_rows(part: str, title: str, tmp_path: Path) -> None:
    """By their names."""
    found = measure_dry(part, tmp_path)
    ((name, rows),) = found.tables.items()
    assert name.startswith(title)
    assert len(rows) > 1


@pytest.mark.long
def test_short_runs_are_made(tmp_path: Path) -> None:
    """By the command line, in a process of their own."""
    found = measure_dry("trains", tmp_path)
    (_, row) = found.tables["short runs"]
    assert row[1] == "in order"
    assert int(row[4]) > 0


@pytest.mark.long
def test_a_run_is_drawn(tmp_path: Path) -> None:
    """Its curve and what it imagines lie beside the page."""
    found = measure_dry("learning", tmp_path)
    assert {"gpu-loss.png", "gpu-dream.png"} <= set(found.pictures)
    assert all((tmp_path / name).exists() for name in found.pictures)
    assert len(found.tables["CartPole from its four numbers"]) > 1


# What only a GPU does, on one that is pretended ----------------------------------------------------------------------


class PretendedEvent:
    """An event that comes at once."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing
        self.at: float | None = None

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: PretendedEvent) -> float:
        assert self.enable_timing
        assert self.at is not None
        assert other.at is not None
        return 1000 * (other.at - self.at)


class PretendedGraph:
    """A graph that repeats nothing."""

    def replay(self) -> None:
        """Do nothing."""


@pytest.fixture
def _pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the parts take the CPU for a GPU, and stand in for what they ask of `torch.cuda`."""
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    stand_ins = {
        "Event": PretendedEvent,
        "CUDAGraph": PretendedGraph,
        "graph": nullcontext,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: 3 * 2**30,
        "memory_allocated": lambda: 0,
        "get_device_properties": lambda number: properties,
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(devices, "is_gpu", lambda device: True)


@pytest.mark.usefixtures("_pretended_gpu")
def test_the_card_is_described(tmp_path: Path) -> None:
    """Also where no driver answers."""
    found = measure_dry("machine", tmp_path)
    assert found.facts["card"].startswith("capability 9.0, 132 multiprocessors, CUDA ")
    assert [row[0] for row in found.tables["what the card can do"]][-1] == "a small kernel, in a graph"


@pytest.mark.usefixtures("_pretended_gpu")
def test_updates_are_timed_by_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each row says how full the memory was."""
    monkeypatch.setattr(trial, "profile_updates", lambda *_: [trial.Kernel("one", 10.0, 2.0)])
    monkeypatch.setattr(speed, "profile_updates", trial.profile_updates)
    found = measure_dry("eager", tmp_path)
    (_, row, _) = found.tables["updates of dreamer_v3, eager"]
    assert row[4:6] == ["2 ms", "10"]
    assert row[7] == "3.00 GiB"


@pytest.mark.usefixtures("_pretended_gpu")
@pytest.mark.parametrize("error", [None, "torch.compile failed: no such kernel"])
def test_updates_that_are_made_otherwise_are_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str | None
) -> None:
    """A learner that gives way to eager updates says why in its log; that is what the page has."""

    def give_way(updater: Updater, batch: object) -> None:
        if error is not None:
            logging.getLogger("dreamfleet.learner").warning(error)

    monkeypatch.setattr(Updater, "prepare", give_way)
    monkeypatch.setattr(Updater, "mode", "eager")
    monkeypatch.setattr(Updater, "update", lambda *_: SimpleNamespace(sound=True))
    trial.WARNINGS.take()
    with pytest.raises(RuntimeError, match="2 of 2 sizes failed"):
        measure_dry("captured", tmp_path)
    found = read_findings(tmp_path / "found.json")
    assert found.tables == {}
    assert found.notes[0].startswith("12m: updates are eager in place of captured: ")
    assert (error or "the log does not say why") in found.notes[0]


def test_tests_that_need_a_gpu_are_taken_down(tmp_path: Path) -> None:
    """As they end, with why one was skipped or failed; here on tests of its own."""
    (tmp_path / "test_own.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        "def test_fails(): raise ValueError('too far')\n"
        "@pytest.mark.skip(reason='no GPU')\ndef test_is_skipped(): pass\n"
    )
    program = (
        "import pytest, sys; from pathlib import Path; from tests.bench.gpu import parity;"
        "from tests.bench.gpu.findings import Recorder;"
        "outcomes = parity._Outcomes(Recorder(Path(sys.argv[1])));"
        "pytest.main(['-q', '-c', '/dev/null', '--rootdir', sys.argv[2], sys.argv[2]], plugins=[outcomes]);"
        "print(outcomes.failed)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "found.json"), str(tmp_path)]
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": PYTHON_PATH}, check=True, capture_output=True
    )
    assert done.stdout.decode().splitlines()[-1] == "['test_fails']"
    (_, *rows) = read_findings(tmp_path / "found.json").tables["tests that need a GPU"]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("test_own.py: test_passes", "passed", ""),
        ("test_own.py: test_fails", "failed", "ValueError: too far"),
        ("test_own.py: test_is_skipped", "skipped", "Skipped: no GPU"),
    ]


def test_real_runs_have_settings_that_fit() -> None:
    """What is only run on a GPU: presets and flags are resolved here."""
    commands = [
        [*(f for p in run.presets for f in ("--preset", p)), *run.flags]
        for run in trains._runs(dry=False, has_ray=True)
    ]
    job = Job(Path(), "", 0.0)
    commands += [learning._flags(job, task, inline=False) for task in learning.TASKS]
    for words in commands:
        pairs = list(zip(words[::2], words[1::2], strict=True))
        presets = [value for flag, value in pairs if flag == "--preset"]
        resolve(presets, [(flag.removeprefix("--"), value) for flag, value in pairs if flag != "--preset"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_all_is_skipped_but_in_a_dry_run(tmp_path: Path) -> None:
    """The machine is described all the same."""
    assert command_line.main(["--parts", "machine", "parity", "--minutes", "10", "--out", str(tmp_path)]) == 0
    (text,) = (path.read_text() for path in tmp_path.glob("gpu-*.md"))
    assert "| machine | **skipped**: torch finds no GPU here |" in text
    assert "| parity | **skipped**: torch finds no GPU here |" in text
    assert "* GPU: none" in text


def test_names_of_parts_are_unlike() -> None:
    """The page and its figures go by them; each has a module and a share."""
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert all(importlib.util.find_spec(part.module) and part.share > 0 for part in (*PARTS, *NAMED))
    assert PARTS[-1].name == "learning", "it takes what the others leave"


def test_the_task_is_one_that_works_here(tmp_path: Path) -> None:
    """A task with pictures is tried in a process of its own, and taken if its environment can be made."""
    pytest.importorskip("Box2D")
    pytest.importorskip("pygame")
    recorder = Recorder(tmp_path / "findings.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "TASKS", tuple(task for task in learning.TASKS if "carracing" in task.flags))
        task = learning._choose(recorder)
    assert task.name == "CarRacing from pictures", recorder.findings.notes
