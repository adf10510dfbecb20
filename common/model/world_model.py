"""The world model: encoder, dynamics, decoder and heads as one module, its methods in the order data passes.

Shapes: B batch, T time, H horizon, A action, E embedding, L GRU layers, D deterministic, S stochastic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.model.decoder import Decoder
from dreamfleet.common.model.distributions import Bernoulli, Gaussian, TwoHot, symexp, symlog
from dreamfleet.common.model.encoder import Encoder, normalise_image, to_display
from dreamfleet.common.model.heads import ContinueHead, RewardHead
from dreamfleet.common.model.rssm import RSSM, Rollout, State
from dreamfleet.common.settings.model import ModelSettings
from dreamfleet.common.torch_state import as_input, full_precision


class WorldModel(nn.Module):
    """What is seen, what happens next, and what it is worth.

    States, distributions and decoded means are float32, also under autocast. Random numbers come from torch's global
    generators. In training mode `five_bit` pictures get their noise and batch norm takes the batch's statistics;
    acting and measuring call `eval()` first.

    Attributes:
        feature_width: F = D + S, of what decoder and heads read.

    Args:
        spaces: what is observed and done.
        settings: which parts, and how big.

    Raises:
        UserError: the pictures do not fit the encoder.
    """

    def __init__(self, spaces: Spaces, settings: ModelSettings) -> None:
        super().__init__()
        self.spaces = spaces
        self.settings = settings
        self.encoder = Encoder(spaces, settings)
        self.dynamics = RSSM(spaces.action.width, self.encoder.width, settings)
        stochastic = self.dynamics.latents.width
        self.decoder = Decoder(settings.deterministic, stochastic, spaces, settings)
        feature = self.feature_width = settings.deterministic + stochastic
        self.reward = RewardHead(feature, settings)
        self.continuation = ContinueHead(feature, settings) if settings.continue_head else None

    def normalise(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the observations in the network's units, float32: pictures as `image_input` says, vectors as they are.

        With `vector_symlog` vectors become symlog(x). This is also what the decoder is trained to give back, so the
        loss calls it once and uses the result for both: with `five_bit` the noise that is encoded is the noise that is
        to be reconstructed.
        """
        vector = symlog if self.settings.vector_symlog else _as_it_is
        return {
            spec.name: self._normalise_image(observations[spec.name])
            if spec.is_image
            else vector(as_input(observations[spec.name]))
            for spec in self.spaces.observations
        }

    def denormalise(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return decoded means in the environment's units: `normalise` backwards, pictures as uint8."""
        vector = symexp if self.settings.vector_symlog else _as_it_is
        return {
            spec.name: self.to_display(means[spec.name]) if spec.is_image else vector(full_precision(means[spec.name]))
            for spec in self.spaces.observations
        }

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

    def initial(self, batch: int) -> State:
        """Return the state before anything has been seen: zeros, for `batch` sequences."""
        return self.dynamics.initial(batch)

    def observe(
        self, embedding: Tensor, previous_actions: Tensor, is_first: Tensor, state: State | None = None
    ) -> Rollout:
        """Return the states inferred from (B, T, E), (B, T, A) and (B, T); see `RSSM.observe`."""
        return self.dynamics.observe(embedding, previous_actions, is_first, state)

    def observe_step(
        self, state: State, previous_action: Tensor, embedding: Tensor, is_first: Tensor, sample: bool = True
    ) -> State:
        """Return the state after one more observation, from (B, A), (B, E) and (B,); see `RSSM.observe_step`."""
        return self.dynamics.observe_step(state, previous_action, embedding, is_first, sample)

    def imagine(self, state: State, actions: Tensor, sample: bool = True) -> State:
        """Return the states (B, H, …) that actions (B, H, A) lead to from `state`; see `RSSM.imagine`."""
        return self.dynamics.imagine(state, actions, sample)

    def imagine_with(self, state: State, policy: Callable[[Tensor], Tensor], horizon: int) -> tuple[State, Tensor]:
        """Return the states (B, H, …) and the actions (B, H, A) of a policy from `state` on; see `RSSM`."""
        return self.dynamics.imagine_with(state, policy, horizon)

    def decode(self, feature: Tensor) -> dict[str, Tensor]:
        """Return the means of all entries of the observation for features (…, D + S), in the network's units."""
        leading = feature.shape[:-1]
        means = self.decoder(feature.reshape(-1, feature.shape[-1]))
        return {name: mean.unflatten(0, leading) for name, mean in means.items()}

    def predict_reward(self, feature: Tensor) -> Gaussian | TwoHot:
        """Return the distribution (…) of the reward received on arriving at features (…, D + S)."""
        return self.reward(feature)

    def predict_continue(self, feature: Tensor) -> Bernoulli:
        """Return the distribution (…) of going on at features (…, D + S); only with `continue_head`.

        Its mean is the chance that the episode does not end here, or, where `loss.continue_horizon` is set, that times
        the discount.
        """
        assert self.continuation is not None, "predict_continue needs model.continue_head"
        return self.continuation(feature)

    def to_display(self, image: Tensor) -> Tensor:
        """Return the uint8 picture for a picture in the network's units, decoded or normalised."""
        return to_display(image, self.settings.image_input)

    def acting_parameters(self) -> dict[str, Tensor]:
        """Return by name, in an order that never changes, what acting needs: encoder and dynamics.

        Batch norm's running statistics are among them. The tensors are the model's own, detached: what is
        written to them changes the model.
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

    def _normalise_image(self, image: Tensor) -> Tensor:
        return normalise_image(image, self.settings.image_input, noise=self.training)


def _as_it_is(vector: Tensor) -> Tensor:
    return vector
