"""Checks of the machine of learner and replay: its GPUs, a compiler for them, and what all there need together."""

from __future__ import annotations

from dreamfleet.common.formatting import counted, format_bytes
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor.checks import (
    PROCESS_BYTES,
    Case,
    Finding,
    check_disk,
    check_memory,
    check_shm,
    check_store,
    first_case,
)
from dreamfleet.deploy.doctor.facts import MachineFacts
from dreamfleet.deploy.plan.footprint import Footprint

CUDA_CONTEXT_BYTES = 600e6
"""What CUDA and its libraries take of a GPU before the first tensor (an estimate)."""


def check_gpu(
    facts: MachineFacts,
    device: str,
    training: float | None,
    ray_gpus: float | None,
    ranks: int = 1,
    elsewhere: float = 0.0,
) -> Finding:
    """Check the learner's GPUs, and the first one's memory against an estimate of the bytes to train, None if unknown.

    `ray_gpus` is how many GPUs Ray has there; None on one machine alone, where it has what there is. Of these and those
    that Ray has on other nodes, `ranks` are needed.
    """
    if device == "cpu":
        return Finding("ok", "GPU", "not asked for: learner.device is cpu")
    if not facts["gpus"]:
        none, on_cpu = "none found, and learner.device is cuda", "none found: the learner will compute on the CPU"
        install = "install NVIDIA's driver, take a machine with a GPU, or learner.device auto"
        give = "give the node a GPU, or set learner.device to cpu"
        cuda, in_cluster = device == "cuda" or ranks > 1, ray_gpus is not None
        none = none if ranks == 1 else f"none found, and learner.gpus is {ranks}"
        return first_case("GPU", on_cpu, (cuda, "error", none, install), (in_cluster, "warning", on_cpu, give))
    gpu, needed = facts["gpus"][0], (training or 0.0) + CUDA_CONTEXT_BYTES
    name = f"{gpu['name']}, {format_bytes(gpu['total'])}"
    estimate = f"about {format_bytes(needed)} needed to train (an estimate)"
    found = f"{name}, {format_bytes(gpu['free'])} free, {estimate}" if training is not None else name
    unseen = f"{name}, but torch {facts['versions']['torch'] or '(not installed)'} does not see it"
    hidden = f"{name}, but Ray has no GPU on this node"
    build = "install a build of torch for CUDA that fits the driver"
    start = "start Ray there with --num-gpus 1 (in a cluster file: resources GPU: 1)"
    have = len(facts["gpus"]) if ray_gpus is None else int(ray_gpus)
    few = f"{name}; {counted(have + int(elsewhere), 'GPU')} found in all, and learner.gpus is {ranks}"
    apart = f"{name}; {have} of the {ranks} GPUs are here: the gradients of every update cross the network"
    fewer = "set learner.gpus to what there is, or to auto"
    smaller = "lower learner.batch_size or learner.sequence_length, or take a bigger GPU"
    return first_case(
        "GPU",
        found,
        (not facts["torch_sees_gpu"], "error" if device == "cuda" else "warning", unseen, build),
        (ray_gpus is not None and ray_gpus < 1, "error", hidden, start),
        (have + elsewhere < ranks, "error", few, fewer),
        (training is not None and needed > gpu["total"], "error", found, smaller),
        (have < ranks, "warning", apart, "take a machine with as many GPUs for the learner"),
        (training is not None and needed > gpu["free"], "warning", found, "see with nvidia-smi what else runs on it"),
    )


def check_compiler(facts: MachineFacts) -> Finding:
    """Check that a GPU's updates can be compiled; without that they are eager, and wait for the host."""
    lacks = facts["compiler_lacks"]
    text = f"{' and '.join(lacks)} missing, without which updates are eager, and slower"
    remedy = "install what is missing (Debian, Ubuntu: apt install gcc python3-dev; pip install triton), or set "
    missing: Case = (bool(lacks), "warning", text, f"{remedy}learner.compile to off")
    return first_case("compiler", "all that torch.compile needs is there", missing)


def check_learner_machine(
    settings: Settings,
    facts: MachineFacts,
    footprint: Footprint | None,
    store: float,
    actors_here: int,
    actors: int,
    ray_gpus: float | None,
    elsewhere: float = 0.0,
) -> list[Finding]:
    """Check the machine of learner and replay: memory, object store, disk and GPU.

    `store` is in bytes; the chunks of all `actors` arrive there, not only of those here; `ray_gpus` and
    `elsewhere` as in `check_gpu`.
    """
    learner = settings.learner
    have = len(facts["gpus"]) if ray_gpus is None else int(ray_gpus)
    ranks = learner.most_ranks(have) if learner.takes_all_gpus else learner.ranks
    training = footprint.model.training(ranks) if footprint else None
    disk = check_disk(facts, settings, footprint)
    gpu = [check_gpu(facts, learner.device, training, ray_gpus, ranks, elsewhere)]
    if learner.device != "cpu" and facts["torch_sees_gpu"] and learner.compile != "off":
        gpu.append(check_compiler(facts))
    if not footprint or training is None:
        return [disk, *gpu]
    needed = footprint.object_store(settings, actors)
    on_cpu = learner.device == "cpu" or not facts["torch_sees_gpu"]
    memory = footprint.learner_batches(settings) + footprint.index(settings) + needed
    memory += footprint.cache(settings, max(0, facts["memory_free"]))
    memory += (ranks + settings.replay.shards + actors_here) * PROCESS_BYTES + (ranks * training if on_cpu else 0)
    users = f"learner, replay and {counted(actors_here, 'actor')}" if actors_here else "learner and replay"
    return [
        check_shm(facts, store, needed),
        check_store(store, needed, "batches, chunks and weights"),
        check_memory(facts, memory, users),
        disk,
        *gpu,
    ]
