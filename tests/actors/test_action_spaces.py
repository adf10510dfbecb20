"""Action spaces of every kind: what is stored of them, and that the environment gets what its space contains."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from dreamfleet.actors.spaces.action_spaces import (
    action_converter,
    describe_action,
    list_parts,
    null_action,
    random_actions,
    values_of,
)
from dreamfleet.common.acting.policy import RandomPolicy
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec
from dreamfleet.deploy.run.prepare import action_warnings

INF = np.inf
ARM = spaces.Box(np.array([-1, 0], np.float32), np.array([1, INF], np.float32))
DEEP = spaces.Dict(
    {
        "b": spaces.Tuple((spaces.Discrete(3, start=-1), spaces.Dict({"arm": ARM}))),
        "a": spaces.MultiBinary((2, 2)),
        "c": spaces.Box(-2, 2, (), np.float64),
    }
)
ALL: dict[str, tuple[spaces.Space[Any], ActionSpec]] = {
    "start": (spaces.Discrete(3, start=-1), ActionSpec("discrete", (3,))),
    "one": (spaces.Discrete(1), ActionSpec("discrete", (1,))),
    "starts": (spaces.MultiDiscrete([3, 2], start=[1, -5]), ActionSpec("multi_discrete", (3, 2))),
    "small type": (spaces.MultiDiscrete([3, 2], dtype=np.int8), ActionSpec("multi_discrete", (3, 2))),
    "binary": (spaces.MultiBinary(3), ActionSpec("multi_discrete", (2, 2, 2))),
    "binary plane": (spaces.MultiBinary((2, 2)), ActionSpec("multi_discrete", (2,) * 4)),
    "bytes": (spaces.Box(0, 255, (2,), np.uint8), ActionSpec("multi_discrete", (256, 256))),
    "signed": (spaces.Box(-128, 127, (), np.int8), ActionSpec("multi_discrete", (256,))),
    "wide integers": (spaces.Box(-5, 5, (2, 1), np.int64), ActionSpec("multi_discrete", (11, 11))),
    "great start": (spaces.Box(2**32 - 9, 2**32 - 2, (1,), np.uint32), ActionSpec("multi_discrete", (8,))),
    "scalar": (spaces.Box(-2, 2, (), np.float32), ActionSpec("box", (1,), (-2,), (2,))),
    "no bounds": (spaces.Box(-INF, INF, (2,)), ActionSpec("box", (2,), (-INF,) * 2, (INF,) * 2, (2,))),
    "half": (spaces.Box(5, INF, (1,)), ActionSpec("box", (1,), (5,), (INF,), (1,))),
    "fixed": (spaces.Box(0.5, 0.5, (1,)), ActionSpec("box", (1,), (0.5,), (0.5,), (1,))),
    "of one": (spaces.Dict({"a": spaces.Discrete(3, start=2)}), ActionSpec("discrete", (3,), names=("a",))),
    "of one box": (
        spaces.Tuple((spaces.Box(-1, 1, (1, 2)),)),
        ActionSpec("box", (2,), (-1, -1), (1, 1), (1, 2), ("0[0]", "0[1]")),
    ),
    "of choices": (
        spaces.Tuple((spaces.Discrete(2), spaces.MultiDiscrete([3, 4]))),
        ActionSpec("multi_discrete", (2, 3, 4), names=("0", "1[0]", "1[1]")),
    ),
    "of boxes": (
        spaces.Dict({"arm": ARM, "grip": spaces.Box(0, 1, ())}),
        ActionSpec("box", (3,), (-1, 0, 0), (1, INF, 1), (3,), ("arm[0]", "arm[1]", "grip")),
    ),
    "of numbered keys": (
        spaces.Dict({0: spaces.Discrete(2), 1: spaces.Box(-1, 1, ())}),  # type: ignore[dict-item]
        ActionSpec("mixed", (2,), (-1,), (1,), names=("0", "1")),
    ),
    "deep": (
        DEEP,
        ActionSpec(
            "mixed",
            (2, 2, 2, 2, 3),
            (-1, 0, -2),
            (1, INF, 2),
            names=("a[0]", "a[1]", "a[2]", "a[3]", "b_0", "b_1_arm[0]", "b_1_arm[1]", "c"),
        ),
    ),
}


@pytest.mark.parametrize("name", ALL)
def test_a_space_is_described_by_the_simplest_kind(name: str) -> None:
    """Dicts and Tuples of one kind are that kind; only choices beside reals are mixed."""
    space, expected = ALL[name]
    assert describe_action(space) == expected


@pytest.mark.parametrize("name", ALL)
def test_actions_by_chance_lie_in_the_space(name: str) -> None:
    """Each in the environment's own form, and so does the action that does nothing."""
    space, spec = ALL[name]
    convert, policy = action_converter(space), RandomPolicy(spec, 2, seed=0)
    for _ in range(50):
        for stored in policy.act({}, np.zeros(2, bool)):
            action = convert(stored)
            assert space.contains(action), action
            assert all(isinstance(value, int | np.ndarray) for value in values_of(space, action))
    assert space.contains(null_action(space))


