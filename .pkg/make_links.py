"""Makes the package's links to its folders before a build, where they are missing: an archive of the sources has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("actors", "common", "deploy", "learner", "replay")


class MakeLinks(BuildHookInterface):
    """Called by hatchling before it makes a wheel or an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the links that are missing."""
        for name in FOLDERS:
            link = Path(self.root, ".pkg", "dreamfleet", name)
            if not link.exists():
                link.symlink_to(Path("..", "..", name), target_is_directory=True)
