"""The chunk: up to 64 consecutive steps of one stream, compressed once by its actor and never changed again.

A record, as it travels and as it is stored (all integers little-endian):

    prefix   magic "DFCK" | header bytes u32 | body bytes u32 | CRC-32 of the header u32
    header   format u32 | actor u32 | incarnation u32 | stream u32 | sequence u64 | first_step u64 | episode u32
             steps u32 | first mask u64 | last mask u64 | terminal mask u64 | oldest version u32 | newest version u32
             blocks u32,
             then for each block: stored bytes u32 (top bit: compressed) | CRC-32 of the stored bytes u32
    body     the blocks: first all small fields of all steps, then for each big field its steps 0-15, 16-31, ...

Pictures with several channels lie in their blocks plane by plane, (channels, steps, height, width): that takes a fifth
less space than pixel by pixel and decompresses a third quicker, which more than pays for putting them together.

A block that zstd cannot shorten is stored raw. Checksums are per block, so that a reader verifies what it reads and no
more.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import zstandard

from dreamfleet.common.steps import BLOCK_STEPS, CHUNK_STEPS, Field, StepFormat

MAGIC = b"DFCK"
PREFIX = struct.Struct("<4sIII")
_HEADER = struct.Struct("<IIIIQQIIQQQIII")
_COMPRESSED = 1 << 31
_LOCAL = threading.local()


class DamagedChunkError(Exception):
    """A record that is not what its checksums say, or not a record at all."""


class ChunkKey(NamedTuple):
    """Who wrote a chunk, and which one in its stream it is: a chunk sent twice bears the same key."""

    actor: int
    incarnation: int
    stream: int
    sequence: int


class Block(NamedTuple):
    """Where one block of a record lies, and how to check it."""

    offset: int
    stored_bytes: int
    compressed: bool
    checksum: int


class ChunkHeader(NamedTuple):
    """What a chunk says of itself without being decompressed.

    Attributes:
        key: its identity.
        format_identity: `StepFormat.identity` of its steps.
        first_step: number of its first step in its stream.
        episode: number in its stream of the episode that its first step belongs to.
        steps: how many it holds, 1 to 64.
        first_mask: bit t is `is_first` of step t; likewise `last_mask` and `terminal_mask`.
        oldest_version: lowest version of the weights that chose its actions; `newest_version` the highest.
        blocks: its blocks; offsets count from the start of the record.
        record_bytes: bytes of the whole record, prefix and header included.
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
    record_bytes: int


def encode_chunk(
    step_format: StepFormat, key: ChunkKey, first_step: int, arrays: Mapping[str, np.ndarray], level: int = 1
) -> bytes:
    """Return the record of the steps in `arrays`.

    Args:
        step_format: which arrays there are; each is given as (steps, *shape).
        key: the chunk's identity.
        first_step: number of the first step in its stream.
        arrays: the steps, all of one length from 1 to 64.
        level: zstd's level.
    """
    steps = len(arrays["reward"])
    if not 1 <= steps <= CHUNK_STEPS:
        raise ValueError(f"a chunk holds 1 to {CHUNK_STEPS} steps, not {steps}")
    checked = {field.name: _checked(field, arrays[field.name], steps) for field in step_format.fields}
    raw = [b"".join(checked[field.name].tobytes() for field in step_format.small)]
    for field in step_format.big:
        array = checked[field.name]
        raw += [_big_block(field, array[start : start + BLOCK_STEPS]) for start in range(0, steps, BLOCK_STEPS)]
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=False)
    bodies, table = [], []
    for block in raw:
        packed = compressor.compress(block)
        compressed = len(packed) < len(block)
        body = packed if compressed else block
        bodies.append(body)
        table += [len(body) | (_COMPRESSED if compressed else 0), zlib.crc32(body)]
    versions = checked["version"]
    header = _HEADER.pack(
        step_format.identity, *key[:3], key.sequence, first_step, int(checked["episode"][0]), steps,
        _mask(checked["is_first"]), _mask(checked["is_last"]), _mask(checked["is_terminal"]),
        int(versions.min()), int(versions.max()), len(bodies),
    ) + struct.pack(f"<{len(table)}I", *table)  # fmt: skip
    body_bytes = sum(map(len, bodies))
    return b"".join([PREFIX.pack(MAGIC, len(header), body_bytes, zlib.crc32(header)), header, *bodies])


def record_size(prefix: bytes | memoryview) -> tuple[int, int]:
    """Return (header bytes, record bytes) as the prefix tells them.

    Raises:
        DamagedChunkError: if these bytes begin no record.
    """
    if len(prefix) < PREFIX.size:
        raise DamagedChunkError(f"{len(prefix)} bytes are too few to begin a record")
    magic, header_bytes, body_bytes, _ = PREFIX.unpack_from(prefix)
    if magic != MAGIC:
        raise DamagedChunkError(f"a record begins with {MAGIC!r}, not {bytes(magic)!r}")
    return header_bytes, PREFIX.size + header_bytes + body_bytes


