"""`dreamfleet status`: what is shown of runs in every state, from their files alone."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

from dreamfleet.common import process_log
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.settings.resolve import resolve, write_settings
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy import state as state_module
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.monitoring.run_status import read_run_status
from dreamfleet.deploy.run.prepare_training import prepare_training
from dreamfleet.deploy.run.session import open_session
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import STATE_NAME, StateWriter, process_start, read_state

ROOT = Path(__file__).resolve().parents[2]
COUNTERS = {
    "env_steps": 6000, "updates": 15, "wanted/env_steps": 10_000, "wanted/updates": 100, "wanted/ratio": 32.0,
    "fleet/env_steps_per_s": 100.0, "fleet/updates_per_s": 1.0, "fleet/ratio": 31.9, "fleet/actors": 3.0,
    "fleet/actors_wanted": 4.0, "fleet/restarts": 2.0, "fleet/actors_wait_fraction": 0.8,
    "fleet/learner_wait_fraction": 0.1, "seconds_left": 85.0, "loss/total": float("nan"),
}  # fmt: skip
ROW = {
    "time": 0.0, "env_steps": 5000, "updates": 9, "loss/total": 4.5, "staleness/mean": 3.0, "staleness/max": 7.0,
    "replay/steps": 5000.0, "replay/bytes_stored": 1e6, "replay/bytes_raw": 2e7, "replay/shards": 2.0,
    "fleet/env_steps_per_s": 50.0, "fleet/updates_per_s": 0.5, "episode/return": -12.5, "episode/length": 100.0,
}  # fmt: skip
DRIVER = """
import sys, time
from pathlib import Path
from dreamfleet.deploy.state import StateWriter
with StateWriter(Path(sys.argv[1]), "train", 10.0) as state:
    state.beat({})
    print("beats", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Return a run that has just been made."""
    run = RunDirectory(tmp_path / "runs" / "mine")
    run.create()
    sections: dict[str, Any] = {"train": {"env_steps": 10_000, "prefill": 5000}, "env": {"id": "Pendulum-v1"}}
    write_settings(Settings.model_validate(sections), run.config_file)
    return run


def add_row(run: RunDirectory, **changes: Any) -> None:
    """Append a row to metrics.jsonl."""
    with run.metrics_file.open("a") as file:
        file.write(json.dumps(ROW | {"time": time.time()} | changes) + "\n")


def add_checkpoint(run: RunDirectory, updates: int, held_out_loss: float | None, **more: float) -> None:
    """Write the facts of a checkpoint."""
    facts = {"format": 1, "updates": updates, "env_steps": 100 * updates, "held_out_loss": held_out_loss, "bytes": 8}
    facts |= more
    (run.checkpoints / f"checkpoint-{updates:09d}.json").write_text(json.dumps(facts))
    (run.checkpoints / f"checkpoint-{updates:09d}.pt").write_bytes(b"8 bytes!")


def shown(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the command prints."""
    assert main(["status", str(run.path)]) == 0
    return capsys.readouterr().out


# What is shown ----------------------------------------------------------------------------------------------------


def test_a_running_run_is_shown_with_all_its_figures(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    """Newest from state.json, and what that lacks from the last rows, the checkpoints and the disk."""
    with StateWriter(run.path, "train", 10.0) as state:
        add_row(run)
        state._due = 0.0
        state.beat(COUNTERS)
        add_checkpoint(run, 5, 3.5)
        add_checkpoint(run, 9, 3.75)
        (run.pictures / "prediction-0000009.png").write_bytes(b"png")
        logging.getLogger("dreamfleet").warning("actor 1 failed:\nTraceback\nRuntimeError: no simulator\n")
        text = shown(run, capsys)
    assert f"run {run.path} of Pendulum-v1: running" in text
    for words in (
        f"on host {socket.gethostname()} as process {os.getpid()}",
        "6,000 of 10,000 env steps (60%), 15 of 100 updates (15%), 1:25 min left",
        "31.9 of 32",
        "100.0 env steps/s, 1.00 updates/s",
        "actors 80% of the time, learner 10%: the learner is what the actors wait for",
        "loss         4.5",
        "mean 3, most 7",
        "return -12.5, length 100",
        "3 of 4 alive",
        "5,000 steps, 1 MB of 4 GB, 20.0 times smaller than raw, 2 shards",
        "at update 9, 0 s ago, held-out loss 3.75",
        "at update 5, held-out loss 3.5",
        "1 in ",
        "warning: actor 1 failed: … RuntimeError: no simulator",
        "prediction-0000009.png",
    ):
        assert words in text, words


def test_evaluations_are_shown_and_decide_which_checkpoint_is_best(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last one found, and the checkpoint of the highest return, whatever another's held-out loss."""
    add_checkpoint(run, 5, 3.75, evaluation_return=90.0)
    add_checkpoint(run, 7, 3.25, evaluation_return=70.0)
    add_checkpoint(run, 9, 1.5)
    with run.evaluations_file.open("a") as file:
        for env_steps, updates, mean in ((1500, 5, 90.0), (2500, 7, 70.0)):
            found = {"env_steps": env_steps, "updates": updates, "mean": mean, "std": 1.5, "returns": [mean, mean]}
            file.write(json.dumps(found) + "\n")
    text = shown(run, capsys)
    assert "evaluation   return 70 ± 1.5 over 2 episodes, at 2,500 env steps, update 7\n" in text
    assert "best         at update 5, evaluation return 90\n" in text
    assert re.search("checkpoint   at update 9, .* ago, held-out loss 1.5\n", text)


@pytest.mark.parametrize(
    ("actors", "learner", "said"),
    [(0.05, 0.7, ": the actors are what the learner waits for"), (0.9, 0.4, ""), (0.1, 0.2, "")],
)
def test_a_side_is_called_slow_only_if_it_hardly_waits_itself(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], actors: float, learner: float, said: str
) -> None:
    """Where both wait, as when environments fail again and again, neither is what the other lacks."""
    with StateWriter(run.path, "train", 10.0) as state:
        state.beat({"fleet/actors_wait_fraction": actors, "fleet/learner_wait_fraction": learner})
    assert f"actors {actors:.0%} of the time, learner {learner:.0%}{said}\n" in shown(run, capsys)


def test_json_holds_the_same_and_no_numbers_that_json_lacks(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """One object, strict JSON, for other programs."""
    add_row(run, **{"loss/total": None})
    with StateWriter(run.path, "collect", 10.0) as state:
        state.beat(COUNTERS)
    assert main(["status", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["kind"], found["state"], found["figures"]["env_steps"]) == ("collect", "finished", 6000)
    assert "loss/total" not in found["figures"]
    assert found["disk_bytes"]["metrics.jsonl"] > 100


@pytest.mark.parametrize(
    ("end", "state", "reason"),
    [
        (None, "finished", ""),
        (RunFailedError("no actor is left"), "failed", "no actor is left"),
        (UserError("the checkpoint does not fit"), "failed", "the checkpoint does not fit"),
        (KeyboardInterrupt(), "stopped", "Ctrl-C"),
    ],
)
def test_every_end_is_written_down(run: RunDirectory, end: BaseException | None, state: str, reason: str) -> None:
    """How the block was left is what the file says, with the last counters, also those that were not due."""
    with (
        pytest.raises(type(end)) if end else nullcontext(),
        StateWriter(run.path, "train", 10.0) as writer,
    ):
        writer.beat({"env_steps": 1})
        writer.beat({"env_steps": 2})
        if end:
            raise end
    found = read_run_status(run)
    assert (found.state, found.reason, found.figures["env_steps"]) == (state, reason, 2)
    assert found.complaints.count == (state == "failed")


def test_warnings_are_written_down_as_they_are_logged(run: RunDirectory) -> None:
    """All are counted and the last three kept, at once, for the process may be killed next; afterwards none is."""
    log = logging.getLogger("dreamfleet.some.part")
    with StateWriter(run.path, "train", 10.0) as state:
        state.beat(COUNTERS)
        for number in range(5):
            log.warning("warning %d", number)
        log.info("nothing to warn of")
        found = read_run_status(run).complaints
    log.error("after the end")
    assert found.count == 5
    assert [(entry.level, entry.text) for entry in found.last] == [("warning", f"warning {n}") for n in (2, 3, 4)]
    assert read_run_status(run).complaints == found


def test_warnings_of_a_run_s_beginning_are_kept_too(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of settings and environment are logged before there are any workers."""
    flags = [("env.id", "CartPole-v1"), ("env.grey", "true"), ("env.image_size", "64")]
    run.config_file.unlink()
    monkeypatch.setattr(process_log, "_logged_once", {})  # by other tests, which would be logged again
    spec = prepare_training(run, resolve(flags=flags), inline=True, address=None)
    with open_session(spec):
        pass
    found = read_run_status(run).complaints
    assert found.count
    assert any(entry.text.startswith("without effect: env.image_size 64") for entry in found.last)


def test_a_stop_by_a_signal_is_shown_as_such(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    """Not finished, and how to go on."""
    with StateWriter(run.path, "train", 10.0) as state:
        state.stopped("by SIGTERM")
    text = shown(run, capsys)
    assert f"stopped; `dreamfleet train --run {run.path}` resumes it" in text
    assert "by SIGTERM" in text


# Killed -----------------------------------------------------------------------------------------------------------


def test_a_driver_killed_here_is_found_at_once(run: RunDirectory) -> None:
    """SIGKILL leaves a file that says running; the process is gone, however young the file is."""
    variables = os.environ | {"PYTHONPATH": str(ROOT / ".pkg")}
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(run.path)], stdout=subprocess.PIPE, env=variables)  # noqa: S603
    assert process.stdout is not None
    process.stdout.readline()
    assert read_run_status(run).state == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = read_run_status(run)
    assert found.state == "killed"
    assert found.reason == f"its process {process.pid} is gone"


def test_a_process_with_a_dead_one_s_number_is_not_taken_for_it(run: RunDirectory) -> None:
    """The number alone would be ours; when the process started tells them apart."""
    with StateWriter(run.path, "train", 10.0):
        state = read_state(run.path)
    assert state
    assert state.process_start
    assert state.reason_killed(time.time()) == ""
    assert state.model_copy(update={"process_start": state.process_start - 1}).reason_killed(time.time())
    assert process_start(2**22 + 1) is None


def test_a_driver_elsewhere_is_taken_for_killed_once_it_is_silent(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another host the process cannot be seen: 60 s of silence, or six of its intervals, decide."""
    with StateWriter(run.path, "train", 20.0):
        state = read_state(run.path)
    assert state
    often = state.model_copy(update={"pause_s": 5.0})
    monkeypatch.setattr(state_module, "process_space", lambda: "another boot")
    assert state.reason_killed(state.updated_unix + 119) == ""
    assert "wrote nothing for 121 s" in state.reason_killed(state.updated_unix + 121)
    assert often.reason_killed(state.updated_unix + 59) == ""
    assert often.reason_killed(state.updated_unix + 61)
    assert state.reason_killed(state.updated_unix - 30) == ""  # a clock that is behind


# Without state.json, or with a bad one ----------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [None, b"", b'{"format": 1, "state": "runn', b'{"format": 99}', b"[1]"])
def test_without_a_whole_state_file_the_other_files_are_read(run: RunDirectory, torn: bytes | None) -> None:
    """Rows and facts give the same figures; their age says whether it may be running."""
    if torn is not None:
        (run.path / STATE_NAME).write_bytes(torn)
    add_checkpoint(run, 4, None)
    add_row(run, updates=8)
    with run.metrics_file.open("a") as file:
        file.write('{"time": 12, "env_')
    found = read_run_status(run)
    assert (found.state, found.kind) == ("running", "train")
    assert (found.figures["updates"], found.figures["wanted/env_steps"]) == (8, 10_000)
    assert found.figures["seconds_left"] == max((10_000 - 5000) / 50, (64 - 8) / 0.5)
    os.utime(run.metrics_file, (time.time() - 500, time.time() - 500))
    assert read_run_status(run).state == "unknown"


def test_an_older_run_shows_what_there_is_and_says_that_the_rest_is_not_known(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log's prose is not read, whatever it says; a checkpoint's facts and the last rows are."""
    run.log_file.write_text("2026-11-22T20:00:00Z ERROR the run failed: long ago\n")
    add_checkpoint(run, 9, 3.75, dreamfleet="0.0.9")
    add_row(run)
    for file in (run.metrics_file, run.log_file):
        os.utime(file, (time.time() - 500, time.time() - 500))
    found = read_run_status(run)
    assert (found.state, found.kind, found.dreamfleet, found.started_unix) == ("unknown", "train", "0.0.9", None)
    assert (found.complaints.count, found.complaints.last) == (None, [])
    text = shown(run, capsys)
    assert "there is no state.json: nothing is known of when it began and how it ended" in text
    assert "5,000 of 10,000 env steps" in text
    assert "warnings     not known" in text


def test_a_state_file_of_an_earlier_version_is_read(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the warnings, which that version left to the log; fields of a later one are passed over."""
    with StateWriter(run.path, "train", 10.0) as state:
        state.beat(COUNTERS)
    written = json.loads((run.path / STATE_NAME).read_text())
    del written["complaints"], written["dreamfleet"]
    (run.path / STATE_NAME).write_text(json.dumps(written | {"of a later version": 1}))
    found = read_run_status(run)
    assert (found.state, found.figures["env_steps"], found.complaints.count) == ("finished", 6000, None)
    assert "warnings     not known" in shown(run, capsys)


def test_a_run_that_has_nothing_yet_is_no_fault(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty directory with settings: nothing is known, and that is said."""
    text = shown(run, capsys)
    assert "of unknown state" in text
    assert "0 of 10,000 env steps (0%)" in text


def test_settings_of_another_version_are_named_and_end_nothing(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures still come; what cannot be read is said."""
    run.config_file.write_text("train: {no_such_setting: 1}\n")
    add_row(run)
    text = shown(run, capsys)
    assert "no_such_setting" in text
    assert "5,000 env steps" in text


def test_a_checkpoint_newer_than_all_else_says_how_far_it_is(run: RunDirectory) -> None:
    """The state is written every few seconds, and a checkpoint in between is further."""
    with StateWriter(run.path, "train", 10.0) as state:
        state.beat(COUNTERS)
        state_file = run.path / STATE_NAME
        add_checkpoint(run, 44, None)
        later = json.loads(state_file.read_text())["counted_unix"] + 1
        os.utime(run.checkpoints / "checkpoint-000000044.json", (later, later))
    assert read_run_status(run).figures["updates"] == 44


def test_rates_of_an_earlier_start_are_not_shown(run: RunDirectory) -> None:
    """A run that was just resumed has steps and no rates yet."""
    add_row(run, time=time.time() - 1000)
    with StateWriter(run.path, "train", 10.0):
        figures = read_run_status(run).figures
    assert figures["replay/steps"] == 5000
    assert "fleet/env_steps_per_s" not in figures


# What it must not do ----------------------------------------------------------------------------------------------


def test_reading_writes_and_locks_nothing(run: RunDirectory) -> None:
    """A directory that nobody may write to is read as any other, and nothing in it changes."""
    add_row(run)
    add_checkpoint(run, 4, 2.0)
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}
    read_run_status(run)
    assert {file: file.stat().st_mtime_ns for file in run.path.rglob("*")} == before


def test_neither_ray_nor_torch_is_imported(run: RunDirectory) -> None:
    """The command is to be quick on any machine."""
    code = (
        "import sys; from dreamfleet.deploy.command_line import main; main(sys.argv[1:]); "
        "assert not {'ray', 'torch', 'cv2', 'gymnasium'} & set(sys.modules), 'imported'"
    )
    variables = os.environ | {"PYTHONPATH": str(ROOT / ".pkg")}
    subprocess.run([sys.executable, "-c", code, "status", str(run.path)], check=True, env=variables, timeout=PATIENCE_S)  # noqa: S603


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("runs/mina", "runs/mina does not exist. Did you mean '.*runs/mine'?"),
        ("runs", "runs is neither a run nor a dataset: it holds no config.yaml. The newest run in it is .*mine"),
        ("", "neither a run nor a dataset: it holds no config.yaml. The newest run in it is .*runs/mine"),
        ("runs/mine/config.yaml", "config.yaml is a file; give the directory"),
    ],
)
def test_what_is_no_run_gets_a_sentence(
    run: RunDirectory, name: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The value, and what would be right."""
    assert main(["status", str(run.path.parent.parent / name)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(sentence.replace("?", r"\?"), error), error


# What is written ----------------------------------------------------------------------------------------------------


def test_a_state_file_that_cannot_be_written_is_warned_of_once(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk or a lost mount ends no training for the sake of its status."""
    (run.path / (STATE_NAME + ".tmp")).mkdir()
    with StateWriter(run.path, "train", 10.0) as state:
        state._due = 0.0
        state.beat({})
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1
