"""Who may ask, and how much: a token, the page's own origin, and bounds on sizes, rates and sessions."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from dreamfleet.common.errors import UserError

MOST_BODY_BYTES = 64 << 10
MOST_MESSAGE_BYTES = 1 << 20
"""Of a message to a session: a take of two thousand steps is some hundred thousand."""
REQUESTS_PER_S, REQUESTS_AT_ONCE = 100.0, 300.0
MESSAGES_PER_S, MESSAGES_AT_ONCE = 120.0, 30.0
MOST_SESSIONS = 8
IDLE_S = 600.0
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Bucket:
    """Allows so many in a second on average, and some at once.

    Args:
        clock: seconds that rise.
    """

    def __init__(self, per_s: float, at_once: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._most, self._clock = per_s, at_once, clock
        self._left, self._at = at_once, clock()

    def take(self) -> float:
        """Take one, and return the seconds to wait before it may be used; 0 for at once."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._per_s) - 1
        self._at = now
        return max(0.0, -self._left / self._per_s)

    def give_back(self) -> None:
        """Take it back: it was not used."""
        self._left += 1


class Access:
    """The token of one server, made anew for each.

    The cookie's name is of the token, since a browser keeps one set of cookies for all ports of a host.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self.cookie = f"dreamfleet_view_{hashlib.sha256(self.token.encode()).hexdigest()[:12]}"
        self._requests = Bucket(REQUESTS_PER_S, REQUESTS_AT_ONCE)

    def check(self, request: web.Request) -> None:
        """Raise what refuses a request that has no token, comes from another page, or from one that asks too often."""
        wait_s = self._requests.take()
        if wait_s:
            self._requests.give_back()
            raise web.HTTPTooManyRequests(text="too many requests\n", headers={"Retry-After": str(1 + int(wait_s))})
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="this page may not ask here: its origin is another\n")
        if not self._is_token(request.cookies.get(self.cookie, "")):
            raise web.HTTPForbidden(text="the token is missing: open the address that `dreamfleet view` printed\n")

    def entered(self, request: web.Request) -> web.Response | None:
        """Return what hands out the cookie to whoever opens the printed address; None for another request."""
        if request.path != "/" or not self._is_token(request.query.get("token", "")):
            return None
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(self.cookie, self.token, httponly=True, samesite="Strict", path="/")
        return response

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "replace"), self.token.encode())

    def middleware(self) -> Middleware:
        """Return what stands before every handler, refusals of unknown paths included."""

        @web.middleware
        async def checked(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                response: web.StreamResponse | None = self.entered(request)
                if response is None:
                    self.check(request)
                    response = await handler(request)
            except UserError as error:
                response = web.json_response({"error": str(error)}, status=400)
            except web.HTTPException as refusal:
                refusal.headers.update(HEADERS)
                raise
            if not response.prepared:
                response.headers.update(HEADERS)
            return response

        return checked
