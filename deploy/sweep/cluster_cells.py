"""Cells on a Ray cluster: each is placed on one node, by what it takes, and trains there on Ray of its own.

A run that joined the cluster would ask for its actors' and its learner's CPUs once more, beside those that its cell
holds, and wait for them for ever when all are held by cells. So a cell takes its part of one node, and a run that needs
more than a node is no cell: `dreamfleet train --address auto` is for that.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dreamfleet.deploy.sweep.cell import Cell
from dreamfleet.deploy.sweep.local_cells import RunningElsewhere
from dreamfleet.deploy.sweep.schedule import Started

log = logging.getLogger("dreamfleet")


class ClusterCells:
    """Hands all cells to Ray at once, which starts each when a node has room, or an autoscaler has brought one.

    Args:
        out: the sweep's folder, which all nodes see.
    """

    def __init__(self, out: Path, inline: bool) -> None:
        self._out, self._inline = out, inline

    def check_room(self, cells: Sequence[Cell]) -> None:
        """Warn of cells for which no node is big enough now."""
        from dreamfleet.deploy.workers.remote_command import largest_node

        most = largest_node()
        for cell in cells:
            need = cell.need
            if need.cores > most["CPU"] or need.gpus > most["GPU"] or need.memory > most["memory"]:
                log.warning("%s takes %s, and no node has that now: it waits for one", cell.name, need.in_words())

    def has_room(self, cell: Cell, running: Sequence[Cell]) -> bool:
        """Whether Ray may be given one more: it has a queue of its own."""
        del cell, running
        return True

    def start(self, cell: Cell) -> Started:
        """Hand a cell to Ray."""
        from dreamfleet.deploy.workers.remote_command import RemoteCommand

        need = cell.need
        variables = {"OMP_NUM_THREADS": str(need.threads), **({} if need.gpus else {"CUDA_VISIBLE_DEVICES": ""})}
        return RemoteCommand(
            cell.arguments(self._inline), variables, cell.output_file, self._out, need.cores, need.gpus, need.memory
        )

    def adopt(self, cell: Cell) -> Started:
        """Return the process of a cell that runs already."""
        return RunningElsewhere(cell)
