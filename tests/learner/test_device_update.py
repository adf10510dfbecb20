"""An update asks its device for nothing: under fake tensors, which have no values, and with what is not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.networks import make_networks
from dreamfleet.learner.hardware import Hardware
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.updater import Update, Updater

CHOICE = ActionSpec("discrete", (3,), (), (), ())
BOX = ActionSpec("box", (2,), (-1.25, -1.5), (1.75, 2.0), (2,))
"""Bounds that no other test has: their tensors are cached, and fake ones must not meet real ones."""

LENGTH = 16
BUDGETS = {"planet": 1160, "dreamer_v1": 3050, "dreamer_v2": 2320, "dreamer_v3": 5530, "small": 1130, "article": 1450}
BUDGETS |= {"dreamer_v3+decoder_free": 5390, "dreamer_v3+explore": 8100}
"""Operations of an update on sequences of `LENGTH`, without views: 5 % above what was counted.

Norms are counted as a CPU takes them apart: a GPU has fewer kernels.
"""


def make_updater(settings: Settings, action: ActionSpec, fake: FakeTensorMode | None = None) -> Updater:
    """Return an updater; with a mode, all its tensors are exchanged for fake ones of the same shape and strides."""
    spaces = Spaces((ObservationSpec("image", (64, 64, 3), "uint8"),), action)
    with unset_fake_temporarily():
        networks = make_networks(spaces, settings)
    if fake is not None:
        exchanged: dict[int, Tensor] = {}
        for network in networks.all.values():
            for module in network.modules():
                for named in (module._parameters, module._buffers):
                    for name, tensor in named.items():
                        if tensor is not None and not isinstance(tensor, FakeTensor):
                            found = exchanged.setdefault(id(tensor), fake.from_tensor(tensor))
                            named[name] = found
    hardware = Hardware(torch.device("cpu"), bfloat16=False, threads=1, decisions=())
    return Updater(networks, settings, hardware)


def make_batch(updater: Updater, sequences: int, length: int) -> dict[str, Tensor]:
    """Return a batch of noise."""
    step_format = StepFormat(updater._model.spaces)
    batch = {}
    for field in step_format.fields:
        shape, dtype = (sequences, length, *field.shape), getattr(torch, field.dtype)
        batch[field.name] = (
            torch.zeros(shape, dtype=dtype) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)
        )
    batch["is_first"][:, 1:] = batch["is_last"][:] = batch["is_terminal"][:] = False
    return batch


class Counter(TorchDispatchMode):
    """Counts operations, without views and without those that only make a tensor.

    One over lists of tensors (`torch._foreach_*`) counts once, but for each tensor where a GPU takes them one by one:
    if lists are of different shapes, strides or types at a place (torch's `can_use_fast_route`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_kernel = function.namespace == "aten" and not (function.is_view or "detach" in str(function))
        if is_kernel and "empty" not in str(function):
            lists = [each for each in args if isinstance(each, list | tuple) and each and isinstance(each[0], Tensor)]
            is_slow = "_foreach" in str(function) and any(
                len({(one.shape, one.stride(), one.dtype) for one in place}) > 1 for place in zip(*lists, strict=False)
            )
            self.count += len(lists[0]) if is_slow else 1
        return function(*args, **(kwargs or {}))


def count_operations(preset: str, action: ActionSpec, length: int) -> int:
    """Return the operations of an update on sequences of this length, under fake tensors; presets are joined by +."""
    settings = resolve(preset.split("+"), [("learner.batch_size", "4"), ("learner.sequence_length", str(length))])
    with FakeTensorMode() as fake:
        updater = make_updater(settings, action, fake)
        batch = make_batch(updater, 4, length)
        updater.update(1, batch, Stopwatch())
        with Counter() as counter:
            updater.update(2, batch, Stopwatch())
    return counter.count


def test_operations_over_many_tensors_count_as_a_gpu_takes_them() -> None:
    """At once where they are alike, and one by one where each is multiplied by a number that is a tensor."""
    tensors, factors = [torch.ones(2, number) for number in range(1, 6)], [torch.ones(()) for _ in range(5)]
    for others, kernels in ((tensors, 1), (torch.ones(()), 1), (factors, 5)):
        with Counter() as counter:
            torch._foreach_mul_(tensors, others)
        assert counter.count == kernels


@pytest.mark.parametrize(("preset", "budget"), BUDGETS.items())
def test_an_update_reads_nothing_and_stays_within_its_operations(preset: str, budget: int) -> None:
    """Fake tensors have no values: whatever asks for one raises. And the number of operations does not grow."""
    count = count_operations(preset, BOX if preset == "dreamer_v1" else CHOICE, LENGTH)
    assert 0.9 * budget < count <= budget


@pytest.fixture(params=["dreamer_v1", "dreamer_v2", "dreamer_v3", "planet", "dreamer_v3+explore"])
def updater(request: pytest.FixtureRequest) -> Updater:
    """Return an updater of a small agent by the preset's algorithm."""
    torch.manual_seed(0)
    small = {"model.deterministic": 16, "model.hidden": 16, "model.depth": 2, "model.embedding": 16}
    small |= {"model.reward_units": 8, "model.blocks": 2, "behaviour.units": 8, "behaviour.horizon": 3}
    flags = [(name, str(value)) for name, value in small.items()]
    return make_updater(resolve(request.param.split("+"), flags), CHOICE)


def state_of(updater: Updater) -> list[Tensor]:
    """Return everything that an update may change, as a copy."""
    moments = [value for state in updater.optimiser.state.values() for value in state.values()]
    networks = updater._networks.all.values()
    return [tensor.clone() for tensor in [*moments, *(t for n in networks for t in n.state_dict().values())]]


def test_an_update_that_is_not_finite_changes_nothing(updater: Updater) -> None:
    """Nor do those after it, until the failure was read; then updates are made as if it had not been."""

    def update(number: int, broken: bool = False) -> Update:
        torch.manual_seed(number)
        batch = make_batch(updater, 2, 6)
        if broken:
            batch["reward"][0, 2] = torch.nan
        return updater.update(number, batch, Stopwatch())

    assert update(1).sound
    before = state_of(updater)
    broken, after = update(2, broken=True), update(3)
    assert not broken.sound
    assert not after.sound
    assert "loss/reward" in broken.not_finite
    assert after.not_finite == [], "it is whole by itself, and was not made all the same"
    for now, then in zip(state_of(updater), before, strict=True):
        assert torch.equal(now, then)
    updater.forget_failure()
    assert update(2).sound
    assert any(not torch.equal(now, then) for now, then in zip(state_of(updater), before, strict=True))
