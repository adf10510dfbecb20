"""Threads of a learner: what is set, what is chosen, and the reason that is given."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from dreamfleet.common.settings.schema import LearnerSettings
from dreamfleet.learner.hardware import Hardware, TorchThreads, choose_hardware, torch_threads


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def choose(
    monkeypatch: pytest.MonkeyPatch, cores: int, busy: int, set_to: TorchThreads | None = None, **settings: object
) -> Hardware:
    """Choose on a machine of `cores` cores, of which `busy` are busy."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    return choose_hardware(LearnerSettings.model_validate({"device": "cpu", **settings}), busy, set_to)


@pytest.mark.parametrize(
    ("cores", "busy", "threads", "reason"),
    [
        (8, 3, 5, "of 8 cores that this process may use, less 3 for the actors"),
        (8, 0, 8, "all cores that this process may use"),
        (2, 2, 1, "the least: the actors, 2, keep busy all 2 cores that this process may use"),
        (2, 9, 1, "the least: the actors, 9, keep busy all 2 cores that this process may use"),
    ],
)
def test_a_learner_on_the_cpu_leaves_the_actors_their_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, busy: int, threads: int, reason: str
) -> None:
    """At least one thread remains, and the sentence says how the number came about."""
    chosen = choose(monkeypatch, cores, busy)
    assert chosen.threads == torch.get_num_threads() == threads
    assert f"threads: {threads}, {reason}" in chosen.decisions


def test_the_setting_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that are asked for are taken, whoever is busy."""
    chosen = choose(monkeypatch, 8, 6, threads=3)
    assert chosen.threads == torch.get_num_threads() == 3
    assert "threads: 3, as learner.threads says" in chosen.decisions


@pytest.mark.parametrize(("cores", "busy", "threads"), [(4, 3, 1), (4, 9, 1), (8, 6, 2), (64, 8, 4), (64, 0, 4)])
def test_beside_a_gpu_the_cores_are_the_actors(
    monkeypatch: pytest.MonkeyPatch, cores: int, busy: int, threads: int
) -> None:
    """There the threads only feed the GPU: a few of the cores that the actors leave free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "a GPU")
    chosen = choose(monkeypatch, cores, busy, device="cuda", precision="float32")
    sentence = f"threads: {threads}, beside a GPU at most 4, and {busy} of {cores} cores are the actors'"
    assert sentence in chosen.decisions


def test_where_no_process_is_bound_to_cores_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `os.sched_getaffinity`, as on macOS, every core of the machine is one to use."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert choose_hardware(LearnerSettings(device="cpu"), 2).threads == 4


def test_what_torch_was_told_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that was asked for is taken as it is; one that may be torch's own is a limit; the setting wins."""
    asked, own = TorchThreads(6, is_asked_for=True), TorchThreads(4, is_asked_for=False)
    chosen = choose(monkeypatch, 4, 3, asked)
    assert chosen.threads == torch.get_num_threads() == 6
    assert "threads: 6, as OMP_NUM_THREADS or torch.set_num_threads says" in chosen.decisions
    assert choose(monkeypatch, 8, 2, own).threads == 4
    assert choose(monkeypatch, 8, 6, own).threads == 2, "the actors are left their cores"
    assert choose(monkeypatch, 8, 2, asked, threads=3).threads == 3


def test_who_set_the_threads_is_told_by_the_variable_or_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS is the user's; so are more threads than there are cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    assert torch_threads() == (2, True)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert torch_threads() == (2, False)
    torch.set_num_threads(5)
    assert torch_threads() == (5, True)
