"""Updates as one captured graph or with compiled steps, which give way, the one to the other and both to eager ones.

What nobody could try on a card is not trusted on it: the first batch's update is made eagerly too, from the same state
and with the same random numbers, and compared (`agreement.py`). What fails or differs is given up, and the next best
way is tried: compiled steps without the graph, then none of both.
"""

from __future__ import annotations

import logging
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dreamfleet.learner.agreement import TOLERANCE, Changes, metric_differences, norm_differences, tensor_differences
from dreamfleet.learner.captured_update import CapturedUpdate, CudaGraph, Graph
from dreamfleet.learner.clipping import Gradients
from dreamfleet.learner.hardware import Hardware, Mode
from dreamfleet.learner.losses import Losses
from dreamfleet.learner.ranks import ALONE, OtherRankError, Ranks
from dreamfleet.learner.stopwatch import Stopwatch
from dreamfleet.learner.update_state import Taken, UpdateState, random_states, set_random_states

_LOG = logging.getLogger(__name__)
_LONGEST_REASON = 300
_DIFFERENCES_NAMED = 3


class LoneFailureError(Exception):
    """A quick update failed on one of several ranks, which may not go on eagerly while the others wait for it."""


class Made(NamedTuple):
    """What came of an update, all of it on the device.

    Attributes:
        names: of the metrics.
        values: of the metrics.
        sound: whether this update and all before it were finite.
        gradients: as they were clipped, unless they were let go; a graph's are overwritten by its next update.
    """

    names: list[str]
    values: Tensor
    sound: Tensor
    gradients: Gradients | None


