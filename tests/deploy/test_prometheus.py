"""What a run exports to Prometheus: totals as counters, states as gauges, parts by a tag."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from dreamfleet.deploy.monitoring import prometheus as module
from dreamfleet.deploy.monitoring.prometheus import COUNTERS, GAUGES, PARTS, PrometheusExporter


class FakeMetric:
    """Replaces Ray's Counter and Gauge, and is as strict; keeps the value of each, by name and part."""

    values: dict[tuple[str, str], float]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        self._name, self._tag_keys, self._tags = name, tag_keys, {}

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self._tags = tags

    def inc(self, value: float) -> None:
        assert value > 0
        self._keep(self.values.get((self._name, ""), 0.0) + value, {})

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self._keep(value, tags or {})

    def _keep(self, value: float, tags: dict[str, str]) -> None:
        assert isinstance(value, float)
        assert set(self._tags | tags) == set(self._tag_keys)
        self.values[self._name, tags.get("part", "")] = value


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """Replace Ray's metrics by fakes and return their values."""
    monkeypatch.setattr(module, "Counter", FakeMetric)
    monkeypatch.setattr(module, "Gauge", FakeMetric)
    monkeypatch.setattr(FakeMetric, "values", {}, raising=False)
    return FakeMetric.values


def test_totals_become_counters_that_start_from_what_the_run_had(values: dict[tuple[str, str], float]) -> None:
    """A resumed run's counter shows its total, and then rises by what is new."""
    exporter = PrometheusExporter("mine")
    exporter.export({}, env_steps=5000, updates=0)
    exporter.export({"episode/count": 3.0}, env_steps=5064, updates=8)
    exporter.export({"episode/count": 2.0}, env_steps=5064, updates=8)
    assert values == {
        ("dreamfleet_env_steps_total", ""): 5064,
        ("dreamfleet_updates_total", ""): 8,
        ("dreamfleet_episodes_total", ""): 5,
    }


def test_a_total_that_falls_back_counts_on_from_there(values: dict[tuple[str, str], float]) -> None:
    """A lost learner's updates are made again: the counter counts the work, and never falls."""
    exporter = PrometheusExporter("mine")
    for updates in (100, 40, 60):
        exporter.export({}, env_steps=1, updates=updates)
    assert values["dreamfleet_updates_total", ""] == 120


def test_a_row_sets_the_gauges_it_has_and_leaves_the_others(values: dict[tuple[str, str], float]) -> None:
    """Rows differ: one of a checkpoint has the held-out loss alone; one that is not finite is shown as such."""
    exporter = PrometheusExporter("mine", {"ratio": 32.0})
    exporter.export({"fleet/ratio": 31.5, "replay/bytes_stored": 12, "unheard/of": 1.0}, 1, 1)
    exporter.export({"held_out/loss": math.nan}, 1, 1)
    assert values["dreamfleet_train_ratio", ""] == 31.5
    assert values["dreamfleet_train_ratio_wanted", ""] == 32.0
    assert values["dreamfleet_replay_bytes", ""] == 12
    assert math.isnan(values["dreamfleet_held_out_loss", ""])
    assert len(values) == 6


def test_shares_and_losses_are_one_metric_each_with_a_part(values: dict[tuple[str, str], float]) -> None:
    """Every `learner/…_fraction` is a part of the learner's time; other scalars of the learner are not."""
    PrometheusExporter("mine").export(
        {"learner/wait_fraction": 0.1, "learner/threads": 2.0, "loss/kl": 3.0, "loss/total": 4.0}, 0, 0
    )
    assert values == {
        ("dreamfleet_learner_time_fraction", "wait"): 0.1,
        ("dreamfleet_loss", "kl"): 3.0,
        ("dreamfleet_loss", "total"): 4.0,
    }


def test_names_follow_prometheus_conventions() -> None:
    """Snake case, `_total` for counters and for nothing else, no rates or percentages."""
    names: list[Any] = [*COUNTERS, *GAUGES, *PARTS]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"dreamfleet(_[a-z]+)+", name)
        assert name.endswith("_total") == (name in COUNTERS)
        assert not re.search(r"per_s|percent", name)
