"""Observations: what each is taken for, what the settings say of it, and values that are not as their space says."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np
import pytest
from counting_environment import CountingEnvironment
from gymnasium import spaces
from pydantic import ValidationError

from dreamfleet.actors.environment_batch import EnvironmentBatch, EnvironmentFailedError
from dreamfleet.actors.environments.make import describe_spaces, make_environment, probe_environment
from dreamfleet.actors.spaces.entries import NamedEntries
from dreamfleet.actors.spaces.observations import list_entries
from dreamfleet.common import process_log
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.monitoring.run_callbacks import RunCallbacks

UNIT = spaces.Box(-1.0, 1.0, (3,))
REALS = spaces.Box(0.0, 1.0, (64, 64, 3))
FULL = np.ones((64, 64, 3), np.float32)


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return the lines logged once, with their levels; each test begins as a new process does."""
    lines: dict[str, int] = {}
    monkeypatch.setattr(process_log, "_logged_once", lines)
    monkeypatch.setattr(process_log, "_subjects", set())
    return lines


def box(low: float, high: float, shape: tuple[int, ...], dtype: Any) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def settings_of(space: spaces.Space[Any], shown: Any = None, **settings: Any) -> EnvironmentSettings:
    kwargs = {"observation_space": space, "shown": shown}
    return EnvironmentSettings(id="fixed_environment:make", kwargs=kwargs, **{"image_size": 0} | settings)


def seen(space: spaces.Space[Any], shown: Any = None, **settings: Any) -> dict[str, np.ndarray]:
    """Return what the model sees of a fixed environment, of which the described space says the same."""
    env = make_environment(settings_of(space, shown, **settings))
    observation: dict[str, np.ndarray] = env.reset()[0]
    described = {spec.name: (spec.shape, spec.dtype) for spec in describe_spaces(env).observations}
    assert described == {name: (value.shape, str(value.dtype)) for name, value in observation.items()}
    return observation


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        (box(0, 255, (96, 96, 3), np.uint8), "picture"),
        (box(0, 255, (64, 64), np.uint8), "picture"),
        (box(0, 255, (16, 400, 1), np.uint8), "picture"),
        (box(0, 255, (84, 84, 4), np.uint8), "picture"),
        (box(0, 255, (64, 64, 12), np.uint8), "picture"),
        (box(0, 1, (64, 64, 3), np.float32), "picture"),
        (box(0, 255, (64, 64, 3), np.float64), "picture"),
        (box(0, 255, (128,), np.uint8), "vector"),
        (box(-1, 1, (), np.float32), "vector"),
        (box(-np.inf, np.inf, (5, 5), np.float32), "vector"),
        (box(-1, 1, (4, 376), np.float64), "vector"),
        (box(-1, 1, (7, 11, 11), np.float32), "vector"),
        (box(0, 1000, (4, 2), np.int64), "vector"),
        (box(0, 1, (9,), bool), "vector"),
        (box(0, 255, (9, 64, 64), np.uint8), "its channels seem to come first"),
        (box(0, 255, (8, 64, 64), np.uint8), "its channels seem to come first"),
        (box(0, 255, (4, 64, 64), np.uint8), "its channels seem to come first"),
        (box(0, 1, (3, 64, 64), np.float32), "its channels seem to come first"),
        (box(0, 255, (64, 64, 64), np.uint8), "64 channels are many"),
        (box(0, 255, (3, 7, 7), np.uint8), "less than 16 high or wide"),
        (box(0, 255, (7, 7, 3), np.uint8), "less than 16 high or wide"),
        (box(0, 1, (5, 5, 5), np.float32), "less than 16 high or wide"),
        (box(-1, 1, (64, 64, 3), np.float32), "a picture's reals are"),
        (box(-np.inf, np.inf, (64, 64, 3), np.float32), "a picture's reals are"),
        (box(0, 1, (32, 32), np.float32), "reals with two axes"),
        (box(-np.inf, np.inf, (32, 32), np.float32), "a picture's reals are"),
        (box(0, 1, (4, 64, 64, 3), np.float32), "joining its channels"),
        (box(0, 1, (10, 10, 4), bool), "may be quantities or symbols"),
        (box(-1, 5, (5, 5), np.int8), "may be quantities or symbols"),
        (box(0, 5, (7, 7), np.uint8), "may be quantities or symbols"),
        (box(0, 1, (84, 84, 1), np.uint8), "may be quantities or symbols"),
        (box(0, 5975, (21, 79), np.int16), "may be quantities or symbols"),
    ],
    ids=str,
)
def test_a_box_is_a_picture_a_vector_or_refused_as_ambiguous(space: spaces.Box, kind: str) -> None:
    """What may be either is refused with the reason and the flags that decide; each flag offered is taken."""
    if kind in ("picture", "vector"):
        assert [entry.kind for entry in list_entries(space, 0, grey=False)] == [kind]
        return
    with pytest.raises(UserError) as error:
        list_entries(space, 0, grey=False)
    sentence = str(error.value)
    assert f"{space.dtype} {space.shape}" in sentence
    assert kind in sentence
    lists = {"--env.pictures image": "pictures", "--env.vectors vector": "vectors", "--env.one_hot vector": "one_hot"}
    offered = [name for flag, name in lists.items() if flag in sentence]
    assert "vectors" in offered
    for name in offered:
        named = NamedEntries(**{name: ("image" if name == "pictures" else "vector",)})
        (entry,) = list_entries(space, 0, grey=False, named=named)
        assert entry.spec.is_image == (name == "pictures")
        shown = entry.convert(np.zeros(space.shape, space.dtype))
        assert (shown.shape, str(shown.dtype)) == (entry.spec.shape, entry.spec.dtype)


