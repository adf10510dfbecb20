"""From presets, files and flags to `Settings`; an error is one sentence that names where the wrong value came from."""

from __future__ import annotations

import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dreamfleet.common.errors import UserError, nearest, shown
from dreamfleet.common.settings.presets import find_preset, parse_value, read_layers
from dreamfleet.common.settings.schema import Settings

_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)[eE][+-]?\d+")
"""Numbers such as 1e-4, which YAML 1.1 takes for text."""

_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping such as '{{name: value}}'",
    "model_type": "a group of settings",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}
"""What a value must be, by the type of pydantic's error."""


Layer = tuple[Mapping[str, Any], str]
"""Settings by section, and what an error says that they came from."""


def resolve(
    presets: Sequence[str] = (),
    flags: Sequence[tuple[str, str]] = (),
    base: Path | None = None,
    layers: Sequence[Layer] = (),
) -> Settings:
    """Return the settings; see `resolve_with_sources`."""
    return resolve_with_sources(presets, flags, base, layers)[0]


def resolve_with_sources(
    presets: Sequence[str] = (),
    flags: Sequence[tuple[str, str]] = (),
    base: Path | None = None,
    layers: Sequence[Layer] = (),
) -> tuple[Settings, dict[str, str]]:
    """Return the settings of defaults, a base file, presets, layers and flags, in their order, each over those before.

    The second result names, by dotted path, the layer that each value came from; paths that are missing have defaults.

    Args:
        presets: names of built-in presets, or paths of YAML files.
        flags: (path, text) pairs such as ("env.id", "CartPole-v1").
        base: a file of resolved settings to start from: a run's `config.yaml`.
        layers: settings from elsewhere, such as a sweep's file.

    Raises:
        UserError: for an unknown preset or setting, presets that build on each other, a wrong type or value, or
            settings that do not fit together.
    """
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    files = [(base, f"file {base}")] if base else []
    files += [find_preset(preset, "flag --preset") for preset in presets]
    below: set[str] = set()
    of_files = itertools.chain.from_iterable(read_layers(path, source, below) for path, source in files)
    layers = [*of_files, *layers]
    for path_text, text in sorted(flags, key=lambda flag: flag[0] != "env.id"):  # the environment before its arguments
        source = f"flag --{path_text}"
        layers.append((_nested(path_text, parse_value(text, source)), source))
    for layer, source in layers:
        _forget_other_environment(merged, layer, sources)
        _merge(merged, layer, source, sources)
    try:
        return Settings.model_validate(merged), sources
    except ValidationError as error:
        raise UserError(_sentence(error, sources)) from None


def write_settings(settings: Settings, path: Path) -> None:
    """Write the settings as a YAML file that `resolve` takes as its base."""
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def changes(old: Settings, new: Settings) -> list[str]:
    """Return "path: old → new" for every setting that differs."""
    before, after = dict(leaves(old.model_dump())), dict(leaves(new.model_dump()))
    paths = list(dict.fromkeys([*before, *after]))
    return [f"{p}: {before.get(p)} → {after.get(p)}" for p in paths if before.get(p) != after.get(p)]


def leaves(data: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) for everything in nested mappings that is not a mapping with entries."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def describe_settings(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield (path, type, default, meaning) for every setting."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from describe_settings(kind, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            yield prefix + name, _type_name(kind), yaml.safe_dump(default).split("\n")[0], field.description or ""


def known_paths() -> list[str]:
    """Return the dotted paths of all settings."""
    return [path for path, *_ in describe_settings()]


def _type_name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        return " | ".join(map(_type_name, arguments))
    names = {dict: "mapping", tuple: "list", int: "whole number", float: "number", str: "text", bool: "true | false"}
    return names.get(origin or kind, str(kind))


def _forget_other_environment(merged: dict[str, Any], layer: Mapping[str, Any], sources: dict[str, str]) -> None:
    """Where a layer names another environment, drop arguments, wrappers and names meant for the one before.

    Those for one of the same namespace stay: settings for `ALE/Pong-v5` hold for `ALE/Breakout-v5` too.
    """
    before, now = merged.get("env"), layer.get("env")
    if not isinstance(before, dict) or not isinstance(now, Mapping):
        return
    old, new = str(before.get("id")), str(now.get("id", before.get("id")))
    if old != new and ("/" not in old or old.partition("/")[0] != new.partition("/")[0]):
        for name in ("kwargs", "wrappers", "pictures", "vectors", "one_hot"):
            before.pop(name, None)
            for path in [path for path in sources if f"{path}.".startswith(f"env.{name}.")]:
                del sources[path]


def _nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def _merge(into: dict[str, Any], layer: Mapping[str, Any], source: str, sources: dict[str, str], at: str = "") -> None:
    """Merge a layer into the settings below it; its values win, and their source is recorded for every path."""
    for key, value in layer.items():
        path = f"{at}{key}"
        if isinstance(value, Mapping):
            held = into.get(key)
            into[key] = held if isinstance(held, dict) else {}
            sources.setdefault(path, source)
            _merge(into[key], value, source, sources, f"{path}.")
        else:
            into[key] = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
            sources[path] = source


def _sentence(error: ValidationError, sources: Mapping[str, str]) -> str:
    """Turn the first of pydantic's errors into one sentence."""
    found = error.errors()[0]
    path = ".".join(str(part) for part in found["loc"])
    parents = itertools.accumulate(path.split("."), lambda parent, name: f"{parent}.{name}")
    source = next((sources[parent] for parent in reversed(list(parents)) if parent in sources), "the settings")
    value = found.get("input")
    if found["type"] == "extra_forbidden":
        return f"{source}: there is no setting '{path}'.{_nearest_setting(path)}"
    if found["type"] == "value_error":
        return f"{found['msg'].removeprefix('Value error, ')} ({_sources_of(found['msg'], sources) or source})."
    expected = _EXPECTED.get(found["type"], found["msg"]).format(**found.get("ctx", {}))
    hint = ""
    if found["type"] == "literal_error" and isinstance(value, str):
        hint = nearest(value, re.findall(r"'([^']+)'", found["ctx"]["expected"]))
    text = "a group of settings" if isinstance(value, dict) else shown(value)
    if isinstance(value, bool):
        text = str(value).lower()  # as YAML spells it
    return f"{source}: {path} is {text}, but must be {expected}.{hint}"


def _nearest_setting(path: str) -> str:
    """Return the hint for a mistyped path: the nearest whole path, or a path with the same last name."""
    last = path.rsplit(".", 1)[-1]
    same = [known for known in known_paths() if known.rsplit(".", 1)[-1] == last]
    return f" Did you mean '{same[0]}'?" if same else nearest(path, [*known_paths(), *Settings.model_fields])


def _sources_of(message: str, sources: Mapping[str, str]) -> str:
    """Return where the settings that a message names came from."""
    named = dict.fromkeys(sources[path] for path in re.findall(r"[a-z_]+\.[a-z_]+", message) if path in sources)
    return ", ".join(named)
