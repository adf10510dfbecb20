"""Beginning with what another run has learnt (`train.from_run`): its model, and its actors where both have them.

Steps, updates, experience and the optimiser's moments are the new run's own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.settings.schema import Settings, TrainSettings
from dreamfleet.learner.behaviour.networks import Networks, make_networks
from dreamfleet.learner.checkpoints.restore import check_parameters, check_spaces, find_checkpoint

_WORDS = {"model": "the model", "behaviour": "actor and critic", "exploration": "what explores"}


class Origin:
    """A checkpoint of another run, from which this one begins.

    Args:
        train: names the run and the checkpoint.

    Raises:
        UserError: if it is not there or not whole, or is of an environment with other spaces.
    """

    def __init__(self, train: TrainSettings, spaces: Spaces, device: str | torch.device = "cpu") -> None:
        checkpoints = Path(train.from_run) / "checkpoints"
        self._state, facts = find_checkpoint(checkpoints, train.from_checkpoint, device)
        self.updates = int(facts["updates"])
        self._name = f"The checkpoint of update {self.updates} in {checkpoints}"
        check_spaces(facts, spaces, self._name)

    def check(self, settings: Settings, spaces: Spaces) -> None:
        """Refuse settings of other networks than it has, without making any.

        Raises:
            UserError: naming the first parameter that differs.
        """
        with torch.device("meta"):
            networks = make_networks(spaces, settings)
        self._check(self._shared(networks))

    def load(self, networks: Networks) -> str:
        """Load what both have into networks; return what that is, as a sentence.

        Raises:
            UserError: as `check`; the networks are unchanged.
        """
        shared = self._shared(networks)
        self._check(shared)
        for name, network in shared.items():
            network.load_state_dict(self._state[name])
        what = ", ".join(_WORDS[name] for name in shared)
        return (
            f"start: from the beginning, with {what} of update {self.updates:,} of {self._name.rpartition(' in ')[2]}"
        )

    def _shared(self, networks: Networks) -> dict[str, nn.Module]:
        found = {name: network for name, network in networks.saved.items() if name in self._state}
        if "model" not in found:
            raise UserError(f"{self._name} holds no model: it is damaged, or of another program.")
        return found

    def _check(self, shared: dict[str, nn.Module]) -> None:
        for name, network in shared.items():
            check_parameters(network, self._state[name], self._name)
