"""`dreamfleet plan`: its arithmetic against numbers worked out by hand, its sizes against the real things."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from make_chunks import cut, image_format, make_stream, mixed_format

from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.acting.agent_networks import flatten
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.formatting import WIDTH, format_bytes
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.settings.resolve import resolve, resolve_with_sources
from dreamfleet.common.settings.schema import ReplaySettings, Settings
from dreamfleet.deploy.command_line import main
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.plan import rates as rates_module
from dreamfleet.deploy.plan.acting import acting_seconds, advice
from dreamfleet.deploy.plan.footprint import (
    Footprint,
    ModelSizes,
    compressed_sequence_bytes,
    footprint_of,
    mean_chunk_steps,
    model_sizes,
)
from dreamfleet.deploy.plan.plan import describe
from dreamfleet.deploy.plan.rates import (
    Known,
    Rates,
    fit_update_time,
    measure_actor,
    measure_updates,
    rates_of_run,
    suppose_gpus,
)
from dreamfleet.deploy.plan.traffic import (
    Speeds,
    Work,
    actors_wanted,
    fed_updates,
    flow,
    forecast,
    limits,
    wanted_env_steps,
)
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.behaviour.networks import make_networks
from dreamfleet.replay.decoded_cache import most_rows
from dreamfleet.replay.replay import Replay

SETTINGS = Settings.model_validate(
    {
        "behaviour": {"kind": "planner"},
        "actors": {"count": 4, "environments": 2, "steps_per_order": 32},
        "learner": {"batch_size": 10, "sequence_length": 20, "publish_every": 4, "updates_per_order": 5, "prefetch": 3},
        "train": {"ratio": 8.0, "env_steps": 101_000, "prefill": 1000},
        "records": {"checkpoint_every": 100, "checkpoints_kept": 3},
        "replay": {"capacity_gb": 1.0, "capacity_steps": 64_000, "shards": 2},
    }
)
MODEL = ModelSizes(parameters=1_000_000, weights=2_000_000, activations=10_000_000)
SIZES = Footprint(4000, 200.0, chunk_steps=32.0, compressed_batch=50_000.0, raw_batch=800_000, model=MODEL)
SMALL_MODEL = {"depth": 4, "deterministic": 16, "stochastic": 4, "hidden": 16, "reward_units": 16}


def test_what_flows_is_what_was_worked_out_by_hand() -> None:
    """6 updates/s of 10 × 20 steps replay 1,200 steps/s; ratio 8 wants 150 env steps/s for that."""
    flows = flow(SETTINGS, SIZES, 6.0)
    assert flows.env_steps_per_s == 150
    assert flows.orders_per_s == pytest.approx(150 / 64 + 6 / 5)
    assert list(flows.bytes_per_s.values()) == pytest.approx(
        [150 * 200, 6 * 50_000, 6 / 4 * 2_000_000, 150 * 200, 6 / 100 * 12_000_000]
    )
    by_chance = SETTINGS.model_copy(update={"behaviour": SETTINGS.behaviour.model_copy(update={"kind": "random"})})
    assert flow(by_chance, SIZES, 6.0).bytes_per_s["learner → each node with actors"] == 0
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
    assert by_name["sampling from the replay"] == pytest.approx(320_000 / 200)  # all kept decoded
    assert by_name["the disk"] == pytest.approx(125e6 / (25 * 200 + 120_000))
    assert by_name["the driver's loop"] == pytest.approx(1000 / (25 / 64 + 1 / 5))
    assert [limit.name for limit in found[:2]] == ["the actors", "the learner"]
    assert [limit.updates_per_s for limit in found] == sorted(by_name.values())


def test_steps_that_are_kept_decoded_are_sampled_faster() -> None:
    """Half of 64,000 steps of 4 kB take 128 MB: by hand, half at 320,000 steps/s and half at 75,900."""
    kept = Settings.model_validate({**SETTINGS.model_dump(), "replay": {"capacity_steps": 64_000, "cache_gb": 0.128}})
    assert SIZES.decoded_share(kept) == pytest.approx(0.5)
    by_name = {limit.name: limit for limit in limits(kept, SIZES, 4, 30.0, None)}
    found = by_name["sampling from the replay"]
    assert found.updates_per_s == pytest.approx(2 / (1 / 320_000 + 1 / 75_900) / 200)
    assert "50% of them to be decompressed" in found.because
    assert found.remedy == "a greater replay.cache_gb, or a machine with faster cores for the learner"
    (whole,) = (limit for limit in limits(SETTINGS, SIZES, 4, 30.0, None) if limit.name == found.name)
    assert whole.remedy == "a machine with faster cores for the learner"


def test_all_gpus_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is planned as a number, which a sentence names; as many as divide the batch."""
    every = SETTINGS.model_copy(update={"learner": SETTINGS.learner.model_copy(update={"gpus": "auto"})})
    for have, ranks in ((0, 1), (2, 2), (4, 2), (5, 5)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda have=have: have)
        supposed, sentence = suppose_gpus(every)
        assert supposed.learner.gpus == supposed.learner.ranks == ranks
        assert sentence.startswith(f"learner.gpus auto is planned as {ranks}, ")
    assert suppose_gpus(SETTINGS) == (SETTINGS, "")


