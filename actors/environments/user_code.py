"""The boundary to the user's code: what it returns is checked, and what it raises becomes one sentence."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import gymnasium
import numpy as np

from dreamfleet.actors.spaces.vectors import LARGEST
from dreamfleet.common.errors import UserError
from dreamfleet.common.formatting import shorten

if TYPE_CHECKING:
    from dreamfleet.common.torch_state import TorchState

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


class WrongStepError(ValueError):
    """An environment returned an invalid reward or flag; the sentence says which, and what it is."""


def reward_of(value: Any) -> float:
    """Return an environment's reward as a number that float32 holds; an array of one element counts as that number.

    Raises:
        WrongStepError: if it is not one finite number, or is too large.
    """
    is_float = isinstance(value, float)  # NumPy's float64 is one too, and takes ten times as long to compare
    value = float(value) if is_float else _only_element("reward", value, "biuf", "one number is wanted")
    if not -LARGEST <= value <= LARGEST:  # negated: NaN is found too
        beyond = f", and at most {LARGEST:.3g} is stored" if np.isfinite(value) else ""
        raise WrongStepError(f"its reward is {value:g}{beyond}")
    return float(value)


def flag_of(name: str, value: Any) -> bool:
    """Return an environment's `terminated` or `truncated`; an array of one element counts as that element.

    Raises:
        WrongStepError: if it is neither true nor false.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return bool(_only_element(name, value, "biu", "True or False is wanted"))


def describe(error: BaseException) -> str:
    """Return an error of the user's code in words; here alone its text, of any length, is cut."""
    if isinstance(error, WrongStepError):
        return shorten(str(error))
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else shorten(repr(error.code))})"
    text = shorten(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def cause_of(error: BaseException) -> str:
    """Return an error in words, with the place where it was raised, unless that is in this project's actors."""
    frames = traceback.extract_tb(error.__traceback__)
    is_ours = not frames or Path(__file__).parents[1] in Path(frames[-1].filename).parents
    return describe(error) + ("" if is_ours else f" ({frames[-1].filename}, line {frames[-1].lineno})")


def exits_are_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of an environment's settings: user code that calls `sys.exit` in it does not end the process.

    Raises:
        UserError: instead of SystemExit.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except SystemExit as error:
            settings: Any = args[0] if args else kwargs["settings"]
            raise UserError(f"env.id '{settings.id}' could not be made: {describe(error)}.") from error

    return guarded


def close_environment(env: gymnasium.Env[Any, Any], name: str) -> None:
    """Close an environment; a failure is a warning, since it is not needed any more."""
    try:
        env.close()
    except BaseException as error:  # noqa: BLE001 (no failure of a simulator at its end may end a run)
        log.warning("environment '%s' failed as it was closed: %s", name, describe(error))


@contextmanager
def process_kept() -> Iterator[None]:
    """Restore at the end what user code may change of its process: working directory, signals, torch's defaults.

    This is for an environment that is only tried out; one that stays in use may need them as they are.
    """
    directory = Path.cwd()
    torch_state = _torch_state_class().now() if "torch" in sys.modules else None
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        with suppress(OSError):  # it may have been removed
            os.chdir(directory)
        for number, handler in handlers.items():
            if handler is not None:  # otherwise it was not set by Python
                signal.signal(number, handler)
        if torch_state is None and "torch" in sys.modules:  # the environment imported it
            torch_state = _torch_state_class()()
        if torch_state is not None:
            torch_state.set()


def _only_element(name: str, value: Any, kinds: str, wanted: str) -> Any:
    try:
        array = np.asarray(value)
    except Exception as error:  # of the user's class, such as a tensor on a GPU
        raise WrongStepError(f"its {name} is a {type(value).__name__} ({error}): {wanted}") from error
    if array.size != 1 and array.dtype.kind in "biuf":
        raise WrongStepError(f"its {name} is an array of shape {array.shape}: {wanted}")
    if array.size != 1 or array.dtype.kind not in kinds:
        raise WrongStepError(f"its {name} is {value!r:.80}: {wanted}")
    return array.item()


def _torch_state_class() -> type[TorchState]:
    """Return `TorchState`, whose module imports torch, which takes seconds."""
    from dreamfleet.common.torch_state import TorchState

    return TorchState
