"""One environment, made as the settings say: loaded, wrapped, described, tried out.

The wrappers, from the inside out, Gymnasium's own wherever it has one:

    the environment     gymnasium.make(id, **kwargs), or your `module:function`(**kwargs)
    the suite's own     MiniGrid's pictures: see suites.py
    NoopStart           env.noop_max: simulator steps of the action that does nothing
    RepeatAction        env.action_repeat: rewards are summed, and the end of an episode ends the repeat
                        (Atari: AtariPreprocessing in place of these two)
    AddRenderObservation   env.observe: the rendered picture, drawn once for each repeat
    TransformObservation   a Dict of images (H, W, C) uint8 and vectors (D,) float32; env.image_size, env.grey
    TimeLimit           env.time_limit: in environment steps, that is, after the repeat
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium import wrappers

from dreamfleet.actors.actions import describe_action
from dreamfleet.actors.announcements import announce
from dreamfleet.actors.declared_bounds import check_first
from dreamfleet.actors.named_entries import NamedEntries
from dreamfleet.actors.observations import announce_entries, entry_reader, entry_space, list_entries
from dreamfleet.actors.suites import Environment, Suite, register_suite, suite_of
from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.settings import EnvironmentSettings
from dreamfleet.common.spaces import ObservationSpec, Spaces

__all__ = ["Environment", "describe_spaces", "make_environment", "probe_environment"]

_PROBE_STEPS = 4


def make_environment(settings: EnvironmentSettings, render: bool = False) -> Environment:
    """Return the environment with all its wrappers; its observations are a Dict, its actions its own.

    Args:
        settings: which environment and how it is wrapped.
        render: make it so that `render()` returns frames, if it can.

    Raises:
        UserError: if it cannot be made or has spaces that are not supported.
    """
    suite = suite_of(settings.id)
    env = _load(settings, suite, render)
    try:
        describe_action(env.action_space)
        env = suite.repeat(suite.show(env, settings), settings)
        env = _show_rendered(env, settings)
        named = NamedEntries.of(settings)
        entries = list_entries(env.observation_space, settings.image_size, settings.grey, named)
    except UserError as error:
        env.close()
        raise UserError(f"env.id '{settings.id}': {error}") from error
    except Exception as error:
        env.close()
        raise UserError(f"env.id '{settings.id}' could not be wrapped: {_cause(error)}") from error
    announce_entries(entries)
    env = wrappers.TransformObservation(env, entry_reader(entries, env.observation_space), entry_space(entries))
    if settings.time_limit:
        env = wrappers.TimeLimit(env, settings.time_limit)
    return env


def describe_spaces(env: Environment) -> Spaces:
    """Return what an environment from `make_environment` shows and takes."""
    assert isinstance(env.observation_space, gymnasium.spaces.Dict), "make_environment makes Dict observations"
    observations = [
        ObservationSpec(name, box.shape or (), str(box.dtype)) for name, box in env.observation_space.spaces.items()
    ]
    return Spaces(tuple(observations), describe_action(env.action_space))


def probe_environment(settings: EnvironmentSettings) -> Spaces:
    """Make one environment, try it for a few random actions, close it, and return its spaces.

    Whoever starts actors does this first, so that a wrong environment is one sentence and not a crash of each actor.

    Raises:
        UserError: if it cannot be made, has spaces that are not supported, or fails at once, also by showing what its
            space denies.
    """
    env = make_environment(settings)
    try:
        _try(env, settings)
        return describe_spaces(env)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"env.id '{settings.id}' was made, but failed at its first steps: {_cause(error)}") from error
    finally:
        env.close()


def _try(env: Environment, settings: EnvironmentSettings) -> None:
    """Reset and take a few random actions; the conversion of observations checks their shapes and types."""
    env.action_space.seed(0)
    shown = [env.reset(seed=0)[0]]
    for _ in range(_PROBE_STEPS):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        shown.append(observation)
        float(reward)
        if terminated or truncated:
            shown.append(env.reset()[0])
    check_first(env.observation_space, shown, settings.pictures)


def _load(settings: EnvironmentSettings, suite: Suite, render: bool) -> Environment:
    """Return the bare environment of this id."""
    module, _, function = settings.id.partition(":")
    own = bool(function) and function.replace(".", "").isidentifier()
    make = _own_function(module, function) if own else _registered_function(settings.id, suite)
    env = _call(settings, suite, make, render)
    if not isinstance(env, gymnasium.Env):
        raise UserError(f"env.id '{settings.id}' returned {type(env).__name__}: it should return a gymnasium.Env.")
    return env


def _registered_function(name: str, suite: Suite) -> Callable[..., Environment]:
    """Return what makes the Gymnasium environment of this id, once it is known to be registered."""
    register_suite(suite, name)
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        space, inside, _ = name.partition("/")
        known = [other for other in gymnasium.registry if not inside or other.startswith(f"{space}/")]
        hint = nearest(name, known) or f" Is the package that brings it installed? ({str(error).rstrip('.')})"
        raise UserError(
            f"env.id '{name}' is not an environment that Gymnasium has here; a function of your own is written "
            f"module:function.{hint}"
        ) from error

    def make(**kwargs: Any) -> Environment:
        return gymnasium.make(spec, disable_env_checker=True, **kwargs)

    return make


def _show_rendered(env: Environment, settings: EnvironmentSettings) -> Environment:
    """Return the environment with what it renders instead of its observations or beside them, as env.observe says."""
    if settings.observe == "own":
        return env
    if env.render_mode != "rgb_array":
        modes = env.metadata.get("render_modes") or "none"
        raise UserError(
            f"env.observe {settings.observe} needs an environment that renders pictures (rgb_array); this one's "
            f"render modes are: {modes}."
        )
    return wrappers.AddRenderObservation(
        env, render_only=settings.observe == "rendered", render_key="image", obs_key="own"
    )


def _own_function(module: str, function: str) -> Callable[..., Any]:
    """Return the user's function, found from the working directory too."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    where = f"env.id '{module}:{function}'"
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and module.split(".", maxsplit=1)[0] == error.name:
            raise UserError(
                f"{where}: there is no module '{module}' in '{Path.cwd()}' or where Python looks."
                f"{nearest(module, [path.stem for path in Path.cwd().glob('*.py')])} PYTHONPATH adds places."
            ) from error
        raise UserError(f"{where}: importing '{module}' failed: {_cause(error)}") from error
    for part in function.split("."):
        if not hasattr(found, part):
            raise UserError(f"{where}: '{module}' has no '{part}'.{nearest(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{where} is {type(found).__name__}: it should be a function that returns a gymnasium.Env.")
    return found


