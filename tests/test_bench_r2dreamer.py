"""What the benchmark gives to r2dreamer, whose code is not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamfleet.common.errors import UserError
from tests.bench import r2dreamer
from tests.bench.agents import SPACES, make_batch, picture_spaces


class FakeDynamics:
    """Stands for its world model."""

    def initial(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(size, 2), torch.zeros(size, 3)


class FakeAgent:
    """Stands for its agent."""

    rssm = FakeDynamics()


def make_checkout(folder: Path) -> Path:
    """Return a folder with the names that a checkout has."""
    for name in r2dreamer._SOURCES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_another_folder_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    """The sentence says what was given, what is missing there, and what would be right."""
    (tmp_path / "dreamer.py").touch()
    with pytest.raises(UserError, match=rf"--r2dreamer {tmp_path}: it has no configs/model/_base_.yaml; give .*NM512"):
        r2dreamer.check_checkout(tmp_path)


def test_a_missing_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is measured, not from an import an hour later."""
    checkout = make_checkout(tmp_path)
    monkeypatch.setattr(r2dreamer, "find_spec", lambda name: None if name == "omegaconf" else object())
    with pytest.raises(UserError, match=r"needs omegaconf, not installed here: pip install omegaconf$"):
        r2dreamer.check_checkout(checkout)


def test_every_update_gets_the_same_bytes_and_the_actions_before() -> None:
    """Its update puts float pictures in the place of the bytes: what is given out is a new dictionary each time."""
    pytest.importorskip(
        "tensordict", reason="tensordict is not installed: pip install -c constraints.txt -e '.[bench]'"
    )
    spaces = picture_spaces(SPACES["choice of 6"])
    batch = make_batch(spaces, 2, 5, torch.device("cpu"))
    replay = r2dreamer._OneBatch(FakeAgent(), spaces, batch)
    given, _, initial = replay.sample()
    assert [len(part) for part in initial] == [2, 2]
    given["image"] = given["image"].float() / 255.0
    again, _, _ = replay.sample()
    assert torch.equal(again["image"], batch["image"])
    assert again["reward"].shape == again["is_first"].shape == (2, 5, 1)
    assert torch.equal(again["action"][:, 1:].argmax(-1), batch["action"][:, :-1].long())
    assert not again["action"][:, 0].any()
