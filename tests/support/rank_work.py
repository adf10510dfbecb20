"""What ranks do in tests: updates on parts of the same batches, with noise that does not depend on the part."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from moving_square import square_format, square_replay
from random_batch import random_batch
from small_runs import small_settings
from torch import Tensor
from update_trial import StandInGraph

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.learner import updater as updater_module
from dreamfleet.learner.batches import Batch, NotFiniteLossError
from dreamfleet.learner.behaviour.networks import make_networks
from dreamfleet.learner.connected_ranks import ConnectedRanks
from dreamfleet.learner.hardware import Hardware, Mode, compile_region
from dreamfleet.learner.learner import Learner
from dreamfleet.learner.quick_update import LoneFailureError
from dreamfleet.learner.ranks import OtherRankError, Ranks
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.updater import Updater

SPACES = {
    "dreamer_v1": Spaces(
        (ObservationSpec("image", (64, 64, 3), "uint8"),), ActionSpec("box", (2,), (-1,) * 2, (1,) * 2)
    ),
    "strided": Spaces((ObservationSpec("image", (16, 16, 1), "uint8"),), ActionSpec("discrete", (3,))),
    "other": Spaces((ObservationSpec("image", (64, 64, 3), "uint8"),), ActionSpec("discrete", (3,))),
}
SMALL = {"model.deterministic": 16, "model.hidden": 16, "model.depth": 2, "model.embedding": 16, "model.stochastic": 4}
SMALL |= {"model.reward_units": 8, "model.blocks": 2, "behaviour.units": 8, "behaviour.horizon": 3}
SMALL |= {"learner.batch_size": 4, "learner.sequence_length": 6}
STACKS = {
    "redundancy": {"loss.representation": "redundancy", "loss.decoder_every": "2"},
    "contrastive": {"loss.representation": "contrastive", "loss.decoder_every": "0"},
}
"""What is no preset by its name: settings over `planet`, with a small encoder."""
FREE_NATS = {"dreamer_v1": "0.02", "dreamer_v2": "0.02"}
"""So that the KL's mean over the whole batch is beyond the free nats, and within them in one half of it."""


class Trained(NamedTuple):
    """What came of some updates.

    Attributes:
        gradient: of the first, before clipping.
        parameters: after the last, with everything else that a checkpoint has.
        metrics: of each update, averaged over the ranks.
    """

    gradient: np.ndarray
    parameters: dict[str, np.ndarray]
    metrics: list[dict[str, float]]


def train_on_parts(ranks: Ranks, presets: list[str], updates: int) -> dict[str, Trained]:
    """Make updates by each preset, in float64: this rank's part of batches that are the same on all."""
    torch.set_default_dtype(torch.float64)
    return {preset: _train(ranks, preset, updates) for preset in presets}


def _train(ranks: Ranks, preset: str, updates: int) -> Trained:
    flags = [(name, str(value)) for name, value in SMALL.items()]
    if preset in FREE_NATS:
        flags.append(("loss.free_nats", FREE_NATS[preset]))
    if preset == "article":
        flags += [("env.image_size", "64"), ("env.grey", "false")]
    stacked = STACKS.get(preset)
    if stacked is not None:
        flags += [("model.encoder", "strided"), *stacked.items()]
    settings = resolve(preset.split("+") if stacked is None else ["planet"], flags)
    torch.manual_seed(0)
    if isinstance(ranks, ConnectedRanks):
        ranks._has_gradient = None  # of the model before
    spaces = SPACES.get("strided" if stacked is not None else preset, SPACES["other"])
    networks = make_networks(spaces, settings)
    agent, actor_critic, exploration = networks
    hardware = Hardware(torch.device("cpu"), bfloat16=False, threads=1, decisions=())
    updater = Updater(networks, settings, hardware, ranks)
    gradients: list[np.ndarray] = []
    clip = updater._clip

    def record(found: Any) -> dict[str, Tensor]:
        gradients.append(found.vector.numpy().copy())
        return clip(found)

    updater._clip = record  # type: ignore[method-assign]
    metrics = []
    real = torch.rand, torch.rand_like, torch.randn, torch.randn_like
    torch.rand, torch.rand_like, torch.randn, torch.randn_like = _rand, _rand_like, _randn, _randn_like
    try:
        for number in range(1, updates + 1):
            batch = random_batch(agent.world_model.spaces, 4, 6, seed=number)
            batch["is_last"] = batch["is_terminal"].clone()
            size = 4 // ranks.count
            part = {name: value[ranks.number * size :][:size] for name, value in batch.items()}
            made = updater.update(number, part, Stopwatch())
            assert made.sound
            values = ranks.mean(made.values.double()).tolist()
            metrics.append(dict(zip(made.names, values, strict=True)))
    finally:
        torch.rand, torch.rand_like, torch.randn, torch.randn_like = real
    networks = [network for network in (agent, actor_critic, exploration) if network is not None]
    state = {f"{n}.{name}": value for n, network in enumerate(networks) for name, value in network.state_dict().items()}
    return Trained(gradients[0], {name: value.numpy().copy() for name, value in state.items()}, metrics)


