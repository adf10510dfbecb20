"""One environment, made as the settings say: loaded, wrapped, described, tried out.

The wrappers, from the inside out, Gymnasium's own wherever it has one:

    the environment     gymnasium.make(id, **kwargs), or your `module:function`(**kwargs)
    env.wrappers        your own, in the order in which they are named
    the suite's own     MiniGrid's pictures: see suites.py
    NoopStart           env.noop_max: simulator steps of the action that does nothing
    RepeatAction        env.action_repeat: rewards are summed, and the end of an episode ends the repeat
                        (Atari: AtariPreprocessing in place of these two)
    AddRenderObservation   env.observe: the rendered picture, drawn once for each repeat
    EntriesRead         a Dict of images (H, W, C) uint8 and vectors (D,) float32; env.image_size, env.grey
    TimeLimit           env.time_limit: in environment steps, that is, after the repeat
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

import gymnasium
from gymnasium import wrappers

from dreamfleet.actors.environments.lookup import Make, find_environment
from dreamfleet.actors.environments.other_interfaces import describe_old_interface, describe_other
from dreamfleet.actors.environments.rendering import log_library, prepare_library, why_nothing_is_drawn
from dreamfleet.actors.environments.suites import Environment, Suite, is_of_gymnasium, known_spec, suite_of
from dreamfleet.actors.environments.user_code import (
    WrongStepError,
    cause_of,
    close_environment,
    exits_are_errors,
    flag_of,
    process_kept,
    reward_of,
)
from dreamfleet.actors.environments.user_objects import find_function, search_working_directory
from dreamfleet.actors.environments.wrappers import EntriesRead
from dreamfleet.actors.spaces.action_spaces import describe_action, random_actions
from dreamfleet.actors.spaces.entries import NamedEntries
from dreamfleet.actors.spaces.observations import (
    check_first_observations,
    entry_reader,
    entry_space,
    list_entries,
    log_entries,
)
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec, Spaces
from dreamfleet.common.process_log import log_once
from dreamfleet.common.settings.environment import EnvironmentSettings

__all__ = ["Environment", "describe_spaces", "make_environment", "probe_environment"]

_PROBE_STEPS = 4
_WRAPPER = "a gymnasium.Wrapper or a function that is given an environment and returns one"


@exits_are_errors
def make_environment(settings: EnvironmentSettings, render: bool = False) -> Environment:
    """Return the environment with all its wrappers; its observations are a Dict, its actions its own.

    Args:
        render: make it so that `render()` returns frames, if it can.

    Raises:
        UserError: if it or a wrapper is not found, cannot be made, is no `gymnasium.Env`, or has spaces that are not
            supported.
    """
    search_working_directory()
    if _runs_user_code(settings):
        prepare_library()
    user_wrappers = [
        (name, find_function(name, f"env.wrappers '{name}'", _WRAPPER), arguments)
        for name, arguments in settings.named_wrappers
    ]
    suite, make = find_environment(settings.id)
    env = _call(settings, suite, make, render)
    log_library()
    try:
        env = _wrap_as_user_says(env, user_wrappers)
    except UserError:
        close_environment(env, settings.id)
        raise
    try:
        describe_action(env.action_space)
        env = suite.repeat(suite.show(env, settings), settings)
        env = _show_rendered(env, settings)
        named = NamedEntries.of(settings)
        entries = list_entries(env.observation_space, settings.image_size, settings.grey, named)
    except UserError as error:
        close_environment(env, settings.id)
        raise UserError(f"env.id '{settings.id}': {error}") from error
    except Exception as error:
        close_environment(env, settings.id)
        raise UserError(f"env.id '{settings.id}' could not be wrapped: {cause_of(error)}") from error
    log_entries(entries)
    env = EntriesRead(env, entry_reader(entries, env.observation_space), entry_space(entries))
    if settings.time_limit:
        env = wrappers.TimeLimit(env, settings.time_limit)
    return env


def describe_spaces(env: Environment) -> Spaces:
    """Return the spaces of an environment from `make_environment`."""
    assert isinstance(env.observation_space, gymnasium.spaces.Dict), "make_environment makes Dict observations"
    observations = [
        ObservationSpec(name, box.shape or (), str(box.dtype)) for name, box in env.observation_space.spaces.items()
    ]
    return Spaces(tuple(observations), describe_action(env.action_space))


@exits_are_errors
@process_kept()
def probe_environment(settings: EnvironmentSettings) -> Spaces:
    """Make one environment, try it for a few random actions, close it, and return its spaces.

    This is done before actors are started, so that a wrong environment is one sentence and not a crash of each actor.

    Raises:
        UserError: if it cannot be made, has spaces that are not supported, or fails at once, also by contradicting its
            spaces.
    """
    env = make_environment(settings)
    try:
        _try(env, settings)
        return describe_spaces(env)
    except UserError:
        raise
    except WrongStepError as error:
        raise UserError(f"env.id '{settings.id}' was made, but at its first steps {error}.") from error
    except Exception as error:
        old = describe_old_interface(env)
        if old:
            raise UserError(f"env.id '{settings.id}': {old}.") from error
        raise UserError(
            f"env.id '{settings.id}' was made, but failed at its first steps: {cause_of(error)}{why_nothing_is_drawn()}"
        ) from error
    finally:
        close_environment(env, settings.id)


def _runs_user_code(settings: EnvironmentSettings) -> bool:
    """Return whether code runs that is neither Gymnasium's own nor a suite's, and may import MuJoCo."""
    if settings.wrappers or ":" in settings.id:
        return True
    return not is_of_gymnasium(known_spec(settings.id)) and not suite_of(settings.id).prefixes


def _wrap_as_user_says(env: Environment, user_wrappers: list[tuple[str, Callable[..., Any], Any]]) -> Environment:
    """Return the environment in the user's wrappers, each with its name and arguments; the first is the innermost."""
    for name, wrapper, arguments in user_wrappers:
        given = f"arguments {arguments}" if arguments else "no arguments"
        try:
            wrapped = wrapper(env, **arguments)
        except Exception as error:
            raise UserError(
                f"env.wrappers '{name}' could not be put around the environment with {given}: {cause_of(error)}"
            ) from error
        if not isinstance(wrapped, gymnasium.Env):
            kind = f"the class {wrapped.__name__}" if isinstance(wrapped, type) else type(wrapped).__name__
            raise UserError(f"env.wrappers '{name}' returned {kind}: it should be {_WRAPPER}.")
        env = wrapped
    return env


