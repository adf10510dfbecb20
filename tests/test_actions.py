"""Actions as the networks take them."""

from __future__ import annotations

import pytest
import torch

from dreamfleet.common.actions import encode_actions, previous_actions
from dreamfleet.common.spaces import ActionSpec


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


def test_a_box_stays_as_it_is() -> None:
    """Reals are not rescaled."""
    stored = torch.tensor([[[-7.5, 0.25]]])
    assert torch.equal(encode_actions(ActionSpec("box", (2,), (-10, -1), (10, 1), (2,)), stored), stored)


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