def parse_header(record: bytes | memoryview) -> ChunkHeader:
    """Read a record's header; the body need not be there.

    Raises:
        DamagedChunkError: if the header is torn or its checksum is wrong.
    """
    header_bytes, record_bytes = record_size(record)
    header = bytes(record[PREFIX.size : PREFIX.size + header_bytes])
    if len(header) < max(header_bytes, _HEADER.size) or zlib.crc32(header) != PREFIX.unpack_from(record)[3]:
        raise DamagedChunkError("the header's checksum is wrong")
    (identity, actor, incarnation, stream, sequence, first_step, episode, steps, first, last, terminal, oldest, newest,
     block_count) = _HEADER.unpack_from(header)  # fmt: skip
    if header_bytes != _HEADER.size + 8 * block_count:
        raise DamagedChunkError(f"a header of {header_bytes} bytes cannot describe {block_count} blocks")
    table = struct.unpack_from(f"<{2 * block_count}I", header, _HEADER.size)
    sizes = [length & ~_COMPRESSED for length in table[::2]]
    *offsets, end = accumulate(sizes, initial=PREFIX.size + header_bytes)
    if end != record_bytes:
        raise DamagedChunkError(f"the record's blocks end at byte {end}, not at its end, {record_bytes}")
    compressed = [length >= _COMPRESSED for length in table[::2]]
    blocks = tuple(map(Block, offsets, sizes, compressed, table[1::2]))
    return ChunkHeader(
        ChunkKey(actor, incarnation, stream, sequence), identity, first_step, episode, steps, first, last, terminal,
        oldest, newest, blocks, record_bytes,
    )  # fmt: skip