@pytest.mark.parametrize("name", ALL)
def test_each_number_of_an_action_has_its_own_place(name: str) -> None:
    """What a sample says of each part, written where `list_parts` says, is that sample again."""
    space, spec = ALL[name]
    space.seed(0)
    convert = action_converter(space)
    for _ in range(20):
        sample = space.sample()
        row = np.zeros(len(spec.choices) + spec.reals, spec.stored_dtype)
        for part, value in zip(list_parts(space), values_of(space, sample), strict=True):
            starts = part.options.starts.reshape(-1).astype(np.int64) if part.options else 0
            numbers = np.asarray(value).reshape(-1)
            numbers = numbers.astype(np.int64) - starts if part.options else numbers
            row[part.first : part.first + part.width] = numbers
        back = convert(row.reshape(spec.stored_shape))
        for one, other in zip(values_of(space, back), values_of(space, sample), strict=True):
            assert np.allclose(one, other, rtol=1e-6)
            assert np.shape(one) == np.shape(other)


def test_a_bound_of_a_types_largest_number_is_none() -> None:
    """It is acted on near zero, where the space's own `sample` fails or is astronomical."""
    for dtype in (np.float32, np.float64):
        most = np.finfo(dtype).max
        space = spaces.Box(-most, most, (3,), dtype)
        actions = list(islice(random_actions(space, seed=0), 50))
        assert all(space.contains(action) for action in actions)
        assert np.abs(actions).max() < 6
        assert action_warnings(describe_action(space))


def test_what_cannot_be_an_action_is_named() -> None:
    """The part, and what would be right."""
    inner: list[tuple[spaces.Space[Any], str]] = [
        (spaces.Dict({"arm": ARM, "say": spaces.Text(5)}), r"part 'say' of .*Text.* is not supported.*MultiBinary"),
        (spaces.Tuple((ARM, spaces.Box(0, 1, (0,)))), r"part '1' of .*Box.* is not supported"),
        (spaces.Box(0, 2**40, (1,), np.int64), r"choice of 1,099,511,627,777 options.*Box of reals"),
        (spaces.Dict({}), r"action space Dict\(\) is not supported"),
        (spaces.Dict({"a": spaces.MultiDiscrete([])}), r"part 'a' of .* is not supported"),
    ]
    for space, words in inner:
        with pytest.raises(UserError, match=words):
            describe_action(space)


def test_unusual_actions_are_named_in_warnings() -> None:
    """What lacks a bound and what it is acted on in; and choices of very many options."""
    (warning,) = action_warnings(describe_action(DEEP))
    assert "'b_1_arm[1]' (0 to inf) is acted on in [0, 2]" in warning
    (warning,) = action_warnings(
        describe_action(spaces.Box(-INF, np.array([7.0, -3.0, INF, 2, 2, 2]), (6,), np.float64))
    )
    assert "dimension 1 (-inf to -3) is acted on in [-5, -3]" in warning
    assert "and 2 more likewise" in warning
    (warning,) = action_warnings(
        describe_action(spaces.Dict({"a": spaces.Discrete(3), "goal": spaces.Discrete(50_000)}))
    )
    assert "50,003 numbers" in warning
    assert "'goal' alone has 50,000 options" in warning
    assert action_warnings(describe_action(spaces.MultiDiscrete([100, 100]))) == []
    assert action_warnings(ActionSpec("box", (1,), (-2,), (2,), (1,))) == []
