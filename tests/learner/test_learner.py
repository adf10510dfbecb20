"""The learner: it learns, resumes bit for bit, refuses what does not fit, and never trains on what is no number."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from make_chunks import cut
from moving_square import play_square, square_format, square_replay
from small_runs import learner_on, small_settings

from dreamfleet.common.acting.agent_networks import flatten
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.experience.spaces import ActionSpec, Spaces
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.learner.checkpoints.restore import check_fits, load_world_model
from dreamfleet.learner.learner import Learner
from dreamfleet.learner.pictures.open_loop import dream
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.replay import Replay

SPACES = square_format().spaces


def same_weights(one: Learner, other: Learner) -> bool:
    mine, others = one.model.state_dict(), other.model.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.long
def test_it_learns_what_moves(tmp_path: Path) -> None:
    """Held out, the open loop is far better than a frame that stands still or the mean one, 5 steps ahead."""
    replay = square_replay(tmp_path / "replay", sequence_length=12)
    model = {"depth": 8, "embedding": 64, "deterministic": 64, "stochastic": 16, "hidden": 64, "reward_units": 32}
    settings = small_settings(model=model, learner={"batch_size": 16, "sequence_length": 12, "threads": 1})
    learner = learner_on(replay, tmp_path, settings, prefetch=True)
    first = learner.train(10).metrics
    before = learner.held_out_loss()
    learner.train(430)
    last = learner.train(10).metrics
    compressed = replay.sample_held_out(0, 16, 20)
    assert compressed is not None
    errors = dream(learner.model, decompress(compressed, square_format()), context=4).errors
    after = learner.held_out_loss()
    learner.close()
    replay.close()
    assert last["loss/reconstruction"] < 0.1 * first["loss/reconstruction"]
    assert before is not None
    assert after is not None
    assert after < 0.3 * before
    assert (errors.model[:5] < 0.6 * errors.last_frame[:5]).all()
    assert (errors.model[:5] < 0.6 * errors.mean_frame[:5]).all()


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    replay: Replay, tmp_path: Path, prefetch: bool, batch_norm: bool
) -> None:
    """2N updates equal N, a checkpoint, a new learner and N more, bit for bit, with the same losses on the way."""
    settings = small_settings(model={"batch_norm": batch_norm})
    whole = learner_on(replay, tmp_path / "whole", settings)
    whole.train(4)
    report = whole.train(4)

    first = learner_on(replay, tmp_path / "cut", settings, prefetch)
    first.train(4)
    first.draw_pictures()  # neither pictures nor measuring may disturb the run
    saved, _ = first.save({"env_steps": 17})
    first.close()
    second = learner_on(replay, tmp_path / "cut", settings, prefetch)
    assert second.restore().facts == saved
    resumed = second.train(4)
    second.close()

    assert resumed.updates == report.updates == 8
    assert resumed.metrics == report.metrics
    assert same_weights(whole, second)
    moments = [learner._updater.optimiser.state_dict()["state"] for learner in (whole, second)]
    for name, state in moments[0].items():
        assert all(torch.equal(state[key], moments[1][name][key]) for key in state)


def test_prefetching_changes_nothing(replay: Replay, tmp_path: Path) -> None:
    """Batches fetched ahead are the batches fetched on demand."""
    ahead = learner_on(replay, tmp_path, prefetch=True)
    direct = learner_on(replay, tmp_path)
    assert ahead.train(6).metrics == direct.train(6).metrics
    assert same_weights(ahead, direct)
    ahead.close()


def test_every_update_has_its_own_batch_and_noise(replay: Replay, tmp_path: Path) -> None:
    """Two learners of different seeds differ from the start, and one learner's batches differ from update to update."""
    one, other = (
        learner_on(replay, tmp_path),
        learner_on(replay, tmp_path, small_settings().model_copy(update={"seed": 4})),
    )
    assert not same_weights(one, other)
    batches = [one._batches.fetch(number).on_device["image"] for number in (1, 2)]
    assert not torch.equal(*batches)


def test_metrics_are_means_and_weights_follow_the_updates(replay: Replay, tmp_path: Path) -> None:
    """An order's metrics are the means of its updates' and every update publishes as a version of its own."""
    in_one, one_by_one = learner_on(replay, tmp_path), learner_on(replay, tmp_path)
    report = in_one.train(3)
    single = [one_by_one.train(1).metrics["loss/total"] for _ in range(3)]
    assert report.metrics["loss/total"] == pytest.approx(np.mean(single), rel=1e-5)
    assert report.metrics["gradient/norm"] > 0
    assert set(report.timings) == {"wait", "transfer", "forward_backward", "optimiser", "confirm", "publish"}
    published = in_one.publish()
    assert published.version == report.updates == 3
    assert published.handle.size == sum(tensor.numel() for tensor in in_one.model.acting_parameters().values())
    assert in_one.train(0).metrics == {}


