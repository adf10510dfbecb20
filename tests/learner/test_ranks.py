"""Several ranks of a learner: two processes on parts of a batch make the update that one makes on all of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_work import compare_compiled, fail_alone, learn, lose_the_other, resume, tell, train_on_parts
from two_ranks import on_ranks

from dreamfleet.learner.ranks import ALONE

PRESETS = [
    "planet",
    "dreamer_v1",
    "dreamer_v2",
    "dreamer_v3",
    "article",
    "redundancy",
    "contrastive",
    "dreamer_v3+explore",
]
UPDATES = 20


@pytest.fixture(scope="module")
def trained() -> dict[str, list[Any]]:
    """Return what two ranks and one alone came to, by preset."""
    both = on_ranks(train_on_parts, PRESETS, UPDATES)
    dtype = torch.get_default_dtype()
    try:
        alone = train_on_parts(ALONE, PRESETS, UPDATES)
    finally:
        torch.set_default_dtype(dtype)
    return {preset: [alone[preset], *(found[preset] for found in both)] for preset in PRESETS}


@pytest.mark.parametrize("preset", PRESETS)
def test_two_ranks_have_the_gradients_of_the_whole_batch(trained: dict[str, list[Any]], preset: str) -> None:
    """In float64, before clipping: with all that is known of the whole batch alone.

    Free nats of its mean, percentiles of returns, batch norm, correlations, and what a step is told from.
    """
    alone, first, second = (found.gradient for found in trained[preset])
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first, alone, rtol=1e-9, atol=1e-12 * np.abs(alone).max())
    assert np.abs(alone).max() > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_two_ranks_stay_with_one_over_twenty_updates(trained: dict[str, list[Any]], preset: str) -> None:
    """In parameters, in the moving statistics beside them, and in what is reported."""
    alone, first, second = trained[preset]
    for name, value in alone.parameters.items():
        np.testing.assert_allclose(first.parameters[name], value, rtol=1e-6, atol=1e-8, err_msg=name)
        assert np.array_equal(first.parameters[name], second.parameters[name]), name
    assert first.metrics == second.metrics
    for ours, theirs in zip(first.metrics, alone.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)  # metrics are float32


def test_the_test_of_free_nats_tells_the_halves_from_the_whole(trained: dict[str, list[Any]]) -> None:
    """Else deciding by a rank's own half would pass as well: the KL's mean is on both sides of the free nats."""
    for preset in ("dreamer_v1", "dreamer_v2"):
        losses = [row["loss/kl"] for row in trained[preset][0].metrics]
        assert min(losses) < max(losses), preset


@pytest.mark.long
def test_what_is_told_within_a_loss_can_be_compiled() -> None:
    """Percentiles and free nats of all ranks are operations that a compiler takes as they are."""
    for found in on_ranks(compare_compiled, ["dreamer_v2", "dreamer_v3"]):
        for preset, rows in found.items():
            np.testing.assert_allclose(rows["compiled"], rows["eager"], rtol=1e-3, atol=1e-4, err_msg=preset)


def test_what_fails_on_one_rank_leaves_none_waiting() -> None:
    """While preparing both take the next best way; later both end, and the error says how to do without."""
    ways = {"compile": "eager", "warm_up": "compiled", "capture": "compiled", "make_room": "eager", "never": "captured"}
    both = on_ranks(fail_alone, [*ways, "update"], timeout_s=20.0)
    for found in both:
        for step, mode in ways.items():
            assert found[step] == {"mode": mode, "is_as_eager": True}, step
    first, second = (found["update"]["failure"] for found in both)
    assert first.startswith("OtherRankError: no answer from another rank")
    assert second.startswith("LoneFailureError: a captured update failed on this rank")
    assert "RuntimeError: no update here; learner.compile off makes updates eagerly" in second


def test_ranks_tell_each_other() -> None:
    """A gradient that only one has is one of zeros on the other; arrays of any length, and a state with plain data."""
    first, second = on_ranks(tell)
    assert first["gradients"] == [[1.0, 1.0], [0.0, 0.0], None]
    assert second["gradients"] == [[0.0, 0.0], [2.0, 2.0], None]
    for found in (first, second):
        assert found["arrays"] == [0, 1, 2, 0, 1, 2, 3]
        assert found["gathered"] == [[0.0], [0.0], [1.0], [1.0]]
        assert found["spread"] == "{'a': tensor([0, 1, 2]), 'b': [1, {'c': 'd'}]}"


def test_a_lost_rank_is_noticed() -> None:
    """The others do not wait for it: what they called raises."""
    begun = time.monotonic()
    said, _ = on_ranks(lose_the_other, timeout_s=10.0)
    assert said.startswith("no answer from another rank: ")
    assert time.monotonic() - begun < 120.0


def test_ranks_decide_alike_and_resume_with_another_number(tmp_path: Path) -> None:
    """Only the rank whose part is not finite saves it; all stop after the same update; one or two may go on from it."""
    first, second = on_ranks(learn, tmp_path)
    assert first["start"] == second["start"] == 0
    assert first["failure"] == "OtherRankError: update 4 is not finite on rank 1"
    assert second["failure"].startswith("NotFiniteLossError: update 4 was not made: not finite are")
    assert "bad_batch-4-rank1.npz" in second["failure"]
    assert [file.name for file in (tmp_path / "run").glob("*.npz")] == ["bad_batch-4-rank1.npz"]
    assert first["at_failure"] == second["at_failure"] == 3
    assert first["report"].updates == second["report"].updates == first["facts"]["updates"] == 8
    assert first["report"].metrics == second["report"].metrics
    assert first["report"].published.handle is not None
    assert second["report"].published is None
    assert first["stopped"] == second["stopped"]
    assert 8 < first["stopped"][0] <= 10
    assert first["stopped"][1] == first["stopped"][0], "no update is made once it is to stop"
    assert all(np.array_equal(first["state"][name], second["state"][name]) for name in first["state"])

    alone = resume(ALONE, tmp_path, 2)
    both = on_ranks(resume, tmp_path, 2)
    for start, state, report in (alone, *both):
        assert start == 8
        assert report.updates == 10
        assert all(math.isfinite(value) for value in report.metrics.values())
        assert all(np.array_equal(state[name], alone[1][name]) for name in state)
    assert both[0][2].metrics == both[1][2].metrics != alone[2].metrics
