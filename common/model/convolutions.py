"""Convolutions of Dreamer V3's pictures, in forms that are quick.

Shapes: N pictures, C channels, H and W height and width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = (((0, 1), (2, 3), (4,)), ((0,), (1, 2), (3, 4)))
"""Which of a kernel's five taps fall on the pixel before, on and after one's own, for its first and second double."""


class DoublingConv2d(nn.Conv2d):
    """Doubles every pixel in both directions, then convolves 5×5 with stride 1 and padding 2.

    A pixel and its doubles are equal, so that taps which fall on the same pixel can be added up beforehand: each of the
    four doubles is a 3×3 convolution of the small picture. That is the same function with 9 products instead of 25 and
    without the doubled picture in memory.

    Args:
        channels_in: of the small picture.
        channels: of the doubled one.
    """

    taps: Tensor

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels, 5)
        taps = [[[float(k in taps) for k in range(5)] for taps in double] for double in TAPS]
        self.register_buffer("taps", torch.tensor(taps), persistent=False)  # (2 doubles, 3 pixels, 5 taps)

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, 2·H, 2·W, C), channels last, for (N, channels_in, H, W)."""
        assert self.bias is not None
        doubles = F.conv2d(image, self.small_kernels(), self.bias.repeat(4), padding=1)  # (N, 4·C, H, W)
        doubles = doubles.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))  # (N, H, W, 2, 2, C)
        return doubles.transpose(2, 3).reshape(len(image), 2 * image.shape[2], 2 * image.shape[3], -1)

    def small_kernels(self) -> Tensor:
        """Return the 3×3 kernels of the four doubles (4·C, channels_in, 3, 3), float32, the row's double first."""
        with torch.autocast(self.weight.device.type, enabled=False):  # sums of weights are not to be rounded first
            rows = torch.tensordot(self.taps, self.weight, ([2], [2]))  # (2, 3, C, channels_in, 5)
            both = torch.tensordot(rows, self.taps, ([4], [2]))  # (2 rows, 3, C, channels_in, 2 columns, 3)
        return both.permute(0, 4, 2, 3, 1, 5).flatten(0, 2)
