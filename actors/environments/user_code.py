"""The user's code at its edges: whatever it raises or returns becomes what the rest can rely on, or one sentence."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import gymnasium
import numpy as np

from dreamfleet.common.errors import UserError

if TYPE_CHECKING:
    from dreamfleet.common.torch_state import TorchState

LARGEST = float(np.finfo(np.float32).max)
"""The greatest reward that is stored as a number."""

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


class WrongStepError(ValueError):
    """An environment returned what is no reward or no flag; the sentence says which, and what it is."""


def reward_of(value: Any) -> float:
    """Return what an environment gave as its reward, as a number that float32 holds.

    An array of one element is taken for that number.

    Raises:
        WrongStepError: if it is no number, several, not finite, or too large.
    """
    is_float = isinstance(value, float)  # which NumPy's float64 is, too, and compares in ten times the time
    value = float(value) if is_float else _only_element("reward", value, "biuf", "one number is wanted")
    if not -LARGEST <= value <= LARGEST:  # NaN is neither
        beyond = f", and at most {LARGEST:.3g} is stored" if np.isfinite(value) else ""
        raise WrongStepError(f"its reward is {value:g}{beyond}")
    return float(value)


def flag_of(name: str, value: Any) -> bool:
    """Return what an environment gave as `terminated` or `truncated`; an array of one element is taken for that.

    Raises:
        WrongStepError: if it says neither yes nor no.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return bool(_only_element(name, value, "biu", "True or False is wanted"))


def _only_element(name: str, value: Any, kinds: str, wanted: str) -> Any:
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the user's class raises, such as a tensor on a GPU
        raise WrongStepError(f"its {name} is a {type(value).__name__} ({error}): {wanted}") from error
    if array.size != 1 and array.dtype.kind in "biuf":
        raise WrongStepError(f"its {name} is an array of shape {array.shape}: {wanted}")
    if array.size != 1 or array.dtype.kind not in kinds:
        raise WrongStepError(f"its {name} is {value!r:.80}: {wanted}")
    return array.item()


def describe(error: BaseException) -> str:
    """Return in words what the user's code raised; one that ends the process is named for what it does."""
    if isinstance(error, WrongStepError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else repr(error.code)})"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def exits_are_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function of an environment's settings say so where the user's code would end the process.

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
    """Close an environment; one that fails at that is a warning, since it is not needed any more."""
    try:
        env.close()
    except BaseException as error:  # noqa: BLE001 (nothing that a simulator does at its end may end a run)
        log.warning("environment '%s' failed as it was closed: %s", name, describe(error))


@contextmanager
def process_kept() -> Iterator[None]:
    """Put back at the end what user code may change of its process: working directory, signals, torch's defaults.

    For code that is done with by then, such as an environment that was only tried out: one that goes on may need them.
    """
    directory, state = Path.cwd(), _torch_state()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        with suppress(OSError):  # it may have been removed
            os.chdir(directory)
        for number, handler in handlers.items():
            if handler is not None:  # else it is not Python's
                signal.signal(number, handler)
        if state is not None or (state := _torch_state(anew=True)) is not None:
            state.set()


def _torch_state(anew: bool = False) -> TorchState | None:
    """Return what torch goes by, now or at its beginning; None where torch is not imported, which takes seconds."""
    if "torch" not in sys.modules:
        return None
    from dreamfleet.common.torch_state import TorchState

    return TorchState() if anew else TorchState.now()
