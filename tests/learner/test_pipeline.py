"""What is done beside the updates: batches travel, weights and checkpoints leave, on a device that is always behind."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from late_lane import LateLane
from moving_square import square_format
from small_runs import learner_on, small_settings

from dreamfleet.common.acting.agent_networks import flatten
from dreamfleet.common.errors import UserError
from dreamfleet.learner import learner as learner_module
from dreamfleet.learner import saving
from dreamfleet.learner.batches import Batch, NotFiniteLossError
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.learner.lane import HiddenWork, Lane
from dreamfleet.learner.publishing import WeightsPublisher
from dreamfleet.learner.saving import snapshot
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.replay import Replay


class LateLearner:
    """A learner whose lanes are late: of batches, publishing and checkpoints."""

    def __init__(
        self, replay: Replay, directory: Path, monkeypatch: pytest.MonkeyPatch, publish_every: int = 2
    ) -> None:
        self.lanes: list[LateLane] = []

        def make_late(device: torch.device, hidden: HiddenWork, beside: bool) -> Lane:
            self.lanes.append(LateLane())
            return self.lanes[-1]

        settings = small_settings(learner={"publish_every": publish_every}, behaviour={"kind": "planner"})
        with monkeypatch.context() as patched:
            patched.setattr(learner_module, "make_lane", make_late)
            self.learner = learner_on(replay, directory, settings, prefetch=True)
        self.batches, self.publishing, self.saving = self.lanes

    def weights(self) -> np.ndarray:
        """Return the weights as they are now."""
        return flatten(self.learner.agent.acting_parameters())


@pytest.fixture
def late(replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LateLearner:
    """Return a learner that is late."""
    return LateLearner(replay, tmp_path / "late", monkeypatch)


# Batches -------------------------------------------------------------------------------------------------------------


def test_a_batch_is_on_the_device_only_once_it_is_followed(replay: Replay) -> None:
    """The stand-in can fail: before `arrive` there is what was there before."""
    lane = LateLane()
    batch = Batch(square_format(), 4, 8, lane)
    wanted = decompress(replay.sample(1, 4), square_format(), out=batch.arrays)
    batch.upload()
    assert (batch.on_device["image"] == 113).all()
    assert np.array_equal(batch.arrive()["image"].numpy(), wanted["image"])
    assert "version" not in batch.on_device, "no loss reads it"
    assert batch.on_host["version"].shape == (4, 8)


def test_updates_on_a_device_that_is_behind_are_those_of_one_that_is_not(
    replay: Replay, tmp_path: Path, late: LateLearner
) -> None:
    """Copied as late as may be, each batch is whole when its update reads it, and none lies where another one is."""
    plain = learner_on(replay, tmp_path / "plain")
    for updates in (5, 1, 9):
        assert late.learner.train(updates).metrics == plain.train(updates).metrics
    late.learner.close()


def test_the_memory_of_batches_is_a_ring(replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are those fetched ahead and two more, and a batch is used again only after its update is known."""
    made: list[Batch] = []
    held: list[Batch] = []
    built, taken, released = Batch.__init__, learner_module.TrainingBatches.take, learner_module.TrainingBatches.release

    def build(self: Batch, *arguments: object) -> None:
        made.append(self)
        built(self, *arguments)  # type: ignore[arg-type]

    def take(self: learner_module.TrainingBatches, number: int) -> Batch:
        batch = taken(self, number)
        assert all(batch is not other for other in held)
        held.append(batch)
        assert len(held) <= 2
        return batch

    def release(self: learner_module.TrainingBatches, batch: Batch) -> None:
        assert batch is held.pop(0)
        released(self, batch)

    monkeypatch.setattr(Batch, "__init__", build)
    monkeypatch.setattr(learner_module.TrainingBatches, "take", take)
    monkeypatch.setattr(learner_module.TrainingBatches, "release", release)
    learner = learner_on(replay, tmp_path, small_settings(learner={"prefetch": 3}), prefetch=True)
    learner.train(20)
    learner.train(20)
    learner.close()
    assert not held
    assert 3 <= len(made) <= 5


