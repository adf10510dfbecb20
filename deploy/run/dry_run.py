"""`dreamfleet train --dry-run`: the settings and what each came from, how long the run will take, and nothing else."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from dreamfleet.common.formatting import format_bytes, format_duration
from dreamfleet.common.settings.resolve import leaves
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor.check_node import free_memory
from dreamfleet.deploy.plan.footprint import model_sizes, training_bytes
from dreamfleet.deploy.plan.forecast import Forecast, Speeds, Work, forecast
from dreamfleet.deploy.plan.rates import Collected
from dreamfleet.deploy.run.action_doubts import doubts_of
from dreamfleet.deploy.run.prepare import RunSpec
from dreamfleet.deploy.run.prepare_training import prepare_training
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.replay.report import count_steps

_LABEL = 12


def dry_run(
    run: RunDirectory, settings: Settings, sources: Mapping[str, str], inline: bool, address: str | None
) -> int:
    """Check the run as `train` does, print what it would be and how long it would take, and return the exit code.

    Nothing is written: no directory is made, and what is collected to measure is thrown away.

    Args:
        run: its directory, which need not be there.
        settings: resolved.
        sources: what each setting came from, by dotted path; defaults are not in it.
        inline: as in `train`; so is `address`.
        address: a Ray cluster; what is measured is this machine all the same.

    Raises:
        UserError: as `train`.
    """
    plan = prepare_training(run, settings, inline, address)
    known = _with_dataset(plan.settings, sources)
    _say(_head(run, plan))
    _say(["", "settings, and what each came from", *describe_sources(plan.settings, known, _width())])
    for _, remark in plan.log_records:
        _say([f"note: {remark}"])
    _say([""])
    work = _work(run, plan)
    speeds = _measure(plan, inline, address)
    if speeds:
        _say(_time_lines(work, forecast(work, speeds, inline), plan.settings, address))
    return 0


def describe_sources(settings: Settings, sources: Mapping[str, str], width: int) -> list[str]:
    """Return the settings grouped by what they came from, in the order in which that was laid; defaults are counted.

    Of a run's config.yaml, which holds every setting, those that are as by default count as such.

    Args:
        settings: resolved.
        sources: what each setting came from, by dotted path.
        width: of a line, in characters.
    """
    default = dict(leaves(Settings().model_dump()))
    groups: dict[str, list[tuple[str, Any]]] = {source: [] for source in dict.fromkeys(sources.values())}
    rest = 0
    for path, value in leaves(settings.model_dump()):
        source = sources.get(path)
        if source is None or (source.endswith("config.yaml") and default.get(path) == value):
            rest += 1
        else:
            groups[source].append((path, value))
    lines = []
    for source, found in groups.items():
        if found:
            text = f"{source}: {'; '.join(_sections(found))}"
            lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent=" " * 6,
                                   break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return [*lines, f"  default: the other {rest}, which `dreamfleet train --help` lists"]


def _sections(found: Sequence[tuple[str, Any]]) -> Iterator[str]:
    """Yield the settings of each section in a line: `train: ratio 32, prefill 5000`."""
    sections: dict[str, list[str]] = {}
    for path, value in found:
        head, _, name = path.partition(".")
        sections.setdefault(head if name else "", []).append(f"{name or head} {_shown(value)}")
    for head, parts in sections.items():
        yield f"{head}: {', '.join(parts)}" if head else ", ".join(parts)


def _shown(value: Any) -> str:
    """Return a value as a flag takes it."""
    if isinstance(value, float):
        return f"{value:g}"
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1 << 20).removesuffix("...\n").strip()


def _with_dataset(settings: Settings, sources: Mapping[str, str]) -> dict[str, str]:
    """Return the sources with a dataset's environment as what it brings."""
    if not settings.train.dataset:
        return dict(sources)
    kept = {path: source for path, source in sources.items() if path.split(".")[0] != "env"}
    brought = f"dataset {settings.train.dataset}"
    return kept | {path: brought for path, _ in leaves({"env": settings.env.model_dump()})}


def _head(run: RunDirectory, plan: RunSpec) -> list[str]:
    learner, spaces, ratio = plan.settings.learner, plan.spaces, plan.ratio
    observed = ", ".join(f"{spec.name} {'×'.join(map(str, spec.shape))} {spec.dtype}" for spec in spaces.observations)
    return [
        f"dry run of {plan.settings.env.id} in {run.shown}, which {'is there and goes on' if plan.old else 'is new'}; "
        "nothing is written",
        f"observes {observed}, acts by {spaces.action.in_words}",
        *doubts_of(spaces.action),
        f"in all {ratio.env_steps:,} env steps and {ratio.updates:,} updates of {learner.batch_size} × "
        f"{learner.sequence_length}",
    ]


