"""Families of environments that need something before or around them; the id decides which.

    id                        extra      what is done here
    dm_control/...            dmc        a library to draw with is chosen; the camera and the size of pictures
    ALE/...                   atari      Gymnasium's AtariPreprocessing repeats the action
    MiniGrid-..., BabyAI-...  minigrid   a picture of what the agent sees
    Crafter...                crafter    an adapter to Gymnasium's interface
    Gymnasium's MuJoCo        dmc        a library to draw with is chosen

A wrapper that comes with a suite is logged once.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import gymnasium
from gymnasium import spaces, wrappers
from gymnasium.envs import registration
from gymnasium.envs.registration import EnvSpec

from dreamfleet.actors.environments import rendering
from dreamfleet.actors.environments.wrappers import NoopStart, SimulatorSteps
from dreamfleet.common.errors import UserError
from dreamfleet.common.process_log import log_once
from dreamfleet.common.settings.environment import EnvironmentSettings

Environment = gymnasium.Env[Any, Any]


class Suite:
    """Environments that need nothing special, and the base of those that do.

    Attributes:
        prefixes: how its ids begin, in lower case.
        modules: those whose import registers its environments.
        extra: the extra of this package that installs them.
    """

    name = "Gymnasium"
    prefixes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    extra = ""

    def register(self) -> None:
        """Register the suite's environments."""
        for module in self.modules:
            importlib.import_module(module)

    def arguments(self, settings: EnvironmentSettings) -> dict[str, Any]:
        """Return the arguments of an environment: env.kwargs, and those that the suite adds."""
        return dict(settings.kwargs)

    def show(self, env: Environment, settings: EnvironmentSettings) -> Environment:  # noqa: ARG002 (others need it)
        """Return the environment with the observations that a model learns from."""
        return env

    def repeat(self, env: Environment, settings: EnvironmentSettings) -> Environment:
        """Return the environment with its no-op starts and its action repeat, below which its steps are counted."""
        if settings.noop_max or settings.action_repeat > 1:
            env = SimulatorSteps(env)
        if settings.noop_max:
            env = NoopStart(env, settings.noop_max)
        return wrappers.RepeatAction(env, settings.action_repeat) if settings.action_repeat > 1 else env


class Mujoco(Suite):
    """Gymnasium's own MuJoCo environments."""

    name = "MuJoCo"
    modules: tuple[str, ...] = ("mujoco",)
    extra = "dmc"

    def register(self) -> None:
        """Choose the library that draws, and only then import MuJoCo."""
        if importlib.util.find_spec("mujoco"):
            rendering.choose_library()
        super().register()


class DeepMindControl(Mujoco):
    """The DeepMind Control suite, by Shimmy: `dm_control/walker-walk-v0`."""

    name = "DM Control"
    prefixes = ("dm_control/",)
    modules = ("dm_control", "shimmy")

    def arguments(self, settings: EnvironmentSettings) -> dict[str, Any]:
        """Return env.kwargs, with the papers' camera, and pictures drawn in the size in which they are used."""
        camera = 2 if "dm_control/quadruped" in settings.id else 0  # as in Dreamer's releases
        drawn: dict[str, Any] = {"camera_id": camera}
        if settings.observe != "own" and settings.image_size:
            drawn |= {"height": settings.image_size, "width": settings.image_size}
        own = settings.kwargs.get("render_kwargs", {})
        return {**settings.kwargs, "render_kwargs": drawn | own if isinstance(own, dict) else own}

    def show(self, env: Environment, settings: EnvironmentSettings) -> Environment:  # noqa: ARG002 (others need it)
        """Correct the frames per second, for which Shimmy gives the duration of a step."""
        env.unwrapped.metadata = {**env.metadata, "render_fps": 1 / env.unwrapped.dt}  # type: ignore[attr-defined]
        return env