def test_a_batch_that_is_not_finite_is_saved_while_the_next_one_is_under_way(
    replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known an update late: the file has its own arrays, neither update has changed anything, both come again."""
    plain = LateLearner(replay, tmp_path / "plain", monkeypatch).learner
    expected = [plain.train(4).metrics, plain.train(3).metrics]
    plain.close()
    late = LateLearner(replay, tmp_path / "late", monkeypatch)
    (tmp_path / "late").mkdir()
    fetch, is_broken = learner_module.TrainingBatches.fetch, True

    def fetch_broken(self: learner_module.TrainingBatches, number: int) -> Batch:
        batch = fetch(self, number)
        if number == 5 and is_broken:
            late.batches.follow(late.batches.mark())
            batch.on_host["reward"][1, 2] = np.nan
            batch.upload()
        return batch

    monkeypatch.setattr(learner_module.TrainingBatches, "fetch", fetch_broken)
    assert late.learner.train(4).metrics == expected[0]
    before = late.weights()
    with pytest.raises(NotFiniteLossError, match="update 5 was not made"):
        late.learner.train(3)
    assert np.array_equal(late.weights(), before)
    wanted = decompress(replay.sample(5, 4), square_format())
    with np.load(tmp_path / "late" / "bad_batch-5.npz", allow_pickle=False) as saved:
        assert np.isnan(saved["reward"][1, 2])
        assert np.array_equal(saved["image"], wanted["image"])
    is_broken = False
    assert late.learner.train(3).metrics == expected[1]
    late.learner.close()


# Publishing ----------------------------------------------------------------------------------------------------------


def test_weights_are_published_as_they_were_and_come_with_a_later_report(late: LateLearner) -> None:
    """Version 2 has the weights after two updates, though it leaves after the third; one version follows another."""
    late.learner.restore()
    assert late.learner.train(2).published is None
    wanted = late.weights()
    assert late.learner.train(1).published is None
    late.publishing.catch_up()
    published = late.learner.train(1).published
    assert published is not None
    assert published.version == 2
    assert np.array_equal(published.handle, wanted)
    assert late.learner.train(2).published.version == 4, "it had to leave before version 6"
    assert late.learner.train(0).published is None
    late.publishing.catch_up()
    assert late.learner.train(0).published.version == 6
    late.learner.close()


def test_what_publishing_raises_is_raised_once(late: LateLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that could not leave the device fail the next order, and the version after them is published."""
    publisher = WeightsPublisher(late.learner.agent.acting_parameters, late.publishing)
    with monkeypatch.context() as full:
        full.setattr(late.publishing, "to_host", Mock(side_effect=MemoryError("full")))
        publisher.begin(1)
        assert publisher.take() is None
        late.publishing.catch_up()
    with pytest.raises(MemoryError, match="full"):
        publisher.take()
    assert publisher.publish(2).version == 2


# Checkpoints ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_of_the_state_when_it_was_begun(replay: Replay, tmp_path: Path, late: LateLearner) -> None:
    """It is reported once it is on the disk, with its own weights, and resumes as one written at once."""
    late.learner.train(3)
    wanted = late.weights()
    assert late.learner.start_saving({"env_steps": 17}) is None
    report = late.learner.train(3)
    store = CheckpointStore(tmp_path / "late" / "checkpoints", 3)
    assert (report.saved, store.numbers()) == ([], [])
    late.saving.catch_up()
    (saved,) = late.learner.train(1).saved
    late.learner.close()
    assert store.numbers() == [3]
    assert saved.facts == store.facts(3)
    assert saved.facts["env_steps"] == 17
    assert saved.weights.version == 3
    assert np.array_equal(saved.weights.handle, wanted)

    again, plain = learner_on(replay, tmp_path / "late"), learner_on(replay, tmp_path / "plain")
    assert again.restore().updates == 3
    plain.train(3)
    assert again.train(2).metrics == plain.train(2).metrics


def test_a_learner_that_is_lost_while_it_writes_has_not_saved(
    replay: Replay, tmp_path: Path, late: LateLearner
) -> None:
    """The one that follows goes on from the checkpoint before."""
    late.learner.train(1)
    late.learner.save({})
    late.learner.train(1)
    assert late.learner.start_saving({}) is None
    late.learner.close()
    assert learner_on(replay, tmp_path / "late").restore().updates == 1


def test_checkpoints_are_written_one_after_another_and_waited_for(tmp_path: Path, late: LateLearner) -> None:
    """A second one, the last one and an evaluation's results wait for what is being written."""
    store = CheckpointStore(tmp_path / "late" / "checkpoints", 9)
    late.learner.train(1)
    late.learner.start_saving({})
    assert late.learner.record_evaluation(1, {"evaluation_return": 2.0})
    assert store.facts(1)["evaluation_return"] == 2.0
    late.learner.train(1)
    late.learner.start_saving({})
    late.learner.train(1)
    late.learner.start_saving({})
    assert store.numbers() == [1, 2]
    late.learner.train(1)
    assert late.learner.save({}).facts["updates"] == 4
    assert store.numbers()[-2:] == [3, 4]
    assert [saved.facts["updates"] for saved in late.learner.finish_saving()] == [3]
    late.learner.start_saving({})
    late.learner.finish()
    assert not late.saving._work
    late.learner.close()


def test_a_checkpoint_that_cannot_be_written_ends_the_next_order(
    tmp_path: Path, late: LateLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told, if later; what was written before is untouched."""
    late.learner.train(1)
    late.learner.save({})
    late.learner.train(1)
    late.learner.start_saving({})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    late.saving.catch_up()
    with pytest.raises(UserError, match="No space left on device; older checkpoints are as they were"):
        late.learner.train(1)
    late.learner.close()
    assert CheckpointStore(tmp_path / "late" / "checkpoints", 3).numbers() == [1]


def test_without_room_for_a_copy_it_is_written_at_once(
    tmp_path: Path, late: LateLearner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU that is full still saves, between two updates, and says so."""

    def fail(state: object) -> None:
        raise torch.OutOfMemoryError

    late.learner.train(1)
    monkeypatch.setattr(saving, "snapshot", fail)
    with caplog.at_level("INFO", "dreamfleet"):
        saved = late.learner.start_saving({})
    late.learner.close()
    assert saved is not None
    assert saved.weights.version == saved.facts["updates"] == 1
    assert CheckpointStore(tmp_path / "late" / "checkpoints", 3).numbers() == [1]
    assert "the GPU has no room for a copy of the state" in caplog.text


def test_a_snapshot_shares_nothing() -> None:
    """Tensors are copied wherever they are; what else there is stays."""
    state = {"a": torch.ones(2), "b": [{"c": torch.zeros(1)}, 3], "d": ("x", torch.ones(1))}
    taken = snapshot(state)
    state["a"].fill_(5)
    state["b"][0]["c"].fill_(5)  # type: ignore[index]
    assert taken["a"].tolist() == [1, 1]
    assert taken["b"][0]["c"].tolist() == [0]
    assert taken["b"][1] == 3
    assert taken["d"][0] == "x"


def test_on_a_cpu_nothing_is_beside(replay: Replay, tmp_path: Path) -> None:
    """A checkpoint is written when its order is answered; only fetching in threads is hidden."""
    direct, ahead = learner_on(replay, tmp_path), learner_on(replay, tmp_path / "ahead", prefetch=True)
    assert direct.train(2).hidden == {}
    assert set(ahead.train(2).hidden) == {"fetch"}
    assert ahead.train(1).saved == []
    saved = ahead.start_saving({})
    assert saved is not None
    assert saved.facts["updates"] == saved.weights.version == 3
    assert ahead.finish_saving() == []
    ahead.close()
