"""What is checked before a run starts, so that whatever is at fault leaves nothing behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces, first_difference
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.monitoring.console import quiet_log
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.workers.address import check_address


@dataclass(frozen=True)
class RunSpec:
    """A start of a run that was checked and can begin.

    Attributes:
        learns: whether there is a learner; without one a dataset is collected.
        old: the settings that the run had, or None if it is new.
        settings: those that it has now; on a dataset, with the dataset's environment.
        log_records: what was found out before there was a log, to be logged first.
        resume_command: for messages.
        weights: that the actors of a run without learner act with, and their version; None for chance.
    """

    run: RunDirectory
    learns: bool
    old: Settings | None
    settings: Settings
    spaces: Spaces
    ratio: TrainRatio
    log_records: list[LogRecord]
    resume_command: str
    weights: tuple[int, np.ndarray] | None = None


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
        UserError: if it cannot be made, fails at once, cannot be acted in, or is another one than the run's.
    """
    with quiet_log():  # the run's log repeats what this logs
        spaces = probe_environment(settings.env)
    if old and run.spaces_file.exists():
        check_same_spaces(run, spaces)
    make_policy(settings, spaces, settings.actors.environments, seed=0)  # raises if the actions do not fit
    return spaces


def check_same_spaces(run: RunDirectory, spaces: Spaces) -> None:
    """Refuse an environment whose spaces are not those of a run or a dataset.

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