def check_header(step_format: StepFormat, header: ChunkHeader) -> None:
    """Check that a header describes a chunk of this format.

    Raises:
        DamagedChunkError: if it is of another format or contradicts itself.
    """
    if header.format_identity != step_format.identity:
        raise DamagedChunkError(f"the record's format {header.format_identity} is not {step_format.identity}")
    if not 1 <= header.steps <= CHUNK_STEPS:
        raise DamagedChunkError(f"a chunk holds 1 to {CHUNK_STEPS} steps, not {header.steps}")
    if (header.first_mask | header.last_mask | header.terminal_mask) >> header.steps:
        raise DamagedChunkError(f"a chunk of {header.steps} steps has flags of steps after them")
    expected = 1 + len(step_format.big) * -(-header.steps // BLOCK_STEPS)
    if len(header.blocks) != expected:
        raise DamagedChunkError(f"a chunk of {header.steps} steps has {expected} blocks, not {len(header.blocks)}")


def check_record(step_format: StepFormat, record: bytes | memoryview) -> ChunkHeader:
    """Check a whole record, decompressing nothing, and return its header.

    Raises:
        DamagedChunkError: if any part of the record is damaged or it is of another format.
    """
    header = parse_header(record)
    check_header(step_format, header)
    view = memoryview(record)
    if len(view) != header.record_bytes:
        raise DamagedChunkError(f"the record has {len(view)} bytes and says {header.record_bytes}")
    for number, block in enumerate(header.blocks):
        if zlib.crc32(view[block.offset : block.offset + block.stored_bytes]) != block.checksum:
            raise DamagedChunkError(f"the checksum of block {number} is wrong")
    return header


def decode_block(stored: bytes | memoryview, block: Block, raw_bytes: int) -> bytes | memoryview:
    """Return a block's bytes as they were before compression.

    Raises:
        DamagedChunkError: if the checksum is wrong or it does not expand to `raw_bytes`.
    """
    if zlib.crc32(stored) != block.checksum:
        raise DamagedChunkError("a block's checksum is wrong")
    if not block.compressed:
        raw: bytes | memoryview = stored
    else:
        try:
            raw = _decompressor().decompress(stored, max_output_size=raw_bytes)
        except zstandard.ZstdError as error:
            raise DamagedChunkError(f"a block does not expand: {error}") from error
    if len(raw) != raw_bytes:
        raise DamagedChunkError(f"a block holds {len(raw)} bytes, not {raw_bytes}")
    return raw


def block_numbers(step_format: StepFormat, steps: int, start: int, stop: int) -> list[int]:
    """Return which blocks of a chunk with `steps` steps are needed to read its steps `start` to `stop`."""
    groups = -(-steps // BLOCK_STEPS)
    needed = range(start // BLOCK_STEPS, -(-stop // BLOCK_STEPS))
    return [0] + [1 + number * groups + group for number in range(len(step_format.big)) for group in needed]


def read_steps(
    step_format: StepFormat,
    steps: int,
    start: int,
    stop: int,
    blocks: Mapping[int, tuple[Block, bytes | memoryview]],
    out: Mapping[str, np.ndarray],
) -> None:
    """Decode steps `start` to `stop` of a chunk into `out`.

    Args:
        step_format: the chunk's format.
        steps: how many steps the chunk holds.
        start: first step wanted; `stop` is one past the last.
        stop: see `start`.
        blocks: the chunk's blocks by number, those of `block_numbers` at least, with their stored bytes.
        out: for each field an array (stop - start, *shape) that is filled.

    Raises:
        DamagedChunkError: if a block is not what its checksum says.
    """
    for name, array in read_small_fields(step_format, steps, [blocks[0]]).items():
        out[name][...] = array[0, start:stop]
    read_big_fields(step_format, steps, start, stop, blocks, out)


def read_small_fields(
    step_format: StepFormat, steps: int, blocks: Sequence[tuple[Block, bytes | memoryview]]
) -> dict[str, np.ndarray]:
    """Decode the first blocks of several chunks, all of `steps` steps: the small fields, each (chunks, steps, *shape).

    Raises:
        DamagedChunkError: if a block is not what its checksum says.
    """
    row_bytes = steps * sum(field.step_bytes for field in step_format.small)
    raw = b"".join([decode_block(stored, block, row_bytes) for block, stored in blocks])
    rows = np.frombuffer(raw, np.uint8).reshape(len(blocks), row_bytes)
    arrays, offset = {}, 0
    for field in step_format.small:
        end = offset + steps * field.step_bytes
        array = np.ascontiguousarray(rows[:, offset:end]).view(field.dtype)
        arrays[field.name] = array.reshape(len(blocks), steps, *field.shape)
        offset = end
    return arrays


def read_big_fields(
    step_format: StepFormat,
    steps: int,
    start: int,
    stop: int,
    blocks: Mapping[int, tuple[Block, bytes | memoryview]],
    out: Mapping[str, np.ndarray],
) -> None:
    """Decode the big fields of steps `start` to `stop` of a chunk into `out`; arguments and errors as of `read_steps`."""
    groups = -(-steps // BLOCK_STEPS)
    for number, field in enumerate(step_format.big):
        for group in range(start // BLOCK_STEPS, -(-stop // BLOCK_STEPS)):
            first = group * BLOCK_STEPS
            held = min(BLOCK_STEPS, steps - first)
            block, stored = blocks[1 + number * groups + group]
            low, high = max(start, first), min(stop, first + held)
            target = out[field.name][low - start : high - start]
            raw = np.frombuffer(decode_block(stored, block, held * field.step_bytes), np.uint8)
            if field.planes > 1:
                _merge(raw, held, low - first, target)
            else:
                target[...] = raw.view(field.dtype).reshape(held, *field.shape)[low - first : high - first]


def decode_chunk(step_format: StepFormat, record: bytes | memoryview) -> dict[str, np.ndarray]:
    """Return all steps of a whole record, each field as (steps, *shape).

    Raises:
        DamagedChunkError: if any part of the record is damaged or it is of another format.
    """
    header = parse_header(record)
    check_header(step_format, header)
    view = memoryview(record)
    if len(view) != header.record_bytes:
        raise DamagedChunkError(f"the record has {len(view)} bytes and says {header.record_bytes}")
    blocks = {
        n: (block, view[block.offset : block.offset + block.stored_bytes]) for n, block in enumerate(header.blocks)
    }
    out = {field.name: np.empty((header.steps, *field.shape), field.dtype) for field in step_format.fields}
    read_steps(step_format, header.steps, 0, header.steps, blocks, out)
    return out


def _checked(field: Field, array: np.ndarray, steps: int) -> np.ndarray:
    """Return the array in C order, or say how it differs from its field."""
    if array.shape != (steps, *field.shape) or array.dtype != np.dtype(field.dtype):
        raise ValueError(
            f"'{field.name}' is {array.dtype} {array.shape}; the format wants {field.dtype} {(steps, *field.shape)}"
        )
    return np.ascontiguousarray(array)


def _big_block(field: Field, array: np.ndarray) -> bytes:
    """Return the bytes of one block of a big field, not compressed."""
    if field.planes < 2:
        return array.tobytes()
    import cv2

    steps, height, width, planes = array.shape
    return b"".join(plane.tobytes() for plane in cv2.split(array.reshape(steps * height, width, planes)))


def _merge(raw: np.ndarray, held: int, first: int, target: np.ndarray) -> None:
    """Put pictures together from their planes: `target` gets those from number `first` on of the `held` of a block."""
    import cv2

    steps, height, width, planes = target.shape
    blocks = raw.reshape(planes, held, height, width)[:, first : first + steps]
    whole = np.ascontiguousarray(target) if not target.flags.c_contiguous else target
    cv2.merge([plane.reshape(steps * height, width) for plane in blocks], whole.reshape(steps * height, width, planes))
    if whole is not target:
        target[...] = whole


def _mask(flags: np.ndarray) -> int:
    """Return the flags as an integer, bit t for step t."""
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")


def _decompressor() -> zstandard.ZstdDecompressor:
    """Return this thread's decompressor: one may not be used by two threads at once."""
    if not hasattr(_LOCAL, "decompressor"):
        _LOCAL.decompressor = zstandard.ZstdDecompressor()
    return _LOCAL.decompressor
