"""What a script gives to `train` and its like: settings, an environment, a directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.resolve import leaves, resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.run_directory import RunDirectory

Environment = str | Callable[..., Any]
"""An environment's id, or a function or class at the top level of a module, a script or a notebook."""


def make_settings(*presets: str, **sections: Any) -> Settings:
    """Return settings: the presets, each over the one before it, and values over these.

    Args:
        presets: names of built-in presets, or paths of YAML files.
        sections: values by section, such as `train={"env_steps": 4000}, seed=1`.

    Raises:
        UserError: if a preset or a setting does not exist, or a value does not fit.
    """
    flags = [(path, yaml.safe_dump(value, default_flow_style=True)) for path, value in leaves(sections)]
    return resolve(presets, flags)


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
            f"environment {environment!r} has no name by which actors find it: give an id, or a function or class "
            "that is defined at the top level of a module, a script or a notebook."
        )
    return f"{environment.__module__}:{name}"


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
