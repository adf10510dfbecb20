"""What an actor's process on Ray needs of the process that started the run, and cannot find by itself.

A function or class of a script or notebook lives in `__main__`, which in another process is another module; an id that
the script registered is known to its own process alone. They travel by value: pickled with their code.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pickle
import sys
from dataclasses import dataclass
from typing import Any

import gymnasium

from dreamfleet.actors.environments import rendering
from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import EnvironmentSettings

_objects: dict[str, bytes] = {}
"""What this process was handed, pickled, by its name."""


@dataclass(frozen=True)
class Handover:
    """What actors are given at their start.

    Attributes:
        objects: the environment's function and wrappers that live in `__main__`, and the registration of an id that
            this process knows, pickled, by their names in the settings.
        search_path: where this process looks for modules.
        machine: which machine this is; `library` is what MuJoCo draws with on it, "" if nobody has tried.
    """

    objects: dict[str, bytes]
    search_path: tuple[str, ...]
    machine: str
    library: str

    @staticmethod
    def of(settings: EnvironmentSettings, machine: str) -> Handover:
        """Return what actors of this environment need; the environment was made here before.

        Raises:
            UserError: if something lives in `__main__` that cannot be sent.
        """
        names = [settings.id, *(name for name, _ in settings.named_wrappers)]
        objects = {name: _pickled(name, _main_object(name)) for name in names if name.startswith("__main__:")}
        objects |= _registration(settings.id.rpartition(":")[2])
        return Handover(objects, tuple(filter(None, sys.path)), machine, os.environ.get(rendering.VARIABLE, ""))

    def take(self, machine: str) -> None:
        """Have this process find what was handed over; on another machine MuJoCo's library is tried anew."""
        _objects.update(self.objects)
        sys.path.extend(place for place in self.search_path if place not in sys.path)
        if self.library and machine == self.machine:
            os.environ.setdefault(rendering.VARIABLE, self.library)
            os.environ.setdefault(rendering.FOUND_VARIABLE, self.library)


def handed_over(name: str) -> Any:
    """Return what was handed to this process under a name of the settings, or None.

    Raises:
        UserError: if it cannot be unpickled here.
    """
    if name not in _objects:
        return None
    try:
        return pickle.loads(_objects[name])  # noqa: S301 (from our own driver, through Ray)
    except Exception as error:
        raise UserError(
            f"'{name}' was sent here from the program that started the run, and cannot be read: "
            f"{type(error).__name__}: {error}; written into a module of its own, it need not be sent."
        ) from error


def _main_object(name: str) -> Any:
    found: Any = importlib.import_module("__main__")
    for part in name.partition(":")[2].split("."):
        found = getattr(found, part)
    return found


def _registration(name: str) -> dict[str, bytes]:
    """Return how an id is registered here, if others may not know: not Gymnasium's own, and not if it is not known."""
    spec = gymnasium.registry.get(name)
    if spec is None or str(spec.entry_point).startswith("gymnasium.envs."):
        return {}
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("__main__:"):
        spec = dataclasses.replace(spec, entry_point=_main_object(spec.entry_point))
    elif not callable(spec.entry_point):
        try:
            return {name: _pickled(name, spec)}
        except UserError:  # its module can be imported, and registers it elsewhere too
            return {}
    return {name: _pickled(name, spec)}


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
