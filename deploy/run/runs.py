"""Train, collect and dream as functions: where the parts of a run are put together.

    settings ─ checked against environment and directory ─▶ RunSpec        prepare_training, prepare_collecting
    the directory's lock, the log, signals, state.json                     open_session
    a pool of workers: actors, learner and replay, on Ray or inline        RayPool, InlinePool
    the fleet loop, which orders them about                                Fleet
    what it reports: TensorBoard, metrics, pictures, status line           RunCallbacks, and yours

The command line reads arguments and calls these functions; so does a script or a notebook, after
`import dreamfleet as df`.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import FleetConfig
from dreamfleet.deploy.fleet.fleet_state import Callbacks
from dreamfleet.deploy.fleet.ledger import Ledger
from dreamfleet.deploy.monitoring.run_callbacks import RunCallbacks
from dreamfleet.deploy.run.dream_sequences import RecordedDream, dream_of
from dreamfleet.deploy.run.open_pool import open_pool
from dreamfleet.deploy.run.origin import check_same_origin, settings_from
from dreamfleet.deploy.run.prepare import (
    Environment,
    RunSpec,
    check_given,
    directory_of,
    start_settings,
)
from dreamfleet.deploy.run.prepare_collecting import prepare_collecting, settings_to_collect
from dreamfleet.deploy.run.prepare_training import prepare_training
from dreamfleet.deploy.run.session import open_session
from dreamfleet.deploy.run.summary import (
    summarise_collecting,
    summarise_training,
)
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.learner.checkpoints.files import number_of

log = logging.getLogger("dreamfleet")


@dataclass(frozen=True)
class RunResult:
    """How a start of a run ended.

    Attributes:
        directory: of the run or dataset.
        env_steps: environment steps that it holds or held; `updates` made by its learner.
        metrics: the learner's newest, by name.
        stopped: why it ended early: a signal's name, or what a callback said; empty if it did not.
        exit_code: 0, or 130 after Ctrl-C and 143 after SIGTERM.
    """

    directory: Path
    env_steps: int
    updates: int
    metrics: Mapping[str, float]
    stopped: str = ""
    exit_code: int = 0


def train(
    settings: Settings | None = None,
    environment: Environment | None = None,
    directory: str | Path | None = None,
    callbacks: Sequence[Callbacks] = (),
    *,
    from_run: str | Path | None = None,
    checkpoint: str | int = "newest",
    inline: bool = False,
    address: str | None = None,
) -> RunResult:
    """Start or resume a training run.

    Args:
        settings: those of the run from now on; None for those that it has, or the defaults.
        environment: instead of `settings.env.id`.
        directory: of the run; a new one under runs/ if None.
        callbacks: called as things happen.
        from_run: another run, with whose model and actor a new one begins; settings are that run's by default.
        checkpoint: of `from_run`: "newest", "best" or a number of updates.
        inline: all in this process, without Ray.
        address: of a Ray cluster to join; None starts Ray here.

    Raises:
        UserError: if the settings, the environment, the dataset or the directory are at fault.
        RunFailedError: if the run cannot go on, with the cause; what it has is kept.
    """
    check_given(settings, callbacks)
    run = directory_of(directory, environment or "train")
    if from_run is not None:
        settings = _begun_from(RunDirectory(Path(from_run)).existing("from_run"), checkpoint, run, settings)
    spec = prepare_training(run, start_settings(settings, environment, run), inline, address)
    run.create()
    return _run(spec, callbacks, inline, address)


def _begun_from(
    origin: RunDirectory, checkpoint: str | int, run: RunDirectory, settings: Settings | None
) -> Settings | None:
    """Return settings that name the run they begin from; those of a run that exists must do so already."""
    if run.config_file.exists():
        check_same_origin(run, origin)
        return settings
    begun, _ = settings_from(origin, checkpoint, [], [])
    if settings is None:
        return begun
    named = {"from_run": begun.train.from_run, "from_checkpoint": begun.train.from_checkpoint}
    return settings.model_copy(update={"train": settings.train.model_copy(update=named)})


def collect(
    settings: Settings | None = None,
    environment: Environment | None = None,
    directory: str | Path | None = None,
    callbacks: Sequence[Callbacks] = (),
    *,
    steps: int | None = None,
    policy: str | Path | None = None,
    checkpoint: str | int = "newest",
    inline: bool = False,
    address: str | None = None,
) -> RunResult:
    """Start or continue a dataset: a run's directory without a learner's files, which `train.dataset` trains on.

    Args:
        settings: those of the dataset from now on; None for those that it has, or those of the policy's run.
        steps: environment steps that it is to hold in the end; `train.env_steps` if None.
        policy: directory of a run whose learned policy acts, exploring as it did; None for chance.
        checkpoint: of that run: "newest", "best" or a number of updates.

    Raises:
        UserError: if the settings, the environment, the policy or the directory are at fault.
        RunFailedError: if no actor can go on, with the cause; what was collected is kept.
    """
    check_given(settings, callbacks)
    run = directory_of(directory, environment or "collect")
    acting = RunDirectory(Path(policy)).existing("--policy") if policy else None
    settings = start_settings(settings or settings_to_collect([], [], run, acting), environment, run)
    spec = prepare_collecting(run, settings, steps, acting, checkpoint, inline, address)
    return _run(spec, callbacks, inline, address)


def _run(spec: RunSpec, callbacks: Sequence[Callbacks], inline: bool, address: str | None) -> RunResult:
    """Put the parts together, and run to the end or until somebody stops it."""
    from dreamfleet.deploy.monitoring.metrics_writer import MetricsWriter

    run, settings = spec.run, spec.settings
    with open_session(spec) as session, ExitStack() as once_closed:
        exporter = None if inline else _exporter(spec)
        with (
            closing(open_pool(spec, session.stop, inline, address)) as pool,
            closing(MetricsWriter(run, exporter)) as writer,
        ):
            session.has_workers = True
            # The settings are written once the checkpoint is found to fit them.
            write = partial(run.write, settings, spec.spaces)
            written = RunCallbacks(settings, writer, session.console, session.state, write)
            weights = pool.publish(*spec.weights) if spec.weights else None
            fleet = Fleet(
                pool,
                FleetConfig.of(settings, spec.learns, inline),
                Ledger(spec.ratio, session.simulator, updates=_saved_updates(run) if spec.learns else 0),
                [written, *callbacks],
                session.stop.asked,
                weights=weights,
            )
            once_closed.callback(_count_what_came_last, fleet, written)
            try:
                done = fleet.run()
            finally:
                written.write_last_state(fleet.state)
            written.write_last_row(done)
        ledger, code = done.ledger, session.stop.exit_code  # a signal during the summary stops nothing any more
        stopped = signal.Signals(session.stop.signal_number).name if code else done.stop_reason
        if stopped:
            session.state.stopped(f"by {stopped}" if code else f"by a callback: {stopped}")
            made = f"{ledger.env_steps} env steps" + (f" and {ledger.updates} updates" if spec.learns else "")
            made += "" if code else f", by a callback: {stopped}"
            log.info("stopped at %s; `%s` continues.", made, spec.resume_command)
        else:
            (summarise_training if spec.learns else summarise_collecting)(run, done, written)
    return RunResult(run.path, ledger.env_steps, ledger.updates, written.last_metrics, stopped, code)


def _count_what_came_last(fleet: Fleet, written: RunCallbacks) -> None:
    """Count what actors stored until the replay was closed: where nobody could end them, they went on."""
    counted = fleet.state.ledger.env_steps
    # Where closing failed the replay cannot be asked, and that failure is what is to be heard.
    with suppress(Exception):
        fleet.recount()
    if fleet.state.ledger.env_steps != counted:
        written.write_last_state(fleet.state)


def _saved_updates(run: RunDirectory) -> int:
    """Return the updates of the newest checkpoint, by its name: what the run has made until its learner has read it."""
    numbers = (number_of(file.name, "json") for file in run.checkpoints.glob("*.json"))
    return max((number for number in numbers if number is not None), default=0)


def _exporter(spec: RunSpec) -> Any:
    """Return what shows the scalars to Prometheus, through Ray."""
    from dreamfleet.deploy.monitoring.prometheus import PrometheusExporter

    ratio = spec.ratio
    wanted = {"env_steps": ratio.env_steps, "updates": ratio.updates, "ratio": ratio.ratio}
    return PrometheusExporter(spec.run.path.resolve().name, wanted)


def dream(
    directory: str | Path, *, sequences: int = 32, context: int | None = None, horizon: int | None = None
) -> RecordedDream:
    """Let a run's model dream of held-out sequences, beside what happened; write videos, strips and errors.

    Args:
        directory: of the run, which may be training meanwhile.
        context: steps seen; the run's `records.picture_context` by default.
        horizon: steps imagined; what remains of `records.picture_steps` by default.

    Raises:
        UserError: if the run has no checkpoint, or holds no sequence that is longer than the context.
    """
    return dream_of(RunDirectory(Path(directory)).existing(), sequences, context, horizon)
