"""The job server of a Ray cluster that plays a script, and a `ray` and `ssh` that lead to it.

`statuses` and `logs` say what the next questions for a job's status and its log bring; the last of each stays.
A status is one of Ray's, "unreachable" (the connection breaks), or "CODE text" for an HTTP error. A log is a list of
texts; "DROP" breaks the connection, and "HANG" leaves it open in silence.
"""

from __future__ import annotations

import asyncio
import io
import sys
import zipfile
from pathlib import Path
from threading import Thread
from typing import Any

from aiohttp import WSMsgType, web

TUNNEL = """
import asyncio, pathlib, sys
folder = pathlib.Path(__file__).parent
with (folder / "tunnels.txt").open("a") as file:
    print(*sys.argv[1:], file=file)
if (folder / "refusal.txt").exists():
    sys.exit((folder / "refusal.txt").read_text())
port = int(sys.argv[sys.argv.index("--port") + 1])

async def pass_on(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()

async def connect(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int((folder / "port.txt").read_text()))
    await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer), return_exceptions=True)

async def main():
    async with await asyncio.start_server(connect, "127.0.0.1", port) as server:
        await server.serve_forever()

asyncio.run(main())
"""


class FakeDashboard:
    """The server, in a thread of its own.

    Args:
        folder: where the program `ray` is put, whose `ray dashboard` opens a tunnel to the server, and where it writes
            the words of each call to `tunnels.txt`; with a file `refusal.txt`, it fails with that text.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.statuses = ["SUCCEEDED"]
        self.logs: list[list[str]] = [[]]
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.packages: list[list[str]] = []
        self.answers_submit = True
        folder.mkdir()
        self.program("ray", TUNNEL)
        self._loop = asyncio.new_event_loop()
        self._runner = web.AppRunner(self._application(), shutdown_timeout=0.1)
        Thread(target=self._loop.run_forever, daemon=True).start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.address = f"http://127.0.0.1:{port}"
        (folder / "port.txt").write_text(str(port))

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def program(self, name: str, script: str) -> None:
        (self.folder / name).write_text(f"#!{sys.executable} -S\n{script}")
        (self.folder / name).chmod(0o755)

    def cluster_file(self, text: str = "") -> str:
        file = self.folder / "my cluster.yaml"
        file.write_text(f"cluster_name: x\nprovider: {{type: local}}\n{text}")
        return str(file)

    def tunnels(self) -> list[str]:
        file = self.folder / "tunnels.txt"
        return file.read_text().splitlines() if file.exists() else []

    async def _start(self) -> int:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    def _application(self) -> web.Application:
        application = web.Application()
        application.add_routes(
            [
                web.get("/api/version", self._version),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/{id}", self._details),
                web.post("/api/jobs/{id}/stop", self._stop),
                web.get("/api/jobs/{id}/logs", self._log),
                web.get("/api/jobs/{id}/logs/tail", self._tail),
                web.route("*", "/api/packages/{protocol}/{name}", self._package),
            ]
        )
        return application

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    async def _submit(self, request: web.Request) -> web.Response:
        job = await request.json()
        self.submitted.append(job)
        if not self.answers_submit:
            _break(request)
        return web.json_response({"job_id": job["submission_id"], "submission_id": job["submission_id"]})

    async def _details(self, request: web.Request) -> web.Response:
        status = _next(self.statuses)
        if status == "unreachable":
            _break(request)
        if status[:3].isdigit():
            return web.Response(status=int(status[:3]), text=status[4:])
        failed = "Job entrypoint command failed with exit code 2, last available logs (truncated):\na 1"
        message = failed if status == "FAILED" else ""
        return web.json_response(
            {"type": "SUBMISSION", "entrypoint": "", "status": status, "message": message, "job_id": None}
        )

    async def _stop(self, request: web.Request) -> web.Response:
        self.stopped.append(request.match_info["id"])
        return web.json_response({"stopped": True})

    async def _log(self, _: web.Request) -> web.Response:
        return web.json_response({"logs": "".join(_next(self.logs))})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for text in _next(self.logs):
            if text == "DROP":
                _break(request)
            elif text == "HANG":
                while (await socket.receive()).type not in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                    pass
            else:
                await socket.send_str(text)
        return socket

    async def _package(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.Response(status=404)
        archive = zipfile.ZipFile(io.BytesIO(await request.read()))
        self.packages.append(sorted(name for name in archive.namelist() if not name.endswith("/")))
        return web.Response()


def _next(steps: list[Any]) -> Any:
    return steps.pop(0) if len(steps) > 1 else steps[0]


def _break(request: web.Request) -> None:
    assert request.transport
    request.transport.abort()
