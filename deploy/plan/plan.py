"""`dreamfleet plan`: prints what a run will move and hold, how many actors it wants, and what saturates first."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.formatting import format_bytes, format_duration
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.plan.footprint import Footprint, footprint_of
from dreamfleet.deploy.plan.rates import Known, Rates, measure_actor, rates_of_run
from dreamfleet.deploy.plan.traffic import (
    GIGABIT,
    Flow,
    Limit,
    actors_wanted,
    fed_updates,
    flow,
    limits,
    wanted_env_steps,
)
from dreamfleet.deploy.run_directory import RunDirectory

SUPPOSED_UPDATES_PER_S = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Columns of the table where nobody knows how fast the learner is."""
WIDTH = 100
_LABEL, _COLUMN, _FIGURE = 34, 13, 21


def plan(
    settings: Settings,
    run: Path | None,
    env_steps_per_s: float | None,
    updates_per_s: float | None,
    compression: float | None,
) -> int:
    """Print the plan; return the exit code.

    Args:
        settings: resolved.
        run: a run whose rates are taken; flags win over them.
        env_steps_per_s: of one actor; measured here for some seconds if neither flag nor run tells it.
        updates_per_s: of the learner; if nobody tells it, the table is made for several.
        compression: raw bytes per stored byte; measured here like `env_steps_per_s`.

    Raises:
        UserError: if the environment, the model or the run is at fault.
    """
    if settings.train.dataset:
        raise UserError(f"train.dataset {settings.train.dataset}: a run without actors has no traffic to plan.")
    given = Rates(
        Known(env_steps_per_s, "--env-steps-per-s"),
        Known(updates_per_s, "--updates-per-s"),
        Known(compression, "--compression"),
    )
    rates, spaces = _rates(settings, given, RunDirectory(run).existing() if run else None)
    assert rates.compression.value
    footprint = footprint_of(settings, spaces, rates.compression.value)
    print("\n".join(describe(settings, footprint, rates)))
    return 0


