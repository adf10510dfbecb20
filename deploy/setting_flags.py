"""Settings as flags: their help, and what was given of them."""

from __future__ import annotations

import inspect
import shutil
import textwrap

from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.settings.presets import preset_names
from dreamfleet.common.settings.resolve import describe_settings, known_paths
from dreamfleet.common.settings.schema import Settings


def settings_help() -> str:
    """Return all settings, their types, defaults and meanings, as text."""
    width = min(shutil.get_terminal_size((100, 20)).columns, 120)
    lines = ["settings (as '--path value'; presets set several at once, see `dreamfleet presets`):", ""]
    section = ""
    for path, kind, default, meaning in describe_settings():
        head = path.split(".", 1)[0] if "." in path else ""
        if head != section:
            lines += ["", f"{head}: {inspect.getdoc(Settings.model_fields[head].annotation)}", ""]
            section = head
        lines.append(f"  --{path}  [{kind}; default: {default}]")
        lines += textwrap.wrap(meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def read_settings(rest: list[str], takes_settings: bool, long_flags: list[str]) -> list[tuple[str, str]]:
    """Return (path, text) for what argparse did not know: `--path value` or `--path=value`.

    Raises:
        UserError: for a flag that does not exist, one without a value, or a word that is no flag.
    """
    known = [*long_flags, *(known_paths() if takes_settings else [])]
    sections = {name.split(".", 1)[0] for name in known}
    flags, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            is_preset = word in preset_names()
            how = f"the preset is given as '--preset {word}'" if is_preset else "settings are given as '--path value'"
            raise UserError(f"'{word}' is not understood: {how}.")
        path, equals, text = word.removeprefix("--").partition("=")
        if not takes_settings or path.split(".", 1)[0] not in sections:
            hint = nearest(path, known).replace("'", "'--", 1)
            raise UserError(f"there is no flag --{path}.{hint}")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"flag --{path}: a value is missing: '--{path} VALUE'.")
            text = words.pop(0)
        flags.append((path, text))
    return flags
