"""Checks of streams of `faulty_environment:make`, sampled or stored: what is missing, doubled or mixed up shows."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np

from dreamfleet.common.experience.chunk import decode_chunk
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.scan import Damage, scan
from dreamfleet.replay.segment import Segment, segment_paths
from dreamfleet.replay.shards import shard_directories

Arrays = dict[str, np.ndarray]
FIRST_ACTION = 5
"""The environment's Discrete space begins with this action; what is stored begins with 0."""
HELD_OUT_AT_ONCE = range(128 - 63, 128 + 64)
"""Steps of a held-out run: each of its ends may have been moved on by as many as the rest of a chunk."""


def faults_of(steps: Arrays, length: int, terminate_every: int = 2) -> list[str]:
    """Return what is wrong with consecutive steps of one stream, a sentence each; none if they are as they were played.

    Args:
        steps: the fields of the steps, each (T, *shape).
        length: of the environment's episodes, in actions.
        terminate_every: as the environment's.
    """
    seed, episode, number, total = steps["count"].T
    first, last = steps["is_first"], steps["is_last"]
    after_first = ~first[1:]
    truly_ended = last & (episode % terminate_every == 0)
    as_received = steps["action"][:-1] + FIRST_ACTION == steps["received"][1:, 0]
    rules = {
        "it is of two incarnations": seed == seed[0],
        "is_first is not where an episode begins": first[1:] == (number[1:] == 0),
        "the state is not reset at the first step": first[:1],
        "is_last is not where an episode ends": last == (number == length),
        "is_terminal is not where an episode truly ends": steps["is_terminal"] == truly_ended,
        "the number of the episode is wrong": steps["episode"] == episode,
        "the reward is not the one of its observation": steps["reward"] == number,
        "a step is missing or doubled within an episode": np.diff(number)[after_first] == 1,
        "an episode ends without its last step, or another begins": last[:-1] == first[1:],
        "an episode is missing or doubled": np.diff(episode) == first[1:],
        "a step of the total is missing or doubled": np.diff(total) == after_first,
        "the action stored is not the one received": as_received[after_first],
        "older weights acted after newer ones": np.diff(steps["version"]) >= 0,
    }
    return [f"{what}, at step {int(np.argmin(holds))}" for what, holds in rules.items() if not np.all(holds)]


def faults_of_batch(batch: Arrays, length: int) -> list[str]:
    """Return what is wrong with sampled sequences, fields of (B, T, *shape), in which held-out runs are left out."""
    return [fault for row in range(len(batch["reward"])) for fault in _faults_of_row(batch, row, length)]


def steps_of(batch: Arrays) -> set[tuple[float, float]]:
    """Return the steps that sampled sequences hold, by the seed of their total and their number in its stream."""
    return set(zip(batch["count"][..., 0].flat, _numbers(batch["count"]).flat, strict=True))


def _numbers(count: np.ndarray) -> np.ndarray:
    """Return the numbers of steps in their stream: the steps of the total and the resets before them."""
    return np.asarray(count[..., 1] + count[..., 3])


def _faults_of_row(batch: Arrays, row: int, length: int) -> list[str]:
    """Return what is wrong with a sequence, taken apart where steps are left out."""
    steps = {name: array[row].copy() for name, array in batch.items()}
    left_out = np.diff(_numbers(steps["count"])) - 1
    joints = np.flatnonzero(left_out) + 1
    faults = [] if len(set(steps["count"][:, 0])) == 1 else ["it is of two incarnations"]
    if not (steps["is_first"][joints].all() and steps["is_last"][joints - 1].all()):
        faults.append("it does not begin anew behind steps that are left out")
    if not np.isin(left_out[joints - 1], HELD_OUT_AT_ONCE).all():
        faults.append(f"{left_out[joints - 1].tolist()} steps are left out, which is no held-out run")
    steps["is_last"][joints - 1] = steps["count"][joints - 1, 2] == length
    for start, stop in pairwise([0, *joints.tolist(), len(left_out) + 1]):
        faults += faults_of({name: array[start:stop] for name, array in steps.items()}, length)
    return faults


def read_streams(directory: Path, step_format: StepFormat) -> dict[tuple[int, int, int], Arrays]:
    """Return all that a replay's shards store, by (actor, incarnation, stream), in the order in which it was played.

    Raises:
        AssertionError: if a stream does not begin with its first step, lacks a chunk or has one twice, or is damaged.
    """
    chunks: dict[tuple[int, int, int], dict[int, tuple[int, Arrays]]] = {}
    for path in [path for shard in shard_directories(directory) for path in segment_paths(shard)]:
        with closing(Segment(path, writable=False)) as segment:
            _, start = segment.read_header()
            for found in scan(segment, step_format, start, bodies=True):
                assert not isinstance(found, Damage), f"{path}: {found}"
                key = found.header.key
                stream = chunks.setdefault((key.actor, key.incarnation, key.stream), {})
                assert key.number not in stream, f"{key} is stored twice"
                chunk = segment.read(found.offset, found.header.chunk_bytes)
                stream[key.number] = (found.header.first_step, decode_chunk(step_format, chunk))
    return {key: _join(stream) for key, stream in sorted(chunks.items())}


def _join(stream: dict[int, tuple[int, Arrays]]) -> Arrays:
    steps = 0
    for sequence, (first_step, arrays) in sorted(stream.items()):
        assert first_step == steps, f"chunk {sequence} begins with step {first_step}, not {steps}"
        steps += len(arrays["reward"])
    ordered = [stream[sequence][1] for sequence in sorted(stream)]
    return {name: np.concatenate([arrays[name] for arrays in ordered]) for name in ordered[0]}
