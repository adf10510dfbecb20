"""Actions as the networks take them."""

from __future__ import annotations

import math

import pytest
import torch

from dreamfleet.common.acting.action_encoding import decode_actions, encode_actions, previous_actions
from dreamfleet.common.experience.spaces import ActionSpec

pytestmark = pytest.mark.numeric


@pytest.mark.numeric(dtype="float32")
def test_a_discrete_action_becomes_a_one_hot() -> None:
    """Each stored number sets its own place."""
    encoded = encode_actions(ActionSpec("discrete", (3,)), torch.tensor([[2, 0]], dtype=torch.int32))
    assert encoded.dtype == torch.float32
    assert encoded.tolist() == [[[0, 0, 1], [1, 0, 0]]]


def test_multi_discrete_parts_stand_side_by_side() -> None:
    """Every part has its own one-hot, in the order of the parts."""
    spec = ActionSpec("multi_discrete", (2, 3))
    encoded = encode_actions(spec, torch.tensor([[[1, 2]], [[0, 1]]], dtype=torch.int32))
    assert encoded.shape == (2, 1, spec.width)
    assert encoded.tolist() == [[[0, 1, 0, 0, 1]], [[1, 0, 0, 1, 0]]]


MIXED = ActionSpec("mixed", (2, 3), (-10.0, 5.0), (10.0, math.inf))


def test_a_mixed_action_is_its_choices_then_its_reals() -> None:
    """One row of float32: choices become one-hots, reals are scaled, and decoding brings both back."""
    stored = torch.tensor([[[1.0, 2.0, -5.0, 6.5], [0.0, 0.0, 10.0, 5.0]]])
    encoded = encode_actions(MIXED, stored)
    assert encoded.tolist() == [[[0, 1, 0, 0, 1, -0.5, 0.5], [1, 0, 1, 0, 0, 1.0, -1.0]]]
    assert encoded.shape[-1] == MIXED.width
    decoded = decode_actions(MIXED, encoded)
    assert torch.equal(decoded, stored)
    assert decoded.dtype == torch.get_default_dtype()
    beyond = torch.tensor([[0.2, 0.1, 0.0, 3.0, 1.0, -2.0, -2.0]])
    assert decode_actions(MIXED, beyond).tolist() == [[0.0, 1.0, -10.0, 5.0]]


def test_what_lacks_a_bound_is_acted_on_near_zero() -> None:
    """[-1, 1] is the interval of width 2 nearest to it that the bound allows; only a bound clips."""
    low, high = (-math.inf, -1000.0, 5.0, -math.inf, 0.5), (math.inf, math.inf, math.inf, -3.0, 0.5)
    spec = ActionSpec("box", (5,), low, high, (5,))
    ends = torch.tensor([[-1.0] * 5, [1.0] * 5])
    assert decode_actions(spec, ends).tolist() == [[-1, -1, 5, -5, 0.5], [1, 1, 7, -3, 0.5]]
    far = torch.tensor([[-4000.0] * 5, [4000.0] * 5])
    assert decode_actions(spec, far).tolist() == [[-4000, -1000, 5, -4004, 0.5], [4000, 4000, 4006, -3, 0.5]]
    stored = torch.tensor([[0.25, -3.0, 5.5, -4.0, 0.5]])
    assert encode_actions(spec, stored).tolist() == [[0.25, -3.0, -0.5, 0.0, 0.0]]


BOX = ActionSpec("box", (3,), (-10.0, 0.0, -math.inf), (10.0, 1.0, math.inf), (3,))


def test_a_box_is_brought_to_one_scale() -> None:
    """Bounded dimensions are brought to [-1, 1]; one without bounds stays as it is."""
    stored = torch.tensor([[[-7.5, 0.25, 3.0]], [[10.0, 0.0, -40.0]]])
    assert encode_actions(BOX, stored).tolist() == [[[-0.75, -0.5, 3.0]], [[1.0, -1.0, -40.0]]]


def test_what_is_encoded_is_decoded() -> None:
    """Decoding brings every kind of action back; a box beyond its bounds is clipped to them."""
    stored = torch.tensor([[-7.5, 0.25, 3.0]])
    assert torch.allclose(decode_actions(BOX, encode_actions(BOX, stored)), stored)
    assert decode_actions(BOX, torch.tensor([[-1.5, 2.0, 7.0]])).tolist() == [[-10.0, 1.0, 7.0]]
    for spec, choice in (
        (ActionSpec("discrete", (3,)), torch.tensor([2, 0], dtype=torch.int32)),
        (ActionSpec("multi_discrete", (2, 3)), torch.tensor([[1, 2], [0, 1]], dtype=torch.int32)),
    ):
        decoded = decode_actions(spec, encode_actions(spec, choice))
        assert torch.equal(decoded, choice)
        assert decoded.dtype == torch.int32


def test_a_choice_that_does_not_exist_is_refused() -> None:
    """An action out of range is an error, not a row of zeros."""
    with pytest.raises(RuntimeError):
        encode_actions(ActionSpec("discrete", (3,)), torch.tensor([[3]]))


def test_each_step_gets_the_action_before_it() -> None:
    """Shifted by one, zero at the start and where an episode begins."""
    actions = torch.arange(1.0, 9.0).view(2, 4, 1)
    is_first = torch.tensor([[True, False, False, False], [True, False, True, False]])
    assert previous_actions(actions, is_first)[..., 0].tolist() == [[0, 1, 2, 3], [0, 5, 0, 7]]


def test_what_is_stored_after_the_last_observation_is_never_used() -> None:
    """The unused action of an episode's last step does not reach the next episode, whatever it holds."""
    actions = torch.tensor([[[1.0], [float("nan")], [3.0]]])
    previous = previous_actions(actions, torch.tensor([[True, False, True]]))
    assert previous[..., 0].tolist() == [[0, 1, 0]]
