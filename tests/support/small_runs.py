"""Settings and a learner of a model small enough to train within a test, on the world of `moving_square`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moving_square import square_format

from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.learner import Learner
from dreamfleet.replay.replay import Replay


def small_settings(**changes: Any) -> Settings:
    """Return settings of a small model; `changes` are sections, whose entries replace those here."""
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "encoder": "strided",
            "depth": 4,
            "embedding": 16,
            "deterministic": 16,
            "stochastic": 4,
            "hidden": 16,
            "reward_units": 8,
        },
        "loss": {"free_nats": 1.0},
        "learner": {
            "batch_size": 4,
            "sequence_length": 8,
            "learning_rate": 2e-3,
            "clip": 100.0,
            "device": "cpu",
            "threads": 1,
        },
        "records": {"picture_context": 3, "picture_steps": 20, "checkpoints_kept": 2},
    }
    for name, section in changes.items():
        sections[name] = sections.get(name, {}) | section
    return Settings(seed=3, **sections)


def learner_on(replay: Replay, directory: Path, settings: Settings | None = None, prefetch: bool = False) -> Learner:
    """Return a learner of the small model on a replay of the moving square."""
    return Learner(settings or small_settings(), square_format().spaces, replay, directory, prefetch)
