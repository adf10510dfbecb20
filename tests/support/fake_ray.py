"""A `ray` that plays a script: put first on PATH, it notes what it is asked and answers as a cluster would.

Its folder holds `calls.jsonl` (the words of each call), `statuses.json` and `logs.json` (what the next calls of
`ray job status` and `ray job logs` are to do; the last of each stays), and `home`, the home of the "head" that
`ray exec` reaches.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def next_of(name: str) -> str | list[str]:
    file = FOLDER / f"{name}.json"
    steps = json.loads(file.read_text())
    if len(steps) > 1:
        file.write_text(json.dumps(steps[1:]))
    return steps[0]


def say(text: str) -> None:
    print(f"2026-11-22 20:08:00,048\tINFO cli.py:42 -- {text}", flush=True)


def status(job_id: str) -> int:
    what = next_of("statuses")
    if what == "unreachable":
        print("ConnectionError: Failed to connect to Ray at address: http://x:8265.", file=sys.stderr)
        return 1
    if what in ("SUCCEEDED", "STOPPED"):
        say(f"Job '{job_id}' {'succeeded' if what == 'SUCCEEDED' else 'was stopped'}")
    elif what == "FAILED":
        say(f"Job '{job_id}' failed")
        say("Status message: Job entrypoint command failed with exit code 2, last available logs (truncated):\na 1")
    elif what in ("RUNNING", "PENDING"):
        say(f"Status for job '{job_id}': {what}")
    else:
        print(what, file=sys.stderr)
        return 1
    return 0


def logs(job_id: str) -> int:
    for line in next_of("logs"):
        if line == "DROP":
            return 255
        if line == "CUT":  # in the middle of a line
            print("half a li", end="", flush=True)
            return 255
        if line == "HANG":
            time.sleep(600)
        if line in ("succeeded", "failed", "was stopped"):
            say("-------")
            say(f"Job '{job_id}' {line}")
            print("Status message: lines that the log had already")
            return 0
        print(line, flush=True)
    return 0


def main(words: list[str]) -> int:
    with (FOLDER / "calls.jsonl").open("a") as file:
        file.write(json.dumps([*words, f"HOME={os.environ['HOME']}"]) + "\n")
    if words[0] == "exec":  # as SSH and Ray have it run: a shell that runs a shell
        line = "bash --norc -c " + shlex.quote(f"export OMP_NUM_THREADS=1 && ({words[2]})")
        return subprocess.run(["sh", "-c", line], env={**os.environ, "HOME": str(FOLDER / "home")}).returncode  # noqa: PLW1510, S603, S607
    if words[0] == "rsync-up":
        print("\n".join(sorted(str(path.relative_to(words[2])) for path in Path(words[2]).rglob("*"))),
              file=(FOLDER / "sent.txt").open("w"))  # fmt: skip
        return 0
    print("Fetched IP: 10.0.0.1, a banner of the shell")
    say("Job submission server address: http://x:8265")
    if words[1] in ("status", "logs"):
        return {"status": status, "logs": logs}[words[1]](words[-1])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
