"""The doctor's judgement of one machine: from facts to lines that say ok, warning or error, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from dreamfleet.common.formatting import format_bytes
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor.check_node import MachineFacts
from dreamfleet.deploy.plan.footprint import CUDA_CONTEXT_BYTES, Footprint

Level = Literal["ok", "warning", "error"]

CLUSTER_FILES, MACHINE_FILES = 65_536, 8_192
"""Open files that Ray's documentation asks for on a cluster, and at least: each worker and connection takes some."""
LEAST_FILES = 4_096
"""Below this Ray itself expects failed connections."""
ROOM = 4
"""An object store of less than so many times what is needed spills to the disk when something is late."""
STORE_SHARE, SHM_SHARE = 0.3, 0.95
"""Of the free memory and of /dev/shm, what Ray takes for its object store unless it is told otherwise."""
PROCESS_BYTES = 300e6
"""What a process of ours takes before it holds data: interpreter, Ray, and torch or an environment (an estimate)."""
_SHM = "/dev/shm"  # noqa: S108 (its size is judged, nothing is written there)


@dataclass(frozen=True)
class Line:
    """One finding: how bad it is, what it is about, what was found, and what to do unless it is ok."""

    level: Level
    subject: str
    found: str
    advice: str = ""


class Section(NamedTuple):
    """Findings under a heading: about a machine, or about a cluster as a whole."""

    heading: str
    lines: list[Line]


def check_files(facts: MachineFacts, raised: bool) -> Line:
    """Judge the limit of open files.

    Args:
        facts: of the machine.
        raised: whether `ray.init` is to start Ray there, which raises the soft limit up to the hard one; `ray start`
            does not.
    """
    soft, hard = facts["files_soft"], facts["files_hard"]
    wanted = MACHINE_FILES if raised else CLUSTER_FILES
    reached = max(soft, min(hard, CLUSTER_FILES)) if raised else soft
    found = f"{soft:,} open files" + (f", raised by Ray to {reached:,}" if reached > soft else "")
    if reached >= wanted:
        return Line("ok", "open files", found)
    first = f"`ulimit -n {wanted}`" if hard >= wanted else f"raise the hard limit to {wanted:,}"
    advice = f"{first} before Ray starts (systemd: LimitNOFILE; Docker: --ulimit nofile)"
    return Line("error" if reached < LEAST_FILES else "warning", "open files", found, advice)


def default_store(facts: MachineFacts) -> float:
    """Return the bytes that Ray takes for its object store on this machine unless it is told otherwise."""
    store = STORE_SHARE * facts["memory_free"]
    return min(store, SHM_SHARE * facts["shm_free"]) if facts["shm_free"] >= 0 else store


def check_shm(facts: MachineFacts, store: float, needed: float) -> Line:
    """Judge /dev/shm, where the object store lies, against the store and what a run puts there."""
    total = facts["shm_total"]
    if total < 0:
        return Line("ok", _SHM, "not on this system")
    found, advice = f"{format_bytes(total)}", "start the container with --shm-size (Kubernetes: an emptyDir in memory)"
    if total < needed:
        return Line("error", _SHM, f"{found}, but batches and weights take up to {format_bytes(needed)}", advice)
    if store > total:
        found += f" for an object store of {format_bytes(store)}: Ray puts it on the disk"
        return Line("warning", _SHM, found, f"{advice}, or start Ray with a smaller --object-store-memory")
    if total < 1e9:
        return Line("warning", _SHM, f"{found}, which leaves Ray little", advice)
    return Line("ok", _SHM, f"{found} for an object store of {format_bytes(store)}")


def check_store(store: float, needed: float, held: str) -> Line:
    """Judge the object store against what a run puts there, uncompressed at worst; `held` says what that is."""
    found = f"{format_bytes(store)} for up to {format_bytes(needed)} of {held}, uncompressed"
    advice = "start Ray with a greater --object-store-memory, or take less learner.prefetch or smaller batches"
    if store < needed:
        return Line("error", "object store", found, advice)
    if store < ROOM * needed:
        return Line("warning", "object store", f"{found}: less than {ROOM} times that", advice)
    return Line("ok", "object store", found)


def check_memory(facts: MachineFacts, needed: float, held: str) -> Line:
    """Judge the free memory against an estimate of what this machine's part of a run takes."""
    total, free = facts["memory_total"], facts["memory_free"]
    if total < 0:
        return Line("ok", "memory", f"unknown on this system; about {format_bytes(needed)} needed for {held}")
    memory = f"{format_bytes(free)} free of {format_bytes(total)}"
    found = f"{memory}, about {format_bytes(needed)} needed for {held} (an estimate)"
    if total < needed:
        return Line("error", "memory", found, "take a bigger machine, fewer actors here, or smaller batches")
    if free < needed:
        return Line("warning", "memory", found, "end what else runs here, or take fewer actors")
    return Line("ok", "memory", found)


