"""`dreamfleet sweep FILE`: every variant with every seed as a run of its own, several at a time, resumable."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dreamfleet.common.errors import UserError
from dreamfleet.common.lock import DirectoryLock
from dreamfleet.deploy.monitoring.progress import Console, open_log
from dreamfleet.deploy.run.prepare import check_modes
from dreamfleet.deploy.run.session import StopRequest
from dreamfleet.deploy.run_directory import RunDirectory
from dreamfleet.deploy.sweep.cell import Cell
from dreamfleet.deploy.sweep.cluster_cells import ClusterCells
from dreamfleet.deploy.sweep.local_cells import LocalCells
from dreamfleet.deploy.sweep.need import Machine, Need
from dreamfleet.deploy.sweep.report import Report, in_words
from dreamfleet.deploy.sweep.schedule import Launcher, Schedule
from dreamfleet.deploy.sweep.sweep_file import SweepFile, read_sweep

LOG_NAME = "sweep.log"

log = logging.getLogger("dreamfleet")


def sweep(file: Path, out: Path | None, jobs: int | None, address: str | None, is_dry: bool) -> int:
    """Run the cells of a file that are not complete, and return 0, 1 if any failed, or 130 or 143 after a signal.

    Args:
        out: the folder of the runs, instead of the file's.
        jobs: how many at once; None for as many as there is room for.
        address: of a Ray cluster whose nodes take the cells; None for this machine.

    Raises:
        UserError: if the file, a cell's settings or the folder are at fault.
    """
    table = read_sweep(file)
    again = ["dreamfleet", "sweep", str(file), *(["--out", str(out)] if out else [])]
    again += ["--jobs", str(jobs)] if jobs else []
    again += ["--address", address] if address else []
    out = (out or table.out).absolute()
    check_modes(inline=False, address=address)
    machine = None if address else Machine.here()
    if address:
        _join(address)
    cells = make_cells(table, out, has_gpus=_has_gpus(machine))
    for cell in cells:
        cell.look()
    if is_dry:
        from dreamfleet.deploy.sweep.dry_run import dry_run

        return dry_run(cells, table.inline, machine, jobs)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"flag --out: {out} cannot be made: {error.strerror}.") from None
    with DirectoryLock(out):
        return _run(table, cells, out, machine, jobs, shlex.join(again))


def make_cells(table: SweepFile, out: Path, has_gpus: bool) -> list[Cell]:
    """Return the cells, seed by seed, so that a sweep that is stopped has something of each variant."""
    cells = []
    for seed in table.seeds:
        for variant in table.variants:
            settings = variant.settings(seed)
            need = Need.of(settings, table.inline, has_gpus, variant.resources)
            run = RunDirectory(out / variant.name / f"seed-{seed}")
            cells.append(Cell(variant, seed, settings, run, need))
    return cells


def _run(
    table: SweepFile, cells: Sequence[Cell], out: Path, machine: Machine | None, jobs: int | None, again: str
) -> int:
    console = Console()
    with ExitStack() as stack:
        stack.enter_context(open_log(console, out / LOG_NAME))
        stop = stack.enter_context(StopRequest())
        log.info("sweep %s in %s, %s", table.path, out, in_words(cells))
        launcher: Launcher
        if machine is None:
            from dreamfleet.deploy.workers.remote_command import check_nodes

            check_nodes(out)
            launcher = ClusterCells(out, table.inline)
            launcher.check_room(cells)
            log.info("cells run on the nodes of the cluster, each on one")
        else:
            launcher = LocalCells(machine, table.inline, jobs is not None)
            log.info("cells share %d cores of this machine%s", machine.cores, _gpus_in_words(machine))
        if not all(cell.settings.records.evaluate_every for cell in cells):
            log.warning(
                "some cells make no evaluations (records.evaluate_every 0): compare has their training episodes"
            )
        report = Report(cells, out, console)
        report.write(0.0)
        try:
            Schedule(cells, launcher, report, stop.asked, jobs).run()
        finally:
            console.clear()
        log.info("%s\n  %s", in_words(cells), "\n  ".join(report.table()))
        if stop:
            log.info("stopped; `%s` continues.", again)
            return stop.exit_code
        log.info("compare      %s", shlex.join(["dreamfleet", "compare", str(out)]))
    return int(any(cell.state != "complete" for cell in cells))


def _join(address: str) -> None:
    from dreamfleet.common.settings.schema import Settings
    from dreamfleet.deploy.workers.ray_session import start_ray

    start_ray(Settings(), address)


def _has_gpus(machine: Machine | None) -> bool:
    if machine is not None:
        return bool(machine.gpus)
    from dreamfleet.deploy.workers.remote_command import largest_node

    return largest_node()["GPU"] > 0


def _gpus_in_words(machine: Machine) -> str:
    return f" and GPUs {', '.join(machine.gpus)}" if machine.gpus else ""
