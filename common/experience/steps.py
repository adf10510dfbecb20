"""The step of an environment: the arrays it is made of, and their alignment in time, to which all other files refer.

A step at index t holds the observation, the reward received *on arriving* at it, three flags, and the action taken
*after* it:

    index          0          1          2    ...    n          n+1
    observation    o_0        o_1        o_2         o_n        o'_0        (o' = the next episode of the same stream)
    reward         0          r_1        r_2         r_n        0
    is_first       1          0          0           0          1
    is_last        0          0          0           1          0           the episode ends here, for any reason
    is_terminal    0          0          0           0 or 1     0           1: a true end; 0 with is_last: cut short
    action         a_0        a_1        a_2         (unused)   a'_0
    episode        0          0          0           0          1           number of the episode in its stream
    version        of the weights that chose `action`

The network's input at t is a_{t-1}, or zero where is_first. `is_last` and the following `is_first` are two steps: both
the last observation of an episode and the first of the next are stored.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dreamfleet.common.experience.spaces import Spaces

BLOCK_STEPS = 16
"""Steps in one compressed block of a big field, the least that is decoded when a sequence is read."""
CHUNK_STEPS = 64
"""Most steps in one chunk; the masks in its header have one bit for each."""
BLOCK_LAYOUT = "planes"
"""The layout of a block; another layout is another format."""
BIG_FIELD_BYTES = 512
"""A field with at least this many bytes per step is stored in blocks of its own."""


@dataclass(frozen=True)
class Field:
    """One array of a step, with its shape per step."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def step_bytes(self) -> int:
        """Bytes of one step."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    @property
    def planes(self) -> int:
        """Channels of a big picture, which is stored plane by plane if it has several; 0 for anything else."""
        return self.shape[2] if self.is_big and self.dtype == "uint8" and len(self.shape) == 3 else 0

    @property
    def is_big(self) -> bool:
        """Whether it is stored in blocks of its own."""
        return self.step_bytes >= BIG_FIELD_BYTES


class StepFormat:
    """The arrays of one step, for the spaces of an environment, in the order in which they are stored.

    Attributes:
        fields: action, reward, is_first, is_last, is_terminal, episode, version, then the observations.
        small: the fields stored together in a chunk's first block.
        big: the fields stored in blocks of `BLOCK_STEPS` steps.
        identity: a number that differs between formats, stored in every chunk.
    """

    def __init__(self, spaces: Spaces) -> None:
        self.spaces = spaces
        action = Field("action", spaces.action.stored_dtype, spaces.action.stored_shape)
        flags = [Field(name, "bool", ()) for name in ("is_first", "is_last", "is_terminal")]
        counters = [Field("episode", "int32", ()), Field("version", "int32", ())]
        observations = [Field(spec.name, spec.dtype, spec.shape) for spec in spaces.observations]
        self.fields: tuple[Field, ...] = (action, Field("reward", "float32", ()), *flags, *counters, *observations)
        self.small = tuple(field for field in self.fields if not field.is_big)
        self.big = tuple(field for field in self.fields if field.is_big)
        self.identity = zlib.crc32(json.dumps(self._described(spaces.plain()), sort_keys=True).encode())

    @property
    def step_bytes(self) -> int:
        """Bytes of one step, not compressed."""
        return sum(field.step_bytes for field in self.fields)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `from_json`."""
        return self._described(self.spaces.to_json())

    @staticmethod
    def from_json(data: dict[str, Any]) -> StepFormat:
        """Return the format of what `to_json` gave; ValueError or KeyError if this version cannot read it."""
        if data.get("layout") != BLOCK_LAYOUT:
            raise ValueError(f"blocks are laid out by '{data.get('layout')}', which is not known")
        if (data["block_steps"], data["chunk_steps"]) != (BLOCK_STEPS, CHUNK_STEPS):
            raise ValueError(f"blocks of {data['block_steps']} and chunks of {data['chunk_steps']} steps are not known")
        return StepFormat(Spaces.from_json(data["spaces"]))

    @staticmethod
    def _described(spaces: dict[str, Any]) -> dict[str, Any]:
        return {"spaces": spaces, "layout": BLOCK_LAYOUT, "block_steps": BLOCK_STEPS, "chunk_steps": CHUNK_STEPS}


RESERVED_NAMES = ("action", "reward", "is_first", "is_last", "is_terminal", "episode", "version")
"""Names that an observation of a Dict may not have."""
