"""Processes killed and frozen while a run works: no acknowledged step is lost or stored twice, the ratio holds."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from chaos_run import ChaosRun, chaos_settings

NewRun = Callable[..., ChaosRun]
WORKERS = ["actor", "replay", "learner"]


def kill_workers(run: ChaosRun, roles: list[str], least_s: float, most_s: float) -> None:
    """Kill a process of each role, one after another, at random moments of a run that works."""
    for role in roles:
        run.linger(least_s, most_s)
        run.wait_for(lambda role=role: run.kill(role), f"there was the {role} to kill")  # type: ignore[misc]


@pytest.mark.ray
@pytest.mark.parametrize("shards", [pytest.param(1), pytest.param(3, marks=pytest.mark.chaos)])
def test_every_kind_of_process_is_killed_and_the_run_resumed(new_run: NewRun, shards: int) -> None:
    """Each kind of worker dies, then the driver, then the run completes what it owes, in one process."""
    run = new_run(chaos_settings(replay={"shards": shards}))
    run.start()
    run.wait_for_more("checkpoint", 1)
    kill_workers(run, WORKERS, 0.1, 2.0)
    run.wait_for_more("checkpoint", 1)
    run.kill("driver")
    run.check(is_complete=False)
    run.start("--inline")
    assert run.end() == 0, run.printed
    run.check(is_complete=True)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.hangs_after(1800)
@pytest.mark.parametrize("shards", [1, 3])
def test_processes_are_killed_at_random_moments(new_run: NewRun, shards: int) -> None:
    """Seventy workers die while the run works, some at once, some while others come up."""
    endless = {"env_steps": 1_000_000}
    run = new_run(chaos_settings(replay={"shards": shards}, train=endless))
    run.start()
    run.wait_for_more("updates", 1)
    for _ in range(14):
        kill_workers(run, run.random.choices(WORKERS, weights=[3, 1, 1], k=5), 0.0, 4.0)
        run.wait_for_more("updates", 2)
    run.stop()
    run.check(is_complete=False)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.hangs_after(1800)
def test_all_workers_of_a_kind_die_at_once(new_run: NewRun) -> None:
    """Whole groups die in the same instant, and the run goes on."""
    run = new_run(chaos_settings(train={"env_steps": 1_000_000}))
    run.start()
    run.wait_for_more("updates", 1)
    for roles in (["actor"], ["learner", "replay"], ["actor", "learner"], ["actor", "learner", "replay"]):
        for role in roles:
            for _ in range(len(run.processes(role))):
                run.kill(role)
        run.wait_for_more("updates", 2)
        run.wait_for_more("steps", 6)
    run.stop()
    run.check(is_complete=False)


@pytest.mark.chaos
@pytest.mark.hangs_after(3600)
@pytest.mark.parametrize("inline", [True, False])
def test_the_driver_dies_at_random_moments(new_run: NewRun, inline: bool) -> None:
    """Wherever a start is killed, the next one continues, and in the end all is exact."""
    long = {"env_steps": 15_001}  # so that a quick machine, too, is not done with it before the last kill
    run = new_run(chaos_settings(env={"kwargs": {"length": 20, "delay_s": 0.0}}, train=long), inline=inline)
    for _ in range(40 if inline else 12):
        run.start()
        run.linger(0.5, 8.0 if inline else 30.0)
        if not run.is_running:
            break
        run.kill("driver")
    run.start()
    assert run.end(within_s=600) == 0, run.printed
    run.check(is_complete=True)


def test_an_inline_run_is_killed_and_resumed(new_run: NewRun) -> None:
    """All of a run dies in one instant, also within an append, an update or a checkpoint."""
    run = new_run(chaos_settings(train={"env_steps": 1501}, env={"kwargs": {"length": 20}}), inline=True)
    for _ in range(2):
        run.start()
        run.wait_for_more("steps", 2)
        run.linger(0.0, 0.5)  # a quick machine is done with it in two seconds
        if run.is_running:
            run.kill("driver")
    run.start()
    assert run.end() == 0, run.printed
    run.check(is_complete=True)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.hangs_after(1200)
@pytest.mark.parametrize("role", WORKERS)
def test_frozen_processes_are_waited_for_or_replaced(new_run: NewRun, role: str) -> None:
    """A process that stands still for some seconds goes on where it was; one that never wakes is replaced."""
    run = new_run(chaos_settings(train={"env_steps": 1_000_000}, actors={"order_timeout_s": 5.0}))
    run.start()
    run.wait_for_more("updates", 1)
    frozen = run.freeze(role)
    time.sleep(3.0)
    for process in frozen:
        process.resume()
    run.wait_for_more("updates", 2)
    run.wait_for_more("steps", 6)
    for process in run.freeze(role)[:1]:
        run.wait_for(lambda process=process: not process.is_running(), "its replacement")  # type: ignore[misc]
    run.wait_for_more("updates", 2)
    run.wait_for_more("steps", 6)
    run.stop()
    run.check(is_complete=False)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.hangs_after(1800)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_run_at_every_phase(new_run: NewRun, number: signal.Signals) -> None:
    """Whenever it comes, the run ends cleanly, within half a minute, with nothing left; the last start completes it."""
    run = new_run(chaos_settings(train={"env_steps": 12_001}))
    for moment in (0.3, 1.0, 3.0, 8.0, 13.0, 16.0, 20.0, 25.0):
        run.start()
        run.linger(moment, 1.5 * moment)
        if not run.is_running:
            break
        run.signal(number, to_group=number == signal.SIGINT)
        begun = time.monotonic()
        code = run.end()
        if "*** SIGTERM received" in run.printed:  # by Ray's library, as it connects: it may abort, or take a minute
            assert code in {0, 128 + number, -signal.SIGABRT}, run.printed
            continue
        assert code in {0, 128 + number, -number}, run.printed  # the last: Python was still importing
        assert time.monotonic() - begun < 45, run.printed
        assert "Traceback" not in run.printed, run.printed
    run.start()
    assert run.end(within_s=600) == 0, run.printed
    run.check(is_complete=True)
