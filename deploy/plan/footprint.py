"""The footprint: bytes of a step, a batch, the weights, a checkpoint and a training step, worked out before a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.experience.steps import BLOCK_STEPS, CHUNK_STEPS, StepFormat
from dreamfleet.common.settings.schema import Settings

PIECE_BYTES = 6 * 8
"""A row of `CompressedBatch.slices`, one for each chunk that a sequence touches."""
BLOCK_BYTES = 5 * 8
"""A row of `CompressedBatch.blocks`, one for each stored block that travels."""
INDEX_BYTES_PER_CHUNK = 250
"""What the replay's index takes for a chunk, about: a row, a dict's entry, and room to grow."""
BATCHES_HELD = 2
"""Batches in the learner's memory beside those that are prefetched: the one trained on and the one being unpacked."""
TEMPORARY = 1.3
"""Peak of a training step beside what backward needs: gradients and temporary results, by a third (an estimate)."""
CUDA_CONTEXT_BYTES = 600e6
"""What CUDA and its libraries take of a GPU before the first tensor (an estimate)."""


@dataclass(frozen=True)
class Footprint:
    """Sizes in bytes.

    Attributes:
        raw_step: one step before compression.
        stored_step: one step as it travels from an actor and lies on the disk, with its share of the record's header.
        chunk_steps: mean steps of a chunk.
        batch_packed: a batch as it travels from the replay to the learner, compressed, in blocks of 16 steps.
        batch_raw: a batch decompressed.
        weights: what acting needs, as it is published.
        checkpoint: parameters and Adam's two moments.
        parameters: how many are trained.
        activations: what backward keeps of a batch, in float32 (see `model_sizes`).
    """

    raw_step: int
    stored_step: float
    chunk_steps: float
    batch_packed: float
    batch_raw: int
    weights: int
    checkpoint: int
    parameters: int
    activations: int

    @property
    def training(self) -> float:
        """An estimate of what training takes: parameters, gradients, Adam's two moments, and a batch's activations."""
        return training_bytes({"parameters": self.parameters, "activations": self.activations})

    def host_batches(self, settings: Settings) -> float:
        """Bytes of the decompressed batches in the learner's memory."""
        return (settings.learner.prefetch + BATCHES_HELD) * self.batch_raw

    def index(self, settings: Settings) -> float:
        """Bytes of the index of a full replay, over all its shards."""
        by_bytes = settings.replay.capacity_gb * 1e9 / self.stored_step
        return min(by_bytes, settings.replay.capacity_steps) / self.chunk_steps * INDEX_BYTES_PER_CHUNK

    def object_store(self, settings: Settings, actors: int) -> float:
        """Bytes in the object store of the learner's node at most: batches, chunks under way, two sets of weights."""
        from dreamfleet.replay.ray_replay import IN_FLIGHT

        batches = (settings.learner.prefetch + 1) * self.batch_packed
        chunks = actors * IN_FLIGHT * self.chunk_steps * self.stored_step
        return batches + chunks + 2 * self.weights

    def disk(self, settings: Settings) -> float:
        """Bytes that a run's directory may come to: the replay's budget and the checkpoints.

        The replay never takes more than all steps of the run would take without compression.
        """
        replay = min(settings.replay.capacity_gb * 1e9, 1.01 * settings.train.env_steps * self.raw_step)
        kept = settings.records.checkpoints_kept + 2  # the best beside the newest, and the one being written
        return replay + kept * self.checkpoint


def footprint_of(settings: Settings, spaces: Spaces, compression: float) -> Footprint:
    """Return the sizes for these settings and spaces.

    Args:
        settings: the run's.
        spaces: what its environment shows and takes.
        compression: raw bytes per stored byte of a step.

    Raises:
        UserError: if the model does not fit the spaces.
    """
    step_format = StepFormat(spaces)
    learner = settings.learner
    chunk_steps = mean_chunk_steps(settings.actors.steps_per_order)
    sequence = packed_sequence_bytes(step_format, learner.sequence_length, chunk_steps, compression)
    model = model_sizes(settings, spaces)
    return Footprint(
        raw_step=step_format.step_bytes,
        stored_step=step_format.step_bytes / compression,
        chunk_steps=chunk_steps,
        batch_packed=learner.batch_size * sequence,
        batch_raw=learner.batch_size * learner.sequence_length * step_format.step_bytes,
        weights=model["weights"],
        checkpoint=12 * model["parameters"],
        parameters=model["parameters"],
        activations=model["activations"],
    )


def mean_chunk_steps(steps_per_order: int) -> float:
    """Return the mean steps of a chunk: an order's steps are cut into chunks of 64 and a rest."""
    return steps_per_order / math.ceil(steps_per_order / CHUNK_STEPS)


def packed_sequence_bytes(step_format: StepFormat, length: int, chunk_steps: float, compression: float) -> float:
    """Return the mean bytes of a sequence as `CompressedBatch` carries it.

    A sequence of T steps that starts anywhere crosses (T - 1) / L borders of chunks of L steps, so it touches one chunk
    more than that, and 1 + (T - 1) / b blocks of b steps of each big field. Of each chunk it carries all small fields.
    Small and big fields are taken to be compressed alike.

    Args:
        step_format: the steps'.
        length: T.
        chunk_steps: L, mean steps of a chunk.
        compression: raw bytes per stored byte.
    """
    big = sum(field.step_bytes for field in step_format.big) / compression
    small = sum(field.step_bytes for field in step_format.small) / compression
    block_steps = chunk_steps / math.ceil(chunk_steps / BLOCK_STEPS)
    chunks = 1 + (length - 1) / chunk_steps
    blocks = 1 + (length - 1) / block_steps
    rows = chunks * (PIECE_BYTES + BLOCK_BYTES) + len(step_format.big) * blocks * BLOCK_BYTES
    return rows + chunks * chunk_steps * small + blocks * block_steps * big


def training_bytes(sizes: Mapping[str, int]) -> float:
    """Return an estimate of what training takes, from what `model_sizes` found."""
    return 16 * sizes["parameters"] + TEMPORARY * sizes["activations"]


def model_sizes(settings: Settings, spaces: Spaces) -> dict[str, int]:
    """Return the model's `parameters`, its published `weights` in bytes, and the `activations` of a batch in bytes.

    The model and a batch are made without memory (on torch's meta device) and the loss is computed on them: the
    activations are all that autograd keeps for backward, in float32. A GPU in bfloat16 takes less.

    Raises:
        UserError: if the model does not fit the spaces.
    """
    import torch

    from dreamfleet.common.model.world_model import WorldModel
    from dreamfleet.learner.world_model_loss import world_model_loss

    learner, kept = settings.learner, {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other can get its address
        return tensor

    with torch.device("meta"):
        model = WorldModel(spaces, settings.model)
        batch = {
            field.name: torch.empty(
                (learner.batch_size, learner.sequence_length, *field.shape), dtype=getattr(torch, field.dtype)
            )
            for field in StepFormat(spaces).fields
        }
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            world_model_loss(model, batch, settings.loss)
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    return {
        "parameters": model.parameter_count(),
        "weights": 4 * sum(tensor.numel() for tensor in model.acting_parameters().values()),
        "activations": sum(storage.nbytes() for address, storage in kept.items() if address not in own),
    }
