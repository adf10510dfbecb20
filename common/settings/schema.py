"""All settings: their types, defaults and meanings. `--help` shows the text under each one."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dreamfleet.common.errors import shown
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.settings.model import BehaviourSettings, LossSettings, ModelSettings, Section


class ActorSettings(Section):
    """The processes that collect experience."""

    count: int | Literal["auto"] = 2
    """Actor processes; `auto`: as many as the cluster has room for, following it as it grows and shrinks."""
    cpus: float = Field(1.0, gt=0)
    """Logical CPUs that an actor reserves on its node of a cluster; on one machine the actors share all of them."""
    environments: int = Field(1, ge=1)
    """Environments per actor, stepped as a batch."""
    inference: Literal["local", "central"] = "local"
    """Where a learned policy or the planner acts: in each actor's process, or for all actors in one process beside the
    learner, on its GPU if there is one. `dreamfleet plan` says which to take; inline runs always act locally."""
    steps_per_order: int = Field(64, ge=1, le=4096)
    """Steps of each environment in one order to an actor."""
    hold_min: int = Field(1, ge=1)
    """A random action is held for at least this many environment steps."""
    hold_max: int = Field(1, ge=1)
    """A random action is held for at most this many environment steps."""
    action_weights: tuple[float, ...] = ()
    """Relative frequencies of a discrete action's options in random actions; `[]`: all equal."""
    order_timeout_s: float = Field(300.0, gt=0)
    """Seconds after which an actor that has not completed an order is replaced; the start of its process, before, may
    take a minute."""
    give_up_after_s: float = Field(600.0, gt=0)
    """Seconds of failures without a step in between after which an actor, or another process, is given up. Actors and
    evaluator are tried again after as long a time; without any actor, learner or central inference the run ends."""

    @field_validator("count", mode="before")
    @classmethod
    def _count_or_auto(cls, count: Any) -> Any:
        if count != "auto" and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"actors.count is {shown(count)}, but must be a whole number of at least 1, or auto")
        return count

    @model_validator(mode="after")
    def _hold_in_order(self) -> ActorSettings:
        if self.hold_min > self.hold_max:
            raise ValueError(f"hold_min {self.hold_min} is greater than hold_max {self.hold_max}")
        if self.action_weights and (min(self.action_weights) < 0 or not sum(self.action_weights)):
            weights = list(self.action_weights)
            raise ValueError(f"actors.action_weights {weights} has a negative frequency, or nothing but 0")
        return self


class ReplaySettings(Section):
    """How experience is stored and sampled."""

    capacity_gb: float = Field(4.0, gt=0)
    """Maximum gigabytes (1e9 bytes) on disk; the oldest experience is dropped first."""
    capacity_steps: int = Field(1_000_000, ge=1000)
    """Maximum environment steps kept; the oldest are dropped first."""
    across_episodes: bool = True
    """Whether a sequence may continue into the next episode, marked by `is_first`; if false it stays within one."""
    shards: int = Field(1, ge=1, le=64)
    """Replay processes, each with its own directory and part of the experience; actors are distributed over them."""
    recent_fraction: float = Field(0.0, ge=0, le=1)
    """Share of sequences drawn from the newest steps only; the others are uniform over all."""
    recent_steps: int = Field(10_000, ge=1)
    """Number of newest steps that `recent_fraction` draws from."""
    cache_gb: float | Literal["auto"] = "auto"
    """Gigabytes of memory (1e9 bytes) for the newest steps, decoded, where the learner reads them without a copy on the
    way; taken as they fill. `auto`: a quarter of the memory that is free at the start, and no more than all steps need;
    0: none, each batch is decompressed anew."""
    held_out_every: int = Field(10, ge=0)
    """One in this many runs of 128 steps of each stream is held out from training (2 or more); 0: none."""

    @field_validator("cache_gb", mode="before")
    @classmethod
    def _gigabytes_or_auto(cls, size: Any) -> Any:
        is_number = isinstance(size, int | float) and not isinstance(size, bool)
        if size != "auto" and not (is_number and 0 <= size < math.inf):
            raise ValueError(f"replay.cache_gb is {shown(size)}, but must be a number of at least 0, or auto")
        return size

    @field_validator("held_out_every")
    @classmethod
    def _something_left_to_train_on(cls, every: int) -> int:
        if every == 1:
            raise ValueError(
                "replay.held_out_every 1 would keep every step from training: 0 keeps none back, 2 or more some"
            )
        return every


