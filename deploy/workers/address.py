"""Whether anybody listens at a cluster's address, asked before Ray, which would try for two minutes."""

from __future__ import annotations

import re
import socket

from dreamfleet.common.errors import UserError

KNOCK_S = 10.0


def check_address(address: str) -> None:
    """Refuse a HOST:PORT at which nobody listens; other addresses, such as 'auto', are left to Ray.

    Raises:
        UserError: if the connection fails.
    """
    found = re.fullmatch(r"(?:[a-z]+://)?\[?(?P<host>[^/]*?)\]?:(?P<port>\d+)/?", address)
    if not found:
        return
    try:
        socket.create_connection((found["host"], int(found["port"])), KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"flag --address: no Ray cluster answers at '{address}': {error}.") from None
