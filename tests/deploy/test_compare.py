"""`dreamfleet compare`: its statistics against others' numbers, curves from files, and what it draws and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.stats

import dreamfleet as df
from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.resolve import resolve, write_settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.compare import statistics
from dreamfleet.deploy.compare.comparison import compare_groups
from dreamfleet.deploy.compare.groups import find_groups
from dreamfleet.deploy.compare.pictures import COLOURS
from dreamfleet.deploy.compare.published import FILE, published_scores
from dreamfleet.deploy.compare.statistics import difference, estimate, interquartile_mean, resampled_means
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import StateWriter

BALANCE = "dm_control/cartpole-balance-v0"


def make_run(
    path: Path, points: list[tuple[int, float]], reason: str = "", name: str = "mean", **changes: Any
) -> RunDirectory:
    """Write the files of a run: points are environment steps and return; `reason` is why it failed, if it did."""
    run = RunDirectory(path)
    run.create()
    flags = [("env.id", "CartPole-v1"), *((key.replace("__", "."), str(value)) for key, value in changes.items())]
    settings = resolve(["small"], flags)
    write_settings(settings, run.config_file)
    file = run.evaluations_file if name == "mean" else run.metrics_file
    rows = [
        {"env_steps": steps, "updates": steps // 10, "run_seconds": steps / 2, name: value} for steps, value in points
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = StateWriter(path, "train", 5.0)
    state.beat({"env_steps": points[-1][0] if points else 0, "wanted/env_steps": 1000})
    error = RuntimeError(reason) if reason else None
    state.__exit__(type(error) if error else None, error, None)
    return run


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 10, 17])
def test_an_interquartile_mean_is_scipys_trimmed_mean(count: int) -> None:
    """Of a quarter on each side, along the last axis."""
    scores = np.random.default_rng(count).normal(size=(3, count))
    for row, found in zip(scores, interquartile_mean(scores), strict=True):
        assert found == pytest.approx(scipy.stats.trim_mean(row, 0.25))
    assert interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0])) == 1.5


def test_an_interval_is_scipys_percentile_bootstrap() -> None:
    """Of the same statistic; both draw, so that they agree to the error of drawing."""
    scores = np.random.default_rng(3).normal(500, 100, size=20)
    found = estimate([scores])
    theirs = scipy.stats.bootstrap(
        (scores,), lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis), method="percentile", n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert found.value == pytest.approx(scipy.stats.trim_mean(scores, 0.25))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=6.0)


def test_of_two_runs_the_interval_is_from_one_to_the_other() -> None:
    """Each of them alone is drawn in a quarter of all draws; of a single run there is no interval."""
    drawn = resampled_means([np.array([10.0, 30.0])])
    assert set(np.unique(drawn)) == {10.0, 20.0, 30.0}
    assert np.mean(drawn == 20.0) == pytest.approx(0.5, abs=0.04)
    assert estimate([np.array([10.0, 30.0])]) == (20.0, 10.0, 30.0)
    assert estimate([np.array([7.0])]) == (7.0, 7.0, 7.0)


def test_runs_are_drawn_within_their_task() -> None:
    """Two tasks whose runs are all alike leave nothing to chance, however far the tasks are apart."""
    found = estimate([np.full(3, 100.0), np.full(3, 900.0)])
    assert found == (500.0, 500.0, 500.0)
    whole = estimate([np.array([100.0] * 3 + [900.0] * 3)])
    assert whole.high - whole.low > 300


def test_a_difference_draws_both_groups() -> None:
    """Its interval is wider than that of either."""
    ours, theirs = np.array([100.0, 120.0, 110.0, 130.0]), np.array([80.0, 60.0, 70.0, 90.0])
    found = difference(ours, theirs)
    assert found.value == 40.0
    assert found.low < 30 < 50 < found.high
    assert found.high - found.low > np.ptp(estimate([ours])[1:])


def test_a_curve_is_read_as_it_grows(tmp_path: Path) -> None:
    """A torn last line is passed over, and of two rows at equal steps the last counts."""
    run = make_run(tmp_path / "run", [(100, 1.0), (100, 2.0), (300, 4.0)], env__action_repeat=4)
    with run.evaluations_file.open("a") as file:
        file.write('{"env_steps": 400, "updates": 40, "me')
    [curve] = find_groups([tmp_path / "run"])[0].runs
    assert curve.points["returns"].tolist() == [2.0, 4.0]
    assert curve.points["simulator_steps"].tolist() == [400.0, 1200.0], "where they were not counted, by action repeat"
    assert curve.at("env_steps", np.array([50.0, 100.0, 200.0, 301.0])) == pytest.approx(
        [np.nan, 2.0, 3.0, np.nan], nan_ok=True
    )
    assert curve.is_finished


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """Return the folder of a sweep of two variants, of which one lost a run."""
    for seed, last in ((0, 90.0), (1, 110.0), (10, 100.0)):
        make_run(tmp_path / f"swept/good/seed-{seed}", [(200, 10.0), (400, 50.0), (1000, last)], seed=seed)
    make_run(tmp_path / "swept/bad/seed-0", [(200, 0.0), (800, 60.0)])
    make_run(tmp_path / "swept/bad/seed-1", [(200, 0.0), (500, 20.0)], reason="the loss is not finite")
    cells = [{"cell": "bad/seed-2", "state": "failed", "cause": "no such environment: did you mean X?"}]
    (tmp_path / "swept/sweep.json").write_text(json.dumps({"variants": ["good", "bad"], "cells": cells}))
    return tmp_path / "swept"


def test_groups_are_held_against_each_other_at_equal_steps(swept: Path) -> None:
    """The last steps that all finished runs reach, with the updates and the time of then; who failed is named."""
    found = compare_groups(find_groups([swept]), against="good")
    [task] = found.tasks
    good, bad = task.figures
    assert (good.group.name, bad.group.name) == ("good", "bad"), "in the order of the sweep's file"
    assert [run.directory.name for run in good.group.runs] == ["seed-0", "seed-1", "seed-10"]
    assert (task.start_steps, task.equal_steps) == (200.0, 800.0)
    at_equal = [50 + (last - 50) * 400 / 600 for last in (90, 110, 100)]
    assert good.at_equal is not None
    assert good.at_equal == pytest.approx((np.mean(at_equal), min(at_equal), max(at_equal)))
    assert bad.at_equal == (60.0, 60.0, 60.0), "of the one run that came so far"
    assert good.at_end.value == 100.0
    assert bad.at_end.value == 40.0, "of what each has at its end"
    assert bad.area is not None
    assert bad.area.value == 30.0
    assert good.area is not None
    middle = (10 + 50) / 2 * 200 + (50 + np.mean(at_equal)) / 2 * 400
    assert good.area.value == pytest.approx(middle / 600)
    assert good.ahead is None
    assert bad.ahead is not None
    assert bad.ahead.value == pytest.approx(60 - np.mean(at_equal))
    assert good.updates.tolist() == [80.0, 80.0, 80.0]
    assert good.seconds.tolist() == [400.0, 400.0, 400.0]
    assert np.isnan(bad.updates[1])
    assert bad.by_steps.runs[0] == 2
    assert bad.by_steps.runs[-1] == 1
    assert any("bad/seed-1 failed at 500 of 1,000 env steps: the loss is not finite" in note for note in found.notes)
    assert "bad/seed-2 has no run: no such environment: did you mean X?" in found.notes


def test_without_evaluations_training_episodes_are_drawn_and_said_so(tmp_path: Path) -> None:
    """A run that has neither is named; where there is nothing at all, that is the error."""
    make_run(tmp_path / "run", [(100, 5.0), (200, 6.0)], name="episode/return")
    make_run(tmp_path / "new", [])
    found = compare_groups(find_groups([tmp_path / "run", tmp_path / "new"]))
    assert not found.tasks[0].figures[0].group.runs[0].is_evaluated
    assert any("training episodes" in note for note in found.notes)
    assert any("new has neither an evaluation nor a training episode" in note for note in found.notes)
    with pytest.raises(UserError, match=r"nothing to draw: .*new has neither"):
        find_groups([tmp_path / "new"])


def test_of_one_suite_there_is_a_mean_over_tasks(tmp_path: Path) -> None:
    """DM Control's returns are of one scale; others' are not put together."""
    for folder, task, value in (("a", BALANCE, 900.0), ("b", "dm_control/walker-walk-v0", 500.0)):
        make_run(tmp_path / f"{folder}/v3/seed-0", [(100, 0.0), (200, value)], env__id=task)
    make_run(tmp_path / "c/v3/seed-0", [(100, 0.0), (200, 20.0)])
    found = compare_groups(find_groups([tmp_path / name for name in "abc"]))
    assert [task.task for task in found.tasks] == [BALANCE, "dm_control/walker-walk-v0", "CartPole-v1"]
    assert found.over_tasks["v3"] == (700.0, 700.0, 700.0)


def test_groups_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By the folders that they are in."""
    for folder in ("a", "b"):
        make_run(tmp_path / f"{folder}/v3/seed-0", [(100, 0.0), (200, 1.0)])
    names = [group.name for group in find_groups([tmp_path / "a", tmp_path / "b"])]
    assert names == [str(tmp_path / "a/v3"), str(tmp_path / "b/v3")]


