"""The learner: trains the world model on sequences from the replay, and keeps, publishes and shows what it learnt."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamfleet.common.acting.agent_networks import AgentNetworks, flatten
from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.process_log import LogRecord
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.bad_batch import not_finite_loss
from dreamfleet.learner.behaviour.actor_critic import ActorCritic
from dreamfleet.learner.checkpoints.copies import CheckpointCopies
from dreamfleet.learner.checkpoints.restore import check_spaces, load_behaviour, load_parameters
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.learner.hardware import TorchThreads, choose_hardware
from dreamfleet.learner.optimiser.optimiser import load_moments
from dreamfleet.learner.pictures.illustration import draw_pictures, longest_episode
from dreamfleet.learner.pictures.pictures import Pictures
from dreamfleet.learner.prefetcher import BatchSource, DirectSource, Prefetcher
from dreamfleet.learner.staleness import staleness
from dreamfleet.learner.updater import Stopwatch, Updater
from dreamfleet.learner.world_model_loss import world_model_loss
from dreamfleet.replay.compressed_batch import decompress
from dreamfleet.replay.interface import ExperienceReplay, NotEnoughExperienceError

HELD_OUT_BATCHES = 4
"""Batches that the held-out loss is the mean of."""
_STAYS_BEHIND = ("episode", "version")
"""Fields that no loss reads: they stay off the device."""


@dataclass(frozen=True)
class TrainReport:
    """What came of a train order.

    Attributes:
        updates: made so far, in all lives of the run.
        metrics: means over the order's updates; and how old the replayed actions were, see `learner/staleness.py`.
        timings: seconds of the order by what they went into: wait, transfer, forward_backward, optimiser, publish.
        log_records: what the learner's process logged since the last order.
        published: the weights, if a new version was due within the order.
    """

    updates: int
    metrics: dict[str, float]
    timings: dict[str, float]
    log_records: list[LogRecord] = field(default_factory=list)
    published: PublishedWeights | None = None


class Learner:
    """Trains a world model and, where the settings name an actor–critic, an actor in what the model imagines.

    Nothing random is stored: the batch and the noise of an update follow from the run's seed and the update's number,
    so that a run that was interrupted goes on as if it had not been.

    Attributes:
        updates: made so far, in all lives of the run.
        agent: the world model and what chooses actions, on their device.
        model: the agent's world model.
        decisions: one sentence for each automatic choice.

    Args:
        settings: the run's.
        spaces: of its environment.
        replay: where sequences come from.
        run_directory: checkpoints lie in its folder `checkpoints`.
        prefetch: whether batches are fetched ahead, in threads.
        busy_cores: cores of this machine that actors keep busy.
        set_to: the threads that torch was set to.

    Raises:
        UserError: if a GPU is asked for and there is none, the observations do not fit the encoder, or checkpoints
            cannot be copied to the URL that the settings name.
    """

    def __init__(
        self,
        settings: Settings,
        spaces: Spaces,
        replay: ExperienceReplay,
        run_directory: Path,
        prefetch: bool,
        busy_cores: int = 0,
        set_to: TorchThreads | None = None,
    ) -> None:
        self._settings = settings
        self._spaces = spaces
        self._replay = replay
        self._run_directory = Path(run_directory)
        self._prefetch = prefetch
        self._format = StepFormat(spaces)
        self._hardware = choose_hardware(settings.learner, busy_cores, set_to)
        self.decisions = list(self._hardware.decisions)
        self._device = self._hardware.device
        torch.manual_seed(derive_seed(settings.seed, "model"))
        self.agent = AgentNetworks(spaces, settings).to(self._device)
        self.model = self.agent.world_model
        self.decisions.append(f"model: {self.model.parameter_count():,} parameters")
        learns = settings.behaviour.kind == "actor_critic"
        self._actor_critic = ActorCritic(self.agent, settings).to(self._device) if learns else None
        self.decisions += [self._actor_critic.decision] if self._actor_critic else []
        self._updater = Updater(self.agent, self._actor_critic, settings, self._hardware)
        self._checkpoints = CheckpointStore(self._run_directory / "checkpoints", settings.records.checkpoints_kept)
        self._checkpoints.remove_unfinished()
        url = settings.records.checkpoint_url
        self._copies = CheckpointCopies(url, self._checkpoints) if url else None
        self.decisions += [self._copies.decision] if self._copies else []
        self._source: BatchSource[dict[str, Tensor]] | None = None
        self._is_finishing = threading.Event()
        self.updates = 0

    # Training -------------------------------------------------------------------------------------------------------

    def train(self, updates: int) -> TrainReport:
        """Make so many updates, or fewer once `finish_early` was called.

        Raises:
            NotFiniteLossError: before an update from a loss or gradient that is not finite; those before it are made.
        """
        stopwatch = Stopwatch()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self._device))
        batches: list[tuple[int, np.ndarray]] = []
        for _ in range(updates):
            if self._is_finishing.is_set():
                break
            batch, metrics = self._make_next_update(stopwatch)
            batches.append((self.updates, batch["version"].numpy()))
            self.updates += 1
            for name, value in metrics.items():
                sums[name] += value
        means = {}
        if batches:
            values = torch.stack(list(sums.values())).tolist()  # all in one transfer
            means = {name: value / len(batches) for name, value in zip(sums, values, strict=True)}
            means |= staleness(*zip(*batches, strict=True))
        return TrainReport(self.updates, means, dict(stopwatch.seconds))

    def finish_early(self) -> None:
        """Make no further update after the one being made; may be called from another thread."""
        self._is_finishing.set()

    def _make_next_update(self, stopwatch: Stopwatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the batch and the metrics of the next update, made."""
        number = self.updates + 1
        self._source = self._source or self._open_source()
        with stopwatch("wait"):
            batch = self._source.next()
        with stopwatch("transfer"):
            on_device = self._to_device(batch)
        self._seed("update", number)
        update = self._updater.update(number, on_device, stopwatch)
        if update.not_finite:
            self.close()  # the batch was taken, its update not made: the source is to begin with it again
            arrays = {name: tensor.numpy() for name, tensor in batch.items()}
            raise not_finite_loss(number, update.not_finite, arrays, self._run_directory)
        return batch, update.metrics

    def _open_source(self) -> BatchSource[dict[str, Tensor]]:
        """Return the batches from the next update's on."""
        if not self._prefetch:
            return DirectSource(self._fetch, self.updates + 1)
        depth = self._settings.learner.prefetch
        return Prefetcher(self._fetch, depth, self.updates + 1, not_yet=(NotEnoughExperienceError,))

    def _fetch(self, number: int) -> dict[str, Tensor]:
        """Return the batch of an update in this process's memory, pinned if it is to go to a GPU."""
        arrays = decompress(self._replay.sample(number, self._settings.learner.batch_size), self._format)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._device.type != "cuda":
            return tensors
        return {name: tensor.pin_memory() for name, tensor in tensors.items()}

    def _to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the loss reads on the device; pictures travel as bytes."""
        wanted = {name: tensor for name, tensor in batch.items() if name not in _STAYS_BEHIND}
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in wanted.items()}

    def _seed(self, purpose: str, number: int) -> None:
        """Seed torch on all devices: what follows depends on the run's seed, the purpose and the number alone."""
        torch.manual_seed(derive_seed(self._settings.seed, purpose, number))

    # Publishing and keeping -----------------------------------------------------------------------------------------

    def weights(self) -> tuple[int, np.ndarray]:
        """Return what acting needs as (version, flat float32 (N,)); the version is the number of updates."""
        return self.updates, flatten(self.agent.acting_parameters())

    def save(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write a checkpoint and return its facts.

        Args:
            facts: plain data to keep beside it, such as the environment steps; `held_out_loss` is measured unless
                given.

        Raises:
            UserError: if it cannot be written; older ones are untouched.
        """
        state = {
            "model": self.model.state_dict(),
            "optimiser": self._updater.optimiser.state_dict(),
            "updates": self.updates,
        }
        if self._actor_critic is not None:
            state["behaviour"] = self._actor_critic.state_dict()
        known = {"spaces": self._spaces.to_json(), "parameters": self.model.parameter_count(), **facts}
        if "held_out_loss" not in known:
            known["held_out_loss"] = self.held_out_loss()
        written = self._checkpoints.save(self.updates, state, known)
        if self._copies:
            self._copies.copy(self.updates)
        return written

    def record_evaluation(self, updates: int, found: Mapping[str, Any]) -> bool:
        """Add what an evaluation found to the facts of a checkpoint; False if it is gone.

        Raises:
            UserError: if it cannot be written.
        """
        return self._checkpoints.record_evaluation(updates, found)

    def restore(self) -> dict[str, Any] | None:
        """Go on from the newest checkpoint that is whole; return its facts, or None if there is none.

        Where there is none here but a copy at the settings' URL, that is fetched first.

        Raises:
            UserError: if it is of another model or environment, or all checkpoints are damaged.
        """
        if self._copies and self._checkpoints.is_empty:
            fetched = self._copies.fetch()
            self.decisions += [fetched] if fetched else []
        found = self._checkpoints.load_newest(self._device)
        if found is None:
            self.decisions.append("start: from the beginning, there is no checkpoint")
            return None
        state, facts = found
        origin = f"The checkpoint of update {facts['updates']} in {self._checkpoints.directory}"
        check_spaces(facts, self._spaces, origin)
        load_parameters(self.model, state["model"], origin)
        load_behaviour(self._actor_critic, state.get("behaviour"), self._settings.behaviour.kind, origin)
        load_moments(self._updater.optimiser, state["optimiser"], origin)
        self.close()
        self.updates = int(state["updates"])
        self.decisions.append(f"start: from the checkpoint of update {self.updates}")
        return facts

    def close(self) -> None:
        """End the threads that fetch ahead; training may go on afterwards, with new ones."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def finish(self) -> None:
        """Wait for the copy of the last checkpoint, but not for ever; one that fails is a warning in the log."""
        if self._copies:
            self._copies.finish()

    # Measuring and showing ------------------------------------------------------------------------------------------

    def held_out_loss(self) -> float | None:
        """Return the mean loss on sequences that are never trained on, or None while there are none.

        The same numbers of batches and the same noise each time, so that two measurements differ by the model (and by
        what has been held out meanwhile) alone.
        """
        losses = []
        for number in range(HELD_OUT_BATCHES):
            settings = self._settings.learner
            arrays = self._held_out(number, settings.batch_size, settings.sequence_length, least=2)
            if arrays is None:
                return None
            self._seed("held out", number)
            self.model.eval()
            batch = self._to_device({name: torch.from_numpy(array) for name, array in arrays.items()})
            with torch.no_grad(), self._hardware.autocast():
                losses.append(world_model_loss(self.model, batch, self._settings.loss).total)
        return float(torch.stack(losses).mean())

    def draw_pictures(self) -> Pictures | None:
        """Return pictures of truth, reconstruction and open-loop prediction, or None while there is no sequence.

        The sequence is a held-out one where there is one that long, else one from training.
        """
        records = self._settings.records
        arrays = self._held_out(self.updates, 1, records.picture_steps, least=records.picture_context + 2)
        held_out = arrays is not None
        if arrays is None:
            try:
                arrays = decompress(self._replay.sample(self.updates, 8), self._format)
            except NotEnoughExperienceError:
                return None
            arrays = longest_episode(arrays, records.picture_steps)
        if arrays["reward"].shape[1] <= records.picture_context:
            return None
        self._seed("picture", self.updates)
        return draw_pictures(self.model, arrays, records.picture_context, self.updates, held_out)

    def _held_out(self, number: int, size: int, length: int, least: int) -> dict[str, np.ndarray] | None:
        """Return held-out sequences of a length, or of half of it and so on where episodes are shorter, or None."""
        while length >= least:
            packed = self._replay.sample_held_out(number, size, length)
            if packed is not None:
                return decompress(packed, self._format)
            length //= 2
        return None
