"""What one update of an agent costs: the Dreamers and PlaNet on pictures, and what the time goes into.

Shapes: B batch, T time, N = B·T states.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dreamfleet.common.acting.action_encoding import encode_actions, previous_actions
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour.imagination import imagine
from dreamfleet.learner.behaviour.networks import make_networks
from dreamfleet.learner.hardware import Hardware, choose_hardware
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.updater import Updater
from dreamfleet.learner.world_model_loss import world_model_loss
from tests.bench.measure import Bench, Turns, say, take_turns
from tests.bench.r2dreamer import METHOD as METHOD_BESIDE
from tests.bench.r2dreamer import R2Dreamer
from tests.bench.report import Row, at_least

NAME = "agents"
METHOD = f"""
Whole updates (`Updater.update`: all losses, backward, clipping, optimiser) in this process on one batch that is on the
device already: pictures of noise, 64×64×3, in 16 sequences of 64 (Dreamer V3) or 50 of 50, with a choice of 6 or a box
of 6 dimensions; on the GPU if there is one, else on all cores. Figures are medians, after a first update that does not
count. The arithmetic is counted in the multiplications and additions of the operations as they are made, not of the
papers' (a convolution of doubled pixels is made with 9 products instead of 25). The parts are timed one by one
afterwards: the world model's loss and its backward, and of these again encoder, dynamics and decoder, each with its own
backward; imagination and the behaviour's losses with theirs; the optimiser is the update's own. They add up to a little
more or less than the update. All of this is eager; on a GPU whole updates are measured
compiled too (`learner.compile`), on an agent of its own after the eager ones: the first update, which compiles, is
told apart, and two more, which capture the graph and replay it for the first time, do not count either.
{METHOD_BESIDE}
Without `--r2dreamer`, r2dreamer's figures are others' measurement (with its decoder, eager, float32, on two cores of
147 GFLOP/s in matrix products), not rerun here: the ratio says something on such a machine alone, and is left out on a
GPU.
"""
SPACES = {
    "choice of 6": ActionSpec("discrete", (6,)),
    "box of 6": ActionSpec("box", (6,), (-1.0,) * 6, (1.0,) * 6),
}
"""Action spaces by the name they have in the table."""


class Contestant(NamedTuple):
    """An agent to be measured: its presets, its action, and the seconds others measured for r2dreamer, if it has it."""

    presets: tuple[str, ...]
    action: str
    others_s: float | None = None


CONTESTANTS = (
    Contestant(("dreamer_v3", "size_1m"), "choice of 6", 4.5),
    Contestant(("dreamer_v3", "size_1m"), "box of 6", 4.5),
    Contestant(("dreamer_v3", "size_12m"), "choice of 6", 27.0),
    Contestant(("dreamer_v3", "size_12m"), "box of 6", 27.0),
    Contestant(("planet",), "box of 6"),
    Contestant(("dreamer_v1",), "box of 6"),
)
_OTHERS = "r2dreamer {:g} s (others' measurement, not rerun here)"
_FASTER = 1.5
_QUICK = (("learner.batch_size", "2"), ("learner.sequence_length", "8"))
_PRODUCT = 2048
"""Rows and columns of the matrices whose product says how fast the machine is."""


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures, agent by agent."""
    threads = torch.get_num_threads()
    try:
        device = choose_hardware(_settings(bench, CONTESTANTS[0].presets).learner, busy_cores=0).device
        rate = _product_rate(device, bench.choose(5, 1))
        yield Row(NAME, f"matrix product {_PRODUCT}×{_PRODUCT}, float32", f"{rate / 1e9:,.0f} GFLOP/s")
        for contestant in CONTESTANTS:
            yield from _contestant(bench, contestant, rate)
    finally:
        torch.set_num_threads(threads)


def picture_spaces(action: ActionSpec) -> Spaces:
    """Return pictures of 64×64×3 with this action."""
    return Spaces((ObservationSpec("image", (64, 64, 3), "uint8"),), action)


