"""Export and import: what goes out comes back bit for bit, and other tools' data come in with nothing shifted."""

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
from gymnasium import spaces
from make_chunks import Arrays, counting_format, cut, image_format, make_stream, mixed_format
from patience import PATIENCE_S

from dreamfleet.actors.spaces.entries import NamedEntries
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import ChunkKey
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import EnvironmentSettings, ReplaySettings, Settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.minari.exchange import export_replay, import_replay
from dreamfleet.deploy.monitoring.status import status
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.replay.episodes import StoredEpisode, StoredStreams, cut_chunks
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.report import describe, verify
from dreamfleet.replay.segment import StoredChunk, open_segments, scan, segment_paths

minari: Any = pytest.importorskip("minari", reason="Minari is an extra: pip install 'dreamfleet[minari]'")
from minari.data_collector import EpisodeBuffer  # noqa: E402
from minari.dataset.minari_storage import MinariStorage  # noqa: E402

PACKAGE = Path(__file__).resolve().parents[2] / ".pkg"
BOX = ActionSpec("box", (6,), (-1.5,) * 6, (0.1,) * 6, (2, 3))
DISCRETE = ActionSpec("discrete", (3,))
UNBOUNDED = ActionSpec("box", (2,), (-np.inf, 0.0), (np.inf, np.inf), (2,))
MIXED = ActionSpec("mixed", (3, 4), (-np.inf, 0.0), (np.inf, 2.5), names=("a/0", "a/1", "b[0]", "b[1]"))


def fill(directory: Path, step_format: StepFormat, records: list[bytes]) -> None:
    """Store records in one shard."""
    replay = Replay(directory, step_format, ReplaySettings(), sequence_length=2, seed=0)
    for record in records:
        assert replay.append(record)
    replay.close()


def stored(directory: Path) -> list[bytes]:
    """Return all records of all shards, in the order of their keys."""
    records: dict[ChunkKey, bytes] = {}
    for shard in sorted(directory.glob("replay/shard-*")):
        for segment in open_segments(shard, writable=False):
            header, start = segment.read_header()
            for found in scan(segment, StepFormat.from_json(header.step_format), start, bodies=True):
                assert isinstance(found, StoredChunk)
                assert found.header.key not in records
                records[found.header.key] = segment.read(found.offset, found.header.chunk_bytes)
            segment.close()
    return [records[key] for key in sorted(records)]


def fragmented_run(path: Path, step_format: StepFormat, settings: Settings | None = None) -> RunDirectory:
    """Make a run of two shards with everything that happens: restarts, gaps, lost beginnings and ends, lone steps."""
    run = RunDirectory(path)
    run.path.mkdir()
    run.write(settings or Settings(), step_format.spaces)
    first = cut(step_format, make_stream(step_format, [90, 33, 2, 70], seed=1), actor=0, chunk_steps=[64, 30, 64])
    restarted = cut(step_format, make_stream(step_format, [50, 80], seed=2), actor=0, incarnation=3, chunk_steps=17)
    lost_end = cut(step_format, make_stream(step_format, [40, 100], seed=3), actor=1, stream=1, chunk_steps=[41, 20])
    lost_beginning = cut(step_format, make_stream(step_format, [150], seed=4, first_episode=7), actor=1, incarnation=1)
    fill(run.replay / "shard-0", step_format, first + [r for i, r in enumerate(restarted) if i not in (2, 5)])
    fill(run.replay / "shard-1", step_format, lost_end[:1] + lost_beginning[1:])
    return run


@pytest.mark.parametrize("action", [None, DISCRETE, BOX, UNBOUNDED, MIXED])
def test_a_run_comes_back_bit_for_bit(tmp_path: Path, action: ActionSpec | None) -> None:
    """Every record of every shard is the same bytes again: all fields, whole episodes and pieces, chunks and gaps."""
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
    """Minari loads what was exported, and each piece is an episode with the right shapes, contents and ends."""
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
        pieces = [piece for piece in streams.episodes() if len(piece) > 1]
        assert streams.faults == []
    assert len(pieces) == len(dataset) > 8
    assert dataset.total_steps == sum(len(piece) - 1 for piece in pieces)
    for piece, episode in zip(pieces, dataset.iterate_episodes(), strict=True):
        check_episode(piece, episode, dataset)


def check_episode(piece: StoredEpisode, episode: Any, dataset: Any) -> None:
    """Compare a piece with its episode as Minari gives it."""
    arrays, n = piece.arrays, len(piece)
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


