"""A Ctrl-C while modules are imported, where nothing is under way that could be stopped in order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = "\ndreamfleet: interrupted.\n"


@contextmanager
def imports_interrupted_at_once() -> Iterator[None]:
    """Have SIGINT end the process, with a line and code 130, where an import is under way; else it is as it was.

    The C++ of torch and others calls Python as it is imported and has no way to pass an exception on: a
    KeyboardInterrupt raised there aborts the process, or is swallowed. A handler of the caller's own is left alone.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, INTERRUPTED.encode())  # the streams' own locks may be held by what was interrupted
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt
