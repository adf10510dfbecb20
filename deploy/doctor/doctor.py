"""`dreamfleet doctor`: checks this machine, or all nodes of a cluster, against what a run of these settings needs."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dreamfleet.common.errors import UserError, first_line
from dreamfleet.common.formatting import ARROW, counted, table
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor import checks, learner_machine
from dreamfleet.deploy.doctor.checks import Section
from dreamfleet.deploy.doctor.facts import environment_facts, machine_facts
from dreamfleet.deploy.workers.address import check_address

ENVIRONMENT_S = 120.0
"""An environment that is not built and stepped within this time on this machine counts as failed."""
_COLUMNS = (7, 12)
_COLOURS = {"ok": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}


def doctor(settings: Settings, address: str | None, directory: Path | None) -> int:
    """Print what was found; return 0 if nothing is an error, else 1.

    Without the address of a Ray cluster, this machine alone is checked, and Ray is not started. Without a directory the
    run is to be in runs/ below the working directory.

    Raises:
        UserError: if no cluster answers at the address.
    """
    path = str((directory or Path("runs")).resolve())
    sections = _examine_cluster(settings, path, address) if address else [examine_machine(settings, path)]
    print("\n".join(describe(sections, colours=sys.stdout.isatty())))
    return int(any(finding.level == "error" for section in sections for finding in section.findings))


def describe(sections: Sequence[Section], colours: bool) -> list[str]:
    """Return the findings as text, and a last line that sums up."""
    lines: list[str] = []
    for heading, findings in sections:
        rows: list[tuple[str, str, str]] = []
        for level, subject, text, remedy in findings:
            rows += [(level, subject, text), *([("", "", ARROW + remedy)] if remedy else [])]
        lines += [heading, *table(rows, least=_COLUMNS), ""]
    if colours:
        lines = [
            re.sub(r"^(ok|warning|error)\b", lambda level: f"{_COLOURS[level[0]]}{level[0]}\x1b[0m", line)
            for line in lines
        ]
    levels = [finding.level for section in sections for finding in section.findings]
    ok, warnings, errors = (levels.count(level) for level in ("ok", "warning", "error"))
    end = "nothing stands in the way"
    if errors:
        end = "a run would fail, or do harm, until the errors are fixed"
    elif warnings:
        end = "a run will start; look at the warnings"
    return [*lines, f"{ok} ok, {counted(warnings, 'warning')}, {counted(errors, 'error')}: {end}"]


def examine_machine(settings: Settings, directory: str) -> Section:
    """Return the findings about this machine, for a run that has all of its parts here."""
    facts = machine_facts(directory)
    environment = try_environment(settings, ENVIRONMENT_S)
    footprint, model_findings = checks.run_sizes(settings, environment)
    count, store = settings.actors.count, checks.default_store(facts)
    actors = count if isinstance(count, int) else max(1, facts["cores"] - 1)
    has_token = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    findings = [
        checks.check_versions(facts),
        checks.check_token("token" if has_token else "disabled", nodes=1),
        *([checks.check_token_file(facts, ray_is_up=False)] if has_token else []),
        checks.check_files(facts, raised=True),
        checks.check_cores(facts["cores"], actors),
        *learner_machine.check_learner_machine(settings, facts, footprint, store, actors, actors, ray_gpus=None),
        checks.check_environment(settings.env.id, environment, None),
        *model_findings,
    ]
    return Section(f"this machine, {settings.env.id}, run in {directory}", findings)


def try_environment(settings: Settings, timeout_s: float) -> dict[str, Any]:
    """Return `environment_facts` from a process of its own: one that crashes or hangs is a finding, not our end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_facts, args=(theirs, settings.env.model_dump()), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout_s):
            return {"error": f"it was not built and stepped within {timeout_s:.0f} s"}
        facts: dict[str, Any] = ours.recv()
    except EOFError:
        process.join(timeout_s)
        return {"error": f"its process ended with exit code {process.exitcode}, for example by a crash in its renderer"}
    finally:
        process.kill()
        process.join()
        ours.close()
    return facts


def _send_facts(pipe: Connection, settings: dict[str, Any]) -> None:
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # SDL complains on stderr without it
    pipe.send(environment_facts(settings))


def _examine_cluster(settings: Settings, directory: str, address: str) -> list[Section]:
    """Join a cluster and examine it.

    Raises:
        UserError: if it does not answer.
    """
    import ray
    from ray.exceptions import RayError

    check_address(address)
    try:
        context = ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"flag --address: no Ray cluster answers at '{address}': {first_line(error)}") from None
    from dreamfleet.deploy.doctor.cluster import examine_cluster

    try:
        return examine_cluster(settings, directory, str(context.dashboard_url or ""))
    finally:
        ray.shutdown()
