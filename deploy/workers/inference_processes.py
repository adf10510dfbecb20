"""Starting the process that acts for all actors, each successor under a greater name."""

from __future__ import annotations

import os
import secrets
from typing import Any

from dreamfleet.actors.inference_process import InferenceProcess
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.schema import Settings
from dreamfleet.deploy.workers.placement import Placement
from dreamfleet.deploy.workers.pool import Worker


class InferenceProcesses:
    """Starts the process of one run, and those that replace it.

    Attributes:
        prefix: how their names begin, by which actors find them; empty where actors act by themselves.
    """

    def __init__(self, settings: Settings, spaces: Spaces) -> None:
        self.prefix = f"inference-{secrets.token_hex(4)}-" if settings.acts_centrally else ""
        self._settings, self._spaces = settings, spaces
        self._number = 0

    def start(self, placement: Placement, is_local: bool) -> Worker:
        """Start one; it computes with half of its node's cores, as far as it has no GPU."""
        self._number += 1
        cores = os.cpu_count() if is_local else int(placement.home.resources.get("CPU", 1))
        options = placement.inference_options() | {"max_restarts": 0, "name": f"{self.prefix}{self._number}"}
        options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(max(1, (cores or 1) // 2))}}
        process_class: Any = InferenceProcess
        return Worker("inference", process_class.options(**options).remote(self._settings, self._spaces.to_json()))
