"""r2dreamer (github.com/NM512/r2dreamer) with its decoder, from a checkout of it, on the same batch as ours.

Shapes: B batch, T time.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dreamfleet.common.acting.action_encoding import encode_actions, previous_actions
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec, Spaces
from dreamfleet.common.settings.schema import Settings

METHOD = """
With `--r2dreamer DIR`, r2dreamer (github.com/NM512/r2dreamer) runs in turn with ours on the same batch, on the CPU
with as many threads: its own update, called whole, with its decoder (`rep_loss` dreamer), eager (`compile` off), in
float32 (the autocast to float16 that it asks for on any device is off), with the versions named above, not those it
pins (torch 2.8), without environments and replay: one batch is given out again and again, and the states that it would
write back are dropped. Its settings are its own but for the widths, which are ours; the numbers of parameters stand in
the table. As read in its code the work is the same: convolutions of 5×5 with pooling after and doubling before, block
GRU, two-hot rewards and critic, KL with free nats, imagination from all states without a graph over 15 steps, REINFORCE
with returns scaled by percentiles, the critic's loss in imagination and on the replay with its slow copy beside,
clipping of each tensor, LaProp with warm-up. It does a little more: a 16th imagined step that is not used, the policy
in the last imagined state, its critic a second time in imagination and on the replay, statistics of its actions and
values. Ours does more elsewhere: the norm of all gradients, and a look whether all is finite before it steps. Its KL is
of the distributions before they are mixed with the uniform one, ours after.
"""
_KNOWN = "546e4fab8146"
"""The commit that this module was written for."""
_SOURCES = ("dreamer.py", "configs/model/_base_.yaml", "configs/model/size12M.yaml", "configs/env/dmc_vision.yaml")
_PACKAGES = ("omegaconf", "tensordict")
"""What its code needs beyond what ours does."""
_ITS_NAMES = {
    "reconstruction": ("dreamer", ""),
    "redundancy": ("r2dreamer", "loss/barlow"),
    "contrastive": ("infonce", "loss/infonce"),
}
"""Its `rep_loss` for each of our `loss.representation`, and the metric that has the loss."""


def check_checkout(checkout: Path, device: torch.device | None = None) -> None:
    """Raise a `UserError` if this is no checkout of r2dreamer, or one that could not be run beside ours here.

    Args:
        device: that it is to run on; None for the CPU, while ours would take a GPU if there is one.
    """
    missing = [name for name in _SOURCES if not (checkout / name).is_file()]
    if missing:
        raise UserError(
            f"--r2dreamer {checkout}: it has no {missing[0]}; give a checkout of github.com/NM512/r2dreamer "
            f"(commit {_KNOWN} is known to fit)."
        )
    absent = [name for name in _PACKAGES if find_spec(name) is None]
    if absent:
        raise UserError(
            f"--r2dreamer {checkout}: its code needs {' and '.join(absent)}, not installed here: "
            f"pip install {' '.join(absent)}"
        )
    if device is None and torch.cuda.is_available():
        raise UserError(f"--r2dreamer {checkout} is for the CPU, and there is a GPU: hide it, CUDA_VISIBLE_DEVICES=-1.")


def _describe(checkout: Path) -> str:
    """Return the name with the commit, and whether files differ from that."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").splitlines()
        return f"r2dreamer {git('rev-parse', '--short=12', 'HEAD')}" + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "r2dreamer of an unknown commit"


