"""Feeds `PrometheusExporter` in a Ray of its own, as a run would, until its standard input is closed.

Prints the file in which Ray names its metrics' addresses. Arguments: Ray's temporary directory, the run's label.
"""

from __future__ import annotations

import select
import sys

import ray

from dreamfleet.deploy.monitoring.prometheus import GAUGES, PARTS, PrometheusExporter

PAUSE_S = 0.5
LONGEST_S = 150.0


def main() -> None:
    """Feed until asked to end, within a limit."""
    temporary, label = sys.argv[1:]
    ray.init(
        address="local", num_cpus=1, include_dashboard=True, log_to_driver=False, _temp_dir=temporary,
        _system_config={"metrics_report_interval_ms": 1000},
    )  # fmt: skip
    exporter = PrometheusExporter(label, {"env_steps": 100_000, "updates": 10_000, "ratio": 32.0})
    row = {metric.scalar: 1.0 for metric in GAUGES.values()} | {"episode/count": 2.0}
    row |= {metric.scalar.format(part=part): 0.5 for metric in PARTS.values() for part in ("wait", "total")}
    print(f"{temporary}/prom_metrics_service_discovery.json", flush=True)
    for turn in range(1, int(LONGEST_S / PAUSE_S)):
        exporter.export(row, env_steps=64 * turn, updates=8 * turn)
        if select.select([sys.stdin], [], [], PAUSE_S)[0]:
            break
    ray.shutdown()


if __name__ == "__main__":
    main()
