"""Wrappers of the user's own, `env.wrappers`: put around the bare environment, in their order, before any of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

from dreamfleet.actors.environments.suites import Environment
from dreamfleet.actors.environments.user_objects import cause_of, find_object
from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import EnvironmentSettings

_WANTED = "a gymnasium.Wrapper or a function that is given an environment and returns one"


class OwnWrappers:
    """The wrappers that the settings name, found but not put around anything yet.

    Raises:
        UserError: if one is not found, or cannot be called.
    """

    def __init__(self, settings: EnvironmentSettings) -> None:
        self._found = [(name, _find(name), arguments) for name, arguments in settings.named_wrappers]

    def put_around(self, env: Environment) -> Environment:
        """Return the environment in all of them; the first named is the innermost.

        Raises:
            UserError: if one fails, or returns what is no environment.
        """
        for name, wrapper, arguments in self._found:
            given = f"arguments {arguments}" if arguments else "no arguments"
            try:
                wrapped = wrapper(env, **arguments)
            except Exception as error:
                raise UserError(
                    f"env.wrappers '{name}' could not be put around the environment with {given}: {cause_of(error)}"
                ) from error
            if not isinstance(wrapped, gymnasium.Env):
                kind = f"the class {wrapped.__name__}" if isinstance(wrapped, type) else type(wrapped).__name__
                raise UserError(f"env.wrappers '{name}' returned {kind}: it should be {_WANTED}.")
            env = wrapped
        return env


def _find(name: str) -> Callable[..., Any]:
    found = find_object(name, f"env.wrappers '{name}'")
    if not callable(found):
        raise UserError(f"env.wrappers '{name}' is {type(found).__name__}: it should be {_WANTED}.")
    return found
