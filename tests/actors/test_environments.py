"""Making environments: wrappers, spaces and what is said of wrong ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
from counting_environment import ACTION_SPACES
from gymnasium import spaces

from dreamfleet.actors.environments.make import describe_spaces, make_environment, probe_environment
from dreamfleet.actors.spaces.action_spaces import action_converter, describe_action, null_action
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec, Spaces
from dreamfleet.common.settings.environment import EnvironmentSettings

UNIT = spaces.Box(-1.0, 1.0, (2,))
SEQUENCE = spaces.Sequence(spaces.Discrete(3))
BYTES = np.random.default_rng(0).integers(0, 256, (20, 30, 12), np.uint8)


def counting(kwargs: dict[str, Any] | None = None, **settings: Any) -> gymnasium.Env[Any, Any]:
    defaults = {"image_size": 0}
    return make_environment(
        EnvironmentSettings(id="counting_environment:make", kwargs=kwargs or {}, **defaults | settings)
    )


def fixed(observation_space: spaces.Space[Any], shown: Any = None, **settings: Any) -> gymnasium.Env[Any, Any]:
    kwargs = {"observation_space": observation_space, "shown": shown}
    return make_environment(
        EnvironmentSettings(id="fixed_environment:make", kwargs=kwargs, **{"image_size": 0} | settings)
    )


def pixels(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def spec(env: gymnasium.Env[Any, Any]) -> tuple[ObservationSpec, ...]:
    return describe_spaces(env).observations


def test_action_repeat_sums_rewards_and_stops_at_the_end() -> None:
    """Ten simulator steps repeated by four are three environment steps: 1+2+3+4, 5+6+7+8 and the last two."""
    env = counting({"length": 10, "terminate_every": 1}, action_repeat=4)
    env.reset(seed=1)
    steps = [env.step(5) for _ in range(3)]
    assert [reward for _, reward, *_ in steps] == [10.0, 26.0, 19.0]
    assert [terminated for *_, terminated, _, _ in steps] == [False, False, True]
    assert steps[-1][0]["count"][2] == 10


def test_time_limit_counts_environment_steps_after_the_repeat() -> None:
    """With a repeat of four and a limit of three, an episode is cut short after twelve simulator steps."""
    env = counting({"length": 100}, action_repeat=4, time_limit=3)
    env.reset(seed=1)
    ends = [env.step(5)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    assert env.unwrapped.total_steps == 12  # type: ignore[attr-defined]


def test_noop_starts_take_a_seeded_random_number_of_steps_that_do_nothing() -> None:
    """Episodes begin after 0 to noop_max steps of the first action; the same seed gives the same numbers."""

    def starts(seed: int) -> list[int]:
        env = counting({"length": 100}, noop_max=5)
        counts = [int(env.reset(seed=seed if n == 0 else None)[0]["count"][2]) for n in range(40)]
        assert set(env.unwrapped.actions) == {5}  # type: ignore[attr-defined]
        return counts

    assert set(starts(3)) == {0, 1, 2, 3, 4, 5}
    assert starts(3) == starts(3)
    assert starts(3) != starts(4)


def test_noop_start_begins_again_when_the_episode_ends() -> None:
    """An episode of two steps never begins at its end."""
    env = counting({"length": 2}, noop_max=9)
    starts = {int(env.reset(seed=n)[0]["count"][2]) for n in range(30)}
    assert starts == {0, 1}


def test_images_are_resized_by_area_and_made_grey() -> None:
    """A colour picture becomes what OpenCV's area interpolation and grey conversion make of it, with one channel."""
    picture = np.ascontiguousarray(BYTES[..., :3])
    env = fixed(pixels(20, 30, 3), picture, image_size=8, grey=True)
    shown = env.reset()[0]["image"]
    expected = cv2.cvtColor(cv2.resize(picture, (8, 8), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    assert np.array_equal(shown, expected[..., None])
    assert spec(env) == (ObservationSpec("image", (8, 8, 1), "uint8"),)


def test_area_interpolation_averages_blocks() -> None:
    """Halving a picture gives the means of 2 by 2 pixels, worked out by hand."""
    picture = np.array([[0, 10, 100, 100], [20, 30, 100, 200]] * 2, np.uint8)
    halved = fixed(pixels(4, 4), picture, image_size=2, grey=True, pictures=["image"]).reset()[0]["image"]
    assert halved[..., 0].tolist() == [[15, 125], [15, 125]]


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 12])
def test_pictures_of_any_channel_count_are_resized(channels: int) -> None:
    """Every channel is resized as if it were alone."""
    picture = np.ascontiguousarray(BYTES[..., :channels])
    shown = fixed(pixels(20, 30, channels), picture, image_size=16).reset()[0]["image"]
    assert shown.shape == (16, 16, channels)
    for channel in range(channels):
        alone = cv2.resize(np.ascontiguousarray(picture[..., channel]), (16, 16), interpolation=cv2.INTER_AREA)
        assert np.array_equal(shown[..., channel], alone)


