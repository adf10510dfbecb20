"""`dreamfleet plan`: its arithmetic against numbers worked out by hand, its sizes against the real things."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from make_chunks import cut, image_format, make_stream, mixed_format

from dreamfleet.common.acting.agent_networks import flatten
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.formatting import format_bytes
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.schema import ReplaySettings, Settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.plan import rates as rates_module
from dreamfleet.deploy.plan.footprint import (
    Footprint,
    footprint_of,
    mean_chunk_steps,
    model_sizes,
    packed_sequence_bytes,
)
from dreamfleet.deploy.plan.plan import WIDTH, describe
from dreamfleet.deploy.plan.rates import Known, Rates, measure_actor, rates_of_run
from dreamfleet.deploy.plan.traffic import actors_wanted, fed_updates, flow, limits, wanted_env_steps
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.replay.replay import Replay

SETTINGS = Settings.model_validate(
    {
        "actors": {"count": 4, "environments": 2, "steps_per_order": 32},
        "learner": {"batch_size": 10, "sequence_length": 20, "publish_every": 4, "updates_per_order": 5, "prefetch": 3},
        "train": {"ratio": 8.0, "env_steps": 101_000, "prefill": 1000},
        "records": {"checkpoint_every": 100, "checkpoints_kept": 3},
        "replay": {"capacity_gb": 1.0, "capacity_steps": 64_000, "shards": 2},
    }
)
SIZES = Footprint(
    raw_step=4000, stored_step=200.0, chunk_steps=32.0, batch_packed=50_000.0, batch_raw=800_000, weights=2_000_000,
    checkpoint=12_000_000, parameters=1_000_000, activations=10_000_000,
)  # fmt: skip
SMALL_MODEL = {"depth": 4, "deterministic": 16, "stochastic": 4, "hidden": 16, "reward_units": 16}


def test_what_flows_is_what_was_worked_out_by_hand() -> None:
    """6 updates/s of 10 × 20 steps replay 1,200 steps/s; ratio 8 wants 150 env steps/s for that."""
    flows = flow(SETTINGS, SIZES, 6.0)
    assert flows.replayed_steps_per_s == 1200
    assert flows.env_steps_per_s == 150
    assert flows.actors_to_replay == flows.replay_to_disk == 150 * 200
    assert flows.replay_to_learner == 6 * 50_000
    assert flows.learner_to_node == 6 / 4 * 2_000_000
    assert flows.checkpoints_to_disk == pytest.approx(6 / 100 * 12_000_000)
    assert flows.orders_per_s == pytest.approx(150 / 64 + 6 / 5)


def test_how_many_actors_keep_a_learner_busy_and_the_reverse() -> None:
    """150 env steps/s are four actors of 40 and three of 50; 100 env steps/s feed 4 updates/s."""
    assert wanted_env_steps(SETTINGS, 6.0) == 150
    assert [actors_wanted(SETTINGS, 6.0, rate) for rate in (40.0, 50.0, 1000.0)] == [4, 3, 1]
    assert fed_updates(SETTINGS, 100.0) == 4.0


def test_limits_come_in_the_order_in_which_they_are_reached() -> None:
    """Each limit is in updates per second, by hand: 25 env steps make an update."""
    found = limits(SETTINGS, SIZES, actors=4, steps_per_actor=30.0, updates_per_s=6.0)
    by_name = {limit.name: limit.updates_per_s for limit in found}
    assert by_name["the actors"] == pytest.approx(4 * 30 / 25)
    assert by_name["the learner"] == 6.0
    assert by_name["network of 1 Gbit/s"] == pytest.approx(125e6 / 200 / 25)
    assert by_name["network of 10 Gbit/s"] == pytest.approx(1250e6 / 200 / 25)
    assert by_name["storing in the replay"] == pytest.approx(2 * 73_000 / 25)
    assert by_name["sampling from the replay"] == pytest.approx(75_900 / 200)
    assert by_name["the disk"] == pytest.approx(125e6 / (25 * 200 + 120_000))
    assert by_name["the driver's loop"] == pytest.approx(1000 / (25 / 64 + 1 / 5))
    assert [limit.name for limit in found[:2]] == ["the actors", "the learner"]
    assert [limit.updates_per_s for limit in found] == sorted(by_name.values())


def test_bigger_steps_than_the_benchmark_s_take_the_replay_longer() -> None:
    """Twice the bytes take twice the time; smaller steps are not promised to be quicker."""
    big = Footprint(**(vars(SIZES) | {"raw_step": 2 * 12_307, "stored_step": 2 * 760}))
    by_name = {limit.name: limit.updates_per_s for limit in limits(SETTINGS, big, 1, 1.0, None)}
    assert by_name["storing in the replay"] == pytest.approx(73_000 / 25)
    assert by_name["sampling from the replay"] == pytest.approx(75_900 / 2 / 200)
    assert "the learner" not in by_name


def test_memory_and_disk_are_what_was_worked_out_by_hand() -> None:
    """Object store, the learner's batches, the index, the disk and training."""
    assert SIZES.object_store(SETTINGS, actors=4) == 4 * 50_000 + 4 * 8 * 32 * 200 + 2 * 2_000_000
    assert SIZES.host_batches(SETTINGS) == 5 * 800_000
    assert SIZES.index(SETTINGS) == 64_000 / 32 * 250, "64,000 steps are fewer than 1 GB of 200 bytes each"
    assert SIZES.disk(SETTINGS) == pytest.approx(1.01 * 101_000 * 4000 + 5 * 12_000_000)
    much = SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update={"env_steps": 10**7})})
    assert SIZES.disk(much) == 1e9 + 5 * 12_000_000, "never more than the replay's budget"
    assert SIZES.training == 16e6 + 13e6


