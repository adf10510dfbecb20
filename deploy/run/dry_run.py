"""`dreamfleet train --dry-run`: the settings and what each came from, how long the run will take, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from dreamfleet.common.formatting import counted, format_bytes, format_duration, number, table, wrap
from dreamfleet.common.memory import usable_memory
from dreamfleet.common.settings.resolve import leaves
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor.facts import usable_cores
from dreamfleet.deploy.plan.footprint import model_sizes
from dreamfleet.deploy.plan.rates import measure_actor, measure_updates, suppose_gpus
from dreamfleet.deploy.plan.traffic import Speeds, Work, forecast
from dreamfleet.deploy.run.prepare import RunSpec, action_warnings
from dreamfleet.deploy.run.prepare_training import prepare_training
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.replay.report import count_steps

ACTOR_S = 4.0
"""Seconds after which each of the two measurements of an actor ends, when the order then at work is done."""
UPDATES_S = 12.0
"""Seconds that measuring updates may take, if a single sequence's does not take longer."""


def dry_run(
    run: RunDirectory, settings: Settings, sources: Mapping[str, str], inline: bool, address: str | None
) -> int:
    """Check the run as `train` does, print what it would be and how long it would take, and return the exit code.

    Nothing is written: no directory is made, and what is collected to measure is thrown away. `sources` says what each
    setting came from, by dotted path, but for defaults. With the `address` of a cluster this machine is measured too.

    Raises:
        UserError: as `train`.
    """
    spec = prepare_training(run, settings, inline, address)
    groups, defaults = group_by_source(spec.settings, sources)
    _print(
        *_heading(spec),
        "",
        "settings, and what each came from",
        *(line for source, found in groups.items() for line in wrap(f"{source}: {_sections(found)}", "  ", 4)),
        f"  default: the other {defaults}, which `dreamfleet train --help` lists",
        *(f"note: {text}" for _, text in spec.log_records),
        "",
    )
    rows, speeds = _measure(spec, inline, address)
    if speeds:
        rows += _time(_work_left(spec), speeds, spec.settings, inline, address)
    _print(*table(rows))
    return 0


def expected_seconds(run: RunDirectory, settings: Settings, inline: bool, cores: int) -> float | None:
    """Return how long what is left of a run takes on `cores` of this machine, None if its model is too big to be tried.

    Raises:
        UserError: as `train`.
    """
    spec = prepare_training(run, settings, inline, None)
    _, speeds = _measure(spec, inline, None)
    if speeds is None:
        return None
    return forecast(_work_left(spec), replace(speeds, cores=cores), inline).seconds


def group_by_source(settings: Settings, sources: Mapping[str, str]) -> tuple[dict[str, list[tuple[str, Any]]], int]:
    """Return the settings (path and value) by what they came from, in the order in which it was laid; count the rest.

    The rest are as by default, some of them in a run's config.yaml, which holds every setting. A dataset brings its
    environment.
    """
    default = dict(leaves(Settings().model_dump()))
    brought = f"dataset {settings.train.dataset}" if settings.train.dataset else ""
    groups: dict[str, list[tuple[str, Any]]] = {source: [] for source in dict.fromkeys(sources.values())}
    rest = 0
    for path, value in leaves(settings.model_dump()):
        source = brought if brought and path.startswith("env.") else sources.get(path)
        if source is None or (source.endswith("config.yaml") and default.get(path) == value):
            rest += 1
        else:
            groups.setdefault(source, []).append((path, value))
    return {source: found for source, found in groups.items() if found}, rest


def _sections(found: Sequence[tuple[str, Any]]) -> str:
    """Return settings by their sections: `train: ratio 32, prefill 5000; learner: ...`."""
    sections: dict[str, list[str]] = {}
    for path, value in found:
        head, _, name = path.partition(".")
        sections.setdefault(f"{head}: " if name else "", []).append(f"{name or head} {_as_flag(value)}")
    return "; ".join(head + ", ".join(parts) for head, parts in sections.items())


def _as_flag(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1 << 20).removesuffix("...\n").strip()


def _heading(spec: RunSpec) -> list[str]:
    learner, spaces, ratio = spec.settings.learner, spec.spaces, spec.ratio
    observed = ", ".join(
        f"{entry.name} {'×'.join(map(str, entry.shape))} {entry.dtype}" for entry in spaces.observations
    )
    state = "exists and would be resumed" if spec.old else "is new"
    return [
        f"dry run of {spec.settings.env.id} in {spec.run.shown}, which {state}; nothing is written",
        f"observes {observed}, acts by {spaces.action.in_words}",
        *action_warnings(spaces.action),
        f"in all {ratio.env_steps:,} env steps and {ratio.updates:,} updates of {learner.batch_size} × "
        f"{learner.sequence_length}",
    ]


