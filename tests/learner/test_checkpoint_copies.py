"""Copies of checkpoints at a URL: never half, never in the way of training, enough to go on without the disk."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from moving_square import square_format, square_replay
from patience import PATIENCE_S
from small_runs import small_settings

from dreamfleet.common.errors import UserError
from dreamfleet.deploy.run.runs import train
from dreamfleet.learner.checkpoints.copies import CheckpointCopies
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.learner.checkpoints.url import check_checkpoint_url
from dreamfleet.learner.learner import Learner


class FaultyFileSystem(MemoryFileSystem):
    """A filesystem in memory that fails, tears or waits as a test says."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    before_write: ClassVar[Callable[[str], None]] = staticmethod(lambda path: None)
    keeps_bytes: ClassVar[int | None] = None
    """What arrives of a .pt; None is all."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("faulty://", "memory://")))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb":
            type(self).before_write(path)
        file = super()._open(path, mode, **options)
        kept = type(self).keeps_bytes
        if mode == "wb" and path.endswith(".pt") and kept is not None:
            write = file.write
            file.write = lambda data: write(bytes(data)[: max(0, kept - file.tell())])
        return file


@pytest.fixture(autouse=True)
def faulty() -> Iterator[type[FaultyFileSystem]]:
    """Give the faulty filesystem, whole and empty; `memory://` is emptied too."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    for kind in (MemoryFileSystem, FaultyFileSystem):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    yield FaultyFileSystem
    FaultyFileSystem.before_write = staticmethod(lambda path: None)
    FaultyFileSystem.keeps_bytes = None


def refuse(path: str) -> None:
    raise PermissionError(f"no entry to faulty://user:secret@box{path}")


def save(store: CheckpointStore, copies: CheckpointCopies, *numbers: int, loss: float | None = None) -> None:
    """Save checkpoints and wait for each one's copy."""
    for number in numbers:
        weight = torch.full((50_000,), float(number))
        store.save(number, {"weight": weight, "updates": number}, {"held_out_loss": loss})
        copies.copy(number)
        assert copies.finish(PATIENCE_S)


def both(directory: Path, url: str, kept: int = 3) -> tuple[CheckpointStore, CheckpointCopies]:
    store = CheckpointStore(directory, kept)
    return store, CheckpointCopies(url, store)


def names(url: str) -> list[str]:
    filesystem, root = fsspec.core.url_to_fs(url)
    return sorted(str(path).rsplit("/", 1)[-1] for path in filesystem.ls(root, detail=False))


