"""`dreamfleet plan`: prints what a run will move and hold, how many actors it wants, and what saturates first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.formatting import counted, format_bytes, format_duration, number, table, wrap
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.plan.acting import acting_seconds, advice
from dreamfleet.deploy.plan.footprint import Footprint, batches_ahead, footprint_of
from dreamfleet.deploy.plan.rates import Known, Rates, measure_actor, rates_of_run, suppose_gpus
from dreamfleet.deploy.plan.traffic import (
    GIGABIT,
    Limit,
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
from dreamfleet.replay.decoded_cache import AUTO_SHARE

MEASURED_S = 6.0
"""Seconds for which an actor is measured, if nobody says how fast it is."""
SUPPOSED_UPDATES_PER_S = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Columns of the table where nobody knows how fast the learner is."""


def plan(
    settings: Settings,
    run: Path | None,
    env_steps_per_s: float | None,
    updates_per_s: float | None,
    compression: float | None,
) -> int:
    """Print the plan; return the exit code.

    The rates of flags come before those of a run. What is in neither is measured here for some seconds, except the
    learner's: without it the table is made for several.

    Raises:
        UserError: if the environment, the model or the run is at fault.
    """
    if settings.train.dataset:
        raise UserError(f"train.dataset {settings.train.dataset}: a run without actors has no traffic to plan.")
    flags = {"env-steps-per-s": env_steps_per_s, "updates-per-s": updates_per_s, "compression": compression}
    rates = Rates(*(Known(value, f"--{flag}") if value is not None else None for flag, value in flags.items()))
    rates, spaces = _complete(rates, settings, RunDirectory(run).existing() if run else None)
    assert rates.compression
    settings, supposed = suppose_gpus(settings)
    footprint = footprint_of(settings, spaces, rates.compression.value)
    lines = describe(settings, footprint, rates, acting_seconds(settings, spaces, footprint.model.weights))
    print("\n".join([*lines, *wrap(supposed, hang=2)] if supposed else lines))
    return 0


def describe(settings: Settings, footprint: Footprint, rates: Rates, acting: Known | None = None) -> list[str]:
    """Return the plan's lines: rates, traffic, memory, limits and what follows from them.

    Args:
        acting: seconds in which one core chooses the actions of an actor's environments, unless they are by chance.
    """
    assert rates.steps_per_actor
    steps, updates = rates.steps_per_actor.value, rates.updates_per_s.value if rates.updates_per_s else None
    count, learner = settings.actors.count, settings.learner
    some = "as many actors as there is room for" if count == "auto" else counted(int(count), "actor")
    if isinstance(count, str):
        count = actors_wanted(settings, updates, steps) if updates else 1
    found = limits(settings, footprint, count, steps, updates)
    saturating = [(limit.name, f"{number(limit.updates_per_s)} updates/s", limit.because) for limit in found]
    heading = (
        f"plan: {settings.env.id}, batches of {learner.batch_size} × {learner.sequence_length}, train ratio "
        f"{settings.train.ratio:g}, {some}, of {counted(settings.actors.environments, 'environment')} each"
    )
    conclusions = _conclusions(settings, footprint, count, steps, updates, found)
    if acting:
        wanted = wanted_env_steps(settings, updates) if updates else count * steps
        conclusions += advice(settings, footprint, steps, wanted, acting)
    return [
        *wrap(heading, hang=2),
        "",
        *table(_rate_rows(rates, acting)),
        "",
        *table(_traffic_rows(settings, footprint, steps, updates, count), right=True),
        "",
        *table(_memory_rows(settings, footprint, count)),
        "",
        *table([("what saturates, first to last", "at", "because"), *saturating]),
        "",
        *(line for text in conclusions for line in wrap(text, hang=2)),
    ]


