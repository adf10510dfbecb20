"""What a page says to a session, and what it is answered: the protocol of the two sockets, without a socket.

A message is JSON with what to "do"; every answer is one `Moment`, an error's too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from dreamfleet.common.errors import UserError
from dreamfleet.deploy.view.dream_session import DreamSession
from dreamfleet.deploy.view.moment import ImageFormat, Moment
from dreamfleet.deploy.view.play_session import PlaySession
from dreamfleet.deploy.view.viewed_run import ViewedRun, natural


class Visit(Protocol):
    """One visitor's session, which the first message starts."""

    def answer(self, message: Mapping[str, Any]) -> Iterator[Moment | None]:
        """Do what a message says: None may come any number of times, between which others may have their turn.

        Raises:
            UserError: if it cannot be done; the session is as it was.
        """

    def close(self) -> None:
        """End the session."""


class DreamVisit:
    """A visitor's dreams, one at a time."""

    def __init__(self, viewed: ViewedRun) -> None:
        self._viewed = viewed
        self._dream: DreamSession | None = None

    def answer(self, message: Mapping[str, Any]) -> Iterator[Moment | None]:
        """See `Visit.answer`."""
        what = message.get("do")
        if what == "start":
            start = message.get("from")
            if not isinstance(start, Mapping):
                raise UserError('a dream starts "from" an episode\'s step or a reset')
            samples = flag_of(message, "sample", default=True)
            seed = natural(message.get("seed", 0), "a seed")
            dream = self._viewed.dream(start, message.get("futures", 1), samples, seed, format_of(message))
            self._take_over(dream)
            yield dream.moment()
        elif what == "open":
            yield from self._open(message)
        elif what == "step":
            yield self._begun().step(message.get("action"))
        elif what == "rewind":
            yield self._begun().rewind(natural(message.get("to"), "the moment to go back to"))
        elif what == "set":
            changed = flag_of(message, "sample") if "sample" in message else None
            image_format = format_of(message) if "format" in message else None
            yield self._begun().set(changed, message.get("futures"), image_format)
        elif what == "save":
            yield Moment({"kind": "take", "take": self._begun().save()})
        else:
            raise UserError(f"a dream can start, step, rewind, set, save and open, and not '{what!s:.40}'")

    def close(self) -> None:
        """See `Visit.close`."""
        self._take_over(None)

    def _open(self, message: Mapping[str, Any]) -> Iterator[Moment | None]:
        take: Any = message.get("take")
        dream = self._viewed.dream_of_take(take, format_of(message))
        try:
            for _ in dream.replay_steps(take):
                yield None
        except BaseException:
            dream.close()
            raise
        self._take_over(dream)
        moment = dream.moment()
        moment.header["path"] = dream.path()
        if dream.updates != take["updates"]:
            moment.header["note"] = (
                f"this take was made with the checkpoint of update {take['updates']!s:.20}, which is gone: what you "
                f"see is of update {dream.updates}"
            )
        yield moment

    def _take_over(self, dream: DreamSession | None) -> None:
        if self._dream is not None:
            self._dream.close()
        self._dream = dream

    def _begun(self) -> DreamSession:
        if self._dream is None:
            raise UserError("no dream was started")
        return self._dream


class PlayVisit:
    """A visitor's agent in the real environment."""

    def __init__(self, viewed: ViewedRun) -> None:
        self._viewed = viewed
        self._play: PlaySession | None = None

    def answer(self, message: Mapping[str, Any]) -> Iterator[Moment | None]:
        """See `Visit.answer`."""
        what = message.get("do")
        if what == "start":
            play = self._viewed.play(natural(message.get("seed", 0), "a seed"), format_of(message))
            self.close()
            self._play = play
            yield play.moment()
        elif self._play is None:
            raise UserError("no play was started")
        elif what == "step":
            yield self._play.step(message.get("action"))
        elif what == "set":
            yield self._play.set(format_of(message))
        else:
            raise UserError(f"a play can start, step and set, and not '{what!s:.40}'")

    def close(self) -> None:
        """See `Visit.close`."""
        if self._play is not None:
            self._play.close()
        self._play = None


def read_message(text: str) -> Mapping[str, Any]:
    """Return a message.

    Raises:
        UserError: if it is none.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("a message is JSON, and this was none") from None
    if not isinstance(message, dict):
        raise UserError('a message is an object with what to "do"')
    return message


def error_moment(text: str) -> Moment:
    """Return the answer to what could not be done."""
    return Moment({"kind": "error", "text": text})


def format_of(message: Mapping[str, Any]) -> ImageFormat:
    """Return the format that pictures are wanted in; JPEG unless said otherwise."""
    wanted = message.get("format", "jpeg")
    if wanted not in ("jpeg", "png"):
        raise UserError(f"pictures travel as jpeg or png, not as '{wanted!s:.40}'")
    return "png" if wanted == "png" else "jpeg"


def flag_of(message: Mapping[str, Any], name: str, default: bool | None = None) -> bool:
    """Return a yes or no."""
    value = message.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f'"{name}" is true or false, not {value!s:.40}')
    return value
