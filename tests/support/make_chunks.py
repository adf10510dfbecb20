"""Made-up streams for tests: every observation says which stream and step it is, so that a mix-up shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamfleet.common.experience.chunk import ChunkKey, encode_chunk
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.experience.steps import CHUNK_STEPS, StepFormat
from dreamfleet.common.settings.schema import ReplaySettings
from dreamfleet.replay.replay import Replay

Arrays = dict[str, np.ndarray]


def counting_format() -> StepFormat:
    """Return a small format: discrete actions and a vector `count` that `make_stream` fills with (stream tag, step)."""
    return StepFormat(Spaces((ObservationSpec("count", (2,), "float32"),), ActionSpec("discrete", (3,))))


def image_format(side: int = 64, channels: int = 3) -> StepFormat:
    """Return a format with one picture `image` and continuous actions, as CarRacing's."""
    picture = ObservationSpec("image", (side, side, channels), "uint8")
    return StepFormat(Spaces((picture,), ActionSpec("box", (3,), (-1, 0, 0), (1, 1, 1), (3,))))


def mixed_format(action: ActionSpec | None = None) -> StepFormat:
    """Return a format with two pictures and two vectors, one of the vectors big enough for blocks of its own."""
    observations = (
        ObservationSpec("camera", (24, 16, 3), "uint8"),
        ObservationSpec("grey", (8, 8, 1), "uint8"),
        ObservationSpec("joints", (5,), "float32"),
        ObservationSpec("sensor", (200,), "float32"),
    )
    return StepFormat(Spaces(observations, action or ActionSpec("multi_discrete", (3, 4))))


def make_stream(
    step_format: StepFormat, episode_lengths: Sequence[int], tag: int = 0, seed: int = 0, first_episode: int = 0
) -> Arrays:
    """Return the steps of whole episodes, one after the other, each field as (steps, *shape).

    Args:
        step_format: which fields.
        episode_lengths: steps of each episode, first and last included.
        tag: put into the observation `count`, if there is one, beside the number of the step.
        seed: of everything else.
        first_episode: number of the first episode.
    """
    generator = np.random.default_rng(seed)
    steps = sum(episode_lengths)
    arrays = {field.name: _noise(generator, field.dtype, (steps, *field.shape)) for field in step_format.fields}
    action = step_format.spaces.action
    if action.kind == "mixed":
        arrays["action"][:, : len(action.choices)] = generator.integers(
            action.choices, size=(steps, len(action.choices))
        )
    ends = np.cumsum(episode_lengths)
    for name in ("is_first", "is_last", "is_terminal"):
        arrays[name][:] = False
    arrays["is_first"][np.concatenate([[0], ends[:-1]])] = True
    arrays["is_last"][ends - 1] = True
    arrays["is_terminal"][ends[::2] - 1] = True
    arrays["episode"][:] = first_episode + np.cumsum(arrays["is_first"]) - 1
    arrays["version"][:] = np.arange(steps) // 100
    if "count" in arrays:
        arrays["count"][:, 0], arrays["count"][:, 1] = tag, np.arange(steps)
    return arrays


def cut(
    step_format: StepFormat,
    arrays: Arrays,
    actor: int = 0,
    incarnation: int = 0,
    stream: int = 0,
    chunk_steps: int | Sequence[int] = CHUNK_STEPS,
) -> list[bytes]:
    """Return a stream's chunks, of `chunk_steps` steps each (or of the sizes it lists, the last one repeated)."""
    sizes = [chunk_steps] if isinstance(chunk_steps, int) else list(chunk_steps)
    chunks: list[bytes] = []
    start = 0
    while start < len(arrays["reward"]):
        size = sizes[min(len(chunks), len(sizes) - 1)]
        part = {name: array[start : start + size] for name, array in arrays.items()}
        chunks.append(encode_chunk(step_format, ChunkKey(actor, incarnation, stream, len(chunks)), start, part))
        start += size
    return chunks


def _noise(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return random numbers; every other picture is smooth, so that both raw and compressed blocks come up."""
    if dtype == "uint8":
        noise = generator.integers(0, 256, shape, np.uint8)
        smooth = np.broadcast_to(np.arange(shape[0], dtype=np.uint8).reshape(-1, *[1] * (len(shape) - 1)), shape)
        return np.where(np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) // 16 % 2 == 0, smooth, noise)
    if dtype == "float32":
        return generator.normal(size=shape).astype(np.float32)
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    return generator.integers(0, 3, shape).astype(dtype)


def fill(directory: Path, step_format: StepFormat, chunks: list[bytes]) -> None:
    """Store chunks in one shard."""
    replay = Replay(directory, step_format, ReplaySettings(), sequence_length=2, seed=0)
    for chunk in chunks:
        assert replay.append(chunk)
    replay.close()
