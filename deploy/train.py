"""`dreamfleet train`: prepares a run, lets the fleet run, and sums up."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from pathlib import Path

from dreamfleet import __version__
from dreamfleet.common.errors import RunFailedError, UserError
from dreamfleet.common.lock import DirectoryLock
from dreamfleet.common.policy import make_policy
from dreamfleet.common.settings import Settings
from dreamfleet.common.spaces import Spaces
from dreamfleet.deploy.console import Console, open_log
from dreamfleet.deploy.fleet import Fleet
from dreamfleet.deploy.pool import Pool
from dreamfleet.deploy.progress import duration
from dreamfleet.deploy.ratio import TrainRatio
from dreamfleet.deploy.resolve import changes
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.staffing import Staffing
from dreamfleet.deploy.stop import StopRequest
from dreamfleet.deploy.watching import RunWatcher

LOCK_WAIT_S = 2.0
"""How long to wait for a directory that another run holds; it lets go when its process ends, by SIGKILL too."""

log = logging.getLogger("dreamfleet")


def train(run: RunDirectory, settings: Settings, inline: bool, address: str | None) -> int:
    """Start or resume a run; return the exit code.

    Args:
        run: its directory, which need not be there yet.
        settings: resolved; for an existing run, over those it had.
        inline: all in this process, without Ray.
        address: a Ray cluster to join; None starts Ray here.

    Raises:
        UserError: if the settings, the environment or the directory are at fault.
    """
    if inline and address:
        raise UserError("flag --address: a cluster has no part in a run with --inline; leave one of the two out.")
    old = run.settings() if run.config_file.exists() else None
    run.check_usable()
    spaces = _probe(run, settings, old)  # before the directory is made: what is at fault leaves nothing behind
    make_policy(settings.actors, spaces, settings.actors.environments, seed=0)  # says so if it does not fit the action
    _check_model(settings, spaces)
    run.create()
    console = Console()
    with DirectoryLock(run.path, wait_s=LOCK_WAIT_S), StopRequest() as stop, open_log(console, run.log_file):
        log.info("dreamfleet %s: %s %s", __version__, "resuming" if old else "new run", run.path)
        for change in changes(old, settings) if old else []:
            log.info("changed since the last start: %s", change)
        _tell_environment(settings, spaces)
        if not old:  # an old run's settings are written over once its checkpoint is found to fit the new ones
            run.write(settings, spaces)
        try:
            return _run_fleet(run, settings, spaces, inline, address, console, stop)
        except UserError as error:
            log.error("%s", error, extra={"only_to_file": True})  # noqa: TRY400 (the command line prints it)
            raise
        except RunFailedError as error:
            log.error("the run failed: %s", error)  # noqa: TRY400 (the sentence is what the user needs)
            log.info(
                "The log is in %s; `dreamfleet train --run %s` goes on from the last checkpoint.",
                run.log_file,
                run.path,
            )
            return 1


def _probe(run: RunDirectory, settings: Settings, old: Settings | None) -> Spaces:
    """Try the environment before any process is started; on resume, its spaces must be those of the run."""
    from dreamfleet.actors.environments import probe_environment

    spaces = probe_environment(settings.env)
    if old and run.spaces_file.exists():
        from dreamfleet.learner.restoring import check_spaces

        check_spaces({"spaces": run.spaces().to_json()}, spaces, f"The run {run.path}")
    return spaces


def _check_model(settings: Settings, spaces: Spaces) -> None:
    """Have the model say whether it fits the spaces, without memory or time spent on its parameters.

    Raises:
        UserError: if it does not.
    """
    import torch

    from dreamfleet.common.world_model import WorldModel

    with torch.device("meta"):
        WorldModel(spaces, settings.model)


def _tell_environment(settings: Settings, spaces: Spaces) -> None:
    shown = ", ".join(f"{spec.name} {'×'.join(map(str, spec.shape))} {spec.dtype}" for spec in spaces.observations)
    log.info("environment: %s, observes %s, acts by %s of %s", settings.env.id, shown, spaces.action.kind,
             "×".join(map(str, spaces.action.sizes)))  # fmt: skip


def _run_fleet(
    run: RunDirectory,
    settings: Settings,
    spaces: Spaces,
    inline: bool,
    address: str | None,
    console: Console,
    stop: StopRequest,
) -> int:
    """Run the fleet to its end, then say how it went."""
    from dreamfleet.deploy.records import Records

    with closing(_open_pool(run, settings, spaces, inline, address)) as pool, closing(Records(run)) as records:
        watcher = RunWatcher(settings, records, console, on_restored=lambda: run.write(settings, spaces))
        fleet = Fleet(pool, Staffing.of(settings), TrainRatio.of(settings), watcher, stop=lambda: bool(stop))
        fleet.run()
        watcher.write_last_row(fleet)
    if stop:
        log.info("stopped at %d env steps and %d updates; `dreamfleet train --run %s` goes on.", fleet.env_steps,
                 fleet.updates, run.path)  # fmt: skip
        return stop.exit_code
    _sum_up(run, settings, fleet, watcher)
    return 0


def _open_pool(run: RunDirectory, settings: Settings, spaces: Spaces, inline: bool, address: str | None) -> Pool:
    if inline:
        from dreamfleet.deploy.inline_pool import InlinePool

        log.info("mode: inline, everything in this process")
        return InlinePool(settings, spaces, run)
    from dreamfleet.deploy.ray_pool import RayPool

    log.info("mode: %s, %d actors of %d environments, learner and replay", f"Ray cluster at {address}" if address else
             "Ray on this machine", settings.actors.count, settings.actors.environments)  # fmt: skip
    return RayPool(settings, spaces, run, address)


def _sum_up(run: RunDirectory, settings: Settings, fleet: Fleet, watcher: RunWatcher) -> None:
    """Dream once more of what was held out, and print where everything is."""
    lines = [f"env steps    {fleet.env_steps:,} ({fleet.env_steps * settings.env.action_repeat:,} simulator steps)"]
    lines.append(f"updates      {fleet.updates:,} (ratio {fleet.ratio.reached(fleet.env_steps, fleet.updates):.1f})")
    for name in ("total", "reconstruction", "kl", "reward", "continue"):
        first, last = (metrics.get(f"loss/{name}") for metrics in (watcher.first_metrics, watcher.last_metrics))
        if first is not None and last is not None:
            lines.append(f"{'losses' if name == 'total' else '':<12} {name} {first:.4g} → {last:.4g}")
    if watcher.progress:
        overall = watcher.progress.overall()
        rates = f"{overall['env_steps_per_s']:.1f} env steps/s, {overall['updates_per_s']:.2f} updates/s"
        lines.append(f"rates        {rates}; {duration(overall['seconds'])} in all")
    if fleet.restarts:
        lines.append(f"replaced     {fleet.restarts} workers, see the log")
    lines += _dream_lines(run)
    lines.append(f"run          {run.path}")
    if watcher.last_picture:
        lines.append(f"picture      {watcher.last_picture}")
    if watcher.last_video:
        lines.append(f"             {watcher.last_video}")
    lines.append(f"TensorBoard  {_tensorboard_command(run.tensorboard)}")
    log.info("done:\n  %s", "\n  ".join(lines))


def _dream_lines(run: RunDirectory) -> list[str]:
    from dreamfleet.deploy.dream import describe_dream, dream_of

    try:
        result, files = dream_of(run)
    except UserError as error:
        return [f"dream        none: {error}"]
    return [f"dream        {describe_dream(result)}", *(f"             {file}" for file in files)]


def _tensorboard_command(directory: Path) -> str:
    """Return a command that a shell can run as it stands, also when the environment is not activated."""
    import sys

    beside = Path(sys.executable).with_name("tensorboard")
    program = os.path.relpath(beside) if beside.exists() else "tensorboard"
    return f"{program} --logdir {directory}"
