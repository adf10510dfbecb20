"""A Linux machine on which nobody has chosen yet what MuJoCo draws with, and where only some libraries work."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from dreamfleet.actors.environments import rendering


def before_a_library_is_chosen(monkeypatch: pytest.MonkeyPatch, given: str | None, working: Sequence[str]) -> None:
    """Set MUJOCO_GL to what the user gave, if anything; MuJoCo is not imported, and only `working` libraries draw."""
    monkeypatch.setenv("MUJOCO_GL", given or "")
    monkeypatch.setenv(rendering.FOUND_VARIABLE, "")
    if given is None:
        monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(rendering.sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(rendering, "_try", lambda value: "" if value in working else "none")
