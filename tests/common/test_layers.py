"""Layers, norms and cells against plain formulas and torch's own."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from rounding import agree
from torch import Tensor, nn

from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.model.encoder import (
    DreamerImageEncoder,
    Encoder,
)
from dreamfleet.common.model.heads import RewardHead
from dreamfleet.common.model.layers import GRUCell, NormGRUCell, RMSNorm
from dreamfleet.common.model.loop_layers import BlockLinear, JointLinear, LoopLinear, in_loop
from dreamfleet.common.settings.model import ModelSettings

pytestmark = pytest.mark.numeric


def numbers(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, without gradient."""
    return tensor.detach().double()


def test_the_two_halves_of_a_joint_layer_make_one_linear_layer() -> None:
    """Their sum is a single linear layer over both inputs, weights drawn for the joint width."""
    torch.manual_seed(0)
    layer = JointLinear(900, 1600, 50)
    whole = nn.Linear(2500, 50)
    assert layer.second is not None
    with torch.no_grad():
        whole.weight.copy_(torch.cat([layer.first.weight, layer.second.weight], 1))
        whole.bias.copy_(layer.first.bias)
    first, second = torch.randn(3, 900), torch.randn(3, 1600)
    assert agree(layer(first, second), whole(torch.cat([first, second], -1)))
    assert 0.019 < whole.weight.abs().max() <= 0.02


def test_v3s_weights_are_drawn_for_their_fan_in() -> None:
    """Deviation sqrt(1 / fan-in), cut off at two of the normal's; biases 0; a head's last layer scaled."""
    torch.manual_seed(0)
    settings = ModelSettings(
        initialisation="truncated_normal",
        reward_units=300,
        reward_output_scale=0.5,
        encoder="dreamer",
        depth=4,
        vector_units=16,
    )
    head = RewardHead(400, settings)
    encoder = Encoder(
        Spaces((ObservationSpec("image", (64, 64, 16), "uint8"),), ActionSpec("discrete", (5,))), settings
    )
    assert isinstance(encoder.image, DreamerImageEncoder)
    for layer, fan_in, scale in (
        (head.hidden[0], 400, 1.0),
        (head.output, 300, 0.5),
        (encoder.image.convolutions[0], 16 * 25, 1.0),
    ):
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        assert layer.weight.std().item() == pytest.approx(scale * fan_in**-0.5, rel=0.1)
        assert layer.weight.abs().max() <= 2 * 1.1368 * scale * fan_in**-0.5
        assert layer.bias is not None
        assert not layer.bias.any()


def test_stacked_cells_equal_torchs_gru() -> None:
    """Each layer is fed by the one below: three cells give what `torch.nn.GRU` of three layers gives."""
    torch.manual_seed(0)
    gru = nn.GRU(6, 10, num_layers=3, batch_first=True)
    cells = [GRUCell(6 if layer == 0 else 10, 10) for layer in range(3)]
    for layer, cell in enumerate(cells):
        for ours, theirs in ((cell.input, "ih"), (cell.carried, "hh")):
            ours.weight.data = getattr(gru, f"weight_{theirs}_l{layer}").data
            ours.bias.data = getattr(gru, f"bias_{theirs}_l{layer}").data
    x, h = torch.randn(3, 7, 6), torch.randn(3, 3, 10)
    expected, last = gru(x, h)
    states, outputs = list(h), []
    for t in range(7):
        fed = x[:, t]
        for layer, cell in enumerate(cells):
            fed = states[layer] = cell(fed, states[layer])
        outputs.append(fed)
    assert agree(torch.stack(outputs, 1), expected)
    assert agree(torch.stack(states), last)


def test_v2s_cell_is_the_published_one() -> None:
    """One layer norm over all gates, the update gate biased by -1, in float64 by hand."""
    torch.manual_seed(0)
    cell = NormGRUCell(5, 4)
    for parameter in cell.parameters():
        nn.init.normal_(parameter)
    x, h = torch.randn(3, 5), torch.randn(3, 4)
    gates = torch.cat([x, h], 1).double() @ numbers(cell.gates.weight).T
    centred = gates - gates.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    reset, candidate, update = (normed * numbers(cell.norm.weight) + numbers(cell.norm.bias)).chunk(3, -1)
    u = torch.sigmoid(update - 1)
    expected = u * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - u) * h.double()
    assert agree(cell(x, h).double(), expected)


