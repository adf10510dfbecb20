"""What a job runs and what it takes along: a dreamfleet command as a line for a node's shell, and files of its user."""

from __future__ import annotations

import argparse
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.presets import preset_names
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.deploy.parser import TAKE_SETTINGS, Parser, make_parser, parse

MOST_BYTES = 100_000_000
"""Of the files that are sent: Ray's job server takes no more at once, and copies them to every node that is used."""
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

        Raises:
            UserError: for what the command would refuse as well, and for presets that do not go to the cluster.
        """
        if not arguments or arguments[0] == "submit":
            raise UserError("submit: there is no command to run: it follows '--', as in `-- train --preset small`.")
        given = parse(arguments)
        job_id = "-".join(filter(None, [given.command, _check(given), time.strftime("%Y%m%d-%H%M%S")]))
        job_id += f"-{secrets.token_hex(2)}"  # sweeps submit several in one second
        if given.command == "train" and given.run is None:
            given.run = Path("runs") / job_id
        if getattr(given, "address", "") is None and not getattr(given, "inline", False):
            given.address = "auto"
        given.preset = [_sent(preset, working_dir, "flag --preset") for preset in getattr(given, "preset", [])]
        if given.command == "sweep":
            if given.out is None:
                raise UserError("sweep: give --out with a folder that all nodes share: cells run on any of them.")
            given.file = _sent(str(given.file), working_dir, "sweep")
        words = [*_words(make_parser(), given), *(shlex.quote(f"--{path}={text}") for path, text in given.flags)]
        written = getattr(given, "out", None) or getattr(given, "run", None)
        script = f"{ENVIRONMENT}; exec dreamfleet {' '.join(words)}"  # exec: one process gets the signal to stop
        return EntryPoint(job_id, script, _on_node(written) if written else "")


@contextmanager
def copy_to_send(directory: Path) -> Iterator[Path]:
    """Give a copy of a directory without what its .gitignore files name, while the block runs.

    Raises:
        UserError: if it is no directory, empty, or too big.
    """
    if not directory.is_dir():
        raise UserError(f"flag --working-dir: '{directory}' is no directory.")
    with tempfile.TemporaryDirectory(prefix="dreamfleet-") as temporary:
        files = _files_to_send(directory, Path(temporary) / "git")
        size = sum((directory / file).stat().st_size for file in files)
        if not files:
            raise UserError(f"flag --working-dir: {directory} has no files to send.")
        if size > MOST_BYTES:
            biggest = max(files, key=lambda file: (directory / file).stat().st_size)
            raise UserError(
                f"flag --working-dir: {directory} has {size / 1e6:,.0f} MB in {len(files):,} files, but at most "
                f"{MOST_BYTES / 1e6:.0f} MB are sent: name what is not needed in a .gitignore there (the biggest is "
                f"{biggest})."
            )
        print(f"sending    {len(files):,} files, {size / 1e6:.1f} MB, of {directory} (without what .gitignore names)")
        copy = Path(temporary) / "package"
        for file in files:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(directory / file, copy / file)
        yield copy


def _files_to_send(directory: Path, scratch: Path) -> list[Path]:
    """Return files relative to the directory: git lists them, even where it is no repository."""
    git = shutil.which("git")
    if not git:
        found = [file.relative_to(directory) for file in directory.rglob("*") if file.is_file()]
        return sorted(file for file in found if not {".git", ".venv", "__pycache__"} & set(file.parts))
    subprocess.run([git, "init", "--quiet", "--bare", scratch], check=True)  # noqa: S603
    words = [git, f"--git-dir={scratch}", f"--work-tree={directory.resolve()}", "ls-files", "-z", "--others"]
    words += ["--exclude-per-directory=.gitignore", "--exclude=__pycache__", "--exclude=.venv"]
    listed = subprocess.run(words, cwd=directory, check=True, capture_output=True).stdout  # noqa: S603
    names = listed.decode(errors="surrogateescape").split("\0")
    return sorted(Path(name) for name in names if name and (directory / name).is_file())


def _on_node(path: Path) -> str:
    """Return a path as a node's shell is to read it: a relative one begins in the node's dreamfleet directory."""
    return shlex.quote(str(path)) if path.is_absolute() else f"{HOME}/{shlex.quote(str(path))}"


def _check(given: argparse.Namespace) -> str:
    """Refuse settings that do not hold; return what the job is about, for its name."""
    place = getattr(given, "run", None) or getattr(given, "out", None)
    subject = (place or getattr(given, "directory", None) or Path()).name
    if given.command in TAKE_SETTINGS:
        actors = getattr(given, "actors", None)
        flags = [*given.flags, ("actors.count", actors)] if actors else given.flags
        try:
            env_id = resolve(given.preset, flags).env.id
        except UserError as error:
            # A run that exists there has settings under these: what does not fit together here may fit those. What is
            # wrong by itself names the flag or file where it stands.
            if not place or str(error).startswith(("flag --", "file ", "preset ")):
                raise
            env_id = ""
        subject = subject or re.sub(r"-v\d+$", "", env_id.rsplit("/", 1)[-1])
    return re.sub(r"[^A-Za-z0-9]+", "-", subject).strip("-").lower()


def _sent(preset: str, working_dir: Path | None, named: str) -> str:
    """Return a preset's name as the job finds it: a file is named from the directory that is sent, where jobs begin."""
    if preset in preset_names():
        return preset
    file = Path(preset).resolve()
    if working_dir is None or not file.is_relative_to(working_dir.resolve()):
        where = f"outside --working-dir {working_dir}" if working_dir else "on this machine alone"
        raise UserError(f"{named}: {preset} lies {where}: give --working-dir with a directory that holds it.")
    return str(file.relative_to(working_dir.resolve()))


def _words(parser: Parser, given: argparse.Namespace) -> Iterator[str]:
    """Yield a parsed command line as words for a node's shell, paths as the node finds them."""
    for argument in parser.arguments:
        value = getattr(given, argument.dest, None)
        if value is not None and value != argument.default:
            for one in value if isinstance(value, list) else [value]:
                yield from argument.option_strings[-1:]
                if one is not True:
                    yield _on_node(one) if isinstance(one, Path) else shlex.quote(str(one))
    if parser.commands:
        name = str(getattr(given, parser.command_dest))
        yield name
        yield from _words(parser.commands[name], given)
