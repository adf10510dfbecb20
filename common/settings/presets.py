"""Reads presets: built-in ones by name, and YAML files, which may build on others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dreamfleet.common.errors import UserError, nearest, shown

MOST_BYTES = 1 << 20
"""A YAML file that is larger is none of settings; parsing takes a hundred times its size."""
_MOST_VALUES = 100_000
_DEEPEST = 50
_MOST_BRACKETS = 1000
PRESET_FOLDER = Path(__file__).resolve().parent / "presets"


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML silently takes the last of two equal keys; here the second is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; refuse a duplicate key."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a name is no plain value", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is there twice", key_node.start_mark)
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


def read_yaml(path: Path, source: str) -> dict[str, Any]:
    """Return a YAML file's mapping; `source` names the file in errors.

    Raises:
        UserError: if it cannot be read, is no YAML, has a key twice or is no mapping.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{source}: is larger than {MOST_BYTES} bytes: it is no file of settings.")
        data = _load(path.read_text())
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise UserError(f"{source}{line}: not valid YAML: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(data, dict | None):
        raise UserError(f"{source}: holds a {type(data).__name__}, not settings as 'name: value'.")
    return data or {}


def parse_value(text: str, source: str) -> Any:
    """Return the value that a flag's text has as YAML; UserError if it is no YAML."""
    try:
        return _load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: {shown(text)} is not a valid value: {getattr(error, 'problem', error)}.") from None


def _load(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: if it is none, holds a value that its type does not allow, such as a 99th of May, or is so
            deep or so large, values that are repeated by name counted each time, that no setting can be meant.
    """
    if text.count("[") + text.count("{") > _MOST_BRACKETS:  # PyYAML's time grows with the square of those that are open
        raise yaml.YAMLError(f"it has more than {_MOST_BRACKETS} brackets")
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise yaml.YAMLError(f"it is deeper than {_DEEPEST} levels") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise yaml.YAMLError(f"a value in it is not of its type: {error}") from None
    _check_size(data)
    return data


def _check_size(data: Any) -> None:
    """Refuse what would take for ever to go through: a text of some lines can name itself, or a billion values."""
    count, left = 0, [(data, 0)]
    while left:
        value, depth = left.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise yaml.YAMLError(f"it is deeper than {_DEEPEST} levels or has more than {_MOST_VALUES} values")
        if isinstance(value, dict):
            left += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list | tuple | set):
            left += [(inner, depth + 1) for inner in value]


def find_preset(preset: str, where: str, folder: Path = Path()) -> tuple[Path, str]:
    """Return a preset's file, by name or by a path relative to `folder`, and how to name it in an error.

    Raises:
        UserError: if there is none, saying `where` it was named.
    """
    if preset in preset_names():
        return PRESET_FOLDER / f"{preset}.yaml", f"preset '{preset}'"
    path = folder / preset
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path, f"file {path}"
    hint = nearest(preset, preset_names()) or f" Built in are: {', '.join(preset_names())}."
    raise UserError(f"{where}: '{preset}' is neither a built-in preset nor a YAML file that exists.{hint}")


def read_layers(
    path: Path, source: str, below: set[str], above: tuple[Path, ...] = ()
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield a file's layers of settings, the lowest first, each with its name.

    They are those of the presets that its key `presets` names, its own settings, and what its key `over` has for
    presets that are below it.

    Args:
        source: its name in errors.
        below: names of the built-in presets below; those yielded are added.
        above: the files that build on this one.
    """
    if path.resolve() in above:
        raise UserError(f"{source}: builds on itself: its 'presets' lead back to it.")
    layer = read_yaml(path, source)
    names = layer.pop("presets", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: presets is {shown(names)}, but must be a list of names such as [small].")
    for name in names:
        found = find_preset(name, f"{source}: presets", path.parent)
        yield from read_layers(*found, below, (*above, path.resolve()))
    over = _checked_over(layer.pop("over", {}), source)
    yield layer, source
    for name in [name for name in over if name in below]:
        yield over[name], f"{source} over {name}"
    if path.parent == PRESET_FOLDER:
        below.add(path.stem)


def _checked_over(over: Any, source: str) -> dict[str, dict[str, Any]]:
    """Return the settings that a file has for certain presets below it, by the preset's name."""
    if not isinstance(over, dict) or not all(isinstance(settings, dict) for settings in over.values()):
        raise UserError(
            f"{source}: over is {shown(over)}, but must have settings for presets: {{planet: {{seed: 1}}}}."
        )
    unknown = [str(name) for name in over if name not in preset_names()]
    if unknown:
        raise UserError(
            f"{source}: over: there is no built-in preset '{unknown[0]}'.{nearest(unknown[0], preset_names())}"
        )
    return over
