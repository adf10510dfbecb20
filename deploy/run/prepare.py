"""The start of a run: what is given to it, and what is checked first, so that a fault leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dreamfleet.actors.environments.make import probe_environment
from dreamfleet.common.acting.make_policy import make_policy
from dreamfleet.common.errors import UserError, shown
from dreamfleet.common.experience.spaces import ActionSpec, Spaces, first_difference, is_bounded, reach_of
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.settings.resolve import leaves, resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.fleet.fleet_state import Callbacks
from dreamfleet.deploy.fleet.ledger import TrainRatio
from dreamfleet.deploy.monitoring.progress import quiet_log
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.workers.address import check_address, use_token

MOST_NUMBERS = 4096
"""Width of an action, as the networks take it, beyond which there is a warning."""
_NAMED = 4
"""Unbounded parts of an action that a warning names."""
Environment = str | Callable[..., Any]
"""An environment's id, or a function or class at the top level of a module, a script or a notebook."""


def make_settings(*presets: str | Path, **sections: Any) -> Settings:
    """Return settings: the presets, each over the one before it, and values over these.

    Args:
        presets: names of built-in presets, or paths of YAML files.
        sections: values by section, such as `train={"env_steps": 4000}, seed=1`.

    Raises:
        UserError: if a preset or a setting does not exist, or a value does not fit.
    """
    for preset in presets:
        if not isinstance(preset, str | Path):
            raise UserError(
                f"df.settings: {shown(preset)} is no preset: give each by itself, df.settings('dreamer_v3', ...)."
            )
    flags = [(path, _as_yaml(path, value)) for path, value in leaves(sections)]
    return resolve([str(preset) for preset in presets], flags)


def _as_yaml(path: str, value: Any) -> str:
    """Return a setting's value as a flag would give it; numpy's numbers and arrays are plain ones."""
    try:
        plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        return yaml.safe_dump(plain, default_flow_style=True)
    except yaml.YAMLError:
        raise UserError(f"df.settings: {path} is {shown(value)}, which is no plain number, text or list.") from None


def environment_id(environment: Environment) -> str:
    """Return the id of an environment, `module:name` for a function or class.

    Raises:
        UserError: if it cannot be found by a name.
    """
    if isinstance(environment, str):
        return environment
    name = getattr(environment, "__qualname__", "")
    if not name or "<" in name:
        raise UserError(
            f"environment {shown(environment)} has no name by which actors find it: give an id, or a function or class "
            "that is defined at the top level of a module, a script or a notebook."
        )
    return f"{environment.__module__}:{name}"


def check_given(settings: Settings | None, callbacks: Sequence[Callbacks]) -> None:
    """Refuse what are no settings or is no sequence of callbacks, before anything is started.

    Raises:
        UserError: naming it.
    """
    if not isinstance(settings, Settings | None):
        raise UserError(f"settings={shown(settings)}: give what df.settings returns, such as df.settings('cartpole').")
    if not isinstance(callbacks, Sequence) or not all(isinstance(one, Callbacks) for one in callbacks):
        raise UserError(f"callbacks={shown(callbacks)}: give a list of objects whose classes derive from df.Callbacks.")


def directory_of(directory: str | Path | None, label: Environment) -> RunDirectory:
    """Return the directory, or a new one under runs/ that is named after the label."""
    return RunDirectory.new(environment_id(label)) if directory is None else RunDirectory(Path(directory))


def start_settings(settings: Settings | None, environment: Environment | None, run: RunDirectory) -> Settings:
    """Return the settings, by default those that a run has, with another environment if one is given."""
    if settings is None:
        settings = run.settings() if run.config_file.exists() else Settings()
    if environment is None:
        return settings
    return settings.model_copy(update={"env": settings.env.model_copy(update={"id": environment_id(environment)})})


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
        use_token()
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


def action_warnings(spec: ActionSpec) -> list[str]:
    """Return a sentence for each property of an action that its environment's author has likely not intended."""
    return [*_unbounded(spec), *_wide(spec)]


def _unbounded(spec: ActionSpec) -> list[str]:
    """Return which interval is used of reals that lack a bound, the first few by name."""
    bounds = list(zip(spec.low, spec.high, strict=True))
    lacking = [index for index, pair in enumerate(bounds) if not is_bounded(*pair)]
    if not lacking:
        return []
    used = []
    for index in lacking[:_NAMED]:
        low, high = bounds[index]
        first, last = reach_of(low, high)
        name = spec.name_of(len(spec.choices) + index)
        used.append(f"{name} ({low:g} to {high:g}) is acted on in [{first:g}, {last:g}]")
    more = f" and {len(lacking) - _NAMED} more likewise" if len(lacking) > _NAMED else ""
    remedy = "if the environment's own scale is another, give it bounds with a wrapper"
    return [f"action: {', '.join(used)}{more}, for lack of a bound; {remedy}"]


def _wide(spec: ActionSpec) -> list[str]:
    if spec.width <= MOST_NUMBERS:
        return []
    if not spec.choices:
        return [f"action: {spec.reals:,} reals, more than the policy and the planner are likely to master"]
    most = max(range(len(spec.choices)), key=lambda index: spec.choices[index])
    return [
        f"action: it takes {spec.width:,} numbers in the networks, one for each option of each choice; "
        f"{spec.name_of(most)} alone has {spec.choices[most]:,} options, more than are likely to be tried"
    ]
