"""Settings of the world model, its loss and the behaviour; and `Section`, the base of all settings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticKnownError


class Section(BaseModel):
    """Frozen; unknown names are refused; the text under a field is its description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for numbers: pydantic would take them for 1 and 0."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float):
            raise PydanticKnownError("int_type" if kind is int else "float_type")
        return value


class ModelSettings(Section):
    """The world model: its parts and their sizes."""

    encoder: Literal["strided", "planet", "dreamer"] = "planet"
    """Convolutions for pictures: `strided` (3×3, the article's), `planet` (4×4, 64×64 only; V1, V2), `dreamer` (V3)."""
    depth: int = Field(32, ge=1)
    """The convolutions have 1, 2, 4 and 8 times this many channels; with `dreamer` 2, 3, 4 and 4 times."""
    convolution_activation: Literal["relu", "elu", "silu"] = "relu"
    """Activation of the convolutions of `planet` and `dreamer`; `strided` uses ReLU."""
    batch_norm: bool = False
    """Batch norm after the convolutions (`strided` only)."""
    image_input: Literal["unit", "centred", "five_bit"] = "centred"
    """How bytes are normalised: x/255, x/255 - 0.5, or PlaNet's 5 bits with noise."""
    embedding: int = Field(1024, ge=1)
    """Width to which the encoder's output is projected (`strided` only; the others do not project)."""
    vector_units: int = Field(256, ge=1)
    """Width of the encoder and decoder of vectors; `dreamer` decodes pictures from z through twice this width."""
    vector_layers: int = Field(2, ge=1)
    """Layers of the encoder and decoder of vector observations."""
    vector_symlog: bool = False
    """Whether vectors are encoded and predicted as symlog(x)."""
    recurrence: Literal["gru", "norm_gru", "block_gru"] = "gru"
    """The recurrence of h: GRU cells, V2's cell with layer norm, or V3's cell of blocks."""
    deterministic: int = Field(200, ge=1)
    """Width of the deterministic state h."""
    gru_layers: int = Field(1, ge=1)
    """Stacked GRU cells (`block_gru`: 1)."""
    blocks: int = Field(8, ge=1)
    """Blocks of `block_gru` and of `dreamer`'s decoder; must divide the deterministic state and 4 times the depth."""
    latent: Literal["gaussian", "categorical"] = "gaussian"
    """The kind of the stochastic state z: Gaussian numbers or one-hots."""
    stochastic: int = Field(30, ge=1)
    """Dimensions of a Gaussian z, or variables of a categorical one."""
    classes: int = Field(32, ge=2)
    """Classes of each variable of a categorical z."""
    unimix: float = Field(0.01, ge=0, lt=1)
    """Share of uniform probability mixed into a categorical z."""
    hidden: int = Field(200, ge=1)
    """Width of the hidden layers of transition, prior and posterior."""
    prior_layers: int = Field(1, ge=1)
    """Hidden layers of the prior; the posterior has one."""
    prior_sees_action: bool = False
    """Whether the prior's hidden layer reads [h, a], as in the preset article, or only h, as in PlaNet."""
    std: Literal["softplus", "log_variance"] = "softplus"
    """Deviation of a Gaussian state: `softplus(x) + min_std`, or `exp(x / 2)`, at least min_std."""
    min_std: float = Field(0.1, gt=0)
    """Minimum deviation of a Gaussian state."""
    activation: Literal["relu", "elu", "silu"] = "relu"
    """Activation of the dense layers."""
    norm: Literal["none", "layer", "rms"] = "none"
    """Norm before each activation, of the dense layers and of `dreamer`'s convolutions."""
    initialisation: Literal["uniform", "truncated_normal"] = "uniform"
    """Initial weights: torch's uniform, or V3's truncated normal, with biases of 0."""
    reward_layers: int = Field(2, ge=1)
    """Hidden layers of the reward model."""
    reward_units: int = Field(200, ge=1)
    """Width of the reward model and of the continue head."""
    reward_distribution: Literal["unit_normal", "normal", "two_hot"] = "unit_normal"
    """Distribution of the reward: a Normal with deviation 1 or a learned variance, or V3's 255 bins."""
    reward_output_scale: float = Field(1.0, ge=0)
    """Factor on the initial weights of the reward model's last layer; with 0 it predicts 0 at first."""
    continue_head: bool = False
    """Whether the model also predicts the end of an episode."""
    continue_layers: int = Field(2, ge=1)
    """Hidden layers of the continue head."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> ModelSettings:
        if self.batch_norm and self.encoder != "strided":
            raise ValueError(
                f"model.batch_norm true needs model.encoder strided: {self.encoder}'s convolutions have none"
            )
        if self.recurrence != "block_gru":
            return self
        if self.gru_layers != 1:
            raise ValueError(f"model.gru_layers {self.gru_layers} needs model.recurrence gru: block_gru is one cell")
        return self

    @model_validator(mode="after")
    def _blocks_divide(self) -> ModelSettings:
        if self.recurrence != "block_gru" and self.encoder != "dreamer":
            return self
        if self.deterministic % self.blocks:
            raise ValueError(
                f"model.deterministic {self.deterministic} is not divisible into model.blocks {self.blocks}"
            )
        if self.encoder == "dreamer" and 4 * self.depth % self.blocks:
            raise ValueError(
                f"model.depth {self.depth}: 4 × {self.depth} channels are not divisible into model.blocks {self.blocks}"
            )
        return self


class LossSettings(Section):
    """The world model's loss."""

    representation: Literal["reconstruction", "redundancy", "contrastive"] = "reconstruction"
    """How the states learn what was seen. `reconstruction`: a decoder gives it back. Without a decoder: `redundancy`,
    they are to correlate with its embedding, number by number (R2-Dreamer), or `contrastive`, they are to tell it from
    all others of the batch (InfoNCE)."""
    decoder_every: int = Field(8, ge=0)
    """Without `reconstruction`, a decoder for pictures and dreams alone learns from one in this many sequences of each
    batch; 0: there is none, and nothing can be drawn or dreamt."""
    redundancy_scale: float = Field(0.05, ge=0)
    """Weight of `redundancy`."""
    redundancy_lambda: float = Field(5e-4, ge=0)
    """λ of `redundancy`: weight of the correlations between different numbers, which are to vanish."""
    contrastive_scale: float = Field(1.0, ge=0)
    """Weight of `contrastive`."""
    reconstruction_scale: float = Field(1.0, ge=0)
    """Weight of the observations' log-likelihood, half the squared error; 2 gives V3's squared error."""
    reward_scale: float = Field(1.0, ge=0)
    """Weight of the rewards' log-likelihood."""
    continue_scale: float = Field(1.0, ge=0)
    """Weight of the continue head's log-likelihood."""
    continue_horizon: int = Field(0, ge=0)
    """With N steps the continue head learns (1 - terminal)·(1 - 1/N), which includes the discount; 0: no discount."""
    kl_scale: float = Field(1.0, ge=0)
    """Weight of KL(posterior || prior)."""
    kl_split: bool = False
    """Whether the KL has separate weights for prior and posterior (V2, V3)."""
    dynamics_scale: float = Field(1.0, ge=0)
    """With `kl_split`, weight of the KL that trains the prior."""
    representation_scale: float = Field(0.1, ge=0)
    """With `kl_split`, weight of the KL that trains the posterior."""
    free_nats: float = Field(3.0, ge=0)
    """KL below this is not penalised."""
    free_nats_per: Literal["element", "mean"] = "element"
    """Whether free nats apply to each step of each sequence, or to the mean of the batch."""

    @property
    def has_decoder(self) -> bool:
        """Whether the model has a decoder, by which it learns or which learns aside."""
        return self.decoder_every > 0

    @model_validator(mode="after")
    def _reconstruction_has_a_decoder(self) -> LossSettings:
        if self.representation == "reconstruction" and not self.has_decoder:
            raise ValueError(
                "loss.decoder_every 0 leaves out the decoder, by which loss.representation reconstruction learns: "
                "take redundancy or contrastive, or leave loss.decoder_every as it is"
            )
        return self


