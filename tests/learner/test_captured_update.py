"""Captured updates, with a graph that stands in for CUDA's: what is put back, what stays in place, what is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
import torch.distributed as dist
from update_trial import BOX, CHOICE, StandInGraph, Trial, settings_of

from dreamfleet.common.settings.resolve import resolve
from dreamfleet.learner import updater as updater_module
from dreamfleet.learner.agreement import Changes, metric_differences, norm_differences, tensor_differences
from dreamfleet.learner.captured_update import CudaGraph
from dreamfleet.learner.connected_ranks import ConnectedRanks, open_store


@pytest.fixture(autouse=True)
def _without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have functions stay as they are."""
    monkeypatch.setattr(updater_module, "compile_region", lambda region: region)


def captured(preset: str = "dreamer_v3", action: Any = CHOICE, **given: Any) -> tuple[Trial, StandInGraph]:
    """Return an agent whose updates are captured by a graph that stands in."""
    trial, graph = Trial(settings_of(preset), action, "captured", **given), StandInGraph()
    trial.updater._quick._graph = lambda: graph
    return trial, graph


@pytest.mark.parametrize(("preset", "action"), [("dreamer_v3", CHOICE), ("dreamer_v1", BOX), ("planet", BOX)])
def test_preparing_leaves_no_trace(preset: str, action: Any) -> None:
    """Parameters, moments, counts, buffers, flags and random numbers are as before, in the memory where they were."""
    trial, graph = captured(preset, action)
    untouched = Trial(settings_of(preset), action)
    before, drawn = trial.state(), torch.get_rng_state()
    addresses = {name: tensor.data_ptr() for name, tensor in trial.updater._state.tensors().items()}
    trial.prepare()
    assert graph.calls == ["warm up", "capture"]
    assert torch.equal(torch.get_rng_state(), drawn)
    after = trial.state()
    for name, value in after.items():
        assert torch.equal(value, before.get(name, torch.zeros_like(value))), name
    assert len(after) > len(before), "the optimiser's moments were not there before"
    found = trial.updater._state.tensors()
    assert all(found[name].data_ptr() == address for name, address in addresses.items())
    assert all(torch.equal(value, before[name]) for name, value in untouched.state().items())


PRESETS = [("dreamer_v3", CHOICE), ("dreamer_v3", BOX), ("dreamer_v2", CHOICE), ("dreamer_v1", BOX), ("planet", BOX)]
PRESETS += [("dreamer_v3+decoder_free", CHOICE), ("dreamer_v3+explore", CHOICE)]


@pytest.mark.parametrize(("preset", "action"), PRESETS)
def test_replays_follow_batch_number_and_seed(preset: str, action: Any) -> None:
    """Each replay reads the batch, the number and the random numbers of its own update, and its results are kept."""
    eager, (trial, graph) = Trial(settings_of(preset), action), captured(preset, action)
    trial.prepare()
    made = [(eager.update(), trial.try_update()) for _ in range(4)]
    assert graph.calls == ["warm up", "capture", *["replay"] * 4]
    for expected, update in made:  # read after all of them: a later replay must not have overwritten an earlier one's
        assert {name: value.item() for name, value in update.metrics.items()} == pytest.approx(expected, rel=1e-4)
    assert len({update.metrics["loss/total"].item() for _, update in made}) == 4


def test_a_batch_that_is_not_finite_changes_nothing_in_a_replay() -> None:
    """Nor does it spoil the graph; and where it is the first batch, the next one is checked."""
    trial, graph = captured()
    trial.prepare()
    for checks in (True, False):
        before = trial.state()
        trial.update(broken=True)
        after = trial.state()
        assert all(torch.equal(value, before[name]) for name, value in after.items() if name != "number")
        assert trial.updater._quick._is_checked is not checks
        trial.update()
        assert any(not torch.equal(value, after[name]) for name, value in trial.state().items() if "actor" in name)
    assert graph.calls.count("replay") == 3
    assert trial.updater.mode == "captured"


