"""The chunk: up to 64 consecutive steps of one stream, encoded once by its actor and never changed again.

Its bytes, on the network and on disk (all integers little-endian):

    prefix   magic "DFCK" | header bytes u32 | body bytes u32 | CRC-32 of the header u32
    header   format u32 | actor u32 | incarnation u32 | stream u32 | number u64 | first_step u64 | episode u32
             steps u32 | first mask u64 | last mask u64 | terminal mask u64 | oldest version i32 | newest version i32
             blocks u32
             then for each block: stored bytes u32 (top bit: compressed) | CRC-32 of the stored bytes u32
    body     the blocks: first all small fields of all steps, then for each big field its steps 0-15, 16-31, ...

A block that zstd cannot shorten is stored raw. Checksums are per block, so that a reader verifies only what it reads.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import zstandard

from dreamfleet.common.experience.blocks import Block, DamagedChunkError, raw_blocks, read_steps
from dreamfleet.common.experience.steps import BLOCK_STEPS, CHUNK_STEPS, Field, StepFormat

MAGIC = b"DFCK"
PREFIX = struct.Struct("<4sIII")
_HEADER = struct.Struct("<IIIIQQIIQQQiiI")
"""The format's identity, the four numbers of the key, then those of `ChunkHeader` in its order, and how many blocks."""
_COMPRESSED = 1 << 31
_LEVEL = 1
_LOCAL = threading.local()


class ChunkKey(NamedTuple):
    """Who wrote a chunk, and its number in the stream: a chunk that is sent twice has the same key."""

    actor: int
    incarnation: int
    stream: int
    number: int


class ChunkHeader(NamedTuple):
    """What can be read of a chunk without decompressing it.

    Attributes:
        format_identity: `StepFormat.identity` of its steps.
        first_step: number of its first step in the stream.
        episode: number in the stream of the first step's episode.
        steps: 1 to 64.
        first_mask: bit t is `is_first` of step t; likewise `last_mask` and `terminal_mask`.
        oldest_version: of the weights that chose its actions; `newest_version` likewise.
        blocks: their offsets count from the chunk's first byte.
        chunk_bytes: of the whole chunk, prefix and header included.
    """

    key: ChunkKey
    format_identity: int
    first_step: int
    episode: int
    steps: int
    first_mask: int
    last_mask: int
    terminal_mask: int
    oldest_version: int
    newest_version: int
    blocks: tuple[Block, ...]
    chunk_bytes: int


