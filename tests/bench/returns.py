"""The learning curves of runs as a picture: `python -m tests.bench.returns RUN... --out FILE.png`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from dreamfleet.learner.pictures.charts import BLUE, GREEN, GREY, ORANGE, Curve, draw_chart, write_png

COLOURS = (BLUE, ORANGE, GREEN, GREY)


def read_curve(run: Path, number: int) -> Curve:
    """Return a run's mean evaluation returns over its environment steps."""
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    steps, means = (np.array([row[name] for row in rows], float) for name in ("env_steps", "mean"))
    return Curve(run.name, steps, means, COLOURS[number % len(COLOURS)])


def main() -> None:
    """Draw the curves and print the table behind them."""
    parser = argparse.ArgumentParser(description="Draw runs' evaluation returns.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--title", default="evaluation return, without exploring")
    given = parser.parse_args()
    curves = [read_curve(run, number) for number, run in enumerate(given.runs)]
    write_png(given.out, draw_chart(curves, given.title, "environment steps", "mean return"))
    for run in given.runs:
        print(table(run))


def table(run: Path) -> str:
    """Return a run's evaluations as a Markdown table; minutes are the run's own, without pauses between its starts.

    Of older runs, which did not write these, they count from the first row of metrics, pauses included.
    """
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["time"]
    lines = [f"\n{run.name}\n", "| env steps | updates | minutes | return | episodes |", f"|{' ---: |' * 5}"]
    for line in (run / "evaluations.jsonl").read_text().splitlines():
        row = json.loads(line)
        seconds = row.get("run_seconds", row["time"] - first)
        facts = (
            f"{row['env_steps']:,}", f"{row['updates']:,}", f"{seconds / 60:.1f}",
            f"{row['mean']:.4g} ± {round(row['std'], 6):.2g}", str(len(row["returns"])),
        )  # fmt: skip
        lines.append(f"| {' | '.join(facts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
