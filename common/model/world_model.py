"""The world model: encoder, RSSM, decoder and heads as one module, its methods in the order data passes.

Shapes: B batch, T time, H horizon, A action, E embedding, L GRU layers, D deterministic, S stochastic.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.model.decoder import Decoder
from dreamfleet.common.model.distributions import Bernoulli, Gaussian, TwoHot, symexp, symlog
from dreamfleet.common.model.encoder import Encoder, normalise_image, to_display
from dreamfleet.common.model.heads import ContinueHead, Projector, RewardHead
from dreamfleet.common.model.rssm import RSSM, Rollout, State
from dreamfleet.common.settings.model import LossSettings, ModelSettings
from dreamfleet.common.torch_state import as_input, full_precision

NO_DECODER = (
    "this model has no decoder, which pictures and dreams are made with: train with --loss.decoder_every 8 for one "
    "that learns aside, or with --loss.representation reconstruction"
)
"""What is said where an observation is to be decoded and cannot be."""


class WorldModel(nn.Module):
    """What is seen, what happens next, and what it is worth.

    States, distributions and decoded means are float32, also under autocast. Random numbers come from torch's global
    generators. In training mode `five_bit` pictures get their noise and batch norm takes the batch's statistics; call
    `eval()` before acting and measuring.

    Attributes:
        feature_width: F = D + S, the input of decoder and heads.
        decoder: None if the states learn without one and `loss.decoder_every` is 0.
        projector: what the states learn by where that is not a decoder; else None.

    Args:
        loss: by which it is trained; None: by reconstruction.

    Raises:
        UserError: the pictures do not fit the encoder.
    """

    def __init__(self, spaces: Spaces, settings: ModelSettings, loss: LossSettings | None = None) -> None:
        super().__init__()
        loss = loss or LossSettings()
        self.spaces = spaces
        self.settings = settings
        self.encoder = Encoder(spaces, settings)
        self.dynamics = RSSM(spaces.action.width, self.encoder.width, settings)
        stochastic = self.dynamics.latents.width
        self.decoder = Decoder(settings.deterministic, stochastic, spaces, settings) if loss.has_decoder else None
        feature = self.feature_width = settings.deterministic + stochastic
        self.reward = RewardHead(feature, settings)
        self.continuation = ContinueHead(feature, settings) if settings.continue_head else None
        needs_projector = loss.representation != "reconstruction"
        self.projector = Projector(feature, self.encoder.width, settings) if needs_projector else None

    def normalise(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the observations in the network's units, float32, by `image_input` and `vector_symlog`.

        The decoder is trained to give this back, so the loss calls it once and uses the result for both: with
        `five_bit` the noise that is encoded is also the noise to be reconstructed.
        """
        normalised = {}
        for spec in self.spaces.observations:
            value = observations[spec.name]
            if spec.is_image:
                normalised[spec.name] = normalise_image(value, self.settings.image_input, noise=self.training)
            else:
                value = as_input(value)
                normalised[spec.name] = symlog(value) if self.settings.vector_symlog else value
        return normalised

    def denormalise(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return decoded means in the environment's units: the inverse of `normalise`, pictures as uint8."""
        decoded = {}
        for spec in self.spaces.observations:
            mean = means[spec.name]
            if spec.is_image:
                decoded[spec.name] = to_display(mean, self.settings.image_input)
            else:
                mean = full_precision(mean)
                decoded[spec.name] = symexp(mean) if self.settings.vector_symlog else mean
        return decoded

    def embed(self, normalised: Mapping[str, Tensor]) -> Tensor:
        """Return embeddings (…, E) of normalised observations: pictures (…, H, W, C), vectors (…, D)."""
        spec = self.spaces.observations[0]
        leading = normalised[spec.name].shape[: -len(spec.shape)]
        rank = len(leading)
        flat = {name: value.reshape(-1, *value.shape[rank:]) for name, value in normalised.items()}
        return self.encoder(flat).unflatten(0, leading)

    def encode(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Return embeddings (B, T, E) of raw observations: uint8 pictures (B, T, H, W, C), vectors (B, T, D)."""
        return self.embed(self.normalise(observations))

    def observe(
        self, embedding: Tensor, previous_actions: Tensor, is_first: Tensor, state: State | None = None
    ) -> Rollout:
        """Return the states inferred from (B, T, E), (B, T, A) and (B, T); see `RSSM.observe`."""
        return self.dynamics.observe(embedding, previous_actions, is_first, state)

    def imagine(self, state: State, actions: Tensor, sample: bool = True) -> State:
        """Return the states (B, H, …) that actions (B, H, A) lead to from `state`; see `RSSM.imagine`."""
        return self.dynamics.imagine(state, actions, sample)

    def decode(self, feature: Tensor) -> dict[str, Tensor]:
        """Return the means of all entries of the observation for features (…, D + S), in the network's units.

        Raises:
            UserError: if it has no decoder.
        """
        if self.decoder is None:
            raise UserError(NO_DECODER)
        leading = feature.shape[:-1]
        means = self.decoder(feature.reshape(-1, feature.shape[-1]))
        return {name: mean.unflatten(0, leading) for name, mean in means.items()}

    def project(self, feature: Tensor) -> Tensor:
        """Return the embeddings (…, E) that features (…, D + S) let expect; not of a model that reconstructs."""
        assert self.projector is not None, "a projector needs loss.representation redundancy or contrastive"
        found: Tensor = self.projector(feature)
        return found

    def predict_reward(self, feature: Tensor) -> Gaussian | TwoHot:
        """Return the distribution (…) of the reward received on arriving at features (…, D + S)."""
        return self.reward(feature)

    def predict_continue(self, feature: Tensor) -> Bernoulli:
        """Return the distribution (…) of continuing at features (…, D + S); only with `continue_head`.

        Its mean is the probability that the episode does not end here, times the discount if `loss.continue_horizon` is
        set.
        """
        assert self.continuation is not None, "predict_continue needs model.continue_head"
        return self.continuation(feature)

    def acting_parameters(self) -> dict[str, Tensor]:
        """Return by name, in an order that never changes, what acting needs of encoder and RSSM.

        Batch norm's running statistics are included. The tensors are the model's own, detached: writing to them changes
        the model.
        """
        tensors: dict[str, Tensor] = {}
        for prefix, part in (("encoder", self.encoder), ("dynamics", self.dynamics)):
            for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                if tensor.is_floating_point():
                    tensors[f"{prefix}.{name}"] = tensor.detach()
        return tensors

    def parameter_count(self) -> int:
        """Return the number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())