class LearnerSettings(Section):
    """The process that trains."""

    batch_size: int = Field(50, ge=1)
    """Sequences per update, of all ranks together."""
    sequence_length: int = Field(50, ge=2)
    """Steps per sequence."""
    optimiser: Literal["adam", "tensorflow_adam", "laprop"] = "adam"
    """Adam, Adam with TensorFlow's epsilon (which is larger at first), or V3's LaProp."""
    learning_rate: float = Field(1e-3, gt=0)
    """The optimiser's learning rate."""
    warm_up: int = Field(0, ge=0)
    """Updates over which the learning rate rises linearly from 0; 0: none."""
    epsilon: float = Field(1e-8, gt=0)
    """The optimiser's epsilon."""
    weight_decay: float = Field(0.0, ge=0, lt=1)
    """Share by which every parameter shrinks at each update, independent of the learning rate."""
    clipping: Literal["global", "adaptive"] = "global"
    """Clip gradients by their global norm, or each tensor relative to the norm of its weights."""
    clip: float = Field(1000.0, gt=0)
    """Maximum global norm of the gradients; with `adaptive`, of each tensor's, relative to its weights' norm."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` uses a GPU if there is one."""
    gpus: int | Literal["auto"] = 1
    """GPUs to train on: each has a rank, a process with its part of every batch; `auto`: all of the learner's node that
    divide `batch_size`. With `device` cpu, processes on CPUs. One process without Ray is one rank."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of forward and backward; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    compile: Literal["auto", "off", "on"] = "auto"
    """Whether torch compiles the updates' steps and, on a GPU, captures a whole update as one graph; `auto`: on a GPU,
    if the first update is the eager one to rounding; `on`: on a CPU too, and if it is not."""
    threads: int = Field(0, ge=0)
    """CPU threads of the learner, of each rank; 0 uses OMP_NUM_THREADS (but on a cluster, where Ray sets it), or else
    the cores that the actors leave free, at least 1; with a GPU at most 4 of them; ranks on one machine share them."""
    prefetch: int = Field(2, ge=1, le=16)
    """Batches fetched in advance, at least one for each thread that fetches."""
    prefetch_threads: int = Field(0, ge=0, le=16)
    """Threads that fetch batches; 0: two, and up to 8 on cores that are free, if updates are made faster than two
    fetch."""
    updates_per_order: int = Field(8, ge=1)
    """Updates in one order to the learner."""
    publish_every: int = Field(16, ge=1)
    """Updates between two published versions of the weights."""
    order_timeout_s: float = Field(1800.0, gt=0)
    """Seconds after which a learner that has not completed an order is replaced, from the last checkpoint; an
    evaluation may take this long per episode."""

    @field_validator("compile", mode="before")
    @classmethod
    def _on_is_true_in_yaml(cls, asked: Any) -> Any:
        """YAML reads `on` and `off` as booleans, which is also what older runs have in their config.yaml."""
        return {True: "on", False: "off"}[asked] if isinstance(asked, bool) else asked

    @field_validator("gpus", mode="before")
    @classmethod
    def _gpus_or_auto(cls, gpus: Any) -> Any:
        if gpus != "auto" and (isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 1):
            raise ValueError(f"learner.gpus is {shown(gpus)}, but must be a whole number of at least 1, or auto")
        return gpus

    @model_validator(mode="after")
    def _batch_divides(self) -> LearnerSettings:
        if self.gpus != "auto" and self.batch_size % self.gpus:
            below = self.batch_size - self.batch_size % self.gpus
            sizes = " or ".join(str(size) for size in (below, below + self.gpus) if size)
            raise ValueError(
                f"learner.batch_size {self.batch_size} cannot be divided among learner.gpus {self.gpus} ranks: "
                f"take {sizes}, or {self.most_ranks(self.gpus)} of them"
            )
        return self

    def most_ranks(self, gpus: int) -> int:
        """Return how many of so many GPUs can share a batch evenly, at least 1."""
        return max(ranks for ranks in range(1, max(gpus, 1) + 1) if self.batch_size % ranks == 0)

    @property
    def takes_all_gpus(self) -> bool:
        """Whether the learner takes as many GPUs as there are and can share a batch evenly."""
        return self.gpus == "auto" and self.device != "cpu"

    @property
    def ranks(self) -> int:
        """The ranks asked for; 1 for `auto`, of which it is not known before there is a node."""
        return 1 if self.gpus == "auto" else self.gpus

    @property
    def cpu_ranks(self) -> int:
        """The ranks that take a CPU each: all where no GPU is wanted, else the one that there is without a GPU."""
        return self.ranks if self.device == "cpu" else 1


class TrainSettings(Section):
    """How long to train, and how many updates per collected step."""

    env_steps: int = Field(1_000_000, ge=1)
    """Environment steps to collect in total."""
    ratio: float = Field(32.0, gt=0)
    """Train ratio: replayed steps (batch size × sequence length per update) per environment step after the prefill."""
    prefill: int = Field(5000, ge=0)
    """Environment steps collected before training begins."""
    dataset: str = ""
    """Directory of a dataset from `dreamfleet collect`: train only on it, without environments (`--dataset DIR`)."""
    from_run: str = ""
    """Run whose model and actor this one begins with (`--from RUN`). Steps, updates and experience are its own, and the
    policy acts from the first step, also in the prefill."""
    from_checkpoint: int | Literal["newest", "best"] = "newest"
    """The checkpoint of `from_run`: `newest`, `best`, or its number of updates, which a run's config.yaml has."""