class QuickUpdate:
    """The quick way to make updates with batches of the shapes that it was prepared for.

    Attributes:
        mode: how it makes them: as was asked for, or the next best way that works and agrees; at last `eager`.

    Args:
        make: makes an update with losses, or eagerly with None.
        state: what updates change.
        compile_: returns losses that are compiled when they are first used.
        ranks: that share the batches; what fails or differs on one is given up by all.
        graph: makes what captures an update.
    """

    def __init__(
        self,
        make: Callable[[Losses | None, Mapping[str, Tensor], Stopwatch], Made],
        state: UpdateState,
        hardware: Hardware,
        compile_: Callable[[], Losses],
        ranks: Ranks = ALONE,
        graph: Callable[[], Graph] = CudaGraph,
    ) -> None:
        self._make, self._state, self._hardware = make, state, hardware
        self._compile, self._ranks, self._graph = compile_, ranks, graph
        self.mode: Mode = hardware.mode
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] | None = None
        self._losses: Losses | None = None
        self._captured: CapturedUpdate[Made] | None = None
        self._is_checked = False

    @property
    def _is_eager(self) -> bool:
        return self.mode == "eager"

    def prepare(self, batch: Mapping[str, Tensor]) -> None:
        """Compile and capture the update with a batch of the usual shapes, and put everything back that it changed."""
        if self._is_eager:
            return
        self._shapes, self._is_checked = _shapes(batch), False
        self._losses = self._captured = None
        before = self._state.take()
        try:
            self._together(self._compile_steps, batch, "eager")
            for step in (self._warm_up, self._capture):
                if self.mode == "captured":
                    self._together(step, batch)
            if not self._ranks.is_alone:
                while not (self._is_eager or self._together(self._rehearse_eagerly, batch)):
                    pass  # each way that is given up makes room
        finally:
            self._state.put_back(before)

    def _together(
        self, step: Callable[[Mapping[str, Tensor]], None], batch: Mapping[str, Tensor], otherwise: Mode | None = None
    ) -> bool:
        """Take a step of preparing, and return whether it went well; what fails on one rank is given up by all.

        Args:
            otherwise: the way to go on in if it failed on any rank, unless the next best.
        """
        reason = ""
        try:
            step(batch)
        except OtherRankError:
            raise
        except Exception as error:  # noqa: BLE001 (compilers raise anything; an error of the update itself comes again)
            reason = f"that failed: {_short(error)}"
            if not self._ranks.is_alone:
                _LOG.info("Preparing %s updates failed on this rank: %s", self.mode, reason)  # should none answer now
        has_failed = self._ranks.agree(bool(reason))
        if has_failed:
            self._step_down(reason or "that failed on another rank", otherwise)
        return not has_failed

    def _compile_steps(self, batch: Mapping[str, Tensor]) -> None:
        begun = time.perf_counter()
        _LOG.info("Compiling the update's steps; that takes a minute or so.")
        torch.compiler.reset()  # what an earlier run in this process compiled counts as a variant of the same
        self._losses = self._compile()
        with self._ranks.rehearsing():
            self._make(self._losses, batch, Stopwatch())
        _LOG.info("Compiled, in %.0f s.", time.perf_counter() - begun)

    def _warm_up(self, batch: Mapping[str, Tensor]) -> None:
        make, losses, watch = self._make, self._losses, Stopwatch()
        self._captured = CapturedUpdate(lambda static: make(losses, static, watch), batch, self._graph())
        with self._ranks.rehearsing():
            self._captured.warm_up()

    def _capture(self, batch: Mapping[str, Tensor]) -> None:
        assert self._captured is not None
        begun = time.perf_counter()
        if not self._ranks.is_alone:  # NCCL connects at a first use, for which all have to be there: not in a capture
            self._make(self._losses, batch, Stopwatch())
        self._captured.capture()
        _LOG.info("Captured the update as one graph, in %.1f s.", time.perf_counter() - begun)

    def _rehearse_eagerly(self, batch: Mapping[str, Tensor]) -> None:
        """Try whether an eager update has room beside the quick one: the check makes two with all ranks."""
        with self._ranks.rehearsing():
            self._make(None, batch, Stopwatch())

    def takes(self, batch: Mapping[str, Tensor]) -> bool:
        """Return whether this batch has the usual shapes, which the first one sets: another had to be compiled anew."""
        if not self._is_eager and self._shapes is None:
            self.prepare(batch)
        return not self._is_eager and _shapes(batch) == self._shapes

    def make(self, batch: Mapping[str, Tensor], stopwatch: Stopwatch) -> Made | None:
        """Make an update of a batch that it takes; None if that failed, and then nothing has changed.

        Raises:
            LoneFailureError: if it failed and there are other ranks.
        """
        if not self._is_checked:
            return self._make_and_check(batch, stopwatch)
        drawn = random_states(self._hardware.device)
        try:
            return self._make_quickly(batch, stopwatch)
        except Exception as error:  # noqa: BLE001 (see `_together`)
            self._step_down_alone(error)
        set_random_states(self._hardware.device, drawn)
        return None

    def _make_quickly(self, batch: Mapping[str, Tensor], stopwatch: Stopwatch) -> Made:
        if self._captured is None:
            return self._make(self._losses, batch, stopwatch)
        with stopwatch("forward_backward"):  # and all the rest, in one
            made = self._captured.make(batch)
            return made._replace(values=made.values.clone())

    def _make_and_check(self, batch: Mapping[str, Tensor], stopwatch: Stopwatch) -> Made | None:
        """Make the first update, see `_check`; None if a trial fails, as an eager one may if a graph has all memory."""
        before = self._state.take()
        try:
            return self._check(before, batch, stopwatch)
        except Exception as error:  # noqa: BLE001 (see `_together`)
            self._step_down_alone(error)
        self._state.put_back(before)
        return None

    def _check(self, before: Taken, batch: Mapping[str, Tensor], stopwatch: Stopwatch) -> Made:
        """Make an update eagerly, once more with rounding changed, and quickly; keep the quick one if it agrees."""
        state, precision = self._state, torch.bfloat16 if self._hardware.bfloat16 else torch.float32
        eager = self._try(before, lambda: self._make(None, batch, stopwatch))
        if not eager.made.sound:  # it changed nothing, and nothing can be compared: the next batch will do
            return eager.made
        state.put_back(before)
        state.disturb(torch.finfo(precision).eps)
        disturbed = self._try(state.take(), lambda: self._make(None, batch, Stopwatch()))
        state.put_back(before)
        quick = self._try(before, lambda: self._make_quickly(batch, Stopwatch()))
        self._is_checked = True
        differences = _differences(eager, disturbed, quick, TOLERANCE[precision])
        if self._ranks.agree(bool(differences)) and not differences:
            differences = ["what another rank says"]
        if not differences:
            _LOG.info("The first %s update agrees with an eager one of the same batch, to rounding.", self.mode)
            return quick.made
        more = len(differences) - _DIFFERENCES_NAMED
        what = "; ".join(differences[:_DIFFERENCES_NAMED]) + (f"; and {more} more" if more > 0 else "")
        if self._hardware.is_insisted:
            _LOG.warning("The first %s update is not the eager one of the same batch: %s.", self.mode, what)
            return quick.made
        self._step_down(f"the first one is not the eager one of the same batch: {what}")
        state.put_back(eager.after)
        return eager.made

    def _try(self, before: Taken, make: Callable[[], Made]) -> _Trial:
        made = make()
        gradients = made.gradients
        assert gradients is not None
        found = dict(zip(map(id, gradients.parameters), gradients.views, strict=True))
        own = {
            f"{name}: gradient": found[id(tensor)].to("cpu", copy=True)
            if id(tensor) in found
            else torch.zeros(tensor.shape, dtype=tensor.dtype)
            for name, tensor in self._state.tensors().items()
            if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad
        }
        unclipped = [] if gradients.norms is None else gradients.norms.tolist()
        return _Trial(made._replace(gradients=None), made.values.tolist(), own, unclipped, before, self._state.take())

    def _step_down_alone(self, error: Exception) -> None:
        """Step down after an error that other ranks do not know of; with any of them, raise."""
        if isinstance(error, OtherRankError):
            raise error
        if not self._ranks.is_alone:
            raise LoneFailureError(
                f"a {self.mode} update failed on this rank, and the others have begun theirs: {_short(error)}; "
                "learner.compile off makes updates eagerly"
            ) from error
        self._step_down(f"that failed: {_short(error)}")

    def _step_down(self, reason: str, to: Mode | None = None) -> None:
        """Make no more updates this way, free what was made for it, and go on in the next best way, to be checked."""
        mode, self.mode = self.mode, to or ("compiled" if self.mode == "captured" else "eager")
        self._captured, self._is_checked = None, False
        if self.mode == "compiled":
            _LOG.warning("Updates go on with compiled steps alone, and not captured as one graph, since %s", reason)
            return
        self._losses = None
        torch.compiler.reset()
        _LOG.warning("Updates go on eagerly, as with learner.compile off, and not %s, since %s", mode, reason)


