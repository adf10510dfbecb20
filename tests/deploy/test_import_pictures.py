"""Import of pictures in another size, and of datasets by their id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from make_chunks import Arrays, cut, make_stream

from dreamfleet.actors.spaces.entries import NOTHING_NAMED
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
from dreamfleet.replay.episodes import StoredStreams
from dreamfleet.replay.replay import Replay

minari: Any = pytest.importorskip("minari", reason="Minari is an extra: pip install 'dreamfleet[minari]'")
from minari.data_collector import EpisodeBuffer  # noqa: E402
from minari.dataset.minari_storage import MinariStorage  # noqa: E402

COLOUR = spaces.Box(0, 255, (96, 80, 3), np.uint8)


def pictures(count: int, shape: tuple[int, ...] = (96, 80, 3)) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, *shape)).astype(np.uint8)


def write_foreign(directory: Path, space: spaces.Space[Any], observations: np.ndarray) -> Path:
    """Write one episode of these observations as another tool would."""
    directory.mkdir(parents=True)
    storage = MinariStorage.new(directory / "data", space, spaces.Discrete(3), jpeg_encoding=False)
    storage.update_metadata({"dataset_id": "other/tool-v2", "minari_version": minari.__version__})
    length = len(observations) - 1
    ends = np.arange(length) == length - 1
    episode = EpisodeBuffer(observations=observations, actions=np.arange(length) % 3, rewards=np.arange(float(length)),
                            terminations=ends, truncations=np.zeros(length, bool))  # fmt: skip
    storage.update_episodes([episode])
    return directory


def read(directory: Path) -> Arrays:
    """Return all steps of an imported dataset, joined."""
    with StoredStreams(sorted(directory.glob("replay/shard-*"))) as streams:
        pieces = list(streams.episodes())
    return {name: np.concatenate([piece.arrays[name] for piece in pieces]) for name in pieces[0].arrays}


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


def test_a_dataset_of_ours_keeps_its_pieces_when_its_pictures_change(tmp_path: Path) -> None:
    """What dreamfleet exported comes back with the same steps and gaps, its pictures of the new size, vectors as is."""
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
