"""What choosing an action costs an actor: by chance, by an actor's network, by planning."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.acting.policy import Policy
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.resolve import resolve
from tests.bench.agents import SPACES, picture_spaces
from tests.bench.measure import Bench, say
from tests.bench.report import Row

NAME = "acting"
METHOD = """
The policy of one actor alone, as the collector calls it (`make_policy`, `Policy.act`), exploring, on one thread of the
CPU whatever else the machine has, with the weights of a fresh agent: 1 or 4 environments that show 64×64×3 pictures,
with a box of 6 dimensions or a choice of 6. No environment is stepped and nothing is stored. A call chooses for all
environments; steps/s are of all of them together. Calls go on for two seconds or more, five at least (less for what
takes a minute); figures are medians over the calls, after a first call that does not count.
"""


class Chooser(NamedTuple):
    """What chooses actions: its name in the table, its presets and settings, and the action."""

    name: str
    presets: tuple[str, ...]
    action: str
    flags: tuple[tuple[str, str], ...] = ()


_PLANNER = ("behaviour.kind", "planner")


def _search(candidates: int, iterations: int, horizon: int) -> tuple[tuple[str, str], ...]:
    """Return the settings of a planner whose elites are a tenth of the candidates, as published."""
    numbers = {"candidates": candidates, "elites": candidates // 10, "iterations": iterations, "horizon": horizon}
    return (_PLANNER, *((f"behaviour.{name}", str(number)) for name, number in numbers.items()))


CHOOSERS = (
    Chooser("chance", ("planet",), "box of 6", (("behaviour.kind", "random"),)),
    Chooser("actor, dreamer_v1", ("dreamer_v1",), "box of 6"),
    Chooser("actor, dreamer_v2", ("dreamer_v2",), "box of 6"),
    Chooser("actor, dreamer_v2", ("dreamer_v2",), "choice of 6"),
    Chooser("actor, dreamer_v3 size_1m", ("dreamer_v3", "size_1m"), "box of 6"),
    Chooser("actor, dreamer_v3 size_1m", ("dreamer_v3", "size_1m"), "choice of 6"),
    Chooser("actor, dreamer_v3 size_12m", ("dreamer_v3", "size_12m"), "box of 6"),
    Chooser("planner, planet, 1000×10×12 (the paper's)", ("planet",), "box of 6", _search(1000, 10, 12)),
    Chooser("planner, planet, 1000×10×12", ("planet",), "choice of 6", _search(1000, 10, 12)),
    Chooser("planner, planet, 200×4×12", ("planet",), "box of 6", _search(200, 4, 12)),
    Chooser("planner, planet, 100×3×8", ("planet",), "box of 6", _search(100, 3, 8)),
)
"""A planner's numbers are candidates × iterations × horizon."""
_ENVIRONMENTS = (1, 4)
_FEWEST_CALLS = 5
_LONGEST_S = 60.0


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures, chooser by chooser."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for chooser in CHOOSERS:
            for environments in _ENVIRONMENTS[: bench.choose(2, 1)]:
                say(f"{NAME}: {chooser.name}, {chooser.action}, K = {environments}")
                call_s = _call_seconds(bench, chooser, environments)
                what = f"policy steps, {chooser.name}, {chooser.action}, K = {environments}"
                yield Row(NAME, what, f"{environments / call_s:,.4g} steps/s ({1e3 * call_s:,.3g} ms per call)")
    finally:
        torch.set_num_threads(threads)


def _call_seconds(bench: Bench, chooser: Chooser, environments: int) -> float:
    """Return the median seconds of a call."""
    spaces = picture_spaces(SPACES[chooser.action])
    policy = _make(chooser, spaces, environments)
    pictures = np.random.default_rng(0).integers(0, 256, (environments, 64, 64, 3), np.uint8)
    is_first = np.zeros(environments, bool)
    least_s, fewest = (0.0, 1) if bench.quick else (2.0, _FEWEST_CALLS)
    policy.act({"image": pictures}, is_first)
    seconds: list[float] = []
    while not _enough(seconds, least_s, fewest):
        begun = time.perf_counter()
        policy.act({"image": pictures}, is_first)
        seconds.append(time.perf_counter() - begun)
    return median(seconds)


def _enough(seconds: list[float], least_s: float, fewest: int) -> bool:
    """Return whether these calls are enough to go by; a slow chooser is not waited for longer than a minute."""
    took = sum(seconds)
    return took >= least_s and (len(seconds) >= fewest or took >= _LONGEST_S)


def _make(chooser: Chooser, spaces: Spaces, environments: int) -> Policy:
    """Return the policy of an actor, with the weights of a fresh agent."""
    settings = resolve(chooser.presets, chooser.flags)
    policy = make_policy(settings, spaces, environments, seed=0)
    torch.manual_seed(0)
    policy.adopt(1, flatten(AgentNetworks(spaces, settings).acting_parameters()))
    return policy