class _Trial(NamedTuple):
    """An update of the first batch.

    Attributes:
        made: what came of it.
        values: of the metrics.
        gradients: by name, as they were clipped.
        norms: of each gradient before it was clipped by itself, if it was.
        before: the state before it.
        after: the state after it.
    """

    made: Made
    values: list[float]
    gradients: dict[str, Tensor]
    norms: list[float]
    before: Taken
    after: Taken

    def changes(self) -> Changes:
        """Return what it changed."""
        return Changes(self.before.tensors, self.after.tensors)


def _differences(eager: _Trial, disturbed: _Trial, quick: _Trial, tolerance: float) -> list[str]:
    """Return a phrase for all that differs beyond rounding."""
    if eager.made.names != quick.made.names:
        return [f"its metrics are {', '.join(quick.made.names)}"]
    of_metrics = metric_differences(eager.made.names, eager.values, disturbed.values, quick.values, tolerance)
    of_norms = norm_differences(eager.norms, disturbed.norms, quick.norms)
    of_gradients = tensor_differences("is", eager.gradients, disturbed.gradients, quick.gradients, tolerance)
    of_changes = tensor_differences("changes", eager.changes(), disturbed.changes(), quick.changes(), tolerance)
    return of_metrics + of_gradients + of_norms + of_changes


def _shapes(batch: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in batch.items()}


def _short(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder=" …")
