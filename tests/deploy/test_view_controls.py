"""What acts on the page, and the page without a mouse: keys, gamepad, sliders, selectors, a dataset, its buttons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from viewed_pages import CHROMIUM, Pages, browsing, make_dataset, make_run, opened, save_checkpoint, wait_until

pytest.importorskip("playwright.sync_api", reason="Playwright drives the browser: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

PAD = """window.pad = {axes: [0, 0, 0, 0], buttons: Array.from({length: 16}, () => ({pressed: false}))};
navigator.getGamepads = () => [window.pad];"""
PLUGGED = "() => { window.dispatchEvent(new Event('gamepadconnected')); }"
ACTION = "document.querySelector('#dream .numbers dd').textContent"
FOCUS = """() => { const e = document.activeElement, s = getComputedStyle(e);
  const name = e.getAttribute('aria-label') || e.closest('label')?.firstChild.textContent || e.textContent;
  return [e.tagName, name.trim(), s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0]; }"""
CHARTS = """(place) => [...document.querySelectorAll(`${place} canvas.chart`)].map((c) => { const d =
  c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return d.some((v, k) => k % 4 === 3 && v > 0); })"""


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    """Return what serves runs."""
    pages = Pages()
    yield pages
    pages.close()


@pytest.fixture(scope="module")
def browser(pages: Pages) -> Iterator[Any]:
    """Return Chromium."""
    del pages  # ends after it
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(pages: Pages, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return where a run with four choices, pictures and a vector is."""
    return pages.serve(make_run(tmp_path_factory.mktemp("choices") / "run"))[0]