@pytest.mark.parametrize(("order", "mean"), [(32, 32), (64, 64), (65, 32.5), (100, 50), (1, 1)])
def test_the_mean_chunk_follows_from_the_order(order: int, mean: float) -> None:
    """An order's steps are cut into chunks of 64 and a rest."""
    assert mean_chunk_steps(order) == mean


@pytest.mark.parametrize("step_format", [image_format(16), mixed_format()], ids=["a picture", "pictures and vectors"])
@pytest.mark.parametrize("chunk_steps", [64, 32, 40, 7])
@pytest.mark.parametrize("length", [1, 20, 50, 130])
def test_the_packed_batch_is_as_big_as_foretold(
    tmp_path: Path, step_format: StepFormat, chunk_steps: int, length: int
) -> None:
    """Within 15 % of what a replay really sends, for sequences and chunks of all lengths."""
    arrays = make_stream(step_format, [560, 560])
    arrays |= {field.name: _alike(field.dtype, arrays[field.name]) for field in step_format.big}
    replay = Replay(tmp_path, step_format, ReplaySettings(held_out_every=0), length, seed=1)
    records = cut(step_format, arrays, chunk_steps=chunk_steps)
    for record in records:
        replay.append(record)
    sent = np.mean([replay.sample(number, 50).nbytes for number in range(4)]) / 50
    stats = replay.stats()
    replay.close()
    foretold = packed_sequence_bytes(step_format, length, chunk_steps, stats["bytes_raw"] / stats["bytes_stored"])
    assert foretold == pytest.approx(sent, rel=0.15)


def _alike(dtype: str, array: np.ndarray) -> np.ndarray:
    """Return noise of few values, which zstd shrinks by the same factor everywhere."""
    return np.random.default_rng(0).integers(0, 16, array.shape).astype(dtype)


def test_the_index_takes_about_what_is_foretold(tmp_path: Path) -> None:
    """Within a factor of two of what the replay reports of itself, for a few thousand chunks."""
    step_format = image_format(4)
    replay = Replay(tmp_path, step_format, ReplaySettings(), 2, seed=1)
    for record in cut(step_format, make_stream(step_format, [100] * 60), chunk_steps=2):
        replay.append(record)
    stats = replay.stats()
    replay.close()
    assert 0.5 < stats["index_bytes"] / (250 * stats["chunks"]) < 2


