"""The decoder: from the model's state back to what would be observed.

Shapes: N any leading axes flattened, F feature (D + S), H and W height and width of a picture, C channels.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.common.experience.spaces import Spaces
from dreamfleet.common.model.encoder import DREAMER_FACTORS, image_size, lowest
from dreamfleet.common.model.layers import (
    ACTIVATIONS,
    BatchNorm2d,
    ForkedLinear,
    NormActivation,
    after,
    dense_stack,
    initialise,
)
from dreamfleet.common.model.loop_layers import BlockLinear
from dreamfleet.common.settings.model import ModelSettings
from dreamfleet.common.torch_state import full_precision, without_autocast

TAPS = (((0, 1), (2, 3), (4,)), ((0,), (1, 2), (3, 4)))
"""Which of a kernel's five taps fall on the pixel before, at and after one's own, for its first and second double."""


class DoublingConv2d(nn.Conv2d):
    """Doubles every pixel in both directions, then convolves 5×5 with stride 1 and padding 2.

    A pixel and its doubles are equal, so that taps on the same pixel can be added up first: each of the four doubles is
    a 3×3 convolution of the small picture. This is the same function with 9 products instead of 25, and without the
    doubled picture in memory.
    """

    taps: Tensor
    kept: Tensor | None = None

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels, 5)
        taps = [[[float(k in taps) for k in range(5)] for taps in double] for double in TAPS]
        self.register_buffer("taps", torch.tensor(taps), persistent=False)  # (2 doubles, 3 pixels, 5 taps)

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, 2·H, 2·W, C), channels last, for (N, channels_in, H, W)."""
        assert self.bias is not None
        kernels = self.small_kernels() if self.kept is None else self.kept
        doubles = F.conv2d(image, kernels, self.bias.repeat(4), padding=1)  # (N, 4·C, H, W)
        doubles = doubles.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))  # (N, H, W, 2, 2, C)
        return doubles.transpose(2, 3).reshape(len(image), 2 * image.shape[2], 2 * image.shape[3], -1)

    def keep_kernels(self) -> None:
        """Add up the taps once, of weights that change no more: for one picture that takes longer than convolving."""
        with torch.no_grad():
            self.kept = self.small_kernels().contiguous(memory_format=torch.channels_last)  # as the picture lies

    def small_kernels(self) -> Tensor:
        """Return the 3×3 kernels of the four doubles (4·C, channels_in, 3, 3), float32, the row's double first."""
        with without_autocast(self.weight):  # sums of weights are not to be rounded first
            rows = torch.tensordot(self.taps, self.weight, ([2], [2]))  # (2, 3, C, channels_in, 5)
            both = torch.tensordot(rows, self.taps, ([4], [2]))  # (2 rows, 3, C, channels_in, 2 columns, 3)
        return both.permute(0, 4, 2, 3, 1, 5).flatten(0, 2)


class StridedImageDecoder(nn.Module):
    """The article's: two linear layers and four transposed convolutions of 3×3, stride 2, padding 1, output padding 1.

    Linear to the embedding's width, ReLU, linear to 8·depth × H/16 × W/16; after each of the first three convolutions
    batch norm (optional) and ReLU; nothing after the last. Each doubles the sides.
    """

    def __init__(self, feature: int, size: tuple[int, int], channels: int, settings: ModelSettings) -> None:
        super().__init__()
        self._start = (size[0] // 16, size[1] // 16, 8 * settings.depth)
        self.input = nn.Sequential(
            nn.Linear(feature, settings.embedding),
            nn.ReLU(),
            nn.Linear(settings.embedding, self._start[0] * self._start[1] * self._start[2]),
        )
        widths = [factor * settings.depth for factor in (8, 4, 2, 1)]
        modules: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            # Batch norm would subtract a bias just before it.
            bias = not settings.batch_norm
            modules.append(nn.ConvTranspose2d(wide, narrow, 3, stride=2, padding=1, output_padding=1, bias=bias))
            if settings.batch_norm:
                modules.append(BatchNorm2d(narrow))
            modules.append(nn.ReLU(inplace=True))
        modules.append(nn.ConvTranspose2d(widths[-1], channels, 3, stride=2, padding=1, output_padding=1))
        self.convolutions = nn.Sequential(*modules).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, feature: Tensor) -> Tensor:
        """Return pictures (N, C, H, W) for features (N, F)."""
        pattern = self.input(feature).unflatten(1, self._start).permute(0, 3, 1, 2)  # (N, 8·depth, H/16, W/16)
        return self.convolutions(pattern)


