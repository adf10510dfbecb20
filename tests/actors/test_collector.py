"""Collecting: exact orders, chunks that join without a gap, and what a report says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dreamfleet.actors.collector import (
    Collector,
    CollectorBrokenError,
    CollectReport,
    EpisodeResult,
    build_collector,
    environment_seeds,
)
from dreamfleet.actors.environment_batch import EnvironmentFailedError
from dreamfleet.common.acting.policy import CHANCE
from dreamfleet.common.experience.chunk import ChunkHeader, decode_chunk, parse_header
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.common.stop_sign import StepInterrupted


class Shelf:
    """A writer that keeps the chunks, and counts those that were flushed."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.flushed = 0

    def append(self, chunk: bytes) -> None:
        """Keep the chunk."""
        self.chunks.append(chunk)

    def flush(self, timeout_s: float) -> None:
        """Note that all chunks up to now were asked for."""
        assert timeout_s > 0
        self.flushed = len(self.chunks)

    def headers(self, stream: int) -> list[ChunkHeader]:
        """Return the headers of the stream's chunks, in order."""
        return [header for header in map(parse_header, self.chunks) if header.key.stream == stream]

    def steps(self, stream: int, step_format: StepFormat) -> dict[str, np.ndarray]:
        """Return the whole stream, each array (steps, ...)."""
        own = [chunk for chunk in self.chunks if parse_header(chunk).key.stream == stream]
        chunks = [decode_chunk(step_format, chunk) for chunk in own]
        return {field.name: np.concatenate([chunk[field.name] for chunk in chunks]) for field in step_format.fields}


def counting(
    environments: int = 1, incarnation: int = 2, actors: dict[str, Any] | None = None, **kwargs: Any
) -> tuple[Collector, Shelf]:
    settings = Settings.model_validate({
        "env": {"id": "counting_environment:make", "kwargs": kwargs, "image_size": 0},
        "actors": {"environments": environments, **(actors or {})},
    })  # fmt: skip
    shelf = Shelf()
    return build_collector(settings, 3, incarnation, shelf), shelf


@pytest.mark.parametrize(("environments", "orders"), [(1, [1, 70, 3]), (3, [7, 1, 1, 200, 2]), (8, [5, 5, 5])])
def test_an_order_is_met_exactly_and_acknowledged(environments: int, orders: list[int]) -> None:
    """Each order stores just its number of steps over all environments, all of them flushed when it returns."""
    collector, shelf = counting(environments)
    stored = 0
    for steps in orders:
        report = collector.collect(steps)
        stored += steps
        assert report.steps == steps
        assert sum(parse_header(chunk).steps for chunk in shelf.chunks) == stored
        assert shelf.flushed == len(shelf.chunks)
    shares = [sum(header.steps for header in shelf.headers(k)) for k in range(environments)]
    assert max(shares) - min(shares) <= 1


