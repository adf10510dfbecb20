"""Settings of the world model: which parts it is made of, how big they are, and what its loss weighs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dreamfleet.common.settings.section import Section


class ModelSettings(Section):
    """The world model: which parts, and how big."""

    encoder: Literal["strided", "planet", "dreamer"] = "planet"
    """Convolutions for pictures: `strided` (3×3, the seed's), `planet` (4×4; 64×64 only; V1, V2) or `dreamer` (V3)."""
    depth: int = Field(32, ge=1)
    """Channels of the first convolution, 1, 2, 4 and 8 times; with `dreamer` 2, 3, 4 and 4 times."""
    convolution_activation: Literal["relu", "elu", "silu"] = "relu"
    """Activation of the convolutions of `planet` and `dreamer`; the seed's are ReLU."""
    batch_norm: bool = False
    """Batch norm after the convolutions (`strided` only)."""
    image_input: Literal["unit", "centred", "five_bit"] = "centred"
    """How bytes become the network's numbers: x/255, x/255 - 0.5, or PlaNet's 5 bits with noise."""
    embedding: int = Field(1024, ge=1)
    """Width to which the encoder's output is projected (`strided` only; else what the convolutions give)."""
    vector_units: int = Field(256, ge=1)
    """Width of the encoder and decoder of vectors; `dreamer` decodes pictures from z through twice that."""
    vector_layers: int = Field(2, ge=1)
    """Layers of the encoder and decoder of vector observations."""
    vector_symlog: bool = False
    """Whether vectors are read and predicted as symlog(x), whatever their size."""
    recurrence: Literal["gru", "norm_gru", "block_gru"] = "gru"
    """How h goes on: GRU cells, V2's cell with layer norm, or V3's cell of blocks."""
    deterministic: int = Field(200, ge=1)
    """Width of the deterministic state h."""
    gru_layers: int = Field(1, ge=1)
    """GRU cells, one on top of the other (`block_gru`: 1)."""
    blocks: int = Field(8, ge=1)
    """Blocks of `block_gru` and of `dreamer`'s decoder; they divide the deterministic state and 4 times the depth."""
    latent: Literal["gaussian", "categorical"] = "gaussian"
    """What the stochastic state z is: real numbers, or one-hots."""
    stochastic: int = Field(30, ge=1)
    """Numbers of a Gaussian z, or variables of a categorical one."""
    classes: int = Field(32, ge=2)
    """Classes of each variable of a categorical z."""
    unimix: float = Field(0.01, ge=0, lt=1)
    """Share of uniform probability mixed into a categorical z."""
    hidden: int = Field(200, ge=1)
    """Width of the hidden layers of transition, prior and posterior."""
    prior_layers: int = Field(1, ge=1)
    """Hidden layers of the prior; the posterior has one."""
    prior_sees_action: bool = False
    """Whether the prior's hidden layer reads [h, a], as the seed's does, or h alone, as PlaNet's."""
    std: Literal["softplus", "log_variance"] = "softplus"
    """How a Gaussian state's deviation is made: `softplus(x) + min_std`, or `exp(x / 2)`, never under min_std."""
    min_std: float = Field(0.1, gt=0)
    """Smallest deviation of a Gaussian state."""
    activation: Literal["relu", "elu", "silu"] = "relu"
    """Activation of the dense layers."""
    norm: Literal["none", "layer", "rms"] = "none"
    """Norm before each activation, of the dense layers and of `dreamer`'s convolutions."""
    initialisation: Literal["uniform", "truncated_normal"] = "uniform"
    """How weights are drawn: uniformly as torch does, or V3's truncated normal, with biases of 0."""
    reward_layers: int = Field(2, ge=1)
    """Hidden layers of the reward model."""
    reward_units: int = Field(200, ge=1)
    """Width of the reward model and of the continue head."""
    reward_distribution: Literal["unit_normal", "normal", "two_hot"] = "unit_normal"
    """What the reward model predicts: a Normal with deviation 1 or with a learned variance, or V3's 255 bins."""
    reward_output_scale: float = Field(1.0, ge=0)
    """Factor on the first weights of the reward model's last layer; with 0 it begins by predicting 0."""
    continue_head: bool = False
    """Whether the end of an episode is predicted too."""
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

    reconstruction_scale: float = Field(1.0, ge=0)
    """Weight of the observations' log-likelihood, which is half the squared error: with 2 it is V3's squared error."""
    reward_scale: float = Field(1.0, ge=0)
    """Weight of the rewards' log-likelihood."""
    continue_scale: float = Field(1.0, ge=0)
    """Weight of the continue head's log-likelihood."""
    continue_horizon: int = Field(0, ge=0)
    """With N steps the continue head learns (1 - terminal)·(1 - 1/N), and so carries the discount; 0: no discount."""
    kl_scale: float = Field(1.0, ge=0)
    """Weight of KL(posterior || prior)."""
    kl_split: bool = False
    """Whether the KL trains prior and posterior with two weights (V2, V3) instead of one."""
    dynamics_scale: float = Field(1.0, ge=0)
    """With `kl_split`, weight of the KL that draws the prior to the posterior."""
    representation_scale: float = Field(0.1, ge=0)
    """With `kl_split`, weight of the KL that draws the posterior to the prior."""
    free_nats: float = Field(3.0, ge=0)
    """KL below this costs nothing."""
    free_nats_per: Literal["element", "mean"] = "element"
    """Whether free nats are granted to each step of each sequence, or to the batch's mean."""
