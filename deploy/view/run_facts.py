"""What the page says of a run: how it stands, its settings and what differs, evaluations, pictures, and how to act."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dreamfleet.actors.environments.make import make_environment
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec, Spaces
from dreamfleet.common.settings.presets import preset_names
from dreamfleet.common.settings.resolve import leaves, resolve_with_sources
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.monitoring.run_status import read_run_status
from dreamfleet.deploy.monitoring.status import describe
from dreamfleet.deploy.run_directory import RunDirectory, read_rows

MOST_PICTURES = 24
MOST_EVALUATIONS = 200
_MOST_STACKED = 3
_TAIL_BYTES = 4 << 20
_PICTURES = ("pictures/*.png", "pictures/*.webm", "dream/dream.png", "dream/dream.webm", "eval/*.webm")
_SPECIAL_KEYS = {
    1073741903: "ArrowRight", 1073741904: "ArrowLeft", 1073741905: "ArrowDown", 1073741906: "ArrowUp",
    273: "ArrowUp", 274: "ArrowDown", 275: "ArrowRight", 276: "ArrowLeft", 13: "Enter", 27: "Escape",
}  # fmt: skip
"""Pygame's codes of keys that are no character, its second version's and its first's."""


def status_of(run: RunDirectory) -> dict[str, Any]:
    """Return what `dreamfleet status` says, as text, and the state in one word.

    Raises:
        UserError: if the run is gone, or may not be read.
    """
    try:
        found = read_run_status(run)
    except OSError as error:
        raise UserError(f"{run.shown} cannot be read: {error.strerror or error}") from None
    return {"status": "\n".join(describe(found, time.time())), "state": found.state, "kind": found.kind}


def settings_of(settings: Settings) -> dict[str, Any]:
    """Return every setting with whether it differs from the presets that come nearest, and what it would be there."""
    held = dict(leaves(settings.model_dump(mode="json")))
    names, base = _nearest_presets(held)
    rows = [
        {"name": path, "value": value, "differs": base.get(path) != value, "preset": base.get(path)}
        for path, value in held.items()
    ]
    return {"presets": names, "settings": rows}


def _nearest_presets(held: Mapping[str, Any]) -> tuple[list[str], Mapping[str, Any]]:
    """Return the stack of built-in presets from which the fewest settings differ: a run's files do not name them."""

    def stacked(names: Sequence[str]) -> dict[str, Any]:
        base = dict(leaves(Settings().model_dump(mode="json")))
        for name in names:
            base |= _set_by(name)
        return base

    def differences(names: Sequence[str]) -> int:
        base = stacked(names)
        return sum(held.get(path) != base.get(path) for path in {*held, *base})

    chosen: list[str] = []
    while len(chosen) < _MOST_STACKED:
        free = [name for name in preset_names() if name not in chosen]
        longer = [[*chosen[:at], name, *chosen[at:]] for name in free for at in range(len(chosen) + 1)]
        best = min(longer, key=differences)
        if differences(best) >= differences(chosen):
            break
        chosen = best
    return chosen, stacked(chosen)


@cache
def _set_by(preset: str) -> Mapping[str, Any]:
    """Return what a preset sets, with those that it builds on."""
    settings, sources = resolve_with_sources([preset])
    return {path: value for path, value in leaves(settings.model_dump(mode="json")) if path in sources}


def evaluations_of(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the last rows of evaluations.jsonl, oldest first."""
    return _rows(run.evaluations_file)[-MOST_EVALUATIONS:]


def storing_times(run: RunDirectory) -> np.ndarray:
    """Return (2, n), both rising: environment steps, and the seconds since 1970 by which they were logged."""
    rows = [(row.get("env_steps"), row.get("time")) for row in _rows(run.metrics_file)]
    numbers = [pair for pair in rows if all(isinstance(part, int | float) for part in pair)]
    table = np.array(numbers, np.float64).reshape(-1, 2).T
    return table[:, np.concatenate([[True], np.diff(np.maximum.accumulate(table[0])) > 0])] if table.size else table


def _rows(file: Path) -> list[dict[str, Any]]:
    with suppress(OSError), file.open("rb") as lines:
        lines.seek(max(0, lines.seek(0, 2) - _TAIL_BYTES))
        return read_rows(lines)
    return []


def pictures_of(run: RunDirectory) -> dict[str, Path]:
    """Return the newest pictures and films by name, the newest first."""
    found: list[tuple[float, Path]] = []
    for pattern in _PICTURES:
        for path in run.path.glob(pattern):
            with suppress(OSError):
                found.append((path.stat().st_mtime, path))
    found.sort(reverse=True)
    return {path.name: path for _, path in found[:MOST_PICTURES]}


def spaces_facts(spaces: Spaces) -> dict[str, Any]:
    """Return what is observed, and what an action is, as it is stored."""
    action = spaces.action
    kind = {"discrete": "discrete", "multi_discrete": "multi", "box": "box", "mixed": "mixed"}[action.kind]
    return {
        "observations": [
            {"name": spec.name, "shape": list(spec.shape), "kind": "picture" if spec.is_image else "vector"}
            for spec in spaces.observations
        ],
        "actions": {
            "kind": kind,
            "choices": list(action.choices),
            "low": [bound if np.isfinite(bound) else None for bound in action.low],
            "high": [bound if np.isfinite(bound) else None for bound in action.high],
            "names": list(action.names) or None,
            "keys": default_keys(action),
        },
    }


def default_keys(action: ActionSpec) -> dict[str, int]:
    """Return arrows and digits for the choices of a discrete action: left and right first, as most environments do."""
    if action.kind != "discrete":
        return {}
    count = action.sizes[0]
    arrows = {2: ("ArrowLeft", "ArrowRight"), 3: ("ArrowLeft", "ArrowDown", "ArrowRight")}.get(
        count, ("ArrowLeft", "ArrowDown", "ArrowRight", "ArrowUp")
    )
    return {key: number for number, key in enumerate(arrows[:count])} | {str(n): n for n in range(min(count, 10))}


def environment_keys(settings: Settings, action: ActionSpec) -> dict[str, int]:
    """Return the keys that the environment itself names for its discrete actions, those held at once joined by "+".

    Without any, those of `default_keys`.
    """
    if action.kind != "discrete":
        return {}
    try:
        environment = make_environment(settings.env)
    except UserError:  # a dataset may be looked at where its environment is not
        return default_keys(action)
    try:
        given = environment.unwrapped.get_keys_to_action()  # type: ignore[attr-defined]
        keys = {"+".join(map(_key_name, _several(held))): int(chosen) for held, chosen in given.items() if held}
    except (AttributeError, TypeError, ValueError):
        return default_keys(action)
    finally:
        environment.close()
    return {key: number for key, number in keys.items() if key and 0 <= number < action.sizes[0]} or default_keys(
        action
    )


def _several(held: Any) -> tuple[Any, ...]:
    return tuple(held) if isinstance(held, tuple | list | str) else (held,)


def _key_name(key: Any) -> str:
    if isinstance(key, str):
        return key
    return _SPECIAL_KEYS.get(int(key)) or chr(int(key))
