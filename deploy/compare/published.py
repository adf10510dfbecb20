"""Scores that others published, as data with their sources: published.yaml."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dreamfleet.common.settings.presets import parse_value

FILE = Path(__file__).with_name("published.yaml")


class PublishedScore(BaseModel):
    """A published score: simulator steps, mean and deviation over `seeds` seeds, None where it is not given."""

    model_config = ConfigDict(frozen=True)

    task: str
    algorithm: str
    observed: str
    steps: int
    score: float
    std: float | None
    seeds: int | None
    source: str


def published_scores(task: str, observed: str) -> list[PublishedScore]:
    """Return what was published of a task from pixels or from vectors, by algorithm and steps; from any if ""."""
    found = []
    for block in parse_value(FILE.read_text(), f"file {FILE}"):
        facts = {name: block[name] for name in ("algorithm", "observed", "seeds", "source")}
        for steps, (score, std) in block["scores"].get(task, {}).items():
            if observed in ("", block["observed"]):
                found.append(PublishedScore(task=task, steps=steps, score=score, std=std, **facts))
    return found
