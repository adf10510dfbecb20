"""The file of a sweep: variants of settings and seeds, of which each pair is a run.

presets: [dreamer_v3, size_1m]        # of all variants, below their own
settings: {train: {env_steps: 8000}}  # of all variants, over all presets
variants:
  small: {settings: {model: {deterministic: 128}}}
  v2: {presets: [dreamer_v2]}
seeds: [0, 1, 2]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamfleet.common.errors import UserError, nearest, shown
from dreamfleet.common.settings.presets import find_preset, preset_names, read_yaml
from dreamfleet.common.settings.resolve import Layer, resolve
from dreamfleet.common.settings.schema import Settings

CACHE_GB = 0.5
"""Decoded experience of a cell where `replay.cache_gb` is auto, which for one run is a quarter of the free memory."""
_KEYS = ("presets", "settings", "variants", "seeds", "out", "inline", "resources")
_VARIANT_KEYS = ("presets", "settings", "resources")
_RESOURCES = ("cores", "memory_gb", "gpus")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MOST_CELLS = 10_000


@dataclass(frozen=True)
class Variant:
    """Settings that are run with every seed.

    Attributes:
        presets: names of built-in presets, and paths of files.
        layers: settings over these, the lowest first.
        resources: what a cell takes, where the file says so: `cores`, `memory_gb`, `gpus`.
    """

    name: str
    presets: list[str]
    layers: list[Layer]
    resources: dict[str, float] = field(default_factory=dict)

    def settings(self, seed: int) -> Settings:
        """Return the settings of a cell.

        Raises:
            UserError: naming the place in the file, if they do not hold.
        """
        settings = resolve(self.presets, layers=[*self.layers, ({"seed": seed}, "seeds")])
        if settings.actors.count == "auto":
            raise UserError(
                f"variant {self.name}: actors.count is auto, which would take all cores, but cells share them: give a "
                "number."
            )
        parts = {
            "learner": settings.learner.model_copy(update={"threads": settings.learner.threads or 1}),
            "replay": settings.replay.model_copy(update={"cache_gb": _cache_gb(settings)}),
        }
        return settings.model_copy(update=parts)


@dataclass(frozen=True)
class SweepFile:
    """A sweep as its file has it, checked; `out` is the folder of its runs."""

    path: Path
    variants: list[Variant]
    seeds: list[int]
    out: Path
    inline: bool


def read_sweep(path: Path) -> SweepFile:
    """Return the sweep of a YAML file; the settings of every variant hold.

    Raises:
        UserError: naming the place in the file and what would be right.
    """
    source = f"file {path}"
    if path.is_dir():
        raise UserError(f"{source}: is a folder; give the YAML file that the sweep was started with.")
    data = read_yaml(path, source)
    _check_keys(data, _KEYS, source)
    seeds = _seeds(data.get("seeds", [0]), source)
    common = _presets(data.get("presets", []), source, path.parent)
    below = _settings(data.get("settings", {}), source)
    resources = _resources(data.get("resources", {}), source)
    variants = []
    for name, given in _variants(data.get("variants"), source).items():
        at = f"{source}: variants.{name}"
        _check_keys(given, _VARIANT_KEYS, at)
        presets = [*common, *_presets(given.get("presets", []), at, path.parent)]
        layers: list[Layer] = [
            (below, f"{source}: settings"),
            (_settings(given.get("settings", {}), at), f"{at}.settings"),
        ]
        variants.append(Variant(name, presets, layers, resources | _resources(given.get("resources", {}), at)))
        variants[-1].settings(seeds[0])
    if len(variants) * len(seeds) > _MOST_CELLS:
        raise UserError(f"{source}: {len(variants)} variants × {len(seeds)} seeds are more than {_MOST_CELLS:,} runs.")
    out, inline = data.get("out", f"runs/{path.stem}"), data.get("inline", False)
    if not isinstance(out, str) or not out:
        raise UserError(f"{source}: out is {shown(out)}, but must be a folder such as runs/{path.stem}.")
    if not isinstance(inline, bool):
        raise UserError(f"{source}: inline is {shown(inline)}, but must be true or false.")
    return SweepFile(path, variants, seeds, Path(out), inline)


def _check_keys(data: Mapping[Any, Any], known: Sequence[str], source: str) -> None:
    for key in data:
        if key not in known:
            hint = nearest(str(key), known) or f" It may have {', '.join(known)}."
            raise UserError(f"{source}: there is no '{key}' here.{hint}")


def _seeds(seeds: Any, source: str) -> list[int]:
    listed = list(range(seeds)) if _is_whole(seeds) else seeds
    if not isinstance(listed, list) or not listed or not all(_is_whole(seed) for seed in listed):
        raise UserError(f"{source}: seeds is {shown(seeds)}, but must be a list such as [0, 1, 2], or how many: 3.")
    twice = next((seed for seed in listed if listed.count(seed) > 1), None)
    if twice is not None:
        raise UserError(f"{source}: seeds has {twice} twice; each is a run of its own.")
    return listed


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _presets(names: Any, source: str, folder: Path) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: presets is {shown(names)}, but must be a list of names such as [small].")
    found = {name: find_preset(name, f"{source}: presets", folder)[0] for name in names}
    return [name if name in preset_names() else str(found[name].absolute()) for name in names]


def _settings(settings: Any, source: str) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise UserError(f"{source}: settings is {shown(settings)}, but must have settings: {{train: {{ratio: 32}}}}.")
    if "seed" in settings:
        raise UserError(f"{source}: settings has a seed: each run gets its own from 'seeds'; leave it out.")
    return settings


def _resources(resources: Any, source: str) -> dict[str, float]:
    if not isinstance(resources, dict):
        raise UserError(f"{source}: resources is {shown(resources)}, but must be as in {{cores: 2, memory_gb: 4}}.")
    _check_keys(resources, _RESOURCES, f"{source}: resources")
    for name, value in resources.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (value > 0 or (name == "gpus" and value == 0)):
            raise UserError(f"{source}: resources.{name} is {shown(value)}, but must be a number greater than 0.")
    return resources


def _variants(variants: Any, source: str) -> dict[str, dict[str, Any]]:
    if not isinstance(variants, dict) or not variants:
        example = "variants: {small: {settings: {model: {depth: 16}}}}"
        raise UserError(f"{source}: variants is {shown(variants)}, but must have at least one by its name: {example}.")
    for name, given in variants.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(
                f"{source}: variants: the name {shown(name)} becomes a folder: take letters, digits, '.', '_' and '-'."
            )
        if not isinstance(given, dict | None):
            raise UserError(
                f"{source}: variants.{name} is {shown(given)}, but must be as in {{presets: [NAME], settings: ...}}."
            )
    return {name: given or {} for name, given in variants.items()}


def _cache_gb(settings: Settings) -> float:
    cache = settings.replay.cache_gb
    return CACHE_GB if isinstance(cache, str) else cache
