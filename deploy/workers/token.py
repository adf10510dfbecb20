"""The token that lets one into a Ray cluster: where it may be, and that Ray is told to use it."""

from __future__ import annotations

import os
from pathlib import Path


def has_token() -> bool:
    """Whether there is a token where Ray looks for one."""
    return (
        any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        or (Path.home() / ".ray" / "auth_token").is_file()
    )


def use_token() -> None:
    """Have Ray use the token if there is one; to be called before Ray is imported.

    `ray start --head` takes the token by itself where there is one, but who joins does not: Ray's default for a
    cluster that runs already is to ask for none.
    """
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
