"""Documents name files, functions, commands, flags and settings that exist."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dreamfleet
from dreamfleet.common.settings.presets import preset_names
from dreamfleet.common.settings.resolve import known_paths
from dreamfleet.deploy.parser import make_parser

ROOT = Path(__file__).resolve().parents[1]
HISTORY = "decisions.md"
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != HISTORY)]
SECTIONS = "|".join(sorted({path.split(".")[0] for path in known_paths() if "." in path}))
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", (ROOT / "docs" / "one-update.md").read_text())))


def names_of(file: Path) -> set[str]:
    """Return the classes, functions and methods that a file defines, methods as Class.method."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_the_page_of_one_update_names_every_folder() -> None:
    """It passes through all of them."""
    assert {file.split("/")[0] for file, _ in NAMED} == {"common", "replay", "actors", "learner", "deploy"}
    assert len(NAMED) > 25


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_the_page_of_one_update_names_is_there(file: str, name: str) -> None:
    """Each function is in the file that it is said to be in."""
    assert name in names_of(ROOT / file)


def code_of(page: Path) -> Iterator[str]:
    """Yield the lines of code blocks, and what stands in backticks."""
    fences = re.split(r"^```.*$", page.read_text(), flags=re.MULTILINE)
    for block in fences[1::2]:
        yield from block.replace("\\\n", " ").splitlines()
    for text in fences[::2]:
        yield from re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE)
        yield from (code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", text))


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the commands of the command line, those of `replay` included."""
    found: dict[str, argparse.ArgumentParser] = {}
    parsers = [make_parser()]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= action.choices
                parsers += action.choices.values()
    return found


def is_setting(path: str) -> bool:
    """Return whether a setting of this path can be given; those of an environment's arguments are the user's."""
    return path in known_paths() or path.startswith("env.kwargs.")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """Sources by their path from the root, and everything else in our folders."""
    folders = "actors|common|deploy|docs|learner|replay|tests"
    code = "\n".join(code_of(page))
    named = re.findall(rf"(?<![\w/.~-])((?:[\w.-]+/)+[\w.-]+\.py|(?:{folders})/[\w./-]+)", code)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_that_a_page_names_exist(page: Path) -> None:
    """Flags of the command line, of settings, and of the benchmark."""
    known = {flag for parser in commands().values() for flag in parser._option_string_actions}
    bench = "".join(
        (ROOT / "tests" / "bench" / name).read_text() for name in ("__main__.py", "gpu/__main__.py", "carry.py")
    )
    for code in code_of(page):
        flags = re.findall(r"(?<![\w-])--([a-z][\w.-]*)", code)
        ours = code if code.startswith("--") else "".join(re.findall(r"(?<![\w/~.-])dreamfleet [a-z].*", code))
        if "tests.bench" in code:
            assert [flag for flag in flags if f'"--{flag}"' not in bench] == [], code
        elif ours and "import dreamfleet" not in code:
            assert [flag for flag in flags if f"--{flag}" not in known and not is_setting(flag)] == [], code
            assert set(re.findall(r"dreamfleet ([a-z]+)", ours)) <= set(commands()), code
            presets = re.findall(r"--preset ([a-z0-9_.]+)", ours)
            assert [name for name in presets if name not in preset_names() and not name.endswith(".yaml")] == [], code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_and_functions_that_a_page_names_exist(page: Path) -> None:
    """A setting is written with its section; a function of the library after `df`."""
    for code in code_of(page):
        named = re.findall(rf"(?<![\w/.-])((?:{SECTIONS})\.[a-z][\w.]*)(?![\w.]*\()", code)
        assert [path for path in named if not is_setting(path) and path != "train.log"] == [], code
        assert set(re.findall(r"\bdf\.(\w+)", code)) <= set(dreamfleet.__all__), code


def test_names_are_found_in_the_pages() -> None:
    """The tests above have something to compare."""
    code = "\n".join(line for page in PAGES for line in code_of(page))
    assert len(set(re.findall(r"--[a-z][\w.-]*", code))) > 60
    assert len(set(re.findall(rf"(?:{SECTIONS})\.[a-z][\w.]*", code))) > 50
    assert len(set(re.findall(r"[\w/]+\.py", code))) > 30
