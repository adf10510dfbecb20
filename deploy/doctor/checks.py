"""The checks: pure functions from facts to findings, each a table of cases of which the first that applies is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.formatting import counted, format_bytes
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor.facts import MachineFacts
from dreamfleet.deploy.plan.footprint import Footprint, footprint_of

Level = Literal["ok", "warning", "error"]

CLUSTER_FILES, MACHINE_FILES = 65_536, 8_192
"""Open files that Ray's documentation asks for on a cluster, and at least: each worker and connection takes some."""
LEAST_FILES = 4_096
"""Below this Ray itself expects failed connections."""
STORE_FACTOR = 4
"""An object store smaller than this multiple of what is needed spills to the disk when something is late."""
STORE_SHARE, SHM_SHARE = 0.3, 0.95
"""The shares of the free memory and of /dev/shm that Ray takes for its object store by default."""
PROCESS_BYTES = 300e6
"""What a process of ours takes before it holds data: interpreter, Ray, and torch or an environment (an estimate)."""
SHM = "/dev/shm"  # noqa: S108 (its size is checked, nothing is written there)
_NAMES = {"python": "Python", "ray": "Ray", "torch": "torch", "dreamfleet": "dreamfleet"}


class Finding(NamedTuple):
    """How bad it is, what it is about, what was found, and what to do about it unless it is ok."""

    level: Level
    subject: str
    text: str
    remedy: str = ""


class Section(NamedTuple):
    """Findings under a heading: about a machine, or about a cluster as a whole."""

    heading: str
    findings: list[Finding]


Case = tuple[bool, Level, str, str]
"""Whether it applies, and the level, the text and the remedy of the finding if it does."""


def first_case(subject: str, ok: str, *cases: Case) -> Finding:
    """Return the first case that applies as a finding; if none does, all is ok."""
    applying = (Finding(level, subject, text, remedy) for applies, level, text, remedy in cases if applies)
    return next(applying, Finding("ok", subject, ok))


def check_versions(facts: MachineFacts, driver: MachineFacts | None = None) -> Finding:
    """Check that nothing is missing, and that a node has the same versions and files as the driver's."""
    own, theirs = facts["versions"], (driver or facts)["versions"]
    found = ", ".join(f"{_NAMES[name]} {version or 'missing'}" for name, version in own.items())
    missing = " and ".join(name for name, version in own.items() if not version)
    others = [name for name in own if own[name] != theirs[name]]
    differing = ", ".join(f"{_NAMES[name]} {own[name]}, but the driver has {theirs[name]}" for name in others)
    files = f"dreamfleet {own['dreamfleet']}, but not the same files as the driver's"
    return first_case(
        "versions",
        found,
        (bool(missing), "error", found, f"install {missing} on this machine"),
        (bool(others), "error", differing, "install the same versions on all nodes, then restart Ray"),
        (facts["code"] != (driver or facts)["code"], "warning", files, "install the same checkout on all nodes"),
    )


def check_token(mode: str, nodes: int) -> Finding:
    """Check that Ray asks for a token; `mode` is `token`, `disabled`, or `unknown` to this Ray."""
    off = "off: whoever reaches Ray's ports can run anything here"
    advice = "set RAY_AUTH_MODE=token on all nodes, with one token (`ray get-auth-token --generate`)"
    return first_case(
        "token",
        "on: nobody gets in without it",
        (mode == "unknown", "warning", "this Ray knows no token authentication", "install Ray 2.60 or newer"),
        (mode != "token", "error" if nodes > 1 else "warning", off, advice),
    )


def check_token_file(facts: MachineFacts, ray_is_up: bool) -> Finding:
    """Check that nobody else can read the token, where tokens are on."""
    path, mode = facts["token_path"], facts["token_mode"]
    absent = f"{path} does not exist, so the token must be elsewhere"
    ship = "ship the token to this node's home, or set RAY_AUTH_TOKEN_PATH"
    return first_case(
        "token's file",
        path if mode >= 0 else f"Ray makes {path} at its first start",
        (mode < 0 and ray_is_up, "warning", absent, ship),
        (mode > 0 and mode & 0o077 > 0, "warning", f"others may read {path} (mode {mode:o})", f"chmod 600 {path}"),
    )


def check_files(facts: MachineFacts, raised: bool) -> Finding:
    """Check the limit of open files, which `ray.init` raises up to the hard one, but not `ray start`."""
    soft, hard = facts["files_soft"], facts["files_hard"]
    wanted = MACHINE_FILES if raised else CLUSTER_FILES
    reached = max(soft, min(hard, CLUSTER_FILES)) if raised else soft
    found = f"{soft:,} open files" + (f", raised by Ray to {reached:,}" if reached > soft else "")
    first = f"`ulimit -n {wanted}`" if hard >= wanted else f"raise the hard limit to {wanted:,}"
    advice = f"{first} before Ray starts (systemd: LimitNOFILE; Docker: --ulimit nofile)"
    level: Level = "error" if reached < LEAST_FILES else "warning"
    return first_case("open files", found, (reached < wanted, level, found, advice))


def check_cores(cores: int, actors: int) -> Finding:
    """Check one machine's cores against its actors and the learner."""
    found = f"{counted(actors, 'actor')} and the learner on {counted(cores, 'core')}"
    advice = f"set actors.count to {max(1, cores - 1)}: more have to share cores"
    return first_case("cores", found, (actors > cores, "warning", found, advice))


