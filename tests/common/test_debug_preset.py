"""`debug` ends in seconds, whatever it is laid over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dreamfleet.common.settings.presets import preset_names
from dreamfleet.common.settings.resolve import describe_settings, resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.ledger import TrainRatio

ROOT = Path(__file__).resolve().parents[2]


def documented_stacks() -> list[tuple[str, ...]]:
    """Return every stack of built-in presets that the documentation shows, and every preset alone."""
    lines = [
        line for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) for line in file.read_text().splitlines()
    ]
    stacks = {tuple(re.findall(r"--preset ([a-z0-9_]+)(?![\w.])", line)) for line in lines}
    stacks |= {(name,) for name in preset_names()}
    return sorted({tuple(name for name in stack if name in preset_names()) for stack in stacks} - {()})


def test_stacks_are_found_in_the_documentation() -> None:
    """What the other tests go through holds stacks of two and of three."""
    assert {len(stack) for stack in documented_stacks()} >= {1, 2, 3}


@pytest.mark.parametrize("stack", documented_stacks(), ids="+".join)
def test_debug_makes_any_stack_a_run_of_seconds(stack: tuple[str, ...]) -> None:
    """Laid over every documented stack it bounds steps and updates, and each part of a run happens."""
    settings = resolve([*stack, "debug"])
    ratio, records = TrainRatio.of(settings), settings.records
    assert settings.train.env_steps <= 2000
    assert 2 <= ratio.updates <= 100
    assert settings.train.prefill < records.evaluate_every <= settings.train.env_steps
    assert records.checkpoint_every <= ratio.updates
    assert records.picture_every <= ratio.updates
    assert settings.learner.publish_every <= ratio.updates
    assert records.picture_steps < settings.env.time_limit <= settings.train.prefill // 4
    assert records.evaluation_episodes * records.evaluation_steps <= settings.train.env_steps


def test_debug_leaves_no_duration_to_what_lies_below() -> None:
    """It sets everything that says how long a run is, so that no preset, not even one of a user's own, undoes it."""
    low = resolve(["debug"]).model_dump()
    for section in ("train", "records"):
        said = resolve(["debug"]).model_dump(exclude_unset=True)[section]
        numbers = {
            path.split(".")[1]
            for path, kind, *_ in describe_settings()
            if path.startswith(f"{section}.") and kind in ("number", "whole number")
        }
        assert numbers <= set(said), low[section]


def test_flags_win_over_debug() -> None:
    """A flag is laid over it, as over any preset."""
    settings = resolve(["dreamer_v3", "crafter", "debug"], [("train.env_steps", "5000"), ("learner.batch_size", "2")])
    assert (settings.train.env_steps, settings.learner.batch_size) == (5000, 2)
    assert isinstance(settings, Settings)