@pytest.fixture(scope="module")
def dataset(pages: Pages, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return where a dataset is, which has no model."""
    return pages.serve(make_dataset(tmp_path_factory.mktemp("data") / "data"))[0]


def drawn(page: Any, index: int) -> str:
    """Wait until a moment is drawn with its figures, and return the action that led there."""
    page.wait_for_selector(f"#dream[data-drawn='{index}']")
    wait_until(page, "document.querySelector('#dream .numbers dd') !== null")
    page.evaluate("() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
    return str(page.evaluate(ACTION))


def step(page: Any, index: int) -> str:
    """Press Step, and return the action of the moment that it leads to."""
    page.locator("#dream").get_by_role("button", name="Step", exact=True).click()
    return drawn(page, index)


def set_slider(slider: Any, value: float) -> None:
    """Drag a slider to a value."""
    slider.evaluate("(e, value) => { e.value = value; e.dispatchEvent(new Event('input', {bubbles: true})); }", value)


def test_a_gamepad_steps_and_can_be_mapped(browser: Any, address: str) -> None:
    """Cross and stick are arrows, a button is the choice of its number, or of the one that it is given."""
    with opened(browser, address, PAD) as page:
        drawn(page, 0)
        page.evaluate(PLUGGED)
        for index, (press, release, action) in enumerate(
            [
                ("pad.buttons[15].pressed = true", "pad.buttons[15].pressed = false", "2"),
                ("pad.axes[0] = -0.9", "pad.axes[0] = 0", "0"),
                ("pad.buttons[3].pressed = true", "pad.buttons[3].pressed = false", "3"),
            ],
            1,
        ):
            page.evaluate(press)
            assert drawn(page, index) == action
            page.evaluate(release)
            page.wait_for_timeout(100)
        page.locator("#dream").get_by_role("button", name="←: 0", exact=True).click()
        page.evaluate("pad.buttons[7].pressed = true")
        page.get_by_role("button", name="Pad7: 0").wait_for()
        page.evaluate("pad.buttons[7].pressed = false")
        page.wait_for_timeout(100)
        page.evaluate("pad.buttons[7].pressed = true")
        assert drawn(page, 4) == "0"


def test_keys_are_mapped_anew_and_remembered(browser: Any, address: str) -> None:
    """A key that had another meaning is exchanged; Escape leaves all; the Agent's are the same; all can be undone."""
    with opened(browser, address) as page:
        drawn(page, 0)
        own = page.locator("#dream")
        own.get_by_role("button", name="↑: 3").click()
        page.keyboard.press("Escape")
        own.get_by_role("button", name="↑: 3").click()
        page.keyboard.press("q")
        page.keyboard.press("q")
        assert drawn(page, 1) == "3"
        own.get_by_role("button", name="→: 2").click()
        page.keyboard.press("ArrowLeft")
        assert own.get_by_role("button", name="→: 0").is_visible()
        page.keyboard.press("ArrowLeft")
        assert drawn(page, 2) == "2"
        assert page.locator("#agent").get_by_role("button", name="q: 3", include_hidden=True).count() == 1
        page.reload()
        drawn(page, 0)
        page.keyboard.press("q")
        assert drawn(page, 1) == "3"
        own.get_by_role("button", name="as at first").click()
        assert own.get_by_role("button", name="↑: 3").is_visible()


def test_box_actions_come_from_sliders_arrows_and_sticks(browser: Any, pages: Pages, tmp_path: Path) -> None:
    """Three reals between their own bounds; an arrow held goes to the bound; a stick is followed where it stands."""
    with opened(browser, pages.serve(make_run(tmp_path / "run", actions="box"))[0], PAD) as page:
        assert drawn(page, 0) == "–"
        sliders = page.locator("#dream details").locator("xpath=preceding-sibling::*[1]").locator("input[type=range]")
        assert sliders.count() == 3
        set_slider(sliders.nth(2), 0.25)
        set_slider(sliders.nth(0), -0.5)
        assert step(page, 1) == "-0.500, 0, 0.250"
        page.keyboard.press("ArrowDown")
        assert drawn(page, 2) == "-0.500, -2, 0.250"
        page.evaluate("pad.axes[0] = 0.5")
        assert step(page, 3) == "0.500, 0, 0.250"
        with page.expect_download() as download:
            page.get_by_role("button", name="Save take").click()
        saved = json.loads(Path(download.value.path()).read_text())["steps"]
        assert [action["action"] for action in saved] == [[-0.5, 0.0, 0.25], [-0.5, -2.0, 0.25], [0.5, 0.0, 0.25]]


def test_several_choices_have_a_selector_each_and_vectors_are_lines(browser: Any, pages: Pages, tmp_path: Path) -> None:
    """Without any picture: the page dreams numbers, and an opened take fills all its lines."""
    run = make_run(tmp_path / "run", actions="multi", shows="place")
    with opened(browser, pages.serve(run)[0]) as page:
        drawn(page, 0)
        page.locator("#dream").get_by_label("choice 0").select_option("2")
        page.locator("#dream").get_by_label("choice 1").select_option("3")
        assert step(page, 1) == "2, 3"
        assert step(page, 2) == "2, 3"
        assert page.locator("#dream canvas[aria-label^=place]").count() == 2
        assert page.locator("#dream figure:visible").count() == 0
        with page.expect_download() as download:
            page.get_by_role("button", name="Save take").click()
        page.reload()
        drawn(page, 0)
        page.set_input_files("#dream input[type=file]", download.value.path())
        drawn(page, 2)
        assert all(page.evaluate(CHARTS, "#dream"))
        values = page.evaluate("() => window.seen = document.querySelector('#dream .numbers').textContent")
        assert "true reward" in values
        page.get_by_role("link", name="Episodes").click()
        page.locator("#episodes tbody button").first.click()
        wait_until(page, "document.querySelectorAll('#episodes canvas[aria-label^=\"place \"]').length === 2")


def test_a_dataset_has_its_episodes_alone(browser: Any, dataset: str) -> None:
    """No dream, no agent, no button of what is not there."""
    with opened(browser, dataset) as page:
        page.locator("#episodes tbody button").first.click()
        wait_until(page, "[...document.querySelectorAll('#episodes img')].some((i) => i.naturalWidth > 0)")
        assert page.locator("nav a:visible").all_text_contents() == ["Episodes", "Run"]
        assert page.locator("#episodes figure:visible").count() == 2
        assert page.get_by_role("button", name="Dream from here").count() == 0
        page.get_by_role("link", name="Run").click()
        wait_until(page, "document.querySelector('#run pre').textContent.length > 10")
        assert page.get_by_role("button", name="Open TensorBoard").count() == 0


def test_a_newer_checkpoint_is_offered_and_tensorboard_opened(
    browser: Any, pages: Pages, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A click loads it, and the next dream is its; a click opens what TensorBoard's start says, in a tab of its own."""
    run = make_run(tmp_path / "run")
    address, server = pages.serve(run)
    monkeypatch.setattr(server.tensorboard, "start", lambda: dataset)
    with opened(browser, address) as page:
        drawn(page, 0)
        save_checkpoint(run, 7)
        page.reload()
        drawn(page, 0)
        assert "update 0" in page.locator("#checkpoint").text_content()
        page.get_by_role("button", name="load newer: 7").click()
        wait_until(page, "document.getElementById('checkpoint').textContent.startsWith('update 7')")
        assert page.locator("#checkpoint button").count() == 0
        page.get_by_role("button", name="From a reset").click()
        wait_until(page, "document.getElementById('message').textContent === ''")
        with page.expect_download() as download:
            page.get_by_role("button", name="Save take").click()
        assert json.loads(Path(download.value.path()).read_text())["updates"] == 7
        page.get_by_role("link", name="Run").click()
        with page.expect_popup() as popup:
            page.get_by_role("button", name="Open TensorBoard").click()
        popup.value.wait_for_url("**/")
        assert popup.value.evaluate("window.opener") is None
        assert page.get_by_role("link", name="127.0.0.1").get_attribute("href") == dataset


def test_all_can_be_done_without_a_mouse(browser: Any, address: str) -> None:
    """Tab reaches every control in its order and shows where it is; Enter and arrows do the rest."""
    with opened(browser, address) as page:
        drawn(page, 0)
        for view, words in (
            ("Dream", ["From a reset", "seed", "Save take", "Open take", "Run", "Step", "speed", "actions", "futures"]),
            ("Episodes", ["min return", "held out", "episode", "length"]),
            ("Agent", ["Run", "Step", "speed", "Take over", "Start anew", "seed"]),
            ("Run", ["Open TensorBoard", "Refresh", "settings"]),
        ):
            focused, seen = tabbed(page, view)
            page.keyboard.press("Enter")
            page.wait_for_selector(f"#{view.lower()}:visible")
            page.wait_for_timeout(300)
            for _ in range(100):
                page.keyboard.press("Tab")
                tag, name, is_marked = page.evaluate(FOCUS)
                if tag == "BODY":
                    break
                seen.append(name)
                assert is_marked, (view, tag, name)
            assert focused
            places = [seen.index(word) for word in words]
            assert places == sorted(places), seen
            wanted = page.locator(f"#{view.lower()}").locator("button:visible, select:visible, input:visible").count()
            assert len(seen) >= wanted, (view, seen)
        tabbed(page, "Episodes")
        page.keyboard.press("Enter")
        page.wait_for_timeout(300)
        first = page.locator("#episodes tbody button").first
        first.focus()
        page.keyboard.press("Enter")
        step_slider = page.get_by_label("step", exact=True)
        step_slider.wait_for()
        step_slider.focus()
        page.keyboard.press("ArrowRight")
        wait_until(page, "document.querySelector('#episodes .timeline output').textContent.startsWith('1 of')")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        wait_until(page, "document.querySelector('#dream .bar .faint').textContent.includes('step 1')")


def tabbed(page: Any, view: str) -> tuple[bool, list[str]]:
    """Go by Tab from the page's beginning to the link of a view."""
    page.evaluate(
        "() => { document.activeElement.blur(); document.querySelector('h1').tabIndex = -1;"
        " document.querySelector('h1').focus(); }"
    )
    for _ in range(4):
        page.keyboard.press("Tab")
        if page.evaluate(FOCUS)[1] == view:
            return True, []
    return False, []