def check_disk(facts: MachineFacts, settings: Settings, footprint: Footprint | None) -> Line:
    """Judge the disk of the run's directory against the replay's budget and the checkpoints."""
    path, free = facts["disk_path"], facts["disk_free"]
    budget = footprint.disk(settings) if footprint else settings.replay.capacity_gb * 1e9
    needed = max(0.0, budget - facts["disk_used"])
    parts = "replay and checkpoints" if footprint else "the replay"
    found = f"{format_bytes(free)} free at {path}, {parts} may take {format_bytes(needed)}"
    advice = "name another directory with --run, free some space, or lower replay.capacity_gb"
    if not facts["disk_writable"]:
        return Line("error", "disk", f"{path} may not be written to", "name another directory with --run")
    if free < needed:
        return Line("error", "disk", found, advice)
    if free < 1.1 * needed:
        return Line("warning", "disk", f"{found}, which leaves next to nothing", advice)
    return Line("ok", "disk", found)


def check_gpu(facts: MachineFacts, device: str, training: float | None, ray_gpus: float | None) -> Line:
    """Judge the learner's GPU, and its memory against an estimate of what training takes.

    Args:
        facts: of the learner's machine.
        device: learner.device.
        training: estimated bytes; None if they are not known.
        ray_gpus: how many GPUs Ray has there; None on one machine alone, where it has what there is.
    """
    gpus = facts["gpus"]
    if device == "cpu":
        return Line("ok", "GPU", "not asked for: learner.device is cpu")
    if not gpus:
        if device == "cuda":
            return Line("error", "GPU", "none found, and learner.device is cuda",
                        "install NVIDIA's driver, take a machine with a GPU, or learner.device auto")  # fmt: skip
        found = "none found: the learner will compute on the CPU"
        advice = "give the node a GPU, or set learner.device to cpu" if ray_gpus is not None else ""
        return Line("warning" if ray_gpus is not None else "ok", "GPU", found, advice)
    gpu = gpus[0]
    name = f"{gpu['name']}, {format_bytes(gpu['total'])}"
    if not facts["torch_sees_gpu"]:
        return Line("error" if device == "cuda" else "warning", "GPU",
                    f"{name}, but torch {facts['versions']['torch'] or '(not installed)'} does not see it",
                    "install a build of torch for CUDA that fits the driver")  # fmt: skip
    if ray_gpus is not None and ray_gpus < 1:
        return Line("error", "GPU", f"{name}, but Ray has no GPU on this node",
                    "start Ray there with --num-gpus 1 (in a cluster file: resources GPU: 1)")  # fmt: skip
    if training is None:
        return Line("ok", "GPU", name)
    needed = training + CUDA_CONTEXT_BYTES
    found = f"{name}, {format_bytes(gpu['free'])} free, about {format_bytes(needed)} needed to train (an estimate)"
    if needed > gpu["total"]:
        return Line("error", "GPU", found, "lower learner.batch_size or learner.sequence_length, or take a bigger GPU")
    if needed > gpu["free"]:
        return Line("warning", "GPU", found, "see with nvidia-smi what else runs on it")
    return Line("ok", "GPU", found)


def check_environment(name: str, facts: dict[str, Any], usual_step_s: float | None) -> Line:
    """Judge how one environment was built, stepped and rendered.

    Args:
        name: env.id.
        facts: as `environment_facts` gives them.
        usual_step_s: median time of a step over all nodes; None if there is but one.
    """
    if facts["error"]:
        advice = "install what it needs on this node; rendering without a screen may need MUJOCO_GL=egl"
        return Line("error", "environment", f"{name} failed: {facts['error']}", advice)
    step_s = facts["step_s"]
    found = f"{name}: built in {facts['built_s']:.1f} s, {1e3 * step_s:.3g} ms a step ({1 / step_s:,.0f}/s)"
    if not facts["frame"]:
        return Line("warning", "environment", f"{found}, renders no pictures",
                    "it can be trained on; `dreamfleet eval` will have no videos")  # fmt: skip
    shape = "×".join(str(size) for size in facts["frame"])
    found += f", {1e3 * facts['render_s']:.3g} ms for a picture of {shape}"
    if usual_step_s and step_s > 3 * usual_step_s:
        return Line("warning", "environment", f"{found}: {step_s / usual_step_s:.1f} times the other nodes' time",
                    "see what else runs on this node, or give it fewer actors")  # fmt: skip
    return Line("ok", "environment", found)


def check_cores(cores: int, actors: int) -> Line:
    """Judge one machine's cores against its actors and the learner."""
    found = f"{actors} actor{'s' * (actors > 1)} and the learner on {cores} core{'s' * (cores > 1)}"
    if actors > cores:
        return Line("warning", "cores", found, f"set actors.count to {max(1, cores - 1)}: more will take turns")
    return Line("ok", "cores", found)