def _call(settings: EnvironmentSettings, suite: Suite, make: Callable[..., Environment], render: bool) -> Environment:
    """Return the environment that `make` makes from the settings' arguments."""
    wanted = render or settings.observe != "own"
    reason = suite.cannot_render() if wanted else ""
    if reason and settings.observe != "own":
        raise UserError(f"env.observe {settings.observe}: '{settings.id}' cannot be drawn on this machine: {reason}.")
    if reason:
        announce(f"'{settings.id}' is not drawn, so there will be no video of it: {reason}")
    kwargs = suite.arguments(settings)
    try:
        env = make(**kwargs)
        if not wanted or reason or "render_mode" in kwargs or not _can_render(env, make):
            return env
        env.close()
        return make(**kwargs, render_mode="rgb_array")
    except UserError:
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"env.id '{settings.id}' needs a package that is not installed: {error}") from error
    except Exception as error:
        given = f"env.kwargs {settings.kwargs}" if settings.kwargs else "no env.kwargs"
        raise UserError(f"env.id '{settings.id}' could not be made with {given}: {_cause(error)}") from error


def _can_render(env: Environment, make: Callable[..., Environment]) -> bool:
    """Return whether the environment knows frames and its maker can be asked for them."""
    parameters = inspect.signature(make).parameters
    takes = "render_mode" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return takes and "rgb_array" in (env.metadata.get("render_modes") or [])


def _cause(error: BaseException) -> str:
    """Return the error in a line, with the place in the code where it arose."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    is_ours = bool(frames) and Path(frames[-1].filename).parent == Path(__file__).parent  # which says all in words
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames and not is_ours else ""
    return f"{type(error).__name__}: {error}{place}"