def test_pieces_are_cut_where_something_is_missing(tmp_path: Path) -> None:
    """Episodes end at `is_last`, begin at `is_first`, and break where chunks are missing; a duplicate counts once."""
    step_format = counting_format()
    records = cut(step_format, make_stream(step_format, [30, 70, 50]), chunk_steps=20)
    fill(tmp_path / "shard-0", step_format, records[:3])
    fill(tmp_path / "shard-1", step_format, [records[2], *records[4:]])
    with StoredStreams([tmp_path / "shard-0", tmp_path / "shard-1"]) as streams:
        found = [(piece.first_step, len(piece)) for piece in streams.episodes()]
        assert streams.steps == 130
        assert len(streams.faults) == 1
        assert "stored twice" in streams.faults[0]
    assert found == [(0, 30), (30, 30), (80, 20), (100, 50)]


def test_a_damaged_chunk_is_passed_over(tmp_path: Path) -> None:
    """It is named, and its steps become a gap; a torn record at the very end is none, for a run may be writing it."""
    step_format = counting_format()
    records = cut(step_format, make_stream(step_format, [200]))
    fill(tmp_path, step_format, records)
    (segment,) = segment_paths(tmp_path)
    data = bytearray(segment.read_bytes())
    at = data.find(records[1]) + len(records[1]) - 3
    data[at] ^= 1
    segment.write_bytes(data[:-5])
    with StoredStreams([tmp_path]) as streams:
        assert [(piece.first_step, len(piece)) for piece in streams.episodes()] == [(0, 64), (128, 64)]
        assert len(streams.faults) == 1
        assert "number=1" in streams.faults[0]


def test_a_replay_may_be_written_to_meanwhile(tmp_path: Path) -> None:
    """Read is what was stored at the beginning, also if all of it is dropped before it is read."""
    step_format = counting_format()
    early = cut(step_format, make_stream(step_format, [1000]))
    replay = Replay(tmp_path, step_format, ReplaySettings(capacity_steps=1500), sequence_length=2, seed=0)
    for record in early:
        replay.append(record)
    with StoredStreams([tmp_path]) as streams:
        for record in cut(step_format, make_stream(step_format, [2000]), incarnation=1):
            replay.append(record)
        assert replay.stats()["dropped_steps"] >= 1000
        assert list(cut_chunks(step_format, streams.episodes())) == early
    replay.close()


def test_steps_that_do_not_follow_are_refused() -> None:
    """Records are not cut from pieces with a step missing inside a chunk or between two."""
    step_format = counting_format()
    arrays = make_stream(step_format, [100])

    def piece(first: int, stop: int) -> StoredEpisode:
        return StoredEpisode(
            0, 0, 0, first, np.arange(first, stop) // 64, {name: a[first:stop] for name, a in arrays.items()}
        )

    assert list(cut_chunks(step_format, [piece(0, 30), piece(30, 100)])) == cut(step_format, arrays)
    for pieces in ([piece(0, 30), piece(31, 100)], [piece(0, 60), piece(64, 100)], [piece(64, 100), piece(0, 64)]):
        with pytest.raises(ValueError, match="comes after"):
            list(cut_chunks(step_format, pieces))


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
    told = capsys.readouterr().out
    assert ": finished\n" in told
    assert f"{steps} of {steps} env steps (100%)" in told


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


def foreign(
    directory: Path, observation: spaces.Space[Any], action: spaces.Space[Any], episodes: list[dict[str, Any]],
    jpeg: bool = False, **metadata: Any,
) -> Path:  # fmt: skip
    """Write a dataset as another tool would."""
    directory.mkdir()
    storage = MinariStorage.new(directory / "data", observation, action, jpeg_encoding=jpeg)
    storage.update_metadata({"dataset_id": "other/tool-v2", "minari_version": minari.__version__, **metadata})
    storage.update_episodes([EpisodeBuffer(**episode) for episode in episodes])
    return directory


def counting_episode(length: int, start: int, terminated: bool, truncated: bool = False) -> dict[str, Any]:
    """Return an episode whose observations count steps, whose rewards are the step arrived at, and likewise actions."""
    ends = np.zeros((2, length), bool)
    ends[:, -1] = terminated, truncated
    counts = np.arange(start, start + length + 1)
    return {
        "observations": np.stack([counts, -counts], axis=1).astype(np.float64),
        "actions": 5 + counts[:-1] % 4,
        "rewards": np.arange(1.0, length + 1),
        "terminations": ends[0],
        "truncations": ends[1],
    }


def read_all(directory: Path) -> tuple[StepFormat, list[Arrays]]:
    """Return the format and the episodes of an imported dataset."""
    with StoredStreams(sorted(directory.glob("replay/shard-*"))) as streams:
        return streams.step_format, [dict(piece.arrays) for piece in streams.episodes()]