class R2Dreamer:
    """Its agent as Dreamer V3, and one batch: on a CPU in float32, on a GPU as it is by itself.

    Attributes:
        name: with its commit.
        parameters: numbers that its optimiser changes.

    Args:
        checkout: that `check_checkout` let pass.
        settings: ours, for the widths of its networks.
        spaces: pictures and an action.
        batch: as `make_batch` makes it, (B, T, …), on the device.
        device: that it runs on.
        compiled: whether its gradients are compiled.
        representation: what its states learn by, as `loss.representation` names it.
    """

    def __init__(
        self,
        checkout: Path,
        settings: Settings,
        spaces: Spaces,
        batch: Mapping[str, Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008 (it never changes)
        compiled: bool = False,
        representation: str = "reconstruction",
    ) -> None:
        self._kind = representation
        self.name = _describe(checkout)
        module = _import(checkout)
        if device.type == "cpu":  # its update runs under float16's autocast whatever the device
            module.autocast = lambda **_: torch.autocast("cpu", enabled=False)
        configuration = _configuration(checkout, settings, device, compiled, _ITS_NAMES[representation][0])
        pictures = {spec.name: SimpleNamespace(shape=spec.shape) for spec in spaces.observations}
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its gradient scaler looks for a GPU, and switches itself off without one
            self._agent = module.Dreamer(
                configuration, SimpleNamespace(spaces=pictures), _action_space(spaces.action)
            ).to(device)
        self._replay = _OneBatch(self._agent, spaces, batch)
        groups = self._agent._optimizer.param_groups
        self.parameters = sum(parameter.numel() for group in groups for parameter in group["params"])

    def update(self) -> None:
        """Make one update: its own method, whole, on the batch."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of calls that later versions of torch advise against
            metrics = self._agent.update(self._replay)
        assert torch.isfinite(metrics["opt/loss"]), "an update of r2dreamer was not finite"
        self._metrics = metrics

    def representation(self) -> tuple[Tensor, Tensor, float]:
        """Make an update; return its projections and embeddings (N, E), and the loss that it found of them."""
        kept: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(lambda _, __, found, name=name: kept.update({name: found.detach().clone()}))
            for name, module in (("projected", self._agent.prj), ("embedding", self._agent.encoder))
        ]
        try:
            self.update()
        finally:
            for hook in hooks:
                hook.remove()
        return kept["projected"], kept["embedding"].flatten(0, 1), self._metrics[_ITS_NAMES[self._kind][1]].item()


class _OneBatch:
    """Replaces its replay: always the same batch; what is returned for the stored states is dropped."""

    def __init__(self, agent: Any, spaces: Spaces, batch: Mapping[str, Tensor]) -> None:
        from tensordict import TensorDict

        is_first = batch["is_first"]
        columns = {name: batch[name][..., None] for name in ("reward", "is_first", "is_last", "is_terminal")}
        pictures = {spec.name: batch[spec.name] for spec in spaces.observations}
        before = previous_actions(encode_actions(spaces.action, batch["action"]), is_first)
        self._data = TensorDict({**pictures, **columns, "action": before}, batch_size=is_first.shape)
        self._initial = agent.rssm.initial(len(is_first))

    def sample(self) -> tuple[Any, None, tuple[Tensor, Tensor]]:
        """Return the batch, no places in a store, and the states before it."""
        return self._data.clone(recurse=False), None, self._initial  # a copy: its update puts other pictures in

    def update(self, _index: None, _stochastic: Tensor, _deterministic: Tensor) -> None:
        """Keep nothing."""


def _action_space(action: ActionSpec) -> SimpleNamespace:
    """Return what its agent reads of an action space."""
    if action.kind == "discrete":
        return SimpleNamespace(n=action.sizes[0], discrete=True)
    assert action.kind == "box", "the benchmark has choices and boxes"
    return SimpleNamespace(shape=action.stored_shape)


def _configuration(checkout: Path, settings: Settings, device: torch.device, compiled: bool, kind: str) -> Any:
    """Return its own settings for pictures, with our widths."""
    from omegaconf import OmegaConf

    model = settings.model
    load = [OmegaConf.load(checkout / "configs" / "model" / name) for name in ("_base_.yaml", "size12M.yaml")]
    widths = {
        "deter": model.deterministic,
        "hidden": model.hidden,
        "discrete": model.classes,
        "depth": model.depth,
        "units": model.vector_units,
    }
    chosen = {"rep_loss": kind, "compile": compiled, "imag_horizon": settings.behaviour.horizon}
    whole = {
        "device": str(device),
        "seed": 0,
        "env": OmegaConf.load(checkout / "configs" / "env" / "dmc_vision.yaml"),
        "model": OmegaConf.merge(*load, widths, chosen, {"rssm": {"stoch": model.stochastic}}),
    }
    return OmegaConf.create(whole).model


def _import(checkout: Path) -> Any:
    """Return its module `dreamer`, whose imports name its other modules as if they stood at the root."""
    with _on_path(checkout):
        module = importlib.import_module("dreamer")
    assert module.__file__ is not None
    assert Path(module.__file__).parent == checkout.resolve(), f"another module dreamer: {module.__file__}"
    return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
