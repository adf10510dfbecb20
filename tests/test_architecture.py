"""The architecture: which package may import which, as the README draws it, and no circle of files."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("common", "replay", "actors", "learner", "deploy")
LONGEST_FILE = 300
LONGEST_FUNCTION = 60


def module_of(file: Path) -> str:
    """Return a file's module without `dreamfleet.`: learner/updater.py is learner.updater, a package its name."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(file): file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))}


def imports_of(file: Path) -> set[str]:
    """Return our modules that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dreamfleet":
            base = (node.module or "").removeprefix("dreamfleet").lstrip(".")
            for name in node.names:
                module = f"{base}.{name.name}".lstrip(".")
                found.add(module if module in FILES else base)
    return found - {""}


IMPORTS = {module: imports_of(file) for module, file in FILES.items()}


def read_layers() -> list[list[str]]:
    """Return the packages of each line of the README's picture, the top line first: `deploy | run` is deploy.run."""
    text = (ROOT / "README.md").read_text()
    picture = re.search(r"```layers\n(.*?)```", text, re.DOTALL)
    assert picture, "the README has no picture of the layers"
    layers, folder = [], ""
    for line in picture[1].splitlines():
        name, _, rest = line.partition("|")
        folder = name.strip() or folder
        names = rest.split("·")[0].split()
        layers.append([folder if name == "." else f"{folder}.{name}" for name in names])
    return layers


LAYERS = read_layers()
LEVELS = {package: -number for number, layer in enumerate(LAYERS) for package in layer}


def package_of(module: str) -> str:
    """Return the package, or single file, of the picture that a module belongs to."""
    parts = module.split(".")
    names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((name for name in names if name in LEVELS), "")


def test_every_file_lies_in_a_room_of_the_picture() -> None:
    """No file of ours is outside the packages that the README draws, and it draws none that is not there."""
    own = [path.name for path in ROOT.iterdir() if path.suffix == ".py"]
    assert own == []
    homeless = [module for module in FILES if not package_of(module) and module not in FOLDERS]
    assert homeless == []
    assert {package_of(module) for module in FILES} - {""} == set(LEVELS)


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down_the_picture(module: str) -> None:
    """A file imports only its own package and those on lower lines."""
    own = package_of(module)
    wrong = {
        imported
        for imported in IMPORTS[module]
        if imported in FILES and package_of(imported) != own and LEVELS[package_of(imported)] >= LEVELS[own]
    }
    assert wrong == set(), f"{module} is on the line of {own}, and imports {wrong}"


def test_actors_and_learner_do_not_know_each_other() -> None:
    """They meet only in the replay and in the weights."""
    for module, imported in IMPORTS.items():
        other = {"actors": "learner", "learner": "actors"}.get(module.split(".")[0])
        assert not any(name.split(".")[0] == other for name in imported), module


def test_there_is_no_circle_of_files() -> None:
    """Every file can be read after those that it imports."""
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_environments_and_ray_stay_where_they_belong() -> None:
    """`common` and the learning code know no Gymnasium; Ray is imported at the top of its thin shells alone."""
    shells = re.compile(
        r"actors\.(actor|inference_process|inference_client)|common\.acting\.ray_weights|replay\.ray_replay|learner\.process|deploy\.(workers|doctor|monitoring|plan)\.\w+"
    )
    for module, file in FILES.items():
        top = {
            name.split(".")[0]
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        if module.split(".")[0] in ("common", "replay", "learner"):
            assert "gymnasium" not in top, module
        assert "ray" not in top or shells.fullmatch(module), f"{module} imports Ray"


@pytest.mark.parametrize("module", FILES)
def test_files_and_functions_are_of_a_size_to_read(module: str) -> None:
    """A file has at most 300 lines, a function 60."""
    text = FILES[module].read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, node.name
