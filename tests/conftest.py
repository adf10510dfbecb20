"""Fixtures of all tests: a local Ray, and an alarm for tests that hang."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON_PATH = os.pathsep.join([str(ROOT / ".pkg"), str(ROOT / "tests" / "support")])
HANG_S = 600  # no test takes a tenth of it on an idle machine; a busy one takes several times as long
CLUSTER_HANG_S = 3600

# Ray would otherwise write an authentication token to the home of whoever runs the tests.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs have it; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks gain nothing by more, and on a busy machine lose


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where torch finds none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="torch finds no GPU here"))


@pytest.fixture(autouse=True)
def _alarm(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that hangs: an exception from a signal handler interrupts `ray.get`, other time limits do not."""
    own = request.node.get_closest_marker("hangs_after")
    is_cluster = request.node.get_closest_marker("cluster")
    patience_s = own.args[0] if own else CLUSTER_HANG_S if is_cluster else HANG_S

    def ring(_number: int, _frame: FrameType | None) -> None:
        message = f"{request.node.nodeid} hung for {patience_s} s"
        raise SystemExit(message)

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(patience_s)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have torch compute in float64 where numbers are compared: float32 rounds differently on every processor."""
    numeric = request.node.get_closest_marker("numeric")
    if numeric is None:
        yield
        return
    import torch

    torch.set_default_dtype(getattr(torch, numeric.kwargs.get("dtype", "float64")))
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Start Ray on this machine for all tests that ask for it; its workers import this checkout."""
    import ray

    from dreamfleet.actors.environments.rendering import prepare_library
    from dreamfleet.deploy.workers.ray_session import start_local_ray

    prepare_library()  # once for all workers, which inherit it
    start_local_ray(
        2,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": PYTHON_PATH, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()
