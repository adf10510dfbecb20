"""What a node is like: facts gathered on the node itself, judged elsewhere.

These functions travel to nodes by value, so that a node without dreamfleet, or with another one, still answers: they
import nothing but the standard library before they know what is there, and return plain data.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

STEPPED = 64
"""Environment steps that are tried; `STEPPING_S` ends it earlier."""
STEPPING_S = 3.0
_RENDERED = 3


class Gpu(TypedDict):
    """A GPU as the driver names it, and its memory in bytes."""

    name: str
    total: float
    free: float


class MachineFacts(TypedDict):
    """A machine as one of its processes sees it; sizes in bytes.

    `versions` are of python, ray, torch and dreamfleet, "" where there is none; `code` is a checksum of dreamfleet's
    files. `token_mode` is the mode of the token's file, -1 if there is none. `disk_free`, `disk_writable` are of the
    run's directory or of the nearest one above that exists; -1 if none was asked for. `torch_sees_gpu` is None where
    nobody asked torch.
    """

    versions: dict[str, str]
    code: str
    files_soft: int
    files_hard: int
    shm_total: int
    shm_free: int
    memory_total: int
    memory_free: int
    cores: int
    token_path: str
    token_mode: int
    disk_path: str
    disk_free: int
    disk_used: int
    disk_writable: bool
    gpus: list[Gpu]
    torch_sees_gpu: bool | None


def machine_facts(directory: str | None) -> dict[str, Any]:
    """Return `MachineFacts` of this machine; seconds where it has a GPU, else a fraction of one.

    Args:
        directory: the run's, absolute; None where no run's files will be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").exists() else None  # noqa: S108 (its size is wanted)
    gpus = _gpus()
    return {
        "versions": _versions(),
        "code": _code(),
        "files_soft": soft if soft >= 0 else 1 << 62,
        "files_hard": hard if hard >= 0 else 1 << 62,
        "shm_total": shm.total if shm else -1,
        "shm_free": shm.free if shm else -1,
        **_memory(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        **_token(),
        **_disk(directory),
        "gpus": gpus,
        "torch_sees_gpu": _torch_sees_gpu() if gpus else None,
    }


def environment_facts(settings: dict[str, Any]) -> dict[str, Any]:
    """Build one environment with rendering, step it with random actions, and return how long that took, or its error.

    Args:
        settings: `EnvironmentSettings` as plain data.

    Returns:
        `error`, a sentence, alone; or an empty one with `spaces` (as `Spaces.to_json` gives them), `built_s`, the mean
        `step_s` and `render_s`, and `frame`, the shape of a rendered picture, empty if it renders none.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as actors have it
    try:
        from dreamfleet.actors.environments.make import describe_spaces, make_environment
        from dreamfleet.common.settings.schema import EnvironmentSettings

        began = time.perf_counter()
        env = make_environment(EnvironmentSettings.model_validate(settings), render=True)
        env.reset(seed=0)
        built = time.perf_counter()
        steps = _step(env)
        spaces = describe_spaces(env).to_json()
        stepped = time.perf_counter()
        frames = [env.render() for _ in range(_RENDERED if env.render_mode else 0)]
        rendered = time.perf_counter()
        env.close()
    except Exception as error:  # noqa: BLE001 (any error of an environment is what is asked for)
        name = type(error).__name__  # our own errors are whole sentences
        return {"error": str(error) if name == "UserError" else f"{name}: {error}"}
    return {
        "error": "",
        "spaces": spaces,
        "built_s": built - began,
        "step_s": (stepped - built) / steps,
        "render_s": (rendered - stepped) / max(len(frames), 1),
        "frame": list(getattr(frames[-1], "shape", ())) if frames else [],
    }


class Examiner:
    """A process on a node that tells what the node is like, and answers at once when it is asked for the time."""

    def machine(self, directory: str | None) -> dict[str, Any]:
        """See `machine_facts`."""
        return machine_facts(directory)

    def clock(self) -> float:
        """Return this machine's time in seconds since 1970."""
        return time.time()


def _step(env: Any) -> int:
    """Take random actions and return how many."""
    from dreamfleet.actors.spaces.action_spaces import random_actions

    actions = random_actions(env.action_space, seed=0)
    began, steps = time.perf_counter(), 0
    while steps < STEPPED and time.perf_counter() - began < STEPPING_S:
        _, _, terminated, truncated, _ = env.step(next(actions))
        steps += 1
        if terminated or truncated:
            env.reset()
    return steps


def _versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for name in ("ray", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    try:
        import dreamfleet

        versions["dreamfleet"] = dreamfleet.__version__
    except ImportError:
        versions["dreamfleet"] = ""
    return versions


def _code() -> str:
    """Return a checksum of dreamfleet's own files, which tells checkouts of one version apart; "" without it."""
    try:
        import dreamfleet
    except ImportError:
        return ""
    root = Path(dreamfleet.__file__).parent
    parts = ("common", "actors", "replay", "learner", "deploy")
    checksum = 0
    for file in (file for part in parts for file in sorted((root / part).rglob("*.py"))):
        checksum = zlib.crc32(file.relative_to(root).as_posix().encode() + file.read_bytes(), checksum)
    return f"{checksum:08x}"


def free_memory() -> int:
    """Return the free bytes of the machine, or of the container if that has less; -1 where nobody knows."""
    return _memory()["memory_free"]


def _memory() -> dict[str, int]:
    """Return the memory of the machine, or of the container if that has less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {"memory_total": -1, "memory_free": -1}
    amounts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    total, free = amounts["MemTotal"], amounts.get("MemAvailable", amounts["MemFree"])
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # not in a container, or one without a limit ("max")
        return {"memory_total": total, "memory_free": free}
    return {"memory_total": min(total, limit), "memory_free": min(free, limit - used)}


def _token() -> dict[str, Any]:
    """Return where Ray's token is, and its file's mode: RAY_AUTH_TOKEN, else RAY_AUTH_TOKEN_PATH, else in the home."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return {"token_path": "RAY_AUTH_TOKEN", "token_mode": 0o600}
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return {"token_path": str(path), "token_mode": stat.S_IMODE(path.stat().st_mode)}
    except OSError:
        return {"token_path": str(path), "token_mode": -1}


def _disk(directory: str | None) -> dict[str, Any]:
    """Return what is free where the run's directory is or will be, and what it takes already."""
    if directory is None:
        return {"disk_path": "", "disk_free": -1, "disk_used": 0, "disk_writable": True}
    path = Path(directory)
    used = sum(file.stat().st_size for part in ("replay", "checkpoints") for file in (path / part).rglob("*.*")
               if file.is_file())  # fmt: skip
    while not path.exists() and path != path.parent:
        path = path.parent
    writable = path.is_dir() and os.access(path, os.W_OK)
    return {"disk_path": str(path), "disk_free": shutil.disk_usage(path).free, "disk_used": used,
            "disk_writable": writable}  # fmt: skip


def _gpus() -> list[dict[str, Any]]:
    """Return the GPUs that NVIDIA's driver sees."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    query = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 2) for line in told.splitlines() if line.count(",") >= 2]
    return [{"name": name.strip(), "total": float(total) * 2**20, "free": float(free) * 2**20}
            for name, total, free in rows]  # fmt: skip


def _torch_sees_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())
