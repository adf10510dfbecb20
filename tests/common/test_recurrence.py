"""The deterministic path: V3's cell of blocks and V2's cell, against the equations written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from rounding import agree
from torch import Tensor, nn

from dreamfleet.common.model.layers import NormActivation, RMSNorm, initialise
from dreamfleet.common.model.recurrence import BlockGRU, StackedGRU
from dreamfleet.common.settings.model import ModelSettings

pytestmark = pytest.mark.numeric

B, A, S, D, U, G = 3, 4, 6, 16, 5, 4
SIZES = {"deterministic": D, "hidden": U, "blocks": G, "activation": "silu", "norm": "rms"}


def make_block_gru() -> BlockGRU:
    """Return a small cell whose biases and norms are not what they begin as."""
    torch.manual_seed(0)
    cell = BlockGRU(S, A, ModelSettings.model_validate({**SIZES, "recurrence": "block_gru"}))
    for parameter in cell.parameters():
        nn.init.normal_(parameter, 0.3, 0.5)
    return cell


def numbers(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, without gradient."""
    return tensor.detach().double()


def silu_rms(x: Tensor, stage: NormActivation) -> Tensor:
    """Return SiLU(RMS norm) of one row, written out."""
    assert isinstance(stage.norm, RMSNorm)
    scaled = x / math.sqrt(sum(value.item() ** 2 for value in x) / len(x) + 1e-4) * numbers(stage.norm.weight)
    return scaled / (1 + torch.exp(-scaled))


def affine(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return a linear layer of one row in float64."""
    return numbers(layer.weight) @ x + (0 if layer.bias is None else numbers(layer.bias))


def naive_block_step(cell: BlockGRU, h: Tensor, z: Tensor, a: Tensor) -> Tensor:
    """Return h' of one row: block by block, each with the one kernel over [h's slice, x0, x1, x2]."""
    x0 = silu_rms(affine(cell.from_state, h), cell.state_activation)
    x1 = silu_rms(affine(cell.from_latent, z), cell.latent_activation)
    x2 = silu_rms(affine(cell.from_action, a / a.abs().clamp(min=1)), cell.action_activation)
    part = D // G
    shared = torch.cat([numbers(cell.hidden_known.weight), numbers(cell.hidden_action.weight)], 1)  # (D, 3·U)
    y = []
    for g in range(G):
        rows = slice(g * part, (g + 1) * part)
        kernel = torch.cat([numbers(cell.hidden_blocks.weight[g]).T, shared[rows]], 1)  # (D / G, D / G + 3·U)
        y.append(kernel @ torch.cat([h[rows], x0, x1, x2]) + numbers(cell.hidden_blocks.bias[g]))
    hidden = silu_rms(torch.cat(y), cell.hidden_activation)
    risen = []
    for g in range(G):
        rows = slice(g * part, (g + 1) * part)
        gates = numbers(cell.gates.weight[g]).T @ hidden[rows] + numbers(cell.gates.bias[g])
        reset, candidate, update = gates[:part], gates[part : 2 * part], gates[2 * part :]
        u = torch.sigmoid(update - 1)
        risen.append(u * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - u) * h[rows])
    return torch.cat(risen)


def test_a_block_step_is_the_published_one() -> None:
    """The cell equals the naive loop over rows and blocks."""
    cell = make_block_gru()
    h, z, a = torch.randn(B, D).tanh(), torch.randn(B, S), 2 * torch.randn(B, A)
    expected = torch.stack(
        [naive_block_step(cell, *row) for row in zip(h.double(), z.double(), a.double(), strict=True)]
    )
    (single,) = cell.advance((h,), z, cell.prepare(a))
    assert agree(single.double(), expected)
    assert (a.abs() > 1).any(), "an action is to be beyond 1"


def test_a_block_sees_its_own_slice_and_all_that_is_shared() -> None:
    """Without the projection of h, a block of h reaches its own block alone, through norms that are taken out."""
    cell = make_block_gru()
    nn.init.zeros_(cell.from_state.weight)
    cell.hidden_activation = NormActivation(D, "none", "silu")
    h, z, prepared = torch.randn(1, D), torch.randn(1, S), cell.prepare(torch.randn(1, A))
    (before,) = cell.advance((h,), z, prepared)
    h[:, 4:8] += 1.0
    (after,) = cell.advance((h,), z, prepared)
    assert (before != after)[0].unflatten(0, (G, -1)).any(-1).tolist() == [False, True, False, False]
    (after,) = cell.advance((h,), z + 1.0, prepared)
    assert (before != after)[0].unflatten(0, (G, -1)).any(-1).all()


def test_an_action_beyond_one_counts_as_one() -> None:
    """Each number of its own: (0.5, 3, -7) acts as (0.5, 1, -1), and its gradient does not pass through the bound."""
    cell = make_block_gru()
    far, bounded = torch.tensor([[0.5, 3.0, -7.0, 0.0]]), torch.tensor([[0.5, 1.0, -1.0, 0.0]])
    assert agree(cell.prepare(far), cell.prepare(bounded))


def test_blocks_are_drawn_for_the_whole_input() -> None:
    """V3's fan-in of a block-linear is all that its blocks read together, and weights lie within two deviations."""
    cell = BlockGRU(
        S,
        A,
        ModelSettings(recurrence="block_gru", deterministic=256, hidden=32, blocks=8, norm="rms", activation="silu"),
    )
    initialise(cell, "truncated_normal")
    joint = 256 + 8 * 3 * 32
    for weight, fan_in in (
        (cell.hidden_blocks.weight, joint),
        (cell.hidden_known.weight, joint),
        (cell.hidden_action.weight, joint),
        (cell.gates.weight, 256),
        (cell.from_state.weight, 256),
    ):
        assert weight.std().item() == pytest.approx(math.sqrt(1 / fan_in), rel=0.05)
        assert weight.abs().max().item() <= 2 * 1.1368 * math.sqrt(1 / fan_in)
    assert not cell.gates.bias.any()
    assert torch.equal(cell.state_activation.norm.weight, torch.ones(32))


@pytest.mark.numeric(dtype="float32")
@pytest.mark.parametrize("kind", ["gru", "norm_gru", "block_gru"])
def test_preparing_is_for_all_steps_at_once(kind: str) -> None:
    """The share of a whole sequence's actions is that of each step's, and `advance` keeps float32."""
    recurrence = (BlockGRU if kind == "block_gru" else StackedGRU)(
        S, A, ModelSettings.model_validate({**SIZES, "recurrence": kind})
    )
    actions = torch.randn(B, 7, A)
    whole = recurrence.prepare(actions)
    assert agree(whole[:, 3], recurrence.prepare(actions[:, 3]))
    with torch.autocast("cpu", torch.bfloat16):
        (h,) = recurrence.advance((torch.zeros(B, D),), torch.randn(B, S), recurrence.prepare(actions[:, 0]))
    assert h.dtype == torch.float32
    assert h.shape == (B, D)
