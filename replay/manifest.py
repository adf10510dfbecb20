"""The manifest of a shard, `manifest.json`: what its directory should hold at least.

It is written anew, as a whole, when a segment is begun, and when the replay is synced or closed. So it says what was
dropped on purpose, and it knows of the newest segment, which no later one names.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.replay.segment import sync_directory
from dreamfleet.replay.segment_header import Link

NAME = "manifest.json"
_MOST_BYTES = 1 << 26


class DamagedManifestError(Exception):
    """A manifest that is not whole."""


@dataclass(frozen=True)
class Manifest:
    """What a shard's directory should hold at least.

    Attributes:
        oldest: number of the oldest segment that was not dropped for space.
        newest: number of the newest segment begun; 0 before the first.
        steps: unique steps ever stored.
        dropped: those of them in segments before the oldest.
        link: the newest segment as it was when this was written; None before the first.
        shards: how many shards the replay has of which this is one.
        breaks: numbers of segments before which something is missing for good, as `replay repair` has set down.
        gaps: (actor, incarnation, stream, number) of chunks before which others are missing for good, likewise.
    """

    oldest: int = 1
    newest: int = 0
    steps: int = 0
    dropped: int = 0
    link: Link | None = None
    shards: int = 1
    breaks: Sequence[int] = field(default_factory=list)
    gaps: Sequence[Sequence[int]] = field(default_factory=list)

    def write(self, directory: Path) -> None:
        """Put this in the place of the directory's manifest; after a crash the old or the new one is there."""
        unfinished = directory / f"{NAME}.tmp"
        values = json.dumps(asdict(self), separators=(",", ":"))
        with unfinished.open("w") as file:
            file.write(f'{{"manifest":{values},"crc32":{zlib.crc32(values.encode())}}}\n')
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(directory / NAME)
        sync_directory(directory)

    @staticmethod
    def read(directory: Path) -> Manifest | None:
        """Return the directory's manifest, or None if there is none.

        Raises:
            DamagedManifestError: if it is not whole.
            UserError: if it cannot be read.
        """
        path = directory / NAME
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise DamagedManifestError(f"{path} is too large for a manifest")
            text = path.read_text(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
        manifest = Manifest._parse(text)
        if not (manifest and manifest._is_well_formed()):
            raise DamagedManifestError(f"{path} is damaged")
        return manifest

    @staticmethod
    def _parse(text: str) -> Manifest | None:
        try:
            found = json.loads(text)
            values, checksum = found["manifest"], found["crc32"]
            link = values.get("link")
            manifest = Manifest(**(values | {"link": None if link is None else Link(*link)}))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return manifest if zlib.crc32(json.dumps(values, separators=(",", ":")).encode()) == checksum else None

    def _is_well_formed(self) -> bool:
        numbers = [self.oldest, self.newest, self.steps, self.dropped, self.shards]
        if not (isinstance(self.breaks, list) and isinstance(self.gaps, list)):
            return False
        if self.link:
            numbers += self.link.counts
        if not all(isinstance(key, list) and len(key) == 4 for key in self.gaps):
            return False
        numbers += [*self.breaks, *(number for key in self.gaps for number in key)]
        return all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