def _pattern(shape: Any) -> Tensor:
    """Return numbers in (0, 1) that depend on the place along the last axis alone."""
    shape = torch.Size(shape)
    row = (0.37 + 0.618034 * torch.arange(shape[-1])) % 1.0
    return row.to(torch.get_default_dtype()).expand(shape).clone()


def _rand(*shape: Any, **_: Any) -> Tensor:
    return _pattern(shape[0] if isinstance(shape[0], tuple) else shape)


def _randn(*shape: Any, **_: Any) -> Tensor:
    return 4.0 * _rand(*shape) - 2.0


def _rand_like(x: Tensor) -> Tensor:
    return _pattern(x.shape)


def _randn_like(x: Tensor) -> Tensor:
    return 4.0 * _pattern(x.shape) - 2.0


def compare_compiled(ranks: Ranks, presets: list[str]) -> dict[str, dict[str, Any]]:
    """Return by preset what updates bring, eager and compiled, on batches of this rank's own."""
    updater_module.compile_region = partial(compile_region, backend="aot_eager")  # type: ignore[assignment]
    found: dict[str, dict[str, Any]] = {}
    flags = {"learner.batch_size": 4, "learner.sequence_length": 2, "behaviour.horizon": 2, "loss.free_nats": 0.02}
    flags |= {"learner.epsilon": 1.0, "learner.learning_rate": 0.1}
    for preset in presets:
        settings = resolve([preset, "debug"], [(name, str(value)) for name, value in flags.items()])
        found[preset] = {}
        modes: list[Mode] = ["eager", "compiled"]
        for mode in modes:
            torch.manual_seed(0)
            assert isinstance(ranks, ConnectedRanks)
            ranks._has_gradient = None
            networks = make_networks(SPACES["other"], settings)
            agent = networks.agent
            hardware = Hardware(torch.device("cpu"), bfloat16=False, threads=1, decisions=(), mode=mode)
            updater = Updater(networks, settings, hardware, ranks)
            rows = []
            for number in range(1, 4):
                batch = random_batch(agent.world_model.spaces, 2, 2, seed=10 * number + ranks.number)
                batch["is_last"] = batch["is_terminal"].clone()
                torch.manual_seed(10 * number + ranks.number)
                made = updater.update(number, batch, Stopwatch())
                assert made.sound
                rows.append(made.values.tolist())
            assert updater.mode == mode
            found[preset][mode] = rows
    return found


def fail_alone(ranks: Ranks, steps: list[str]) -> dict[str, dict[str, Any]]:
    """Make two updates, eagerly and then captured, where a step fails on rank 1; return by step what came of it.

    Args:
        steps: some of `compile`, `warm_up`, `capture`, `make_room` and `never`, and at last `update`, the first itself.
    """
    assert isinstance(ranks, ConnectedRanks)
    found: dict[str, dict[str, Any]] = {}
    expected, eager = _make_two(ranks, "eager")
    for step in steps:
        try:
            made, ended = _make_two(ranks, "captured", "never" if ranks.is_first else step)
        except (LoneFailureError, OtherRankError) as error:
            ranks.close()  # as the learner's process does
            found[step] = {"failure": f"{type(error).__name__}: {error}"}
        else:
            same = all(torch.equal(eager.state[name], value) for name, value in ended.state.items())
            found[step] = {"mode": ended.mode, "is_as_eager": made == expected and same}
    return found


class _Ended(NamedTuple):
    """How an updater ended: how it makes updates, and parameters, moments and buffers."""

    mode: str
    state: dict[str, Tensor]