def test_the_model_s_sizes_are_the_real_model_s(tmp_path: Path) -> None:
    """Weights as they are published, a checkpoint as it is written, and activations that grow with the batch."""
    settings = Settings.model_validate({"model": SMALL_MODEL, "learner": {"batch_size": 3, "sequence_length": 4}})
    spaces = image_format().spaces
    sizes = model_sizes(settings, spaces)
    model = WorldModel(spaces, settings.model)
    assert sizes["parameters"] == model.parameter_count()
    assert sizes["weights"] == flatten(model.acting_parameters()).nbytes
    optimiser = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimiser.step()
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, tmp_path / "state.pt")
    written = (tmp_path / "state.pt").stat().st_size
    assert footprint_of(settings, spaces, 1.0).checkpoint == pytest.approx(written, rel=0.15)
    twice = settings.model_copy(update={"learner": settings.learner.model_copy(update={"batch_size": 6})})
    assert model_sizes(twice, spaces)["activations"] == pytest.approx(2 * sizes["activations"], rel=0.1)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345, "12.3 kB"), (999_600, "1 MB"), (4.5e9, "4.5 GB")],
)
def test_bytes_are_said_in_decimal_units(count: float, text: str) -> None:
    """Three digits and the unit that fits."""
    assert format_bytes(count) == text


def rates(updates_per_s: float | None) -> Rates:
    return Rates(Known(30.0, "a flag"), Known(updates_per_s, "a flag"), Known(20.0, "a flag"))


def test_the_plan_says_what_follows() -> None:
    """Too few actors, enough of them, and what saturates first, in words; nothing is wider than a terminal."""
    lines = describe(SETTINGS, SIZES, rates(6.0))
    text = " ".join(line.strip() for line in lines)
    assert "One learner at 6 updates/s and ratio 8 wants 150 env steps/s: 5 actors of 30/s each." in text
    assert (
        "4 actors of 30/s each bring 120 env steps/s, which feed 4.8 updates/s: the actors are busy, and the " in text
    )
    assert "the learner waits 20% of the time." in text
    assert "First to saturate: the actors, at 4.8 updates/s." in text
    # 101,000 steps at 120/s are 842 s; 4,000 updates at 4.8/s after 8 s of prefill are as many
    assert "101,000 env steps and 4,000 updates, takes about 14:02 min, of which the prefill 8 s." in text
    assert max(map(len, lines)) <= WIDTH
    fewer = " ".join(line.strip() for line in describe(SETTINGS, SIZES, rates(2.4)))
    assert "the learner is busy, and the actors wait 50% of the time." in fewer


def test_an_unknown_learner_gets_a_table_of_several() -> None:
    """Nobody's guess is printed as a fact: the columns say which learner they are for."""
    lines = describe(SETTINGS, SIZES, rates(None))
    row = next(line for line in lines if line.startswith("actors for that"))
    assert row.split()[-5:] == ["1", "3", "9", "25", "84"]
    assert any("The learner's speed is not known" in line for line in lines)
    assert max(map(len, lines)) <= WIDTH


def test_auto_takes_as_many_actors_as_the_learner_wants() -> None:
    """With `actors.count auto` nobody waits but for rounding."""
    settings = SETTINGS.model_copy(update={"actors": SETTINGS.actors.model_copy(update={"count": "auto"})})
    assert "5 actors of 30/s each bring 150" in "\n".join(describe(settings, SIZES, rates(6.0)))


def write_run(directory: Path, rows: list[dict[str, float | None]]) -> RunDirectory:
    (directory / "config.yaml").write_text("seed: 0\n")
    torn = '{"time": 3, "fleet/env'
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    return RunDirectory(directory)