def fetched_number(directory: Path, url: str) -> int | None:
    """Fetch into an empty directory and return which checkpoint came."""
    store, copies = both(directory, url)
    decision = copies.fetch()
    if decision is None:
        assert store.is_empty
        return None
    found = store.load_newest()
    assert found is not None
    state, facts = found
    assert f"update {facts['updates']} was fetched from {url}" in decision
    assert torch.equal(state["weight"], torch.full((50_000,), float(state["updates"])))
    assert not list(directory.glob("*.tmp"))
    return int(state["updates"])


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give a URL of a folder that is not there yet."""
    return "memory://bucket/run" if request.param == "memory" else f"file://{tmp_path}/far/away"


def test_what_is_copied_comes_back(url: str, tmp_path: Path) -> None:
    """An empty directory gets the newest checkpoint from the URL, as it was; with nothing there it stays empty."""
    assert fetched_number(tmp_path / "before", url) is None
    save(*both(tmp_path / "here", url), 1, 2)
    assert fetched_number(tmp_path / "new", url) == 2


def test_old_copies_go_as_old_checkpoints_do(url: str, tmp_path: Path) -> None:
    """The newest and the best are kept at the URL, and nothing else."""
    store, copies = both(tmp_path / "here", url, kept=2)
    for number, loss in [(1, 5.0), (2, 1.0), (3, 4.0), (4, None), (5, 3.0)]:
        save(store, copies, number, loss=loss)
    assert names(url) == sorted(path.name for path in store.directory.iterdir())
    assert len(names(url)) == 6


def test_what_was_saved_without_copying_is_copied_later(url: str, tmp_path: Path) -> None:
    """A URL given to a run that has checkpoints already gets those too that are worth keeping."""
    store, copies = both(tmp_path / "here", url)
    for number in (1, 2):
        store.save(number, {"updates": number}, {})
    save(store, copies, 3)
    assert len(names(url)) == 6


def test_facts_that_change_are_copied_alone(faulty: type[FaultyFileSystem], tmp_path: Path) -> None:
    """What is found out about a checkpoint later reaches the URL without its tensors travelling again."""
    store, copies = both(tmp_path / "here", "faulty://box")
    save(store, copies, 1, 2)
    written: list[str] = []
    faulty.before_write = staticmethod(written.append)
    path = store.directory / "checkpoint-000000002.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"held_out_loss": 0.5}))
    copies.copy(2)
    assert copies.finish(PATIENCE_S)
    assert [Path(name).name for name in written] == ["checkpoint-000000002.json"]
    new, again = both(tmp_path / "new", "faulty://box")
    again.fetch()
    assert new.facts(2)["held_out_loss"] == 0.5


def test_another_checkpoint_of_the_same_number_replaces_the_copy(url: str, tmp_path: Path) -> None:
    """After a resume from an older checkpoint, what is saved again is what the URL holds."""
    store, copies = both(tmp_path / "here", url)
    save(store, copies, 1, 2)
    save(store, copies, 2, loss=0.5)
    new, again = both(tmp_path / "new", url)
    again.fetch()
    assert new.facts(2)["held_out_loss"] == 0.5


@pytest.mark.parametrize("stops_at", [".pt", ".json"])
def test_a_copy_that_was_cut_off_is_no_checkpoint(
    faulty: type[FaultyFileSystem], tmp_path: Path, stops_at: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever copying stops, the one before it is fetched, and the log says what failed."""
    store, copies = both(tmp_path / "here", "faulty://box")
    save(store, copies, 1)

    def stop(path: str) -> None:
        if path.endswith(stops_at):
            raise ConnectionError("cut off")

    faulty.before_write = staticmethod(stop)
    save(store, copies, 2)
    assert "checkpoint of update 2 could not be copied to faulty://box" in caplog.text
    assert "ConnectionError: cut off" in caplog.text
    assert fetched_number(tmp_path / "new", "faulty://box") == 1


