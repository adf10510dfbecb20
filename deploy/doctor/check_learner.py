"""The doctor's judgement of the machine that learner and replay are on: memory, object store, disk and GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor import checks
from dreamfleet.deploy.doctor.check_node import MachineFacts
from dreamfleet.deploy.doctor.checks import PROCESS_BYTES, Line
from dreamfleet.deploy.plan.footprint import Footprint, footprint_of


def sizes(settings: Settings, tried: Mapping[str, Any] | None) -> tuple[Footprint | None, list[Line]]:
    """Return the sizes of a run, as if nothing could be compressed, and what hinders working them out.

    Args:
        settings: the run's.
        tried: `environment_facts`, which tell the spaces; None if no node has any.
    """
    if not tried or tried["error"]:
        return None, [Line("warning", "model", "not judged: nobody knows what the environment shows",
                           "see what became of the environment")]  # fmt: skip
    try:
        return footprint_of(settings, Spaces.from_json(tried["spaces"]), compression=1.0), []
    except UserError as error:
        return None, [Line("error", "model", str(error), "change the setting that is named")]


def learner_lines(
    settings: Settings,
    facts: MachineFacts,
    footprint: Footprint | None,
    store: float,
    actors_here: int,
    actors: int,
    ray_gpus: float | None,
) -> list[Line]:
    """Judge the learner's machine.

    Args:
        settings: the run's.
        facts: of the machine.
        footprint: sizes of the run; None if they are not known.
        store: bytes of Ray's object store there.
        actors_here: actors on this machine.
        actors: actors in all, whose chunks arrive here.
        ray_gpus: GPUs that Ray has there; None on one machine alone.
    """
    training = footprint.training if footprint else None
    gpu = checks.check_gpu(facts, settings.learner.device, training, ray_gpus)
    if not footprint:
        return [checks.check_disk(facts, settings, None), gpu]
    needed = footprint.object_store(settings, actors)
    on_cpu = settings.learner.device == "cpu" or not facts["torch_sees_gpu"]
    memory = footprint.host_batches(settings) + footprint.index(settings) + needed
    memory += (1 + settings.replay.shards + actors_here) * PROCESS_BYTES + (footprint.training if on_cpu else 0)
    others = f", replay and {actors_here} actor{'s' * (actors_here > 1)}" if actors_here else " and replay"
    return [
        checks.check_shm(facts, store, needed),
        checks.check_store(store, needed, "batches, chunks and weights"),
        checks.check_memory(facts, memory, f"learner{others}"),
        checks.check_disk(facts, settings, footprint),
        gpu,
    ]
