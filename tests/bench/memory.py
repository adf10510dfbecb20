"""How much memory a replay's process takes as its replay fills up and turns over."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil

from dreamfleet.common.experience.chunk import ChunkKey
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.replay import Replay
from tests.bench.recording import Recording

_SAMPLE_EVERY = 4


def turn_over(directory: Path, recording: Recording, capacity_gb: float, turns: int) -> list[int]:
    """Return the resident bytes of a new process once its replay is full, and after each time it is refilled."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_fill, directory, recording, capacity_gb, turns).result()


def _fill(directory: Path, recording: Recording, capacity_gb: float, turns: int) -> list[int]:
    """Append chunks, and sample as a server does, until the budget has gone through `1 + turns` times."""
    settings = ReplaySettings(capacity_gb=capacity_gb, held_out_every=0)
    replay = Replay(directory, recording.step_format, settings, 64, seed=0)
    sizes: list[int] = []
    appended = sequence = 0
    while len(sizes) <= turns:
        chunk = recording.chunk(ChunkKey(0, 0, 0, sequence))
        replay.append(chunk)
        sequence += 1
        appended += len(chunk)
        if sequence % _SAMPLE_EVERY == 0:
            replay.sample(sequence, 16)
        if appended >= capacity_gb * 1e9 * (1 + len(sizes)):
            sizes.append(psutil.Process().memory_info().rss)
    replay.close()
    return sizes