def test_a_torn_copy_is_told_of_and_copied_again(
    faulty: type[FaultyFileSystem], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that arrives short gets no facts; the next checkpoint brings both over."""
    store, copies = both(tmp_path / "here", "faulty://box")
    save(store, copies, 1)
    faulty.keeps_bytes = 1000
    save(store, copies, 2)
    assert "arrived with 1000 of its" in caplog.text
    assert fetched_number(tmp_path / "new", "faulty://box") == 1
    faulty.keeps_bytes = None
    save(store, copies, 3)
    assert len(names("faulty://box")) == 6


def corrupt(filesystem: Any, path: str) -> None:
    data = bytearray(filesystem.cat_file(path))
    data[len(data) // 2] ^= 1
    filesystem.pipe_file(path, bytes(data))


def shorten(filesystem: Any, path: str) -> None:
    filesystem.pipe_file(path, filesystem.cat_file(path)[:-10])


def remove(filesystem: Any, path: str) -> None:
    filesystem.rm_file(path)


@pytest.mark.parametrize("damage", [corrupt, shorten, remove], ids=lambda f: f.__name__)
def test_a_damaged_copy_is_passed_over(
    url: str, tmp_path: Path, damage: Callable[[Any, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it is taken, as from a local directory; if all are damaged, the run does not begin anew."""
    save(*both(tmp_path / "here", url), 1, 2)
    filesystem, root = fsspec.core.url_to_fs(url)
    damage(filesystem, f"{root}/checkpoint-000000002.pt")
    assert fetched_number(tmp_path / "new", url) == 1
    assert "update 2" in caplog.text
    damage(filesystem, f"{root}/checkpoint-000000001.pt")
    with pytest.raises(UserError, match="none of the 2 checkpoints at"):
        fetched_number(tmp_path / "newer", url)


def test_facts_that_are_torn_count_as_damage(tmp_path: Path) -> None:
    """A .json that was cut off vouches for nothing; the run's next checkpoint replaces it."""
    url = "memory://bucket/run"
    store, copies = both(tmp_path / "here", url)
    save(store, copies, 1, 2)
    MemoryFileSystem().pipe_file("/bucket/run/checkpoint-000000002.json", b'{"updates": 2')
    assert fetched_number(tmp_path / "new", url) == 1
    _, anew = both(tmp_path / "here", url)
    save(store, anew, 3)
    assert fetched_number(tmp_path / "newer", url) == 3
    assert MemoryFileSystem().cat_file("/bucket/run/checkpoint-000000002.json").endswith(b"}")


def test_failing_is_told_each_time_and_made_good(
    faulty: type[FaultyFileSystem], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the URL and the cause without the password; once it works, what was missed is there."""
    store, copies = both(tmp_path / "here", "faulty://user:secret@box")
    faulty.before_write = staticmethod(refuse)
    save(store, copies, 1, 2)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all("to faulty://box" in text and "PermissionError: no entry" in text for text in warnings)
    assert "secret" not in caplog.text
    assert "secret" not in copies.decision
    faulty.before_write = staticmethod(lambda path: None)
    save(store, copies, 3)
    assert len(names("faulty://user:secret@box")) == 6


def test_training_does_not_wait_for_a_copy(faulty: type[FaultyFileSystem], tmp_path: Path) -> None:
    """While one copy hangs others wait their turn unseen; the newest is there once it goes on."""
    go_on, begun = threading.Event(), []

    def hang(path: str) -> None:
        begun.append(path)
        assert go_on.wait(PATIENCE_S)

    faulty.before_write = staticmethod(hang)
    store, copies = both(tmp_path / "here", "faulty://box", kept=1)
    for number in (1, 2, 3):
        store.save(number, {"weight": torch.full((50_000,), float(number)), "updates": number}, {})
        copies.copy(number)
    assert not copies.finish(0.1)
    assert len(begun) <= 1
    go_on.set()
    assert copies.finish(PATIENCE_S)
    assert fetched_number(tmp_path / "new", "faulty://box") == 3


def test_an_end_that_cannot_wait_longer_says_so(
    faulty: type[FaultyFileSystem], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last copy is waited for within a limit, and given up with a warning."""
    go_on = threading.Event()
    faulty.before_write = staticmethod(lambda path: [go_on.wait(PATIENCE_S)])
    store, copies = both(tmp_path / "here", "faulty://box")
    store.save(1, {"updates": 1}, {})
    copies.copy(1)
    assert not copies.finish(0.05)
    assert "copying checkpoints to faulty://box took more than" in caplog.text
    go_on.set()
    assert copies.finish(PATIENCE_S)


def test_another_runs_url_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Copies of later updates than the run has made are left alone, and named once."""
    save(*both(tmp_path / "other", "memory://bucket/run"), 9)
    store, copies = both(tmp_path / "here", "memory://bucket/run")
    save(store, copies, 1, 2)
    assert caplog.text.count("is it another run's?") == 1
    assert "checkpoint-000000009.pt" in names("memory://bucket/run")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s4://bucket/run", r"'s4://bucket/run' is of a protocol that fsspec does not know: s4. Did you mean 's3'"),
        ("bucket/run", r"'bucket/run' names no filesystem: give a URL such as s3://bucket/run"),
        ("file://run", r"'file://run' is relative.*give the whole path, file:///"),
        ("https://user:secret@box/run?key=secret", r"'https://box/run\?…' can only be read"),
    ],
)
def test_a_bad_url_is_one_sentence(url: str, sentence: str) -> None:
    """What cannot be a place for checkpoints is refused before anything is started, without its secrets."""
    with pytest.raises(UserError, match=sentence) as caught:
        check_checkpoint_url(url)
    assert "secret" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which package to install is said, also for those who do not know fsspec."""
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UserError, match=r"'s3://bucket/run' needs a package.*`pip install s3fs`"):
        check_checkpoint_url("s3://key:secret@bucket/run")
    check_checkpoint_url("")


def test_a_url_that_cannot_be_read_does_not_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no checkpoint here and no answer from there, nobody knows what there is to go on from."""
    monkeypatch.setattr(FaultyFileSystem, "ls", lambda self, path, **options: refuse(path))
    _, copies = both(tmp_path, "faulty://user:secret@box")
    with pytest.raises(UserError, match=r"'faulty://box' cannot be read.*PermissionError") as caught:
        copies.fetch()
    assert "secret" not in str(caught.value)


def test_a_learner_goes_on_from_the_url_when_its_directory_is_lost(tmp_path: Path, url: str) -> None:
    """Bit for bit as from the directory; a directory that has checkpoints does not ask the URL."""
    replay = square_replay(tmp_path / "replay", sequence_length=8)
    settings = small_settings(records={"checkpoint_url": url})

    def learner(directory: str) -> Learner:
        return Learner(settings, square_format().spaces, replay, tmp_path / directory, prefetch=False)

    first = learner("first")
    assert first.restore().facts is None
    first.train(2)
    saved, _ = first.save({"env_steps": 17})
    first.finish()
    expected = first.train(2).metrics

    second = learner("second")
    assert second.restore().facts == saved
    assert any(f"update 2 was fetched from {url}" in decision for decision in second.decisions)
    assert any("start: from the checkpoint of update 2" in decision for decision in second.decisions)
    assert second.train(2).metrics == expected

    again = learner("first")
    assert again.restore().facts == saved
    assert not any("fetched" in decision for decision in again.decisions)
    replay.close()


def test_a_run_waits_for_its_last_copy_and_another_goes_on_from_it(
    faulty: type[FaultyFileSystem], tmp_path: Path
) -> None:
    """However slow the copying, a finished run is at the URL; without the directory a longer one continues it."""
    faulty.before_write = staticmethod(lambda path: time.sleep(0.3))
    assert inline_run(tmp_path / "run", env_steps=203) == 0
    last = CheckpointStore(tmp_path / "run" / "checkpoints", 1).numbers()[-1]
    assert f"checkpoint-{last:09d}.json" in names("faulty://box")
    shutil.rmtree(tmp_path / "run")
    assert inline_run(tmp_path / "run", env_steps=303) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"that of update {last} was fetched from faulty://box" in log
    assert CheckpointStore(tmp_path / "run" / "checkpoints", 1).numbers()[-1] > last


def test_a_run_goes_on_while_copying_fails(faulty: type[FaultyFileSystem], tmp_path: Path) -> None:
    """The run ends as it should, and its log says what was not copied, and why."""
    faulty.before_write = staticmethod(refuse)
    assert inline_run(tmp_path / "run", env_steps=203) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert "could not be copied to faulty://box" in log
    assert "PermissionError: no entry" in log


def inline_run(directory: Path, env_steps: int) -> int:
    settings = small_settings(
        env={"id": "faulty_environment:make", "kwargs": {"length": 20}, "image_size": 0},
        model={"vector_units": 8, "vector_layers": 1},
        actors={"count": 2, "environments": 2, "steps_per_order": 8},
        replay={"capacity_gb": 0.1, "held_out_every": 5},
        learner={"updates_per_order": 4, "publish_every": 8},
        train={"env_steps": env_steps, "prefill": 100, "ratio": 4.0},
        records={"checkpoint_every": 10, "checkpoint_url": "faulty://box"},
    )
    return train(settings, directory=directory, inline=True).exit_code
