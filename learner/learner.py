"""The learner: trains the agent on sequences from the replay, and publishes, saves and shows what it learnt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
from dreamfleet.learner.batches import TrainingBatches, not_finite_loss, staleness, to_device
from dreamfleet.learner.behaviour.actor_critic import make_actor_critic
from dreamfleet.learner.checkpoints.copies import CheckpointCopies
from dreamfleet.learner.checkpoints.restore import check_spaces, load_networks
from dreamfleet.learner.checkpoints.store import CheckpointStore
from dreamfleet.learner.hardware import TorchThreads, choose_hardware
from dreamfleet.learner.held_out import HeldOutSequences, seed_torch
from dreamfleet.learner.optimiser import check_moments, load_moments
from dreamfleet.learner.pictures.comparison import Pictures
from dreamfleet.learner.updater import Stopwatch, Update, Updater
from dreamfleet.replay.interface import ExperienceReplay


@dataclass(frozen=True)
class TrainReport:
    """The result of a train order.

    Attributes:
        updates: made so far, by all incarnations of the run's learner.
        metrics: means over the order's updates; and how old the replayed actions were, see `staleness`.
        timings: seconds of the order by what they went into: wait, transfer, forward_backward, optimiser, publish.
        published: the weights, if a new version was due within the order.
    """

    updates: int
    metrics: dict[str, float]
    timings: dict[str, float]
    log_records: list[LogRecord] = field(default_factory=list)
    published: PublishedWeights | None = None


class Restored(NamedTuple):
    """A learner that is ready.

    Attributes:
        decisions: one sentence for each automatic choice.
        facts: of the checkpoint that it continues; None if there is none.
    """

    updates: int
    published: PublishedWeights
    decisions: list[str]
    facts: dict[str, Any] | None


class MadeUpdate(NamedTuple):
    """An update that was given to the device, and the batch that it was made from."""

    number: int
    batch: dict[str, Tensor]
    update: Update


class Learner:
    """Trains a world model and, where the settings name an actor–critic, an actor in what the model imagines.

    Nothing random is stored: the batch and the noise of an update follow from the run's seed and the update's number,
    so that a resumed run equals one that was not interrupted.

    Attributes:
        updates: made so far, by all incarnations of the run's learner.

    Args:
        run_directory: checkpoints lie in its folder `checkpoints`.
        prefetch: whether batches are fetched ahead, in threads.
        busy_cores: cores of this machine that actors keep busy.
        put: where the flat weights are published; it returns their handle, such as an object reference.

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
        put: Callable[[np.ndarray], Any] = np.asarray,
    ) -> None:
        self._settings = settings
        self._spaces = spaces
        self._run_directory = Path(run_directory)
        self._put = put
        hardware = choose_hardware(settings.learner, busy_cores, set_to)
        self.decisions = list(hardware.decisions)
        self._device = hardware.device
        torch.manual_seed(derive_seed(settings.seed, "model"))
        self.agent = AgentNetworks(spaces, settings).to(self._device)
        self.model = self.agent.world_model
        self.decisions.append(f"model: {self.model.parameter_count():,} parameters")
        self._actor_critic = make_actor_critic(self.agent, settings)
        if self._actor_critic is not None:
            self._actor_critic.to(self._device)
            self.decisions.append(self._actor_critic.decision)
        self._updater = Updater(self.agent, self._actor_critic, settings, hardware)
        step_format = StepFormat(spaces)
        self._batches = TrainingBatches(replay, step_format, settings.learner, self._device, ahead=prefetch)
        self._held_out = HeldOutSequences(replay, step_format, settings, hardware)
        self._checkpoints = CheckpointStore(self._run_directory / "checkpoints", settings.records.checkpoints_kept)
        self._checkpoints.remove_unfinished()
        url = settings.records.checkpoint_url
        self._copies = CheckpointCopies(url, self._checkpoints) if url else None
        self.decisions += [self._copies.decision] if self._copies else []
        self._is_finishing = threading.Event()
        self._published: PublishedWeights | None = None  # held: on Ray an object lives as long as its owner holds it
        self.updates = 0

    # Training -------------------------------------------------------------------------------------------------------

    def train(self, updates: int) -> TrainReport:
        """Make a number of updates, or fewer once `finish_early` was called; publish the weights if that is due.

        Raises:
            NotFiniteLossError: before an update from a loss or gradient that is not finite; those before it are made.
        """
        stopwatch = Stopwatch()
        batches: list[tuple[int, np.ndarray]] = []
        made: MadeUpdate | None = None
        sums: Tensor | None = None
        for _ in range(updates):
            if self._is_finishing.is_set():
                break
            before, made = made, self._make_next_update(stopwatch)
            batches.append((made.number - 1, made.batch["version"].numpy()))
            sums = made.update.values if sums is None else sums + made.update.values
            if before is not None:  # while the device computes this update, the one before it is known
                self._confirm(before)
        means = {}
        if made is not None and sums is not None:
            self._confirm(made)
            found = zip(made.update.names, sums.tolist(), strict=True)  # all in one transfer
            means = {name: value / len(batches) for name, value in found}
            means |= staleness(*zip(*batches, strict=True))
        every = self._settings.learner.publish_every
        is_due = self._published is None or self.updates // every > (self.updates - len(batches)) // every
        with stopwatch("publish"):
            published = self.publish() if is_due else None
        return TrainReport(self.updates, means, dict(stopwatch.seconds), published=published)

    def finish_early(self) -> None:
        """Make no further update after the one being made; may be called from another thread."""
        self._is_finishing.set()

    def _make_next_update(self, stopwatch: Stopwatch) -> MadeUpdate:
        """Make the next update, as far as the host knows: whether it was finite is read later."""
        number = self.updates + 1
        with stopwatch("wait"):
            batch = self._batches.take(number)
        with stopwatch("transfer"):
            on_device = to_device(batch, self._device)
        seed_torch(self._settings.seed, "update", number)
        update = self._updater.update(number, on_device, stopwatch)
        self.updates = number
        return MadeUpdate(number, batch, update)

    def _confirm(self, made: MadeUpdate) -> None:
        """Read whether an update was finite.

        Raises:
            NotFiniteLossError: if it was not; it and the update after it have changed nothing.
        """
        if made.update.sound:
            return
        self.updates = made.number - 1
        self._updater.forget_failure()
        self.close()  # the batch was taken, its update not made: it has to be the next one again
        arrays = {name: tensor.numpy() for name, tensor in made.batch.items()}
        raise not_finite_loss(made.number, made.update.not_finite, arrays, self._run_directory)

    # Publishing and saving ------------------------------------------------------------------------------------------

    def publish(self) -> PublishedWeights:
        """Publish the present weights of what acting needs; their version is the number of updates."""
        self._published = PublishedWeights(self.updates, self._put(flatten(self.agent.acting_parameters())))
        return self._published

    def save(self, facts: Mapping[str, Any]) -> tuple[dict[str, Any], PublishedWeights]:
        """Write a checkpoint; return its facts, and its weights, which may be evaluated.

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
        return written, self.publish()

    def record_evaluation(self, updates: int, found: Mapping[str, Any]) -> bool:
        """Add the results of an evaluation to the facts of a checkpoint; False if it is gone.

        Raises:
            UserError: if it cannot be written.
        """
        return self._checkpoints.record_evaluation(updates, found)

    def restore(self) -> Restored:
        """Continue from the newest checkpoint that is whole, if there is one, and publish the weights.

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
            return Restored(self.updates, self.publish(), list(self.decisions), None)
        state, facts = found
        origin = f"The checkpoint of update {facts['updates']} in {self._checkpoints.directory}"
        check_spaces(facts, self._spaces, origin)
        check_moments(state["optimiser"], self._settings.learner.optimiser, origin)
        load_networks(state, self.agent, self._actor_critic, origin)
        load_moments(self._updater.optimiser, state["optimiser"])
        self.close()
        self.updates = int(state["updates"])
        self.decisions.append(f"start: from the checkpoint of update {self.updates}")
        return Restored(self.updates, self.publish(), list(self.decisions), facts)

    def close(self) -> None:
        """End the threads that fetch ahead; training may continue afterwards, with new ones."""
        self._batches.close()

    def finish(self) -> None:
        """Wait for the copy of the last checkpoint, within a limit; one that fails is a warning in the log."""
        if self._copies:
            self._copies.finish()

    # Measuring and showing ------------------------------------------------------------------------------------------

    def held_out_loss(self) -> float | None:
        """Return the mean loss on sequences that are never trained on, or None while there are none."""
        return self._held_out.loss(self.model)

    def draw_pictures(self) -> Pictures | None:
        """Return pictures of truth, reconstruction and open-loop prediction, or None while there is no sequence."""
        return self._held_out.draw(self.model, self.updates)
