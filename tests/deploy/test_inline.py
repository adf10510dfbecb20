"""Whole runs in one process, without Ray: repeatable to the bit, and resumed from whatever a crash leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty_environment
import numpy as np
import pytest
import torch
from counted_streams import faults_of, read_streams
from small_runs import small_settings

from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.fleet_state import Callbacks, FleetState
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.deploy.run.runs import train
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import read_state
from dreamfleet.deploy.workers.inline_pool import InlinePool
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.learner.learner import Learner
from dreamfleet.learner.reports import TrainReport
from dreamfleet.replay.manifest import Manifest
from dreamfleet.replay.report import verify
from dreamfleet.replay.segment import segment_paths

STEPS = 403
LENGTH = 20


def tiny_settings(seed: int = 3, env_steps: int = STEPS, **kwargs: Any) -> Settings:
    """Return settings of a run of a second or two; `kwargs` go to the environment."""
    settings = small_settings(
        env={"id": "faulty_environment:make", "kwargs": {"length": LENGTH, **kwargs}, "image_size": 0},
        model={"vector_units": 8, "vector_layers": 1},
        actors={"count": 2, "environments": 2, "steps_per_order": 8},
        replay={"capacity_gb": 0.1, "held_out_every": 5},
        learner={"updates_per_order": 4, "publish_every": 8},
        train={"env_steps": env_steps, "prefill": 100, "ratio": 4.0},
        records={"checkpoint_every": 10, "picture_every": 1000},
    )
    return settings.model_copy(update={"seed": seed})


def run(path: Path, settings: Settings) -> int:
    return train(settings, directory=path, inline=True).exit_code


def pictures(**kwargs: Any) -> dict[str, Any]:
    """Return the arguments of an environment that shows pictures alone."""
    return {"picture": True, "image": 16, **kwargs}


def newest_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    found = CheckpointStore(RunDirectory(path).checkpoints, kept=1).load_newest()
    assert found is not None
    return found


def tensors(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return all tensors and numbers of a checkpoint's state by their place in it."""
    if isinstance(state, dict):
        state = list(state.items())
    elif isinstance(state, list | tuple):
        state = list(enumerate(state))
    else:
        return {name: torch.as_tensor(state)} if isinstance(state, torch.Tensor | int | float) else {}
    return {place: tensor for key, value in state for place, tensor in tensors(value, f"{name}/{key}").items()}


def files_of(path: Path) -> dict[str, bytes]:
    """Return the contents of a run's checkpoints and replay."""
    run = RunDirectory(path)
    folders = (run.checkpoints, run.replay / "shard-0")
    return {file.name: file.read_bytes() for folder in folders for file in folder.iterdir()}


def assert_complete(path: Path, settings: Settings) -> None:
    """Assert that a run made exactly the steps and updates that its settings ask for, and that all are stored."""
    ratio = TrainRatio.of(settings)
    state, facts = newest_checkpoint(path)
    assert state["updates"] == facts["updates"] == ratio.updates
    assert facts["env_steps"] == settings.train.env_steps
    last = json.loads(RunDirectory(path).metrics_file.read_text().splitlines()[-1])
    assert (last["env_steps"], last["updates"]) == (settings.train.env_steps, ratio.updates)
    assert verify(RunDirectory(path).replay) == []
    assert stored_steps(path) == settings.train.env_steps