class PlanetImageDecoder(nn.Module):
    """PlaNet's: a linear layer without activation, then transposed convolutions of stride 2, kernels 5, 5, 6 and 6.

    The linear layer gives 32·depth numbers, the convolutions 4, 2 and 1 times the depth, then C.
    """

    def __init__(self, feature: int, channels: int, settings: ModelSettings) -> None:
        super().__init__()
        depth, activation = settings.depth, ACTIVATIONS[settings.convolution_activation]
        self.input = nn.Linear(feature, 32 * depth)
        self.first = nn.ConvTranspose2d(32 * depth, 4 * depth, 5).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.convolutions = nn.Sequential(
            activation(inplace=True),
            nn.ConvTranspose2d(4 * depth, 2 * depth, 5, stride=2),
            activation(inplace=True),
            nn.ConvTranspose2d(2 * depth, depth, 6, stride=2),
            activation(inplace=True),
            nn.ConvTranspose2d(depth, channels, 6, stride=2),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, feature: Tensor) -> Tensor:
        """Return pictures (N, C, 64, 64) for features (N, F); the sides go 1, 5, 13, 30, 64."""
        # On a single pixel a transposed convolution is one matrix product, which is several times quicker on a CPU.
        kernel = self.first.weight.permute(2, 3, 1, 0)  # (5, 5, 4·depth, 32·depth)
        pattern = F.linear(self.input(feature), kernel.flatten(0, 2)).unflatten(1, kernel.shape[:3])
        assert self.first.bias is not None
        return self.convolutions((pattern + self.first.bias).permute(0, 3, 1, 2))


class DreamerImageDecoder(nn.Module):
    """Dreamer V3's: h in blocks and z through two layers to the smallest pattern, then four times ×2 and 5×5.

    The pattern is norm and activation of the sum of both; each of the four stages doubles every pixel and convolves;
    norm and activation after the first three, a sigmoid after the last.
    """

    def __init__(
        self, deterministic: int, stochastic: int, size: tuple[int, int], channels: int, settings: ModelSettings
    ) -> None:
        super().__init__()
        units, blocks, kind = 2 * settings.vector_units, settings.blocks, settings.convolution_activation
        narrow_to_wide = [factor * settings.depth for factor in DREAMER_FACTORS]
        widths = [*reversed(narrow_to_wide), channels]
        self._widths = (deterministic, stochastic)
        self._start = (size[0] // 16, size[1] // 16, widths[0])
        self._lowest = lowest(settings.image_input)
        self.from_state = BlockLinear(deterministic, math.prod(self._start), blocks)
        self.latent_hidden = nn.Linear(stochastic, units)
        self.latent_activation = after(units, settings)
        self.latent_output = nn.Linear(units, math.prod(self._start))
        self.activations = nn.ModuleList(NormActivation(width, settings.norm, kind) for width in widths[:-1])
        self.convolutions = nn.ModuleList(DoublingConv2d(fed, width) for fed, width in pairwise(widths))

    def forward(self, feature: Tensor) -> Tensor:
        """Return pictures (N, C, H, W) for features (N, F), in the network's units."""
        h, z = feature.split(self._widths, dim=-1)
        height, width, _ = self._start
        blocks = self.from_state(h).unflatten(-1, (height, width, -1))  # (N, G, H/16, W/16, 4·depth / G)
        from_state = blocks.permute(0, 2, 3, 1, 4).flatten(-2)  # (N, H/16, W/16, 4·depth)
        from_latent = self.latent_output(self.latent_activation(self.latent_hidden(z))).unflatten(-1, self._start)
        pattern = from_state + from_latent
        for activation, convolution in zip(self.activations, self.convolutions, strict=True):
            pattern = convolution(activation(pattern).permute(0, 3, 1, 2))  # (N, 2·H, 2·W, C)
        return torch.sigmoid(full_precision(pattern)).permute(0, 3, 1, 2) + self._lowest


ImageDecoder = StridedImageDecoder | PlanetImageDecoder | DreamerImageDecoder


class Decoder(nn.Module):
    """The mean of every entry of the observation, each a unit-variance Normal.

    Raises:
        UserError: as the encoder does.
    """

    def __init__(self, deterministic: int, stochastic: int, spaces: Spaces, settings: ModelSettings) -> None:
        super().__init__()
        feature = deterministic + stochastic
        self._image_channels = {spec.name: spec.shape[2] for spec in spaces.images}
        self._vector_widths = {spec.name: spec.shape[0] for spec in spaces.vectors}
        self.image: ImageDecoder | None = None
        self.vector: nn.Sequential | None = None
        if spaces.images:
            size = image_size(spaces.images, settings)
            channels = sum(self._image_channels.values())
            if settings.encoder == "planet":
                self.image = PlanetImageDecoder(feature, channels, settings)
            elif settings.encoder == "dreamer":
                self.image = DreamerImageDecoder(deterministic, stochastic, size, channels, settings)
            else:
                self.image = StridedImageDecoder(feature, size, channels, settings)
        if spaces.vectors:
            hidden = dense_stack(feature, settings.vector_units, settings.vector_layers, settings)
            self.vector = hidden.append(ForkedLinear(settings.vector_units, list(self._vector_widths.values())))
        initialise(self, settings.initialisation)

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """Return float32 means for features (N, F): pictures (N, H, W, C), vectors (N, D), in the network's units."""
        means: dict[str, Tensor] = {}
        if self.image is not None:
            picture = full_precision(self.image(feature)).permute(0, 2, 3, 1)  # (N, H, W, C)
            means.update(_divide(picture, self._image_channels))
        if self.vector is not None:
            means.update(_divide(full_precision(self.vector(feature)), self._vector_widths))
        return means


def _divide(together: Tensor, widths: dict[str, int]) -> dict[str, Tensor]:
    return dict(zip(widths, together.split(list(widths.values()), dim=-1), strict=True))
