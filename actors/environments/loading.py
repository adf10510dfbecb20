"""From an id to the environment: found by its name, made with its arguments, put into the user's wrappers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gymnasium

from dreamfleet.actors.environments.other_interfaces import describe_other
from dreamfleet.actors.environments.own_wrappers import OwnWrappers
from dreamfleet.actors.environments.registered_ids import find_registered, known_spec, maker_of
from dreamfleet.actors.environments.rendering import announce_library, prepare_library, why_nothing_is_drawn
from dreamfleet.actors.environments.suites import Environment, Suite, is_of_gymnasium, register_suite, suite_of
from dreamfleet.actors.environments.user_code import close_environment
from dreamfleet.actors.environments.user_objects import (
    NoSuchAttributeError,
    cause_of,
    find_object,
    import_module,
    is_attribute,
    search_working_directory,
)
from dreamfleet.common.errors import UserError
from dreamfleet.common.process_log import log_once
from dreamfleet.common.settings.schema import EnvironmentSettings


def load_environment(settings: EnvironmentSettings, render: bool) -> tuple[Suite, Environment]:
    """Return the environment of this id in the user's wrappers, and the suite that it belongs to.

    Args:
        settings: which environment, and what is put around it.
        render: make it so that `render()` returns frames, if it can.

    Raises:
        UserError: if it or a wrapper is not found, cannot be made, or is no `gymnasium.Env`.
    """
    search_working_directory()
    if _runs_user_code(settings):
        prepare_library()
    own_wrappers = OwnWrappers(settings)
    suite, make = _find(settings.id)
    env = _call(settings, suite, make, render)
    announce_library()
    try:
        return suite, own_wrappers.put_around(env)
    except UserError:
        close_environment(env, settings.id)
        raise


def _runs_user_code(settings: EnvironmentSettings) -> bool:
    """Return whether code runs that is neither Gymnasium's own nor a suite's, and may import MuJoCo."""
    if settings.wrappers or ":" in settings.id:
        return True
    return not is_of_gymnasium(known_spec(settings.id)) and not suite_of(settings.id).prefixes


def _find(name: str) -> tuple[Suite, Callable[..., Environment]]:
    """Return the suite that an id belongs to, and what makes its environment.

    After a module and a colon stands an attribute of the module or, if it has none of that name, an id that is
    registered once the module is imported.
    """
    module, colon, inside = name.rpartition(":") if name.count(":") == 1 else ("", "", name)
    where = f"env.id '{name}'"
    missing: NoSuchAttributeError | None = None
    if colon and is_attribute(inside):
        try:
            return Suite(), _own_function(name, where)
        except NoSuchAttributeError as error:
            missing = error
    elif colon:
        import_module(module, where)
    try:
        return _registered(inside, where, module)
    except UserError as error:
        raise missing or error from error


def _registered(name: str, where: str, module: str) -> tuple[Suite, Callable[..., Environment]]:
    """Return the suite of a registered id, and what makes its environment."""
    suite = suite_of(name)
    if not module or known_spec(name) is None:
        register_suite(suite, name)
    spec = find_registered(name, where, module)
    return suite, maker_of(spec, where)


def _own_function(name: str, where: str) -> Callable[..., Any]:
    """Return the user's function."""
    found: Any = find_object(name, where)
    if not callable(found):
        raise UserError(f"{where} is {type(found).__name__}: it should be a function that returns a gymnasium.Env.")
    return found


def _call(settings: EnvironmentSettings, suite: Suite, make: Callable[..., Environment], render: bool) -> Environment:
    """Return the environment that `make` makes from the settings' arguments."""
    wanted, kwargs = render or settings.observe != "own", suite.arguments(settings)
    try:
        env = _checked(make(**kwargs), settings)
        if not wanted or _is_undrawn(env, settings, suite) or "render_mode" in kwargs or not _can_render(env, make):
            return env
        close_environment(env, settings.id)
        return _drawn(make, kwargs, settings)
    except UserError:
        raise
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise UserError(f"env.id '{settings.id}' needs a package that is not installed: {cause_of(error)}") from error
    except Exception as error:
        given = f"env.kwargs {settings.kwargs}" if settings.kwargs else "no env.kwargs"
        raise UserError(
            f"env.id '{settings.id}' could not be made with {given}: {cause_of(error)}{why_nothing_is_drawn()}"
        ) from error


def _drawn(make: Callable[..., Environment], kwargs: dict[str, Any], settings: EnvironmentSettings) -> Environment:
    """Return the environment made to be drawn, or as ever if it does not take that, whatever its metadata say."""
    try:
        return make(**kwargs, render_mode="rgb_array")
    except TypeError as error:
        if "render_mode" not in str(error):
            raise
        log_once(f"'{settings.id}' is not drawn: it takes no render_mode")
        return make(**kwargs)


def _checked(env: Any, settings: EnvironmentSettings) -> Environment:
    """Return what was made, if it is an environment.

    Raises:
        UserError: if it is none, with what it is; it is closed then, since it may have started processes.
    """
    if isinstance(env, gymnasium.Env):
        return env
    with suppress(Exception):
        env.close()
    raise UserError(f"env.id '{settings.id}' returned {describe_other(env)}.")


def _is_undrawn(env: Environment, settings: EnvironmentSettings, suite: Suite) -> bool:
    """Return whether the environment cannot be drawn here; asked once it is made, and what draws it is imported.

    Raises:
        UserError: if what is drawn was to be observed; the environment is closed then.
    """
    reason = suite.cannot_render()
    if reason and settings.observe != "own":
        close_environment(env, settings.id)
        raise UserError(f"env.observe {settings.observe}: '{settings.id}' cannot be drawn on this machine: {reason}.")
    if reason:
        log_once(f"'{settings.id}' is not drawn, so there will be no video of it: {reason}")
    return bool(reason)


def _can_render(env: Environment, make: Callable[..., Environment]) -> bool:
    """Return whether the environment knows frames and its maker can be asked for them."""
    try:
        parameters = inspect.signature(make).parameters
    except ValueError:  # of a function in C
        return False
    takes = "render_mode" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return takes and "rgb_array" in (env.metadata.get("render_modes") or [])