def _work(run: RunDirectory, plan: RunSpec) -> Work:
    """Return what is left: all of it, for a run that is not there yet."""
    updates = max(CheckpointStore(run.checkpoints, kept=1).numbers(), default=0) if plan.old else 0
    if plan.settings.train.dataset:
        return Work(0, 0, max(0, plan.ratio.updates - updates))
    return Work.left(plan.ratio, count_steps(run.replay) if plan.old else 0, updates)


def _measure(plan: RunSpec, inline: bool, address: str | None) -> Speeds | None:
    """Measure and say what was found; None where the model is too big to be tried here."""
    from dreamfleet.deploy.plan.trial import measure_acting, measure_updates

    settings, collects = plan.settings, not plan.settings.train.dataset
    actors = _actors(settings) if collects else 0
    by_chance = acting = None
    if collects:
        _say(["measuring an actor, for some 8 seconds at most ..."])
        by_chance, acting = measure_acting(settings)
        _say([_row("one actor", _actor_words(by_chance, acting, settings.behaviour.kind))])
    too_big = _too_big(plan)
    if too_big:
        _say([_row("the learner", too_big)])
        return None
    _say(["measuring updates on batches that are made up, for some 12 seconds or a little more ..."])
    busy = 0 if inline or address else actors
    found, hardware = measure_updates(settings, plan.spaces, busy)
    size = settings.learner.batch_size
    how = (
        f"median of {found.updates}" if found.batch == size else f"extrapolated to {size} sequences from {found.batch}"
    )
    of = f"{hardware.device.type}, {hardware.threads} thread{'s' * (hardware.threads != 1)}"
    eager = "; learner.compile is left out of this, and makes them quicker" if settings.learner.compile else ""
    _say([_row("the learner", f"{_rate(1 / found.seconds)} updates/s on {of} ({how}){eager}")])
    on_cpu = hardware.device.type == "cpu"
    return Speeds(
        by_chance.rate if by_chance else 1.0, acting.rate if acting else 1.0, found.seconds, actors,
        0 if address else _cores(), hardware.threads if on_cpu else 0,
    )  # fmt: skip


def _actor_words(by_chance: Collected, acting: Collected, kind: str) -> str:
    words = f"{_rate(by_chance.rate)} env steps/s by chance"
    return words if kind == "random" else f"{words}, {_rate(acting.rate)} on the model ({kind})"


def _too_big(plan: RunSpec) -> str:
    """Return why updates are not tried here, "" if they are."""
    import torch

    on_gpu = torch.cuda.is_available() and plan.settings.learner.device != "cpu"
    free = torch.cuda.mem_get_info()[0] if on_gpu else free_memory()
    needed = training_bytes(model_sizes(plan.settings, plan.spaces))
    if free < 0 or needed < free:
        return ""
    return (
        f"not measured: training takes about {format_bytes(needed)}, and {format_bytes(free)} are free here, so that "
        "nothing can be said of the time"
    )


def _time_lines(work: Work, found: Forecast, settings: Settings, address: str | None) -> list[str]:
    """Return how long it takes, what that is bound by, and what it does not count."""
    if not (work.by_chance or work.acting or work.updates):
        return [_row("time", "nothing is left to do")]
    prefill = f", of which the prefill {format_duration(found.prefill_s)}" if work.by_chance else ""
    left = f"{work.by_chance + work.acting:,} env steps and {work.updates:,} updates"
    where = "" if not address else " if the cluster's machines are like this one"
    apart = ["checkpoints", "pictures", *(["evaluations"] if settings.records.evaluate_every else [])]
    return [
        _row("time", f"about {format_duration(found.seconds)}{where} for {left}{prefill}"),
        _row("", f"bound by {found.bound}; starting, {', '.join(apart)} come on top"),
    ]


def _actors(settings: Settings) -> int:
    """Return how many actors collect; `auto`: as many as one machine like this holds."""
    count = settings.actors.count
    return max(1, _cores() - 1) if count == "auto" else count


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rate(value: float) -> str:
    """Return a number with three digits, or with all before the point if these are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _row(name: str, text: str) -> str:
    return f"{name:<{_LABEL}} {text}"


def _width() -> int:
    return min(shutil.get_terminal_size((120, 40)).columns, 120)


def _say(lines: Sequence[str]) -> None:
    print("\n".join(lines), flush=True)
