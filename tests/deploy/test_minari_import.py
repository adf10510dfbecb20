"""Import of datasets that other tools wrote: nothing is shifted, pictures are resized, ids are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from make_chunks import Arrays, cut, make_stream
from minari_datasets import foreign, read_all

from dreamfleet.actors.spaces.entries import NOTHING_NAMED, NamedEntries
from dreamfleet.actors.spaces.observations import list_entries
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import ReplaySettings, Settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.minari.exchange import PictureChange, export_replay, import_replay
from dreamfleet.deploy.run.prepare_training import prepare_training
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.replay.replay import Replay
from dreamfleet.replay.report import verify

minari: Any = pytest.importorskip("minari", reason="Minari is an extra: pip install 'dreamfleet[minari]'")


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


def test_another_tool_s_episodes_are_aligned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rewards arrive with their observations, actions lie where they were taken, both kinds of end are kept."""
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


COLOUR = spaces.Box(0, 255, (96, 80, 3), np.uint8)


def pictures(count: int, shape: tuple[int, ...] = (96, 80, 3)) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, *shape)).astype(np.uint8)


def write_foreign(directory: Path, space: spaces.Space[Any], observations: np.ndarray) -> Path:
    """Write one episode of these observations as another tool would."""
    length = len(observations) - 1
    episode = counting_episode(length, 0, True) | {
        "observations": observations,
        "actions": np.arange(length) % 3,
        "rewards": np.arange(float(length)),
    }
    return foreign(directory, space, spaces.Discrete(3), [episode])


def read(directory: Path) -> Arrays:
    """Return all steps of an imported dataset, joined."""
    _, episodes = read_all(directory)
    return {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}


@pytest.mark.parametrize(("side", "grey"), [(64, False), (128, True)])
def test_pictures_are_resized_as_an_environment_resizes_them(tmp_path: Path, side: int, grey: bool) -> None:
    """Every imported picture is, bit for bit, what the wrappers of an environment would have made of it."""
    seen = pictures(7)
    import_replay(write_foreign(tmp_path / "other", COLOUR, seen), tmp_path / "ours", change=PictureChange(side, grey))
    (entry,) = list_entries(COLOUR, side, grey, NOTHING_NAMED)
    stored = read(tmp_path / "ours")
    assert stored["image"].shape == (7, side, side, 1 if grey else 3)
    np.testing.assert_array_equal(stored["image"], np.stack([entry.convert(picture) for picture in seen]))
    np.testing.assert_array_equal(stored["reward"], [0, 0, 1, 2, 3, 4, 5])
    run = RunDirectory(tmp_path / "ours")
    assert run.spaces().observations == (entry.spec,)
    assert (run.settings().env.image_size, run.settings().env.grey) == (side, grey)


def test_a_dataset_of_ours_keeps_its_steps_and_gaps_when_its_pictures_change(tmp_path: Path) -> None:
    """What dreamfleet exported is imported with the same steps and gaps, pictures of the new size, vectors as is."""
    named = Spaces((ObservationSpec("image", (80, 80, 3), "uint8"), ObservationSpec("v", (2,), "float32")),
                   ActionSpec("discrete", (3,)))  # fmt: skip
    step_format = StepFormat(named)
    arrays = make_stream(step_format, [30, 50], seed=1)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write(Settings.model_validate({"env": {"image_size": 80}, "model": {"encoder": "strided"}, "seed": 5}), named)
    replay = Replay(run.replay / "shard-0", step_format, ReplaySettings(), sequence_length=2, seed=0)
    for number, record in enumerate(cut(step_format, arrays, chunk_steps=20)):
        assert number == 1 or replay.append(record)
    replay.close()
    export_replay(run.path, tmp_path / "out")
    import_replay(tmp_path / "out", tmp_path / "small", change=PictureChange(32))
    import_replay(tmp_path / "out", tmp_path / "same")
    small, same = read(tmp_path / "small"), read(tmp_path / "same")
    assert small["image"].shape == (len(same["image"]), 32, 32, 3)
    for name in set(same) - {"image"}:
        np.testing.assert_array_equal(small[name], same[name])
    settings = RunDirectory(tmp_path / "small").settings()
    assert (settings.env.image_size, settings.seed) == (32, 5)


