"""A folder at an fsspec URL to which checkpoints are copied: `s3://bucket/run`, `gs://…`, `file:///…`, `memory://…`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from dreamfleet.common.errors import UserError, nearest

PART_BYTES = 4_000_000
"""Bytes read and written at a time."""
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_READ_ONLY = ("http", "https", "github", "data")
_FORM = re.compile(r"(?:[a-z0-9]+::)*([a-z][a-z0-9+.-]*)://.*")
_USUAL = ("s3", "gs", "abfs", "file", "memory", "sftp", "hdfs", "webdav")


class CheckpointUrl:
    """The files in one folder of a filesystem that fsspec knows; the folder is made if need be.

    Attributes:
        shown: the URL as it may be printed: without user, password and query.

    Raises:
        UserError: if fsspec has no such filesystem, a package is missing for it, or it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self.shown = shown_url(url)
        self._url = url
        self._secrets = _secrets_of(url)
        self._filesystem, self._root = self._open()

    def names(self) -> list[str]:
        """Return the names of the files; none where the folder is not there yet."""
        self._filesystem.invalidate_cache()  # listings are cached, and other incarnations write too
        try:
            paths = self._filesystem.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths)

    def read(self, name: str) -> Iterator[bytes]:
        """Yield a file in parts."""
        with self._filesystem.open(self._path(name), "rb") as file:
            while part := file.read(PART_BYTES):
                yield part

    def write(self, name: str, source: BinaryIO) -> int | None:
        """Write a file and return how many bytes the filesystem now has of it, None if it cannot say."""
        with self._filesystem.open(self._path(name), "wb") as file:
            shutil.copyfileobj(source, file, PART_BYTES)
        self._filesystem.invalidate_cache()
        size: int | None = self._filesystem.size(self._path(name))
        return size

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._filesystem.rm_file(self._path(name))

    def describe(self, error: BaseException) -> str:
        """Return an error in one line that may be printed."""
        text = " ".join(str(error).split()) or "no reason given"
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return f"{type(error).__name__}: {shown_url(text)}"

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _open(self) -> tuple[Any, str]:
        form = _FORM.fullmatch(self._url)
        if not form:
            raise UserError(
                f"records.checkpoint_url '{self.shown}' names no filesystem: give a URL such as s3://bucket/run, "
                "gs://bucket/run or file:///mnt/checkpoints/run."
            )
        protocol = form[1]
        if protocol in _READ_ONLY:
            raise UserError(f"records.checkpoint_url '{self.shown}' can only be read: give one that can be written to.")
        try:
            filesystem, root = url_to_fs(self._url, **({"auto_mkdir": True} if protocol in ("file", "local") else {}))
        except ImportError as error:
            package = _PACKAGES.get(protocol)
            advice = f"install it with `pip install {package}`" if package else "install what it names"
            raise UserError(
                f"records.checkpoint_url '{self.shown}' needs a package that is not installed on the learner's node "
                f"({self.describe(error)}): {advice}."
            ) from None
        except Exception as error:  # noqa: BLE001 (whatever the filesystem's package raises)
            if "Protocol not known" in str(error):
                raise UserError(
                    f"records.checkpoint_url '{self.shown}' is of a protocol that fsspec does not know: {protocol}."
                    f"{nearest(protocol, _USUAL)}"
                ) from None
            raise UserError(
                f"records.checkpoint_url '{self.shown}' cannot be opened: {self.describe(error)}."
            ) from None
        if isinstance(filesystem, LocalFileSystem) and not re.match(r"(file|local):///", self._url):
            raise UserError(
                f"records.checkpoint_url '{self.shown}' is relative to a directory that differs from process to "
                f"process: give the whole path, file://{root}."
            )
        return filesystem, root


def check_checkpoint_url(url: str) -> None:
    """Refuse a URL that cannot be copied to, before anything is started; an empty one is fine.

    Raises:
        UserError: if fsspec has no such filesystem, a package is missing for it, or it cannot be opened.
    """
    if url:
        CheckpointUrl(url)


def shown_url(text: str) -> str:
    """Return a URL, or a text with URLs, as it may be printed: without user, password and query."""
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\")]*", r"\1?…", re.sub(r"://[^/\s'\"]*@", "://", text))


def _secrets_of(url: str) -> list[str]:
    """Return the parts of a URL that no error message may show, the longest first."""
    parts = urlsplit(url)
    user, _, _ = parts.netloc.rpartition("@")
    password = user.partition(":")[2]
    return sorted({part for part in (f"{user}@" if user else "", password, parts.query) if part}, key=len, reverse=True)
