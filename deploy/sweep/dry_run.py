"""`dreamfleet sweep FILE --dry-run`: the table of cells, what each takes, and how long all of it takes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from dreamfleet.common.formatting import format_duration, table
from dreamfleet.deploy.run.dry_run import expected_seconds
from dreamfleet.deploy.sweep.cell import Cell
from dreamfleet.deploy.sweep.need import Machine, Need
from dreamfleet.deploy.sweep.report import in_words


def dry_run(cells: Sequence[Cell], inline: bool, machine: Machine | None, jobs: int | None) -> int:
    """Measure each variant's first cell that is not complete, print the table, and return 0; nothing is written.

    Args:
        machine: on which the cells run; None for a cluster, of which no time is known.

    Raises:
        UserError: if a variant's environment or model is at fault.
    """
    seconds: dict[str, float | None] = {}
    for cell in cells:
        if cell.state != "complete" and cell.variant.name not in seconds:
            print(f"{cell.variant.name}:", flush=True)
            seconds[cell.variant.name] = expected_seconds(cell.run, cell.settings, inline, cell.need.cores)
    rows = [("cell", "state", "takes", "time left", "directory")]
    times: list[float | None] = []
    for cell in cells:
        left = 0.0 if cell.state == "complete" else seconds[cell.variant.name]
        state = f"{cell.state}: {cell.cause}" if cell.cause else cell.state
        shown = "not known" if left is None else format_duration(left) if left else "–"
        rows.append((cell.name, state, cell.need.in_words(), shown, str(cell.run.shown)))
        times.append(left)
    print("", *table(rows), "", in_words(cells), sep="\n")
    known = [left for left in times if left is not None]
    if machine is not None and len(known) == len(times):
        total = makespan([cell.need for cell in cells], known, machine, jobs)
        print(f"in all about {format_duration(total)} on {machine.cores} cores; starting and evaluations come on top")
    return 0


def makespan(needs: Sequence[Need], seconds: Sequence[float], machine: Machine, jobs: int | None) -> float:
    """Return when the last of these cells ends, if each is started as soon as there is room for it."""
    waiting = [(need, took) for need, took in zip(needs, seconds, strict=True) if took > 0]
    running: list[tuple[float, int, Need]] = []
    now, number = 0.0, 0
    while waiting or running:
        for entry in list(waiting):
            held = [need for *_, need in running]
            has_room = len(running) < jobs if jobs is not None else machine.has_room(entry[0], held)
            if has_room:
                waiting.remove(entry)
                number += 1
                heapq.heappush(running, (now + entry[1], number, entry[0]))
        now, *_ = heapq.heappop(running)
    return now
