"""`train --dry-run`: what is said of a run before it, and that nothing is left of having said it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.resolve import leaves, resolve_with_sources, write_settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.plan import trial
from dreamfleet.deploy.plan.forecast import Speeds, Work, forecast
from dreamfleet.deploy.run.dry_run import describe_sources

QUICK = ("--preset", "dreamer_v3", "--preset", "debug", "--env.id", "CartPole-v1")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for moments only."""
    monkeypatch.setattr(trial, "ACTING_S", 0.01)
    monkeypatch.setattr(trial, "UPDATES_S", 0.01)


def test_every_setting_is_named_with_what_gave_it_last() -> None:
    """Presets below presets, files and flags: the last that gave a setting is its source, the rest are defaults."""
    settings, sources = resolve_with_sources(["cartpole", "debug"], [("train.ratio", "7")])
    assert sources["train.ratio"] == "flag --train.ratio"
    assert sources["learner.batch_size"] == "preset 'debug'"
    assert sources["model.blocks"] == "preset 'debug'"
    assert sources["learner.learning_rate"] == "preset 'cartpole'"
    assert sources["model.recurrence"] == "preset 'dreamer_v3'"
    assert "learner.device" not in sources
    lines = describe_sources(settings, sources, width=100)
    counted = int(lines[-1].split("the other ")[1].split(",")[0])
    wide = describe_sources(settings, sources, width=10_000)[:-1]
    shown = [part for line in wide for part in line.replace(";", ",").split(",")]
    assert counted + len(shown) == len(list(leaves(settings.model_dump())))
    assert max(map(len, lines[:-1])) <= 100


def test_arguments_that_another_environment_drops_have_no_source() -> None:
    """A preset's arguments for its environment are forgotten with it, and so is where they came from."""
    settings, sources = resolve_with_sources(["quickstart"], [("env.id", "CartPole-v1")])
    assert settings.env.kwargs == {}
    assert not [path for path in sources if path.startswith("env.kwargs")]


def test_a_runs_file_is_a_source_of_what_differs_from_the_defaults(tmp_path: Path) -> None:
    """The file of a run holds every setting; of these only the ones that somebody chose are listed."""
    file = tmp_path / "config.yaml"
    settings, _ = resolve_with_sources(["debug"])
    write_settings(settings, file)
    again, sources = resolve_with_sources(base=file)
    lines = describe_sources(again, sources, width=10_000)
    assert len(lines) == 2
    assert "batch_size 4" in lines[0]
    assert "precision" not in lines[0]


def test_it_ends_with_the_settings_the_rates_and_the_time_and_leaves_nothing(
    brief: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command: exit code 0, one screen, and neither directory nor file."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    assert main(["train", *QUICK, "--run", "a run", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for text in ("flag --env.id: env: id CartPole-v1", "env steps/s by chance", "updates/s on", "about", "bound by"):
        assert text in said
    assert len(said.splitlines()) < 50
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def test_it_refuses_what_train_refuses(tmp_path: Path) -> None:
    """The checks are those of `train`, before anything is measured."""
    with pytest.raises(UserError, match="no part in a run with --inline"):
        main_raising(["train", *QUICK, "--run", str(tmp_path / "run"), "--dry-run", "--inline", "--address", "auto"])
    (tmp_path / "note").write_text("")
    with pytest.raises(UserError, match="holds files, but no run"):
        main_raising(["train", *QUICK, "--run", str(tmp_path), "--dry-run"])


def main_raising(arguments: list[str]) -> None:
    from dreamfleet.deploy import command_line

    command_line._run(arguments)


def test_a_big_batch_is_extrapolated_from_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the time is over before the batch is as big as wanted, a line through the last two sizes says the rest."""
    clock = FakeClock(monkeypatch)
    found = trial.fit_update_time(lambda size: clock.pass_s(3.0 + 0.5 * size), wanted=16, most_s=20.0)
    assert found.batch < 16
    assert math.isclose(found.seconds, 3.0 + 0.5 * 16)


def test_a_batch_that_fits_is_measured_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is time, the figure is the median over updates with whole batches."""
    clock = FakeClock(monkeypatch)
    found = trial.fit_update_time(lambda size: clock.pass_s(0.01 * size**2), wanted=6, most_s=20.0)
    assert (found.batch, found.updates) == (6, trial.MOST_UPDATES)
    assert math.isclose(found.seconds, 0.36)


def test_a_single_sequence_that_takes_too_long_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one size alone the time is taken to be proportional."""
    clock = FakeClock(monkeypatch)
    found = trial.fit_update_time(lambda size: clock.pass_s(30.0 * size), wanted=8, most_s=20.0)
    assert (found.batch, found.seconds) == (1, 240.0)


class FakeClock:
    """A clock that the measurement reads, and that goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(trial, "perf_counter", lambda: self.now)

    def pass_s(self, seconds: float) -> None:
        self.now += seconds


def test_updates_and_acting_are_measured_for_every_behaviour() -> None:
    """An update on a made-up batch is finite for each kind of behaviour, with pictures and with vectors."""
    for preset in ("planet", "dreamer_v1", "dreamer_v2", "dreamer_v3", "small"):
        settings, _ = resolve_with_sources([preset, "debug"], [("env.id", "CartPole-v1")])
        spaces = probe_environment(settings.env)
        found, _ = trial.measure_updates(settings, spaces, busy_cores=0)
        assert 0 < found.seconds < 60


def test_the_time_is_that_of_the_slowest() -> None:
    """Worked out by hand: 1,000 steps by chance at 100/s and 9,000 at 10/s, 500 updates of 2 s."""
    work = Work.left(TrainRatio(10_000, ratio=1.0, replayed_per_update=18, prefill=1000), env_steps=0, updates=0)
    assert work == Work(1000, 9000, 500)
    speeds = Speeds(100.0, 10.0, 2.0, actors=2, cores=8, threads=4)
    assert forecast(work, speeds, inline=True).seconds == 10 + 900 + 1000
    apart = forecast(work, speeds, inline=False)
    assert (apart.seconds, apart.prefill_s, apart.bound) == (5 + 1000, 5, "the learner")
    few = forecast(work, Speeds(100.0, 10.0, 2.0, actors=2, cores=1, threads=1), inline=False)
    assert few.seconds == 910 + 1000
    assert "cores" in few.bound
    slow = forecast(work, Speeds(100.0, 1.0, 2.0, actors=2, cores=8, threads=4), inline=False)
    assert (slow.seconds, slow.bound) == ((10 + 9000) / 2, "the actors")


def test_what_is_there_already_is_not_counted_again() -> None:
    """A run that goes on has its prefill behind it."""
    ratio = TrainRatio(10_000, ratio=1.0, replayed_per_update=18, prefill=1000)
    assert Work.left(ratio, env_steps=4000, updates=100) == Work(0, 6000, 400)
    assert Work.left(ratio, env_steps=400, updates=0) == Work(600, 9000, 500)
    assert Work.left(ratio, env_steps=10_000, updates=500) == Work(0, 0, 0)
