"""Runs with their first weights, and pages of them in a browser, made within seconds."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from aiohttp import web

import dreamfleet as df
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import STATE_NAME
from dreamfleet.deploy.view.access import Access
from dreamfleet.deploy.view.server import Server
from dreamfleet.deploy.view.viewed_run import view_of
from dreamfleet.learner.behaviour.networks import make_networks
from dreamfleet.learner.checkpoints.store import CheckpointStore

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

LATENCY = """async () => { const place = document.getElementById('dream'); const times = [];
  for (let k = 0; k < 20; k++) { const next = String(Number(place.dataset.index) + 1); const begun = performance.now();
    document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
    document.dispatchEvent(new KeyboardEvent('keyup', {key: 'ArrowRight', bubbles: true}));
    await new Promise((go) => { const watch = new MutationObserver(() => { if (place.dataset.drawn === next) {
      watch.disconnect(); go(); } }); watch.observe(place, {attributes: true}); });
    times.push(performance.now() - begun); await new Promise((go) => setTimeout(go, 50)); }
  return times.sort((a, b) => a - b)[10]; }"""
"""Milliseconds from a key to the picture, the middle of 20."""


def make_dataset(directory: Path, steps: int = 60, **kwargs: Any) -> RunDirectory:
    """Collect steps of `steered_world`, whose arguments are given, by chance."""
    df.collect(_settings(kwargs, behaviour={"kind": "random"}), directory=directory, steps=steps, inline=True)
    return RunDirectory(directory)


def _settings(kwargs: dict[str, Any], **sections: Any) -> Settings:
    env = {"id": "steered_world:make", "kwargs": kwargs, "image_size": 0}
    return df.settings("dreamer_v3", "debug", env=env, replay={"held_out_every": 5}, **sections)


def make_run(directory: Path, steps: int = 60, **kwargs: Any) -> RunDirectory:
    """Return a run with a dataset's steps and a checkpoint of the first weights; see `make_dataset`."""
    run = make_dataset(directory, steps, **kwargs)
    run.write(_settings(kwargs), run.spaces())
    save_checkpoint(run, 0)
    (run.path / STATE_NAME).unlink()
    return run


def save_checkpoint(run: RunDirectory, updates: int) -> None:
    """Write first weights, drawn by the number, as the checkpoint of so many updates."""
    settings, spaces = run.settings(), run.spaces()
    torch.manual_seed(updates)
    networks = make_networks(spaces, settings)
    state = {name: network.state_dict() for name, network in networks.saved.items()} | {"updates": updates}
    run.checkpoints.mkdir(exist_ok=True)
    CheckpointStore(run.checkpoints, kept=2).save(updates, state, {"spaces": spaces.to_json(), "updates": updates})


class Pages:
    """Servers in a thread beside the test, one for each run, and their addresses."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runners: list[web.AppRunner] = []

    def serve(self, run: RunDirectory) -> tuple[str, Server]:
        """Return the address with which a browser enters, and the server."""
        viewed = view_of(run.path)
        viewed.episodes.refresh()
        server = Server(viewed, Access())

        async def start() -> int:
            runner = web.AppRunner(server.application(), shutdown_timeout=1.0)
            await runner.setup()
            self._runners.append(runner)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return int(runner.addresses[0][1])

        return f"http://127.0.0.1:{self._do(start())}/?token={server.access.token}", server

    def close(self) -> None:
        """End all servers."""
        for runner in self._runners:
            self._do(runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _do(self, work: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(60)


@contextmanager
def served(run: Path) -> Iterator[str]:
    """Yield the address that `dreamfleet view` prints for a run; the environment's module may lie beside that."""
    code = "import sys; from dreamfleet.deploy.command_line import main; sys.exit(main(['view', sys.argv[1]]))"
    package = Path(df.__file__).parents[1]
    paths = os.pathsep.join([str(package), str(Path(__file__).parent)])
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-u", "-c", code, str(run)], cwd=run.parent, env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    found = next((match for line in process.stdout if (match := re.search(r"http://\S+", line))), None)
    assert found, "the command printed no address"
    yield found[0]
    process.kill()
    process.communicate()


@contextmanager
def browsing() -> Iterator[Any]:
    """Yield Chromium, without a window; no loop of asyncio may run in this thread meanwhile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, address: str, script: str = "", **options: Any) -> Iterator[Any]:
    """Yield a page at an address, at the end of which its console must hold no error.

    Args:
        script: runs in the page before its own.
        options: of Playwright's context, such as `color_scheme`.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page, errors = context.new_page(), []
    page.set_default_timeout(30_000)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    if script:
        page.add_init_script(script)
    page.goto(address)
    yield page
    context.close()
    assert errors == []


def wait_until(page: Any, expression: str) -> None:
    """Wait until an expression is true: `wait_for_function` evaluates it in the page, whose policy forbids that."""
    for _ in range(1500):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"this did not become true: {expression}")
