"""What is done before Ray joins a running cluster: its token is found, and its address is tried."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from dreamfleet.common.errors import UserError

CONNECT_TIMEOUT_S = 10.0


def check_address(address: str) -> None:
    """Refuse a HOST:PORT at which nobody listens, since Ray would try for two minutes; others are left to Ray.

    Raises:
        UserError: if the connection fails.
    """
    found = re.fullmatch(r"(?:[a-z]+://)?\[?(?P<host>[^/]*?)\]?:(?P<port>\d+)/?", address)
    if not found:
        return
    try:
        socket.create_connection((found["host"], int(found["port"])), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"flag --address: no Ray cluster answers at '{address}': {error}.") from None


def use_token() -> None:
    """Have Ray use the cluster's token where there is one; to be called before Ray is imported.

    `ray start --head` takes the token by itself, but Ray's default for joining a cluster is to use none.
    """
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if given or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
