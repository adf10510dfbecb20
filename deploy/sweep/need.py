"""What a cell takes of a machine, and what a machine has for several at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dreamfleet.common.formatting import counted, format_bytes
from dreamfleet.common.memory import usable_memory
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor.facts import list_gpus, usable_cores

PROCESS_BYTES = 5e8
"""Memory of a process that has imported torch, with a small model and its batches."""
RAY_BYTES = 8e8
"""Memory of Ray's own processes on one machine."""


@dataclass(frozen=True)
class Need:
    """CPU cores, bytes of memory and GPUs that a cell takes, and how many threads its learner computes on."""

    cores: int
    memory: float
    gpus: int
    threads: int

    @staticmethod
    def of(settings: Settings, inline: bool, has_gpus: bool, said: Mapping[str, float]) -> Need:
        """Return what a run takes: a core for each thread of the learner and for each actor, unless `said` has it."""
        learner, actors = settings.learner, int(settings.actors.count)
        threads = learner.threads or 1
        on_gpu = learner.device == "cuda" or (learner.device == "auto" and has_gpus)
        cores, processes = threads, 1
        if not inline:
            actors = 0 if settings.train.dataset else actors
            ranks = learner.ranks
            cores = (1 if on_gpu else threads * ranks) + actors
            processes = 1 + ranks + actors + settings.replay.shards + bool(settings.records.evaluate_every)
        cache = settings.replay.cache_gb
        memory = processes * PROCESS_BYTES + (0 if inline else RAY_BYTES)
        memory += 0 if isinstance(cache, str) else 1e9 * cache
        return Need(
            cores=max(1, round(said.get("cores", cores))),
            memory=1e9 * said["memory_gb"] if "memory_gb" in said else memory,
            gpus=round(said.get("gpus", (1 if inline else learner.ranks) if on_gpu else 0)),
            threads=threads,
        )

    def in_words(self) -> str:
        """Return `2 cores, 1.8 GB`."""
        gpus = [counted(self.gpus, "GPU")] if self.gpus else []
        return ", ".join([counted(self.cores, "core"), *gpus, format_bytes(self.memory)])


@dataclass(frozen=True)
class Machine:
    """The cores, the bytes of memory and the GPUs, by the names that CUDA has for them, that cells may use."""

    cores: int
    memory: float
    gpus: tuple[str, ...]

    @staticmethod
    def here() -> Machine:
        """Return this machine; CUDA_VISIBLE_DEVICES says which GPUs are meant, where it is set."""
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        if named is None:
            gpus = tuple(str(number) for number in range(len(list_gpus())))
        else:
            gpus = tuple(name.strip() for name in named.split(",") if name.strip())
        return Machine(usable_cores(), float(usable_memory()[1]), gpus)

    def has_room(self, need: Need, running: Sequence[Need]) -> bool:
        """Whether one more cell has room beside those that run. What is too big for the machine runs alone."""
        if not running:
            return True
        cores, gpus = (sum(getattr(one, name) for one in running) for name in ("cores", "gpus"))
        memory = sum(one.memory for one in running)
        return (
            cores + need.cores <= self.cores
            and (self.memory < 0 or memory + need.memory <= self.memory)
            and (not need.gpus or gpus + need.gpus <= len(self.gpus))
        )

    def free_gpus(self, need: Need, taken: Sequence[str]) -> list[str]:
        """Return the GPUs that a cell gets, as many of those that are not taken as it needs."""
        return [gpu for gpu in self.gpus if gpu not in taken][: need.gpus]