def test_a_loaded_checkpoint_is_gone_on_from() -> None:
    """Loading replaces the optimiser's tensors: it is captured again, and goes on as an eager one does."""
    eager, (trial, graph) = Trial(settings_of("dreamer_v3"), CHOICE), captured()
    for own in (eager, trial):
        own.update()
        own.resume()
    assert graph.calls == ["warm up", "capture", "replay", "warm up", "capture"]
    assert trial.update() == pytest.approx(eager.update(), rel=1e-4, abs=1e-5)
    for name, value in eager.state().items():
        torch.testing.assert_close(trial.state()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["warm up", "capture", "replay"])
def test_a_graph_that_fails_gives_way(caplog: pytest.LogCaptureFixture, what: str) -> None:
    """In a sentence, to compiled steps, with the update made all the same."""
    eager, (trial, graph) = Trial(settings_of("dreamer_v3"), CHOICE), captured()

    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    setattr(graph, what.replace(" ", "_"), fail)
    for _ in range(3):
        assert trial.update() == pytest.approx(eager.update(), rel=1e-4, abs=1e-5)
    assert trial.updater.mode == "compiled", "what was compiled is still of use"
    assert trial.updater._quick._is_checked
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith(
        "Updates go on with compiled steps alone, and not captured as one graph, since that failed: RuntimeError"
    )


def test_an_eager_trial_without_room_gives_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph keeps all memory of an update: where the eager one has none beside it, the graph is given up."""
    eager, (trial, graph) = Trial(settings_of("dreamer_v3"), CHOICE), captured()
    trial.prepare()
    quick, make = trial.updater._quick, trial.updater._quick._make

    def make_with_little_memory(losses: Any, *given: Any) -> Any:
        made = make(losses, *given)
        if losses is None and quick._captured is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made

    monkeypatch.setattr(quick, "_make", make_with_little_memory)
    for _ in range(2):
        assert trial.update() == pytest.approx(eager.update(), rel=1e-4, abs=1e-5)
    assert trial.updater.mode == "compiled"
    assert graph.calls == ["warm up", "capture"]
    assert "CUDA out of memory" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("preset", ["dreamer_v3", "dreamer_v2"])
def test_what_ranks_tell_is_part_of_the_graph(monkeypatch: pytest.MonkeyPatch, preset: str, device: str) -> None:
    """One rank, which tells itself by torch.distributed, makes the update that one without it makes."""
    store, _ = open_store("127.0.0.1")
    on = torch.device(device, 0) if device == "cuda" else torch.device(device)
    ranks = ConnectedRanks(0, 1, store, "127.0.0.1", on, timeout_s=60.0)
    try:
        eager, trial = (
            Trial(settings_of(preset), CHOICE, device=device),
            Trial(settings_of(preset), CHOICE, "captured", device, ranks=ranks),
        )
        told: list[str] = []
        if device == "cpu":
            graph = StandInGraph()
            trial.updater._quick._graph = lambda: graph
            monkeypatch.setattr(dist, "all_reduce", lambda *_: told.append(graph.calls[-1] if graph.calls else ""))
        trial.prepare()
        assert ranks._has_gradient is not None, "which parameters have a gradient is not told within a graph"
        if device == "cpu":
            assert told.count("warm up") == 1, "but for the agreement, nothing is told before the capture"
            assert told.count("capture") >= 2, "in the capture it is, besides its agreement"
        for _ in range(3):
            assert trial.update() == pytest.approx(eager.update(), rel=1e-4, abs=1e-5)
        assert trial.updater.mode == "captured", "it gave way"
    finally:
        dist.destroy_process_group()


class BrokenGraph:
    """`torch.cuda.graph` around what may not be captured: it fails in its end, and never leaves its stream."""

    def __init__(self, now: list[Any], stream: Any) -> None:
        self._now, self._stream = now, stream

    def __enter__(self) -> None:
        self._now[0] = self._stream

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize("has_left_pool", [False, True])
def test_a_capture_that_fails_leaves_torch_usable(monkeypatch: pytest.MonkeyPatch, has_left_pool: bool) -> None:
    """Else eager updates after it would be on the graph's stream, draw nothing, and free no memory; it says why."""
    outside, own, generator = Mock(device_index=0), Mock(), Mock()
    now = [outside]
    for name, stand_in in (
        ("CUDAGraph", Mock()),
        ("Stream", lambda: own),
        ("current_stream", lambda: now[0]),
        ("set_stream", lambda stream: now.__setitem__(0, stream)),
        ("graph_pool_handle", lambda: (0, 7)),
        ("graph", lambda _, pool, stream, **__: BrokenGraph(now, stream)),
        ("default_generators", (generator,)),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    end = Mock(side_effect=RuntimeError("not currently recording to mempool_id") if has_left_pool else None)
    release = Mock()
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)
    compute = Mock(side_effect=RuntimeError("operation not permitted when stream is capturing"))
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        CudaGraph().capture(compute)
    assert now == [outside]
    end.assert_called_once_with(0, (0, 7))
    assert release.call_args_list == ([] if has_left_pool else [call(0, (0, 7))])
    generator.graphsafe_set_state.assert_called_once_with(generator.clone_state())


