"""What a visitor of `dreamfleet view` waits for: a dreamed step, the picture, the list of a large replay's episodes."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch

import dreamfleet as df
from dreamfleet.common.experience.chunk import ChunkKey, encode_chunk
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.deploy.view.episode_table import EpisodeTable
from dreamfleet.deploy.view.viewed_run import ViewedRun, view_of
from dreamfleet.replay.replay import Replay
from tests.bench.measure import Bench, say
from tests.bench.report import Row, at_least, at_most
from tests.support.viewed_pages import CHROMIUM, LATENCY, browsing, opened, served

NAME = "view"
METHOD = """
Dreaming: a run of Dreamer V3 at size 12m on CarRacing's 64×64×3, trained for a few updates. A step
is what the server does between the arrival of an action and the departure of its answer, on one thread of the CPU:
imagining, all heads, the errors beside the recorded truth while there is one, encoding as JPEG, the message. It begins
in a recorded episode; actions are drawn; the figure is of the median step. The server lowers its priority; this
does not. In Chromium, where there is one: the command serves the same run, and loads its model at the first visit.
Five later visits are timed, each from asking for the page to the dream's first picture, then 20 times from a key to
the picture of its step; medians. Opening: a million steps of black 64×64×3 in episodes of 500, in the system's cache
(bodies are not read, so that what is in them does not matter), listed in a new process: seconds until the first
thousand episodes are listed, what its resident memory grew by then, and once all returns were read behind the list,
with the seconds these took.
"""
_LEAST_PER_S = {1: 30.0, 9: 10.0}
_MOST_OPEN_S = 2.0
_MOST_FIRST_S = 2.0
_MOST_KEY_MS = 50.0
_VISITS = 5
_EPISODE_STEPS = 500
_MB = 1e6


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures of dreaming, and of opening a replay."""
    run = _trained(bench.scratch / "run")
    viewed = view_of(run)
    for futures, least in _LEAST_PER_S.items():
        say(f"{NAME}: dreaming {futures}")
        per_s, cpu_s = _dreaming(viewed, futures, bench.choose(200, 20))
        beside = f"processor {1e3 * cpu_s:.1f} ms a step"
        aim = at_least(per_s, least, "/s")
        yield Row(NAME, f"dreamed steps, 12m, futures {futures}", f"{per_s:.1f}/s", beside, aim=aim)
    viewed.close()
    if CHROMIUM is None:
        say(f"{NAME}: no chromium, so nothing is measured in a browser")
    else:
        say(f"{NAME}: in a browser")
        first, key = _visits(run)
        yield Row(
            NAME, "from opening the page to the dream, 12m", f"{first:.2f} s", aim=at_most(first, _MOST_FIRST_S, " s")
        )
        yield Row(NAME, "from a key to the picture, 12m", f"{key:.1f} ms", aim=at_most(key, _MOST_KEY_MS, " ms"))
    steps = bench.choose(1_000_000, 20_000)
    say(f"{NAME}: writing {steps:,} steps")
    directory = bench.scratch / "replay"
    _fill(directory / "shard-0", steps)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        opened, grown, index, returns, grown_later = pool.submit(_open, directory).result()
    what = f"a replay of {steps:,} steps"
    yield Row(NAME, f"opening {what}", f"{opened:.2f} s", aim=at_most(opened, _MOST_OPEN_S, " s"))
    beside = f"index {index / _MB:.1f} MB"
    yield Row(NAME, f"memory for {what}", f"{grown / _MB:.1f} MB", beside)
    yield Row(NAME, f"returns of {what}", f"{returns:.1f} s, then {grown_later / _MB:.1f} MB", beside)


def _trained(directory: Path) -> Path:
    settings = df.settings(
        "dreamer_v3",
        "size_12m",
        env={"id": "CarRacing-v3", "image_size": 64, "time_limit": 100},
        train={"env_steps": 250, "prefill": 220, "ratio": 4},
        learner={"batch_size": 2, "sequence_length": 16, "device": "cpu"},
    )
    return df.train(settings, directory=directory, inline=True).directory


def _visits(run: Path) -> tuple[float, float]:
    """Return the seconds to the first picture and the milliseconds from a key to the next, the medians of visits."""
    firsts, keys = [], []
    with served(run) as address, browsing() as browser:
        for visit in range(1 + _VISITS):
            begun = time.perf_counter()
            with opened(browser, address) as page:
                page.wait_for_selector("#dream[data-drawn='0']")
                if visit:  # the model is loaded by now
                    firsts.append(time.perf_counter() - begun)
                    keys.append(page.evaluate(LATENCY))
    return median(firsts), median(keys)


def _dreaming(viewed: ViewedRun, futures: int, steps: int) -> tuple[float, float]:
    """Return steps a second, and the processor's seconds for one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the command does
    episode = viewed.episodes.listed("length", descending=True)["episodes"][0]
    dream = viewed.dream({"episode": episode["id"], "step": 10}, futures)
    spec = viewed.spaces.action
    draws = np.random.default_rng(0)
    seconds, processor = [], []
    for number in range(steps):
        action = "recorded" if number < 20 else draws.uniform(spec.low, spec.high).tolist()
        begun, begun_cpu = time.perf_counter(), time.process_time()
        dream.step(action).to_bytes()
        seconds.append(time.perf_counter() - begun)
        processor.append(time.process_time() - begun_cpu)
    torch.set_num_threads(threads)
    return 1 / median(seconds), median(processor)


def _fill(directory: Path, steps: int) -> None:
    """Write one stream of short chunks."""
    spaces = Spaces((ObservationSpec("image", (64, 64, 3), "uint8"),), ActionSpec("discrete", (3,)))
    step_format = StepFormat(spaces)
    arrays = {field.name: np.zeros((CHUNK_STEPS, *field.shape), field.dtype) for field in step_format.fields}
    replay = Replay(directory, step_format, ReplaySettings(capacity_gb=100, capacity_steps=10**8), 64, seed=0)
    for number in range(steps // CHUNK_STEPS):
        at = np.arange(number * CHUNK_STEPS, (number + 1) * CHUNK_STEPS)
        arrays["is_first"], arrays["is_last"] = at % _EPISODE_STEPS == 0, at % _EPISODE_STEPS == _EPISODE_STEPS - 1
        arrays["reward"] = (at % 7).astype(np.float32)
        arrays["episode"] = (at // _EPISODE_STEPS).astype(np.int32)
        replay.append(encode_chunk(step_format, ChunkKey(0, 0, 0, number), int(at[0]), arrays))
    replay.close()


def _open(directory: Path) -> tuple[float, float, float, float, float]:
    """Return seconds and bytes to open a replay, the index's bytes, and seconds and bytes once returns are known."""
    process = psutil.Process()
    before, begun = process.memory_info().rss, time.perf_counter()
    table = EpisodeTable(directory, 10)
    listed = table.listed()
    opened, grown = time.perf_counter() - begun, process.memory_info().rss - before
    for _ in itertools.count():
        if listed["returns_known"] == listed["count"]:
            break
        time.sleep(0.2)
        listed = table.listed()
    returns, later = time.perf_counter() - begun, process.memory_info().rss - before
    return opened, grown, table.nbytes, returns, later