def test_another_tool_s_episodes_are_aligned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rewards arrive with their observations, actions lie where they were taken, and ends are told apart."""
    episodes = [counting_episode(70, 100, True), counting_episode(3, 500, False, True), counting_episode(90, 0, False)]
    space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    spec = json.dumps({"id": "CountTo-v3", "entry_point": "no_such_module:Count", "kwargs": {"limit": 5}})
    source = foreign(tmp_path / "other", space, spaces.Discrete(4, start=5), episodes, env_spec=spec)
    assert import_replay(source, tmp_path / "ours") == 0
    assert "'vector' (float64) is stored as float32: no number has changed" in capsys.readouterr().out
    step_format, found = read_all(tmp_path / "ours")
    assert step_format.spaces == Spaces((ObservationSpec("vector", (2,), "float32"),), ActionSpec("discrete", (4,)))
    assert [len(episode["reward"]) for episode in found] == [71, 4, 91]
    for number, (episode, start) in enumerate(zip(found, (100, 500, 0), strict=True)):
        steps = np.arange(len(episode["reward"]))
        np.testing.assert_array_equal(episode["vector"][:, 0], start + steps)
        np.testing.assert_array_equal(episode["reward"], steps)
        np.testing.assert_array_equal(episode["action"][:-1], (start + steps[:-1]) % 4)
        assert episode["action"][-1] == 0
        np.testing.assert_array_equal(episode["is_first"], steps == 0)
        np.testing.assert_array_equal(episode["is_last"], steps == steps[-1])
        np.testing.assert_array_equal(episode["is_terminal"], (steps == steps[-1]) & (number == 0))
        assert set(episode["episode"]) == {number}
    assert verify(tmp_path / "ours/replay/shard-0") == []
    settings = RunDirectory(tmp_path / "ours").settings()
    assert (settings.env.id, settings.env.kwargs, settings.env.image_size) == ("CountTo-v3", {"limit": 5}, 0)


def test_nested_observations_and_continuous_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nested Dicts are joined by their keys, pictures stay pictures, and what is rounded is said."""
    inner = spaces.Dict({"camera": spaces.Box(0, 255, (40, 40, 3), np.uint8), "mode": spaces.Discrete(3)})
    space = spaces.Dict({"robot": inner, "joints": spaces.Box(-1, 1, (2, 2), np.float64)})
    random = np.random.default_rng(0)
    camera, mode = random.integers(0, 256, (11, 40, 40, 3), np.uint8), random.integers(0, 3, 11)
    joints, actions = random.uniform(-1, 1, (11, 2, 2)), random.uniform(-1, 1, (10, 3)).astype(np.float32)
    episode = counting_episode(10, 0, True) | {
        "observations": {"robot": {"camera": camera, "mode": mode}, "joints": joints}, "actions": actions,
    }  # fmt: skip
    import_replay(foreign(tmp_path / "other", space, spaces.Box(-1, 1, (3,)), [episode]), tmp_path / "ours")
    assert "'joints' (float64) is stored as float32: 44 of 44 numbers are rounded" in capsys.readouterr().out
    step_format, (steps,) = read_all(tmp_path / "ours")
    assert [spec.name for spec in step_format.spaces.observations] == ["joints", "robot_camera", "robot_mode"]
    np.testing.assert_array_equal(steps["robot_camera"], camera)
    np.testing.assert_array_equal(steps["robot_mode"], np.eye(3)[mode])
    np.testing.assert_array_equal(steps["joints"], joints.reshape(11, 4).astype(np.float32))
    np.testing.assert_array_equal(steps["action"], np.concatenate([actions, np.zeros((1, 3))]))


