"""Presets on top of each other: how much each algorithm trains on each suite, and `debug`, which ends in seconds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.presets import preset_names
from dreamfleet.common.settings.resolve import describe_settings, resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.ledger import TrainRatio

SCHEDULES = [
    # algorithm, suite, updates per 1000 simulator steps, simulator steps by chance before the first, simulator steps
    ("planet", "dmc_vision", 100, 5_000, 1_000_000),  # 100 per episode of 1000, after 5 episodes
    ("planet", "dmc_proprio", 100, 5_000, 1_000_000),
    ("planet", "carracing", 100, 5_000, 1_000_000),
    ("dreamer_v1", "dmc_vision", 100, 5_000, 1_000_000),
    ("dreamer_v1", "dmc_proprio", 100, 5_000, 1_000_000),
    ("dreamer_v2", "dmc_vision", 100, 2_000, 1_000_000),  # 1 per 5 actions of 2 steps
    ("dreamer_v2", "dmc_proprio", 100, 2_000, 1_000_000),
    ("dreamer_v2", "atari100k", 1000 / 64, 40_000, 400_000),  # 1 per 16 actions of 4 frames
    ("dreamer_v2", "crafter", 200, 10_000, 1_000_000),  # 1 per 5 steps
    ("dreamer_v3", "dmc_vision", 250, 10_000, 1_000_000),  # ratio 256 at action repeat 1, of 16 × 64
    ("dreamer_v3", "dmc_proprio", 1000, 5_000, 1_000_000),
    ("dreamer_v3", "atari100k", 62.5, 20_000, 400_000),
    ("dreamer_v3", "crafter", 500, 5_000, 1_000_000),
    ("dreamer_v3", "minigrid", 31.25, 5_000, 100_000),
    ("dreamer_v3", "carracing", 62.5, 20_000, 1_000_000),
]


@pytest.mark.parametrize(("algorithm", "suite", "updates", "prefill", "steps"), SCHEDULES)
def test_each_algorithm_trains_on_a_suite_as_its_release_does(
    algorithm: str, suite: str, updates: float, prefill: int, steps: int
) -> None:
    """Counted in simulator steps, which do not depend on the action repeat that a preset chooses."""
    settings = resolve([algorithm, suite])
    repeat, learner, train = settings.env.action_repeat, settings.learner, settings.train
    per_step = train.ratio / (learner.batch_size * learner.sequence_length) / repeat
    assert 1000 * per_step == pytest.approx(updates)
    assert train.prefill * repeat == prefill
    assert train.env_steps * repeat == steps


SEQUENCES = {"batch_size": 50, "sequence_length": 50}
RETURNS = {"horizon": 15, "return_lambda": 0.95}
PLANETS_STATE = {"deterministic": 200, "stochastic": 30, "hidden": 200, "min_std": 0.1, "depth": 32}
NUMBERS: dict[str, dict[str, dict[str, object]]] = {
    "planet": {
        "model": PLANETS_STATE | {"reward_layers": 2, "reward_units": 200, "activation": "relu"},
        "loss": {"free_nats": 3.0, "free_nats_per": "element", "kl_split": False, "kl_scale": 1.0, "reward_scale": 1.0},
        "learner": SEQUENCES | {"learning_rate": 1e-3, "epsilon": 1e-4, "clip": 1000.0, "weight_decay": 0.0},
        "behaviour": {"horizon": 12, "candidates": 1000, "iterations": 10, "elites": 100, "exploration": 0.3},
    },
    "dreamer_v1": {
        "model": PLANETS_STATE | {"reward_layers": 2, "reward_units": 400, "continue_layers": 3, "activation": "elu"},
        "loss": {"free_nats": 3.0, "free_nats_per": "mean", "kl_split": False, "kl_scale": 1.0, "continue_scale": 10.0},
        "learner": SEQUENCES | {"learning_rate": 6e-4, "clip": 100.0, "weight_decay": 0.0},
        "behaviour": RETURNS
        | {"discount": 0.99, "gradient": "dynamics", "entropy": 0.0, "slow_critic": "none", "exploration": 0.3}
        | {"actor_learning_rate": 8e-5, "critic_learning_rate": 8e-5, "actor_clip": 100.0}
        | {"actor_layers": 4, "critic_layers": 3, "units": 400, "normalise_returns": False, "replay_value_scale": 0.0},
    },
    "dreamer_v2": {
        "model": {
            "stochastic": 32,
            "classes": 32,
            "unimix": 0.0,
            "depth": 48,
            "activation": "elu",
            "reward_units": 400,
        },
        "loss": {"kl_split": True, "dynamics_scale": 0.8, "representation_scale": 0.2, "continue_horizon": 100},
        "learner": {"batch_size": 16, "sequence_length": 50, "epsilon": 1e-5, "clip": 100.0, "weight_decay": 1e-6},
        "behaviour": RETURNS
        | {"gradient": "by_action", "slow_critic": "target", "slow_critic_every": 100, "slow_critic_rate": 1.0}
        | {"actor_layers": 4, "critic_layers": 4, "units": 400, "normalise_returns": False, "replay_value_scale": 0.0},
    },
    "dreamer_v3": {
        "model": {"deterministic": 2048, "hidden": 256, "stochastic": 32, "classes": 16, "depth": 16, "blocks": 8}
        | {"unimix": 0.01, "prior_layers": 2, "vector_layers": 3, "reward_layers": 1, "continue_layers": 1}
        | {"vector_symlog": True, "reward_output_scale": 0.0, "activation": "silu", "norm": "rms"},
        "loss": {"kl_split": True, "dynamics_scale": 1.0, "representation_scale": 0.1, "kl_scale": 1.0}
        | {"free_nats": 1.0, "free_nats_per": "element", "continue_horizon": 333}
        | {"reconstruction_scale": 2.0, "reward_scale": 1.0, "continue_scale": 1.0},
        "learner": {"batch_size": 16, "sequence_length": 64, "optimiser": "laprop", "learning_rate": 4e-5}
        | {"warm_up": 1000, "epsilon": 1e-20, "clipping": "adaptive", "clip": 0.3, "weight_decay": 0.0},
        "behaviour": RETURNS
        | {"gradient": "reinforce", "entropy": 3e-4, "normalise_returns": True, "replay_value_scale": 0.3}
        | {"slow_critic": "regulariser", "slow_critic_every": 1, "slow_critic_rate": 0.02, "unimix": 0.0}
        | {"actor_learning_rate": 4e-5, "critic_learning_rate": 4e-5, "actor_layers": 3, "critic_layers": 3}
        | {"actor_output_scale": 0.01, "critic_output_scale": 0.0, "units": 256},
    },
}


@pytest.mark.parametrize("preset", NUMBERS)
def test_each_algorithm_has_the_numbers_of_its_paper_or_release(preset: str) -> None:
    """Where they differ, as docs/deviations.md says; twice half the squared error is V3's squared error."""
    settings = resolve([preset]).model_dump()
    for section, wanted in NUMBERS[preset].items():
        assert {name: settings[section][name] for name in wanted} == wanted


