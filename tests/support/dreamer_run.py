"""A run of the smallest Dreamer V3 on the workshop's environment, trained inline within seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_runs import write_workshop

from dreamfleet.deploy.command_line import main

SMALL = (
    "--preset", "dreamer_v3", "--preset", "debug", "--env.id", "my_world:make", "--env.kwargs", "{length: 20}",
    "--learner.batch_size", "4", "--learner.sequence_length", "8", "--learner.device", "cpu", "--train.prefill", "60",
    "--train.ratio", "4", "--records.picture_context", "3", "--records.picture_steps", "8",
)  # fmt: skip


def train_small_dreamer(folder: Path, *flags: str) -> Path:
    """Train in a folder, with further flags, and return the run; the environment's module lies beside it."""
    write_workshop(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--inline", *SMALL, *flags, "--run", "run"]) == 0
    return folder / "run"