def default_store(facts: MachineFacts) -> float:
    """Return the bytes that Ray takes for its object store on this machine by default."""
    store = STORE_SHARE * facts["memory_free"]
    return min(store, SHM_SHARE * facts["shm_free"]) if facts["shm_free"] >= 0 else store


def check_shm(facts: MachineFacts, store: float, needed: float) -> Finding:
    """Check /dev/shm, where the object store lies, against the store and what a run puts there."""
    total = facts["shm_total"]
    found = f"{format_bytes(total)} for an object store of {format_bytes(store)}"
    small = f"{format_bytes(total)}, but batches and weights take up to {format_bytes(needed)}"
    advice = "start the container with --shm-size (Kubernetes: an emptyDir in memory)"
    less = f"{advice}, or start Ray with a smaller --object-store-memory"
    return first_case(
        SHM,
        found if total >= 0 else "not on this system",
        (0 <= total < needed, "error", small, advice),
        (0 <= total < store, "warning", f"{found}: Ray puts it on the disk", less),
        (0 <= total < 1e9, "warning", f"{found}, which leaves Ray little", advice),
    )


def check_store(store: float, needed: float, content: str) -> Finding:
    """Check the object store against what a run puts there (`content`), uncompressed at worst."""
    found = f"{format_bytes(store)} for up to {format_bytes(needed)} of {content}, uncompressed"
    advice = "start Ray with a greater --object-store-memory, or take less learner.prefetch or smaller batches"
    return first_case(
        "object store",
        found,
        (store < needed, "error", found, advice),
        (store < STORE_FACTOR * needed, "warning", f"{found}: less than {STORE_FACTOR} times that", advice),
    )


def check_memory(facts: MachineFacts, needed: float, users: str) -> Finding:
    """Check the free memory against an estimate of what this machine's part of a run takes."""
    total, free = facts["memory_total"], facts["memory_free"]
    amount = f"about {format_bytes(needed)} needed for {users} (an estimate)"
    found = f"{format_bytes(free)} free of {format_bytes(total)}, {amount}"
    bigger = "take a bigger machine, fewer actors here, or smaller batches"
    less = "end what else runs here, take fewer actors, or lower replay.cache_gb"
    return first_case(
        "memory",
        found if total >= 0 else f"unknown on this system; {amount}",
        (0 <= total < needed, "error", found, bigger),
        (total >= 0 and free < needed, "warning", found, less),
    )


def check_disk(facts: MachineFacts, settings: Settings, footprint: Footprint | None) -> Finding:
    """Check the disk of the run's directory against the replay's budget and, if their size is known, checkpoints."""
    path, free = facts["disk_path"], facts["disk_free"]
    budget = footprint.disk(settings) if footprint else settings.replay.capacity_gb * 1e9
    needed = max(0.0, budget - facts["disk_used"])
    parts = "replay and checkpoints" if footprint else "the replay"
    found = f"{format_bytes(free)} free at {path}, {parts} may take {format_bytes(needed)}"
    elsewhere = "name another directory with --run"
    advice = f"{elsewhere}, free some space, or lower replay.capacity_gb"
    return first_case(
        "disk",
        found,
        (not facts["disk_writable"], "error", f"{path} may not be written to", elsewhere),
        (free < needed, "error", found, advice),
        (free < 1.1 * needed, "warning", f"{found}, which leaves next to nothing", advice),
    )


def check_environment(name: str, facts: Mapping[str, Any], usual_step_s: float | None) -> Finding:
    """Check how one environment was built, stepped and rendered, against the nodes' median step (None: one node)."""
    if facts["error"]:
        advice = "install what it needs on this node; rendering without a screen may need MUJOCO_GL=egl"
        return Finding("error", "environment", f"{name} failed: {facts['error']}", advice)
    step_s, shape = facts["step_s"], "×".join(map(str, facts["frame"]))
    stepped = f"{name}: built in {facts['built_s']:.1f} s, {1e3 * step_s:.3g} ms a step ({1 / step_s:,.0f}/s)"
    found = f"{stepped}, {1e3 * facts['render_s']:.3g} ms for a picture of {shape}"
    slow = f"{found}: {step_s / (usual_step_s or step_s):.1f} times the other nodes' time"
    blind = "it can be trained on; `dreamfleet eval` will have no videos"
    busy = "see what else runs on this node, or give it fewer actors"
    return first_case(
        "environment",
        found,
        (not shape, "warning", f"{stepped}, renders no pictures", blind),
        (step_s > 3 * (usual_step_s or step_s), "warning", slow, busy),
    )


def run_sizes(settings: Settings, environment: Mapping[str, Any] | None) -> tuple[Footprint | None, list[Finding]]:
    """Return the sizes of a run, as if nothing could be compressed, from `environment_facts`, or why not."""
    if not environment or environment["error"]:
        text = "not checked: what the environment shows is unknown"
        return None, [Finding("warning", "model", text, "see the finding about the environment")]
    try:
        return footprint_of(settings, Spaces.from_json(environment["spaces"]), compression=1.0), []
    except UserError as error:
        return None, [Finding("error", "model", str(error), "change the setting that is named")]