def test_ranks_send_each_other_their_gradients_and_each_needs_memory() -> None:
    """By hand: in a ring of 5 a rank sends 8/5 of 4 MB; it holds the whole model, and a fifth of the activations."""
    shared = SETTINGS.model_copy(update={"learner": SETTINGS.learner.model_copy(update={"gpus": 5})})
    assert flow(shared, SIZES, 6.0).bytes_per_s["gradients out of each rank"] == pytest.approx(6 * 6.4e6)
    assert MODEL.training(5) == pytest.approx(16e6 + 13e6 / 5)
    by_name = {limit.name: limit.updates_per_s for limit in limits(shared, SIZES, 4, 30.0, None)}
    assert by_name["gradients between ranks"] == pytest.approx(20e9 / 6.4e6)
    rates = Rates(Known(30.0, "--env-steps-per-s"), Known(6.0, "--updates-per-s"), Known(20.0, "--compression"))
    text = " ".join(" ".join(describe(shared, SIZES, rates)).split())
    assert "training, on each of 5 GPUs" in text
    assert "5 ranks and needs 5 GPUs" in text
    assert "each computes 2 of 10 sequences, and sends 6.4 MB of gradients per update" in text
    assert "ranks" not in " ".join(describe(SETTINGS, SIZES, rates))


def test_bigger_steps_than_the_benchmark_s_take_the_replay_longer() -> None:
    """Twice the bytes take twice the time; smaller steps are not promised to be quicker."""
    big = Footprint(**(vars(SIZES) | {"raw_step": 2 * 12_307, "stored_step": 2 * 760}))
    by_name = {limit.name: limit.updates_per_s for limit in limits(SETTINGS, big, 1, 1.0, None)}
    assert by_name["storing in the replay"] == pytest.approx(73_000 / 25)
    assert by_name["sampling from the replay"] == pytest.approx(320_000 / 2 / 200)
    assert "the learner" not in by_name


def test_memory_and_disk_are_what_was_worked_out_by_hand() -> None:
    """Object store, the learner's batches, the index, the disk and training."""
    assert SIZES.object_store(SETTINGS, actors=4) == 4 * 50_000 + 4 * 8 * 32 * 200 + 2 * 2_000_000
    assert SIZES.learner_batches(SETTINGS) == 5 * 800_000
    assert SIZES.index(SETTINGS) == 64_000 / 32 * 250, "64,000 steps are fewer than 1 GB of 200 bytes each"
    assert SIZES.disk(SETTINGS) == pytest.approx(1.01 * 101_000 * 4000 + 5 * 12_000_000)
    assert SIZES.cache(SETTINGS) == most_rows(64_000) * 4000, "as many as the replay holds, and some"
    assert SIZES.cache(SETTINGS, free=400e6) == 100e6, "a quarter of what is free"
    for gigabytes, expected in ((0.1, 1e8), (0.0, 0), (50.0, SIZES.cache(SETTINGS))):
        replay = SETTINGS.replay.model_copy(update={"cache_gb": gigabytes})
        assert SIZES.cache(SETTINGS.model_copy(update={"replay": replay})) == expected
    much = SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update={"env_steps": 10**7})})
    assert SIZES.disk(much) == 1e9 + 5 * 12_000_000, "never more than the replay's budget"
    assert SIZES.model.training() == 16e6 + 13e6