class RecordSettings(Section):
    """Checkpoints, logs and pictures."""

    log_every_s: float = Field(10.0, gt=0)
    """Seconds between two rows of metrics and, without a terminal, status lines."""
    checkpoint_every: int = Field(1000, ge=1)
    """Updates between two checkpoints."""
    checkpoints_kept: int = Field(3, ge=1)
    """Number of newest checkpoints kept, in addition to the best."""
    checkpoint_url: str = ""
    """Where to copy each checkpoint, an fsspec URL such as `s3://bucket/run`; nowhere if empty."""
    picture_every: int = Field(1000, ge=1)
    """Updates between two pictures of truth, reconstruction and prediction."""
    picture_context: int = Field(5, ge=1)
    """Steps that the model sees before it predicts from the actions alone."""
    picture_steps: int = Field(50, ge=2)
    """Steps in a picture's sequence, including those seen."""
    evaluate_every: int = Field(0, ge=0)
    """Environment steps between two evaluations, on a separate actor and without exploration; 0: none."""
    evaluation_episodes: int = Field(5, ge=1)
    """Episodes per evaluation, always with the same seeds."""
    evaluation_steps: int = Field(10_000, ge=1)
    """Environment steps after which an episode of an evaluation is cut."""


class Settings(Section):
    """All settings of a run."""

    seed: int = Field(0, ge=0)
    """Seed from which every random number of the run is derived."""
    env: EnvironmentSettings = EnvironmentSettings()
    actors: ActorSettings = ActorSettings()
    replay: ReplaySettings = ReplaySettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    behaviour: BehaviourSettings = BehaviourSettings()
    learner: LearnerSettings = LearnerSettings()
    train: TrainSettings = TrainSettings()
    records: RecordSettings = RecordSettings()

    @property
    def acts_by_weights(self) -> bool:
        """Whether published weights choose actions; else all are random."""
        return self.behaviour.kind != "random"

    @property
    def acts_centrally(self) -> bool:
        """Whether one process is to act for all actors; those that act by chance need none, and a dataset no actors."""
        return self.actors.inference == "central" and self.acts_by_weights and not self.train.dataset

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        if self.records.picture_context >= self.records.picture_steps:
            raise ValueError(
                f"records.picture_context {self.records.picture_context} leaves nothing to predict of "
                f"records.picture_steps {self.records.picture_steps}"
            )
        needed = 2 * self.learner.batch_size * self.learner.sequence_length
        if self.replay.capacity_steps < needed:
            raise ValueError(
                f"replay.capacity_steps {self.replay.capacity_steps} is less than two batches "
                f"(2 × learner.batch_size × learner.sequence_length = {needed})"
            )
        if self.train.prefill > self.train.env_steps:
            raise ValueError(
                f"train.prefill {self.train.prefill} is more than train.env_steps {self.train.env_steps}: "
                "training would never begin"
            )
        return self

    @model_validator(mode="after")
    def _pictures_fit_the_encoder(self) -> Settings:
        size = self.env.image_size  # 0: the size of the environment's pictures, which is not known yet
        if self.model.encoder == "planet" and size not in (0, 64):
            raise ValueError(
                f"model.encoder planet needs pictures of 64×64, but env.image_size is {size}: "
                "take 64, or model.encoder strided"
            )
        if self.model.encoder != "planet" and size % 16:
            raise ValueError(
                f"model.encoder {self.model.encoder} needs sides divisible by 16, but env.image_size is {size}"
            )
        return self

    @model_validator(mode="after")
    def _sequences_fit_into_episodes(self) -> Settings:
        limit, length = self.env.time_limit, self.learner.sequence_length
        if not self.replay.across_episodes and 0 < limit < length - 1:
            raise ValueError(
                f"replay.across_episodes false with env.time_limit {limit} leaves no room for a sequence: "
                f"an episode has at most {limit + 1} steps, learner.sequence_length is {length}"
            )
        return self
