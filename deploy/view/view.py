"""`dreamfleet view`: serves one run or dataset to a browser until it is interrupted."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import webbrowser
from contextlib import suppress
from pathlib import Path

import torch
from aiohttp import web

from dreamfleet.common.errors import UserError
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.view.access import Access
from dreamfleet.deploy.view.server import Server
from dreamfleet.deploy.view.viewed_run import ViewedRun

NICENESS = 10
"""What a visitor asks for comes after the training that may run on the same machine."""
_SHUTDOWN_S = 3.0


def view(directory: Path, host: str, port: int, device: str, checkpoint: str, opens: bool) -> int:
    """Serve a run until SIGINT or SIGTERM; return the exit code.

    Args:
        port: 0 for one that is free.
        opens: whether to open a browser here.

    Raises:
        UserError: if the run cannot be read, or the address not be listened on.
    """
    os.nice(NICENESS)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    viewed = ViewedRun(RunDirectory(directory), checkpoint, device)
    torch.set_num_threads(1)  # several wait for each other wherever training has the cores
    asyncio.run(_serve(Server(viewed, Access()), host, port, opens))
    return 0


async def _serve(server: Server, host: str, port: int, opens: bool) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)  # a second one ends the process at once
        ended.set()

    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            is_elsewhere = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            remedy = "--host takes an address of this machine" if is_elsewhere else "--port 0 takes a free one"
            reason = error.strerror or error
            raise UserError(f"port {port} of {host} cannot be listened on: {reason}; {remedy}.") from None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)
        url = f"http://{_in_url(host)}:{runner.addresses[0][1]}/?token={server.access.token}"
        if not is_loopback(host):
            print(f"Whoever reaches {host} and has this address can see the run; nothing is encrypted.", flush=True)
        print(f"{url}\nCtrl-C ends it.", flush=True)
        if opens:
            await asyncio.to_thread(webbrowser.open, url)
        await ended.wait()
    finally:
        await runner.cleanup()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _in_url(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not listened on
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
