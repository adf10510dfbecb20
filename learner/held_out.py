"""How good a model is on sequences that are never trained on: their loss, and pictures of one of them."""

from __future__ import annotations

import numpy as np
import torch

from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.model.world_model import WorldModel
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.batches import to_device
from dreamfleet.learner.hardware import Hardware
from dreamfleet.learner.pictures.comparison import Pictures, draw_pictures
from dreamfleet.learner.pictures.open_loop import longest_episode
from dreamfleet.learner.world_model_loss import world_model_loss
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.interface import ExperienceReplay, NotEnoughExperienceError

HELD_OUT_BATCHES = 4
"""Batches that the held-out loss is the mean of."""


def seed_torch(seed: int, purpose: str, *numbers: int) -> None:
    """Seed torch on all devices: what follows depends on the run's seed, the purpose and the numbers alone."""
    derived = derive_seed(seed, purpose, *numbers)
    torch.default_generator.manual_seed(
        derived
    )  # `torch.manual_seed` takes 100 µs to find that there is no other device
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(derived)


class HeldOutSequences:
    """The replay's held-out sequences, and what a model makes of them; nothing of the model changes."""

    def __init__(
        self,
        replay: ExperienceReplay,
        step_format: StepFormat,
        settings: Settings,
        hardware: Hardware,
    ) -> None:
        self._replay = replay
        self._format = step_format
        self._settings = settings
        self._hardware = hardware

    def loss(self, model: WorldModel) -> float | None:
        """Return the mean loss on held-out sequences, or None while there are none; leaves the model in eval mode.

        The same numbers of batches and the same noise each time, so that two measurements differ by the model (and by
        what has been held out meanwhile) alone.
        """
        learner = self._settings.learner
        losses = []
        for number in range(HELD_OUT_BATCHES):
            arrays = self._sample(number, learner.batch_size, learner.sequence_length, least=2)
            if arrays is None:
                return None
            seed_torch(self._settings.seed, "held out", number)
            model.eval()
            batch = to_device({name: torch.from_numpy(array) for name, array in arrays.items()}, self._hardware.device)
            with torch.no_grad(), self._hardware.autocast():
                losses.append(world_model_loss(model, batch, self._settings.loss).metrics["loss/total"])
        return float(torch.stack(losses).mean())

    def draw(self, model: WorldModel, updates: int) -> Pictures | None:
        """Return pictures of truth, reconstruction and open-loop prediction, or None while there is no sequence.

        None too of a model without a decoder. The sequence is a held-out one where there is one that long, else one
        from training.

        Args:
            updates: made so far; it decides which sequence is drawn.
        """
        if model.decoder is None:
            return None
        records = self._settings.records
        arrays = self._sample(updates, 1, records.picture_steps, least=records.picture_context + 2)
        held_out = arrays is not None
        if arrays is None:
            try:
                arrays = decompress(self._replay.sample(updates, 8), self._format)
            except NotEnoughExperienceError:
                return None
            arrays = longest_episode(arrays, records.picture_steps)
        if arrays["reward"].shape[1] <= records.picture_context:
            return None
        seed_torch(self._settings.seed, "picture", updates)
        return draw_pictures(model, arrays, records.picture_context, updates, held_out)

    def _sample(self, number: int, size: int, length: int, least: int) -> dict[str, np.ndarray] | None:
        """Return sequences of a length, or of half of it and so on where episodes are shorter; None if of none."""
        while length >= least:
            compressed = self._replay.sample_held_out(number, size, length)
            if compressed is not None:
                return decompress(compressed, self._format)
            length //= 2
        return None