def _work_left(spec: RunSpec) -> Work:
    """Return what is left: all of it, for a run that is not there yet."""
    updates = max(CheckpointStore(spec.run.checkpoints, kept=1).numbers(), default=0) if spec.old else 0
    if spec.settings.train.dataset:
        return Work.left(spec.ratio, spec.ratio.env_steps, updates)
    return Work.left(spec.ratio, count_steps(spec.run.replay) if spec.old else 0, updates)


def _measure(spec: RunSpec, inline: bool, address: str | None) -> tuple[list[tuple[str, str]], Speeds | None]:
    """Return what was measured, in words and as numbers; no numbers where the model is too big to be tried here."""
    if not inline:
        spec = replace(spec, settings=suppose_gpus(spec.settings)[0])
    settings, rows = spec.settings, []
    actors, random_rate, model_rate = 0, 1.0, 1.0
    if not settings.train.dataset:
        count, kind = settings.actors.count, settings.behaviour.kind
        actors = max(1, usable_cores() - 1) if isinstance(count, str) else count
        _print(f"measuring an actor, for up to {2 * ACTOR_S:.0f} seconds ...")
        _, random, on_model = measure_actor(settings, ACTOR_S, on_model=settings.acts_by_weights)
        random_rate, model_rate = random.rate, on_model.rate
        acting = f", {number(model_rate)} on the model ({kind})" if settings.acts_by_weights else ""
        rows.append(("one actor", f"{number(random_rate)} env steps/s with random actions{acting}"))
    too_big = _too_big(spec)
    if too_big:
        return [*rows, ("the learner", too_big)], None
    _print(f"measuring updates on made-up batches, for {UPDATES_S:.0f} seconds or a little more ...")
    busy = 0 if inline or address else actors
    from dreamfleet.learner.hardware import torch_threads, wants_compiled

    set_to = None if address else torch_threads()  # as a run on this machine has it
    found, hardware = measure_updates(settings, spec.spaces, busy, UPDATES_S, set_to)
    ranks, on_cpu = settings.learner.ranks, hardware.device.type == "cpu"
    size = settings.learner.batch_size // ranks
    how = (
        f"median of {found.updates}" if found.batch == size else f"extrapolated to {size} from {found.batch} sequences"
    )
    eager = (
        "; without learner.compile, which makes them quicker"
        if wants_compiled(settings.learner, hardware.device)
        else ""
    )
    of = f"{hardware.device.type}, {counted(hardware.threads, 'thread')}"
    shared = f"; of each of {ranks} ranks by itself, on its part of a batch" if ranks > 1 else ""
    rows.append(("the learner", f"{number(1 / found.seconds)} updates/s on {of} ({how}){eager}{shared}"))
    cores, threads = 0 if address else usable_cores(), ranks * hardware.threads if on_cpu else 0
    prefill_rate = model_rate if settings.train.from_run else random_rate  # what was learnt acts from the first step
    return rows, Speeds(prefill_rate, model_rate, found.seconds, actors, cores, threads)


def _too_big(spec: RunSpec) -> str:
    """Return why updates are not tried here, "" if they are."""
    import torch

    on_gpu = torch.cuda.is_available() and spec.settings.learner.device != "cpu"
    free = torch.cuda.mem_get_info()[0] if on_gpu else usable_memory()[1]
    needed = model_sizes(spec.settings, spec.spaces).training(spec.settings.learner.ranks)
    if free < 0 or needed < free:
        return ""
    return (
        f"not measured: training takes about {format_bytes(needed)}, and {format_bytes(free)} are free here, so the "
        "time is unknown"
    )


def _time(work: Work, speeds: Speeds, settings: Settings, inline: bool, address: str | None) -> list[tuple[str, str]]:
    """Return how long the run takes, what bounds that, and what it does not count."""
    if not any(work):
        return [("time", "nothing is left to do")]
    found = forecast(work, speeds, inline)
    prefill = f", of which the prefill {format_duration(found.prefill_s)}" if work.prefill_steps else ""
    left = f"{work.prefill_steps + work.later_steps:,} env steps and {work.updates:,} updates"
    where = " if the cluster's machines are like this one" if address else ""
    extra = ["checkpoints", "pictures", *(["evaluations"] if settings.records.evaluate_every else [])]
    return [
        ("time", f"about {format_duration(found.seconds)}{where} for {left}{prefill}"),
        ("", f"bound by {found.bound}; starting, {', '.join(extra)} come on top"),
    ]


def _print(*lines: str) -> None:
    print("\n".join(lines), flush=True)