def test_v2_has_the_numbers_of_its_release_on_each_suite() -> None:
    """Widths, rates and weights differ between suites; what is not named stays the algorithm's."""
    plain, dmc, atari = (resolve(["dreamer_v2", *suite]) for suite in ([], ["dmc_vision"], ["atari100k"]))
    sizes = [(run.model.deterministic, run.model.hidden) for run in (plain, dmc, atari)]
    assert sizes == [(1024, 1024), (200, 200), (600, 600)]
    rates = [
        (run.learner.learning_rate, run.behaviour.actor_learning_rate, run.behaviour.critic_learning_rate)
        for run in (plain, dmc, atari)
    ]
    assert rates == [(1e-4, 8e-5, 2e-4), (3e-4, 8e-5, 8e-5), (2e-4, 4e-5, 1e-4)]
    assert [run.behaviour.entropy for run in (plain, dmc, atari)] == [2e-3, 1e-4, 1e-3]
    assert [(run.loss.kl_scale, run.loss.free_nats) for run in (plain, dmc, atari)] == [(1, 0), (1, 1), (0.1, 0)]
    assert [run.model.continue_head for run in (plain, dmc, atari)] == [True, False, True]
    assert atari.loss.continue_horizon == 1000
    assert {run.learner.batch_size for run in (plain, dmc, atari)} == {16}


def test_a_suite_leaves_how_much_is_trained_to_what_lies_below() -> None:
    """A model without numbers for the suite keeps its own ratio, and flags win over all."""
    assert resolve(["small", "crafter"]).train.ratio == resolve(["small"]).train.ratio
    assert resolve(["dreamer_v2", "dmc_vision"], [("train.ratio", "7")]).train.ratio == 7


def test_what_lies_over_a_preset_is_found_through_files_that_stand_on_it(tmp_path: Path) -> None:
    """A file of the user's own that stands on an algorithm, or has numbers over one."""
    own = tmp_path / "mine.yaml"
    own.write_text("presets: [dreamer_v2]\nover: {dreamer_v2: {seed: 5}, planet: {seed: 6}}")
    settings = resolve([str(own), "dmc_vision"])
    assert settings.seed == 5
    assert settings.train.ratio == 160


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("over: [planet]", ["over is ['planet']", "settings for presets"]),
        ("over: {dreamer_v: {seed: 1}}", ["no built-in preset 'dreamer_v'", "dreamer_v"]),
        ("presets: [planet]\nover: {planet: {sed: 1}}", ["over planet", "'sed'", "'seed'"]),
    ],
)
def test_a_mistake_under_over_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    """One sentence says in which file."""
    own = tmp_path / "mine.yaml"
    own.write_text(text)
    with pytest.raises(UserError) as error:
        resolve([str(own)])
    assert all(word in str(error.value) for word in [*words, "mine.yaml"]), error.value


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
