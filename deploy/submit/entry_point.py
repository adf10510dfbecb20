"""The entry point of a cluster's job: a dreamfleet command, checked here, as the shell line that a node runs."""

from __future__ import annotations

import argparse
import re
import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.resolve import preset_names, resolve
from dreamfleet.deploy.parser import TAKE_SETTINGS, make_parser, parse

HOME = "~/dreamfleet"
"""Where relative paths begin on the node: a job's own directory is temporary."""
ENVIRONMENT = f"[ ! -f {HOME}/deploy/environment.sh ] || . {HOME}/deploy/environment.sh"
"""Shell words that take over what the cluster files set for a node, where it was set up by them."""


@dataclass(frozen=True)
class EntryPoint:
    """What a job runs.

    Attributes:
        job_id: readable and new: command, subject and time.
        script: the line for a node's shell.
        directory: the run or dataset that the command writes, as the node's shell spells it, or an empty string.
    """

    job_id: str
    script: str
    directory: str

    @staticmethod
    def of(arguments: list[str], working_dir: Path | None) -> EntryPoint:
        """Return the entry point for a command line, after every check that can be made here.

        Args:
            arguments: a command of dreamfleet and its flags.
            working_dir: the directory that goes to the cluster, or None.

        Raises:
            UserError: for what the command would refuse as well, and for presets that do not go to the cluster.
        """
        if not arguments or arguments[0] == "submit":
            raise UserError(
                "submit: there is no command to run: it stands after '--', as in `-- train --preset small`."
            )
        given = parse(arguments)
        flags = given.flags
        subject = _check(given, flags)
        job_id = f"{given.command}-{subject}-" if subject else f"{given.command}-"
        job_id += f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"  # sweeps submit several in one second
        if given.command == "train" and given.run is None:
            given.run = Path("runs") / job_id
        if getattr(given, "address", "") is None and not getattr(given, "inline", False):
            given.address = "auto"
        given.preset = [_sent(preset, working_dir) for preset in getattr(given, "preset", [])]
        words = [*_words(make_parser(), given), *(shlex.quote(f"--{path}={text}") for path, text in flags)]
        written = getattr(given, "out", None) or getattr(given, "run", None)
        script = f"{ENVIRONMENT}; exec dreamfleet {' '.join(words)}"  # exec: one process gets the signal to stop
        return EntryPoint(job_id, script, on_node(written) if written else "")


def on_node(path: Path) -> str:
    """Return a path as a node's shell is to read it: a relative one begins in the node's dreamfleet directory."""
    return shlex.quote(str(path)) if path.is_absolute() else f"{HOME}/{shlex.quote(str(path))}"


def _check(given: argparse.Namespace, flags: Sequence[tuple[str, str]]) -> str:
    """Refuse settings that do not hold; return what the job is about, for its name."""
    place = getattr(given, "run", None) or getattr(given, "out", None)
    subject = (place or getattr(given, "directory", None) or Path()).name
    if given.command in TAKE_SETTINGS:
        if getattr(given, "actors", None):
            flags = [*flags, ("actors.count", given.actors)]
        try:
            env_id = resolve(given.preset, flags).env.id
        except UserError as error:
            # A run that is there already has settings of its own under these: what does not fit together here may
            # fit them. What is wrong by itself is said by the flag or file where it stands.
            if not place or str(error).startswith(("flag --", "file ", "preset ")):
                raise
            env_id = ""
        subject = subject or re.sub(r"-v\d+$", "", env_id.rsplit("/", 1)[-1])
    return re.sub(r"[^A-Za-z0-9]+", "-", subject).strip("-").lower()


def _sent(preset: str, working_dir: Path | None) -> str:
    """Return a preset's name as the job finds it: a file is named from the directory that is sent, where jobs begin."""
    if preset in preset_names():
        return preset
    file = Path(preset).resolve()
    if working_dir is None or not file.is_relative_to(working_dir.resolve()):
        where = f"outside --working-dir {working_dir}" if working_dir else "on this machine alone"
        raise UserError(f"flag --preset: {preset} lies {where}: give --working-dir with a directory that holds it.")
    return str(file.relative_to(working_dir.resolve()))


def _words(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Iterator[str]:
    """Yield a parsed command line as words for a node's shell, paths as the node finds them."""
    for action in parser._actions:
        value = getattr(given, action.dest, None)
        if isinstance(action, argparse._SubParsersAction):
            yield str(value)
            yield from _words(action.choices[str(value)], given)
        elif value is not None and value != action.default:
            for one in value if isinstance(value, list) else [value]:
                yield from action.option_strings[-1:]
                if one is not True:
                    yield on_node(one) if isinstance(one, Path) else shlex.quote(str(one))
