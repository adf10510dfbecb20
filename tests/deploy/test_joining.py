"""Joining a cluster: its token is used where there is one, what goes wrong is one sentence, losses are losses."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run.runs import train
from dreamfleet.deploy.workers.address import use_token
from dreamfleet.deploy.workers.pool import WorkerLostError
from dreamfleet.deploy.workers.ray_pool import RayPool
from dreamfleet.deploy.workers.ray_session import _why_not_joined

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty home, without any of Ray's variables."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)
    return tmp_path


def test_a_token_at_home_is_used(home: Path) -> None:
    """With a token in the home Ray is printed to use it; without one it is printed nothing."""
    use_token()
    assert "RAY_AUTH_MODE" not in os.environ
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_script_that_joins_a_cluster_uses_the_token_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the command line, before Ray is imported or the cluster asked."""
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")
    monkeypatch.chdir(home)
    with pytest.raises(UserError, match="no Ray cluster answers at '127"):
        train(Settings(), "CartPole-v1", "run", address="127.0.0.1:1")
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert not (home / "run").exists()


def test_what_the_user_said_about_tokens_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode that is set stays."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_a_refused_token_is_told_from_a_silent_cluster() -> None:
    """Ray hides the refusal behind a failed connection; the sentence says what to do."""
    refused = ConnectionError("Failed to connect")
    refused.__cause__ = RuntimeError("Unauthenticated: the token is missing")
    assert "asks for its token" in _why_not_joined("head:6379", refused)
    assert "no Ray cluster answers at 'head:6379'" in _why_not_joined("head:6379", ConnectionError("refused"))


@pytest.mark.parametrize("error", [OutOfMemoryError("killed by the memory monitor"), ActorDiedError(), RayError("x")])
def test_every_loss_that_ray_tells_of_is_a_lost_worker(error: RayError) -> None:
    """A worker that the memory monitor killed is replaced like one that crashed."""
    future: Future[Any] = Future()
    future.set_exception(error)
    with pytest.raises(WorkerLostError):
        RayPool.result(object.__new__(RayPool), future)
