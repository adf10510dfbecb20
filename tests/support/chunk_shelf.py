"""A stand-in for the replay's server: keeps the chunks that an actor on Ray sends."""

from __future__ import annotations

from typing import Any


class Shelf:
    """Acknowledges and keeps every chunk."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def append(self, chunk: bytes) -> bool:
        """Keep a chunk."""
        self._chunks.append(chunk)
        return True

    def chunks(self) -> list[bytes]:
        """Return all chunks."""
        return self._chunks


def start_shelf() -> Any:
    """Return the handle of a shelf on Ray."""
    import ray

    return ray.remote(Shelf).options(num_cpus=0).remote()
