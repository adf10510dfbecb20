"""The segment: one append-only file of chunks.

A file begins with a header, as `segment_header.py` draws it; then come chunks, as `common/experience/chunk.py` draws
them. Nothing in a file changes once written; a file only grows, until the next one is begun.
`scan.py` finds the chunks of a file again, around whatever is damaged in it.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience import chunk
from dreamfleet.replay.segment_header import MAGIC, MOST_BYTES, PREFIX, DamagedSegmentError, Link, SegmentHeader

_NAME = re.compile(r"segment-(\d{8,})\.dfl")


class Segment:
    """One file, open for reading and, if it is the newest, for appending.

    `number` is its place in the order of all segments ever written, `size` its bytes, `steps` those of its chunks as
    far as `count` was told of them, `is_whole` whether no damage was found in it; `has_passed` see `await_link`.
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path = path
        self.number = segment_number(path) if _NAME.fullmatch(path.name) else 0
        self.steps = 0
        self._header_checksum: int | None = None
        self._chunks_checksum = self._first_checksum = 0
        self._awaited: Link | None = None
        self.has_passed = False
        self.is_whole = True
        self._descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size
        self._pins = 0
        self._closed = False

    @staticmethod
    def create(directory: Path, header: SegmentHeader) -> Segment:
        """Begin the file of this header; after a crash it is there with a whole header, or not at all."""
        path = directory / segment_name(header.number)
        unfinished = path.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            file.write(header.encode())
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        sync_directory(directory)
        segment = Segment(path)
        segment.read_header()
        return segment

    def read_header(self) -> tuple[SegmentHeader, int]:
        """Return the header and the offset of the first chunk, or raise `DamagedSegmentError`."""
        prefix = self.read(0, PREFIX.size)
        if len(prefix) < PREFIX.size or prefix[:4] != MAGIC:
            raise DamagedSegmentError(f"a segment begins with {MAGIC!r}, not {prefix[:4]!r}")
        _, length, checksum = PREFIX.unpack(prefix)
        text = self.read(PREFIX.size, length) if length <= min(MOST_BYTES, self.size) else b""
        if len(text) != length or zlib.crc32(text) != checksum:
            raise DamagedSegmentError("the segment header's checksum is wrong")
        header = SegmentHeader.parse(text)
        self._header_checksum = checksum
        return header, PREFIX.size + length

    def count(self, steps: int, prefix: bytes | memoryview) -> None:
        """Take account of a chunk of this many steps that lies in the file, in order; `prefix` is its first bytes."""
        if not self.steps:
            self._first_checksum = zlib.crc32(prefix[: chunk.PREFIX.size])
        self.steps += steps
        self._chunks_checksum = zlib.crc32(prefix[: chunk.PREFIX.size], self._chunks_checksum)
        if self._awaited and self._awaited.steps == self.steps:
            self.has_passed = self._awaited.chunks == self._chunks_checksum

    def count_at(self, offset: int, steps: int) -> None:
        """`count` a chunk that begins at this byte."""
        self.count(steps, self.read(offset, chunk.PREFIX.size))

    def await_link(self, link: Link) -> None:
        """Have `count` find out whether the file's first chunks are those of a link to it, in `has_passed`."""
        self._awaited = link
        self.has_passed = link.steps == 0

    @property
    def link(self) -> Link:
        """What is to be remembered of the file, once its header was read and all its chunks were counted."""
        return Link(self.number, self._header_checksum, self.steps, self._chunks_checksum, self._first_checksum)

    def append(self, data: bytes | memoryview) -> int:
        """Write a chunk at the end with one system call and return its offset.

        Once this returns, the chunk outlives this process; it outlives the machine after `sync`.
        """
        offset, view = self.size, memoryview(data)
        try:
            written = 0
            while written < len(view):  # a second round only if the disk fills up or a signal came in between
                written += os.pwrite(self._descriptor, view[written:], offset + written)
        except OSError:
            os.ftruncate(self._descriptor, offset)
            raise
        self.size += len(view)
        return offset

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on; fewer at the end of the file."""
        return os.pread(self._descriptor, size, offset)

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill `target` from `offset` on and return how many bytes there were."""
        return os.preadv(self._descriptor, [target], offset)

    def truncate(self, size: int) -> None:
        """Cut off everything from `size` on: a torn chunk that was never acknowledged."""
        os.ftruncate(self._descriptor, size)
        os.fsync(self._descriptor)
        self.size = size

    def sync(self) -> None:
        """Wait until everything appended is on the disk itself."""
        os.fsync(self._descriptor)

    def pin(self) -> None:
        """Keep the file readable, also if it is closed or dropped meanwhile; the caller holds the replay's lock."""
        self._pins += 1

    def unpin(self) -> None:
        """Take back one `pin`; the caller holds the replay's lock."""
        self._pins -= 1
        self._close_if_unused()

    def close(self) -> None:
        """Close the file once nobody has it pinned."""
        self._closed = True
        self._close_if_unused()

    def drop(self) -> None:
        """Remove the file; whoever has it pinned can still read it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _close_if_unused(self) -> None:
        if self._closed and self._pins == 0 and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def segment_name(number: int) -> str:
    """Return the name of the file with this number."""
    return f"segment-{number:08d}.dfl"


def segment_paths(directory: Path) -> list[Path]:
    """Return the segment files of a directory, oldest first.

    Raises:
        UserError: if something that is no file has the name of one.
    """
    paths = [path for path in directory.glob("segment-*.dfl") if _NAME.fullmatch(path.name)]
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a directory, where a file with experience belongs: move it elsewhere.")
    return sorted((path for path in paths if path.name == segment_name(segment_number(path))), key=segment_number)


def foreign_paths(directory: Path) -> list[Path]:
    """Return what is named almost like a segment file of the directory, and is none."""
    known = set(segment_paths(directory))
    return sorted(path for path in directory.glob("segment-*") if path.suffix != ".tmp" and path not in known)


def open_segments(directory: Path, writable: bool) -> list[Segment]:
    """Open the segments of a directory, oldest first; those that another process drops meanwhile are left out.

    The newest is opened first: the oldest are dropped first, so that none is missing between those that were there.

    Raises:
        UserError: if one may not be opened.
    """
    segments: list[Segment] = []
    for path in reversed(segment_paths(directory)):
        try:
            segments.append(Segment(path, writable))
        except FileNotFoundError:
            break
        except OSError as error:
            for segment in segments:
                segment.close()
            raise UserError(f"{path} cannot be opened: {error.strerror}.") from None
    return segments[::-1]


def segment_number(path: Path) -> int:
    """Return the number in a segment file's name."""
    return int(path.stem.removeprefix("segment-"))


def sync_directory(directory: Path) -> None:
    """Wait until the directory's list of files is on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