def stored_steps(path: Path) -> int:
    run = RunDirectory(path)
    streams = read_streams(run.replay, StepFormat(run.spaces()))
    if "count" in next(iter(streams.values())):
        assert [fault for steps in streams.values() for fault in faults_of(steps, LENGTH)] == []
    return sum(len(steps["reward"]) for steps in streams.values())


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that went to its end; tests work on copies of it."""
    path = tmp_path_factory.mktemp("inline") / "run"
    assert run(path, tiny_settings(**pictures())) == 0
    return path


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_the_same_seed_gives_the_same_run(finished_run: Path, tmp_path: Path) -> None:
    """Parameters, optimiser and replay of two runs are equal to the bit, and those of another seed are not."""
    assert run(tmp_path / "again", tiny_settings(**pictures())) == 0
    assert run(tmp_path / "other", tiny_settings(seed=4, **pictures())) == 0
    first, again, other = (
        tensors(newest_checkpoint(path)[0]) for path in (finished_run, tmp_path / "again", tmp_path / "other")
    )
    assert first.keys() == again.keys()
    assert len(first) > 100
    assert [name for name in first if not torch.equal(first[name], again[name])] == []
    assert any(not torch.equal(first[name], other[name]) for name in first if name.startswith("/model"))
    stored = [[file.read_bytes() for file in segment_paths(path / "replay" / "shard-0")]
              for path in (finished_run, tmp_path / "again", tmp_path / "other")]  # fmt: skip
    assert stored[0] == stored[1] != stored[2]
    assert_complete(finished_run, tiny_settings(**pictures()))


@pytest.mark.parametrize(("signal_kind", "exit_code"), [("interrupt", 130), ("terminate", 143)])
def test_a_run_stopped_half_way_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_kind: str, exit_code: int
) -> None:
    """Ctrl-C or SIGTERM leaves a checkpoint of that moment; the resumed run ends with exact steps and updates."""
    monkeypatch.setattr(faulty_environment, "_SUFFERED", [])
    settings = tiny_settings(faults={signal_kind: 60}, claims=str(tmp_path))
    path = tmp_path / "run"
    assert run(path, settings) == exit_code
    _, stopped = newest_checkpoint(path)
    assert 0 < stopped["updates"] < TrainRatio.of(settings).updates
    assert stopped["updates"] <= TrainRatio.of(settings).updates_allowed(stopped["env_steps"])
    stored = stored_steps(path)
    assert stopped["env_steps"] <= stored < STEPS
    assert run(path, settings) == 0
    log = (path / "train.log").read_text()
    assert f"from the checkpoint of update {stopped['updates']}\n" in log
    assert f"replay: {stored} env steps" in log
    assert_complete(path, settings)


def test_actors_that_wait_their_turn_are_not_taken_for_hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process an actor's order grows old while the learner works, and is no sign of a fault."""
    settings, directory, now = tiny_settings(), RunDirectory(tmp_path / "run"), [0.0]
    train_quickly = Learner.train

    def train_slowly(learner: Learner, updates: int) -> TrainReport:
        now[0] += 100.0
        return train_quickly(learner, updates)

    monkeypatch.setattr(Learner, "train", train_slowly)
    spaces = probe_environment(settings.env)
    directory.create()
    directory.write(settings, spaces)
    with closing(InlinePool(settings, spaces, directory)) as pool:
        fleet = Fleet(pool, FleetConfig.of(settings), Ledger(TrainRatio.of(settings)), clock=lambda: now[0]).run()
    assert fleet.roster.restarts == 0
    assert now[0] > 600.0
    assert (fleet.ledger.env_steps, fleet.ledger.updates) == (STEPS, TrainRatio.of(settings).updates)


def test_signals_are_given_back_after_a_run(copy: Path) -> None:
    """After a run Ctrl-C does again what it did before it."""
    before = signal.getsignal(signal.SIGINT)
    assert run(copy, tiny_settings(**pictures())) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_may_be_started_from_any_thread(copy: Path) -> None:
    """A notebook's server may do so; signals are left to the main thread."""
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(run, copy, tiny_settings(**pictures())).result() == 0


def test_a_second_run_of_a_process_logs_its_own_environment(copy: Path, tmp_path: Path) -> None:
    """What is logged once, as the environment is tried, is logged once in each run; nothing of another one's is."""
    assert run(copy, tiny_settings(**pictures())) == 0
    assert run(tmp_path / "other", tiny_settings(env_steps=120)) == 0
    first, other = (RunDirectory(path).log_file.read_text() for path in (copy, tmp_path / "other"))
    of_pictures, of_vectors = (re.findall("observations: .*", log)[-1] for log in (first, other))
    assert of_pictures != of_vectors
    assert of_pictures not in other
    assert run(copy, tiny_settings(**pictures())) == 0
    start = RunDirectory(copy).log_file.read_text().rpartition("resuming")[2]
    assert start.count(of_pictures) == 1


def test_an_exception_of_a_callback_is_in_the_log_and_the_state(copy: Path) -> None:
    """The caller gets it too; what the run had is kept."""

    class Broken(Callbacks):
        def on_start(self, fleet: FleetState, decisions: list[str]) -> None:
            raise ZeroDivisionError("of a callback")

    before = files_of(copy)
    with pytest.raises(ZeroDivisionError):
        train(tiny_settings(**pictures()), directory=copy, callbacks=[Broken()], inline=True)
    log = RunDirectory(copy).log_file.read_text()
    assert "Traceback" in log
    assert "ZeroDivisionError: of a callback" in log
    state = read_state(copy)
    assert state
    assert (state.state, state.reason) == ("failed", "of a callback")
    assert files_of(copy).keys() >= before.keys()