def test_staleness_counts_updates_since_the_acting_weights(tmp_path: Path) -> None:
    """With all steps chosen by version 2, the sixth update replays what is 5 - 2 = 3 updates old."""
    arrays = play_square(4, 40, seed=0)
    arrays["version"][:] = 2
    with_version = Replay(tmp_path / "replay", square_format(), ReplaySettings(capacity_gb=0.1), 8, seed=0)
    for record in cut(square_format(), arrays):
        with_version.append(record)
    learner = learner_on(with_version, tmp_path)
    learner.train(5)
    assert learner.train(1).metrics["staleness/mean"] == 3.0
    metrics = learner.train(3).metrics
    assert (metrics["staleness/mean"], metrics["staleness/max"]) == (5.0, 6.0)
    with_version.close()


# Publishing ----------------------------------------------------------------------------------------------------------


def publishing(replay: Replay, directory: Path, every: int, kind: str = "planner") -> Learner:
    """Return a learner that publishes every so often."""
    settings = small_settings(learner={"publish_every": every}, behaviour={"kind": kind})
    return Learner(settings, SPACES, replay, directory, prefetch=False)


def test_weights_that_nobody_acts_with_are_published_once(replay: Replay, tmp_path: Path) -> None:
    """Where all actions are random."""
    learner = publishing(replay, tmp_path, 2, "random")
    assert learner.restore().published.version == 0
    assert [learner.train(2).published for _ in range(3)] == [None] * 3


def test_the_first_weights_are_published_at_the_start(replay: Replay, tmp_path: Path) -> None:
    """Actors have weights before the first update, and after a restart those that were restored."""
    first = publishing(replay, tmp_path, 16)
    restored = first.restore()
    assert restored.updates == restored.published.version == 0
    first.train(2)
    saved = first.save({}).weights
    assert saved.version == 2
    assert not np.array_equal(saved.handle, restored.published.handle)
    again = publishing(replay, tmp_path, 16).restore()
    assert again.updates == again.published.version == 2
    assert np.array_equal(again.published.handle, saved.handle)


def test_weights_are_published_once_per_so_many_updates(replay: Replay, tmp_path: Path) -> None:
    """An order that passes a multiple of `publish_every` publishes once, at its end; the others publish nothing."""
    learner = publishing(replay, tmp_path, 4)
    begin = learner._publisher.begin = Mock(wraps=learner._publisher.begin)  # type: ignore[method-assign]
    learner.restore()
    published = [learner.train(updates).published for updates in (2, 2, 2, 2, 2, 10)]
    assert begin.call_count == 4
    assert [weights and weights.version for weights in published] == [None, 4, None, 8, None, 20]
    assert published[-1]
    assert np.array_equal(published[-1].handle, flatten(learner.agent.acting_parameters()))


# What must not be trained on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_loss_that_is_no_number_changes_nothing(tmp_path: Path, prefetch: bool) -> None:
    """The update is refused by name, its batch is on disk for a look, and the learner is as before it."""
    arrays = play_square(3, 40, seed=0)
    arrays["reward"][:] = np.nan
    poisoned = Replay(tmp_path / "replay", square_format(), ReplaySettings(capacity_gb=0.1), 8, seed=0)
    for record in cut(square_format(), arrays):
        poisoned.append(record)
    learner = learner_on(poisoned, tmp_path, small_settings(model={"batch_norm": True}), prefetch)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    for _ in range(2):  # asked again, it is the same update with the same batch
        with pytest.raises(
            RunFailedError, match=r"update 1 was not made: .*loss/reward.*gave values.*: reward"
        ) as caught:
            learner.train(2)
        assert "loss/kl" not in str(caught.value)
    assert learner.updates == 0
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with np.load(tmp_path / "bad_batch-1.npz", allow_pickle=False) as saved:
        assert set(saved) == {field.name for field in square_format().fields}
        assert saved["image"].shape == (4, 8, 16, 16, 1)
        assert np.isnan(saved["reward"]).all()
    learner.close()
    poisoned.close()


def test_a_gradient_that_overflows_is_refused_too(replay: Replay, tmp_path: Path) -> None:
    """Where the batch is sound the message does not blame it."""
    learner = learner_on(replay, tmp_path, small_settings(learner={"learning_rate": 1e30}))
    with pytest.raises(RunFailedError, match=r"All values of the batch are finite: a smaller learner.learning_rate"):
        learner.train(20)
    assert 0 < learner.updates < 20
    assert all(tensor.isfinite().all() for tensor in learner.model.buffers())


# Resuming ------------------------------------------------------------------------------------------------------------


def test_without_a_checkpoint_it_begins_anew(replay: Replay, tmp_path: Path) -> None:
    """No checkpoint is no error, and the decision is reported."""
    learner = learner_on(replay, tmp_path)
    assert learner.restore().facts is None
    assert any("from the beginning" in decision for decision in learner.decisions)