# The check ------------------------------------------------------------------------------------------------------------


def _double(found: Any) -> Any:
    return found._replace(value=2.0 * found.value)


def _drop(found: Any) -> Any:
    return found._replace(policy=found.policy.detach())


def _shift(found: Any) -> Any:
    return found._replace(metrics={**found.metrics, "policy/loss": found.metrics["policy/loss"] + 0.5})


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (_double, "behaviour.critic.hidden.0.weight: gradient is otherwise"),
        (_drop, "agent.actor.hidden.0.weight: gradient is otherwise"),
        (_shift, "policy/loss is"),
    ],
)
@pytest.mark.parametrize("is_insisted", [False, True])
def test_what_computes_something_else_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: Callable[[Any], Any],
    named: str,
    is_insisted: bool,
) -> None:
    """A wrong loss or gradient is named at the first batch, captured and compiled; then it is eager, or one insists."""
    monkeypatch.setattr(
        updater_module,
        "compile_region",
        lambda region: (lambda *given: wrong(region(*given))) if "behaviour" in region.__name__ else region,
    )
    eager, (trial, _) = Trial(settings_of("dreamer_v3"), CHOICE), captured(is_insisted=is_insisted)
    made = [(eager.update(), trial.update()) for _ in range(2)]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == (1 if is_insisted else 2)
    assert named in said[0]
    assert all("the first one is not the eager one of the same batch" in each or is_insisted for each in said)
    assert trial.updater.mode == ("captured" if is_insisted else "eager")
    if not is_insisted:
        assert all(found == expected for expected, found in made)
        assert all(torch.equal(value, trial.state()[name]) for name, value in eager.state().items())


def _negate(found: Any) -> Any:
    return found._replace(policy=-found.policy)


def _forget_model(found: Any) -> Any:
    return found[0].detach().requires_grad_(), *found[1:]


@pytest.mark.parametrize("begins_at_zero", [False, True])
@pytest.mark.parametrize(
    ("region", "wrong"),
    [
        ("_behaviour_losses", _double),
        ("_behaviour_losses", _drop),
        ("_behaviour_losses", _negate),
        ("_after_loop", _forget_model),
    ],
)
def test_a_wrong_gradient_is_seen_through_roundings(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    region: str,
    wrong: Callable[[Any], Any],
    begins_at_zero: bool,
) -> None:
    """In bfloat16, at a first update by the preset's own optimiser, which makes whole steps of signs."""
    settings = resolve(["dreamer_v3", "debug"], [("learner.batch_size", "2"), ("learner.sequence_length", "3")])
    monkeypatch.setattr(
        updater_module,
        "compile_region",
        lambda own: (lambda *given: wrong(own(*given))) if own.__name__ == region else own,
    )
    trial = Trial(settings, CHOICE, "compiled", bfloat16=True, sees=True, begins_at_zero=begins_at_zero)
    trial.update()
    assert trial.updater.mode == "eager"
    assert "the first one is not the eager one of the same batch" in caplog.text