def _complete(rates: Rates, settings: Settings, run: RunDirectory | None) -> tuple[Rates, Spaces]:
    """Return the rates, each from the first that knows it: flags, run, measuring; and the environment's spaces."""
    if run:
        rates = rates.or_else(rates_of_run(run))
    if not rates.steps_per_actor or not rates.compression:
        spaces, found, _ = measure_actor(settings, MEASURED_S, on_model=False)
        how = f"measured here: {found.steps:,} steps in {found.seconds:.1f} s, compressing included"
        compression = Known(found.raw_bytes / found.stored_bytes, "measured here, on those steps")
        return rates.or_else(Rates(Known(found.rate, how), None, compression)), spaces
    if run:
        return rates, run.spaces()
    from dreamfleet.actors.environments.make import probe_environment

    return rates, probe_environment(settings.env)


def _rate_rows(rates: Rates, acting: Known | None) -> list[tuple[str, str, str]]:
    named = {
        ("one actor", "env steps/s"): rates.steps_per_actor,
        ("the learner", "updates/s"): rates.updates_per_s,
        ("compression", "times"): rates.compression,
    }
    rows = [
        (
            name,
            f"{number(known.value)} {unit}" if known else "unknown",
            known.source if known else "--updates-per-s may say it",
        )
        for (name, unit), known in named.items()
    ]
    if acting:
        rows.append(("acting, one core", f"{number(1e3 * acting.value)} ms", acting.source))
    return [("rate", "", "from"), *rows]


def _traffic_rows(
    settings: Settings, footprint: Footprint, steps: float, updates: float | None, actors: int
) -> list[list[str]]:
    """Return what flows: with these actors and with a learner that is busy, or for several learners."""
    if updates is None:
        rates: Sequence[float] = SUPPOSED_UPDATES_PER_S
        heads = ["a learner of", *[""] * (len(rates) - 1)]
    else:
        rates = list(dict.fromkeys((min(updates, fed_updates(settings, actors * steps)), updates)))
        heads = [counted(actors, "actor"), "learner busy"][-len(rates) :]
    flows = [flow(settings, footprint, rate) for rate in rates]
    edges = [[edge, *(f"{format_bytes(each.bytes_per_s[edge])}/s" for each in flows)] for edge in flows[0].bytes_per_s]
    needed = [f"{actors_wanted(settings, rate, steps):,}" for rate in rates]
    return [
        ["traffic", *heads],
        ["updates/s", *map(number, rates)],
        ["env steps/s that the ratio wants", *(number(each.env_steps_per_s) for each in flows)],
        [f"actors for that, of {number(steps)}/s", *needed],
        *edges,
        ["orders of the driver's loop", *(f"{number(each.orders_per_s)} /s" for each in flows)],
    ]


def _memory_rows(settings: Settings, footprint: Footprint, actors: int) -> list[tuple[str, str, str]]:
    compressed, raw = format_bytes(footprint.compressed_batch), format_bytes(footprint.raw_batch)
    raw_step, stored_step = format_bytes(footprint.raw_step), format_bytes(footprint.stored_step)
    model, batches = footprint.model, f"{batches_ahead(settings) + 1} compressed batches"
    object_store, training = footprint.object_store(settings, actors), model.training(settings.learner.ranks)
    cached = "newest first, where the learner reads them"
    if settings.replay.cache_gb == "auto":
        cached = f"or {AUTO_SHARE:.0%} of the free memory, if that is less"
    sizes = [
        ("object store, learner's node", object_store, f"{batches}, chunks in flight, weights twice"),
        ("weights, one version", model.weights, "once on each node with actors"),
        ("learner's batches", footprint.learner_batches(settings), f"a batch is {compressed} compressed, {raw} raw"),
        (_training_row(settings), training, f"{model.parameters:,} parameters; an estimate"),
        *_inference_row(settings, footprint, actors),
        ("replay's index", footprint.index(settings), "when the replay is full"),
        ("replay's decoded steps", footprint.cache(settings), cached),
        ("replay and checkpoints on disk", footprint.disk(settings), f"a step is {raw_step}, {stored_step} stored"),
    ]
    return [("memory and disk", "at most", ""), *((name, format_bytes(size), text) for name, size, text in sizes)]


