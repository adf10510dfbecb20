"""Export and import: what is exported is imported bit for bit, and other tools' data come in with nothing shifted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_chunks import counting_format, cut, fill, image_format, make_stream, mixed_format
from minari_datasets import fragmented_run, read_all, stored
from patience import PATIENCE_S

from dreamfleet.actors.spaces.entries import NamedEntries
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.minari.exchange import export_replay, import_replay
from dreamfleet.deploy.monitoring.status import status
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.replay.episodes import StoredEpisode, StoredStreams
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.report import describe

minari: Any = pytest.importorskip("minari", reason="Minari is an extra: pip install 'dreamfleet[minari]'")
from minari.data_collector import EpisodeBuffer  # noqa: E402

PACKAGE = Path(__file__).resolve().parents[2] / ".pkg"
BOX = ActionSpec("box", (6,), (-1.5,) * 6, (0.1,) * 6, (2, 3))
DISCRETE = ActionSpec("discrete", (3,))
UNBOUNDED = ActionSpec("box", (2,), (-np.inf, 0.0), (np.inf, np.inf), (2,))
MIXED = ActionSpec("mixed", (3, 4), (-np.inf, 0.0), (np.inf, 2.5), names=("a/0", "a/1", "b[0]", "b[1]"))


@pytest.mark.parametrize("action", [None, DISCRETE, BOX, UNBOUNDED, MIXED])
def test_a_run_comes_back_bit_for_bit(tmp_path: Path, action: ActionSpec | None) -> None:
    """Every chunk of every shard is the same bytes again: all fields, whole episodes and parts, chunks and gaps."""
    settings = Settings(seed=7, env=EnvironmentSettings(id="my_module:make", grey=True))
    run = fragmented_run(tmp_path / "run", mixed_format(action), settings)
    assert export_replay(run.path, tmp_path / "out-v0") == 0
    assert import_replay(tmp_path / "out-v0", tmp_path / "back") == 0
    assert stored(tmp_path / "back") == stored(run.path)
    back = RunDirectory(tmp_path / "back")
    assert back.spaces() == run.spaces()
    assert back.settings().env == settings.env
    assert back.settings().seed == 7
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_pieces_are_episodes_to_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari loads what was exported, and each part is an episode with the right shapes, contents and ends."""
    step_format = mixed_format(BOX)
    run = fragmented_run(tmp_path / "run", step_format)
    export_replay(run.path, tmp_path / "square-v3")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("square-v3")
    assert dataset.spec.dataset_id == "square-v3"
    assert dataset.env_spec is None
    assert not dataset.storage.jpeg_encoding
    assert json.loads((tmp_path / "square-v3/data/metadata.json").read_text())["dreamfleet"]["single_steps"] == 1
    with StoredStreams([run.replay / "shard-0", run.replay / "shard-1"]) as streams:
        kept = [recorded for recorded in streams.episodes() if len(recorded) > 1]
        assert streams.faults == []
    assert len(kept) == len(dataset) > 8
    assert dataset.total_steps == sum(len(recorded) - 1 for recorded in kept)
    for recorded, episode in zip(kept, dataset.iterate_episodes(), strict=True):
        check_episode(recorded, episode, dataset)


def check_episode(recorded: StoredEpisode, episode: Any, dataset: Any) -> None:
    """Compare what was recorded with its episode as Minari gives it."""
    arrays, n = recorded.arrays, len(recorded)
    for name in ("camera", "grey", "joints", "sensor"):
        np.testing.assert_array_equal(episode.observations[name], arrays[name])
        assert dataset.observation_space[name].shape == arrays[name].shape[1:]
        assert dataset.observation_space[name].dtype == arrays[name].dtype == episode.observations[name].dtype
    assert episode.actions.shape == (n - 1, 2, 3)
    np.testing.assert_array_equal(episode.actions.reshape(n - 1, 6), arrays["action"][:-1])
    np.testing.assert_array_equal(episode.rewards, arrays["reward"][1:])
    assert not (episode.terminations[:-1] | episode.truncations[:-1]).any()
    assert episode.terminations[-1] == arrays["is_terminal"][-1]
    assert episode.truncations[-1] == (not arrays["is_terminal"][-1])
    for name in ("is_first", "is_last", "version", "episode"):
        np.testing.assert_array_equal(episode.infos["dreamfleet"][name], arrays[name])