def test_a_block_linear_is_a_linear_layer_of_blocks() -> None:
    """It equals one dense layer whose weights are zero off the diagonal of blocks."""
    torch.manual_seed(0)
    layer = BlockLinear(12, 8, 4)
    dense = torch.block_diag(*layer.weight.detach())  # (12, 8)
    x = torch.randn(5, 12)
    assert agree(layer(x).flatten(-2), x @ dense + layer.bias.flatten())


def test_rms_norm_has_a_mean_square_of_one_and_no_shift() -> None:
    """By hand: (3, 4) has a mean square of 12.5; half-precision input is computed in float32."""
    norm = RMSNorm(2)
    norm.weight.data = torch.tensor([1.0, 2.0])
    x = torch.tensor([[3.0, 4.0]])
    scale = 1 / math.sqrt(12.5 + 1e-4)
    assert agree(norm(x), torch.tensor([[3 * scale, 2 * 4 * scale]]))
    assert norm(x.bfloat16()).dtype == torch.float32
    assert torch.equal(norm(torch.zeros(1, 2)), torch.zeros(1, 2))


def test_rms_norms_gradients_are_those_of_the_plain_formula() -> None:
    """On the CPU they are put together by hand: against autograd's in float64, also for a permuted input."""
    torch.manual_seed(0)
    norm = RMSNorm(7)
    nn.init.normal_(norm.weight)
    for x in (torch.randn(4, 5, 7), torch.randn(7, 4, 5).permute(1, 2, 0)):
        weights = torch.randn(4, 5, 7)
        x.requires_grad_()
        got = torch.autograd.grad((norm(x) * weights).sum(), (x, norm.weight))
        exact, scale = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
        plain = exact * (exact.square().mean(-1, keepdim=True) + 1e-4).rsqrt() * scale
        expected = torch.autograd.grad((plain * weights.double()).sum(), (exact, scale))
        assert agree(norm(x).double(), plain)
        assert all(agree(ours.double(), theirs) for ours, theirs in zip(got, expected, strict=True))


@pytest.mark.parametrize("layer", [LoopLinear(6, 4), LoopLinear(6, 4, bias=False), BlockLinear(6, 4, 2)])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_loops_gradients_are_one_product(layer: nn.Module, bfloat16: bool) -> None:
    """Within `in_loop` values are the same, and gradients of weight, bias and inputs but for the order of sums."""
    torch.manual_seed(0)
    dtype = torch.float32 if bfloat16 else torch.float64
    layer.to(dtype)
    x, results = torch.randn(5, 3, 6, dtype=dtype, requires_grad=True), []
    for deferred in (False, True):
        layer.zero_grad()
        x.grad = None
        context = in_loop(layer, 5) if deferred else nullcontext()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), context:
            h = torch.zeros(3, 6, dtype=dtype)
            for step in x.unbind(0):
                h = h + torch.tanh(layer(step + h).to(dtype).flatten(1)).repeat(1, 2)[:, :6]
        h.square().sum().backward()
        results.append([h.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for plain, quick in zip(*results, strict=True):
        assert plain is not None
        assert quick is not None
        assert plain.dtype == quick.dtype == dtype
        assert (plain - quick).abs().max() <= 0.03 * plain.abs().max() if bfloat16 else agree(plain, quick)


def test_a_loop_without_gradients_is_left_alone() -> None:
    """Acting makes no slots, and after a loop, also one that failed, the layer is what it was."""
    layer, x = LoopLinear(2, 2), torch.randn(1, 2)
    with torch.no_grad(), in_loop(layer, 3):
        assert layer._steps is None

    def fail() -> None:
        with in_loop(layer, 3):
            layer(x)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