def describe(settings: Settings, footprint: Footprint, rates: Rates) -> list[str]:
    """Return the plan's lines: rates, traffic, memory, limits and what follows from them."""
    steps, updates = rates.steps_per_actor.value, rates.updates_per_s.value
    assert steps
    actors = _actors(settings, steps, updates)
    found = limits(settings, footprint, actors, steps, updates)
    learner, env = settings.learner, settings.env.id
    return [
        f"plan: {env}, batches of {learner.batch_size} × {learner.sequence_length}, train ratio "
        f"{settings.train.ratio:g}, {_actors_wanted(settings)}",
        "",
        *_rate_lines(rates),
        "",
        *_traffic_lines(settings, footprint, steps, updates, actors),
        "",
        *_memory_lines(settings, footprint, actors),
        "",
        *_limit_lines(found),
        "",
        *[line for sentence in _sentences(settings, footprint, actors, steps, updates, found)
          for line in textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")],
    ]  # fmt: skip


def _rates(settings: Settings, given: Rates, run: RunDirectory | None) -> tuple[Rates, Spaces]:
    """Return the rates, each from the first that knows it: flags, run, measuring; and the environment's spaces."""
    rates = given.or_else(rates_of_run(run)) if run else given
    if rates.steps_per_actor.value is None or rates.compression.value is None:
        measured, spaces = measure_actor(settings)
        return rates.or_else(measured), spaces
    if run:
        return rates, run.spaces()
    from dreamfleet.actors.environments.make import probe_environment

    return rates, probe_environment(settings.env)


def _actors(settings: Settings, steps: float, updates: float | None) -> int:
    """Return how many actors the settings ask for; `auto`: as many as keep the learner busy, 1 if that is not known."""
    if isinstance(settings.actors.count, int):
        return settings.actors.count
    return actors_wanted(settings, updates, steps) if updates else 1


def _actors_wanted(settings: Settings) -> str:
    """Return in words how many actors the settings ask for, and of how many environments."""
    count, environments = settings.actors.count, settings.actors.environments
    some = "as many actors as there is room for" if count == "auto" else f"{count} actor{'s' * (count != 1)}"
    return f"{some}, of {environments} environment{'s' * (environments != 1)} each"


def _rate_lines(rates: Rates) -> list[str]:
    rows = [
        ("one actor", rates.steps_per_actor, "{} env steps/s"),
        ("the learner", rates.updates_per_s, "{} updates/s"),
        ("compression", rates.compression, "{} times"),
    ]
    lines = [f"{'rate':<{_LABEL}}{'':<{_FIGURE}}from"]
    for name, known, form in rows:
        text = form.format(_figure(known.value)) if known.value is not None else "unknown"
        lines.append(f"{name:<{_LABEL}}{_padded(text)}{known.source if known.value is not None else 'nowhere'}")
    return lines


def _traffic_lines(
    settings: Settings, footprint: Footprint, steps: float, updates: float | None, actors: int
) -> list[str]:
    """Return the table of edges: with these actors and with a learner that is busy, or for several learners."""
    if updates is None:
        columns = [flow(settings, footprint, rate) for rate in SUPPOSED_UPDATES_PER_S]
        heads = ["a learner of", *[""] * (len(columns) - 1)]
    else:
        now = min(updates, fed_updates(settings, actors * steps))
        columns = [flow(settings, footprint, rate) for rate in dict.fromkeys((now, updates))]
        heads = [f"{actors} actor{'s' * (actors > 1)}", "learner busy"][-len(columns) :]
    needed = [actors_wanted(settings, column.updates_per_s, steps) for column in columns]
    return [
        _row("traffic", heads),
        _row("updates/s", [_figure(column.updates_per_s) for column in columns]),
        _row("env steps/s that the ratio wants", [_figure(column.env_steps_per_s) for column in columns]),
        _row(f"actors for that, of {_figure(steps)}/s", [f"{count:,}" for count in needed]),
        *_edge_rows(columns),
        _row("orders of the driver's loop", [f"{_figure(column.orders_per_s)} /s" for column in columns]),
    ]  # fmt: skip


def _edge_rows(columns: Sequence[Flow]) -> list[str]:
    rows = {
        "actors → replay": [column.actors_to_replay for column in columns],
        "replay → learner (within a node)": [column.replay_to_learner for column in columns],
        "learner → each node with actors": [column.learner_to_node for column in columns],
        "replay → disk": [column.replay_to_disk for column in columns],
        "checkpoints → disk": [column.checkpoints_to_disk for column in columns],
    }
    return [_row(name, [f"{format_bytes(value)}/s" for value in values]) for name, values in rows.items()]


def _memory_lines(settings: Settings, footprint: Footprint, actors: int) -> list[str]:
    learner = settings.learner
    batch = f"a batch is {format_bytes(footprint.batch_packed)} packed, {format_bytes(footprint.batch_raw)} unpacked"
    return [
        f"{'memory and disk':<{_LABEL}}at most",
        _size("object store, learner's node", footprint.object_store(settings, actors),
              f"{learner.prefetch + 1} packed batches, chunks under way, 2 weights"),
        _size("weights, one version", footprint.weights, "once on each node with actors"),
        _size("learner's batches", footprint.host_batches(settings), batch),
        _size("training, on its device", footprint.training, f"{footprint.parameters:,} parameters; an estimate"),
        _size("replay's index", footprint.index(settings), "when the replay is full"),
        _size("replay and checkpoints on disk", footprint.disk(settings),
              f"a step is {format_bytes(footprint.raw_step)}, {format_bytes(footprint.stored_step)} stored"),
    ]  # fmt: skip


def _limit_lines(found: Sequence[Limit]) -> list[str]:
    lines = [f"{'what saturates, first to last':<{_LABEL}}{'at':<{_FIGURE}}because"]
    return lines + [f"{limit.name:<{_LABEL}}{_padded(_rate(limit.updates_per_s))}{limit.because}" for limit in found]


def _sentences(
    settings: Settings, footprint: Footprint, actors: int, steps: float, updates: float | None, found: Sequence[Limit]
) -> list[str]:
    """Return what follows from the tables, in words."""
    brought, ratio = actors * steps, settings.train.ratio
    fed = fed_updates(settings, brought)
    have = (
        f"{_actors_of(actors, steps)} {'bring' if actors > 1 else 'brings'} {_figure(brought)} env "
        f"steps/s, which feed {_figure(fed)} updates/s"
    )
    others = [limit for limit in found if limit.name not in ("the actors", "the learner")]
    if updates is None:
        return [
            f"{have}.",
            "The learner's speed is not known: give --updates-per-s, or --run with a run of these settings.",
            f"Beside actors and learner, the first to saturate is {_limit_sentence(others[0])}",
        ]
    wanted, needed = wanted_env_steps(settings, updates), actors_wanted(settings, updates, steps)
    lines = [f"One learner at {_figure(updates)} updates/s and ratio {ratio:g} wants {_figure(wanted)} env steps/s: "
             f"{_actors_of(needed, steps)}."]  # fmt: skip
    if fed >= updates:
        lines.append(f"{have}: the learner is busy, and the actors wait {1 - updates / fed:.0%} of the time.")
    else:
        lines.append(f"{have}: the actors are busy, and the learner waits {1 - fed / updates:.0%} of the time.")
    lines.append(f"First to saturate: {_limit_sentence(found[0])}")
    if others[0] is not found[0]:
        lines.append(f"Beside actors and learner: {_limit_sentence(others[0])}")
    lines += _weights_sentence(settings, footprint, updates)
    return [*lines, _time_sentence(settings, brought, min(updates, *(limit.updates_per_s for limit in found)))]


def _weights_sentence(settings: Settings, footprint: Footprint, updates: float) -> list[str]:
    per_node = flow(settings, footprint, updates).learner_to_node
    nodes = int(GIGABIT / per_node)
    if nodes > 1000:
        return []
    return [f"Weights of {format_bytes(footprint.weights)} every {settings.learner.publish_every} updates: 1 Gbit/s "
            f"out of the learner's node serves {nodes} nodes."]  # fmt: skip


def _time_sentence(settings: Settings, brought: float, updates: float) -> str:
    ratio = TrainRatio.of(settings)
    seconds = max(ratio.env_steps / brought, ratio.prefill / brought + ratio.updates / updates)
    return (
        f"At that the whole run, {ratio.env_steps:,} env steps and {ratio.updates:,} updates, takes about "
        f"{format_duration(seconds)}, of which the prefill {format_duration(ratio.prefill / brought)}."
    )


def _limit_sentence(limit: Limit) -> str:
    return f"{limit.name}, at {_rate(limit.updates_per_s)}. What carries more: {limit.change}."


def _actors_of(count: int, steps: float) -> str:
    return f"{count:,} actors of {_figure(steps)}/s each" if count > 1 else f"1 actor of {_figure(steps)}/s"


def _rate(updates_per_s: float) -> str:
    return f"{_figure(updates_per_s)} updates/s"


def _figure(value: float) -> str:
    """Return a number with three digits, or with all before the point if these are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _padded(text: str) -> str:
    """Return a cell of a table's second column, which never touches the third."""
    return f"{text:<{_FIGURE - 1}} "


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<{_LABEL}}" + "".join(f" {cell:>{_COLUMN - 1}}" for cell in cells)


def _size(name: str, count: float, note: str) -> str:
    return f"{name:<{_LABEL}}{format_bytes(count):<11} {note}"
