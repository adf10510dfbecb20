"""The footprint: bytes of a step, a batch, the weights, a checkpoint and a training step, worked out before a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import BLOCK_STEPS, CHUNK_STEPS, StepFormat
from dreamfleet.common.settings.schema import Settings
from dreamfleet.replay.compressed_batch import BLOCK_COLUMNS, SLICE_COLUMNS
from dreamfleet.replay.decoded_cache import AUTO_SHARE, most_rows

INDEX_BYTES_PER_CHUNK = 250
"""What the replay's index takes for a chunk, about: a row, a dict's entry, and room to grow."""
BATCHES_HELD = 2
"""Batches in the learner's memory beside the prefetched ones: the one trained on and the one before it."""
TEMPORARY = 1.3
"""Peak of a training step, as a multiple of what backward needs: gradients and temporary results (an estimate)."""


@dataclass(frozen=True)
class ModelSizes:
    """The number of trained parameters, and in bytes the published weights and what backward keeps of a batch.

    `fixed` are parameters that are not trained: the slow critic's.
    """

    parameters: int
    weights: int
    activations: int
    fixed: int = 0

    @property
    def checkpoint(self) -> int:
        """Bytes of parameters and Adam's two moments."""
        return 12 * self.parameters + 4 * self.fixed

    def training(self, ranks: int = 1) -> float:
        """Return an estimate of a rank's bytes: parameters, gradients, two moments, activations of its part."""
        return 16 * self.parameters + 4 * self.fixed + TEMPORARY * self.activations / ranks

    def reduced(self, ranks: int) -> float:
        """Return the bytes that a rank sends for an update's gradients, in a ring: 2·(N − 1)/N of all of them."""
        return 4 * self.parameters * 2 * (ranks - 1) / ranks


@dataclass(frozen=True)
class Footprint:
    """Sizes of a run in bytes, and the mean steps of a chunk.

    `stored_step` is a step as it travels from an actor and lies on the disk, `compressed_batch` a batch as it travels
    from the replay to the learner; the raw sizes are without compression.
    """

    raw_step: int
    stored_step: float
    chunk_steps: float
    compressed_batch: float
    raw_batch: int
    model: ModelSizes

    def learner_batches(self, settings: Settings) -> float:
        """Bytes of the decompressed batches in the learner's memory."""
        return (batches_ahead(settings) + BATCHES_HELD) * self.raw_batch

    def index(self, settings: Settings) -> float:
        """Bytes of the index of a full replay, over all its shards."""
        by_bytes = settings.replay.capacity_gb * 1e9 / self.stored_step
        return min(by_bytes, settings.replay.capacity_steps) / self.chunk_steps * INDEX_BYTES_PER_CHUNK

    def cache(self, settings: Settings, free: float = math.inf) -> float:
        """Bytes of the steps that the replay keeps decoded, at most; `free` is what the machine has free."""
        steps = min(settings.train.env_steps, most_rows(settings.replay.capacity_steps))
        wanted = settings.replay.cache_gb
        allowed = AUTO_SHARE * free if wanted == "auto" else 1e9 * wanted
        return min(allowed, steps * self.raw_step)

    def decoded_share(self, settings: Settings) -> float:
        """The share of the replay's steps that it keeps decoded once it is full; `auto` is taken to find the memory."""
        steps = min(settings.train.env_steps, settings.replay.capacity_steps)
        return min(1.0, self.cache(settings) / (steps * self.raw_step))

    def in_flight(self, actors: int) -> float:
        """Bytes of two versions of the weights, and of what the actors have sent and the replay not yet stored."""
        from dreamfleet.replay.ray_replay import IN_FLIGHT

        return 2 * self.model.weights + actors * IN_FLIGHT * self.chunk_steps * self.stored_step

    def object_store(self, settings: Settings, actors: int) -> float:
        """Bytes in the object store of the learner's node at most: prefetched batches, and what is in flight."""
        return (batches_ahead(settings) + 1) * self.compressed_batch + self.in_flight(actors)

    def inference(self, settings: Settings, actors: int) -> float:
        """Bytes of the process that acts for all actors: two versions of the weights, and what it acts on.

        That is a state and an observation of each environment, and with a planner a state of each candidate.
        """
        model, behaviour = settings.model, settings.behaviour
        z = model.stochastic * (model.classes if model.latent == "categorical" else 1)
        state = 4 * (model.deterministic * model.gru_layers + z)
        futures = behaviour.candidates if behaviour.kind == "planner" else 1
        return 2 * self.model.weights + actors * settings.actors.environments * (futures * state + 4 * self.raw_step)

    def disk(self, settings: Settings) -> float:
        """Bytes of a run's directory at most: the replay's budget and the checkpoints.

        The replay never takes more than all steps of the run would take without compression.
        """
        replay = min(settings.replay.capacity_gb * 1e9, 1.01 * settings.train.env_steps * self.raw_step)
        kept = settings.records.checkpoints_kept + 2  # the best beside the newest, and the one being written
        return replay + kept * self.model.checkpoint


