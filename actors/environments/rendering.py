"""The library with which MuJoCo draws where there is no screen: chosen by trying, before MuJoCo is imported.

MuJoCo and dm_control read the variable MUJOCO_GL once, when they are imported, and without it they use the library that
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
"""Tells processes that inherit both variables that the value was found by trying, and not given by the user."""
LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
"""The libraries that need no screen, by their value of MUJOCO_GL, the fastest first (EGL uses a GPU if it can)."""
ADVICE = (
    "on Debian and Ubuntu `apt-get install libegl1 libgl1-mesa-dri` brings EGL, `apt-get install libosmesa6` OSMesa"
)
_NOTHING = ("off", "false", "0", "disable", "disabled")
"""The values of MUJOCO_GL with which MuJoCo draws nothing."""
_WINDOWS = ("glfw", "glx", "on", "true", "1", "enable", "enabled", "")
"""The values with which it draws through a hidden window, which needs a screen too."""
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
    """The chosen library: a line for the log, and why nothing can be drawn; each "" if there is nothing to say."""

    line: str = ""
    refusal: str = ""


def choose_library() -> str:
    """Choose the library with which MuJoCo draws, log it once, and return why nothing can be drawn, or "".

    Raises:
        UserError: if MUJOCO_GL has a value that MuJoCo does not know.
    """
    chosen = choice()
    if chosen.line:
        log_once(chosen.line)
    return chosen.refusal


def prepare_library() -> None:
    """Choose a library before code is imported that may import MuJoCo; nothing is logged, since it may never do so."""
    if VARIABLE not in os.environ and importlib.util.find_spec("mujoco"):
        choice()


def log_library() -> str:
    """Log the library if MuJoCo is imported, and return why nothing can be drawn, or ""."""
    return choose_library() if "mujoco" in sys.modules else ""


def why_nothing_is_drawn() -> str:
    """Return the end of a sentence on an environment that failed: why MuJoCo draws nothing, if it may be the cause."""
    refusal = log_library()
    return f"; {refusal}" if refusal else ""


@functools.cache
def choice() -> Choice:
    """Set MUJOCO_GL, unless it is set or MuJoCo is imported already, and return what was chosen.

    Each library is tried in a process of its own, since one that fails cannot be unloaded. If none works, MUJOCO_GL
    becomes `off`: then everything but drawing works.

    Raises:
        UserError: if MUJOCO_GL has a value that MuJoCo does not know.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return _given(given)
    if not sys.platform.startswith("linux") or "mujoco" in sys.modules:
        return Choice()  # macOS draws without a window; and MuJoCo, once imported, has chosen
    failures: list[str] = []
    for value, name in LIBRARIES.items():
        failure = _try(value)
        if not failure:
            os.environ[VARIABLE] = os.environ[FOUND_VARIABLE] = value
            others = f", while {', '.join(failures)}" if failures else ""
            return Choice(f"MuJoCo draws with {name}: it works here without a screen{others}")
        failures.append(f"{name} does not ({failure})")
    os.environ[VARIABLE] = "off"
    failed = ", ".join(failures)
    return Choice(f"MuJoCo draws nothing: {failed}", f"neither EGL nor OSMesa draws here ({failed}); {ADVICE}")


def _given(value: str) -> Choice:
    if value.lower() not in (*LIBRARIES, *_WINDOWS, *_NOTHING):
        known = ", ".join([*LIBRARIES, "glfw"])
        raise UserError(f"{VARIABLE} is '{value}', but must be one of {known} and off.{nearest(value, LIBRARIES)}")
    if value.lower() in _NOTHING:
        return Choice(
            refusal=f"{VARIABLE} is '{value}', which means that MuJoCo draws nothing; where no library is there, "
            f"{ADVICE}"
        )
    if value == os.environ.get(FOUND_VARIABLE):
        return Choice()  # the process that started this one found it, and has logged it
    return Choice(f"MuJoCo draws with '{value}', as {VARIABLE} says")


def _try(value: str) -> str:
    """Try a library in a fresh process; return the last line of its failure, or an empty string if it draws."""
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
    lines = done.stderr.strip().splitlines()
    return lines[-1].strip() if lines else f"ended with status {done.returncode}"