def test_streams_go_on_without_a_gap_over_many_orders() -> None:
    """Three environments, orders of all sizes: every stream counts on by one, and begins again only at is_first."""
    collector, shelf = counting(3, length=10)
    for order in [1, 2, 3, 50, 7, 200, 64, 1, 1]:
        collector.collect(order)
    for k in range(3):
        steps = shelf.steps(k, StepFormat(collector.spaces))
        index = np.arange(len(steps["reward"]))
        assert steps["count"][:, 2].tolist() == (index % 11).tolist()
        assert steps["episode"].tolist() == (index // 11).tolist()
        assert steps["is_first"].tolist() == (index % 11 == 0).tolist()
        assert steps["is_last"].tolist() == (index % 11 == 10).tolist()
        assert steps["is_terminal"].tolist() == ((index % 11 == 10) & (index // 11 % 2 == 0)).tolist()
        assert steps["reward"].tolist() == (index % 11).tolist()


def test_the_steps_do_not_depend_on_how_they_are_ordered() -> None:
    """One order of 120 steps and many small ones give the same streams, actions included."""

    def streams(orders: list[int]) -> list[dict[str, np.ndarray]]:
        collector, shelf = counting(3, actors={"hold_max": 4})
        for order in orders:
            collector.collect(order)
        return [shelf.steps(k, StepFormat(collector.spaces)) for k in range(3)]

    for whole, parts in zip(streams([120]), streams([1, 1, 5, 40, 60, 13]), strict=True):
        assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_chunks_are_cut_at_64_steps_and_at_the_end_of_an_order() -> None:
    """Sequence numbers rise by one, each chunk begins where the one before ended, and the key names the incarnation."""
    collector, shelf = counting(2, length=10)
    collector.collect(2 * 150)
    collector.collect(2 * 10)
    for k in range(2):
        headers = shelf.headers(k)
        assert [header.steps for header in headers] == [64, 64, 22, 10]
        assert [header.key for header in headers] == [(3, 2, k, number) for number in range(4)]
        assert [header.first_step for header in headers] == [0, 64, 128, 150]
        assert [header.episode for header in headers] == [0, 64 // 11, 128 // 11, 150 // 11]


def test_the_actions_stored_are_those_the_environment_took() -> None:
    """The action stored at a step is the one that led to the next; at an episode's last step zero is stored."""
    for action in ("discrete", "box", "multi_discrete"):
        collector, shelf = counting(1, length=4, action=action)
        collector.collect(60)
        steps = shelf.steps(0, StepFormat(collector.spaces))
        taken = np.array(collector._environments.environments[0].unwrapped.actions)  # type: ignore[attr-defined]
        stored = steps["action"][~steps["is_last"]][: len(taken)]
        start = 5 if action == "discrete" else 0
        assert np.allclose(
            stored.reshape(len(stored), -1) + start, taken.reshape(len(taken), -1)[: len(stored)], atol=1e-6
        )
        assert np.ptp(stored, axis=0).min() > 0
        assert not steps["action"][steps["is_last"]].any()


def test_held_actions_are_stored_as_they_were_held() -> None:
    """With a hold of exactly three, an episode's actions come in threes."""
    collector, shelf = counting(1, length=9, actors={"hold_min": 3, "hold_max": 3})
    collector.collect(100)
    steps = shelf.steps(0, StepFormat(collector.spaces))
    episode = steps["action"][10:19]
    assert all(len(set(episode[start : start + 3])) == 1 for start in (0, 3, 6))
    assert len(set(steps["action"])) == 3


def test_a_report_tells_the_episodes_and_the_times() -> None:
    """Episodes of ten steps whose rewards count have a return of 55; one over two orders is counted whole."""
    collector, _ = counting(1, length=10)
    first = collector.collect(15)
    second = collector.collect(15)
    assert first.episodes == [EpisodeResult(55.0, 10)]
    assert second.episodes == [EpisodeResult(55.0, 10)]
    assert set(first.timings) == {"environment", "policy", "encode", "push"}
    assert all(seconds > 0 for seconds in first.timings.values())
    assert first.raw_bytes == 15 * StepFormat(collector.spaces).step_bytes
    assert first.stored_bytes > 0


def test_every_step_records_the_version_that_chose_its_action() -> None:
    """Weights adopted between two orders act from the next step chosen on; the report names them."""
    collector, shelf = counting(2)
    collector.collect(5)
    collector._policy.version = 9  # as of a policy that adopts weights
    report = collector.collect(5)
    assert [shelf.steps(k, StepFormat(collector.spaces))["version"].tolist() for k in range(2)] == [
        [CHANCE, CHANCE, CHANCE, 9, 9],
        [CHANCE, CHANCE, CHANCE, 9, 9],
    ]
    assert report.version == 9


def test_a_failing_environment_costs_none_of_the_steps_before() -> None:
    """An environment that fails at its step 100 has sent all that it recorded, and says where it failed."""
    collector, shelf = counting(1, length=10, fail_at=100)
    with pytest.raises(
        EnvironmentFailedError,
        match=r"actor 3, environment 0\) failed in episode 9 at step 10: .*told.*counting_environment.py, line \d+\)",
    ):
        collector.collect(200)
    assert [header.steps for header in shelf.headers(0)] == [64, 99 + 10 - 64]
    assert shelf.flushed == 2


def test_a_vector_that_is_no_number_is_refused() -> None:
    """A NaN in an observation is named with its entry, and is never sent."""
    collector, shelf = counting(1, nan_count_at=4)
    with pytest.raises(
        EnvironmentFailedError, match=r"in episode 0 at step 4 of its stream: its observation 'count' is not finite"
    ):
        collector.collect(20)
    assert shelf.chunks == []


def test_seeds_differ_between_environments_actors_and_incarnations() -> None:
    """Each environment of each incarnation of each actor has its own seed, the same in every run of one seed."""
    settings = Settings.model_validate({"seed": 1, "actors": {"environments": 3}})
    incarnations = [
        tuple(environment_seeds(settings, actor, incarnation)) for actor in range(3) for incarnation in range(3)
    ]
    seeds = [seed for seeds_of_one in incarnations for seed in seeds_of_one]
    assert len(set(seeds)) == 27
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert environment_seeds(settings, 2, 1) == list(incarnations[7])
    collector, shelf = counting(2)
    collector.collect(2)
    expected = environment_seeds(Settings.model_validate({"actors": {"environments": 2}}), 3, 2)
    shown = [shelf.steps(k, StepFormat(collector.spaces))["count"][0, 0] for k in range(2)]
    assert shown == [np.float32(seed) for seed in expected]


def test_car_racing_is_collected_and_compressed() -> None:
    """A few steps of the presets' environment come out as they were stored, in a fraction of their bytes."""
    settings = Settings.model_validate(
        {"env": {"kwargs": {"continuous": False}, "action_repeat": 4, "grey": True}, "actors": {"hold_max": 8}}
    )
    shelf = Shelf()
    collector = build_collector(settings, 0, 0, shelf)
    report: CollectReport = collector.collect(17)
    collector.close()
    steps = shelf.steps(0, StepFormat(collector.spaces))
    assert steps["image"].shape == (17, 64, 64, 1)
    assert report.stored_bytes < report.raw_bytes / 2
    assert len({frame.tobytes() for frame in steps["image"]}) > 10


def test_a_stop_ends_an_order_between_two_rounds() -> None:
    """What was recorded is flushed and counted, and the collector continues if it is asked to."""
    collector, shelf = counting(2)
    stop = StopAfter(5)
    assert collector.collect(200, stop).steps == 2 * 5
    assert shelf.flushed == len(shelf.chunks) == 2
    assert collector.collect(200, stop).steps == 0
    assert collector.collect(20).steps == 20
    assert [header.steps for header in shelf.headers(1)] == [5, 10]


def test_a_stop_interrupts_a_step() -> None:
    """A step that is left half way is not recorded, the ones before it are; the collector is of no more use."""
    collector, shelf = counting(2, length=4)
    stop = StopAfter(100)
    step, seen = collector._environments.environments[1].unwrapped.step, []

    def step_until_asked(action: Any) -> Any:
        seen.append(action)
        if len(seen) == 6:
            assert stop.may_interrupt
            raise StepInterrupted
        return step(action)

    collector._environments.environments[1].unwrapped.step = step_until_asked  # type: ignore[method-assign]
    report = collector.collect(200, stop)
    assert report.steps == 2 * (5 + 2), "five actions, and the first steps of two episodes"
    assert report.simulator_steps == 2 * 5
    assert not stop.may_interrupt
    assert shelf.flushed == 2
    with pytest.raises(CollectorBrokenError):
        collector.collect(1)


class StopAfter:
    """Asks to stop once it was looked at so often."""

    def __init__(self, looks: int) -> None:
        self.may_interrupt = False
        self._left = looks

    def asked(self) -> bool:
        self._left -= 1
        return self._left < 0

    def hold(self) -> None:
        pass


@pytest.mark.parametrize("environments", [1, 3])
@pytest.mark.parametrize(("repeat", "noop_max"), [(1, 0), (3, 0), (1, 2), (4, 3)])
def test_simulator_steps_are_those_that_the_simulator_took(environments: int, repeat: int, noop_max: int) -> None:
    """None at a reset but the no-ops, fewer where an episode ends within a repeat; however steps divide into orders."""
    settings = Settings.model_validate({
        "env": {"id": "counting_environment:make", "kwargs": {"length": 10, "action": "box"}, "image_size": 0,
                "action_repeat": repeat, "noop_max": noop_max},
        "actors": {"environments": environments},
    })  # fmt: skip
    shelf = Shelf()
    collector = build_collector(settings, 3, 2, shelf)
    reports = [collector.collect(steps) for steps in (1, 7, 20, 2, 33)]
    assert all(report.simulator_steps >= 0 for report in reports)
    taken = 0
    for k in range(environments):
        steps = shelf.steps(k, StepFormat(collector.spaces))
        taken += int(steps["count"][-1, 3])  # the environment's own count, at the last step that is stored of it
    assert sum(report.simulator_steps for report in reports) == taken
    assert taken < 63 * repeat + 63 * noop_max