def test_an_imported_dataset_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`status` says that it holds all it was to hold, and the next `collect` counts on from there."""
    run = fragmented_run(tmp_path / "run", StepFormat(Spaces((ObservationSpec("image", (2,), "float32"),), DISCRETE)))
    export_replay(run.path, tmp_path / "out")
    import_replay(tmp_path / "out", tmp_path / "back")
    back = RunDirectory(tmp_path / "back")
    steps = describe(back.replay)["steps"]
    assert back.settings().train.env_steps == steps
    assert back.is_dataset
    capsys.readouterr()
    assert status(back, as_json=False) == 0
    printed = capsys.readouterr().out
    assert ": finished\n" in printed
    assert f"{steps} of {steps} env steps (100%)" in printed


def test_names_with_a_slash_come_back(tmp_path: Path) -> None:
    """HDF5 would take them for folders; they go out under another name."""
    names = ("walker/height", "walker.height", "image")
    observations = tuple(ObservationSpec(name, (2,), "float32") for name in names)
    step_format = StepFormat(Spaces(observations, DISCRETE))
    run = fragmented_run(tmp_path / "run", step_format)
    export_replay(run.path, tmp_path / "out")
    assert set(minari.MinariDataset(tmp_path / "out/data")[0].observations) == {
        "walker.height", "walker.height_", "image",
    }  # fmt: skip
    import_replay(tmp_path / "out", tmp_path / "back")
    assert stored(tmp_path / "back") == stored(run.path)


def test_numbers_that_are_no_numbers_come_back(tmp_path: Path) -> None:
    """Bits, not values, are kept: infinities, NaNs, negative zeros, and a first reward and last action that are set."""
    step_format = counting_format()
    arrays = make_stream(step_format, [40])
    arrays["count"][3] = (np.nan, -np.inf)
    arrays["reward"][:3] = (-0.0, np.nan, np.inf)
    run = RunDirectory(tmp_path / "run")
    fill(run.replay / "shard-0", step_format, cut(step_format, arrays))
    export_replay(run.replay, tmp_path / "out")
    with pytest.raises(UserError, match=r"written by dreamfleet.*leave out --one-hot"):
        import_replay(tmp_path / "out/data", tmp_path / "back", NamedEntries(one_hot=("count",), prefix=""))
    import_replay(tmp_path / "out/data", tmp_path / "back")
    assert stored(tmp_path / "back") == stored(run.path)
    assert RunDirectory(tmp_path / "back").settings().env.id == "(none)"


def test_a_dataset_changed_by_another_tool_is_taken_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an episode added, places no longer hold; with a reward changed, the new one is taken."""
    run = fragmented_run(tmp_path / "run", counting_format())
    export_replay(run.path, tmp_path / "out")
    import h5py

    with h5py.File(tmp_path / "out/data/main_data.hdf5", "a") as file:
        file["episode_0"]["rewards"][4] = 99.0
    import_replay(tmp_path / "out", tmp_path / "back")
    _, (episode, *_) = read_all(tmp_path / "back")
    assert episode["reward"][5] == 99.0
    dataset = minari.MinariDataset(tmp_path / "out/data")
    episodes = len(dataset)
    first = next(iter(dataset.storage.get_episodes([0])))
    dataset.update_dataset_from_buffer([EpisodeBuffer(**(first | {"id": None}))])
    import_replay(tmp_path / "out", tmp_path / "more")
    assert "another tool has added or removed" in capsys.readouterr().out
    _, found = read_all(tmp_path / "more")
    assert len(found) == episodes + 1
    np.testing.assert_array_equal(found[-1]["count"], found[0]["count"])


def test_nothing_is_dropped_while_importing(tmp_path: Path) -> None:
    """The capacity that is written holds everything, though the settings that came along are too small for it."""
    step_format = image_format(32)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    stream = make_stream(step_format, [300] * 5)
    fill(run.replay / "shard-0", step_format, cut(step_format, stream))
    small = Settings.model_validate(
        {"replay": {"capacity_gb": 0.0012, "capacity_steps": 1000, "shards": 4}, "learner": {"batch_size": 2}}
    )
    run.write(small, step_format.spaces)
    export_replay(run.path, tmp_path / "out")
    import_replay(tmp_path / "out", tmp_path / "back")
    assert stored(tmp_path / "back") == stored(run.path)
    settings = RunDirectory(tmp_path / "back").settings().replay
    replay = Replay(tmp_path / "back/replay/shard-0", step_format, settings, sequence_length=20, seed=0)
    for chunk in cut(step_format, make_stream(step_format, [100]), actor=9):
        replay.append(chunk)
    assert replay.stats()["dropped_steps"] == 0
    assert settings.shards == 1
    replay.close()


@pytest.mark.parametrize("fault", ["exists", "nothing", "no replay"])
def test_bad_input_to_export_is_one_sentence(tmp_path: Path, fault: str) -> None:
    """What is wrong is named, and nothing is left behind."""
    run = tmp_path / "run"
    if fault == "no replay":
        run.mkdir()
    elif fault == "exists":
        fragmented_run(run, counting_format())
        (tmp_path / "out").mkdir()
    wanted = {"exists": "is there already", "nothing": "is no directory", "no replay": "holds no replay"}[fault]
    with pytest.raises(UserError, match=wanted):
        export_replay(run, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "out"}


def test_without_minari_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the command."""
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r"pip install 'dreamfleet\[minari\]'"):
        export_replay(tmp_path, tmp_path / "out")


INTERRUPTED = """
import sys
import time
from pathlib import Path
import dreamfleet.deploy.minari.exchange as exchange
def tell(kept, most_steps, verb):
    for number, recorded in enumerate(kept):
        yield recorded
        if number == 3:
            print("begun", flush=True)
            time.sleep(600)
exchange._print_progress = tell
from dreamfleet.deploy.command_line import main
sys.exit(main(["replay", sys.argv[1], sys.argv[2], "--out", sys.argv[3]]))
"""


@pytest.mark.parametrize("action", ["export", "import"])
def test_an_interrupted_command_leaves_nothing(tmp_path: Path, action: str) -> None:
    """After Ctrl-C in the middle there is neither a dataset nor a part of one."""
    source = fragmented_run(tmp_path / "run", counting_format()).path
    if action == "import":
        export_replay(source, tmp_path / "minari")
        source = tmp_path / "minari"
    before = sorted(tmp_path.iterdir())
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", INTERRUPTED, action, str(source), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "begun\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert sorted(tmp_path.iterdir()) == before