def test_the_memory_of_central_inference_is_a_row_of_its_own() -> None:
    """Weights twice; of each of 4 × 2 environments a state of 230 numbers and an observation; of a planner more."""
    learned = {"inference": "central"}, {"kind": "actor_critic"}
    searching = {"inference": "central"}, {"kind": "planner", "candidates": 500}
    for (actors, behaviour), states in ((learned, 1), (searching, 500)):
        settings = SETTINGS.model_copy(
            update={
                "actors": SETTINGS.actors.model_copy(update=actors),
                "behaviour": SETTINGS.behaviour.model_copy(update=behaviour),
            }
        )
        expected = 2 * 2_000_000 + 8 * (states * 4 * 230 + 4 * 4000)
        assert SIZES.inference(settings, actors=4) == expected
        lines = "\n".join(describe(settings, SIZES, rates(6.0)))
        assert "inference, on its device" in lines
    assert "inference, on its device" not in "\n".join(describe(SETTINGS, SIZES, rates(6.0)))


@pytest.mark.parametrize(("order", "mean"), [(32, 32), (64, 64), (65, 32.5), (100, 50), (1, 1)])
def test_the_mean_chunk_follows_from_the_order(order: int, mean: float) -> None:
    """An order's steps are cut into chunks of 64 and a rest."""
    assert mean_chunk_steps(order) == mean


@pytest.mark.parametrize("step_format", [image_format(16), mixed_format()], ids=["a picture", "pictures and vectors"])
@pytest.mark.parametrize("chunk_steps", [64, 32, 40, 7])
@pytest.mark.parametrize("length", [1, 20, 50, 130])
def test_the_compressed_batch_is_as_big_as_foretold(
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
    foretold = compressed_sequence_bytes(step_format, length, chunk_steps, stats["bytes_raw"] / stats["bytes_stored"])
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
    assert sizes.parameters == model.parameter_count()
    assert sizes.weights == flatten(model.acting_parameters()).nbytes
    optimiser = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimiser.step()
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, tmp_path / "state.pt")
    written = (tmp_path / "state.pt").stat().st_size
    assert footprint_of(settings, spaces, 1.0).model.checkpoint == pytest.approx(written, rel=0.15)
    twice = settings.model_copy(update={"learner": settings.learner.model_copy(update={"batch_size": 6})})
    assert model_sizes(twice, spaces).activations == pytest.approx(2 * sizes.activations, rel=0.1)


SHORT = [("learner.batch_size", "2"), ("learner.sequence_length", "6")]
RANDOM = [*SHORT, ("behaviour.kind", "random")]


def test_an_actor_and_its_critic_are_counted(tmp_path: Path) -> None:
    """In what is published, in a checkpoint and in what backward keeps, which grows with the imagined horizon."""
    settings = resolve(["dreamer_v3", "debug"], SHORT)
    spaces = image_format().spaces
    sizes, alone = (model_sizes(one, spaces) for one in (settings, resolve(["dreamer_v3", "debug"], RANDOM)))
    networks = make_networks(spaces, settings)
    assert networks.saved.keys() == {"model", "behaviour"}
    assert sizes.weights == flatten(networks.agent.acting_parameters()).nbytes > alone.weights
    torch.save({name: network.state_dict() for name, network in networks.saved.items()}, tmp_path / "networks.pt")
    assert 4 * (sizes.parameters + sizes.fixed) == pytest.approx((tmp_path / "networks.pt").stat().st_size, rel=0.4)
    assert sizes.parameters > alone.parameters
    assert sizes.fixed > alone.fixed == 0
    longer = resolve(["dreamer_v3", "debug"], [*SHORT, ("behaviour.horizon", "30")])
    assert model_sizes(longer, spaces).activations > 1.05 * sizes.activations


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345, "12.3 kB"), (999_600, "1 MB"), (4.5e9, "4.5 GB")],
)
def test_bytes_are_said_in_decimal_units(count: float, text: str) -> None:
    """Three digits and the unit that fits."""
    assert format_bytes(count) == text


def rates(updates_per_s: float | None) -> Rates:
    updates = None if updates_per_s is None else Known(updates_per_s, "a flag")
    return Rates(Known(30.0, "a flag"), updates, Known(20.0, "a flag"))


def described(settings: Settings, updates_per_s: float | None) -> str:
    """Return the plan in one line, after checking that none of its own is wider than a terminal."""
    lines = describe(settings, SIZES, rates(updates_per_s))
    assert max(map(len, lines)) <= WIDTH
    return re.sub(r"\s+", " ", " ".join(lines))