@pytest.mark.parametrize("preset", ["dreamer_v3", "dreamer_v2", "dreamer_v1", "planet", "dreamer_v3+decoder_free"])
def test_other_roundings_are_no_difference(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """Weights that are rounded once more, to bfloat16, stand for a compiler's kernels; five first updates agree."""
    flags = [("learner.batch_size", "2"), ("learner.sequence_length", "3")]
    settings = resolve([*preset.split("+"), "debug"], flags)
    trial = Trial(settings, BOX, "compiled", bfloat16=True, sees=True)
    quick, make = trial.updater._quick, trial.updater._quick._make
    monkeypatch.setattr(updater_module, "compile_region", lambda region: region)

    def round_first(losses: Any, *given: Any) -> Any:
        if losses is None:
            return make(losses, *given)
        weights = [
            tensor for tensor in trial.updater._state.tensors().values() if isinstance(tensor, torch.nn.Parameter)
        ]
        kept = [tensor.detach().clone() for tensor in weights]
        with torch.no_grad():
            for tensor in weights:
                tensor.copy_(tensor.bfloat16())
        made = make(losses, *given)
        with torch.no_grad():
            for tensor, value, rounded in zip(weights, kept, map(torch.Tensor.bfloat16, kept), strict=True):
                tensor.add_(value - rounded)
        return made

    monkeypatch.setattr(quick, "_make", round_first)
    for _ in range(5):
        trial.update()
        assert quick.mode == "compiled", "it gave way"
        quick._is_checked = False


def test_where_rounding_goes_far_twice_that_is_allowed() -> None:
    """And no more: of a norm too, whose tensors clipping may have made alike."""
    eager, disturbed = {"model.w": torch.ones(100)}, {"model.w": 1.6 * torch.ones(100)}
    for found, is_off in ((2.1, False), (2.3, True)):  # from 1, which rounding alone takes to 1.6
        assert bool(tensor_differences("is", eager, disturbed, {"model.w": found * torch.ones(100)}, 0.05)) is is_off
        assert bool(norm_differences([1.0], [1.6], [found])) is is_off
    (phrase,) = norm_differences([1.0, 3.0], [1.01, 3.0], [2.0, 3.0])
    assert phrase == "1 of 2 gradients have another norm before clipping, one of 2 where 1 ± 0.7 is right"
    assert norm_differences([1.0], [1.0], []) == ["0 gradients were clipped, eagerly 1"]
    assert norm_differences([1.0], [1.0], [float("nan")])


def test_single_numbers_that_rounding_moves_are_no_difference() -> None:
    """Where it moves each by a twentieth, one in many hardly moves in one update and does in the other."""
    generator = np.random.default_rng(0)
    names = [str(number) for number in range(100)]
    for _ in range(200):
        wanted = generator.lognormal(size=100)
        disturbed, found = (wanted + 0.05 * (1.0 + wanted) * generator.standard_normal(100) for _ in range(2))
        assert metric_differences(names, wanted, disturbed, found, 0.05) == []
        disturbed, found = (wanted * (1.0 + 0.05 * generator.standard_normal(100)) for _ in range(2))
        assert norm_differences(wanted, disturbed, found) == []
        for factor in (2.0, 0.5, 0.0):
            wrong = found.copy()
            wrong[3] *= factor
            assert len(norm_differences(wanted, disturbed, wrong)) == 1


def test_differences_are_named_only_beyond_rounding() -> None:
    """By what a disturbed update differs, and by what is allowed anyway; and what is not a number is never allowed."""
    names, wanted, disturbed = ["a", "b", "c"], [1.0, 0.0, 5.0], [1.0, 1.0, 5.0]
    assert metric_differences(names, wanted, disturbed, [1.001, 7.9, 5.0], 1e-3) == []
    phrases = metric_differences(names, wanted, disturbed, [1.01, 8.2, float("nan")], 1e-3)
    assert [phrase.split()[0] for phrase in phrases] == names
    before = {"model.w": torch.ones(100), "model.b": torch.zeros(1)}
    step, noise = torch.linspace(-1, 1, 100), 0.01 * torch.ones(100)
    after = {"model.w": torch.ones(100) + step, "model.b": torch.ones(1), "model.w: square": step.square()}
    eager = Changes(before, after)
    other = {**eager, "model.w": eager["model.w"] + noise}
    within = {**eager, "model.w": eager["model.w"] - 7 * noise}
    assert tensor_differences("changes", eager, other, within, 1e-3) == []
    for name, said in (
        ("model.w", "model.w changes"),
        ("model.b", "the small tensors of model changes"),
        ("model.w: square", "model.w: square changes"),
    ):
        for noisy in (other, {**other, name: 1.4 * eager[name]}):  # the more so where rounding alone goes as far
            (phrase,) = tensor_differences("changes", eager, noisy, {**eager, name: 0.0 * eager[name]}, 1e-3)
            assert phrase.startswith(said)
