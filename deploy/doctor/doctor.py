"""`dreamfleet doctor`: checks this machine, or all nodes of a cluster, against what a run of these settings needs."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from dreamfleet.common.errors import UserError
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.doctor import check_fleet, checks
from dreamfleet.deploy.doctor.check_learner import learner_lines, sizes
from dreamfleet.deploy.doctor.check_node import MachineFacts, environment_facts, machine_facts
from dreamfleet.deploy.doctor.checks import Section
from dreamfleet.deploy.workers.address import check_address

ENVIRONMENT_S = 120.0
"""An environment that is not built and stepped within this time on this machine counts as failed."""
WIDTH = 100
_INDENT = " " * 24
_COLOURS = {"ok": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}


def doctor(settings: Settings, address: str | None, directory: Path | None) -> int:
    """Print what was found; return 0 if nothing is an error, else 1.

    Args:
        settings: resolved.
        address: of a running Ray cluster; None for this machine alone, where Ray is not started.
        directory: where the run is or will be; None for runs/ in the working directory.

    Raises:
        UserError: if no cluster answers at the address.
    """
    path = str((directory or Path("runs")).resolve())
    if not address:
        sections = [examine_machine(settings, path)]
    else:
        import ray

        from dreamfleet.deploy.doctor.check_cluster import examine_cluster

        dashboard = _join(address)
        try:
            sections = examine_cluster(settings, path, dashboard)
        finally:
            ray.shutdown()
    print("\n".join(describe(sections, colours=sys.stdout.isatty())))
    return int(any(line.level == "error" for section in sections for line in section.lines))


def describe(sections: Sequence[Section], colours: bool) -> list[str]:
    """Return the findings as text, and a last line that sums up."""
    text: list[str] = []
    for section in sections:
        text.append(section.heading)
        for line in section.lines:
            level = f"{line.level:<9}"
            level = f"{_COLOURS[line.level]}{level}\x1b[0m" if colours else level
            first, *rest = textwrap.wrap(
                line.found, WIDTH - len(_INDENT), break_long_words=False, break_on_hyphens=False
            )
            text += [f"{level}{line.subject:<15}{first}", *(_INDENT + more for more in rest)]
            if line.advice:
                told = textwrap.wrap(
                    line.advice, WIDTH - len(_INDENT) - 2, break_long_words=False, break_on_hyphens=False
                )
                text += [f"{_INDENT}{'→ ' if part == told[0] else '  '}{part}" for part in told]
        text.append("")
    levels = [line.level for section in sections for line in section.lines]
    counts = {level: levels.count(level) for level in ("ok", "warning", "error")}
    end = ("nothing stands in the way" if not counts["error"] and not counts["warning"] else
           "a run will start; look at the warnings" if not counts["error"] else
           "a run would fail, or do harm, until the errors are mended")  # fmt: skip
    plural = {level: "s" * (count != 1) for level, count in counts.items()}
    return [*text, f"{counts['ok']} ok, {counts['warning']} warning{plural['warning']}, "
            f"{counts['error']} error{plural['error']}: {end}"]  # fmt: skip


def examine_machine(settings: Settings, directory: str) -> Section:
    """Return what there is to say of this machine, on which a run would have everything."""
    facts = cast("MachineFacts", machine_facts(directory))
    tried = try_environment(settings, ENVIRONMENT_S)
    footprint, faults = sizes(settings, tried)
    count = settings.actors.count
    actors = count if isinstance(count, int) else max(1, facts["cores"] - 1)
    is_on = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    return Section(
        f"this machine, {settings.env.id}, run in {directory}",
        [
            check_fleet.check_own_versions(facts),
            check_fleet.check_token("token" if is_on else "disabled", nodes=1),
            *([check_fleet.check_token_file(facts, ray_is_up=False)] if is_on else []),
            checks.check_files(facts, raised=True),
            checks.check_cores(facts["cores"], actors),
            *learner_lines(settings, facts, footprint, checks.default_store(facts), actors, actors, ray_gpus=None),
            checks.check_environment(settings.env.id, tried, None),
            *faults,
        ],
    )


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
    os.environ.setdefault(
        "XDG_RUNTIME_DIR", tempfile.gettempdir()
    )  # else SDL complains on stderr, of nothing that matters
    pipe.send(environment_facts(settings))


def _join(address: str) -> str:
    """Join a cluster and return where its dashboard listens, "" if it has none.

    Raises:
        UserError: if it does not answer.
    """
    import ray
    from ray.exceptions import RayError

    check_address(address)
    try:
        context = ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"flag --address: no Ray cluster answers at '{address}': {reason}") from None
    return str(context.dashboard_url or "")
