"""All settings: their types, defaults and meanings. `--help` shows the text under each one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dreamfleet.common.settings.model import BehaviourSettings, LossSettings, ModelSettings, Section


class EnvironmentSettings(Section):
    """The environment and its wrappers."""

    id: str = "CarRacing-v3"
    """A Gymnasium id, also `module:Id-v0` as in gymnasium.make, or your own `module:function` that returns a Gymnasium
    environment."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the environment, such as `{continuous: false}`; another env.id drops them, unless it has the same
    namespace, such as `ALE/`."""
    wrappers: tuple[str | dict[str, dict[str, Any]], ...] = ()
    """Wrappers around the bare environment, Gymnasium's or your own, the first innermost:
    `[gymnasium.wrappers:FlattenObservation, {my_module:MyWrapper: {size: 3}}]`; dropped like env.kwargs."""
    action_repeat: int = Field(1, ge=1)
    """Simulator steps per environment step; their rewards are summed."""
    image_size: int = Field(64, ge=0)
    """Height and width to which pictures are resized (area interpolation); 0 keeps their size."""
    grey: bool = False
    """Whether pictures are converted to grey."""
    pictures: tuple[str, ...] = ()
    """Observations to treat as pictures, if that is ambiguous: a name, or a list such as `[image]` (the name of an
    observation that is not a Dict). Channels may come first; values are scaled from their declared bounds to 0-255."""
    vectors: tuple[str, ...] = ()
    """Observations to treat as plain numbers, flattened: a matrix, a grid, or a choice that would become a one-hot."""
    one_hot: tuple[str, ...] = ()
    """Observations of whole numbers, such as a board, of which each number becomes a one-hot; flattened."""
    observe: Literal["own", "rendered", "both"] = "own"
    """What the model sees: the environment's own observations, the picture it renders instead, or both."""
    time_limit: int = Field(0, ge=0)
    """Environment steps after which an episode is truncated; 0: the environment decides."""
    noop_max: int = Field(0, ge=0)
    """Episodes begin with a random number of no-op simulator steps, at most this many."""

    @field_validator("pictures", "vectors", "one_hot", mode="before")
    @classmethod
    def _names(cls, names: Any) -> Any:
        """Accept a single name for a list, and whole numbers for names: parts of a Tuple are called 0, 1 and so on."""
        names = list(names) if isinstance(names, list | tuple) else [names]
        return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in names]

    @model_validator(mode="after")
    def _named_once(self) -> EnvironmentSettings:
        named = [*self.pictures, *self.vectors, *self.one_hot]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"'{twice}' is named twice in env.pictures, env.vectors and env.one_hot, and can be one alone"
            )
        return self

    @field_validator("wrappers", mode="before")
    @classmethod
    def _names_of_wrappers(cls, wrappers: Any) -> Any:
        """Accept a single name for a list, and refuse anything else that is not a name."""
        wrappers = [wrappers] if isinstance(wrappers, str) else wrappers
        for wrapper in wrappers if isinstance(wrappers, list | tuple) else [None]:
            name, arguments = next(iter(wrapper.items())) if isinstance(wrapper, dict) and wrapper else (wrapper, {})
            is_named = isinstance(name, str) and all(name.partition(":")) and ":" not in name.partition(":")[2]
            if not is_named or not isinstance(arguments, dict) or (isinstance(wrapper, dict) and len(wrapper) > 1):
                wrong = wrappers if wrapper is None else wrapper
                raise ValueError(
                    f"env.wrappers holds {wrong!r}, but must be a list of names and of names with arguments, such as "
                    "[module:Class, {module:Class: {name: value}}]"
                )
        return wrappers

    @property
    def named_wrappers(self) -> list[tuple[str, dict[str, Any]]]:
        """The wrappers' names, each with its arguments."""
        return [item for one in self.wrappers for item in ({one: {}} if isinstance(one, str) else one).items()]


class ActorSettings(Section):
    """The processes that collect experience."""

    count: int | Literal["auto"] = 2
    """Actor processes; `auto`: as many as the cluster has room for, following it as it grows and shrinks."""
    cpus: float = Field(1.0, gt=0)
    """Logical CPUs that an actor reserves on its node of a cluster; on one machine the actors share all of them."""
    environments: int = Field(1, ge=1)
    """Environments per actor, stepped as a batch."""
    steps_per_order: int = Field(64, ge=1, le=4096)
    """Steps of each environment in one order to an actor."""
    hold_min: int = Field(1, ge=1)
    """A random action is held for at least this many environment steps."""
    hold_max: int = Field(1, ge=1)
    """A random action is held for at most this many environment steps."""
    action_weights: tuple[float, ...] = ()
    """Relative frequencies of a discrete action's options in random actions; `[]`: all equal."""
    order_timeout_s: float = Field(300.0, gt=0)
    """Seconds after which an actor that has not completed an order is replaced; its start has a minute more."""

    @field_validator("count", mode="before")
    @classmethod
    def _count_or_auto(cls, count: Any) -> Any:
        if count != "auto" and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"actors.count is {count!r}, but must be a whole number of at least 1, or auto")
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
    held_out_every: int = Field(10, ge=0)
    """One in this many runs of 128 steps of each stream is held out from training (2 or more); 0: none."""

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
    """Sequences per update."""
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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of forward and backward; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    compile: bool = False
    """Whether torch compiles the updates, which takes minutes at the start; meant for a GPU."""
    threads: int = Field(0, ge=0)
    """CPU threads of the learner; 0 uses OMP_NUM_THREADS (except on a cluster, where Ray sets it), or else the cores
    that the actors leave free, at least 1; with a GPU all cores."""
    prefetch: int = Field(2, ge=1, le=16)
    """Batches fetched in advance."""
    updates_per_order: int = Field(8, ge=1)
    """Updates in one order to the learner."""
    publish_every: int = Field(16, ge=1)
    """Updates between two published versions of the weights."""
    order_timeout_s: float = Field(1800.0, gt=0)
    """Seconds after which a learner that has not completed an order is replaced, from the last checkpoint; an
    evaluation may take this long per episode."""


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