def batches_ahead(settings: Settings) -> int:
    """Return how many batches are fetched ahead; threads that are added by measured rates hold one each beyond that."""
    return max(settings.learner.prefetch, settings.learner.prefetch_threads)


def footprint_of(settings: Settings, spaces: Spaces, compression: float) -> Footprint:
    """Return the sizes for these settings and spaces; `compression` is raw bytes per stored byte of a step.

    Raises:
        UserError: if the model does not fit the spaces.
    """
    step_format, learner = StepFormat(spaces), settings.learner
    chunk_steps = mean_chunk_steps(settings.actors.steps_per_order)
    sequence = compressed_sequence_bytes(step_format, learner.sequence_length, chunk_steps, compression)
    return Footprint(
        raw_step=step_format.step_bytes,
        stored_step=step_format.step_bytes / compression,
        chunk_steps=chunk_steps,
        compressed_batch=learner.batch_size * sequence,
        raw_batch=learner.batch_size * learner.sequence_length * step_format.step_bytes,
        model=model_sizes(settings, spaces),
    )


def mean_chunk_steps(steps_per_order: int) -> float:
    """Return the mean steps of a chunk: an order's steps are cut into chunks of 64 and a rest."""
    return steps_per_order / math.ceil(steps_per_order / CHUNK_STEPS)


def compressed_sequence_bytes(step_format: StepFormat, length: int, chunk_steps: float, compression: float) -> float:
    """Return the mean bytes of a sequence in a compressed batch.

    A sequence of T steps that starts anywhere crosses (T - 1) / L borders of chunks of L steps, so it touches one chunk
    more than that, and 1 + (T - 1) / b blocks of b steps of each big field. Of each chunk it carries all small fields.
    Small and big fields are taken to be compressed alike.
    """
    big = sum(field.step_bytes for field in step_format.big) / compression
    small = sum(field.step_bytes for field in step_format.small) / compression
    block_steps = chunk_steps / math.ceil(chunk_steps / BLOCK_STEPS)
    chunks = 1 + (length - 1) / chunk_steps
    blocks = 1 + (length - 1) / block_steps
    numbers = chunks * (SLICE_COLUMNS + BLOCK_COLUMNS) + len(step_format.big) * blocks * BLOCK_COLUMNS
    return 8 * numbers + chunks * chunk_steps * small + blocks * block_steps * big


def model_sizes(settings: Settings, spaces: Spaces) -> ModelSizes:
    """Return the sizes of the world model and, if an actor learns, of actor and critic.

    Networks and a batch are made without memory (on torch's meta device) and the losses are computed on them: the
    activations are all that autograd keeps for backward, in float32. A GPU in bfloat16 takes less.

    Raises:
        UserError: if the model does not fit the spaces.
    """
    import torch

    from dreamfleet.learner.behaviour.imagination import imagine
    from dreamfleet.learner.behaviour.networks import make_networks
    from dreamfleet.learner.made_up_batch import made_up_batch
    from dreamfleet.learner.world_model_loss import world_model_loss

    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        # torch has no public identity of a storage that holds no memory; without this one plan fails at once.
        kept[storage._cdata] = storage  # held, so that no other can get its address
        return tensor

    with torch.device("meta"):
        networks = make_networks(spaces, settings)
        agent, actor_critic, exploration = networks
        batch = made_up_batch(settings, spaces)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            rollout = world_model_loss(agent.world_model, batch, settings.loss).rollout
            states = rollout.states
            if actor_critic is not None:
                imagined = imagine(agent, states, settings.behaviour.horizon, actor_critic.through_model)
                actor_critic.losses(agent, imagined, states, batch)
            if exploration is not None:
                through_model, horizon = exploration.actor_critic.through_model, settings.behaviour.horizon
                explored = imagine(agent, states, horizon, through_model, explores=True)
                exploration.losses(agent, explored, states, rollout.posterior.mean.detach(), batch)
    learnt = networks.all.values()
    parameters = {id(parameter): parameter for network in learnt for parameter in network.parameters()}.values()
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    return ModelSizes(
        parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        fixed=sum(parameter.numel() for parameter in parameters if not parameter.requires_grad),
        weights=4 * sum(tensor.numel() for tensor in agent.acting_parameters().values()),
        activations=sum(storage.nbytes() for address, storage in kept.items() if address not in own),
    )