@pytest.mark.parametrize(
    ("space", "shown", "name", "expected"),
    [
        (pixels(4, 4), np.full((4, 4), 7, np.uint8), "image", np.full((4, 4, 1), 7, np.uint8)),
        (
            spaces.Box(0.0, 1.0, (2, 2, 1)),
            np.full((2, 2, 1), 0.5, np.float32),
            "image",
            np.full((2, 2, 1), 128, np.uint8),
        ),
        (
            spaces.Box(0, 255, (2, 2, 1), np.float32),
            np.full((2, 2, 1), 9.0, np.float32),
            "image",
            np.full((2, 2, 1), 9, np.uint8),
        ),
        (spaces.Box(-1.0, 1.0, (3,), np.float64), np.array([0.1, 0.2, 0.3]), "vector", [0.1, 0.2, 0.3]),
        (spaces.Box(-1.0, 1.0, ()), np.array(0.5, np.float32), "vector", [0.5]),
        (spaces.Box(-9.0, 9.0, (2, 2)), np.array([[1, 2], [3, 4]], np.float32), "vector", [1, 2, 3, 4]),
        (spaces.Box(0, 255, (3,), np.uint8), np.array([1, 2, 255], np.uint8), "vector", [1, 2, 255]),
        (spaces.Discrete(4, start=2), np.int64(3), "vector", [0, 1, 0, 0]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), "vector", [1, 0, 1]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), "vector", [0, 1, 0, 0, 1]),
    ],
)
def test_every_observation_space_becomes_an_image_or_a_vector(
    space: spaces.Space[Any], shown: Any, name: str, expected: Any
) -> None:
    """Bytes of two or three dimensions and unit reals of three are pictures; all else is a flat float32 vector."""
    env = fixed(space, shown, pictures=["image"] if name == "image" else [])
    observation = env.reset()[0]
    wanted = np.asarray(expected, np.uint8 if name == "image" else np.float32)
    assert list(observation) == [name]
    assert observation[name].dtype == wanted.dtype
    assert np.array_equal(observation[name], wanted)
    assert spec(env) == (ObservationSpec(name, wanted.shape, str(wanted.dtype)),)
    assert env.observation_space.contains(observation)