def test_channels_first_are_brought_last() -> None:
    """The shorter of the first and the last axis is that of the channels, and the last one if both are alike."""
    picture = np.random.default_rng(0).integers(0, 256, (9, 32, 48), np.uint8)
    shown = seen(box(0, 255, (9, 32, 48), np.uint8), picture, pictures="image")["image"]
    assert np.array_equal(shown, picture.transpose(1, 2, 0))
    last = picture[:, :, :9]
    assert np.array_equal(seen(box(0, 255, (9, 32, 9), np.uint8), last, pictures="image")["image"], last)


def test_channels_first_are_resized_and_made_grey_as_channels_last_are() -> None:
    """What stands in memory in another order is the same picture."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    first = np.ascontiguousarray(picture.transpose(2, 0, 1))
    how = {"image_size": 16, "grey": True}
    expected = seen(box(0, 255, picture.shape, np.uint8), picture, **how)["image"]
    shown = seen(box(0, 255, first.shape, np.uint8), first, pictures=["image"], **how)["image"]
    assert shown.shape == (16, 16, 1)
    assert np.array_equal(shown, expected)


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (box(-1, 1, (64, 64, 3), np.float32), -1.0, 0),
        (box(-1, 1, (64, 64, 3), np.float32), 0.2, 153),
        (box(-1, 1, (64, 64, 3), np.float64), 1.0, 255),
        (box(0, 1, (32, 32), np.float16), 0.5, 128),
        (box(0, 1, (10, 10, 4), bool), True, 255),
        (box(0, 1, (10, 10, 4), bool), False, 0),
        (box(-1, 5, (5, 5), np.int8), 1, 85),
        (box(0, 5, (7, 7), np.uint8), 2, 102),
        (box(0, 65535, (32, 32, 1), np.uint16), 65535, 255),
        (box(0, 65535, (32, 32, 1), np.uint16), 257, 1),
    ],
    ids=str,
)
def test_named_pictures_are_brought_from_their_bounds_to_bytes(space: spaces.Box, value: float, expected: int) -> None:
    """The lower bound is 0 and the upper one 255, whatever they are; false and true likewise."""
    shown = seen(space, np.full(space.shape, value, space.dtype), pictures="image")["image"]
    assert set(shown.flat) == {expected}


def test_bounds_that_differ_from_channel_to_channel_count_each() -> None:
    """A picture of colour and depth is brought to bytes channel by channel."""
    low, high = (np.broadcast_to(np.array(ends, np.float32), (16, 16, 2)) for ends in ([0, -4], [2, 4]))
    shown = seen(spaces.Box(low, high), np.full((16, 16, 2), [1, 2], np.float32), pictures="image")["image"]
    assert [set(shown[..., channel].flat) for channel in (0, 1)] == [{128}, {191}]


@pytest.mark.parametrize(
    ("space", "shown", "list_name", "expected"),
    [
        (box(0, 255, (2, 2, 1), np.uint8), [[[1], [2]], [[3], [255]]], "vectors", [1, 2, 3, 255]),
        (box(-1, 1, (2, 2), np.int8), [[-1, 0], [1, 1]], "one_hot", [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]),
        (box(-1, 1, (2,), np.int8), [1, -1], "one_hot", [0, 0, 1, 1, 0, 0]),
        (box(0, 1, (2, 1), bool), [[True], [False]], "one_hot", [0, 1, 1, 0]),
        (spaces.Box(np.int32([0, 3]), np.int32([1, 5]), dtype=np.int32), [1, 4], "one_hot", [0, 1, 0, 1, 0]),
        (spaces.Discrete(90_000, start=-2), 70_000, "vectors", [70_000]),
        (spaces.MultiDiscrete([4, 5]), [3, 1], "vectors", [3, 1]),
        (spaces.MultiBinary((2, 2)), [[0, 1], [1, 1]], "vectors", [0, 1, 1, 1]),
        (spaces.Discrete(3), 2, "one_hot", [0, 0, 1]),
    ],
    ids=str,
)  # fmt: skip
def test_named_vectors_are_plain_numbers_and_named_one_hots_are_one_hots(
    space: spaces.Space[Any], shown: Any, list_name: str, expected: list[int]
) -> None:
    """A grid, a board or a choice becomes what the settings say."""
    shown = np.asarray(shown, space.dtype)
    assert seen(space, shown, **{list_name: ["vector"]})["vector"].tolist() == expected


def test_entries_of_dicts_are_named_one_by_one(logged: dict[str, int]) -> None:
    """Each goes its own way, and a line says which."""
    space = spaces.Dict(
        {
            "board": box(0, 2, (3, 3), np.int8),
            "camera": box(0, 255, (3, 32, 32), np.uint8),
            "lidar": box(0, 9, (32, 32), np.float32),
            "speed": UNIT,
        }
    )
    shown = seen(space, pictures=["camera"], vectors=["lidar"], one_hot=["board"])
    assert {name: value.shape for name, value in shown.items()} == {
        "board": (27,), "camera": (32, 32, 3), "lidar": (1024,), "speed": (3,),
    }  # fmt: skip
    assert list(logged) == [
        "observations: board 27 (one-hot: int8 3×3 from 0 to 2), "
        "camera 32×32×3 (picture: uint8 3×32×32, channels first), "
        "lidar 1024 (vector: float32 32×32), speed 3 (vector: float32 3)"
    ]


def test_the_flags_offered_keep_what_was_named_before() -> None:
    """Of two ambiguous entries the second one's flag names both, for a flag given twice counts once."""
    space = spaces.Dict({"left eye": box(-1, 1, (32, 32), np.float32), "right": box(-1, 1, (32, 32), np.float32)})
    with pytest.raises(UserError, match=r"--env.pictures '\[left eye, right\]' takes"):
        seen(space, pictures="left eye")


