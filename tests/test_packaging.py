"""What is given away: the metadata, an archive's files, the README on a package index, and what `make` installs."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SDIST = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]
INDEX_README = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
PAGES = ["README.md", "CHANGELOG.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]


def relative_links(text: str) -> Iterator[str]:
    """Give the targets of links and pictures that are no addresses, without their fragments."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:|#", target):
            yield target.split("#")[0]


def in_the_archive(path: Path) -> bool:
    """Return whether a file or folder of the checkout is in the source distribution."""
    return f"/{path.relative_to(ROOT).parts[0]}" in SDIST["include"]


def on_an_index(readme: str) -> str:
    """Return what a package index shows of the README."""
    for change in INDEX_README["substitutions"]:
        readme = re.sub(change["pattern"], change["replacement"], readme)
    return readme


@pytest.mark.parametrize("page", PAGES)
def test_links_hold_in_a_checkout_and_in_an_archive(page: str) -> None:
    """Every file that a page links to is there, and goes along."""
    for link in relative_links((ROOT / page).read_text()):
        target = ((ROOT / page).parent / link).resolve()
        assert target.exists(), link
        assert in_the_archive(target), link


def test_files_that_the_readme_names_go_along() -> None:
    """Commands and tables name files too."""
    named = set(re.findall(r"(?<![\w/])(?:\w[\w.-]*/)+[\w*.-]*", (ROOT / "README.md").read_text()))
    found = {name: list(ROOT.glob(name)) for name in named if name.split("/")[0] in ("docs", "deploy", "tests")}
    assert len(found) > 5
    assert [name for name, paths in found.items() if not paths] == []
    assert all(in_the_archive(path) for paths in found.values() for path in paths)


def test_an_archive_holds_what_make_needs() -> None:
    """And no copies of the package's folders in the place of its links, which a build makes again."""
    for name in ("Makefile", "constraints.txt", "README.md", "CHANGELOG.md", ".ci/run", "docs", "tests", ".pkg"):
        assert in_the_archive(ROOT / name), name
    package = ROOT / ".pkg" / "dreamfleet"
    links = sorted(path.name for path in package.iterdir() if path.is_symlink())
    assert all(in_the_archive(ROOT / name) for name in links)
    assert SDIST["exclude"] == ["/.pkg/dreamfleet/*/"]
    made = re.search(r"FOLDERS = \((.*)\)", (ROOT / ".pkg" / "make_links.py").read_text())
    assert made
    assert re.findall(r'"(\w+)"', made[1]) == links


def test_an_index_shows_no_link_that_leads_nowhere() -> None:
    """A relative link becomes text that names the file; the whole of it is still there."""
    shown = on_an_index((ROOT / "README.md").read_text())
    assert list(relative_links(shown)) == []
    assert re.search(r"\w, `docs/results/quickstart-dream.png`", shown), "a picture becomes its words and its file"
    assert "`docs/presets.md`" in shown
    assert "[Ray](https://www.ray.io)" in shown


def test_where_files_are_public_one_setting_makes_links_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an address in the first substitution, every link and picture leads there."""
    monkeypatch.setitem(INDEX_README["substitutions"][0], "replacement", "](https://host.example/raw/")
    readme = (ROOT / "README.md").read_text()
    shown = on_an_index(readme)
    assert shown.count("](https://host.example/raw/") == len(list(relative_links(readme))) > 5
    assert re.search(r"!\[.*\]\(https://host.example/raw/docs/results/quickstart-dream.png\)", shown)


def test_the_metadata_says_what_it_is() -> None:
    """Authors, keywords and classifiers are there, and the oldest Python that is promised is among them."""
    project = PROJECT["project"]
    assert project["authors"]
    assert project["keywords"]
    oldest = project["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {oldest}" in project["classifiers"]
    build = [re.split(r"[>=]", name)[0] for name in PROJECT["build-system"]["requires"]]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert set(build) <= pinned, "what builds the package is pinned as all else is"


def test_minari_can_download() -> None:
    """`replay import` takes ids, which Minari fetches with huggingface_hub: the extra brings it, pinned."""
    assert "minari[hdf5,hf]" in PROJECT["project"]["optional-dependencies"]["minari"][0]
    assert re.search(r"^huggingface_hub==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize("target", ["train", "test", "bench"])
def test_make_hands_pip_its_arguments(target: str) -> None:
    """Each `pip install` gets PIP_ARGS, so that a machine without a GPU need not fetch CUDA."""
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"
    command = ["make", "--dry-run", "--always-make", target, f"PIP_ARGS={index}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S603
    installs = [line for line in said.splitlines() if "pip" in line and " install " in line]
    assert installs
    assert all(index in line for line in installs)
