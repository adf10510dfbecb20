"""How a run ends: within half a minute whatever hangs, with what was learnt saved, and with a state that is right."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE_S, wait_until
from simulated_pool import SimulatedPool

from dreamfleet.common.errors import RunFailedError
from dreamfleet.deploy import command_line
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.ledger import Ledger, TrainRatio
from dreamfleet.deploy.state import StateWriter, read_state
from dreamfleet.deploy.workers.control_watch import ControlWatch

CONFIG = FleetConfig(
    actors=3, environments=1, steps_per_order=16, updates_per_order=4, checkpoint_every=20, picture_every=1000,
    actor_timeout_s=300.0, learner_timeout_s=600.0,
)  # fmt: skip
RATIO = TrainRatio(ratio=8.0, replayed_per_update=40, prefill=100, env_steps=10_003)
STOP_AT = 12.0


def stop(pool: SimulatedPool, config: FleetConfig = CONFIG, at: float = STOP_AT) -> Fleet:
    """Run a fleet, ask it to stop, and return it."""
    fleet = Fleet(pool, config, Ledger(RATIO), should_stop=lambda: pool.now > at, clock=pool.clock)
    fleet.run()
    return fleet


def test_frozen_actors_do_not_hold_up_the_end() -> None:
    """They are ended after 15 s, named, and what they may still send is refused; the learner was saved before."""
    pool = SimulatedPool()
    pool.lose = lambda actor, order: "hung" if actor != 1 and pool.now > 11.0 else ""
    fleet = stop(pool)
    assert pool.now < STOP_AT + 17.0
    assert pool.saved["updates"] == fleet.state.ledger.updates == pool.updates > 0
    dead = fleet.state.roster.deaths.summary().last
    assert [death.who for death in dead] == ["actor 0", "actor 2"]
    assert all(death.cause == "it gave no answer for 15 s, and the run is to end" for death in dead)
    assert sorted(actor for actor, _ in pool.retired) == [0, 2]
    assert fleet.state.ledger.env_steps == pool.total_steps


def test_actors_that_are_slow_are_given_25_seconds() -> None:
    """One that answers every 14 s is not frozen, and still not waited for beyond that."""
    pool = SimulatedPool(seconds_per_step=1.0)
    stop(pool, dataclasses.replace(CONFIG, steps_per_order=8), at=200.0)
    assert 200.0 < pool.now < 226.0


def test_a_frozen_learner_is_ended_after_15_seconds() -> None:
    """It answers no ping; the checkpoint before is what the run resumes from, and what the ledger says."""
    pool = SimulatedPool(frozen_at=lambda now: now > 11.0)
    fleet = stop(pool)
    assert pool.now < STOP_AT + 17.0
    assert "learner" in [death.who for death in fleet.state.roster.deaths.summary().last]
    assert fleet.state.ledger.updates == pool.saved["updates"]


def test_a_learner_that_answers_may_take_its_time() -> None:
    """An update that takes a minute is completed and saved."""
    pool = SimulatedPool(seconds_per_update=15.0)
    fleet = stop(pool, at=150.0)
    assert fleet.state.roster.deaths.count == 0
    assert pool.saved["updates"] == fleet.state.ledger.updates > 0
    assert pool.now < 150.0 + 121.0


def test_the_replay_is_expected_to_answer_from_the_beginning_of_the_end() -> None:
    """Also after a failure."""
    pool = SimulatedPool()
    stop(pool)
    assert pool.expected == 15.0
    failing = SimulatedPool(fail_learner_at=37)
    with pytest.raises(RunFailedError):
        stop(failing)
    assert failing.expected == 15.0


def test_a_lost_control_process_ends_the_run_with_a_checkpoint() -> None:
    """Nobody can be replaced any more: what was learnt is saved, and the sentence is the run's."""
    pool = SimulatedPool(fault_at=lambda now: "Ray's control process is gone" if now > 11.0 else "")
    fleet = Fleet(pool, CONFIG, Ledger(RATIO), clock=pool.clock)
    with pytest.raises(RunFailedError, match="Ray's control process is gone"):
        fleet.run()
    assert pool.now < 20.0
    assert fleet.state.ledger.updates == pool.saved["updates"] == pool.updates > 0