def encode_chunk(step_format: StepFormat, key: ChunkKey, first_step: int, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of a chunk of 1 to 64 steps, each array (steps, *shape).

    Raises:
        ValueError: if the arrays do not have the format's shapes and types.
    """
    steps = len(arrays["reward"])
    if not 1 <= steps <= CHUNK_STEPS:
        raise ValueError(f"a chunk holds 1 to {CHUNK_STEPS} steps, not {steps}")
    checked = {field.name: _checked(field, arrays[field.name], steps) for field in step_format.fields}
    bodies, table = [], []
    for block in raw_blocks(step_format, checked):
        compressed = _compressor().compress(block)
        is_shorter = len(compressed) < len(block)
        body = compressed if is_shorter else block
        bodies.append(body)
        table += [len(body) | (_COMPRESSED if is_shorter else 0), zlib.crc32(body)]
    masks = [_mask(checked[name]) for name in ("is_first", "is_last", "is_terminal")]
    versions = checked["version"].tolist()
    numbers = [*key, first_step, int(checked["episode"][0]), steps, *masks, min(versions), max(versions)]
    header = _HEADER.pack(step_format.identity, *numbers, len(bodies))
    header += struct.pack(f"<{len(table)}I", *table)
    body_bytes = sum(map(len, bodies))
    return b"".join([PREFIX.pack(MAGIC, len(header), body_bytes, zlib.crc32(header)), header, *bodies])


def chunk_size(prefix: bytes | memoryview) -> tuple[int, int]:
    """Return the bytes of header and whole chunk that a prefix gives.

    Raises:
        DamagedChunkError: if no chunk begins with these bytes.
    """
    if len(prefix) < PREFIX.size:
        raise DamagedChunkError(f"{len(prefix)} bytes are too few to begin a chunk")
    magic, header_bytes, body_bytes, _ = PREFIX.unpack_from(prefix)
    if magic != MAGIC:
        raise DamagedChunkError(f"a chunk begins with {MAGIC!r}, not {bytes(magic)!r}")
    return header_bytes, PREFIX.size + header_bytes + body_bytes


def parse_header(chunk: bytes | memoryview) -> ChunkHeader:
    """Return a chunk's header; the body need not be there.

    Raises:
        DamagedChunkError: if the header is torn or its checksum is wrong.
    """
    header_bytes, chunk_bytes = chunk_size(chunk)
    header = bytes(chunk[PREFIX.size : PREFIX.size + header_bytes])
    if len(header) < max(header_bytes, _HEADER.size) or zlib.crc32(header) != PREFIX.unpack_from(chunk)[3]:
        raise DamagedChunkError("the header's checksum is wrong")
    identity, *numbers, block_count = _HEADER.unpack_from(header)
    if header_bytes != _HEADER.size + 8 * block_count:
        raise DamagedChunkError(f"a header of {header_bytes} bytes cannot describe {block_count} blocks")
    table = struct.unpack_from(f"<{2 * block_count}I", header, _HEADER.size)
    sizes = [length & ~_COMPRESSED for length in table[::2]]
    *offsets, end = accumulate(sizes, initial=PREFIX.size + header_bytes)
    if end != chunk_bytes:
        raise DamagedChunkError(f"the chunk's blocks end at byte {end}, not at its end, {chunk_bytes}")
    compressed = [length >= _COMPRESSED for length in table[::2]]
    blocks = tuple(map(Block, offsets, sizes, compressed, table[1::2]))
    return ChunkHeader._make([ChunkKey._make(numbers[:4]), identity, *numbers[4:], blocks, chunk_bytes])


def check_header(step_format: StepFormat, header: ChunkHeader) -> None:
    """Check that a header describes a chunk of this format.

    Raises:
        DamagedChunkError: if it is of another format or contradicts itself.
    """
    if header.format_identity != step_format.identity:
        raise DamagedChunkError(f"the chunk's format {header.format_identity} is not {step_format.identity}")
    if not 1 <= header.steps <= CHUNK_STEPS:
        raise DamagedChunkError(f"a chunk holds 1 to {CHUNK_STEPS} steps, not {header.steps}")
    if (header.first_mask | header.last_mask | header.terminal_mask) >> header.steps:
        raise DamagedChunkError(f"a chunk of {header.steps} steps has flags of steps after them")
    expected = 1 + len(step_format.big) * -(-header.steps // BLOCK_STEPS)
    if len(header.blocks) != expected:
        raise DamagedChunkError(f"a chunk of {header.steps} steps has {expected} blocks, not {len(header.blocks)}")


def check_chunk(step_format: StepFormat, chunk: bytes | memoryview) -> ChunkHeader:
    """Check a whole chunk without decompressing it, and return its header.

    Raises:
        DamagedChunkError: if any part of the chunk is damaged or it is of another format.
    """
    header, blocks = _split(step_format, chunk)
    for number, (block, stored) in enumerate(blocks):
        if zlib.crc32(stored) != block.checksum:
            raise DamagedChunkError(f"the checksum of block {number} is wrong")
    return header


def decode_chunk(step_format: StepFormat, chunk: bytes | memoryview) -> dict[str, np.ndarray]:
    """Return all steps of a whole chunk, each field as (steps, *shape).

    Raises:
        DamagedChunkError: if any part of the chunk is damaged or it is of another format.
    """
    header, blocks = _split(step_format, chunk)
    out = {field.name: np.empty((header.steps, *field.shape), field.dtype) for field in step_format.fields}
    read_steps(step_format, header.steps, 0, header.steps, dict(enumerate(blocks)), out)
    return out


def _split(step_format: StepFormat, chunk: bytes | memoryview) -> tuple[ChunkHeader, list[tuple[Block, memoryview]]]:
    """Return the header and the blocks, with their stored bytes, of a whole chunk of this format."""
    header = parse_header(chunk)
    check_header(step_format, header)
    view = memoryview(chunk)
    if len(view) != header.chunk_bytes:
        raise DamagedChunkError(f"the chunk has {len(view)} bytes and says {header.chunk_bytes}")
    return header, [(block, view[block.offset : block.offset + block.stored_bytes]) for block in header.blocks]


def _compressor() -> zstandard.ZstdCompressor:
    """Return this thread's compressor: making one takes as long as compressing a chunk of vectors."""
    if not hasattr(_LOCAL, "compressor"):
        _LOCAL.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
    return _LOCAL.compressor


def _checked(field: Field, array: np.ndarray, steps: int) -> np.ndarray:
    """Return the array in C order; ValueError if it is not what its field says."""
    if array.shape != (steps, *field.shape) or array.dtype != field.dtype:
        raise ValueError(
            f"'{field.name}' is {array.dtype} {array.shape}; the format wants {field.dtype} {(steps, *field.shape)}"
        )
    return np.ascontiguousarray(array)


def _mask(flags: np.ndarray) -> int:
    """Return the flags as an integer, bit t for step t."""
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
