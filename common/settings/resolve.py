"""From presets, files and flags to `Settings`: what is wrong is said in one sentence that names where it stood."""

from __future__ import annotations

import itertools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.settings.schema import Settings

PRESET_FOLDER = Path(__file__).resolve().parent / "presets"
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)[eE][+-]?\d+")
"""Numbers such as 1e-4, which YAML 1.1 takes for text."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML silently takes the last of two equal keys; here the second is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build the mapping, refusing a key that stands there twice."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def preset_names() -> list[str]:
    """Return the names of the built-in presets."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def preset_summary(name: str) -> str:
    """Return the comment that a built-in preset begins with."""
    lines = []
    for line in (PRESET_FOLDER / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def resolve(presets: Sequence[str] = (), flags: Sequence[tuple[str, str]] = (), base: Path | None = None) -> Settings:
    """Return the settings that come of defaults, a base file, presets in their order and flags, each over the last.

    See `resolve_with_sources`.
    """
    return resolve_with_sources(presets, flags, base)[0]


def resolve_with_sources(
    presets: Sequence[str] = (), flags: Sequence[tuple[str, str]] = (), base: Path | None = None
) -> tuple[Settings, dict[str, str]]:
    """Return the settings, and for each dotted path that a layer gave which one it was; the rest are defaults.

    Args:
        presets: names of built-in presets, or paths of YAML files.
        flags: (path, text) pairs such as ("env.id", "CartPole-v1").
        base: a file of resolved settings to start from: a run's `config.yaml`.

    Raises:
        UserError: for an unknown preset or setting, presets that stand on each other, a wrong type or value, or
            settings that do not fit together.
    """
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    files = [(base, f"file {base}")] if base else []
    files += [_find_preset(preset, "flag --preset") for preset in presets]
    laid: set[str] = set()
    for layer, source in itertools.chain.from_iterable(_layers(path, source, laid) for path, source in files):
        _forget_other_environment(merged, layer, sources)
        _merge(merged, layer, source, sources)
    for path_text, text in sorted(flags, key=lambda flag: flag[0] != "env.id"):  # the environment before its arguments
        source = f"flag --{path_text}"
        layer = _nested(path_text, _parse_value(text, source))
        _forget_other_environment(merged, layer, sources)
        _merge(merged, layer, source, sources)
    try:
        return Settings.model_validate(merged), sources
    except ValidationError as error:
        raise UserError(_sentence(error, sources)) from None


def read_yaml(path: Path, source: str) -> dict[str, Any]:
    """Return a YAML file's mapping.

    Raises:
        UserError: if it cannot be read, is no YAML, has a key twice or is no mapping.
    """
    try:
        data = yaml.load(path.read_text(), Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise UserError(f"{source}{line}: not valid YAML: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(data, dict | None):
        raise UserError(f"{source}: holds a {type(data).__name__}, not settings as 'name: value'.")
    return data or {}


def write_settings(settings: Settings, path: Path) -> None:
    """Write the settings as a YAML file that `resolve` takes back."""
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def changes(old: Settings, new: Settings) -> list[str]:
    """Return "path: old → new" for every setting that differs."""
    before, after = dict(leaves(old.model_dump())), dict(leaves(new.model_dump()))
    paths = list(dict.fromkeys([*before, *after]))
    return [f"{p}: {before.get(p)} → {after.get(p)}" for p in paths if before.get(p) != after.get(p)]


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


def _forget_other_environment(merged: dict[str, Any], layer: Mapping[str, Any], sources: dict[str, str]) -> None:
    """Where a layer names another environment, drop arguments, wrappers and names meant for the one before it.

    Those for one of the same namespace stay: what is said for `ALE/Pong-v5` holds for `ALE/Breakout-v5` too.
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


def _layers(
    path: Path, source: str, laid: set[str], above: tuple[Path, ...] = ()
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield a file's layers with their names, the lowest first.

    The presets that its key `presets` names, its own, and what it has under `over` for presets that lie below.

    Args:
        path: of the file.
        source: how to name it in an error.
        laid: names of the built-in presets that lie below; those yielded join them.
        above: the files that stand on this one.
    """
    if path.resolve() in above:
        raise UserError(f"{source}: stands on itself: its 'presets' lead back to it.")
    layer = read_yaml(path, source)
    names = layer.pop("presets", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: presets is {names!r}, but must be a list of names such as [small].")
    for name in names:
        below = _find_preset(name, f"{source}: presets", path.parent)
        yield from _layers(*below, laid, (*above, path.resolve()))
    over = _checked_over(layer.pop("over", {}), source)
    yield layer, source
    for name in [name for name in over if name in laid]:
        yield over[name], f"{source} over {name}"
    if path.parent == PRESET_FOLDER:
        laid.add(path.stem)


def _checked_over(over: Any, source: str) -> dict[str, dict[str, Any]]:
    """Return what a file has for certain presets below it: settings by the preset's name."""
    if not isinstance(over, dict) or not all(isinstance(settings, dict) for settings in over.values()):
        raise UserError(f"{source}: over is {over!r}, but must have settings for presets: {{planet: {{seed: 1}}}}.")
    unknown = [str(name) for name in over if name not in preset_names()]
    if unknown:
        raise UserError(
            f"{source}: over: there is no built-in preset '{unknown[0]}'.{nearest(unknown[0], preset_names())}"
        )
    return over


def _find_preset(preset: str, where: str, folder: Path = Path()) -> tuple[Path, str]:
    """Return a preset's file and how to name it in an error; a file's path begins in `folder`."""
    if preset in preset_names():
        return PRESET_FOLDER / f"{preset}.yaml", f"preset '{preset}'"
    path = folder / preset
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path, f"file {path}"
    hint = nearest(preset, preset_names()) or f" Built in are: {', '.join(preset_names())}."
    raise UserError(f"{where}: '{preset}' is neither a built-in preset nor a YAML file that exists.{hint}")


def _parse_value(text: str, source: str) -> Any:
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: '{text}' is not a valid value: {getattr(error, 'problem', error)}.") from None
    return value


def _nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def _merge(into: dict[str, Any], layer: Mapping[str, Any], source: str, sources: dict[str, str], at: str = "") -> None:
    """Lay one mapping over another, noting for every path where its value came from."""
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
    """Turn the first of pydantic's findings into one sentence."""
    found = error.errors()[0]
    path = ".".join(str(part) for part in found["loc"])
    source = next((sources[p] for p in _self_and_parents(path) if p in sources), "the settings")
    value = found.get("input")
    if found["type"] == "extra_forbidden":
        return f"{source}: there is no setting '{path}'.{_nearest_setting(path)}"
    if found["type"] == "value_error":
        return f"{found['msg'].removeprefix('Value error, ')} ({_sources_of(found['msg'], sources) or source})."
    wanted = _WANTED.get(found["type"], found["msg"])
    wanted = wanted.format(**found.get("ctx", {}))
    hint = ""
    if found["type"] == "literal_error" and isinstance(value, str):
        hint = nearest(value, re.findall(r"'([^']+)'", found["ctx"]["expected"]))
    shown = "a group of settings" if isinstance(value, dict) else f"{value!r}"
    if isinstance(value, bool):
        shown = str(value).lower()  # as YAML spells it
    return f"{source}: {path} is {shown}, but must be {wanted}.{hint}"


_WANTED = {
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


def _nearest_setting(path: str) -> str:
    """Return the hint for a mistyped path: the nearest whole path, or a path with the same last name."""
    last = path.rsplit(".", 1)[-1]
    same = [known for known in known_paths() if known.rsplit(".", 1)[-1] == last]
    return f" Did you mean '{same[0]}'?" if same else nearest(path, [*known_paths(), *Settings.model_fields])


def _sources_of(message: str, sources: Mapping[str, str]) -> str:
    """Return where the settings that a message names came from."""
    named = dict.fromkeys(sources[path] for path in re.findall(r"[a-z_]+\.[a-z_]+", message) if path in sources)
    return ", ".join(named)


def _self_and_parents(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:length]) for length in range(len(parts), 0, -1))


def leaves(data: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) for everything in nested mappings that is no mapping itself, but for empty ones."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def _type_name(kind: Any) -> str:
    """Return a setting's type in a reader's words."""
    if typing.get_origin(kind) is typing.Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " | ".join(_names(typing.get_args(kind)))
    if typing.get_origin(kind) is dict:
        return "mapping"
    if typing.get_origin(kind) is tuple:
        return "list"
    return {"int": "whole number", "float": "number", "str": "text", "bool": "true | false"}.get(
        kind.__name__, str(kind)
    )


def _names(kinds: Iterable[Any]) -> list[str]:
    return [_type_name(kind) for kind in kinds]
