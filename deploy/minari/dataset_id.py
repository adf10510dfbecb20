"""Where a Minari dataset lies that is named by its id, such as D4RL/door/human-v2."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dreamfleet.common.errors import UserError, nearest
from dreamfleet.deploy.minari.format import DATA_FOLDER, METADATA_FILE

_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")


def find_dataset(named: Path) -> Path:
    """Return the directory of a dataset, which is named by it or by its id; one that is not here is downloaded.

    Args:
        named: a directory, or an id; a directory of that name comes first.

    Raises:
        UserError: if it is an id, and no dataset of that id is here or can be downloaded.
    """
    identity = named.as_posix()
    if named.exists() or not _ID.fullmatch(identity):
        return named
    root = _root()
    if not (root / identity / DATA_FOLDER).is_dir():
        _download(identity, root)
    return root / identity


def _root() -> Path:
    """Return where Minari keeps its datasets; it need not be there."""
    given = os.environ.get("MINARI_DATASETS_PATH")
    return Path(given) if given else Path.home() / ".minari" / "datasets"


def _download(identity: str, root: Path) -> None:
    import minari

    print(f"'{identity}' is not in {root}: Minari downloads it", flush=True)
    try:
        minari.download_dataset(identity)
    except Exception as error:  # noqa: BLE001 (of HTTP, of a client for buckets, of Minari: all mean that there is none)
        known = [
            file.parent.parent.relative_to(root).as_posix() for file in root.glob(f"**/{DATA_FOLDER}/{METADATA_FILE}")
        ]
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"'{identity}' is no directory, no Minari dataset in {root}, and cannot be downloaded ({reason})."
            f"{nearest(identity, known)}"
        ) from None
