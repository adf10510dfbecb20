"""Checkpoints: whole or not at all, the newest and the best kept, nothing executed when one is read."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.learner.checkpoints import store as checkpoints
from dreamfleet.learner.checkpoints.store import CheckpointStore, DamagedCheckpointError


def state_of(number: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((100,), float(number))}, "updates": number}


def store_with(directory: Path, numbers: list[int], kept: int = 3) -> CheckpointStore:
    store = CheckpointStore(directory, kept)
    for number in numbers:
        store.save(number, state_of(number), {"env_steps": 10 * number, "held_out_loss": None})
    return store


def loaded_number(store: CheckpointStore) -> int:
    found = store.load_newest()
    assert found is not None
    state, facts = found
    assert facts["updates"] == state["updates"]
    assert torch.equal(state["model"]["weight"], torch.full((100,), float(state["updates"])))
    return int(state["updates"])


def test_an_empty_directory_has_no_checkpoint(tmp_path: Path) -> None:
    """Before the first save there is nothing to load, also where the directory is not there."""
    assert CheckpointStore(tmp_path / "none", 3).load_newest() is None


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    """State and facts are loaded as saved, with the size and hash that vouch for them."""
    store = store_with(tmp_path, [1, 2])
    state, facts = store.load(1)
    data = (tmp_path / "checkpoint-000000001.pt").read_bytes()
    assert torch.equal(state["model"]["weight"], torch.ones(100))
    assert facts["env_steps"] == 10
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert facts["bytes"] == len(data)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    """Older ones go, the best by held-out loss stays however old; a loss that is no number is no best."""
    store = CheckpointStore(tmp_path, kept=2)
    for number, loss in [(1, 5.0), (2, 1.0), (3, 4.0), (4, float("nan")), (5, 3.0)]:
        store.save(number, state_of(number), {"held_out_loss": loss})
    assert store.numbers() == [2, 4, 5]
    assert store.best() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"checkpoint-00000000{number}.{ending}" for number in (2, 4, 5) for ending in ("json", "pt")
    ]


def flip_a_byte(directory: Path) -> None:
    path = directory / "checkpoint-000000003.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(directory: Path) -> None:
    path = directory / "checkpoint-000000003.pt"
    path.write_bytes(path.read_bytes()[:-10])


def remove_tensors(directory: Path) -> None:
    (directory / "checkpoint-000000003.pt").unlink()


def remove_facts(directory: Path) -> None:
    (directory / "checkpoint-000000003.json").unlink()


def spoil_facts(directory: Path) -> None:
    (directory / "checkpoint-000000003.json").write_text('{"updates": 3')


def empty_facts(directory: Path) -> None:
    (directory / "checkpoint-000000003.json").write_text("{}")


@pytest.mark.parametrize(
    "damage", [flip_a_byte, truncate, remove_tensors, remove_facts, spoil_facts, empty_facts], ids=lambda f: f.__name__
)
def test_a_damaged_newest_one_is_skipped_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever happened to the newest, the one before it is taken and the damage is named."""
    store = store_with(tmp_path, [1, 2, 3])
    damage(tmp_path)
    assert loaded_number(store) == 2
    assert "update 3" in caplog.text
    assert "checkpoint-000000003" in caplog.text


def test_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    """A run does not silently begin anew over checkpoints that cannot be read."""
    store = store_with(tmp_path, [3])
    truncate(tmp_path)
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        store.load_newest()


def test_an_old_one_that_cannot_be_removed_does_not_cost_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The learner would fail at each checkpoint, and be replaced, until the run is given up."""
    store = CheckpointStore(tmp_path, kept=1)
    store.save(1, {"updates": 1}, {})
    facts = tmp_path / "checkpoint-000000001.json"
    facts.unlink()
    facts.mkdir()
    written = store.save(2, {"updates": 2}, {})
    assert written["updates"] == 2
    assert f"{facts} cannot be removed" in caplog.text
    assert store.load_newest() is not None


def test_a_run_that_went_back_keeps_what_it_saves(tmp_path: Path) -> None:
    """After a resume from the one before a damaged one, a new save is not pruned for its lower number."""
    store = store_with(tmp_path, [1, 3], kept=1)
    flip_a_byte(tmp_path)
    store.save(2, state_of(2), {})
    assert loaded_number(store) == 2


@pytest.mark.parametrize("renames", [0, 1])
@pytest.mark.parametrize("number", [2, 3])
def test_a_crash_while_saving_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, number: int
) -> None:
    """Wherever the process dies, the newest whole checkpoint loads: also when the same one was being saved again."""
    store = store_with(tmp_path, [1, 2])
    rename = checkpoints.rename_synced
    done: list[Path] = []

    def rename_or_die(source: Path, target: Path) -> None:
        if len(done) == renames:
            os._exit(9)
        done.append(target)
        rename(source, target)

    monkeypatch.setattr(checkpoints, "rename_synced", rename_or_die)
    child = os.fork()
    if child == 0:
        store.save(number, state_of(number), {"again": True})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    assert loaded_number(store) == 2
    assert list(tmp_path.glob("*.tmp"))
    store.remove_unfinished()
    assert not list(tmp_path.glob("*.tmp"))
    assert loaded_number(store) == (number if renames else 2), "one rename is enough to finish it"


def test_a_crash_between_the_renames_of_the_only_checkpoint_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved again with other parameters, and killed when the new .pt has its name: the next start has the new one."""
    store = store_with(tmp_path, [2])
    rename = checkpoints.rename_synced

    def die_before_the_facts(source: Path, target: Path) -> None:
        if target.suffix == ".json":
            os._exit(9)
        rename(source, target)

    monkeypatch.setattr(checkpoints, "rename_synced", die_before_the_facts)
    child = os.fork()
    if child == 0:
        store.save(2, {"model": {"weight": torch.zeros(100)}, "updates": 2}, {})
        os._exit(0)
    os.waitpid(child, 0)
    monkeypatch.undo()
    with pytest.raises(DamagedCheckpointError):
        store.load(2)
    store.remove_unfinished()
    assert torch.equal(store.load(2)[0]["model"]["weight"], torch.zeros(100))