def test_the_plan_says_what_follows() -> None:
    """Too few actors, enough of them, and what saturates first, as figures."""
    text = described(SETTINGS, 6.0)
    assert "wants 150 env steps/s: 5 actors of 30/s" in text
    assert "bring 120 env steps/s, which feed 4.8 updates/s: the actors are busy" in text
    assert "the learner waits 20%" in text
    assert "First to saturate: the actors, at 4.8 updates/s" in text
    # 101,000 steps at 120/s are 842 s; 4,000 updates at 4.8/s after 8 s of prefill are as many
    assert "101,000 env steps and 4,000 updates, takes about 14:02 min, of which the prefill 8 s" in text
    assert "the actors wait 50%" in described(SETTINGS, 2.4)
    auto = SETTINGS.model_copy(update={"actors": SETTINGS.actors.model_copy(update={"count": "auto"})})
    assert "5 actors of 30/s each bring 150" in described(auto, 6.0), "as many as the learner wants"


def test_an_unknown_learner_gets_a_table_of_several() -> None:
    """Nobody's guess is printed as a fact: the columns say which learner they are for."""
    text = described(SETTINGS, None)
    assert "updates/s 1 3 10 30 100 env" in text
    assert "actors for that, of 30/s 1 3 9 25 84 actors" in text
    assert "speed is not known" in text


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
    assert [known and known.value for known in vars(found).values()] == [60.0, 5.0, 15.0]
    assert "2 rows" in str(found.updates_per_s)


