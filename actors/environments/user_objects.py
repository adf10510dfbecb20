"""What the user wrote, by its name `module:attribute`: imported, or handed over by the process that started the run."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from dreamfleet.actors.environments.handover import handed_over
from dreamfleet.common.errors import UserError, nearest

MAIN = "__main__"
"""The module of the script or notebook that started the run, which no other process can import."""


class NoSuchAttributeError(UserError):
    """A module lacks what was to be found in it; it may hold it under another kind of name."""


def search_working_directory() -> Path:
    """Have user modules found in the working directory too, and return it.

    Asked for before user code runs, the directory stays on the path by its full name if that code goes elsewhere.
    """
    here = Path.cwd()
    if str(here) not in sys.path:
        sys.path.append(str(here))
    return here


def import_module(module: str, where: str) -> ModuleType:
    """Return a user's module.

    Args:
        module: its name.
        where: the setting and the value that name it, for messages.

    Raises:
        UserError: if there is none, or it cannot be imported.
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


def find_object(name: str, where: str) -> Any:
    """Return what is called `module:attribute`; the attribute may have dots.

    Raises:
        NoSuchAttributeError: if the module has no such attribute.
        UserError: if there is no such module, or it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    given = handed_over(name)
    if given is not None:
        return given
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


def is_attribute(text: str) -> bool:
    """Return whether a text can name an attribute, with dots or without."""
    return all(part.isidentifier() for part in text.split("."))


def cause_of(error: BaseException) -> str:
    """Return an error in a line, with the place where it arose, unless that is ours: then the words say all."""
    frames = traceback.extract_tb(error.__traceback__)
    is_ours = not frames or Path(frames[-1].filename).parent == Path(__file__).parent
    place = "" if is_ours else f" ({frames[-1].filename}, line {frames[-1].lineno})"
    return (f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) + place