def make_batch(spaces: Spaces, batch: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """Return a training batch of noise (B, T, …): each sequence has no end of an episode."""
    shape = (batch, length)
    spec = spaces.action
    if spec.kind == "box":
        action = torch.rand(*shape, spec.width) * 2.0 - 1.0
    else:
        action = torch.randint(spec.sizes[0], shape, dtype=torch.int32)
    made = {
        "image": torch.randint(256, (*shape, 64, 64, 3), dtype=torch.uint8),
        "action": action,
        "reward": torch.randn(shape),
        **{name: torch.zeros(shape, dtype=torch.bool) for name in ("is_first", "is_last", "is_terminal")},
    }
    made["is_first"][:, 0] = True
    return {name: value.to(device) for name, value in made.items()}


def _settings(bench: Bench, presets: Sequence[str], compiled: bool = False) -> Settings:
    cores = bench.choose(len(os.sched_getaffinity(0)), 1)
    flags = [("learner.threads", str(cores)), ("learner.compile", "on" if compiled else "off")]
    return resolve(presets, [*flags, *(_QUICK if bench.quick else ())])


def _contestant(bench: Bench, contestant: Contestant, product_rate: float) -> Iterator[Row]:
    """Yield one agent's rows: its updates, its arithmetic, and what its time goes into."""
    settings = _settings(bench, contestant.presets)
    size, length = settings.learner.batch_size, settings.learner.sequence_length
    what = f"{' '.join(contestant.presets)}, {size}×{length}, {contestant.action}"
    say(f"{NAME}: {what}")
    trial = Trial(settings, picture_spaces(SPACES[contestant.action]))
    rival = _rival(bench, contestant, trial)
    rounds = bench.choose(3, 1)
    turns = take_turns({"ours": trial.update} | ({"theirs": rival.update} if rival else {}), rounds)
    whole_s = turns.median("ours")
    ours = f"{1 / whole_s:.3g} updates/s ({whole_s:.3g} s), {trial.parameters:,} parameters"
    beside, ratio = _beside(bench, contestant, trial, rival, turns)
    yield Row(NAME, f"updates, {what}", ours, beside, ratio, at_least(ratio, _FASTER) if ratio else None)
    work = arithmetic(trial.update)
    share = work / whole_s / product_rate
    described = f"{work / 1e12:.3g} TFLOP, {work / whole_s / 1e9:,.0f} GFLOP/s ({share:.0%} of the matrix product's)"
    theirs = f"{rival.name}: {arithmetic(rival.update) / 1e12:.3g} TFLOP" if rival else ""
    yield Row(NAME, f"arithmetic of an update, {what}", described, theirs)
    optimiser_s = median(trial.optimiser_seconds[1 : 1 + rounds])
    del rival  # its memory is wanted for the parts
    parts = {**trial.parts(rounds), "optimiser": optimiser_s}
    yield Row(NAME, f"what an update goes into, {what}", _seconds(parts))
    yield Row(NAME, f"of which the world model's parts, {what}", _seconds(trial.world_model_parts(rounds)))
    if trial.hardware.device.type != "cpu":  # which takes minutes to compile it
        del trial
        yield from _compiled(bench, contestant, what, whole_s)


def _compiled(bench: Bench, contestant: Contestant, what: str, eager_s: float) -> Iterator[Row]:
    """Yield what an update takes compiled, beside the eager one."""
    torch.compiler.reset()  # what was compiled for the agent before counts as another variant of the same functions
    trial = Trial(_settings(bench, contestant.presets, compiled=True), picture_spaces(SPACES[contestant.action]))
    say(f"{NAME}: compiling {what}")
    begun = time.perf_counter()
    trial.update()
    first_s = time.perf_counter() - begun
    took_s = take_turns({"ours": trial.update}, bench.choose(20, 1), warm_up=2).median("ours")
    assert trial.is_compiled, "the benchmark's compiled updates gave way to eager ones: the log says why"
    ours = f"{1 / took_s:.3g} updates/s ({took_s:.3g} s), compiled; the first update took {first_s:.0f} s"
    yield Row(NAME, f"compiled updates, {what}", ours, f"eager: {eager_s:.3g} s", eager_s / took_s)


def _rival(bench: Bench, contestant: Contestant, trial: Trial) -> R2Dreamer | None:
    """Return r2dreamer at the agent's widths and on its batch, where it is asked for and has such an agent."""
    if bench.r2dreamer is None or contestant.others_s is None:
        return None
    return R2Dreamer(bench.r2dreamer, trial.settings, trial.spaces, trial.batch)


def _beside(
    bench: Bench, contestant: Contestant, trial: Trial, rival: R2Dreamer | None, turns: Turns
) -> tuple[str, float | None]:
    """Return what r2dreamer took, run here or as others measured it, and how many times faster ours is, if known."""
    if rival is not None:
        shown = f"{rival.name}: {turns.median('theirs'):.3g} s, {rival.parameters:,} parameters"
        return shown, turns.ratio("theirs", "ours")
    known = contestant.others_s
    if known is None or bench.quick or trial.hardware.device.type != "cpu":
        return "", None
    return _OTHERS.format(known), known / turns.median("ours")


def arithmetic(update: Callable[[], object]) -> int:
    """Return the floating-point operations of an update, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        update()
    return counter.get_total_flops()


def _seconds(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {took:.3g} s" for name, took in parts.items())


class Trial:
    """An agent that learns from one batch again and again.

    Attributes:
        hardware: what it computes on.
        settings: its own.
        spaces: its.
        batch: on its device.
        optimiser_seconds: of each update so far.

    Args:
        settings: its own.
        spaces: pictures and an action.
    """

    def __init__(self, settings: Settings, spaces: Spaces) -> None:
        self.hardware: Hardware = choose_hardware(settings.learner, busy_cores=0)
        device = self.hardware.device
        torch.manual_seed(0)
        self.settings, self.spaces = settings, spaces
        networks = make_networks(spaces, settings).to(device)
        self._agent, self._actor_critic, _ = networks
        self._updater = Updater(networks, settings, self.hardware)
        self.batch = make_batch(spaces, settings.learner.batch_size, settings.learner.sequence_length, device)
        self._made = 0
        self.optimiser_seconds: list[float] = []

    @property
    def parameters(self) -> int:
        """Numbers that its optimiser changes."""
        groups = self._updater.optimiser.param_groups
        return sum(parameter.numel() for group in groups for parameter in group["params"])

    @property
    def is_compiled(self) -> bool:
        """Whether its updates are compiled, and have not failed to be."""
        return self._updater.mode != "eager"

    def update(self) -> None:
        """Make one update, and return once the device has done it."""
        watch = Stopwatch()
        self._made += 1
        not_finite = self._updater.update(self._made, self.batch, watch).not_finite
        assert not not_finite, f"an update of the benchmark was not finite: {not_finite}"
        self._wait()
        self.optimiser_seconds.append(watch.seconds["optimiser"])

    def parts(self, rounds: int) -> dict[str, float]:
        """Return the seconds of each part's forward and backward, on states that are detached from each other."""
        seconds: dict[str, list[float]] = {}
        for _ in range(rounds):
            self._clear()
            kept: dict[str, Any] = {}
            for name, run in self._steps(kept).items():
                seconds.setdefault(name, []).append(self._seconds_of(run))
        return {name: median(took) for name, took in seconds.items()}

    def _steps(self, kept: dict[str, Any]) -> dict[str, Callable[[], object]]:
        """Return the parts of an update in order; each leaves in `kept` what the next ones need."""
        agent, settings, learns = self._agent, self.settings, self._actor_critic

        def forward() -> None:
            with self.hardware.autocast():
                kept["world"] = world_model_loss(agent.world_model, self.batch, settings.loss)

        def backward() -> None:
            kept["world"].total.backward()

        def dream() -> None:
            assert learns is not None
            kept["states"] = kept["world"].rollout.states.map(lambda part: part.detach())
            with self.hardware.autocast():
                kept["imagined"] = imagine(agent, kept["states"], settings.behaviour.horizon, learns.through_model)

        def behave() -> None:
            assert learns is not None
            with self.hardware.autocast():
                losses = learns.losses(agent, kept["imagined"], kept["states"], self.batch)
            (losses.value + losses.replay_value).backward()
            losses.policy.backward(inputs=list(learns.actor.parameters()))

        steps: dict[str, Callable[[], object]] = {
            "world model forward": forward,
            "its backward": backward,
        }
        return steps | ({"imagination": dream, "behaviour's losses and backward": behave} if learns else {})

    def world_model_parts(self, rounds: int) -> dict[str, float]:
        """Return the seconds of encoder, dynamics and decoder, each forward and backward from a given gradient."""
        model, batch = self._agent.world_model, self.batch
        is_first = batch["is_first"]
        actions = previous_actions(encode_actions(self.spaces.action, batch["action"]), is_first)
        with torch.no_grad():
            seen = model.normalise(batch)
            embedding = model.embed(seen)
            feature = model.observe(embedding, actions, is_first).states.feature
        embedding.requires_grad_()
        feature.requires_grad_()
        runs: dict[str, Callable[[], Tensor]] = {
            "encoder": lambda: model.embed(seen),
            "dynamics": lambda: model.observe(embedding, actions, is_first).states.feature,
            "decoder": lambda: model.decode(feature)["image"],
        }
        return {name: median(self._forward_backward(run) for _ in range(rounds)) for name, run in runs.items()}

    def _forward_backward(self, run: Callable[[], Tensor]) -> float:
        self._clear()

        def both() -> None:
            with self.hardware.autocast():
                result = run()
            result.backward(torch.ones_like(result))

        return self._seconds_of(both)

    def _clear(self) -> None:
        for parameter in [*self._agent.parameters(), *(self._actor_critic.parameters() if self._actor_critic else ())]:
            parameter.grad = None

    def _seconds_of(self, run: Callable[[], object]) -> float:
        self._wait()
        begun = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        """Return once the device has done all its work."""
        if self.hardware.device.type == "cuda":
            torch.cuda.synchronize()


def _product_rate(device: torch.device, rounds: int) -> float:
    """Return the floating-point operations per second of a matrix product, the best of some."""
    first, second = (torch.randn(_PRODUCT, _PRODUCT, device=device) for _ in range(2))
    seconds = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        (first @ second)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return 2 * _PRODUCT**3 / min(seconds)
