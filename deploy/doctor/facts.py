"""Facts about a node, gathered on the node itself and checked elsewhere.

These functions travel to nodes by value, so that a node without dreamfleet, or with another one, still answers: they
import only the standard library before they know what is installed there, and return plain data.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from dreamfleet.common.memory import usable_memory

TRIED_STEPS = 64
"""Environment steps that are tried; `TRIED_S` ends it earlier."""
TRIED_S = 3.0
_RENDERED = 3


class Gpu(TypedDict):
    """A GPU as the driver names it, and its memory in bytes."""

    name: str
    total: float
    free: float


class MachineFacts(TypedDict):
    """A machine as one of its processes sees it; sizes in bytes, -1 where they are unknown.

    `versions` are of python, ray, torch and dreamfleet, "" where there is none; `code` is a checksum of dreamfleet's
    files. `token_mode` is the mode of the token's file, -1 if there is none. `disk_free`, `disk_writable` are of the
    run's directory or of the nearest one above that exists. `torch_sees_gpu` is None where there is no GPU to see;
    `compiler_lacks` names what compiling for one would need and is not there.
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
    compiler_lacks: list[str]


def machine_facts(directory: str) -> MachineFacts:
    """Return the facts of this machine, with a run's absolute directory; takes seconds where there is a GPU."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").exists() else None  # noqa: S108 (its size is wanted)
    memory_total, memory_free = usable_memory()
    token_path, token_mode = _token()
    path = nearest = Path(directory)
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    stored = [file for part in ("replay", "checkpoints") for file in (path / part).rglob("*.*") if file.is_file()]
    gpus, python, (dreamfleet, code) = list_gpus(), sys.version.split()[0], _version_and_code()
    return {
        "versions": {"python": python, "ray": _version("ray"), "torch": _version("torch"), "dreamfleet": dreamfleet},
        "code": code,
        "files_soft": soft if soft >= 0 else 1 << 62,
        "files_hard": hard if hard >= 0 else 1 << 62,
        "shm_total": shm.total if shm else -1,
        "shm_free": shm.free if shm else -1,
        "memory_total": memory_total,
        "memory_free": memory_free,
        "cores": usable_cores(),
        "token_path": token_path,
        "token_mode": token_mode,
        "disk_path": str(nearest),
        "disk_free": shutil.disk_usage(nearest).free,
        "disk_used": sum(file.stat().st_size for file in stored),
        "disk_writable": nearest.is_dir() and os.access(nearest, os.W_OK),
        "gpus": gpus,
        "torch_sees_gpu": _torch_sees_gpu() if gpus else None,
        "compiler_lacks": _compiler_lacks() if gpus else [],
    }


def environment_facts(settings: dict[str, Any]) -> dict[str, Any]:
    """Build one environment with rendering, step it with random actions, and return how long that took, or its error.

    Takes `EnvironmentSettings` as plain data. Returns `error`, a sentence, alone; or an empty one with `spaces` (as
    `Spaces.to_json` gives them), `built_s`, the mean `step_s` and `render_s`, and `frame`, the shape of a rendered
    picture, empty if it renders none.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as actors have it
    try:
        from dreamfleet.actors.environments.make import describe_spaces, make_environment
        from dreamfleet.common.settings.environment import EnvironmentSettings

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
    except Exception as error:  # noqa: BLE001 (any error of an environment is a finding)
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
    """A process on a node that gathers its facts, and answers at once when it is asked for the time."""

    machine = staticmethod(machine_facts)

    def clock(self) -> float:
        """Return this machine's time in seconds since 1970."""
        return time.time()


def usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _step(env: Any) -> int:
    """Take random actions and return how many."""
    from dreamfleet.actors.spaces.action_spaces import random_actions

    actions = random_actions(env.action_space, seed=0)
    began, steps = time.perf_counter(), 0
    while steps < TRIED_STEPS and time.perf_counter() - began < TRIED_S:
        _, _, terminated, truncated, _ = env.step(next(actions))
        steps += 1
        if terminated or truncated:
            env.reset()
    return steps


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _version_and_code() -> tuple[str, str]:
    """Return dreamfleet's version and a checksum of its files, which tells checkouts of one version apart."""
    try:
        import dreamfleet
    except ImportError:
        return "", ""
    root = Path(dreamfleet.__file__).parent
    parts = ("common", "actors", "replay", "learner", "deploy")
    checksum = 0
    for file in (file for part in parts for file in sorted((root / part).rglob("*.py"))):
        checksum = zlib.crc32(file.relative_to(root).as_posix().encode() + file.read_bytes(), checksum)
    return dreamfleet.__version__, f"{checksum:08x}"


def _token() -> tuple[str, int]:
    """Return where Ray's token is, and its file's mode: RAY_AUTH_TOKEN, else RAY_AUTH_TOKEN_PATH, else in the home."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN", 0o600
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return str(path), stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return str(path), -1


def list_gpus() -> list[Gpu]:
    """Return the GPUs that NVIDIA's driver sees, also where torch sees none."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    query = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 2) for line in answer.splitlines() if line.count(",") >= 2]
    mebibyte = 2.0**20
    return [
        {"name": name.strip(), "total": float(total) * mebibyte, "free": float(free) * mebibyte}
        for name, total, free in rows
    ]


def _torch_sees_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def _compiler_lacks() -> list[str]:
    """Return what torch.compile needs for a GPU and is not here; its Triton builds what talks to the driver."""
    has_c = any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]))
    has_headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    has_triton = importlib.util.find_spec("triton") is not None
    needs = {"a C compiler": has_c, "Python's headers (Python.h)": has_headers, "the package triton": has_triton}
    return [name for name, is_there in needs.items() if not is_there]