def row(steps: float, wait: float, updates: float, learner_wait: float) -> dict[str, float | None]:
    return {
        "fleet/actors": 2, "fleet/env_steps_per_s": steps, "fleet/actors_wait_fraction": wait,
        "fleet/updates_per_s": updates, "fleet/learner_wait_fraction": learner_wait,
        "replay/bytes_raw": 3000.0, "replay/bytes_stored": 200.0,
    }  # fmt: skip


def test_a_run_s_rates_are_those_of_the_time_in_which_nobody_waited(tmp_path: Path) -> None:
    """60 steps/s of two actors that wait half of the time are 60 each; rows that say nothing are left out."""
    run = write_run(tmp_path, [row(0, 0, 0, 1.0), row(60, 0.5, 4, 0.2), row(60, 0.5, 4, 0.2), row(1, 0.99, 9, 0.95)])
    found = rates_of_run(run)
    assert found.steps_per_actor.value == 60.0
    assert found.updates_per_s.value == 5.0
    assert found.compression.value == 15.0
    assert "2 rows" in found.updates_per_s.source


def test_a_run_without_rows_knows_nothing(tmp_path: Path) -> None:
    """Then flags or measuring must tell; what is damaged or missing is named."""
    assert rates_of_run(write_run(tmp_path, [])).updates_per_s.value is None
    (tmp_path / "metrics.jsonl").write_text("{]\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        rates_of_run(RunDirectory(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
        rates_of_run(RunDirectory(tmp_path))


def test_what_is_given_wins_over_what_is_known() -> None:
    """A flag is taken before a run's rate, and a run's before a measured one."""
    given = Rates(Known(None, ""), Known(7.0, "flag"), Known(None, ""))
    taken = given.or_else(rates(6.0))
    assert (taken.steps_per_actor.value, taken.updates_per_s.value, taken.compression.value) == (30.0, 7.0, 20.0)


def test_measuring_an_actor_steps_the_environment_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes whole orders until it has enough steps, and says how many."""
    monkeypatch.setattr(rates_module, "MEASURED_STEPS", 100)
    env = {"id": "counting_environment:make", "kwargs": {"image": 16, "delay_s": 0.001}, "image_size": 0}
    settings = Settings.model_validate({"env": env, "actors": {"steps_per_order": 32, "environments": 2}})
    found, spaces = measure_actor(settings)
    assert found.steps_per_actor.value
    assert 50 < found.steps_per_actor.value < 1000
    assert "128 steps" in found.steps_per_actor.source
    assert found.compression.value
    assert found.compression.value > 5
    assert spaces.images[0].shape == (16, 16, 3)


def test_an_environment_that_fails_while_it_is_measured_is_one_sentence() -> None:
    """With its id and what befell it."""
    env = {"id": "counting_environment:make", "kwargs": {"fail_at": 5}, "image_size": 0}
    with pytest.raises(UserError, match=r"'counting_environment:make' failed while it was measured: .*told to fail"):
        measure_actor(Settings.model_validate({"env": env}))


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """From flags alone nothing is measured; sizes are those of the environment's own pictures."""
    arguments = ["plan", "--preset", "small", "--env.id", "counting_environment:make", "--env.kwargs", "{image: 64}",
                 "--env-steps-per-s", "50", "--updates-per-s", "9", "--compression", "10"]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "counting_environment:make, batches of 8 × 20, train ratio 32" in printed
    assert "a step is 12.3 kB, 1.23 kB stored" in printed
    assert "wants 45 env steps/s: 1 actor of 50/s." in printed


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--updates-per-s", "0"], ["--updates-per-s", "0 is not greater than 0"]),
        (["--compression", "much"], ["--compression", "'much' is not a number"]),
        (["--run", "no/such/run"], ["no/such/run", "does not exist"]),
        (["--train.dataset", "some/set"], ["train.dataset some/set", "without actors"]),
        (["--env.id", "NoSuchEnv-v0"], ["NoSuchEnv-v0"]),
    ],
)
def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: list[str]) -> None:
    """On stderr, naming what was given, with exit code 2."""
    assert main(["plan", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    for part in wanted:
        assert part in printed.err
