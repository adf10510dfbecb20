"""How an actor asks the process that acts for all actors, on Ray; without torch, which such an actor does not need."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from dreamfleet.common.acting.remote_policy import Answer, InferenceLostError, Question, RetiredError
from dreamfleet.common.errors import first_line


class AsksByName:
    """Asks the newest process whose name begins with `prefix` and ends with a number, the greatest of those alive.

    Names, since an actor has to find the successor of a lost process in the middle of an order.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._process: Any = None

    def __call__(self, question: Question, timeout_s: float) -> Answer:
        """Return the answer.

        Raises:
            InferenceLostError: if there is no process, it is lost meanwhile, or it does not answer in time.
        """
        if self._process is None:
            self._process = self._find()
        try:
            answer: Answer = ray.get(self._process.act.remote(question), timeout=timeout_s)
        except RayTaskError as error:
            self._process = None
            if isinstance(error.cause, RetiredError):
                raise error.cause from None
            raise InferenceLostError(str(error.cause)) from None
        except (RayActorError, GetTimeoutError) as error:
            self._process = None
            raise InferenceLostError(first_line(error)) from None
        return answer

    def _find(self) -> Any:
        numbers = [
            int(name.removeprefix(self._prefix))
            for name in ray.util.list_named_actors()
            if name.startswith(self._prefix)
        ]
        try:
            return ray.get_actor(f"{self._prefix}{max(numbers)}")
        except ValueError:  # none is alive, or it died this moment
            raise InferenceLostError("there is none at the moment") from None
