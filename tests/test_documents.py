"""Documents name files and functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
