"""The server: routes of the page, and two sockets, over what `ViewedRun` and visits do. One thread has the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import WSMsgType, web

from dreamfleet.common.errors import UserError
from dreamfleet.common.formatting import finite_or_none
from dreamfleet.common.process_log import LOGGER_NAME
from dreamfleet.deploy.view import access, run_facts
from dreamfleet.deploy.view.moment import Moment, encode_picture
from dreamfleet.deploy.view.tensorboard import TensorBoard
from dreamfleet.deploy.view.viewed_run import ViewedRun, natural
from dreamfleet.deploy.view.visits import DreamVisit, PlayVisit, Visit, error_moment, format_of, read_message

PAGE = Path(__file__).with_name("page")
_PAGE_TYPES = {".html", ".css", ".js", ".svg", ".png"}
_HEARTBEAT_S = 30.0
_FILTERS = {"sort", "order", "offset", "token"}
TOO_MANY, IDLE = 4001, 4002
"""Codes with which a socket is closed: too many sessions, or nobody asked for anything."""

log = logging.getLogger(LOGGER_NAME)
Result = TypeVar("Result")


class Server:
    """What answers a page.

    Args:
        viewed: what is looked at.
        own: who may ask.
        idle_s: after how long without a message a session ends.
        most_sessions: more are refused.
    """

    def __init__(
        self,
        viewed: ViewedRun,
        own: access.Access,
        idle_s: float = access.IDLE_S,
        most_sessions: int = access.MOST_SESSIONS,
    ) -> None:
        self.viewed, self.access = viewed, own
        self.tensorboard = TensorBoard(viewed.run.tensorboard)
        self._idle_s, self._most_sessions = idle_s, most_sessions
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._sockets: set[web.WebSocketResponse] = set()
        self._page = {path.name: path for path in PAGE.iterdir() if path.suffix in _PAGE_TYPES}

    def application(self) -> web.Application:
        """Return what aiohttp serves."""
        app = web.Application(middlewares=[self.access.middleware()], client_max_size=access.MOST_BODY_BYTES)
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/page/{file}", self._page_file),
                web.get("/api/run", self._facts),
                web.get("/api/pictures/{name}", self._picture),
                web.get("/api/episodes", self._episodes),
                web.get("/api/episodes/{id}", self._episode),
                web.get("/api/episodes/{id}/{what:frame|vector|reconstruction|prediction}", self._look),
                web.post("/api/checkpoint", self._checkpoint),
                web.post("/api/tensorboard", self._tensorboard),
                web.get("/ws/dream", partial(self._socket, DreamVisit)),
                web.get("/ws/play", partial(self._socket, PlayVisit)),
            ]
        )
        app.on_startup.append(self._begin)
        app.on_shutdown.append(self._close_sockets)
        app.on_cleanup.append(self._end)
        return app

    # Pages and facts ------------------------------------------------------------------------------------------------

    async def _index(self, _: web.Request) -> web.StreamResponse:
        return self._file(self._page.get("index.html"))

    async def _page_file(self, request: web.Request) -> web.StreamResponse:
        return self._file(self._page.get(request.match_info["file"]))

    async def _picture(self, request: web.Request) -> web.StreamResponse:
        pictures = await self._in_files(run_facts.pictures_of, self.viewed.run)
        return self._file(pictures.get(request.match_info["name"]))

    def _file(self, path: Path | None) -> web.StreamResponse:
        """Return a file that the server itself has listed."""
        if path is None or not path.is_file():
            raise web.HTTPNotFound(text="there is no such file\n")
        return web.FileResponse(path)

    async def _facts(self, _: web.Request) -> web.StreamResponse:
        return _json(await self._in_files(self.viewed.facts))

    async def _episodes(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        only = {name: value for name, value in query.items() if name not in _FILTERS}
        start = natural(query.get("offset", "0"), "offset") if "offset" in query else 0
        descending = query.get("order") == "descending"
        listed = partial(self.viewed.episodes.listed, query.get("sort", "id"), descending, only, start)
        return _json(await self._in_files(listed))

    async def _episode(self, request: web.Request) -> web.StreamResponse:
        name, episodes = request.match_info["id"], self.viewed.episodes

        def read() -> dict[str, Any]:
            fields = episodes.small_fields(name)
            wanted = ("action", "reward", "is_first", "is_last", "is_terminal", "version")
            return episodes.found(name) | {
                f"{field}s" if field in _PLURAL else field: fields[field] for field in wanted
            }

        return _json(await self._in_files(read))

    async def _look(self, request: web.Request) -> web.StreamResponse:
        query, episode = request.query, request.match_info["id"]
        name, step = query.get("name", ""), natural(query.get("step"), "step")
        image_format, viewed = format_of(query), self.viewed
        what = request.match_info["what"]
        if what == "frame":
            return _image(await self._in_files(viewed.frame, episode, name, step, image_format), image_format)
        if what == "vector":
            return _json({"values": await self._in_files(viewed.vector, episode, name, step)})
        if what == "reconstruction":
            seen = await self._in_model(viewed.reconstruction, episode, name, step)
            if seen.dtype != "uint8":
                return _json({"values": seen})
            return _image(await self._in_files(encode_picture, seen, image_format), image_format)
        count = max(1, natural(query.get("count", "15"), "count"))
        truth, imagined = await self._in_model(viewed.prediction, episode, name, step, count)
        if truth.dtype != "uint8":
            return _json({"truth": truth, "dream": imagined})
        return _image(await self._in_files(_strip, truth, imagined, image_format), image_format)

    async def _checkpoint(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
        except ValueError:
            body = None
        wanted = body.get("updates") if isinstance(body, Mapping) else None
        name = wanted if wanted in ("newest", "best") else str(natural(wanted, "the checkpoint's updates"))
        await self._in_model(self.viewed.load, name)
        return _json(await self._in_files(self.viewed.facts))

    async def _tensorboard(self, _: web.Request) -> web.StreamResponse:
        return _json({"url": await self._in_files(self.tensorboard.start)})

    # Sockets --------------------------------------------------------------------------------------------------------

    async def _socket(self, make: Callable[[ViewedRun], Visit], request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=access.MOST_MESSAGE_BYTES, compress=False)
        await socket.prepare(request)
        if len(self._sockets) >= self._most_sessions:
            text = f"there are {self._most_sessions} sessions already, and no more are allowed: close another page"
            await socket.send_bytes(error_moment(text).to_bytes())
            await socket.close(code=TOO_MANY, message=b"too many sessions")
            return socket
        self._sockets.add(socket)
        visit = make(self.viewed)
        try:
            await self._converse(socket, visit)
        finally:
            self._sockets.discard(socket)
            await self._in_model(visit.close)
        return socket

    async def _converse(self, socket: web.WebSocketResponse, visit: Visit) -> None:
        """Answer one message after another, until the page is closed or nobody asks any more."""
        bucket = access.Bucket(access.MESSAGES_PER_S, access.MESSAGES_AT_ONCE)
        while not socket.closed:
            try:
                message = await asyncio.wait_for(socket.receive(), self._idle_s)
            except TimeoutError:
                text = f"this session ended, since nothing was asked of it for {self._idle_s / 60:.0f} minutes"
                await socket.send_bytes(error_moment(text).to_bytes())
                await socket.close(code=IDLE, message=b"idle")
                return
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            await asyncio.sleep(bucket.take())
            text = message.data if message.type is WSMsgType.TEXT else ""
            answer = await self._answer(visit, text)
            if not socket.closed:
                await socket.send_bytes(answer)

    async def _answer(self, visit: Visit, text: str) -> bytes:
        """Return the answer to a message; between its parts, other sessions have their turn in the model's thread."""
        try:
            parts = visit.answer(read_message(text))
            moment = None
            while moment is None:
                moment = await self._in_model(_next, parts)
            return moment.to_bytes()
        except UserError as error:
            return error_moment(str(error)).to_bytes()
        except Exception as error:  # an environment's own, or memory: the other sessions go on
            log.exception("a session of the view failed")
            return error_moment(f"this failed: {type(error).__name__}: {str(error)[:300]}").to_bytes()

    # Threads --------------------------------------------------------------------------------------------------------

    async def _in_model(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call what takes the model, in its one thread; what the visitor got wrong is refused in one sentence."""
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, partial(function, *arguments))

    async def _in_files(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call what reads files, beside the model."""
        return await asyncio.to_thread(function, *arguments)

    async def _begin(self, _: web.Application) -> None:
        self._asked = asyncio.get_running_loop().run_in_executor(self._model_thread, self.viewed.ask_environment)
        self._read = asyncio.create_task(asyncio.to_thread(self.viewed.episodes.refresh))

    async def _close_sockets(self, _: web.Application) -> None:
        for socket in list(self._sockets):
            await socket.close(code=1001, message=b"the server ends")

    async def _end(self, _: web.Application) -> None:
        self._model_thread.shutdown(cancel_futures=True)
        await asyncio.to_thread(self.tensorboard.stop)
        self.viewed.close()


_PLURAL = ("action", "reward", "version")


def _next(parts: Any) -> Moment | None:
    found: Moment | None = next(parts)
    return found


def _strip(truth: Any, imagined: Any, image_format: Any) -> bytes:
    """Return two rows of pictures (n, H, W, C): the truth above, the dream below."""
    import numpy as np

    rows = [np.concatenate(list(pictures), axis=1) for pictures in (truth, imagined)]
    return encode_picture(np.concatenate(rows, axis=0), image_format)


def _json(data: Any) -> web.Response:
    return web.json_response(finite_or_none(data))


def _image(data: bytes, image_format: str) -> web.Response:
    return web.Response(body=data, content_type=f"image/{image_format}")
