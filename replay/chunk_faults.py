"""What is wrong inside a chunk, and between two that follow each other, as sentences."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from dreamfleet.common.experience.blocks import DamagedChunkError
from dreamfleet.common.experience.chunk import decode_chunk
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.scan import StoredChunk


def contents_faults(chunk: StoredChunk, step_format: StepFormat) -> list[str]:
    """Return what is wrong inside a chunk."""
    header = chunk.header
    try:
        arrays = decode_chunk(step_format, chunk.read())
    except DamagedChunkError as error:
        return [f"{name(chunk)}: {error}."]
    masks = {"is_first": header.first_mask, "is_last": header.last_mask, "is_terminal": header.terminal_mask}
    stated: dict[str, list[int]] = {flag: [mask >> t & 1 for t in range(header.steps)] for flag, mask in masks.items()}
    stated["episode"] = list(accumulate(stated["is_first"][1:], initial=header.episode))
    differ = [field for field, values in stated.items() if values != arrays[field].tolist()]
    if (int(arrays["version"].min()), int(arrays["version"].max())) != (header.oldest_version, header.newest_version):
        differ.append("version")
    faults = [f"{name(chunk)}: its header and its steps differ in {field}." for field in differ]
    if not np.array_equal(arrays["is_first"][1:], arrays["is_last"][:-1]):
        faults.append(f"{name(chunk)}: an episode ends and no other begins at the next step, or the other way round.")
    return faults


def order_faults(earlier: StoredChunk, later: StoredChunk) -> list[str]:
    """Return what is wrong between two consecutive chunks in the order of their keys."""
    before, after = earlier.header, later.header
    if before.key[:3] != after.key[:3] or before.key == after.key:
        return []
    if after.key.number != before.key.number + 1:
        return [f"{name(later)}: chunks {before.key.number + 1} to {after.key.number - 1} before it are missing."]
    if after.first_step != before.first_step + before.steps:
        return [f"{name(later)} begins with step {after.first_step}, not {before.first_step + before.steps}."]
    if (before.last_mask >> before.steps - 1) & 1 != after.first_mask & 1:
        return [f"{name(later)}: an episode ends before it and no other begins, or the other way round."]
    episode = before.episode + (before.first_mask & ~1).bit_count() + (after.first_mask & 1)
    if after.episode != episode:
        return [f"{name(later)} begins in episode {after.episode}, not {episode}."]
    return []


def name(chunk: StoredChunk) -> str:
    """Return a chunk's place and key in words."""
    actor, incarnation, stream, number = chunk.header.key
    return f"{place(chunk)}: chunk {number} of stream {stream} of actor {actor} in incarnation {incarnation}"


def place(chunk: StoredChunk) -> str:
    """Return the file and the byte where a chunk begins."""
    path = chunk.segment.path
    return f"{path.parent.name}/{path.name}, byte {chunk.offset}"
