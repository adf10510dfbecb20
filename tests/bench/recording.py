"""Real frames: CarRacing as the actors collect it, recorded once; and what is made of them."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamfleet.common.experience.chunk import ChunkKey, decode_chunk, encode_chunk
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings

Arrays = dict[str, np.ndarray]
_ACTORS = 2


@dataclass(frozen=True)
class Recording:
    """Streams of steps.

    Attributes:
        spaces: of the environment.
        streams: for each stream its fields, each (steps, *shape).
    """

    spaces: Spaces
    streams: list[Arrays]

    @property
    def step_format(self) -> StepFormat:
        """The steps' format."""
        return StepFormat(self.spaces)

    @property
    def steps(self) -> int:
        """Steps of all streams together."""
        return sum(len(stream["reward"]) for stream in self.streams)

    def chunks(self, actor: int = 0, copies: int = 1) -> Iterator[bytes]:
        """Yield chunks of all streams, each repeated as `copies` streams of its own."""
        arrays = [stream for _ in range(copies) for stream in self.streams]
        for number, stream in enumerate(arrays):
            for sequence in range(len(stream["reward"]) // CHUNK_STEPS):
                yield self.chunk(ChunkKey(actor, 0, number, sequence), stream)

    def chunk(self, key: ChunkKey, stream: Arrays | None = None) -> bytes:
        """Return a whole chunk of a stream (the first, unless given) under a key; past its end it begins again."""
        stream = self.streams[0] if stream is None else stream
        start = key.number * CHUNK_STEPS % (len(stream["reward"]) // CHUNK_STEPS * CHUNK_STEPS)
        part = {name: array[start : start + CHUNK_STEPS] for name, array in stream.items()}
        return encode_chunk(self.step_format, key, key.number * CHUNK_STEPS, part)

    def as_noise(self) -> Recording:
        """Return the same steps with pictures of noise, which no compression shortens."""
        generator = np.random.default_rng(0)
        noise = [{**s, "image": generator.integers(0, 256, s["image"].shape, np.uint8)} for s in self.streams]
        return Recording(self.spaces, noise)

    def dressed_as(self, spaces: Spaces) -> Recording:
        """Return the same steps as an environment of other spaces might show them: grey, enlarged, other actions."""
        generator = np.random.default_rng(0)
        (picture,) = spaces.images
        streams = []
        for stream in self.streams:
            image = stream["image"]
            if picture.shape[2] == 1:
                image = image.mean(axis=-1, keepdims=True).astype(np.uint8)
            scale = picture.shape[0] // image.shape[1]
            image = image.repeat(scale, axis=1).repeat(scale, axis=2)
            action = stream["action"]
            if spaces.action.kind != "box":
                action = generator.integers(0, spaces.action.sizes[0], len(image)).astype(spaces.action.stored_dtype)
            streams.append({**stream, picture.name: image, "action": action})
        return Recording(spaces, streams)


def recording_settings() -> Settings:
    """Return what is recorded: 64×64 colour, action repeat 4, random actions that are held."""
    return resolve(["planet"])


def load_recording(steps: int, say: Callable[[str], None]) -> Recording:
    """Return CarRacing steps, recorded by two processes if the temporary folder does not have them yet."""
    folder = Path(tempfile.gettempdir()) / f"dreamfleet-bench-{os.getuid()}"
    path = folder / f"carracing-64-{steps}.npz"
    if not path.exists():
        say(f"recording {steps} steps of CarRacing to {path}")
        folder.mkdir(exist_ok=True, mode=0o700)
        _record_to(path, steps)
    with np.load(path, allow_pickle=False) as held:
        spaces = Spaces.from_json(_spaces_of_settings())
        names = [field.name for field in StepFormat(spaces).fields]
        return Recording(spaces, [{name: held[f"{actor}.{name}"] for name in names} for actor in range(_ACTORS)])


def _record_to(path: Path, steps: int) -> None:
    """Record in two processes and write the file at once, whole."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_ACTORS, mp_context=context) as pool:
        streams = list(pool.map(_record, range(_ACTORS), [steps // _ACTORS] * _ACTORS))
    unfinished = path.with_suffix(".tmp.npz")
    flat = {f"{actor}.{name}": array for actor, stream in enumerate(streams) for name, array in stream.items()}
    np.savez(unfinished, **flat)  # type: ignore[arg-type]  # its stubs take the names for its own options
    unfinished.replace(path)


def _record(actor: int, steps: int) -> Arrays:
    """Collect steps with the collector as an actor has it; the process is this one."""
    import cv2

    from dreamfleet.actors.collector import build_collector

    cv2.setNumThreads(1)
    kept: list[bytes] = []
    collector = build_collector(recording_settings(), actor, 0, ListWriter(kept))
    collector.collect(steps)
    parts = [decode_chunk(StepFormat(collector.spaces), chunk) for chunk in kept]
    collector.close()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class ListWriter:
    """Keeps chunks in a list."""

    def __init__(self, kept: list[bytes]) -> None:
        self._kept = kept

    def append(self, chunk: bytes) -> None:
        """Keep a chunk."""
        self._kept.append(chunk)

    def flush(self, timeout_s: float) -> None:
        """Return: whatever was appended is kept."""


def _spaces_of_settings() -> dict[str, object]:
    from dreamfleet.actors.environments.make import describe_spaces, make_environment

    env = make_environment(recording_settings().env)
    try:
        return describe_spaces(env).to_json()
    finally:
        env.close()
