"""Objects that the user wrote, by name `module:attribute`: imported, or sent by the process that started the run.

A function or class of a script or notebook is in `__main__`, which is another module in another process; an id that the
script registered is known to its own process alone. Actors on Ray get both by value: pickled with their code.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium

from dreamfleet.actors.environments import rendering
from dreamfleet.actors.environments.user_code import cause_of
from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.settings.environment import EnvironmentSettings

MAIN = "__main__"
"""The module of the script or notebook that started the run, which no other process can import."""

_sent_objects: dict[str, bytes] = {}
"""The pickled objects that this process was sent, by name."""


class NoSuchAttributeError(UserError):
    """A module lacks an attribute of this name; it may register an id of this name instead."""


@dataclass(frozen=True)
class SentCode:
    """What an actor's process needs of the process that started the run.

    Attributes:
        objects: pickled, by their names in the settings: the environment's function and wrappers in `__main__`, and the
            registration of an id.
        search_path: where the sender looks for modules.
        machine: identifies the sender's machine; `library` is the one that MuJoCo draws with there, "" if not chosen.
    """

    objects: dict[str, bytes]
    search_path: tuple[str, ...]
    machine: str
    library: str

    @staticmethod
    def of(settings: EnvironmentSettings, machine: str) -> SentCode:
        """Return what actors of this environment need; the environment was made in this process before.

        Raises:
            UserError: if an object in `__main__` cannot be pickled.
        """
        names = [settings.id, *(name for name, _ in settings.named_wrappers)]
        objects = {name: _pickled(name, _main_object(name)) for name in names if name.startswith(f"{MAIN}:")}
        objects |= _registration(settings.id.rpartition(":")[2])
        return SentCode(objects, tuple(filter(None, sys.path)), machine, os.environ.get(rendering.VARIABLE, ""))

    def install(self, machine: str) -> None:
        """Make the objects known to this process; on another machine it chooses MuJoCo's library itself."""
        _sent_objects.update(self.objects)
        sys.path.extend(place for place in self.search_path if place not in sys.path)
        if self.library and machine == self.machine:
            os.environ.setdefault(rendering.VARIABLE, self.library)
            os.environ.setdefault(rendering.FOUND_VARIABLE, self.library)


def sent_object(name: str) -> Any:
    """Return the object that this process was sent under a name of the settings, or None.

    Raises:
        UserError: if it cannot be unpickled here.
    """
    if name not in _sent_objects:
        return None
    try:
        return pickle.loads(_sent_objects[name])  # noqa: S301 (from our own driver, through Ray)
    except Exception as error:
        raise UserError(
            f"'{name}' was sent here from the program that started the run, and cannot be read: "
            f"{type(error).__name__}: {error}; written into a module of its own, it need not be sent."
        ) from error


def search_working_directory() -> Path:
    """Add the working directory to the module search path, and return it.

    This is done before user code runs: the full name remains right if that code changes the directory.
    """
    here = Path.cwd()
    if str(here) not in sys.path:
        sys.path.append(str(here))
    return here


def import_module(module: str, where: str) -> ModuleType:
    """Return a user's module; `where` is the setting and the value that name it, for messages.

    Raises:
        UserError: if it does not exist or cannot be imported.
    """
    here = search_working_directory()
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and module.split(".", maxsplit=1)[0] == error.name:
            raise UserError(
                f"{where}: there is no module '{module}' in '{here}' or where Python looks."
                f"{nearest(module, [path.stem for path in here.glob('*.py')])} PYTHONPATH adds places."
            ) from error
        raise UserError(f"{where}: importing '{module}' failed: {cause_of(error)}") from error


def find_function(name: str, where: str, wanted: str) -> Callable[..., Any]:
    """Return the function or class `module:attribute`; the attribute may have dots.

    Args:
        where: the setting and the value that name it, for messages.
        wanted: what it should be, for messages.

    Raises:
        NoSuchAttributeError: if the module has no such attribute.
        UserError: if the module does not exist or cannot be imported, or the object cannot be called.
    """
    found = sent_object(name)
    if found is None:
        found = _imported_object(name, where)
    if not callable(found):
        raise UserError(f"{where} is {type(found).__name__}: it should be {wanted}.")
    function: Callable[..., Any] = found
    return function


def _imported_object(name: str, where: str) -> Any:
    module, _, attribute = name.partition(":")
    found: Any = import_module(module, where)
    for part in attribute.split("."):
        if not hasattr(found, part):
            if module == MAIN:
                raise UserError(
                    f"{where}: the program that runs here has no '{part}': what a script or notebook defines is found "
                    "where it starts the run itself; else write it into a module, and name that."
                )
            raise NoSuchAttributeError(f"{where}: '{module}' has no '{part}'.{nearest(part, dir(found))}")
        found = getattr(found, part)
    return found


def _main_object(name: str) -> Any:
    return reduce(getattr, name.partition(":")[2].split("."), importlib.import_module(MAIN))


def _registration(name: str) -> dict[str, bytes]:
    """Return the pickled registration of an id that other processes may lack; empty for Gymnasium's own ids."""
    spec = gymnasium.registry.get(name)
    if spec is None or str(spec.entry_point).startswith("gymnasium.envs."):
        return {}
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith(f"{MAIN}:"):
        spec = dataclasses.replace(spec, entry_point=_main_object(spec.entry_point))
    try:
        return {name: _pickled(name, spec)}
    except UserError:
        if callable(spec.entry_point):
            raise
        return {}  # its module can be imported, and registers it elsewhere too


def _pickled(name: str, value: Any) -> bytes:
    from ray import cloudpickle

    try:
        pickled: bytes = cloudpickle.dumps(value)
    except Exception as error:
        raise UserError(
            f"'{name}' lives in the program that started the run, and cannot be sent to Ray's processes "
            f"({type(error).__name__}: {error}): write it into a module of its own, and name that."
        ) from error
    return pickled
