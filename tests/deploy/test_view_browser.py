"""The page in a real browser: Chromium, driven by Playwright."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dreamer_run import train_small_dreamer
from viewed_pages import CHROMIUM, LATENCY, Pages, browsing, make_run, opened, served, wait_until

pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

ROOT = Path(__file__).parents[2]
PICTURE = ("--env.kwargs", "{length: 20, picture: true, image: 16}", "--env.image_size", "0")
PIXELS = """(role) => { const c = document.querySelector(`#dream [data-role=${role}] canvas`);
  return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).join(); }"""
CONTRAST = """() => { const parsed = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [0.2126 * linear(r / 255), 0.7152 * linear(g / 255), 0.0722 * linear(b / 255)]
    .reduce((sum, part) => sum + part);
  const behind = (e) => { for (; e; e = e.parentElement) { const b = parsed(getComputedStyle(e).backgroundColor);
    if (b.length === 3 || b[3] > 0) return b; } return [255, 255, 255]; };
  const ratio = (e) => { const [low, high] = [light(parsed(getComputedStyle(e).color)), light(behind(e))]
    .sort((a, b) => a - b); return (high + 0.05) / (low + 0.05); };
  return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.disabled &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
    .map((e) => [e.textContent.slice(0, 40), ratio(e)]).filter(([, found]) => found < 4.5); }"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return where a run on pictures is served."""
    pages = Pages()
    yield pages.serve(make_run(tmp_path_factory.mktemp("browsed") / "run"))[0]
    pages.close()


@pytest.fixture(scope="module")
def printed_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address that `dreamfleet view` prints for a run that was just trained."""
    folder = tmp_path_factory.mktemp("printed")
    train_small_dreamer(folder, *PICTURE, "--train.env_steps", "120")
    with served(folder / "run") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return Chromium."""
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """Return the page with the dream's first moment; at the end its console must hold no error."""
    with opened(browser, address) as page:
        page.wait_for_selector("#dream[data-drawn='0']")
        yield page


def press(page: Any, key: str, index: int) -> None:
    """Press a key, and wait until that moment is drawn."""
    page.keyboard.press(key)
    page.wait_for_selector(f"#dream[data-drawn='{index}']")


def test_a_dream_is_steered_rewound_and_branched_beside_the_truth(page: Any) -> None:
    first, truth = page.evaluate(PIXELS, "dream"), page.evaluate(PIXELS, "truth")
    for index in (1, 2, 3):
        press(page, "ArrowRight", index)
    third = page.evaluate(PIXELS, "dream")
    assert third != first
    assert page.evaluate(PIXELS, "truth") != truth
    page.get_by_role("button", name="Back").click()
    page.wait_for_selector("#dream[data-drawn='2']")
    press(page, "ArrowLeft", 3)
    assert page.locator("#dream .timeline output").text_content() == "3 of 3"
    page.get_by_label("futures").select_option("9")
    press(page, "ArrowLeft", 4)
    assert page.locator("#dream [data-role=dream] canvas").count() == 9
    assert page.locator("#dream [data-role=variance]").is_visible()


def test_a_take_is_saved_and_opened_again(page: Any, tmp_path: Path) -> None:
    page.get_by_label("pictures").select_option("png")
    press(page, "ArrowRight", 1)
    press(page, "ArrowLeft", 2)
    seen = page.evaluate(PIXELS, "dream")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save take").click()
    file = tmp_path / "take.json"
    download.value.save_as(file)
    assert len(json.loads(file.read_text())["steps"]) == 2
    press(page, "ArrowLeft", 3)
    page.set_input_files("#dream input[type=file]", file)
    page.wait_for_selector("#dream[data-drawn='2']")
    assert page.evaluate(PIXELS, "dream") == seen
    page.get_by_role("button", name="Record WebM").click()
    page.wait_for_timeout(300)
    with page.expect_download() as film:
        page.get_by_role("button", name="Stop and save WebM").click()
    film.value.save_as(tmp_path / "dream.webm")
    assert (tmp_path / "dream.webm").read_bytes()[:4] == b"\x1a\x45\xdf\xa3"  # how a Matroska file begins


def test_episodes_agent_and_run_are_shown(page: Any) -> None:
    page.get_by_role("link", name="Episodes").click()
    page.locator("#episodes tbody button").first.click()
    wait_until(page, "document.querySelectorAll('#episodes img').length >= 3")
    wait_until(page, "[...document.querySelectorAll('#episodes img')].every((i) => i.naturalWidth > 0)")
    page.get_by_role("button", name="Dream from here").click()
    wait_until(page, "document.querySelector('#dream .bar .faint').textContent.startsWith('episode')")
    page.get_by_role("link", name="Agent").click()
    page.wait_for_selector("#agent[data-index='0']")
    page.locator("#agent").get_by_role("button", name="Step").click()
    page.wait_for_selector("#agent[data-index='1']")
    page.get_by_role("button", name="Take over").click()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#agent[data-index='2']")
    page.get_by_role("link", name="Run").click()
    wait_until(page, "document.querySelector('#run pre').textContent.length > 10")
    assert page.locator("#run tr.differs").count() > 0


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_trained_run_fits_any_window_and_can_be_read(
    browser: Any, printed_address: str, width: int, scheme: str, tmp_path: Path
) -> None:
    """Nothing is wider than the window, and every text stands out from what is behind it as WCAG's level AA asks."""
    folder = Path(os.environ.get("VIEW_SCREENSHOTS", tmp_path))
    size = {"width": width, "height": 900}
    with opened(browser, printed_address, viewport=size, color_scheme=scheme) as page:
        page.wait_for_selector("#dream[data-drawn='0']")
        for view in ("Dream", "Episodes", "Agent", "Run"):
            page.get_by_role("link", name=view).click()
            if view == "Dream":
                page.get_by_label("futures").select_option("4")
                for index in (1, 2, 3):
                    press(page, "ArrowRight", index)
            if view == "Episodes":
                page.locator("#episodes tbody button").nth(2).click()
            if view == "Agent":
                page.wait_for_selector("#agent[data-index]")
            page.wait_for_timeout(500)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(CONTRAST) == []
            page.screenshot(path=folder / f"{view.lower()}-{width}-{scheme}.png", full_page=True)


def test_from_a_key_to_the_picture(page: Any) -> None:
    latency_ms = page.evaluate(LATENCY)
    print(f"from a key to the picture: {latency_ms:.1f} ms in the middle of 20")
    assert latency_ms < 2000  # a machine may be busy; the figure that is promised is measured on an idle one