class BehaviourSettings(Section):
    """What chooses the actions, and how it is trained."""

    kind: Literal["random", "planner", "actor_critic", "explore"] = "random"
    """`random`; `planner` searches with the model at every step (PlaNet); `actor_critic` learns a policy (Dreamer);
    `explore` also learns a second one, which collects, and looks for what the model cannot predict (Plan2Explore)."""
    exploration: float = Field(0.0, ge=0)
    """While collecting: deviation of the noise added to reals in [-1, 1]; probability of a random choice."""
    horizon: int = Field(15, ge=1)
    """Imagined steps, of the planner and for training the actor."""
    candidates: int = Field(1000, ge=2)
    """Planner: action sequences sampled in each iteration."""
    iterations: int = Field(10, ge=1)
    """Planner: iterations of the cross-entropy method."""
    elites: int = Field(100, ge=1)
    """Planner: number of best candidates that the next iteration is fitted to."""
    discount: float = Field(0.99, gt=0, le=1)
    """Discount per step; not used if a continue head with `loss.continue_horizon` includes the discount."""
    return_lambda: float = Field(0.95, ge=0, le=1)
    """λ of the λ-returns."""
    actor_layers: int = Field(3, ge=1)
    """Hidden layers of the actor; norm, activation and initialisation are the model's."""
    critic_layers: int = Field(3, ge=1)
    """Hidden layers of the critic, the same."""
    units: int = Field(400, ge=1)
    """Width of actor and critic."""
    actor_output_scale: float = Field(1.0, ge=0)
    """Factor on the initial weights of the actor's last layer; with 0.01 choices are about equally likely at first."""
    critic_output_scale: float = Field(1.0, ge=0)
    """Factor on the initial weights of the critic's last layer; with 0 it predicts 0 at first."""
    unimix: float = Field(0.0, ge=0, lt=1)
    """Share of uniform probability mixed into the actor's choices."""
    box_policy: Literal["tanh_normal", "bounded_normal"] = "bounded_normal"
    """Distribution of an action's reals: V1's and V2's squashed Normal, or V3's."""
    critic_distribution: Literal["unit_normal", "two_hot"] = "two_hot"
    """Distribution that the critic predicts."""
    gradient: Literal["dynamics", "reinforce", "by_action"] = "reinforce"
    """The actor's gradient: through the model, by REINFORCE, or by the kind of action (V2: boxes through the model)."""
    entropy: float = Field(3e-4, ge=0)
    """Weight of the policy's entropy."""
    normalise_returns: bool = True
    """Whether advantages are divided by the spread of the returns (V3)."""
    slow_critic: Literal["none", "target", "regulariser"] = "regulariser"
    """Use of a slow copy of the critic: target network for the returns (V2), or regulariser of the critic (V3)."""
    slow_critic_every: int = Field(1, ge=1)
    """Updates between two updates of the slow critic."""
    slow_critic_rate: float = Field(0.02, gt=0, le=1)
    """Fraction by which the slow critic moves towards the critic each time; 1 copies it."""
    replay_value_scale: float = Field(0.3, ge=0)
    """Weight of the critic's loss on replayed steps, which also trains the world model (V3); 0: none."""
    actor_learning_rate: float = Field(4e-5, gt=0)
    """Learning rate of the actor."""
    critic_learning_rate: float = Field(4e-5, gt=0)
    """Learning rate of the critic."""
    actor_clip: float = Field(100.0, gt=0)
    """Maximum global norm of the actor's and of the critic's gradients; not used with `learner.clipping adaptive`."""
    ensemble: int = Field(8, ge=2)
    """With `explore`, predictors of the next state whose disagreement is the reward; each is as large as the critic."""
    explorer_entropy: float = Field(0.0, ge=0)
    """With `explore`, what the explorer's entropy weighs beside `entropy`: 0.1 keeps it from making up its mind before
    the predictors have learnt anything, where actions are choices and steps are few."""

    @property
    def learns_actor(self) -> bool:
        """Whether there is an actor that learns its task."""
        return self.kind in ("actor_critic", "explore")

    @model_validator(mode="after")
    def _elites_among_candidates(self) -> BehaviourSettings:
        if self.elites > self.candidates:
            raise ValueError(
                f"behaviour.elites {self.elites} are more than behaviour.candidates {self.candidates}, "
                "of which they are the best"
            )
        return self