@pytest.mark.parametrize(
    ("space", "settings", "words"),
    [
        (spaces.Dict({"camera": UNIT}), {"vectors": ["camra"]}, ["env.vectors names 'camra'", "mean 'camera'?"]),
        (spaces.Dict({"a": UNIT, "b": UNIT}), {"one_hot": ["xyz"]}, ["env.one_hot names 'xyz'", "It has: a, b."]),
        (UNIT, {"vectors": ["vectr"]}, ["Did you mean 'vector'?"]),
        (UNIT, {"pictures": ["image"]}, ["env.pictures names the observation", "two or three axes"]),
        (box(0, np.inf, (64, 64), np.float32), {"pictures": ["image"]}, ["from 0 to inf", "finite bounds"]),
        (box(-3e38, 3e38, (64, 64), np.float32), {"pictures": ["image"]}, ["finite bounds"]),
        (spaces.Discrete(3), {"pictures": ["image"]}, ["Discrete(3)", "a picture is a Box"]),
        (UNIT, {"one_hot": ["vector"]}, ["float32 (3,)", "not whole numbers"]),
        (box(0, 2**40, (1,), np.int64), {"one_hot": ["vector"]}, ["1,099,511,627,777 numbers", "env.vectors"]),
        (spaces.Discrete(10**9), {}, ["1,000,000,000 numbers", "env.vectors"]),
        (box(0, 255, (9, 64, 64), np.uint8), {"pictures": ["image"], "grey": True}, ["env.grey", "has 9"]),
    ],
)  # fmt: skip
def test_names_that_do_not_fit_are_refused(
    space: spaces.Space[Any], settings: dict[str, Any], words: list[str]
) -> None:
    """The sentence names the list, the entry, and what would be right."""
    with pytest.raises(UserError) as error:
        make_environment(settings_of(space, shown=0, **settings))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_name_in_two_lists_is_refused() -> None:
    """One observation is one thing."""
    with pytest.raises(ValidationError, match="'a' is named twice in env"):
        EnvironmentSettings(pictures=("a",), vectors=("a",))