def _inference_row(settings: Settings, footprint: Footprint, actors: int) -> list[tuple[str, float, str]]:
    if settings.actors.inference == "local":
        return []
    acted_for = counted(actors * settings.actors.environments, "environment")
    text = f"weights twice, and what {acted_for} show; a GPU's own context comes on top"
    return [("inference, on its device", footprint.inference(settings, actors), text)]


def _training_row(settings: Settings) -> str:
    ranks = settings.learner.ranks
    return "training, on its device" if ranks == 1 else f"training, on each of {_devices(settings)}"


def _devices(settings: Settings) -> str:
    return counted(settings.learner.ranks, "CPU process" if settings.learner.device == "cpu" else "GPU")


def _rank_sentences(settings: Settings, footprint: Footprint) -> list[str]:
    """Return what several ranks need and tell each other."""
    learner, ranks = settings.learner, settings.learner.ranks
    if ranks == 1:
        return []
    sent = footprint.model.reduced(ranks)
    return [
        f"The learner has {ranks} ranks and needs {_devices(settings)}, at best in one machine: each computes "
        f"{learner.batch_size // ranks} of {learner.batch_size} sequences, and sends {format_bytes(sent)} of gradients "
        f"per update; over 10 Gbit/s between machines that alone takes {1e3 * sent / (10 * GIGABIT):,.0f} ms."
    ]


def _conclusions(
    settings: Settings, footprint: Footprint, actors: int, steps: float, updates: float | None, found: Sequence[Limit]
) -> list[str]:
    """Return what follows from the tables, in sentences."""
    fed = fed_updates(settings, actors * steps)
    have = (
        f"{_actors_of(actors, steps)} {'bring' if actors > 1 else 'brings'} {number(actors * steps)} env steps/s, "
        f"which feed {number(fed)} updates/s"
    )
    other = next(limit for limit in found if limit.name not in ("the actors", "the learner"))
    if updates is None:
        return [
            f"{have}.",
            *_rank_sentences(settings, footprint),
            "The learner's speed is not known: give --updates-per-s, or --run with a run of these settings.",
            f"Beside actors and learner, the first to saturate is {_limit(other)}",
        ]
    wanted, needed = wanted_env_steps(settings, updates), actors_wanted(settings, updates, steps)
    busy, waiting = ("learner is", "actors wait") if fed >= updates else ("actors are", "learner waits")
    sentences = [
        f"One learner at {number(updates)} updates/s and ratio {settings.train.ratio:g} wants {number(wanted)} env "
        f"steps/s: {_actors_of(needed, steps)}.",
        f"{have}: the {busy} busy, and the {waiting} {1 - min(fed, updates) / max(fed, updates):.0%} of the time.",
        *_rank_sentences(settings, footprint),
        f"First to saturate: {_limit(found[0])}",
    ]
    if other is not found[0]:
        sentences.append(f"Beside actors and learner: {_limit(other)}")
    weights, every = footprint.model.weights, settings.learner.publish_every
    nodes = int(GIGABIT / (updates / every * weights))
    if settings.acts_by_weights and nodes <= 1000:
        sent = f"Weights of {format_bytes(weights)} every {every} updates"
        sentences.append(f"{sent}: 1 Gbit/s out of the learner's node serves {nodes} nodes.")
    ratio = TrainRatio.of(settings)
    speeds = Speeds(steps, steps, 1 / found[0].updates_per_s, actors)
    time = forecast(Work.left(ratio, env_steps=0, updates=0), speeds, inline=False)
    sentences.append(
        f"At that the whole run, {ratio.env_steps:,} env steps and {ratio.updates:,} updates, takes about "
        f"{format_duration(time.seconds)}, of which the prefill {format_duration(time.prefill_s)}."
    )
    return sentences


def _limit(limit: Limit) -> str:
    return f"{limit.name}, at {number(limit.updates_per_s)} updates/s. What carries more: {limit.remedy}."


def _actors_of(count: int, steps: float) -> str:
    return f"{counted(count, 'actor')} of {number(steps)}/s{' each' * (count > 1)}"
