"""The learner: trains the agent on sequences from the replay, and publishes, saves and shows what it learnt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dreamfleet.common.acting.policy import PublishedWeights
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.seeds import derive_seed
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner import representation
from dreamfleet.learner.batches import TrainingBatches, to_device
from dreamfleet.learner.behaviour.networks import make_networks
from dreamfleet.learner.checkpoints.origin import Origin
from dreamfleet.learner.checkpoints.restore import check_spaces, load_networks
from dreamfleet.learner.hardware import TorchThreads, choose_hardware, usable_cores
from dreamfleet.learner.held_out import HeldOutSequences
from dreamfleet.learner.lane import HiddenWork, make_lane
from dreamfleet.learner.made_up_batch import made_up_batch
from dreamfleet.learner.optimiser import check_moments, load_moments
from dreamfleet.learner.pictures.comparison import Pictures
from dreamfleet.learner.publishing import WeightsPublisher
from dreamfleet.learner.ranks import ALONE, Ranks
from dreamfleet.learner.reports import Restored, TrainReport
from dreamfleet.learner.saving import RunCheckpoints, SavedCheckpoint
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.update_loop import UpdateLoop
from dreamfleet.learner.updater import Updater
from dreamfleet.replay.interface import ExperienceReplay

_LOG = logging.getLogger(__name__)


class Learner:
    """Trains a world model and, where the settings name one, an actor in what the model imagines, and an explorer.

    Nothing random is stored: the batch and the noise of an update follow from the run's seed and the update's number,
    so that a resumed run equals one that was not interrupted.

    Attributes:
        ranks: that share the batches, of which this is one; mostly it is alone.

    Args:
        run_directory: checkpoints lie in its folder `checkpoints`.
        prefetch: whether batches are fetched ahead, in threads, and what leaves a GPU does so beside the updates.
        busy_cores: cores of this machine that actors keep busy.
        join: where several ranks share the batches, returns them once the device is known (see `learner/ranks.py`).
        sharing: ranks on this machine, which share its cores.

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
        join: Callable[[torch.device], Ranks] = lambda _: ALONE,
        sharing: int = 1,
    ) -> None:
        self._settings = settings
        self._spaces = spaces
        self._run_directory = Path(run_directory)
        hardware = choose_hardware(settings.learner, busy_cores, set_to, sharing)
        self.decisions = list(hardware.decisions)
        self._device = hardware.device
        self.ranks = join(self._device)
        self.decisions += self.ranks.decisions(settings.learner.batch_size)
        torch.manual_seed(derive_seed(settings.seed, "model"))
        self._networks = make_networks(spaces, settings).to(self._device)
        self.agent = self._networks.agent
        self.model = self.agent.world_model
        self.decisions.append(f"model: {self.model.parameter_count():,} parameters")
        self.decisions += representation.describe(settings)
        self.decisions += self._networks.decisions
        self._updater = Updater(self._networks, settings, hardware, self.ranks)
        step_format = StepFormat(spaces)
        self._hidden = HiddenWork()
        lanes = [make_lane(self._device, self._hidden, prefetch) for _ in range(3)]
        self._batches = TrainingBatches(
            replay,
            step_format,
            settings.learner,
            prefetch,
            lanes[0],
            self._hidden,
            free_cores=(usable_cores() - busy_cores) // sharing,
            ranks=self.ranks,
        )
        self._publisher = WeightsPublisher(self.agent.acting_parameters, lanes[1])
        self._held_out = HeldOutSequences(replay, step_format, settings, hardware)
        self._lane = lanes[2]
        self._checkpoints = RunCheckpoints(
            self._run_directory / "checkpoints", settings.records, self._lane, self.ranks.is_first
        )
        self.decisions += self._checkpoints.decisions
        self._loop = UpdateLoop(
            self._updater, self._batches, self._lane, self._hidden, self.ranks, settings.seed, self._run_directory
        )

    @property
    def updates(self) -> int:
        """Updates made so far, by all incarnations of the run's learner."""
        return self._loop.updates

    # Training -------------------------------------------------------------------------------------------------------

    def train(self, updates: int) -> TrainReport:
        """Make a number of updates, or fewer once `finish_early` was called; publish the weights if that is due.

        Raises:
            NotFiniteLossError: before an update from a loss or gradient that is not finite; those before it are made.
        """
        stopwatch = Stopwatch()
        before = self.updates
        means = self._loop.run(updates, stopwatch)
        with stopwatch("publish"):
            if self._is_publication_due(self.updates - before):
                self._publisher.begin(self.updates)
            published, saved = self._publisher.take(), self._checkpoints.take()
        timings, hidden = dict(stopwatch.seconds), self._hidden.take()
        return TrainReport(self.updates, means, timings, published=published, hidden=hidden, saved=saved)

    def finish_early(self) -> None:
        """Make no further update after the one being made; may be called from another thread."""
        self._loop.finish_early()

    def _is_publication_due(self, made: int) -> bool:
        """Whether this rank is to publish: a version falls due within the updates just made, or there is none yet.

        Where all actions are random nobody acts with them; checkpoints publish theirs, which may be evaluated.
        """
        every = self._settings.learner.publish_every
        if not self.ranks.is_first:
            return False
        is_due = self._settings.acts_by_weights and self.updates // every > (self.updates - made) // every
        return is_due or not self._publisher.has_published

    # Publishing and saving ------------------------------------------------------------------------------------------

    def publish(self) -> PublishedWeights:
        """Publish the present weights of what acting needs; their version is the number of updates. Rank 0 does so."""
        if not self.ranks.is_first:
            return PublishedWeights(self.updates, None)
        return self._publisher.publish(self.updates)

    def save(self, facts: Mapping[str, Any]) -> SavedCheckpoint:
        """Write a checkpoint.

        Args:
            facts: plain data to keep beside it, such as the environment steps; `held_out_loss` is measured unless
                given.

        Raises:
            UserError: if it cannot be written; older ones are untouched.
        """
        saved = self._checkpoints.write(self.updates, self._state(), self._known(facts))
        return SavedCheckpoint(saved, self.publish())

    def start_saving(self, facts: Mapping[str, Any]) -> SavedCheckpoint | None:
        """Have a checkpoint of the present state written, with a GPU beside the updates that follow.

        Returns:
            It if it is written already; else None, and a later report or `finish_saving` has it.

        Raises:
            UserError: if it, or one that was begun before, cannot be written; older ones are untouched.
        """
        if not self._lane.is_beside:
            return self.save(facts)
        known = self._known(facts)
        try:
            self._checkpoints.begin(self.updates, self._state(), known, self._publisher.begin(self.updates))
        except torch.OutOfMemoryError:
            _LOG.info("the checkpoint is written between two updates: the GPU has no room for a copy of the state")
            return self.save(known)
        return None

    def finish_saving(self) -> list[SavedCheckpoint]:
        """Wait for the checkpoints that were begun, and return those that no report had.

        Raises:
            UserError: if one cannot be written; older ones are untouched.
        """
        self._checkpoints.wait()
        return self._checkpoints.take()

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, as it is now."""
        state: dict[str, Any] = {name: network.state_dict() for name, network in self._networks.saved.items()}
        state |= {"optimiser": self._updater.optimiser.state_dict(), "updates": self.updates}
        return state

    def _known(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return a checkpoint's facts; the held-out loss is measured unless it is among those given."""
        known = {"spaces": self._spaces.to_json(), "parameters": self.model.parameter_count(), **facts}
        if "held_out_loss" not in known:
            known["held_out_loss"] = self.held_out_loss()
        return known

    def record_evaluation(self, updates: int, found: Mapping[str, Any]) -> bool:
        """Add the results of an evaluation to the facts of a checkpoint; False if it is gone.

        Raises:
            UserError: if it cannot be written.
        """
        return self._checkpoints.record_evaluation(updates, found)

    def restore(self) -> Restored:
        """Continue from the newest checkpoint that is whole, if there is one, and publish the weights.

        Where there is none here but a copy at the settings' URL, that is fetched first. Rank 0 does so, and all ranks
        take its state, also at the beginning: they may be on machines that draw other parameters or see no checkpoint.

        Raises:
            UserError: if it is of another model or environment, or all checkpoints are damaged.
        """
        facts = self._load_checkpoint() if self.ranks.is_first else None
        if not self.ranks.is_alone:
            self._take(self.ranks.spread(self._state() if self.ranks.is_first else None))
        self.close()
        is_prepared = self._updater.mode == "eager"
        return Restored(self.updates, self.publish(), list(self.decisions), facts, is_prepared)

    def prepare(self) -> None:
        """Compile and capture updates, on a made-up batch, as the settings say; that takes a minute, and is logged."""
        own = self._settings.learner.batch_size // self.ranks.count
        batch = {name: value[:own] for name, value in made_up_batch(self._settings, self._spaces).items()}
        self._updater.prepare(to_device(batch, self._device))

    def _load_checkpoint(self) -> dict[str, Any] | None:
        found, fetched = self._checkpoints.load_newest(self._device)
        self.decisions += fetched
        if found is None:
            train = self._settings.train
            origin = Origin(train, self._spaces, self._device).load(self._networks) if train.from_run else ""
            self.decisions.append(origin or "start: from the beginning, there is no checkpoint")
            return None
        state, facts = found
        origin = f"The checkpoint of update {facts['updates']} in {self._checkpoints.directory}"
        check_spaces(facts, self._spaces, origin)
        check_moments(state["optimiser"], self._settings.learner.optimiser, origin)
        self._take(state, origin)
        self.decisions.append(f"start: from the checkpoint of update {self.updates}")
        return facts

    def _take(self, state: Mapping[str, Any], origin: str = "The state of rank 0") -> None:
        load_networks(state, self._networks, origin)
        load_moments(self._updater.optimiser, state["optimiser"])
        self._loop.updates = int(state["updates"])

    def close(self) -> None:
        """End the threads that fetch ahead; training may continue afterwards, with new ones."""
        self._batches.close()

    def finish(self) -> None:
        """Wait for the last checkpoint, and for its copy, within a limit; one that fails is a warning in the log."""
        self._checkpoints.finish()

    # Measuring and showing ------------------------------------------------------------------------------------------

    def held_out_loss(self) -> float | None:
        """Return the mean loss on sequences that are never trained on, or None while there are none."""
        return self._held_out.loss(self.model)

    def draw_pictures(self) -> Pictures | None:
        """Return pictures of truth, reconstruction and open-loop prediction, or None while there is no sequence."""
        return self._held_out.draw(self.model, self.updates)