def test_tuples_and_whole_number_keys_are_named_by_them() -> None:
    """Parts of Tuples are called by their index, nested ones by all that leads to them; settings take numbers too."""
    space = spaces.Tuple([spaces.Discrete(4), spaces.Dict({7: UNIT, 8: spaces.Tuple([spaces.MultiBinary(2), UNIT])})])
    value = np.array([0.5, 0, -1], np.float32)
    shown = seen(space, (2, {7: value, 8: (np.array([1, 0], np.int8), value * 2)}), vectors=[0])
    assert {name: array.tolist() for name, array in shown.items()} == {
        "0": [2], "1_7": [0.5, 0, -1], "1_8_0": [1, 0], "1_8_1": [1, 0, -2],
    }  # fmt: skip


class Mission(spaces.Space[str]):
    """Text of a package's own, as MiniGrid's missions are."""

    def __init__(self) -> None:
        super().__init__(dtype=str)


@pytest.mark.parametrize("text", [spaces.Text(10), Mission()])
def test_text_is_left_out_with_a_warning(text: spaces.Space[str], logged: dict[str, int]) -> None:
    """The rest is observed, and the warning names what is not."""
    space = spaces.Dict({"a": spaces.Dict({"v": UNIT, "told": text})})
    shown = {"a": {"v": np.zeros(3, np.float32), "told": "go"}}
    assert list(seen(space, shown)) == ["a_v"]
    assert any("'a_told' is text" in line and level == logging.WARNING for line, level in logged.items())


def test_a_wide_choice_is_warned_of(logged: dict[str, int]) -> None:
    """A one-hot of thousands works and is warned of; a narrow one is not."""
    seen(spaces.Dict({"few": spaces.Discrete(500), "many": spaces.Discrete(5000)}))
    (warning,) = [line for line, level in logged.items() if level == logging.WARNING]
    assert "'many' is a one-hot of 5,000 numbers" in warning


def test_what_the_space_does_not_declare_is_warned_of_once(logged: dict[str, int]) -> None:
    """It is left out, in nested Dicts too."""
    space = spaces.Dict({"a": spaces.Dict({"v": UNIT})})
    shown = {"a": {"v": np.zeros(3, np.float32), "more": 3}}
    assert [list(seen(space, shown)) for _ in range(2)] == [["a_v"], ["a_v"]]
    assert [line for line, level in logged.items() if level == logging.WARNING] == [
        "'a_more' is shown but not in the observation space: it is left out"
    ]


@pytest.mark.parametrize(
    ("space", "shown", "words"),
    [
        (REALS, FULL * 200, ["'image' is 200 at (0, 0, 0)", "0 to 1"]),
        (REALS, FULL * np.nan, ["'image' is nan", "0 to 1"]),
        (REALS, FULL * -np.inf, ["'image' is -inf", "0 to 1"]),
        (UNIT, np.array([0, np.nan, 0], np.float32), ["'vector' is not finite: [ 0. nan  0.]"]),
        (box(0, np.inf, (2,), np.float64), np.array([0, 1e39]), ["finite (float32 holds up to 3.4e+38): [ 0. inf]"]),
        (spaces.Dict({"v": UNIT, "w": UNIT}), {"v": np.zeros(3, np.float32)}, ["lacks 'w'"]),
        (spaces.Dict({"v": UNIT}), None, ["lacks 'v'"]),
        (UNIT, [[1, 2], [3]], ["'vector' is [[1, 2], [3]], which is no array of numbers"]),
        (UNIT, "north", ["'vector' is 'north', which is no array of numbers"]),
        (UNIT, np.zeros(4, np.float32), ["'vector' has the shape (4,), but the space says (3,)"]),
    ],
)  # fmt: skip
def test_the_probe_refuses_values_that_cannot_be_stored_as_they_are(
    space: spaces.Space[Any], shown: Any, words: list[str]
) -> None:
    """The sentence names the entry, the value and the bounds, and no line of our own code."""
    with pytest.raises(UserError) as error:
        probe_environment(settings_of(space, "nothing" if shown is None else shown))
    assert ", line " not in str(error.value)
    assert all(word in str(error.value) for word in ["first steps", *words]), str(error.value)


def test_a_board_that_shows_what_its_space_denies_is_refused() -> None:
    """A whole number outside has no place in a one-hot, and a real is none."""
    space = box(-1, 5, (5, 5), np.int8)
    board = np.zeros((5, 5), np.int8)
    board[2, 2] = 9
    for shown, words in ((board, "'vector' is 9, but its space says -1 to 5"), (board / 9, "is float64")):
        with pytest.raises(UserError, match=words):
            probe_environment(settings_of(space, shown, one_hot=["vector"]))