def _make_two(ranks: Ranks, mode: Mode, fails: str = "never") -> tuple[list[list[float]], _Ended]:
    """Return the metrics of two updates with this rank's part of a batch, and how the updater ended."""
    assert isinstance(ranks, ConnectedRanks)
    ranks._has_gradient = None

    def fail_at(step: str) -> None:
        if fails == step:
            raise RuntimeError(f"no {step} here")

    updater_module.compile_region = lambda region: fail_at("compile") or region  # type: ignore[assignment]
    settings = resolve(["dreamer_v3", "debug"], [("learner.batch_size", "4"), ("learner.sequence_length", "2")])
    torch.manual_seed(0)
    networks = make_networks(SPACES["other"], settings)
    hardware = Hardware(torch.device("cpu"), bfloat16=False, threads=1, decisions=(), mode=mode)
    updater = Updater(networks, settings, hardware, ranks)
    quick, graph = updater._quick, StandInGraph()
    warm_up, capture = graph.warm_up, graph.capture

    def record(compute: Callable[[], Any]) -> Any:
        fail_at("capture")
        with ranks.rehearsing():  # a real graph tells nobody while it is recorded
            return capture(compute)

    graph.warm_up = lambda compute: fail_at("warm_up") or warm_up(compute)  # type: ignore[method-assign]
    graph.capture = record  # type: ignore[method-assign]
    quick._graph = lambda: graph
    room, check = quick._rehearse_eagerly, quick._check
    quick._rehearse_eagerly = lambda batch: fail_at("make_room") or room(batch)  # type: ignore[method-assign]
    quick._check = lambda *given: fail_at("update") or check(*given)  # type: ignore[method-assign]
    batch = random_batch(networks.agent.world_model.spaces, 2, 2, seed=ranks.number)
    batch["is_last"] = batch["is_terminal"].clone()
    made = []
    for number in range(1, 3):
        torch.manual_seed(number)
        made.append(updater.update(number, batch, Stopwatch()).values.tolist())
    return made, _Ended(updater.mode, {name: value.clone() for name, value in updater._state.tensors().items()})


def tell(ranks: Ranks) -> dict[str, Any]:
    """Use what ranks tell each other outside of an update: of three parameters each has the gradient of its own."""
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    parameters[ranks.number].grad = torch.full((2,), 1.0 + ranks.number)
    ranks.complete(parameters)
    state = {"a": torch.arange(3), "b": [1, {"c": "d"}]} if ranks.is_first else None
    return {
        "gradients": [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters],
        "arrays": ranks.gather_arrays(np.arange(3 + ranks.number)).tolist(),
        "gathered": ranks.gather(torch.full((2, 1), float(ranks.number))).tolist(),
        "spread": str(ranks.spread(state)),
    }


def lose_the_other(ranks: Ranks) -> str:
    """Leave, if this is rank 1; else return what is said of the loss."""
    if not ranks.is_first:
        ranks.close()
        return ""
    try:
        ranks.mean(torch.ones(1))
    except OtherRankError as error:
        return str(error)
    return "it was not noticed"


def learn(ranks: Ranks, directory: Path) -> dict[str, Any]:
    """Train, meet a batch that is not finite on rank 1, train on, save, and be stopped through rank 1."""
    with closing(square_replay(directory / f"replay-{ranks.number}", sequence_length=8)) as replay:  # the same on both
        settings = small_settings(learner={"publish_every": 4, "batch_size": 4}, behaviour={"kind": "planner"})
        run = directory / "run"
        run.mkdir(exist_ok=True)
        learner = Learner(settings, square_format().spaces, replay, run, prefetch=True, join=lambda _: ranks)
        restored = learner.restore()
        fetch = learner._batches.fetch
        broken = {4} if ranks.number == 1 else set()

        def fetch_broken(number: int) -> Batch:
            batch = fetch(number)
            if number in broken:
                batch.on_host["reward"][0, 2] = torch.nan
            return batch

        learner._batches.fetch = fetch_broken  # type: ignore[method-assign]
        try:
            learner.train(8)
            failure: Exception | None = None
        except (NotFiniteLossError, OtherRankError) as error:
            failure = error
        at_failure = learner.updates
        broken.clear()
        report = learner.train(5)
        facts = learner.save({"env_steps": 1600})[0] if ranks.is_first else None
        if ranks.number == 1:
            learner.finish_early()
        stopped = [learner.train(50).updates, learner.train(50).updates]
        state = {name: value.numpy().copy() for name, value in learner.model.state_dict().items()}
        learner.close()
        return {
            "start": restored.updates,
            "failure": f"{type(failure).__name__}: {failure}",
            "at_failure": at_failure,
            "report": report,
            "facts": facts,
            "stopped": stopped,
            "state": state,
        }


def resume(ranks: Ranks, directory: Path, updates: int) -> tuple[int, dict[str, np.ndarray], Any]:
    """Continue the run of `learn` on this many ranks; return the updates at its start, the model then, and a report."""
    with closing(square_replay(directory / f"replay-{ranks.count}-{ranks.number}", sequence_length=8)) as replay:
        settings, spaces = small_settings(learner={"publish_every": 4, "batch_size": 4}), square_format().spaces
        sight = directory / ("run" if ranks.is_first else "another-machine")
        learner = Learner(settings, spaces, replay, sight, prefetch=False, join=lambda _: ranks)
        start = learner.restore().updates
        state = {name: value.numpy().copy() for name, value in learner.model.state_dict().items()}
        return start, state, learner.train(updates)
