"""The encoder: from an observation to its embedding.

Shapes: B batch, T time, N = B·T flattened, E embedding, H and W height and width of a picture, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ObservationSpec, Spaces
from dreamfleet.common.model.layers import ACTIVATIONS, BatchNorm2d, NormActivation, dense_stack, initialise
from dreamfleet.common.settings.model import ModelSettings
from dreamfleet.common.torch_state import as_input, full_precision

CHANNEL_FACTORS = (1, 2, 4, 8)
"""Channels of the four convolutions, in units of the depth."""

DREAMER_FACTORS = (2, 3, 4, 4)
"""The same of Dreamer V3's."""


class StridedImageEncoder(nn.Module):
    """The article's convolutions: four of 3×3, stride 2, padding 1, then a linear layer. Each halves the sides.

    After each of the first three: ReLU, then batch norm (optional); after the fourth: batch norm alone.
    """

    def __init__(self, size: tuple[int, int], channels: int, settings: ModelSettings) -> None:
        super().__init__()
        widths = [factor * settings.depth for factor in CHANNEL_FACTORS]
        modules: list[nn.Module] = []
        for layer, width in enumerate(widths):
            last = layer == len(widths) - 1
            # Batch norm would subtract a bias just before it.
            bias = not (last and settings.batch_norm)
            fed = widths[layer - 1] if layer else channels
            modules.append(nn.Conv2d(fed, width, 3, stride=2, padding=1, bias=bias))
            if not last:
                modules.append(nn.ReLU(inplace=True))
            if settings.batch_norm:
                modules.append(BatchNorm2d(width))
        self.convolutions = nn.Sequential(*modules).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.output = nn.Linear(widths[-1] * (size[0] // 16) * (size[1] // 16), settings.embedding)
        self.width = settings.embedding

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings (N, E) of pictures (N, C, H, W)."""
        pattern = self.convolutions(image)  # (N, 8·depth, H/16, W/16)
        return self.output(pattern.permute(0, 2, 3, 1).flatten(1))  # (N, E)


class PlanetImageEncoder(nn.Module):
    """PlaNet's convolutions (arXiv 1811.04551, from Ha and Schmidhuber 2018): four of 4×4, stride 2, no padding.

    With depth 32 the embedding has 1024 numbers. The activation is ReLU in PlaNet and V1, ELU in V2.
    """

    def __init__(self, channels: int, settings: ModelSettings) -> None:
        super().__init__()
        widths = [factor * settings.depth for factor in CHANNEL_FACTORS]
        modules: list[nn.Module] = []
        for layer, width in enumerate(widths):
            fed = widths[layer - 1] if layer else channels
            modules += [nn.Conv2d(fed, width, 4, stride=2), ACTIVATIONS[settings.convolution_activation](inplace=True)]
        self.convolutions = nn.Sequential(*modules).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.width = 4 * widths[-1]

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings (N, 32·depth) of pictures (N, C, 64, 64), whose sides go 64, 31, 14, 6, 2."""
        pattern = self.convolutions(image)  # (N, 8·depth, 2, 2)
        return pattern.permute(0, 2, 3, 1).flatten(1)  # (N, 32·depth)


class DreamerImageEncoder(nn.Module):
    """Dreamer V3's convolutions: four stages of 5×5, 2×2 max-pooling, norm over the channels, activation."""

    def __init__(self, size: tuple[int, int], channels: int, settings: ModelSettings) -> None:
        super().__init__()
        widths = [factor * settings.depth for factor in DREAMER_FACTORS]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(fed, width, 5, padding=2) for fed, width in pairwise([channels, *widths])
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.activations = nn.ModuleList(
            NormActivation(width, settings.norm, settings.convolution_activation) for width in widths
        )
        self.width = widths[-1] * (size[0] // 16) * (size[1] // 16)

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings (N, E) of pictures (N, C, H, W), whose sides are halved four times."""
        for convolution, activation in zip(self.convolutions, self.activations, strict=True):
            pooled = F.max_pool2d(convolution(image), 2)
            image = activation(pooled.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return image.permute(0, 2, 3, 1).flatten(1)  # (N, H/16 · W/16 · 4·depth)


ImageEncoder = StridedImageEncoder | PlanetImageEncoder | DreamerImageEncoder


class Encoder(nn.Module):
    """One embedding for all entries of an observation.

    All pictures, stacked on their channels, go through one stack of convolutions, all vectors, side by side, through
    one stack of dense layers; the embedding is both results side by side.

    Raises:
        UserError: the pictures have different sizes, or a size that the encoder cannot take.
    """

    def __init__(self, spaces: Spaces, settings: ModelSettings) -> None:
        super().__init__()
        self._image_names = [spec.name for spec in spaces.images]
        self._vector_names = [spec.name for spec in spaces.vectors]
        self.image: ImageEncoder | None = None
        self.vector: nn.Sequential | None = None
        self.width = 0
        if spaces.images:
            size = image_size(spaces.images, settings)
            channels = sum(spec.shape[2] for spec in spaces.images)
            if settings.encoder == "planet":
                self.image = PlanetImageEncoder(channels, settings)
            else:
                kind = DreamerImageEncoder if settings.encoder == "dreamer" else StridedImageEncoder
                self.image = kind(size, channels, settings)
            self.width += self.image.width
        if spaces.vectors:
            width = sum(spec.shape[0] for spec in spaces.vectors)
            self.vector = dense_stack(width, settings.vector_units, settings.vector_layers, settings)
            self.width += settings.vector_units
        initialise(self, settings.initialisation)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Return embeddings (N, E) of normalised observations: pictures (N, H, W, C), vectors (N, D)."""
        parts = []
        if self.image is not None:
            stacked = torch.cat([observations[name] for name in self._image_names], dim=-1)  # (N, H, W, C)
            # Channels are last in memory already, the quickest layout for convolutions.
            parts.append(self.image(stacked.permute(0, 3, 1, 2)))
        if self.vector is not None:
            parts.append(self.vector(torch.cat([observations[name] for name in self._vector_names], dim=-1)))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def image_size(images: tuple[ObservationSpec, ...], settings: ModelSettings) -> tuple[int, int]:
    """Return the (H, W) that all pictures have.

    Raises:
        UserError: they have different sizes, or one that `settings.encoder` cannot take.
    """
    first = images[0]
    height, width = first.shape[:2]
    for spec in images[1:]:
        if spec.shape[:2] != first.shape[:2]:
            raise UserError(
                f"The observation '{spec.name}' is {_sides(spec)} and '{first.name}' is {_sides(first)}: all pictures "
                "of an environment must have one size. Set env.image_size to resize them."
            )
    if settings.encoder == "planet" and (height, width) != (64, 64):
        raise UserError(
            f"model.encoder planet takes pictures of 64×64, but the observation '{first.name}' is {_sides(first)}. "
            "Set env.image_size 64, or model.encoder strided."
        )
    if height % 16 or width % 16:
        raise UserError(
            f"model.encoder {settings.encoder} takes pictures whose sides are divisible by 16, but the observation "
            f"'{first.name}' is {_sides(first)}. Set env.image_size to a multiple of 16, such as 64."
        )
    return height, width


def _sides(spec: ObservationSpec) -> str:
    return f"{spec.shape[0]}×{spec.shape[1]}"


ImageInput = Literal["unit", "centred", "five_bit"]

FIVE_BIT_STEP = 1.0 / 32.0
"""Width of one of the 32 levels of `five_bit`."""


def normalise_image(image: Tensor, kind: ImageInput, noise: bool = False) -> Tensor:
    """Return the network's numbers, float32, for a picture's bytes (uint8, any shape).

    `unit`: x/255 in [0, 1]; `centred`: x/255 - 0.5; `five_bit`: floor(x/8)/32 + U(0, 1/32) - 0.5, which keeps the
    highest 5 bits and fills the lower ones with noise (PlaNet). Without `noise`, `five_bit` adds its mean, 1/64.
    """
    if kind == "unit":
        return as_input(image) / 255.0
    if kind == "centred":
        return as_input(image) / 255.0 - 0.5
    levels = as_input(torch.div(image, 8, rounding_mode="floor")) * FIVE_BIT_STEP - 0.5
    if noise:
        return levels + torch.rand_like(levels) * FIVE_BIT_STEP
    return levels + FIVE_BIT_STEP / 2


def lowest(kind: ImageInput) -> float:
    """Return the network's number for black; white is 1 more."""
    return 0.0 if kind == "unit" else -0.5


def to_display(image: Tensor, kind: ImageInput) -> Tensor:
    """Return the uint8 picture for the network's numbers: the inverse of `normalise_image`, clipped to the range."""
    unit = full_precision(image) - lowest(kind)
    if kind == "five_bit":
        # A level's middle becomes its own middle byte: 8 * level + 4.
        return (unit * 256.0).floor().clamp(0, 255).to(torch.uint8)
    return (unit * 255.0).round().clamp(0, 255).to(torch.uint8)