def test_a_run_that_a_callback_stops_says_so(tmp_path: Path) -> None:
    """In the log and the state; it is no failure."""

    class Enough(Callbacks):
        def on_updates(self, fleet: FleetState, report: TrainReport) -> None:
            fleet.stop("it is enough")

    done = train(tiny_settings(**pictures()), directory=tmp_path / "run", callbacks=[Enough()], inline=True)
    assert (done.stopped, done.exit_code) == ("it is enough", 0)
    said = f"stopped at {done.env_steps} env steps and {done.updates} updates, by a callback: it is enough;"
    assert said in RunDirectory(tmp_path / "run").log_file.read_text()
    state = read_state(tmp_path / "run")
    assert state
    assert (state.state, state.reason) == ("stopped", "by a callback: it is enough")


def test_ctrl_c_during_the_summary_of_a_finished_run_is_no_stop(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is done and saved by then: the command's exit code and the state say so."""
    monkeypatch.setattr("dreamfleet.deploy.run.runs.summarise_training", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run(copy, tiny_settings(**pictures())) == 0
    state = read_state(copy)
    assert state
    assert state.state == "finished"


def test_a_run_killed_while_it_writes_its_settings_keeps_those_it_had(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced as a whole: half of one would resume the run with default settings, or not at all."""

    def die_half_way(settings: Settings, path: Path) -> None:
        path.write_text("seed: 7\n")
        raise SystemExit

    directory = RunDirectory(copy)
    before = directory.settings()
    monkeypatch.setattr("dreamfleet.deploy.run_directory.write_settings", die_half_way)
    with pytest.raises(SystemExit):
        directory.write(before, directory.spaces())
    assert directory.settings() == before


def test_resuming_a_finished_run_changes_nothing(copy: Path) -> None:
    """It says that the run is complete, and leaves checkpoints and replay as they are."""
    before = files_of(copy)
    assert run(copy, tiny_settings(**pictures())) == 0
    assert files_of(copy) == before
    assert "nothing is left to do" in (copy / "train.log").read_text()


def test_a_finished_run_goes_on_when_more_steps_are_wanted(copy: Path) -> None:
    """Raising `train.env_steps` continues a run, from the checkpoint before if the newest is damaged; the log tells."""
    updates = newest_checkpoint(copy)[1]["updates"]
    file = copy / "checkpoints" / f"checkpoint-{updates:09d}.pt"
    file.write_bytes(file.read_bytes()[:-100])
    before = newest_checkpoint(copy)[1]["updates"]
    assert before < updates
    settings = tiny_settings(env_steps=STEPS + 100, **pictures())
    assert run(copy, settings) == 0
    log = (copy / "train.log").read_text()
    assert f"WARNING skipping the checkpoint of update {updates}" in log
    assert f"from the checkpoint of update {before}\n" in log
    assert f"replay: {STEPS} env steps" in log
    assert f"train.env_steps: {STEPS} → {STEPS + 100}" in log
    assert_complete(copy, settings)


@pytest.mark.parametrize(
    ("name", "code"), [("train.log", 2), ("metrics.jsonl", 1), ("dream/dream.png", 0), ("dream/error.json", 0)]
)
def test_a_folder_where_a_file_belongs_is_a_sentence(
    copy: Path, name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends the run, but not one that is done and whose dream alone cannot be written."""
    (copy / name).unlink(missing_ok=True)
    (copy / name).mkdir(parents=True)
    assert main(["train", "--run", str(copy), "--inline", "--train.env_steps", str(STEPS + 20)]) == code
    captured = capsys.readouterr()
    assert f"{copy / name} may not be read or written: it is a folder" in captured.out + captured.err
    assert "Traceback" not in captured.out + captured.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"hidden": 24}}, r"parameter '.*' has shape .* by these settings"),
        ({"learner": {"optimiser": "laprop"}}, "give --learner.optimiser adam"),
        ({"behaviour": {"kind": "actor_critic"}}, "has no actor, and behaviour.kind is actor_critic"),
    ],
    ids=str,
)
def test_a_resume_with_another_model_is_refused_before_anything_is_started(
    copy: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    """Nothing of the run is opened for it, no process is started, and no file of it changes."""
    settings = tiny_settings(**pictures())
    parts = {name: getattr(settings, name).model_copy(update=update) for name, update in changes.items()}
    before = files_of(copy)
    monkeypatch.setattr("dreamfleet.deploy.run.runs.open_session", None)
    with pytest.raises(UserError, match=words):
        train(settings.model_copy(update=parts), directory=copy)
    assert files_of(copy) == before


def test_a_run_whose_first_checkpoint_was_never_finished_begins_with_its_replay(copy: Path) -> None:
    """What a crash left of the only checkpoint is passed over, by name; all experience is there to train on."""
    for file in (copy / "checkpoints").glob("*.json"):
        file.unlink()
    settings = tiny_settings(**pictures())
    assert run(copy, settings) == 0
    log = (copy / "train.log").read_text()
    assert "WARNING skipping the checkpoint of update" in log
    assert "start: from the beginning" in log
    assert_complete(copy, settings)


def test_a_run_with_no_whole_checkpoint_says_so(copy: Path) -> None:
    """When all checkpoints are damaged the run is refused in one sentence, and starts no training from nothing."""
    for file in (copy / "checkpoints").glob("*.pt"):
        file.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="is whole"):
        run(copy, tiny_settings(**pictures()))