def test_a_run_without_rows_knows_nothing(tmp_path: Path) -> None:
    """Then flags or measuring must tell; what is damaged or missing is named."""
    assert rates_of_run(write_run(tmp_path, [])) == Rates(None, None, None)
    (tmp_path / "metrics.jsonl").write_text("{]\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        rates_of_run(RunDirectory(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
        rates_of_run(RunDirectory(tmp_path))


def test_what_is_given_wins_over_what_is_known() -> None:
    """A flag is taken before a run's rate, and a run's before a measured one."""
    taken = Rates(None, Known(7.0, "flag"), None).or_else(rates(6.0))
    assert [known and known.value for known in vars(taken).values()] == [30.0, 7.0, 20.0]


def test_measuring_an_actor_steps_the_environment_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes whole orders until it has enough steps, and says how many."""
    monkeypatch.setattr(rates_module, "MEASURED_STEPS", 100)
    env = {"id": "counting_environment:make", "kwargs": {"image": 16, "delay_s": 0.001}, "image_size": 0}
    settings = Settings.model_validate({"env": env, "actors": {"steps_per_order": 32, "environments": 2}})
    spaces, found, _ = measure_actor(settings, 6.0, on_model=False)
    assert found.steps == 128
    assert 50 < found.rate < 1500  # a step of these takes 1 ms and more, a reset nothing
    assert found.raw_bytes / found.stored_bytes > 5
    assert spaces.images[0].shape == (16, 16, 3)


def test_an_environment_that_fails_while_it_is_measured_is_one_sentence() -> None:
    """With its id and what befell it."""
    env = {"id": "counting_environment:make", "kwargs": {"fail_at": 5}, "image_size": 0}
    with pytest.raises(UserError, match=r"'counting_environment:make' failed while it was measured: .*told to fail"):
        measure_actor(Settings.model_validate({"env": env}), 6.0, on_model=False)


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """From flags alone nothing is measured; sizes are those of the environment's own pictures."""
    arguments = ["plan", "--preset", "small", "--env.id", "counting_environment:make", "--env.kwargs", "{image: 64}",
                 "--env-steps-per-s", "50", "--updates-per-s", "9", "--compression", "10"]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for part in ("counting_environment:make", "8 × 20", "train ratio 32", "12.3 kB", "1.23 kB", "45 env steps/s"):
        assert part in printed


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


def test_a_batch_is_measured_or_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the median of whole batches; if time is short, by a line through the last two sizes, or in proportion."""
    clock = FakeClock(monkeypatch)
    whole = fit_update_time(lambda size: clock.pass_s(0.01 * size**2), wanted=6, most_s=20.0)
    assert whole == (pytest.approx(0.36), 6, rates_module.MOST_UPDATES)
    line = fit_update_time(lambda size: clock.pass_s(3.0 + 0.5 * size), wanted=16, most_s=20.0)
    assert line.batch < 16
    assert line.seconds == pytest.approx(3.0 + 0.5 * 16)
    single = fit_update_time(lambda size: clock.pass_s(30.0 * size), wanted=8, most_s=20.0)
    assert single[:2] == (240.0, 1)


class FakeClock:
    """A clock that the measurement reads, and that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(rates_module, "perf_counter", lambda: self.now)

    def pass_s(self, seconds: float) -> None:
        self.now += seconds


def test_updates_and_acting_are_measured_for_every_behaviour() -> None:
    """An update on a made-up batch is finite for each kind of behaviour, with pictures and with vectors."""
    for preset in ("planet", "dreamer_v1", "dreamer_v2", "dreamer_v3", "small"):
        settings, _ = resolve_with_sources([preset, "debug"], [("env.id", "CartPole-v1")])
        spaces = probe_environment(settings.env)
        found, _ = measure_updates(settings, spaces, busy_cores=0, seconds=12.0)
        assert 0 < found.seconds < 60


def test_the_time_is_that_of_the_slowest() -> None:
    """Worked out by hand: 1,000 steps with random actions at 100/s and 9,000 at 10/s, 500 updates of 2 s."""
    work = Work.left(TrainRatio(10_000, ratio=1.0, replayed_per_update=18, prefill=1000), env_steps=0, updates=0)
    assert work == Work(1000, 9000, 500)
    speeds = Speeds(100.0, 10.0, 2.0, actors=2, cores=8, threads=4)
    assert forecast(work, speeds, inline=True).seconds == 10 + 900 + 1000
    apart = forecast(work, speeds, inline=False)
    assert (apart.seconds, apart.prefill_s, apart.bound) == (5 + 1000, 5, "the learner")
    few = forecast(work, Speeds(100.0, 10.0, 2.0, actors=2, cores=1, threads=1), inline=False)
    assert few.seconds == 910 + 1000
    assert "cores" in few.bound
    slow = forecast(work, Speeds(100.0, 1.0, 2.0, actors=2, cores=8, threads=4), inline=False)
    assert (slow.seconds, slow.bound) == ((10 + 9000) / 2, "the actors")


def test_what_is_there_already_is_not_counted_again() -> None:
    """A run that goes on has its prefill behind it."""
    ratio = TrainRatio(10_000, ratio=1.0, replayed_per_update=18, prefill=1000)
    assert Work.left(ratio, env_steps=4000, updates=100) == Work(0, 6000, 400)
    assert Work.left(ratio, env_steps=400, updates=0) == Work(600, 9000, 500)
    assert Work.left(ratio, env_steps=10_000, updates=500) == Work(0, 0, 0)


def test_where_to_act_follows_from_what_acting_takes_beside_the_environment() -> None:
    """Shares, traffic and questions as worked out by hand: two environments per actor, steps of 4,000 bytes."""
    (local,) = advice(SETTINGS, SIZES, actor_steps=100.0, env_steps=400.0, acting=Known(0.005, ""))
    assert local.startswith("Take actors.inference local: ")
    assert "takes 5 ms for its 2 environments, which take 20 ms to step: 20% of its time" in local
    (central,) = advice(SETTINGS, SIZES, actor_steps=100.0, env_steps=400.0, acting=Known(0.06, ""))
    assert central.startswith("Take actors.inference central")
    assert "75% of its time" in central
    assert "1.6 MB/s of observations" in central
    _, *further = advice(SETTINGS, SIZES, actor_steps=100.0, env_steps=400_000.0, acting=Known(0.06, ""))
    assert "more than 10 Gbit/s" in further[0]
    assert "200,000 questions/s" in further[1]
    assert "actors.environments to 400 or more" in further[1]


def test_acting_is_measured_or_worked_out(tmp_path: Path) -> None:
    """By chance there is nothing to say; a small model is measured; a large one, or a long search, is worked out."""
    spaces = probe_environment(Settings.model_validate({"env": {"id": "Pendulum-v1"}}).env)
    small = {"env": {"id": "Pendulum-v1"}, "model": SMALL_MODEL | {"hidden": 8}}
    learned = Settings.model_validate(small | {"behaviour": {"kind": "actor_critic", "units": 8}})
    assert acting_seconds(Settings.model_validate(small), spaces, 1000) is None
    measured = acting_seconds(learned, spaces, 1000)
    assert measured
    assert 0 < measured.value < 1
    assert measured.source.startswith("measured here")
    worked_out = acting_seconds(learned, spaces, 800_000_000)
    assert worked_out
    assert worked_out.value == pytest.approx(0.08)
    planner = learned.model_copy(update={"behaviour": learned.behaviour.model_copy(update={"kind": "planner"})})
    searched = acting_seconds(planner, spaces, 40_000_000)  # 10 million numbers, 150,000 times
    assert searched
    assert searched.value == pytest.approx(10e6 * 2 * 1000 * 10 * 15 / 2e10)
