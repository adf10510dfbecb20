"""What a sweep starts in tests instead of `dreamfleet train`: it writes a run's small files, and ends as it is told.

SWEEP_STUB names a folder; what a variant does is in the file of its name there: `finish` (or there is none), `fail`,
`crash`, `refuse`, or `wait`, which goes on until it is interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from dreamfleet.common.settings.resolve import resolve, write_settings
from dreamfleet.deploy.parser import parse
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.state import StateWriter


def main() -> int:
    """Do what the variant is to do."""
    given = parse(sys.argv[1:])
    told = Path(os.environ["SWEEP_STUB"]) / given.run.parent.name
    wish = told.read_text() if told.exists() else "finish"
    if wish == "refuse":
        print("dreamfleet: env.id 'Nothing-v0' is not registered.", file=sys.stderr)
        return 2
    run = RunDirectory(given.run)
    settings = resolve(given.preset, given.flags, base=run.config_file if run.config_file.exists() else None)
    run.create()
    write_settings(settings, run.config_file)
    note = {"began": time.time(), "threads": os.environ["OMP_NUM_THREADS"], "arguments": sys.argv[1:]}
    interrupted: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: interrupted.append(number))
    try:
        with StateWriter(run.path, "train", 5.0) as state:
            steps, wanted = settings.train.env_steps, {"wanted/env_steps": settings.train.env_steps}
            state.beat({"env_steps": steps // 2, "seconds_left": 3.0, **wanted})
            if wish == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if wish == "fail":
                _fail()
            while wish == "wait" and not interrupted:
                time.sleep(0.02)
            time.sleep(0.3)
            if interrupted:
                state.stopped("by SIGINT")
                return 130
            state.beat({"env_steps": steps, **wanted})
            evaluation = {"env_steps": steps, "updates": 9, "mean": 1.0 + settings.seed, "run_seconds": 2.0}
            run.evaluations_file.write_text(json.dumps(evaluation) + "\n")
    except RuntimeError:
        return 1
    (run.path / "note.json").write_text(json.dumps({**note, "ended": time.time()}))
    return 0


def _fail() -> None:
    raise RuntimeError("the loss is not finite at update 7")


if __name__ == "__main__":
    sys.exit(main())
