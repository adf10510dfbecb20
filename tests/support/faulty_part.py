"""A part of the GPU benchmark that ends as its argument says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.bench.gpu.findings import Recorder, SkippedError
from tests.bench.gpu.job import Job

METHOD = """
    It is measured in no way
    at all.
"""


def measure(job: Job, recorder: Recorder) -> None:
    recorder.row("what came first", ("size", "ms"), ("12m", f"{job.figures.get('known', 1.5)} | more"))
    recorder.figure("known", 16.25)
    print("a line of output")
    match job.argument:
        case "raises":
            raise ValueError("no such kernel")
        case "hangs":
            with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
                recorder.note(f"started {process.pid}")
                time.sleep(600)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "skips":
            raise SkippedError("nothing to do it with")
        case "exits":
            sys.exit(7)
    recorder.aim("16 ms at most", "12 ms", met=True)
    recorder.aim("within 1.5 times", "2.1", met=False)