def test_dicts_keep_their_names_and_nested_ones_join_them() -> None:
    """A Dict in a Dict gives entries named by both keys, each converted as its own space asks."""
    space = spaces.Dict(
        {"eye": spaces.Dict({"left": pixels(32, 32, 3), "right": pixels(16, 32)}), "speed": spaces.Box(-1, 1, (2,))}
    )
    env = fixed(space, image_size=4)
    assert spec(env) == (
        ObservationSpec("eye_left", (4, 4, 3), "uint8"),
        ObservationSpec("eye_right", (4, 4, 1), "uint8"),
        ObservationSpec("speed", (2,), "float32"),
    )
    shown = env.reset()[0]
    assert np.array_equal(shown["speed"], env.unwrapped.shown["speed"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("space", "settings", "words"),
    [
        (spaces.Text(5), {}, ["Text(", "empty"]),
        (SEQUENCE, {}, ["Sequence(", "not supported", "Box, Discrete"]),
        (spaces.Tuple([spaces.Discrete(2), SEQUENCE]), {}, ["'1'", "Sequence(", "not supported"]),
        (spaces.Dict({"a": spaces.Dict({"b": SEQUENCE})}), {}, ["'a_b'", "Sequence("]),
        (spaces.Dict({"reward": pixels(16, 16)}), {}, ["'reward'", "Rename"]),
        (spaces.Dict({"a_b": pixels(16, 16), "a": spaces.Dict({"b": pixels(16, 16)})}), {}, ["'a_b'", "Rename"]),
        (spaces.Dict({"a_1": UNIT, "a": spaces.Tuple([UNIT, UNIT])}), {}, ["'a_1'", "Rename"]),
        (spaces.Dict({"1": UNIT, 1: UNIT}), {}, ["'1'", "Rename"]),
        (pixels(3, 64, 64), {}, ["(3, 64, 64)", "channels seem to come first", "--env.pictures image"]),
        (pixels(4, 64, 64, 3), {}, ["(4, 64, 64, 3)", "joining its channels"]),
        (pixels(64, 64, 4), {"grey": True}, ["env.grey", "3 channels", "has 4"]),
        (spaces.Box(0, 1, (0,)), {}, ["'observation'", "(0,)"]),
        (spaces.Dict({}), {}, ["empty"]),
    ],
)
def test_unsupported_observations_are_refused_by_name(
    space: spaces.Space[Any], settings: dict[str, Any], words: list[str]
) -> None:
    """The sentence names the space and what would be right."""
    with pytest.raises(UserError) as error:
        fixed(space, shown=0, **settings)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unsupported_action_spaces_are_refused_by_name() -> None:
    """Text and sequences, alone or in a Dict, are named beside what is supported."""
    for space in (spaces.Text(3), spaces.Dict({"part": spaces.Sequence(spaces.Discrete(2))})):
        kwargs = {"observation_space": pixels(4, 4), "action_space": space}
        with pytest.raises(
            UserError, match=r"(Text|'part'.*Sequence).*not supported.*Discrete, MultiDiscrete, MultiBinary and Box"
        ):
            make_environment(EnvironmentSettings(id="fixed_environment:make", kwargs=kwargs))


def test_stored_actions_become_the_environments_own() -> None:
    """Discrete counts from its start; MultiDiscrete and Box get their shape, type and bounds back."""
    discrete = ACTION_SPACES["discrete"]
    assert describe_action(discrete).sizes == (3,)
    action = action_converter(discrete)(np.int32(2))
    assert action == 7
    assert type(action) is int

    multi = ACTION_SPACES["multi_discrete"]
    assert describe_action(multi).sizes == (2, 3, 4, 5)
    assert action_converter(multi)(np.array([1, 2, 3, 4], np.int32)).tolist() == [[1, 2], [3, 4]]

    box = ACTION_SPACES["box"]
    described = describe_action(box)
    assert (described.sizes, described.low, described.high, described.box_shape) == ((2,), (-2, 0.5), (2, 3), (1, 2))
    action = action_converter(box)(np.array([-1.5, 7.0], np.float32))
    assert action.tolist() == [[-1.5, 3.0]]
    assert box.contains(action)


def test_a_rounded_bound_stays_inside_the_box() -> None:
    """0.1 rounds up in float32; the environment still gets its own 0.1."""
    box = spaces.Box(0.0, 0.1, (1,), np.float64)
    assert not box.contains(np.array([np.float32(0.1)], np.float64))
    assert box.contains(action_converter(box)(np.array([0.1], np.float32)))


def test_the_null_action_of_each_space() -> None:
    """The first choice; zeros; and the nearest bound where zero is outside."""
    assert null_action(ACTION_SPACES["discrete"]) == 5
    assert null_action(ACTION_SPACES["multi_discrete"]).tolist() == [[0, 0], [0, 0]]
    assert null_action(ACTION_SPACES["box"]).tolist() == [[0.0, 0.5]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"id": "CarRacin-v3"}, ["'CarRacin-v3'", "Did you mean 'CarRacing-v3'?"]),
        ({"id": "CartPole-v7"}, ["'CartPole-v7'", "Did you mean 'CartPole-v"]),
        ({"id": "OtherSuite/Walk-v0"}, ["'OtherSuite/Walk-v0'", "package", "installed?"]),
        ({"id": "no_such_module:make"}, ["no module 'no_such_module'", "PYTHONPATH"]),
        ({"id": "counting_environment:mak"}, ["has no 'mak'", "Did you mean 'make'?"]),
        ({"id": "counting_environment:ACTION_SPACES"}, ["is dict", "function that returns a gymnasium.Env"]),
        ({"id": "builtins:dict"}, ["returned dict", "gymnasium.Env"]),
        ({"id": "counting_environment:make", "kwargs": {"lenght": 3}}, ["{'lenght': 3}", "unexpected keyword"]),
        ({"id": "CartPole-v1", "kwargs": {"wheels": 3}}, ["'CartPole-v1'", "{'wheels': 3}", "unexpected keyword"]),
        (
            {"id": "counting_environment:make", "kwargs": {"action": "none"}},
            ["KeyError: 'none'", "counting_environment.py"],
        ),
        ({"id": "counting_environment:make", "kwargs": {"fail_at": 2}}, ["first steps", "told to fail", "line"]),
    ],
)
def test_an_environment_that_cannot_be_had_is_one_sentence(settings: dict[str, Any], words: list[str]) -> None:
    """The sentence names the id and the cause, and the nearest name where there is one."""
    with pytest.raises(UserError) as error:
        probe_environment(EnvironmentSettings(**settings))
    assert all(word in str(error.value) for word in ["env.id", *words]), str(error.value)


def test_a_function_of_your_own_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`module:function` needs no installed package; a near miss is refused with the file that exists."""
    (tmp_path / "my_corridor.py").write_text(
        "import gymnasium\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert probe_environment(EnvironmentSettings(id="my_corridor:make")).action.sizes == (2,)
    with pytest.raises(UserError, match="Did you mean 'my_corridor'"):
        probe_environment(EnvironmentSettings(id="my_corider:make"))


@pytest.mark.parametrize(
    ("space", "shown"),
    [
        (pixels(16, 16, 3), np.zeros((16, 16, 3), np.float32)),
        (pixels(16, 16, 3), np.zeros((17, 16, 3), np.uint8)),
        (spaces.Box(-1, 1, (3,)), np.zeros(1, np.float32)),
        (spaces.Discrete(3), np.int64(3)),
    ],
)
def test_the_probe_finds_observations_that_their_space_denies(space: spaces.Space[Any], shown: Any) -> None:
    """A wrong type, a wrong shape or a wrong choice ends the run before any actor is started."""
    settings = EnvironmentSettings(
        id="fixed_environment:make", kwargs={"observation_space": space, "shown": shown}, image_size=0
    )
    with pytest.raises(UserError, match="first steps: ValueError: the observation"):
        probe_environment(settings)


def test_the_probe_describes_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns the spaces, in a form that survives JSON, and leaves no environment open."""
    import counting_environment

    made: list[Any] = []

    class Noted(counting_environment.CountingEnvironment):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            made.append(self)

    monkeypatch.setattr(counting_environment, "CountingEnvironment", Noted)
    settings = EnvironmentSettings(id="counting_environment:make", kwargs={"image": 16, "length": 2}, image_size=4)
    found = probe_environment(settings)
    assert [entry.name for entry in found.observations] == ["count", "image"]
    assert Spaces.from_json(found.to_json()) == found
    assert [env.closed for env in made] == [True]


def test_car_racing_is_seen_in_64_grey_pixels() -> None:
    """The environment of the presets gives pictures of (64, 64, 1) that change, and five choices."""
    env = make_environment(
        EnvironmentSettings(id="CarRacing-v3", kwargs={"continuous": False}, action_repeat=4, image_size=64, grey=True)
    )
    first, _ = env.reset(seed=3)
    later, *_ = env.step(3)
    env.close()
    described = describe_spaces(env)
    assert described.observations == (ObservationSpec("image", (64, 64, 1), "uint8"),)
    assert (described.action.kind, described.action.sizes) == ("discrete", (5,))
    assert first["image"].std() > 5
    assert not np.array_equal(first["image"], later["image"])


@pytest.mark.parametrize(
    ("observe", "expected"),
    [
        ("own", [ObservationSpec("vector", (4,), "float32")]),
        ("rendered", [ObservationSpec("image", (64, 64, 3), "uint8")]),
        ("both", [ObservationSpec("image", (64, 64, 3), "uint8"), ObservationSpec("own", (4,), "float32")]),
    ],
)
def test_an_environment_of_vectors_can_be_seen_as_pictures(observe: str, expected: list[ObservationSpec]) -> None:
    """CartPole's four numbers, the picture that it renders, or both; the picture is the rendered one, resized."""
    env = make_environment(EnvironmentSettings.model_validate({"id": "CartPole-v1", "observe": observe}))
    shown = env.reset(seed=0)[0]
    assert sorted(spec(env), key=lambda entry: entry.name) == expected
    if observe != "own":
        rendered: Any = env.render()
        assert np.array_equal(shown["image"], cv2.resize(rendered, (64, 64), interpolation=cv2.INTER_AREA))
    env.close()


def test_the_picture_is_drawn_once_for_each_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an action repeat of 4, the frames in between are not drawn."""
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    drawn: list[Any] = []
    draw = CartPoleEnv.render
    monkeypatch.setattr(CartPoleEnv, "render", lambda self: drawn.append(1) or draw(self))
    env = make_environment(EnvironmentSettings(id="CartPole-v1", observe="rendered", action_repeat=4))
    env.reset(seed=0)
    drawn.clear()
    for _ in range(2):
        env.step(0)
    env.close()
    assert len(drawn) == 2


def test_what_renders_nothing_cannot_be_seen_rendered() -> None:
    """The sentence names the setting and the environment's render modes."""
    with pytest.raises(UserError, match=r"fixed_environment:make.*env.observe rendered.*render modes are: none"):
        fixed(spaces.Box(-1, 1, (2,)), observe="rendered")
