"""One environment, made as the settings say: loaded, wrapped, described, tried out.

The wrappers, from the inside out, Gymnasium's own wherever it has one:

    the environment     gymnasium.make(id, **kwargs), or your `module:function`(**kwargs)
    env.wrappers        your own, in the order in which they are named
    the suite's own     MiniGrid's pictures: see suites.py
    NoopStart           env.noop_max: simulator steps of the action that does nothing
    RepeatAction        env.action_repeat: rewards are summed, and the end of an episode ends the repeat
                        (Atari: AtariPreprocessing in place of these two)
    AddRenderObservation   env.observe: the rendered picture, drawn once for each repeat
    TransformObservation   a Dict of images (H, W, C) uint8 and vectors (D,) float32; env.image_size, env.grey
    TimeLimit           env.time_limit: in environment steps, that is, after the repeat
"""

from __future__ import annotations

from itertools import islice

import gymnasium
from gymnasium import wrappers

from dreamfleet.actors.environments.loading import load_environment
from dreamfleet.actors.environments.other_interfaces import describe_old_interface
from dreamfleet.actors.environments.rendering import why_nothing_is_drawn
from dreamfleet.actors.environments.suites import Environment
from dreamfleet.actors.environments.user_code import (
    WrongStepError,
    close_environment,
    exits_are_errors,
    flag_of,
    process_kept,
    reward_of,
)
from dreamfleet.actors.environments.user_objects import cause_of
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
from dreamfleet.common.settings.schema import EnvironmentSettings

__all__ = ["Environment", "describe_spaces", "make_environment", "probe_environment"]

_PROBE_STEPS = 4


@exits_are_errors
def make_environment(settings: EnvironmentSettings, render: bool = False) -> Environment:
    """Return the environment with all its wrappers; its observations are a Dict, its actions its own.

    Args:
        settings: which environment and how it is wrapped.
        render: make it so that `render()` returns frames, if it can.

    Raises:
        UserError: if it cannot be made or has spaces that are not supported.
    """
    suite, env = load_environment(settings, render)
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


@exits_are_errors
@process_kept()
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


def _try(env: Environment, settings: EnvironmentSettings) -> None:
    """Reset and take a few random actions; the conversion of observations checks their shapes and types."""
    shown = [env.reset(seed=0)[0]]
    for action in islice(random_actions(env.action_space, seed=0), _PROBE_STEPS):
        observation, reward, terminated, truncated, _ = env.step(action)
        shown.append(observation)
        reward_of(reward)
        if flag_of("terminated", terminated) or flag_of("truncated", truncated):
            shown.append(env.reset()[0])
    check_first_observations(env.observation_space, shown, settings.pictures)


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