@pytest.mark.parametrize("left", [b"", b"half of the tensors"], ids=["empty", "half"])
def test_one_that_was_never_finished_is_in_nobodys_way(
    tmp_path: Path, left: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A .pt without facts is no checkpoint: none to go on from, which is said; the next save replaces it."""
    store = CheckpointStore(tmp_path, 3)
    (tmp_path / "checkpoint-000000003.pt").write_bytes(left)
    (tmp_path / "checkpoint-000000003.json.tmp").write_text('{"updates": 3, "low": ')
    assert store.is_empty
    assert store.load_newest() is None
    assert "skipping the checkpoint of update 3" in caplog.text
    assert "was never finished" in caplog.text
    store.remove_unfinished()
    store.save(3, state_of(3), {})
    assert loaded_number(store) == 3
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("facts", [{"spaces": {"low": float("-inf")}}, {"sizes": {1, 2}}, {"steps": b"3"}], ids=str)
def test_facts_that_cannot_be_written_leave_no_half_checkpoint(tmp_path: Path, facts: dict[str, Any]) -> None:
    """What strict JSON does not know is one sentence, and neither file is there; those before are as they were."""
    store = store_with(tmp_path, [1])
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RunFailedError, match=r"checkpoint of update 2 could not be written.* no JSON: .*older"):
        store.save(2, state_of(2), facts)
    with pytest.raises(RunFailedError, match="no JSON"):
        store.record_evaluation(1, facts)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert loaded_number(store) == 1


def test_returns_that_are_not_finite_are_no_measurement(tmp_path: Path) -> None:
    """An evaluation whose rewards overflowed is written, and makes no checkpoint the best."""
    store = store_with(tmp_path, [1, 2])
    assert store.record_evaluation(1, {"evaluation_return": float("inf"), "evaluation_returns": [1.0, float("inf")]})
    assert store.facts(1)["evaluation_returns"] == [1.0, None]
    assert store.best() is None
    assert store.record_evaluation(2, {"evaluation_return": 1.0})
    assert store.best() == 2


@pytest.mark.parametrize(
    "spoiled",
    [b"", b'{"format": 1', b"[1, 2]", b'{"format": 1, "sha256": 7, "bytes": null, "updates": "2"}', b"[" * 100_000],
    ids=["empty", "half", "a list", "other kinds", "deep"],
)
def test_facts_that_are_not_whole_take_no_place_of_one_that_is(tmp_path: Path, spoiled: bytes) -> None:
    """The newest whole ones are kept in their number, whatever stands beside them, and the spoiled is cleared away."""
    store = store_with(tmp_path, [1, 2, 3], kept=2)
    (tmp_path / "checkpoint-000000003.json").write_bytes(spoiled)
    assert loaded_number(store) == 2
    store.save(4, state_of(4), {})
    assert store.numbers() == [2, 4]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".pt", ".pt"]


def test_merits_from_elsewhere_may_be_anything(tmp_path: Path) -> None:
    """Facts that hold NaN or a word where a measurement should stand are not measured, and nothing fails of it."""
    store = store_with(tmp_path, [1, 2])
    path = tmp_path / "checkpoint-000000001.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"held_out_loss": float("nan"), "evaluation_return": "?"})
    )
    store.record_evaluation(2, {"held_out_loss": 1.0})
    assert store.best() == 2


def test_a_full_disk_is_one_sentence_and_leaves_the_others(tmp_path: Path) -> None:
    """A write that fails half-way names the file, and neither spoils nor leaves anything."""
    store = store_with(tmp_path, [1])
    before = sorted(path.name for path in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"checkpoint-000000002.pt could not be written.*older checkpoints"):
            store.save(2, {"weight": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert loaded_number(store) == 1


class Attack:
    """Something whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_checkpoint_cannot_execute_anything(tmp_path: Path) -> None:
    """A pickle that would run code is refused even where its facts vouch for it."""
    store = store_with(tmp_path, [1])
    for write in (lambda path: path.write_bytes(pickle.dumps(Attack(tmp_path / "hit"))),
                  lambda path: torch.save({"x": Attack(tmp_path / "hit")}, path)):  # fmt: skip
        path = tmp_path / "checkpoint-000000001.pt"
        write(path)
        facts = json.loads(path.with_suffix(".json").read_text())
        facts |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        path.with_suffix(".json").write_text(json.dumps(facts))
        with pytest.raises(DamagedCheckpointError):
            store.load(1)
    assert not (tmp_path / "hit").exists()


def test_a_format_of_the_future_is_named(tmp_path: Path) -> None:
    """A checkpoint of another format is not damage but a version to install."""
    store = store_with(tmp_path, [1])
    path = tmp_path / "checkpoint-000000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9, "dreamfleet": "7.0"}))
    with pytest.raises(UserError, match=r"format 9.*dreamfleet 7\.0"):
        store.load_newest()