def _call(settings: EnvironmentSettings, suite: Suite, make: Make, render: bool) -> Environment:
    """Return the environment that `make` makes of the settings' arguments, once more to be drawn if that is wanted."""
    is_drawn, kwargs = render or settings.observe != "own", suite.arguments(settings)
    try:
        env = _checked(make(**kwargs), settings)
        if not is_drawn or _is_undrawn(env, settings) or "render_mode" in kwargs or not _can_render(env, make):
            return env
        close_environment(env, settings.id)
        try:
            return make(**kwargs, render_mode="rgb_array")
        except TypeError as error:
            if "render_mode" not in str(error):
                raise
            log_once(f"'{settings.id}' is not drawn: it takes no render_mode")  # whatever its metadata say
            return make(**kwargs)
    except UserError:
        raise
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise UserError(f"env.id '{settings.id}' needs a package that is not installed: {cause_of(error)}") from error
    except Exception as error:
        given = f"env.kwargs {settings.kwargs}" if settings.kwargs else "no env.kwargs"
        raise UserError(
            f"env.id '{settings.id}' could not be made with {given}: {cause_of(error)}{why_nothing_is_drawn()}"
        ) from error


def _checked(env: Any, settings: EnvironmentSettings) -> Environment:
    """Return what was made if it is an environment; otherwise close it, since it may have started processes."""
    if isinstance(env, gymnasium.Env):
        return env
    with suppress(Exception):
        env.close()
    raise UserError(f"env.id '{settings.id}' returned {describe_other(env)}.")


def _is_undrawn(env: Environment, settings: EnvironmentSettings) -> bool:
    """Return whether MuJoCo is imported, as is known once the environment is made, and cannot draw on this machine."""
    reason = log_library()
    if reason and settings.observe != "own":
        close_environment(env, settings.id)
        raise UserError(f"env.observe {settings.observe}: '{settings.id}' cannot be drawn on this machine: {reason}.")
    if reason:
        log_once(f"'{settings.id}' is not drawn, so there will be no video of it: {reason}")
    return bool(reason)


def _can_render(env: Environment, make: Make) -> bool:
    """Return whether the environment can render frames and its function takes a render mode."""
    try:
        parameters = inspect.signature(make).parameters
    except ValueError:  # of a function in C
        return False
    takes = "render_mode" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return takes and "rgb_array" in (env.metadata.get("render_modes") or [])


def _show_rendered(env: Environment, settings: EnvironmentSettings) -> Environment:
    """Return the environment with its rendered picture instead of or beside its observations, as env.observe says."""
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


def _try(env: Environment, settings: EnvironmentSettings) -> None:
    """Reset and take a few random actions; the conversion of observations checks their shapes and types."""
    observations = [env.reset(seed=0)[0]]
    for action in islice(random_actions(env.action_space, seed=0), _PROBE_STEPS):
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        reward_of(reward)
        if flag_of("terminated", terminated) or flag_of("truncated", truncated):
            observations.append(env.reset()[0])
    check_first_observations(env.observation_space, observations, settings.pictures)
