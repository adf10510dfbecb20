"""The directory that a job takes along: what of it goes to the cluster."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamfleet.common.errors import UserError

MOST_BYTES = 100_000_000
"""Ray copies it to every node that a worker starts on; it refuses 500 MiB, long after that has become slow."""


@contextmanager
def packed(directory: Path) -> Iterator[Path]:
    """Give a copy of a directory without what its .gitignore files name, while the block runs.

    Raises:
        UserError: if it is no directory, empty, or too big.
    """
    if not directory.is_dir():
        raise UserError(f"flag --working-dir: '{directory}' is no directory.")
    with tempfile.TemporaryDirectory(prefix="dreamfleet-") as temporary:
        files = _files(directory, Path(temporary) / "git")
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


def _files(directory: Path, scratch: Path) -> list[Path]:
    """Return the files that are sent, relative to the directory: git lists them, also where it is no repository."""
    git = shutil.which("git")
    if not git:
        found = [file.relative_to(directory) for file in directory.rglob("*") if file.is_file()]
        return sorted(file for file in found if not {".git", ".venv", "__pycache__"} & set(file.parts))
    subprocess.run([git, "init", "--quiet", "--bare", scratch], check=True)  # noqa: S603
    listed = subprocess.run(  # noqa: S603
        [git, f"--git-dir={scratch}", f"--work-tree={directory.resolve()}", "ls-files", "-z", "--others",
         "--exclude-per-directory=.gitignore", "--exclude=__pycache__", "--exclude=.venv"],
        cwd=directory, check=True, capture_output=True,
    ).stdout.decode(errors="surrogateescape")  # fmt: skip
    return sorted(Path(name) for name in listed.split("\0") if name and (directory / name).is_file())
