"""A part's process: `python -m tests.bench.gpu.part JSON`."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
import traceback
from pathlib import Path

from tests.bench.gpu.findings import Recorder, SkippedError
from tests.bench.gpu.job import Job


def main(given: str) -> int:
    """Measure one part; return 1 if it failed, and say the error also in the file of what was found."""
    options = json.loads(given)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    recorder = Recorder(Path(options["found"]))
    job = Job(
        Path(options["folder"]),
        options["prefix"],
        time.monotonic() + options["seconds"],
        options["dry"],
        options["figures"],
        Path(options["r2dreamer"]) if options["r2dreamer"] else None,
        options["argument"],
    )
    try:
        module = importlib.import_module(options["module"])
        recorder.method(module.METHOD)
        module.measure(job, recorder)
    except SkippedError as error:
        recorder.failed(error)
    except BaseException as error:  # noqa: BLE001 (whatever it is goes on the page)
        recorder.failed(error)
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