class Atari(Suite):
    """Atari 2600 by the Arcade Learning Environment: `ALE/Pong-v5`."""

    name = "Atari"
    prefixes = ("ale/",)
    modules = ("ale_py",)
    extra = "atari"

    def arguments(self, settings: EnvironmentSettings) -> dict[str, Any]:
        """Return env.kwargs; env.action_repeat turns off the environment's own frame skip."""
        return ({"frameskip": 1} if settings.action_repeat > 1 else {}) | settings.kwargs

    def repeat(self, env: Environment, settings: EnvironmentSettings) -> Environment:
        """Return the game in Gymnasium's preprocessing: each frame is the maximum of the repeat's last two."""
        shape = env.observation_space.shape or ()
        if settings.action_repeat == 1 or len(shape) < 2:  # one frame a step, or RAM observations
            return super().repeat(env, settings)
        if _shows_otherwise(env):  # AtariPreprocessing reads the emulator's screen, past all wrappers
            log_once("Atari: without AtariPreprocessing, since a wrapper of env.wrappers changes what is shown")
            return super().repeat(env, settings)
        side = settings.image_size
        env = wrappers.AtariPreprocessing(
            SimulatorSteps(env),
            noop_max=settings.noop_max,
            frame_skip=settings.action_repeat,
            screen_size=side or (shape[1], shape[0]),
            grayscale_obs=settings.grey,
            grayscale_newaxis=True,
        )
        sticky = env.unwrapped.ale.getFloat("repeat_action_probability")  # type: ignore[attr-defined]
        log_once(
            f"Atari: AtariPreprocessing with {settings.action_repeat} frames per step and the maximum of the last two, "
            f"at most {settings.noop_max} no-ops at the start, {'grey' if settings.grey else 'colour'}, a lost life "
            f"ends no episode; an action sticks with probability {sticky:g} (env.kwargs.repeat_action_probability)"
        )
        return env


class MiniGrid(Suite):
    """MiniGrid and BabyAI: `MiniGrid-DoorKey-5x5-v0`, `BabyAI-GoToRedBallGrey-v0`."""

    name = "MiniGrid"
    prefixes = ("minigrid-", "babyai-")
    modules = ("minigrid",)
    extra = "minigrid"

    def show(self, env: Environment, settings: EnvironmentSettings) -> Environment:
        """Return the environment with a picture of what the agent sees, and nothing else."""
        if settings.observe == "rendered" or not isinstance(env.observation_space, spaces.Dict):
            return env
        if _shows_otherwise(env):
            log_once("MiniGrid: a wrapper of env.wrappers changes what is shown, so no picture is added")
            return env
        minigrid = importlib.import_module("minigrid.wrappers")
        env = minigrid.ImgObsWrapper(minigrid.RGBImgPartialObsWrapper(env))
        shape = env.observation_space.shape or ()
        log_once(
            f"MiniGrid: RGBImgPartialObsWrapper shows what the agent sees as a picture of {shape[0]}×{shape[1]}, "
            "ImgObsWrapper leaves out the compass direction and the text of the mission"
        )
        return env


class Crafter(Suite):
    """Crafter: `CrafterReward-v1`, `CrafterNoReward-v1`."""

    name = "Crafter"
    prefixes = ("crafter",)
    modules = ("crafter",)
    extra = "crafter"

    def register(self) -> None:
        """Register the adapter under Crafter's ids."""
        super().register()
        importlib.import_module("dreamfleet.actors.environments.crafter_environment").register()


_SUITES: tuple[Suite, ...] = (DeepMindControl(), Atari(), MiniGrid(), Crafter())
_MUJOCO, _OTHER = Mujoco(), Suite()


def suite_of(name: str) -> Suite:
    """Return the suite that an environment's id, without a module, belongs to."""
    for suite in _SUITES:
        if name.lower().startswith(suite.prefixes):
            return suite
    return _MUJOCO if is_of_gymnasium(known_spec(name), "mujoco") else _OTHER


def known_spec(name: str) -> EnvSpec | None:
    """Return the current registration of an id, or None; without a version it means the latest."""
    spec = gymnasium.registry.get(name)
    if spec is not None:
        return spec
    try:
        namespace, bare, version = registration.parse_env_id(name)
    except gymnasium.error.Error:
        return None
    latest = registration.find_highest_version(namespace, bare) if version is None else None
    return None if latest is None else gymnasium.registry.get(registration.get_env_id(namespace, bare, latest))


def is_of_gymnasium(spec: EnvSpec | None, family: str = "") -> bool:
    """Return whether a registered environment is Gymnasium's own, and of this family."""
    return spec is not None and str(spec.entry_point).startswith(f"gymnasium.envs.{family}")


def register_suite(suite: Suite, name: str) -> None:
    """Register the suite's environments with Gymnasium; `name` is the id for which this is needed.

    Raises:
        UserError: if its package is not installed or cannot be imported, or MUJOCO_GL is wrong.
    """
    try:
        suite.register()
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"env.id '{name}' belongs to {suite.name}, which is not installed (there is no '{error.name}'): "
            f"pip install 'dreamfleet[{suite.extra}]'."
        ) from error
    except Exception as error:
        raise UserError(
            f"env.id '{name}' belongs to {suite.name}, whose package cannot be imported: "
            f"{type(error).__name__}: {str(error).rstrip('.')}. The extra '{suite.extra}' names versions that work."
        ) from error


def _shows_otherwise(env: Environment) -> bool:
    """Return whether a wrapper changes the observations of the environment inside it."""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.ObservationWrapper):
            return True
        layer = layer.env
    return env.observation_space != layer.observation_space
