"""Functions run on several ranks at once, in processes of their own that are connected by gloo on loopback."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

import torch
from patience import PATIENCE_S

from dreamfleet.learner.connected_ranks import ConnectedRanks, open_store, reach_store
from dreamfleet.learner.ranks import Ranks

LOOPBACK = "127.0.0.1"


def on_ranks(work: Callable[..., Any], *arguments: Any, count: int = 2, timeout_s: float = 60.0) -> list[Any]:
    """Return what `work(ranks, *arguments)` returns on each rank; it is a function at the top level of a module.

    Raises:
        AssertionError: with its traceback, if it raises on any.
    """
    store, port = open_store(LOOPBACK)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=_work, args=(answers, number, count, port, timeout_s, work, arguments), daemon=True)
        for number in range(count)
    ]
    try:
        for process in processes:
            process.start()
        found = dict(answers.get(timeout=PATIENCE_S) for _ in processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
        del store
    for answer in found.values():
        assert not isinstance(answer, Failure), str(answer)
    return [found[number] for number in range(count)]


class Failure(str):
    """The traceback of a rank that failed."""


def _work(
    answers: Any,
    number: int,
    count: int,
    port: int,
    timeout_s: float,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        answers.put((number, work(connect(number, count, port, timeout_s), *arguments)))
    except BaseException:  # noqa: BLE001 (it is raised in the test)
        answers.put((number, Failure(traceback.format_exc())))
    answers.close()
    answers.join_thread()


def connect(number: int, count: int, port: int, timeout_s: float = 60.0) -> Ranks:
    """Return the rank of this process."""
    store = reach_store(LOOPBACK, port)
    return ConnectedRanks(number, count, store, LOOPBACK, torch.device("cpu"), timeout_s)
