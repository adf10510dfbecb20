"""Checks of streams of `faulty_environment:make`, sampled or stored: what is missing, doubled or mixed up shows."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from dreamfleet.common.chunk import decode_chunk
from dreamfleet.common.steps import StepFormat
from dreamfleet.replay.recovery import Damage, scan
from dreamfleet.replay.segment import Segment, segment_paths
from dreamfleet.replay.shards import shard_directories

Arrays = dict[str, np.ndarray]
FIRST_ACTION = 5
"""The environment's Discrete space begins with this action; what is stored begins with 0."""


def faults_of(steps: Arrays, length: int, terminate_every: int = 2) -> list[str]:
    """Return what is wrong with consecutive steps of one stream, a sentence each; none if they are as they were played.

    Args:
        steps: the fields of the steps, each (T, *shape).
        length: of the environment's episodes, in actions.
        terminate_every: as the environment's.
    """
    seed, episode, number, life = steps["count"].T
    first, last = steps["is_first"], steps["is_last"]
    after_first = ~first[1:]
    truly_ended = last & (episode % terminate_every == 0)
    as_received = steps["action"][:-1] + FIRST_ACTION == steps["received"][1:, 0]
    rules = {
        "it is of two lives": seed == seed[0],
        "is_first is not where an episode begins": first[1:] == (number[1:] == 0),
        "the state is not reset at the first step": first[:1],
        "is_last is not where an episode ends": last == (number == length),
        "is_terminal is not where an episode truly ends": steps["is_terminal"] == truly_ended,
        "the number of the episode is wrong": steps["episode"] == episode,
        "the reward is not the one of its observation": steps["reward"] == number,
        "a step is missing or doubled within an episode": np.diff(number)[after_first] == 1,
        "an episode ends without its last step, or another begins": last[:-1] == first[1:],
        "an episode is missing or doubled": np.diff(episode) == first[1:],
        "a step of the life is missing or doubled": np.diff(life) == after_first,
        "the action stored is not the one received": as_received[after_first],
        "older weights acted after newer ones": np.diff(steps["version"]) >= 0,
    }
    return [f"{what}, at step {int(np.argmin(holds))}" for what, holds in rules.items() if not np.all(holds)]


def faults_of_batch(batch: Arrays, length: int) -> list[str]:
    """Return what is wrong with sampled sequences, fields of (B, T, *shape)."""
    rows = [{name: array[row] for name, array in batch.items()} for row in range(len(batch["reward"]))]
    return [fault for steps in rows for fault in faults_of(steps, length)]


def episodes_of(batch: Arrays) -> set[tuple[float, float]]:
    """Return the episodes that sampled sequences touch, by the seed of their life and their number."""
    return {(seed, number) for seed, number in batch["count"][..., :2].reshape(-1, 2).tolist()}


def read_streams(directory: Path, step_format: StepFormat) -> dict[tuple[int, int, int], Arrays]:
    """Return all that a replay's shards store, by (actor, incarnation, stream), in the order in which it was played.

    Raises:
        AssertionError: if a stream does not begin with its first step, lacks a chunk or has one twice, or is damaged.
    """
    chunks: dict[tuple[int, int, int], dict[int, tuple[int, Arrays]]] = {}
    for path in [path for shard in shard_directories(directory) for path in segment_paths(shard)]:
        with closing(Segment(path, writable=False)) as segment:
            _, start = segment.read_header()
            for piece in scan(segment, step_format, start, bodies=True):
                assert not isinstance(piece, Damage), f"{path}: {piece}"
                key = piece.header.key
                stream = chunks.setdefault((key.actor, key.incarnation, key.stream), {})
                assert key.sequence not in stream, f"{key} is stored twice"
                record = segment.read(piece.offset, piece.header.record_bytes)
                stream[key.sequence] = (piece.header.first_step, decode_chunk(step_format, record))
    return {key: _join(stream) for key, stream in sorted(chunks.items())}


def _join(stream: dict[int, tuple[int, Arrays]]) -> Arrays:
    steps = 0
    for sequence, (first_step, arrays) in sorted(stream.items()):
        assert first_step == steps, f"chunk {sequence} begins with step {first_step}, not {steps}"
        steps += len(arrays["reward"])
    ordered = [stream[sequence][1] for sequence in sorted(stream)]
    return {name: np.concatenate([arrays[name] for arrays in ordered]) for name in ordered[0]}
