"""What one update of Dreamer V3 costs by what its states learn by, beside r2dreamer's own three.

Shapes: N states, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.representation import contrastive_loss, redundancy_loss
from tests.bench.agents import SPACES, Trial, arithmetic, picture_spaces
from tests.bench.measure import Bench, Turns, say, take_turns
from tests.bench.r2dreamer import R2Dreamer
from tests.bench.report import Row, at_most

NAME = "representation"
METHOD = """
Whole updates as in the part agents, of Dreamer V3 on 16 sequences of 64 pictures of noise, 64×64×3, with a choice of
6: with reconstruction, with redundancy reduction and with InfoNCE without a decoder, and with redundancy reduction
beside a decoder that learns aside from one in eight sequences. With `--r2dreamer DIR` r2dreamer's own three, which
have no decoder aside, take their turns with these, at the same widths and on the same batch; the part agents says how
it is run. All on the CPU and on one thread, and ratios are of processor time, so that other work on the machine
changes them little: a ratio is how many times the processor time of the update with reconstruction of the same
program is that of this one. Losses on equal inputs: the projections and embeddings of one of r2dreamer's updates are
given to our loss, beside the number that it found.
"""
KINDS = ("reconstruction", "redundancy", "contrastive")
_SIZES = ("size_1m", "size_12m")
_QUICK = (("learner.batch_size", "2"), ("learner.sequence_length", "8"))
_LEAST_APART = 1e-4
"""Both compute in float32, and a loss is a sum over E² correlations of N states each."""


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the figures, size by size."""
    threads = torch.get_num_threads()
    try:
        for size in _SIZES[: bench.choose(2, 1)]:
            yield from _of_size(bench, size)
    finally:
        torch.set_num_threads(threads)


def _settings(bench: Bench, size: str, kind: str, decoder_every: int) -> Settings:
    flags = {"learner.threads": 1, "learner.compile": "off", "learner.device": "cpu", "loss.representation": kind}
    flags["loss.decoder_every"] = decoder_every
    shown = [(name, str(value)) for name, value in flags.items()]
    return resolve(["dreamer_v3", size], [*shown, *(_QUICK if bench.quick else ())])


def _of_size(bench: Bench, size: str) -> Iterator[Row]:
    """Yield what each costs, and how far our losses are from r2dreamer's."""
    spaces = picture_spaces(SPACES["choice of 6"])
    ours = {kind: Trial(_settings(bench, size, kind, 8 if kind == "reconstruction" else 0), spaces) for kind in KINDS}
    ours["redundancy, decoder aside"] = Trial(_settings(bench, size, "redundancy", 8), spaces)
    first = ours["reconstruction"]
    checkout = bench.r2dreamer
    theirs = {
        kind: R2Dreamer(checkout, first.settings, spaces, first.batch, representation=kind)
        for kind in (KINDS if checkout is not None else ())
        if checkout is not None
    }
    parameters = {f"ours: {kind}": trial.parameters for kind, trial in ours.items()}
    parameters |= {f"r2dreamer: {kind}": rival.parameters for kind, rival in theirs.items()}
    updates: dict[str, Callable[[], object]] = {f"ours: {kind}": trial.update for kind, trial in ours.items()}
    updates |= {f"r2dreamer: {kind}": rival.update for kind, rival in theirs.items()}
    say(f"{NAME}: {size}, {len(updates)} contestants")
    turns = take_turns(updates, bench.choose(3, 1))
    for name, update in updates.items():
        yield _row(size, name, turns, parameters[name], arithmetic(update))
    for kind, rival in theirs.items():
        of_processor = turns.processor_time().ratio(f"r2dreamer: {kind}", f"ours: {kind}")
        yield Row(NAME, f"r2dreamer's processor time by ours, {size}, {kind}", "", rival.name, of_processor)
        if kind != "reconstruction":
            yield _equal_inputs(size, kind, rival, first.settings)


def _row(size: str, name: str, turns: Turns, parameters: int, work: int) -> Row:
    """Return what one update takes, beside that with reconstruction of the same program."""
    yardstick = f"{name.partition(':')[0]}: reconstruction"
    took = turns.processor_time()
    ours = f"{turns.median(name):.3g} s ({took.median(name):.3g} s of processor), {work / 1e12:.3g} TFLOP"
    beside = "" if name == yardstick else f"reconstruction: {took.median(yardstick):.3g} s of processor"
    ratio = None if name == yardstick else took.ratio(yardstick, name)
    return Row(NAME, f"an update, {size}, {name}", f"{ours}, {parameters:,} parameters", beside, ratio)


def _equal_inputs(size: str, kind: str, rival: R2Dreamer, settings: Settings) -> Row:
    """Return how far our loss is from the one that r2dreamer found on the same projections and embeddings."""
    projected, embedding, found = rival.representation()
    loss = settings.loss
    own = (
        redundancy_loss(projected, embedding, loss.redundancy_lambda)
        if kind == "redundancy"
        else contrastive_loss(projected, embedding)
    ).item()
    apart = abs(own - found) / abs(found)
    shape = "×".join(map(str, projected.shape))
    what = f"loss on equal inputs {shape}, {size}, {kind}"
    return Row(NAME, what, f"{own:.7g}", f"{rival.name}: {found:.7g}", apart, at_most(apart, _LEAST_APART))