def test_pictures_that_an_encoder_cannot_take_say_how_to_import_them(tmp_path: Path) -> None:
    """Training is refused with the flag that helps, and with that flag it begins."""
    other = write_foreign(tmp_path / "other", COLOUR, pictures(7))
    import_replay(other, tmp_path / "ours")
    settings = resolve(["small"], [("train.dataset", str(tmp_path / "ours"))])
    with pytest.raises(UserError, match=r"holds pictures of 96×80.*replay import --image-size 64"):
        prepare_training(RunDirectory(tmp_path / "run"), settings, inline=True, address=None)
    assert main(["replay", "import", str(other), "--out", str(tmp_path / "again"), "--image-size", "64"]) == 0
    settings = resolve(["small"], [("train.dataset", str(tmp_path / "again"))])
    prepared = prepare_training(RunDirectory(tmp_path / "run"), settings, inline=True, address=None)
    assert prepared.spaces.images[0].shape == (64, 64, 3)


def test_flags_without_a_picture_and_sizes_of_no_encoder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence each."""
    vectors = write_foreign(tmp_path / "vectors", spaces.Box(-1, 1, (4,), np.float32), np.zeros((5, 4), np.float32))
    many = write_foreign(tmp_path / "many", spaces.Box(0, 255, (32, 32, 4), np.uint8), pictures(5, (32, 32, 4)))
    for source, change, sentence in (
        (vectors, PictureChange(64), "flag --image-size: the dataset holds no picture, only 'vector' 4"),
        (vectors, PictureChange(grey=True), "flag --grey: the dataset holds no picture"),
        (many, PictureChange(grey=True), "flag --grey: it needs pictures of 3 channels .or 1., but 'image' has 4"),
    ):
        with pytest.raises(UserError, match=sentence):
            import_replay(source, tmp_path / "ours", change=change)
        assert not (tmp_path / "ours").exists()
    assert main(["replay", "import", str(many), "--out", str(tmp_path / "ours"), "--image-size", "50"]) == 2
    assert "50 is no multiple of 16" in capsys.readouterr().err


def test_a_dataset_is_found_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is looked up where Minari keeps its datasets; a directory of that name comes first."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    box = spaces.Box(-1, 1, (4,), np.float32)
    write_foreign(tmp_path / "datasets/D4RL/door/human-v2", box, np.zeros((5, 4), np.float32))
    assert main(["replay", "import", "D4RL/door/human-v2", "--out", "ours"]) == 0
    assert len(read(tmp_path / "ours")["reward"]) == 5
    write_foreign(tmp_path / "D4RL/door/human-v2", box, np.zeros((9, 4), np.float32))
    assert main(["replay", "import", "D4RL/door/human-v2", "--out", "theirs"]) == 0
    assert len(read(tmp_path / "theirs")["reward"]) == 9


def test_an_id_that_is_not_here_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari fetches it to where it keeps its datasets."""
    root = tmp_path / "datasets"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))

    def download(identity: str) -> None:
        write_foreign(root / identity, spaces.Box(-1, 1, (4,), np.float32), np.zeros((5, 4), np.float32))

    monkeypatch.setattr(minari, "download_dataset", download)
    import_replay(Path("pen/human-v1"), tmp_path / "ours")
    assert len(read(tmp_path / "ours")["reward"]) == 5


def test_an_id_that_is_nowhere_is_one_sentence_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither here nor to be downloaded: the reason, and the nearest id that is here."""
    root = tmp_path / "datasets"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    write_foreign(root / "D4RL/door/human-v2", spaces.Box(-1, 1, (4,), np.float32), np.zeros((5, 4), np.float32))

    def download(identity: str) -> None:
        raise ConnectionError("the network\nis unreachable.")

    monkeypatch.setattr(minari, "download_dataset", download)
    assert main(["replay", "import", "D4RL/dor/human-v2", "--out", str(tmp_path / "ours")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be downloaded (the network is unreachable). Did you mean 'D4RL/door/human-v2'?" in line