def test_published_scores_have_tasks_steps_and_sources() -> None:
    """The file lies in the package; Dreamer V3's score of walker_walk at 250,000 steps is the known 899."""
    assert FILE.is_file()
    found = published_scores("dm_control/walker-walk-v0", "pixels")
    assert {score.algorithm for score in found} == {"Dreamer V3", "Dreamer V2", "Dreamer V1", "PlaNet"}
    [known] = [score for score in found if (score.algorithm, score.steps) == ("Dreamer V3", 250_000)]
    assert (known.score, known.std, known.seeds) == (899.0, 54.0, 10)
    assert all(0 < score.score <= 1000 and len(score.source) > 30 for score in found)
    assert published_scores("CartPole-v1", "") == []
    assert {score.observed for score in published_scores(BALANCE, "vectors")} == {"vectors"}


def test_it_writes_a_picture_data_and_a_page(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library returns the same data."""
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    assert main(["compare", str(swept), "--out", str(tmp_path / "out"), "--against", "good"]) == 0
    printed = capsys.readouterr().out
    assert "at 800 steps" in printed
    assert "note: bad/seed-2 has no run" in printed
    data = json.loads((tmp_path / "out/comparison.json").read_text(), parse_constant=pytest.fail)
    assert data == json.loads(json.dumps(df.compare([swept], against="good")))
    assert data == json.loads(json.dumps(df.compare(swept, against="good")))
    assert data["tasks"][0]["groups"][1]["at_equal"]["value"] == 60.0
    page = (tmp_path / "out/comparison.md").read_text()
    assert "| bad | 1 of 2 | 60 |" in page
    assert f"dreamfleet compare {swept} --against good" in page
    assert "bad/seed-1 failed at 500 of 1,000 env steps" in page
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "out/comparison.png")), cv2.COLOR_BGR2RGB)
    steps, seconds = np.split(picture, 2, axis=1)
    for half in (steps, seconds):
        for colour in COLOURS[:2]:
            assert (half == colour).all(axis=-1).sum() > 100, "each group has its line"


def test_published_scores_are_on_the_page_and_where_steps_reach_them_in_the_picture(tmp_path: Path) -> None:
    """With their sources."""
    points = [(50_000, 300.0), (125_000, 800.0)]
    make_run(tmp_path / "run", points, env__id=BALANCE, env__observe="rendered", env__action_repeat=2)
    assert main(["compare", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run/comparison.md").read_text()
    assert "| Dreamer V3, pixels | 100,000 | 934 ± 41 | 10 |" in page
    assert "github.com/danijar/dreamerv3" in page
    assert "vectors" not in page, "runs from pixels are beside scores from pixels"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["no/such"], "no/such does not exist"),
        (["."], "neither a run nor a dataset"),
        (["swept", "--against", "god"], "Did you mean 'good'?"),
        (["swept", "--against", "xyz"], "There are "),
        (["swept", "--out", "swept/sweep.json"], "swept/sweep.json cannot be written"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], wanted: str
) -> None:
    """Nothing is written."""
    monkeypatch.chdir(swept.parent)
    (swept.parent / "empty").mkdir()
    if arguments == ["."]:
        monkeypatch.chdir(swept.parent / "empty")
    assert main(["compare", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert wanted in printed
