"""One start of a run: its directory locked, its log open, its fleet run to the end or until somebody stops it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from dreamfleet import __version__
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.experience.spaces import Spaces, first_difference
from dreamfleet.common.lock import DirectoryLock
from dreamfleet.common.process_log import LogRecord, logged_once
from dreamfleet.common.settings.resolve import changes
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.fleet import Fleet
from dreamfleet.deploy.fleet.fleet_config import Staffing
from dreamfleet.deploy.fleet.simulator_count import SimulatorCount
from dreamfleet.deploy.monitoring.console import Console, open_log, quiet_log
from dreamfleet.deploy.monitoring.run_callbacks import RunWatcher
from dreamfleet.deploy.run.action_doubts import doubts_of
from dreamfleet.deploy.run.goal import Goal
from dreamfleet.deploy.run.stop import StopRequest
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import StateWriter, read_state
from dreamfleet.deploy.workers.address import check_address
from dreamfleet.deploy.workers.pool import Pool

if TYPE_CHECKING:
    from dreamfleet.deploy.monitoring.prometheus import PrometheusExporter

LOCK_WAIT_S = 2.0
"""How long to wait for a directory that another run holds; it lets go when its process ends, by SIGKILL too."""

log = logging.getLogger("dreamfleet")


class Session:
    """Starts or resumes a run.

    Args:
        run: its directory, which need not be there yet.
        old: the settings that the run had, or None if it is new.
        settings: those that it has now.
        spaces: what the environment shows and takes.
        goal: what this start is for.
        inline: all in this process, without Ray.
        address: a Ray cluster to join; None starts Ray here.
        remarks: what was found out before there was a log, to be logged first.
    """

    def __init__(
        self,
        run: RunDirectory,
        old: Settings | None,
        settings: Settings,
        spaces: Spaces,
        goal: Goal,
        inline: bool,
        address: str | None,
        remarks: Sequence[LogRecord] = (),
    ) -> None:
        self._run = run
        self._old = old
        self._settings = settings
        self._spaces = spaces
        self._goal = goal
        self._inline = inline
        self._address = address
        self._remarks = remarks
        self._has_begun = False  # whether the workers' pool was open

    def play(self) -> int:
        """Run the fleet and return the exit code.

        Raises:
            UserError: if the settings, the environment or the directory are at fault.
        """
        with DirectoryLock(self._run.path, LOCK_WAIT_S, self._run.shown):
            try:
                return self._play()
            except UserError:
                if not self._old and not self._has_begun:
                    self._run.discard()
                raise

    def _play(self) -> int:
        run, console = self._run, Console()
        with StopRequest() as stop, open_log(console, run.log_file):
            log.info("dreamfleet %s: %s %s", __version__, "resuming" if self._old else "new run", run.shown)
            kind, pause_s = "train" if self._goal.learns else "collect", self._settings.records.log_every_s
            earlier = read_state(run.path)  # before it is written over
            self._counted = SimulatorCount.of_counters(earlier.counters if earlier else {})
            try:
                with StateWriter(run.path, kind, pause_s) as state:  # keeps what is warned of from here on
                    for change in changes(self._old, self._settings) if self._old else []:
                        log.info("changed since the last start: %s", change)
                    for level, text in self._remarks:
                        log.log(level, "%s", text)
                    self._tell_environment()
                    if not self._old:  # an old run's are written over once its checkpoint is found to fit the new ones
                        run.write(self._settings, self._spaces)
                    return self._run_fleet(console, stop, state)
            except UserError as error:
                log.error("%s", error, extra={"only_to_file": True})  # noqa: TRY400 (the command line prints it)
                raise
            except RunFailedError as error:
                log.error("the run failed: %s", error)  # noqa: TRY400 (the sentence is what the user needs)
                log.info(
                    "The log is in %s; `%s` goes on from what is stored.",
                    run.shown / run.log_file.name,
                    self._goal.come_back,
                )
                return 1

    def _run_fleet(self, console: Console, stop: StopRequest, state: StateWriter) -> int:
        from dreamfleet.deploy.monitoring.metrics_writer import MetricsWriter

        run, settings, goal = self._run, self._settings, self._goal
        with closing(self._open_pool(stop)) as pool, closing(MetricsWriter(run, self._prometheus())) as metrics:
            self._has_begun = True
            watcher = RunWatcher(
                settings, metrics, console, state, on_restored=lambda: run.write(settings, self._spaces)
            )
            published = PublishedWeights(goal.weights[0], pool.publish(goal.weights[1])) if goal.weights else None
            staffing = Staffing.of(settings, goal.learns)
            fleet = Fleet(pool, staffing, goal.ratio, watcher, stop.asked, weights=published, simulator=self._counted)
            fleet.run()
            watcher.write_last_row(fleet)
        if stop:
            state.stopped(f"by {signal.Signals(stop.signal_number).name}")
            updates = f" and {fleet.updates} updates" if goal.learns else ""
            log.info("stopped at %d env steps%s; `%s` goes on.", fleet.env_steps, updates, goal.come_back)
            return stop.exit_code
        goal.sum_up(fleet, watcher)
        return 0

    def _prometheus(self) -> PrometheusExporter | None:
        """Return what exports the scalars to Prometheus; only Ray can."""
        if self._inline:
            return None
        from dreamfleet.deploy.monitoring.prometheus import PrometheusExporter

        ratio = self._goal.ratio
        wanted = {"env_steps": ratio.env_steps, "updates": ratio.updates, "ratio": ratio.ratio}
        return PrometheusExporter(self._run.path.resolve().name, wanted)

    def _open_pool(self, stop: StopRequest) -> Pool:
        settings = self._settings
        if self._inline:
            from dreamfleet.deploy.workers.inline_pool import InlinePool

            log.info("mode: inline, everything in this process")
            pool = InlinePool(settings, self._spaces, self._run, stop)
            stop.then(pool.interrupt)
            return pool
        from dreamfleet.deploy.workers.ray_pool import RayPool

        where = f"Ray cluster at {self._address}" if self._address else "Ray on this machine"
        log.info("mode: %s, actors: %s", where, _describe_actors(settings))
        ray_pool = RayPool(settings, self._spaces, self._run, self._address)
        if self._address:
            import ray

            log.info("cluster: joined the one at %s", ray.get_runtime_context().gcs_address)
        return ray_pool

    def _tell_environment(self) -> None:
        spaces = self._spaces
        shown = ", ".join(f"{spec.name} {'×'.join(map(str, spec.shape))} {spec.dtype}" for spec in spaces.observations)
        log.info("environment: %s, observes %s, acts by %s", self._settings.env.id, shown, spaces.action.in_words)
        for doubt in doubts_of(spaces.action):
            log.warning("%s", doubt)
        for level, line in logged_once():  # as the environment was tried, when no log was open yet
            log.log(level, "%s", line)


def check_modes(inline: bool, address: str | None) -> None:
    """Refuse flags that contradict each other, and the address of a cluster that is not there.

    Raises:
        UserError: if they do, or it is not.
    """
    if inline and address:
        raise UserError("flag --address: a cluster has no part in a run with --inline; leave one of the two out.")
    if address:
        check_address(address)


def probe(run: RunDirectory, settings: Settings, old: Settings | None) -> Spaces:
    """Try the environment before any process is started; on resume, its spaces must be those of the run.

    Raises:
        UserError: if it cannot be made, fails at once, or is another one than the run's.
    """
    from dreamfleet.actors.environments.make import probe_environment

    with quiet_log():  # the run's log repeats what was logged once
        spaces = probe_environment(settings.env)
    if old and run.spaces_file.exists():
        check_same_spaces(run, spaces)
    return spaces


def check_same_spaces(run: RunDirectory, spaces: Spaces) -> None:
    """Refuse an environment with other spaces than those of a run or a dataset.

    Raises:
        UserError: naming the first entry that differs, with both versions of it.
    """
    difference = first_difference(run.spaces(), spaces)
    if difference:
        kind, verb = ("dataset", "collected") if run.is_dataset else ("run", "trained")
        raise UserError(
            f"The {kind} {run.shown} is of another environment: {difference}; give the env settings that it was "
            f"{verb} with."
        )


def _describe_actors(settings: Settings) -> str:
    if settings.train.dataset:
        return f"none, training on the dataset {Path(settings.train.dataset)}"
    count = "as many as there is room for" if settings.actors.count == "auto" else settings.actors.count
    return f"{count}, of {settings.actors.environments} environments each"
