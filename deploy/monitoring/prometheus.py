"""Exports a run to Prometheus: each row of scalars sets metrics that Ray exports beside its own, prefixed with `ray_`.

Ray's metrics agent answers on every node, with or without its dashboard. There are no histograms: a row is a mean over
seconds already, and Ray computes the sum of a histogram from its buckets' midpoints, so that its mean would be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge


class Metric(NamedTuple):
    """The scalar that sets a metric, and Prometheus' description of it."""

    scalar: str
    description: str


COUNTERS = {
    "dreamfleet_env_steps_total": Metric(
        "env_steps", "Environment steps stored; the first value is what the run had before."
    ),
    "dreamfleet_updates_total": Metric(
        "updates", "Updates made; those that a lost learner had not saved are made, and counted, again."
    ),
    "dreamfleet_episodes_total": Metric("episode/count", "Episodes that ended since this start of the run."),
}
"""Metrics that only rise."""

GAUGES = {
    "dreamfleet_env_steps_wanted": Metric("wanted/env_steps", "Environment steps that the run is to collect in total."),
    "dreamfleet_updates_wanted": Metric("wanted/updates", "Updates that the run is to make in total."),
    "dreamfleet_train_ratio": Metric("fleet/ratio", "Replayed steps per environment step after the prefill."),
    "dreamfleet_train_ratio_wanted": Metric("wanted/ratio", "The train ratio asked for."),
    "dreamfleet_actors": Metric("fleet/actors", "Actors alive."),
    "dreamfleet_actors_wanted": Metric("fleet/actors_wanted", "Actors wanted."),
    # Ray's counters cannot be 0, and Prometheus does not see the step from nothing to 1: so this one is a gauge.
    "dreamfleet_restarts": Metric("fleet/restarts", "Processes lost since this start of the run."),
    "dreamfleet_actors_wait_fraction": Metric(
        "fleet/actors_wait_fraction", "Share of time that actors waited for an order."
    ),
    "dreamfleet_learner_wait_fraction": Metric(
        "fleet/learner_wait_fraction", "Share of time that the learner waited for an order or a batch."
    ),
    "dreamfleet_weights_age_updates": Metric(
        "fleet/actor_weights_age_updates", "Updates made since the oldest weights that an actor acts with."
    ),
    "dreamfleet_staleness_mean_updates": Metric(
        "staleness/mean", "Updates between the weights that chose an action and its training, mean over a batch."
    ),
    "dreamfleet_staleness_median_updates": Metric("staleness/p50", "The same, median over the batches of a row."),
    "dreamfleet_staleness_late_updates": Metric("staleness/p90", "The same, 90th percentile."),
    "dreamfleet_staleness_max_updates": Metric("staleness/max", "The same, maximum in a batch."),
    "dreamfleet_inference_batch_steps": Metric(
        "inference/batch", "Environment steps that one batch of actions is for."
    ),
    "dreamfleet_inference_batch_seconds": Metric("inference/batch_s", "Time in which a batch of actions is computed."),
    "dreamfleet_inference_answer_seconds": Metric(
        "inference/answer_s", "Time from an actor's question to its actions, without the way."
    ),
    "dreamfleet_held_out_loss": Metric("held_out/loss", "Loss of the last checkpoint on held-out sequences."),
    "dreamfleet_gradient_norm": Metric("gradient/norm", "Norm of the gradient before it is clipped."),
    "dreamfleet_episode_return": Metric("episode/return", "Mean return of the episodes that ended in the last row."),
    "dreamfleet_episode_length_steps": Metric("episode/length", "Mean length of those episodes in environment steps."),
    "dreamfleet_replay_steps": Metric("replay/steps", "Environment steps that the replay holds."),
    "dreamfleet_replay_dropped_steps": Metric("replay/dropped_steps", "Steps dropped to stay within the capacity."),
    "dreamfleet_replay_valid_starts": Metric("replay/valid_starts", "Steps at which a training sequence can start."),
    "dreamfleet_replay_bytes": Metric("replay/bytes_stored", "Bytes on disk."),
    "dreamfleet_replay_raw_bytes": Metric("replay/bytes_raw", "Bytes that the stored steps would take uncompressed."),
    "dreamfleet_replay_index_bytes": Metric("replay/index_bytes", "Memory of the replay's index."),
    "dreamfleet_replay_decoded_bytes": Metric("replay/decoded_bytes", "Memory of the steps that are kept decoded."),
    "dreamfleet_replay_shards": Metric("replay/shards", "Replay processes that answer."),
    "dreamfleet_replay_damaged_chunks": Metric("replay/damaged_chunks", "Chunks whose checksum was found wrong."),
}
"""Metrics that rise and fall."""

PARTS = {
    "dreamfleet_loss": Metric("loss/{part}", "Training loss, by its parts."),
    "dreamfleet_learner_time_fraction": Metric("learner/{part}_fraction", "How the learner's time in orders divides."),
    "dreamfleet_actor_time_fraction": Metric("actor/{part}_fraction", "How the actors' time in orders divides."),
}
"""Gauges with a tag `part`, which is the middle of the scalar's name."""


class PrometheusExporter:
    """Sets Ray's metrics of one run; each has the tag `run`, which tells the runs of a cluster apart.

    Args:
        run_label: the run's name, such as that of its directory.
        wanted: what the run is to reach: any of `env_steps`, `updates` and `ratio`.
    """

    def __init__(self, run_label: str, wanted: Mapping[str, float] | None = None) -> None:
        self._wanted = {f"wanted/{name}": value for name, value in (wanted or {}).items()}
        self._counters = {name: Counter(name, metric.description, ("run",)) for name, metric in COUNTERS.items()}
        self._gauges = {name: Gauge(name, metric.description, ("run",)) for name, metric in GAUGES.items()}
        self._parts = {name: Gauge(name, metric.description, ("run", "part")) for name, metric in PARTS.items()}
        for metric in [*self._counters.values(), *self._gauges.values(), *self._parts.values()]:
            metric.set_default_tags({"run": run_label})
        self._totals = {"env_steps": 0, "updates": 0}  # of the last row

    def export(self, scalars: Mapping[str, float], env_steps: int, updates: int) -> None:
        """Set the metrics of one row; a metric whose scalar it lacks stays as it was.

        Totals that fall back, as a lost learner's updates do, count on from there.
        """
        row = {**self._wanted, **scalars}
        totals = {"env_steps": env_steps, "updates": updates}
        new = {name: total - self._totals[name] for name, total in totals.items()}
        self._totals = totals
        new["episode/count"] = int(row.get("episode/count", 0))
        for name, metric in COUNTERS.items():
            if new[metric.scalar] > 0:  # Ray's counters refuse 0
                self._counters[name].inc(float(new[metric.scalar]))
        for name, metric in GAUGES.items():
            if metric.scalar in row:
                self._gauges[name].set(float(row[metric.scalar]))
        for name, metric in PARTS.items():
            head, tail = metric.scalar.split("{part}")
            for scalar, value in row.items():
                if scalar.startswith(head) and scalar.endswith(tail):
                    part = scalar.removeprefix(head).removesuffix(tail)
                    self._parts[name].set(float(value), tags={"part": part})
