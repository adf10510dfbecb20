"""Which library MuJoCo draws with, where there is no screen: chosen by trying, before MuJoCo is imported.

MuJoCo and dm_control read the variable MUJOCO_GL once, as they are imported, and without it they take the library that
opens windows, which fails on a server. So a process chooses first and imports then; processes that it starts inherit
the choice.
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys

log = logging.getLogger(__name__)

VARIABLE = "MUJOCO_GL"
LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
"""What can draw without a screen, the fastest first (EGL uses a GPU where there is one), by its name in MUJOCO_GL."""
ADVICE = (
    "on Debian and Ubuntu `apt-get install libegl1 libgl1-mesa-dri` brings EGL, `apt-get install libosmesa6` OSMesa"
)
_NOTHING = ("off", "false", "0", "disable", "disabled")
"""The values of MUJOCO_GL by which MuJoCo draws nothing."""
_TRIAL_TIMEOUT_S = 120
_TRIAL = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
renderer = mujoco.Renderer(model, 8, 8)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
renderer.close()
print("drawn")
"""


@functools.cache
def choose_library() -> str:
    """Set MUJOCO_GL, unless it is set or MuJoCo is imported already, and return why nothing can be drawn, if so.

    Each library is tried in a process of its own, since one that fails cannot be unloaded. The choice is logged with
    its reason. Where none works MUJOCO_GL becomes `off`: then everything but drawing works.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        if given.lower() in _NOTHING:
            return (
                f"{VARIABLE} is '{given}', which means that MuJoCo draws nothing; where no library is there, {ADVICE}"
            )
        log.info("MuJoCo draws with '%s', as %s says", given, VARIABLE)
        return ""
    if not sys.platform.startswith("linux") or "mujoco" in sys.modules:
        return ""  # a Mac draws without a window by itself; and once MuJoCo is imported, it has chosen
    failures: list[str] = []
    for value, name in LIBRARIES.items():
        failure = _try(value)
        if not failure:
            os.environ[VARIABLE] = value
            log.info("MuJoCo draws with %s: it works here without a screen%s", name, _after(failures))
            return ""
        failures.append(f"{name} does not ({failure})")
    os.environ[VARIABLE] = "off"
    log.info("MuJoCo draws nothing: %s", ", ".join(failures))
    return f"neither EGL nor OSMesa draws here ({', '.join(failures)}); {ADVICE}"


def _after(failures: list[str]) -> str:
    return f", while {', '.join(failures)}" if failures else ""


def _try(value: str) -> str:
    """Return the last line of why this library draws nothing in a fresh process, or an empty string if it does."""
    command = [sys.executable, "-c", _TRIAL]
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
