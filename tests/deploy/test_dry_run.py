"""`train --dry-run`: what is said of a run before it, and that nothing is left of having said it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.resolve import leaves, resolve_with_sources, write_settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.run import dry_run
from dreamfleet.deploy.run.dry_run import group_by_source

QUICK = ("--preset", "dreamer_v3", "--preset", "debug", "--env.id", "CartPole-v1")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for moments only."""
    monkeypatch.setattr(dry_run, "ACTOR_S", 0.01)
    monkeypatch.setattr(dry_run, "UPDATES_S", 0.01)


def test_every_setting_is_named_with_what_gave_it_last() -> None:
    """Presets below presets, files and flags: the last that gave a setting is its source, the rest are defaults."""
    settings, sources = resolve_with_sources(["cartpole", "debug"], [("train.ratio", "7")])
    assert sources["train.ratio"] == "flag --train.ratio"
    assert sources["learner.batch_size"] == "preset 'debug'"
    assert sources["model.blocks"] == "preset 'debug'"
    assert sources["learner.learning_rate"] == "preset 'cartpole'"
    assert sources["model.recurrence"] == "preset 'dreamer_v3'"
    assert "learner.device" not in sources
    groups, defaults = group_by_source(settings, sources)
    assert ("train.ratio", 7.0) in groups["flag --train.ratio"]
    assert defaults + sum(map(len, groups.values())) == len(list(leaves(settings.model_dump())))


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
    groups, _ = group_by_source(again, sources)
    [found] = groups.values()
    assert ("learner.batch_size", 4) in found
    assert "learner.precision" not in dict(found)


def test_it_ends_with_the_settings_the_rates_and_the_time_and_leaves_nothing(
    brief: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command: exit code 0, one screen, and neither directory nor file."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    assert main(["train", *QUICK, "--run", "a run", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for text in (
        "flag --env.id: env: id CartPole-v1",
        "env steps/s with random actions",
        "updates/s on",
        "about",
        "bound by",
    ):
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
