"""Every random number comes from the run's seed, a purpose and counters, so that no random state needs to be stored."""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, purpose: str, *counters: int) -> int:
    """Return a seed in [0, 2**63) that differs for every run seed, purpose and tuple of counters.

    It is the same on every machine and in every version of Python: update number `n` draws the same sequences and the
    same noise whether or not the run was interrupted before.
    """
    text = ":".join([str(run_seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