def test_a_damaged_newest_checkpoint_costs_the_updates_since_the_one_before(replay: Replay, tmp_path: Path) -> None:
    """The learner continues from the checkpoint before."""
    learner = learner_on(replay, tmp_path)
    for _ in range(2):
        learner.train(2)
        learner.save({})
    newest = tmp_path / "checkpoints" / "checkpoint-000000004.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    again = learner_on(replay, tmp_path)
    again.restore()
    assert again.updates == 2


def test_a_checkpoint_of_another_model_is_refused_by_parameter_and_shape(replay: Replay, tmp_path: Path) -> None:
    """The message names a parameter with both its shapes."""
    learner_on(replay, tmp_path).save({})
    wider = learner_on(replay, tmp_path, small_settings(model={"deterministic": 24}))
    with pytest.raises(UserError, match=r"parameter 'dynamics\..*' has shape \(48, 16\) there and \(72, 16\) by these"):
        wider.restore()
    deeper = learner_on(replay, tmp_path, small_settings(model={"continue_head": True}))
    with pytest.raises(UserError, match=r"no further parameter there, and it has parameter 'continu.*' of shape \("):
        deeper.restore()


def test_a_checkpoint_of_another_environment_is_refused(replay: Replay, tmp_path: Path) -> None:
    """The message names the part of the spaces that differs, and both versions of it."""
    learner_on(replay, tmp_path).save({})
    other = Spaces(SPACES.observations, ActionSpec("discrete", (7,)))
    with pytest.raises(UserError, match=r"its action was discrete \(4,\) and is now discrete \(7,\)"):
        Learner(small_settings(), other, replay, tmp_path, prefetch=False).restore()


def test_a_resumed_run_takes_the_learning_rate_of_its_settings(replay: Replay, tmp_path: Path) -> None:
    """Who lowers the learning rate and resumes trains with the lower one, with Adam's moments kept."""
    first = learner_on(replay, tmp_path)
    first.train(2)
    first.save({})
    second = learner_on(replay, tmp_path, small_settings(learner={"learning_rate": 1e-5}))
    second.restore()
    optimiser = second._updater.optimiser
    assert optimiser.param_groups[0]["lr"] == 1e-5
    assert all(state["exp_avg"].any() for state in list(optimiser.state.values())[:1])


@pytest.mark.parametrize("resumed", ["tensorflow_adam", "adam"])
def test_both_adams_resume_each_other(replay: Replay, tmp_path: Path, resumed: str) -> None:
    """Their moments are the same; LaProp's are others, which is said before anything is loaded."""
    first = learner_on(replay, tmp_path, small_settings(learner={"optimiser": "tensorflow_adam"}))
    first.train(1)
    first.save({})
    settings = small_settings(learner={"optimiser": resumed})
    check_fits(tmp_path / "checkpoints", settings, SPACES)
    assert learner_on(replay, tmp_path, settings).restore().updates == 1
    with pytest.raises(UserError, match=r"give --learner\.optimiser adam"):
        check_fits(tmp_path / "checkpoints", small_settings(learner={"optimiser": "laprop"}), SPACES)


def test_a_trained_model_loads_by_its_directory(replay: Replay, tmp_path: Path) -> None:
    """Checkpoint and model settings are enough to get the model back."""
    learner = learner_on(replay, tmp_path)
    learner.train(2)
    learner.save({})
    model, facts = load_world_model(tmp_path / "checkpoints", small_settings())
    assert facts["updates"] == 2
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in learner.model.state_dict().items())
    assert not model.training
    with pytest.raises(UserError, match="no checkpoint in"):
        load_world_model(tmp_path / "elsewhere", small_settings())


# Choices -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells of a machine without a GPU")
def test_choices_are_told_with_their_reasons(replay: Replay, tmp_path: Path) -> None:
    """Each choice is a sentence with its reason; a GPU that is not there is an error."""
    automatic = learner_on(replay, tmp_path, small_settings(learner={"device": "auto"}))
    assert "device: cpu, no GPU was found" in automatic.decisions
    assert any(decision.startswith("precision: float32, ") for decision in automatic.decisions)
    assert any(decision.startswith("threads: ") for decision in automatic.decisions)
    assert "updates: eager, since a CPU gains little" in automatic.decisions
    with pytest.raises(UserError, match=r"learner\.device is cuda"):
        learner_on(replay, tmp_path, small_settings(learner={"device": "cuda"}))


def test_threads_are_set(replay: Replay, tmp_path: Path) -> None:
    """The setting reaches torch."""
    before = torch.get_num_threads()
    learner_on(replay, tmp_path, small_settings(learner={"threads": 1}))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_bfloat16_trains_on_a_cpu_too(replay: Replay, tmp_path: Path) -> None:
    """The arithmetic a GPU uses gives finite losses near those of float32, with float32 parameters."""
    exact = learner_on(replay, tmp_path)
    rounded = learner_on(replay, tmp_path, small_settings(learner={"precision": "bfloat16"}))
    assert rounded.train(2).metrics["loss/total"] == pytest.approx(exact.train(2).metrics["loss/total"], rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in rounded.model.parameters())