def test_the_control_watch_notices_when_nobody_listens() -> None:
    """Within its time; a pause that is shorter is nothing."""
    server = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    watch = ControlWatch(address, look_every_s=0.02, lost_after_s=0.3)
    time.sleep(0.1)
    assert not watch.is_silent
    server.close()
    wait_until(lambda: watch.is_silent, "it does not notice")
    assert watch.fault == ""
    wait_until(lambda: watch.fault != "", "it does not say so")
    assert f"Ray's control process (GCS) at {address} is gone" in watch.fault
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])), reuse_port=False):
        wait_until(lambda: not watch.is_silent, "it does not see it come back")
        assert watch.fault == ""
    watch.close()


def test_a_learner_that_was_never_up_leaves_the_updates_of_its_checkpoint() -> None:
    """A run that ends before its learner has restored says how many updates it has, and how many steps."""
    pool = SimulatedPool(saved_updates=20)
    pool.total_steps = 448
    fleet = Fleet(pool, CONFIG, Ledger(RATIO, updates=20), should_stop=lambda: pool.now > 0.3, clock=pool.clock)
    fleet.run()
    assert not pool.restored_from
    assert (fleet.state.ledger.updates, fleet.state.ledger.env_steps) == (20, pool.total_steps)


def test_the_totals_of_the_start_before_hold_until_there_are_newer_ones(tmp_path: Path) -> None:
    """A start that ends before it counted anything leaves them as they were; its rates are gone."""
    with StateWriter(tmp_path, "train", 5.0) as first:
        first.beat({"env_steps": 448, "updates": 187, "fleet/updates_per_s": 3.0, "seconds_left": 7.0})
    earlier = read_state(tmp_path)
    assert earlier
    with pytest.raises(RunFailedError), StateWriter(tmp_path, "train", 5.0, earlier.counters):
        raise RunFailedError("Ray did not start")
    found = read_state(tmp_path)
    assert found
    assert found.counters == {"env_steps": 448, "updates": 187}
    assert found.state == "failed"


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6, 1.0])
def test_ctrl_c_in_the_first_second_is_no_traceback(tmp_path: Path, after_s: float) -> None:
    """While Python imports, nothing is there to be stopped in order: one line, and the shell's code for it."""
    arguments = ["train", "--preset", "quickstart", "--inline", "--run", "run"]
    code = (
        "from dreamfleet.deploy import command_line as c; run = c._run\n"
        "c._run = lambda arguments: print(1, flush=True) or run(arguments)\n"  # within main
        f"raise SystemExit(c.main({arguments}))"
    )
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()  # before it Python itself is coming up
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err, err


def test_ctrl_c_in_an_import_ends_the_process_where_an_exception_cannot_pass(tmp_path: Path) -> None:
    """As torch's C++, which calls Python while it is imported: what is raised there would abort or be swallowed."""
    (tmp_path / "swallows.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "except BaseException:\n    print('swallowed', flush=True)\n"
    )
    code = (
        "from dreamfleet.deploy import command_line as c\n"
        "c._run = lambda arguments: __import__('swallows') and 0\n"
        "raise SystemExit(c.main(['presets']))"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ndreamfleet: interrupted.\n")


def test_ctrl_c_outside_of_an_import_lets_a_command_clean_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = tmp_path / "cleaned"

    def run(_: list[str]) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            cleaned.touch()
        return 0

    monkeypatch.setattr(command_line, "_run", run)
    assert command_line.main(["presets"]) == 130
    assert cleaned.exists()
    assert capsys.readouterr().err == "\ndreamfleet: interrupted.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