def test_a_little_outside_is_warned_of_once(logged: dict[str, int]) -> None:
    """A picture that overshoots is clipped and a vector kept; both are said once, whatever else they show."""
    for value in (1.04, 1.03):
        picture = seen(REALS, FULL * np.float32(value))["image"]
        assert set(picture.flat) == {255}
    warnings = [line for line, level in logged.items() if level == logging.WARNING]
    assert len(warnings) == 1
    assert "'image' is 1.04 at (0, 0, 0), but its space says 0 to 1: such values are clipped" in warnings[0]

    for value in (7.5, 8.5):
        probe_environment(settings_of(UNIT, np.array([0, 0, value], np.float32)))
    warnings = [line for line, level in logged.items() if level == logging.WARNING]
    assert len(warnings) == 2
    assert "'vector' is 7.5 at [2], but its space says -1 to 1" in warnings[1]


def test_rounding_is_not_warned_of(logged: dict[str, int]) -> None:
    """Neither what rounds to the right byte nor the last digit of a bound is outside."""
    probe_environment(settings_of(box(0, 1, (64, 64, 3), np.float64), np.full((64, 64, 3), 1 + 1e-9)))
    probe_environment(settings_of(box(-0.1, 0.1, (3,), np.float64), np.full(3, 0.1)))
    probe_environment(settings_of(UNIT, np.full(3, 1 + 1e-6, np.float32)))
    assert logging.WARNING not in logged.values()


@pytest.mark.parametrize(("greatest", "named", "warned"), [(7, (), True), (200, (), False), (7, ("image",), False)])
def test_a_picture_that_is_all_but_black_is_warned_of(
    greatest: int, named: tuple[str, ...], warned: bool, logged: dict[str, int]
) -> None:
    """A grid of symbols declared as bytes shows itself at the first steps, unless it is said to be a picture."""
    space = box(0, 255, (25, 25, 3), np.uint8)
    probe_environment(settings_of(space, np.full((25, 25, 3), greatest, np.uint8), pictures=named))
    assert any("no byte above 7" in line for line in logged) == warned


class Drifting(CountingEnvironment):
    """Counts, in a space that denies what it counts after its third step."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observation_space = spaces.Dict({"count": spaces.Box(-np.inf, np.array([np.inf, np.inf, 3, np.inf]))})


def drifting(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    return Drifting(**kwargs)


def collect(steps: int, **kwargs: Any) -> None:
    """Collect this many steps in one chunk, as an actor does."""
    batch = EnvironmentBatch(EnvironmentSettings(id=f"{__name__}:drifting", kwargs=kwargs, image_size=0), [1])
    batch.reset()
    for _ in range(steps - 1):
        batch.step(np.zeros((1,), np.int32))
    batch.check_vectors(0, 0, {name: array[:steps, 0] for name, array in batch.buffer.arrays.items()})


def test_a_chunk_of_vectors_is_held_against_their_bounds(logged: dict[str, int]) -> None:
    """Inside them nothing is said; beyond them, the first number is, once for all chunks of a process."""
    collect(4)
    assert logging.WARNING not in logged.values()
    for steps in (7, 8):
        collect(steps)
    (warning,) = [line for line, level in logged.items() if level == logging.WARNING]
    assert "'count' is 4 at [2], but its space says -inf to 3" in warning
    with pytest.raises(
        EnvironmentFailedError, match=r"in episode 0 at step 6 of its stream: its observation 'count' is not finite: \["
    ):
        collect(8, nan_count_at=6)


def test_what_actors_log_again_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The run's process tried the environment itself; each actor says the same of its own, and what is new is kept."""
    nothing: Any = None
    callbacks = RunCallbacks(Settings(), nothing, nothing, nothing, nothing)
    process_log.log_once("observations: vector 3")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        callbacks.on_log([(logging.INFO, "observations: vector 3"), (logging.WARNING, "something else")])
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.WARNING, "something else")]


def test_the_names_of_an_old_run_stay() -> None:
    """What is certainly a picture or a vector is described as ever."""
    space = spaces.Dict({"a": spaces.Dict({"eye": box(0, 255, (64, 64, 3), np.uint8)}), "v": UNIT})
    env = make_environment(settings_of(space))
    assert describe_spaces(env).observations == (
        ObservationSpec("a_eye", (64, 64, 3), "uint8"),
        ObservationSpec("v", (3,), "float32"),
    )
