"""Shows a run to Prometheus: each row of scalars sets metrics that Ray exports beside its own, with `ray_` before them.

Ray's metrics agent answers on every node, also without its dashboard, so this costs nothing where nobody looks.

There are no histograms: a row is a mean over seconds already, and the sum that Ray exports of a histogram is made of
its buckets' midpoints, so that its mean would be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge


class Meter(NamedTuple):
    """A metric: the scalar that feeds it, and what it tells."""

    source: str
    description: str


COUNTERS = {
    "dreamfleet_env_steps_total": Meter(
        "env_steps", "Environment steps stored; the first value is what the run had before."
    ),
    "dreamfleet_updates_total": Meter(
        "updates", "Updates made; those that a lost learner had not saved are made, and counted, again."
    ),
    "dreamfleet_episodes_total": Meter("episode/count", "Episodes that ended since this start of the run."),
}
"""Metrics that only rise; `export` says how each is fed."""

GAUGES = {
    "dreamfleet_env_steps_wanted": Meter("wanted/env_steps", "Environment steps that the run is to collect in all."),
    "dreamfleet_updates_wanted": Meter("wanted/updates", "Updates that the run is to make in all."),
    "dreamfleet_train_ratio": Meter("fleet/ratio", "Replayed steps per environment step after the prefill."),
    "dreamfleet_train_ratio_wanted": Meter("wanted/ratio", "The train ratio asked for."),
    "dreamfleet_actors": Meter("fleet/actors", "Actors alive."),
    "dreamfleet_actors_wanted": Meter("fleet/actors_wanted", "Actors that there should be."),
    # Ray's counters cannot be 0, and Prometheus does not see the step from nothing to 1: so this one is a gauge.
    "dreamfleet_restarts": Meter("fleet/restarts", "Workers replaced since this start of the run."),
    "dreamfleet_actors_wait_fraction": Meter("fleet/actors_wait_fraction", "Share of time that actors had no order."),
    "dreamfleet_learner_wait_fraction": Meter(
        "fleet/learner_wait_fraction", "Share of time that the learner had no order or no batch."
    ),
    "dreamfleet_weights_age_updates": Meter(
        "fleet/actor_weights_age_updates", "Updates made since the oldest weights that an actor acts with."
    ),
    "dreamfleet_staleness_mean_updates": Meter(
        "staleness/mean", "Updates between the weights that chose an action and its training, mean over a batch."
    ),
    "dreamfleet_staleness_median_updates": Meter("staleness/p50", "The same, median over the batches of a row."),
    "dreamfleet_staleness_late_updates": Meter("staleness/p90", "The same, what nine tenths stay below."),
    "dreamfleet_staleness_max_updates": Meter("staleness/max", "The same, most in a batch."),
    "dreamfleet_held_out_loss": Meter("held_out/loss", "Loss of the last checkpoint on what is never trained on."),
    "dreamfleet_gradient_norm": Meter("gradient/norm", "Norm of the gradient before it is clipped."),
    "dreamfleet_episode_return": Meter("episode/return", "Mean return of the episodes that ended in the last row."),
    "dreamfleet_episode_length_steps": Meter("episode/length", "Mean length of these in environment steps."),
    "dreamfleet_replay_steps": Meter("replay/steps", "Environment steps that the replay holds."),
    "dreamfleet_replay_dropped_steps": Meter("replay/dropped_steps", "Steps dropped to stay within the capacity."),
    "dreamfleet_replay_valid_starts": Meter("replay/valid_starts", "Steps at which a training sequence can begin."),
    "dreamfleet_replay_bytes": Meter("replay/bytes_stored", "Bytes on disk."),
    "dreamfleet_replay_raw_bytes": Meter("replay/bytes_raw", "Bytes that the stored steps would take unpacked."),
    "dreamfleet_replay_index_bytes": Meter("replay/index_bytes", "Memory of the replay's index."),
    "dreamfleet_replay_shards": Meter("replay/shards", "Replay processes that answer."),
    "dreamfleet_replay_damaged_chunks": Meter("replay/damaged_chunks", "Chunks whose checksum was found wrong."),
}
"""Metrics that rise and fall, by the scalar of the same row that sets them."""

PARTS = {
    "dreamfleet_loss": Meter("loss/{part}", "Training loss, by its parts."),
    "dreamfleet_learner_time_fraction": Meter("learner/{part}_fraction", "How the learner's time in orders divides."),
    "dreamfleet_actor_time_fraction": Meter("actor/{part}_fraction", "How the actors' time in orders divides."),
}
"""Gauges with a tag `part`, which is the middle of the name of the scalar that sets them."""


class PrometheusExporter:
    """Sets Ray's metrics of one run; each has the tag `run`, so that a cluster's runs can be told apart.

    Args:
        run_label: the run's name, such as that of its directory.
        wanted: what the run is to reach: any of `env_steps`, `updates` and `ratio`.
    """

    def __init__(self, run_label: str, wanted: Mapping[str, float] | None = None) -> None:
        tags = {"run": run_label}
        self._wanted = {f"wanted/{name}": value for name, value in (wanted or {}).items()}
        self._counters = {name: Counter(name, meter.description, ("run",)) for name, meter in COUNTERS.items()}
        self._gauges = {name: Gauge(name, meter.description, ("run",)) for name, meter in GAUGES.items()}
        self._parts = {name: Gauge(name, meter.description, ("run", "part")) for name, meter in PARTS.items()}
        for metric in [*self._counters.values(), *self._gauges.values(), *self._parts.values()]:
            metric.set_default_tags(tags)
        self._seen = {"env_steps": 0.0, "updates": 0.0}  # what the counters of totals were last fed

    def export(self, scalars: Mapping[str, float], env_steps: int, updates: int) -> None:
        """Export one row; what it lacks stays as it was.

        Args:
            scalars: as they go to TensorBoard.
            env_steps: of the run so far.
            updates: likewise; a total that falls back, as a lost learner's, counts on from where it fell to.
        """
        row = {**self._wanted, **scalars}
        new = {"episode/count": row.get("episode/count", 0.0)}
        for name, total in (("env_steps", env_steps), ("updates", updates)):
            new[name] = total - self._seen[name]
            self._seen[name] = total
        for name, meter in COUNTERS.items():
            if new[meter.source] > 0:  # Ray's counters refuse 0
                self._counters[name].inc(float(new[meter.source]))
        for name, meter in GAUGES.items():
            if meter.source in row:
                self._gauges[name].set(float(row[meter.source]))
        for name, meter in PARTS.items():
            head, tail = meter.source.split("{part}")
            for scalar, value in row.items():
                if scalar.startswith(head) and scalar.endswith(tail):
                    part = scalar.removeprefix(head).removesuffix(tail)
                    self._parts[name].set(float(value), tags={"part": part})
