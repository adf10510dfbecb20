"""Which library MuJoCo draws with, where there is no screen: chosen by trying, before MuJoCo is imported.

MuJoCo and dm_control read the variable MUJOCO_GL once, as they are imported, and without it they take the library that
opens windows, which fails on a server. So a process chooses first and imports then; processes that it starts inherit
the choice.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass

from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.process_log import log_once

VARIABLE = "MUJOCO_GL"
FOUND_VARIABLE = "DREAMFLEET_FOUND_GL"
"""Says for processes that inherit both that the value was found by trying, and not given by the user."""
LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
"""What can draw without a screen, the fastest first (EGL uses a GPU where there is one), by its name in MUJOCO_GL."""
ADVICE = (
    "on Debian and Ubuntu `apt-get install libegl1 libgl1-mesa-dri` brings EGL, `apt-get install libosmesa6` OSMesa"
)
_NOTHING = ("off", "false", "0", "disable", "disabled")
"""The values of MUJOCO_GL by which MuJoCo draws nothing."""
_WINDOWS = ("glfw", "glx", "on", "true", "1", "enable", "enabled", "")
"""The values by which it draws by way of a hidden window, which needs a screen all the same."""
_TRIAL_TIMEOUT_S = 120
_TRIAL = """
import importlib, sys
import mujoco
importlib.import_module("mujoco." + sys.argv[1])
model = mujoco.MjModel.from_xml_string("<mujoco/>")
renderer = mujoco.Renderer(model, 8, 8)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
renderer.close()
print("drawn")
"""


@dataclass(frozen=True)
class Choice:
    """What MuJoCo draws with: what to tell of it, and why nothing can be drawn, "" if something can."""

    told: str = ""
    refusal: str = ""


def choose_library() -> str:
    """Have a library chosen that MuJoCo draws with, announce it, and return why nothing can be drawn, if so.

    Raises:
        UserError: if MUJOCO_GL is set to what MuJoCo does not know.
    """
    chosen = choice()
    if chosen.told:
        log_once(chosen.told)
    return chosen.refusal


def prepare_library() -> None:
    """Have a library chosen, before code is imported that may import MuJoCo; nothing is said if it never does."""
    if VARIABLE not in os.environ and importlib.util.find_spec("mujoco"):
        choice()


def announce_library() -> str:
    """Announce what MuJoCo draws with, if it is used at all, and return why nothing can be drawn, if so."""
    return choose_library() if "mujoco" in sys.modules else ""


def why_nothing_is_drawn() -> str:
    """Return how to end a sentence about an environment that failed: why MuJoCo draws nothing, if that may be it."""
    refusal = announce_library()
    return f"; {refusal}" if refusal else ""


@functools.cache
def choice() -> Choice:
    """Set MUJOCO_GL, unless it is set or MuJoCo is imported already, and return what was chosen.

    Each library is tried in a process of its own, since one that fails cannot be unloaded. Where none works MUJOCO_GL
    becomes `off`: then everything but drawing works.

    Raises:
        UserError: if MUJOCO_GL is set to what MuJoCo does not know.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return _given(given)
    if not sys.platform.startswith("linux") or "mujoco" in sys.modules:
        return Choice()  # a Mac draws without a window by itself; and once MuJoCo is imported, it has chosen
    failures: list[str] = []
    for value, name in LIBRARIES.items():
        failure = _try(value)
        if not failure:
            os.environ[VARIABLE] = os.environ[FOUND_VARIABLE] = value
            return Choice(f"MuJoCo draws with {name}: it works here without a screen{_after(failures)}")
        failures.append(f"{name} does not ({failure})")
    os.environ[VARIABLE] = "off"
    failed = ", ".join(failures)
    return Choice(f"MuJoCo draws nothing: {failed}", f"neither EGL nor OSMesa draws here ({failed}); {ADVICE}")


def _given(value: str) -> Choice:
    """Return the choice that MUJOCO_GL makes."""
    if value.lower() not in (*LIBRARIES, *_WINDOWS, *_NOTHING):
        known = ", ".join([*LIBRARIES, "glfw"])
        raise UserError(f"{VARIABLE} is '{value}', but must be one of {known} and off.{nearest(value, LIBRARIES)}")
    if value.lower() in _NOTHING:
        return Choice(
            refusal=f"{VARIABLE} is '{value}', which means that MuJoCo draws nothing; where no library is there, "
            f"{ADVICE}"
        )
    if value == os.environ.get(FOUND_VARIABLE):
        return Choice()  # found by the process that started this one, which has told of it
    return Choice(f"MuJoCo draws with '{value}', as {VARIABLE} says")


def _after(failures: list[str]) -> str:
    """Return what to add where one library works after others failed."""
    return f", while {', '.join(failures)}" if failures else ""


def _try(value: str) -> str:
    """Return the last line of why this library draws nothing in a fresh process, or an empty string if it does."""
    command = [sys.executable, "-c", _TRIAL, value]
    environment = os.environ | {VARIABLE: value}
    try:
        done = subprocess.run(  # noqa: S603 (our own interpreter and text)
            command, env=environment, capture_output=True, text=True, timeout=_TRIAL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no picture after {_TRIAL_TIMEOUT_S} s"
    if done.returncode == 0 and "drawn" in done.stdout:
        return ""
    said = done.stderr.strip().splitlines()
    return said[-1].strip() if said else f"ended with status {done.returncode}"