@pytest.mark.parametrize("torn_bytes", [1, 700])
def test_a_torn_replay_is_cut_and_the_run_goes_on(copy: Path, torn_bytes: int) -> None:
    """What is left of a chunk that was being written when the machine died is cut off; the totals are exact again."""
    newest = segment_paths(copy / "replay" / "shard-0")[-1]
    os.truncate(newest, newest.stat().st_size - torn_bytes)
    left = stored_steps_of_torn(copy)
    manifest = Manifest.read(newest.parent)
    assert manifest
    replace(manifest, steps=left, link=None).write(newest.parent)  # it was synced before that chunk
    assert left < STEPS
    assert run(copy, tiny_settings(**pictures())) == 0
    log = (copy / "train.log").read_text()
    assert f"replay: {left} env steps" in log
    assert_complete(copy, tiny_settings(**pictures()))


def stored_steps_of_torn(path: Path) -> int:
    from dreamfleet.replay.report import describe

    return int(describe(path / "replay")["steps"])


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"nan_at": 6}, "its reward is nan"),
        pytest.param({"nan_count_at": 6}, "'count' is not finite", marks=pytest.mark.long),
    ],
)
def test_numbers_that_are_none_end_the_run_with_their_cause(
    tmp_path: Path, fault: dict[str, int], sentence: str
) -> None:
    """An environment that gives NaN again and again fails the run; the error names it, the episode and the step."""
    with pytest.raises(RunFailedError):
        run(tmp_path / "run", tiny_settings(**fault))
    log = (tmp_path / "run" / "train.log").read_text()
    failure = next(line for line in log.splitlines() if "the run failed" in line)
    for part in ("no actor is left", "'faulty_environment:make'"):
        assert part in failure
    assert re.search(r"\(actor \d, environment 0\)", failure)
    assert re.search(sentence, failure)
    assert "Traceback" in log


def test_a_whole_run_learns_what_moves(tmp_path: Path) -> None:
    """Collecting while training, the dream of episodes never trained on is far better than both baselines."""
    model = {"depth": 8, "embedding": 64, "deterministic": 64, "stochastic": 16, "hidden": 64, "reward_units": 32}
    settings = small_settings(
        env={"id": "moving_square_environment:make", "image_size": 0},
        model=model,
        actors={"count": 2, "steps_per_order": 32, "hold_max": 3},
        replay={"capacity_gb": 0.1, "held_out_every": 10},
        learner={"batch_size": 16, "sequence_length": 12, "threads": 1, "updates_per_order": 8},
        train={"env_steps": 2400, "prefill": 400, "ratio": 60.0},
        records={"checkpoint_every": 200, "picture_every": 1000, "picture_context": 4, "picture_steps": 20},
    )
    assert run(tmp_path / "run", settings) == 0
    report = json.loads((tmp_path / "run" / "dream" / "error.json").read_text())
    errors = {name: np.array(values[:5]) for name, values in report["error"].items()}
    assert (errors["model"] < 0.6 * errors["last_seen_frame"]).all()
    assert (errors["model"] < 0.6 * errors["mean_frame"]).all()