def test_actions_of_several_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Choices and reals of a nested action lie in one row, what is rounded is said, and a wrong one is named."""
    grip = spaces.Dict({"grip": spaces.Discrete(3, start=2), "keys": spaces.MultiBinary(2)})
    space = spaces.Tuple((spaces.Box(-1, 1, (2,), np.float64), grip))
    random = np.random.default_rng(0)
    arm, held, keys = random.uniform(-1, 1, (10, 2)), random.integers(2, 5, 10), random.integers(0, 2, (10, 2), np.int8)
    taken = (arm, {"grip": held, "keys": keys})
    observed = spaces.Box(-100, 100, (2,), np.float64)
    episode = counting_episode(10, 0, True) | {"actions": taken}
    import_replay(foreign(tmp_path / "other", observed, space, [episode]), tmp_path / "ours")
    assert "'actions '0'' (float64) is stored as float32: 20 of 20 numbers" in capsys.readouterr().out
    step_format, (steps,) = read_all(tmp_path / "ours")
    assert step_format.spaces.action == ActionSpec(
        "mixed", (3, 2, 2), (-1, -1), (1, 1), names=("1_grip", "1_keys[0]", "1_keys[1]", "0[0]", "0[1]")
    )
    np.testing.assert_array_equal(steps["action"][:-1], np.column_stack([held - 2, keys, arm]).astype(np.float32))
    wrong = episode | {"actions": (arm, {"grip": held + 1, "keys": keys})}
    with pytest.raises(UserError, match=r"episode 0: an action '1_grip' is not in Discrete\(3, start=2\)"):
        import_replay(foreign(tmp_path / "wrong", observed, space, [wrong]), tmp_path / "none")


def test_what_was_lost_before_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures that Minari stored as JPEG, pictures that are no bytes, and ends inside an episode are noted."""
    space = spaces.Dict({"a": spaces.Box(0, 255, (32, 32, 3), np.uint8), "b": spaces.Box(0, 1, (4, 4, 1), np.float64)})
    pictures = {"a": np.zeros((6, 32, 32, 3), np.uint8), "b": np.full((6, 4, 4, 1), 0.5)}
    episode = counting_episode(5, 0, True) | {"observations": pictures}
    episode["truncations"][1] = True
    source = foreign(tmp_path / "other", space, spaces.Discrete(9), [episode], jpeg=True)
    assert main(["replay", "import", str(source), "--out", str(tmp_path / "ours"), "--pictures", "b"]) == 0
    printed = capsys.readouterr().out
    assert "'a' was compressed as JPEG" in printed
    assert "'b' (float64) is stored as bytes" in printed
    assert "1 transitions inside episodes" in printed
    _, (steps,) = read_all(tmp_path / "ours")
    assert set(steps["b"].flat) == {128}
    assert RunDirectory(tmp_path / "ours").settings().env.pictures == ("b",)


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
    for record in cut(step_format, make_stream(step_format, [100]), actor=9):
        replay.append(record)
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


def test_bad_input_to_import_is_one_sentence(tmp_path: Path) -> None:
    """Each fault is named, and nothing is left behind."""
    vector, choice = spaces.Box(-1, 1, (2,)), spaces.Discrete(4, start=5)
    good = counting_episode(5, 0, True)

    def complaint(name: str, observation: spaces.Space[Any] = vector, changed: Any = None, **metadata: Any) -> str:
        source = foreign(tmp_path / name, observation, choice, [good | (changed or {})], **metadata)
        with pytest.raises(UserError) as caught:
            import_replay(source, tmp_path / "ours", NamedEntries(prefix=""))
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "ours"))) == []
        return str(caught.value)

    nan = np.full((6, 2), np.nan)
    parts = spaces.Tuple((vector, vector))
    assert "episode 0: '0' holds" in complaint("a", parts, {"observations": (nan, nan)})
    grid = {"observations": np.zeros((6, 7, 7, 3), np.uint8)}
    assert "--pictures image takes" in complaint("grid", spaces.Box(0, 255, (7, 7, 3), np.uint8), grid)
    assert "not finite" in complaint("b", changed={"observations": nan})
    assert "an action is not in Discrete(4, start=5)" in complaint("c", changed={"actions": np.arange(5)})
    assert "5 observations 'vector' and 5 rewards" in complaint("d", changed={"observations": nan[:5]})
    assert "minari_version is '9.9'" in complaint("e", minari_version="9.9")
    assert "format is 2" in complaint("f", dreamfleet={"format": 2})
    with pytest.raises(UserError, match=r"no metadata\.json"):
        import_replay(tmp_path, tmp_path / "ours")
    with pytest.raises(UserError, match="is no directory"):
        import_replay(tmp_path / "nowhere", tmp_path / "ours")
    (source := foreign(tmp_path / "g", vector, choice, [good])).joinpath("data/main_data.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match="cannot be read"):
        import_replay(source, tmp_path / "ours")


def test_no_environment_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari would make the environment of a dataset that does not tell its spaces; it is refused before that."""
    (tmp_path / "would_run.py").write_text("raise SystemExit('this was executed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    vector, choice = spaces.Box(-1, 1, (2,)), spaces.Discrete(4, start=5)
    spec = json.dumps({"id": "would_run:Run-v0", "entry_point": "would_run:make", "kwargs": {}})
    source = foreign(tmp_path / "other", vector, choice, [counting_episode(5, 0, True)], env_spec=spec)
    import_replay(source, tmp_path / "ours")
    assert RunDirectory(tmp_path / "ours").settings().env.id == "(none)"
    file = source / "data/metadata.json"
    metadata = json.loads(file.read_text())
    del metadata["action_space"]
    file.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="does not tell the spaces"):
        import_replay(source, tmp_path / "again")


def test_without_minari_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the command."""
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r"pip install 'dreamfleet\[minari\]'"):
        export_replay(tmp_path, tmp_path / "out")


INTERRUPTED = """
import sys
from pathlib import Path
import dreamfleet.deploy.minari.exchange as exchange
def tell(pieces, most_steps, verb):
    for number, piece in enumerate(pieces):
        yield piece
        if number == 3:
            print("begun", flush=True)
            import time; time.sleep(600)
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
