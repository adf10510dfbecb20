"""Compiled updates: they compute what eager ones do, for one shape of batch, and give way to these where they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import learner_on, small_settings
from update_trial import BOX, CHOICE, MIXED, Trial, settings_of

from dreamfleet.common.experience.spaces import ActionSpec
from dreamfleet.common.settings.schema import LearnerSettings
from dreamfleet.learner import updater as updater_module
from dreamfleet.learner.agreement import Changes
from dreamfleet.learner.hardware import Mode, choose_hardware, compile_region
from dreamfleet.replay.replay import Replay

pytestmark = pytest.mark.numeric

UPDATES = 4
HAS_CPP = any(shutil.which(name) for name in ("g++", "clang++"))
HAS_GPU = torch.cuda.is_available()
ALL = [
    ("dreamer_v3", MIXED),
    ("dreamer_v3", CHOICE),
    ("dreamer_v3", BOX),
    ("dreamer_v2", CHOICE),
    ("dreamer_v2", BOX),
    ("dreamer_v1", BOX),
    ("planet", BOX),
    ("small", BOX),
    ("article", BOX),
    ("dreamer_v3+decoder_free", CHOICE),
    ("dreamer_v3+explore", CHOICE),
]
SEEING = [case for case in ALL if case[1] is not MIXED and "explore" not in case[0]]
SLOWEST = pytest.mark.skipif(
    not os.environ.get("DREAMFLEET_COMPILE_ALL"), reason="the compiler takes many minutes: set DREAMFLEET_COMPILE_ALL=1"
)
TRACED = [
    case if case[1] is not MIXED and "+" not in case[0] else pytest.param(*case, marks=pytest.mark.long) for case in ALL
]


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    """Else every test's updates were one more variant of the same functions, of which torch compiles eight."""
    yield
    torch.compiler.reset()


def pretend(monkeypatch: pytest.MonkeyPatch, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace torch's compiler by this."""
    monkeypatch.setattr(updater_module, "compile_region", compiled)


def assert_parity(preset: str, action: ActionSpec, mode: Mode, device: str = "cpu", resumes: bool = False) -> None:
    """Make updates both ways from one beginning with one noise: gradients and all that is learnt stay together.

    The second batch is not finite, and is passed over by both.
    """
    settings = settings_of(preset)
    eager, quick = Trial(settings, action, "eager", device), Trial(settings, action, mode, device)
    begun, reached = eager.state(), set()
    quick.prepare()
    for number in range(UPDATES):
        if number == 1:
            for trial in (eager, quick):
                before = trial.state()
                trial.update(broken=True)
                after = trial.state()
                assert all(torch.equal(after[name], before[name]) for name in before.keys() - {"number"})
        if number == 2 and resumes:
            eager.resume()
            quick.resume()
        expected = eager.update()
        assert quick.update() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        gradients = eager.gradients()
        # A replay writes gradients to memory of the graph alone: there what is learnt from them has to do.
        found = gradients if mode == "captured" else quick.gradients()
        assert gradients.keys() == found.keys()
        for name, gradient in gradients.items():
            largest = gradient.abs().max().item()
            reached |= {name} if largest else set()
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * largest, msg=partial(_of, name))
    assert reached == gradients.keys()  # else nothing was compared
    assert quick.updater.mode == mode, "it gave way"
    wanted, learnt = Changes(begun, eager.state()), Changes(begun, quick.state())
    assert wanted.keys() == learnt.keys()
    for name, change in wanted.items():
        largest = max(change.abs().flatten().tolist(), default=0.0)  # which differs by network and kind of moment
        torch.testing.assert_close(learnt[name], change, rtol=1e-3, atol=1e-4 * largest, msg=partial(_of, name))


def _of(name: str, text: str) -> str:
    return f"{name}: {text}"


# Parity ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "action"), ALL)
def test_steps_that_are_given_all_they_read_are_the_eager_ones(
    monkeypatch: pytest.MonkeyPatch, preset: str, action: ActionSpec
) -> None:
    """The functions that would be compiled, as they are."""
    pretend(monkeypatch, lambda region: region)
    assert_parity(preset, action, "compiled", resumes=True)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "action"), TRACED)
def test_a_traced_update_is_the_eager_one(monkeypatch: pytest.MonkeyPatch, preset: str, action: ActionSpec) -> None:
    """Forward and backward as traced for the compiler, without its kernels; each function is traced once."""
    graphs: list[Callable[..., Any]] = []

    def count(region: Callable[..., Any]) -> Callable[..., Any]:
        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            graphs.append(region)
            return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        return torch.compile(region, fullgraph=True, dynamic=False, backend=backend)

    pretend(monkeypatch, count)
    assert_parity(preset, action, "compiled")
    steps = [region for region in graphs if region.__name__.endswith("_once")]
    assert len(steps) == len(set(steps)), "a second variant was traced: a step was given a tensor of another kind"


@pytest.mark.slow
@pytest.mark.numeric(dtype="float32")
@pytest.mark.parametrize(
    ("preset", "action"),
    [
        case
        if case[0] in ("small", "article", "dreamer_v3+decoder_free")
        else pytest.param(*case, marks=pytest.mark.long)
        for case in SEEING
    ],
)
def test_a_traced_update_of_pictures_rounds_where_the_eager_one_does(
    monkeypatch: pytest.MonkeyPatch, preset: str, action: ActionSpec
) -> None:
    """In bfloat16, forward and backward: what autocast does not touch eagerly it does not touch when traced."""
    pretend(monkeypatch, lambda region: compile_region(region, "aot_eager"))
    modes: tuple[Mode, Mode] = ("eager", "compiled")
    eager, traced = (Trial(settings_of(preset), action, mode, bfloat16=True, sees=True) for mode in modes)
    traced.prepare()
    traced.updater._quick._is_checked = True  # the check's own update would be the last one, whose gradients are kept
    eager.update()
    traced.update()
    assert traced.updater.mode == "compiled", "it gave way"
    found = traced.gradients()
    for name, gradient in eager.gradients().items():  # Dreamer V3's weights are cast before the loop: 0.2 %
        assert (found[name] - gradient).norm() <= 4e-3 * gradient.norm(), name


@pytest.mark.long
@pytest.mark.hangs_after(900)  # the compiler took 91 s on two cores that much else shared
@pytest.mark.skipif(not HAS_CPP, reason="no C++ compiler, which torch.compile needs on a CPU")
@pytest.mark.parametrize(("preset", "action"), [("planet", BOX), pytest.param("dreamer_v3", CHOICE, marks=SLOWEST)])
def test_a_compiled_update_is_the_eager_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, preset: str, action: ActionSpec
) -> None:
    """With the compiler's own kernels on a CPU, compiled here and now."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    assert_parity(preset, action, "compiled")


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["compiled", "captured"])
@pytest.mark.parametrize(("preset", "action"), ALL)
def test_a_gpus_update_is_the_eager_one(preset: str, action: ActionSpec, mode: Mode) -> None:
    """On a GPU: each replay of a graph draws by its update's own seed, also after a checkpoint was loaded."""
    assert_parity(preset, action, mode, "cuda", resumes=True)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.numeric(dtype="float32")
@pytest.mark.parametrize("sees", [False, True])
@pytest.mark.parametrize(("preset", "action"), ALL)
def test_lower_precision_is_captured_too(preset: str, action: ActionSpec, sees: bool) -> None:
    """In bfloat16, as a GPU's runs are; its roundings differ, so that only the loss is held to the eager one."""
    settings = settings_of(preset)
    eager = Trial(settings, action, "eager", "cuda", bfloat16=True, sees=sees)
    captured = Trial(settings, action, "captured", "cuda", bfloat16=True, sees=sees)
    for _ in range(UPDATES):
        assert captured.update()["loss/total"] == pytest.approx(eager.update()["loss/total"], rel=0.05)
    assert captured.updater.mode == "captured", "it gave way"


@pytest.mark.numeric(dtype="float32")
@pytest.mark.parametrize("preset", ["dreamer_v3", "dreamer_v1"])
def test_lower_precision_is_given_to_the_steps_too(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """In bfloat16 a step is given weights that were cast before, and computes what autocast would."""
    pretend(monkeypatch, lambda region: region)
    eager, quick = (Trial(settings_of(preset), BOX, mode, bfloat16=True) for mode in ("eager", "compiled"))
    for _ in range(2):
        assert quick.update() == pytest.approx(eager.update(), rel=0.02, abs=0.02)
    assert quick.updater.mode == "compiled"


@pytest.mark.numeric(dtype="float32")
def test_a_learner_prepares_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, replay: Replay, tmp_path: Path
) -> None:
    """Without experience, on a made-up batch; then it learns what an eager one does, and goes on from a checkpoint."""
    pretend(monkeypatch, lambda region: region)
    caplog.set_level("INFO")
    eager = learner_on(replay, tmp_path / "eager")
    assert eager.restore().is_prepared
    compiled = learner_on(replay, tmp_path / "compiled", small_settings(learner={"compile": "on"}))
    for _ in range(2):
        assert not compiled.restore().is_prepared
        compiled.prepare()
        assert compiled.train(2).metrics == pytest.approx(eager.train(2).metrics, rel=1e-3, abs=1e-4)
        compiled.save({"env_steps": 1})
        eager.save({"env_steps": 1})
    said = [record.getMessage() for record in caplog.records]
    assert sum(text.startswith("Compiled, in ") for text in said) == 2
    assert sum(text.startswith("The first compiled update agrees") for text in said) == 2


# Where it does not go -------------------------------------------------------------------------------------------------


def test_a_batch_of_another_shape_goes_the_eager_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not compiled anew; the next one of the usual shape goes the compiled way again."""
    calls = []

    def counted(region: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs: calls.append(region.__name__) or region(*inputs)

    pretend(monkeypatch, counted)
    trial = Trial(settings_of("planet"), BOX, "compiled")
    trial.update()
    calls.clear()
    made = [trial.update(length) and calls.count("_before_loop") for length in (3, 4, 3)]
    assert made == [1, 1, 2]


@pytest.mark.parametrize("when", ["preparing", "first", "later"])
def test_what_does_not_compile_goes_on_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """The update that failed is made eagerly as if nothing had been, with one sentence, and it is not tried again."""
    calls = []
    fails_at = {"preparing": 1, "first": 2, "later": 3}[when]

    def broken(region: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            found = region(*inputs)  # the normaliser has taken the returns in by now
            if region.__name__ == "_behaviour_losses":
                calls.append(region.__name__)
                if len(calls) == fails_at:
                    found.value.register_hook(fail)
            return found

        return run

    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel\nand a page of hints")

    pretend(monkeypatch, broken)
    settings = settings_of("dreamer_v3")
    eager, failing = Trial(settings, CHOICE), Trial(settings, CHOICE, "compiled")
    for _ in range(3):
        assert failing.update() == pytest.approx(eager.update(), rel=1e-5, abs=1e-6)
    assert all(torch.allclose(value, failing.state()[name], atol=1e-6) for name, value in eager.state().items())
    assert len(calls) == fails_at
    assert failing.updater.mode == "eager"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "Updates go on eagerly, as with learner.compile off, and not compiled, since that failed: "
        "RuntimeError: no such kernel and a page of hints"
    ]


# When it is chosen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "mode", "reason"),
    [
        ("auto", "eager", "since a CPU gains little"),
        ("off", "eager", "as learner.compile says"),
        (False, "eager", "as learner.compile says"),
        ("on", "compiled", "as learner.compile says"),
        (True, "compiled", "as learner.compile says"),
    ],
)
@pytest.mark.skipif(HAS_GPU, reason="tells of a machine without a GPU")
def test_the_choice_is_said(asked: str | bool, mode: str, reason: str) -> None:
    """On a CPU nobody gets it unasked, and the log says which way updates go; older runs have saved a boolean."""
    settings = LearnerSettings.model_validate({"threads": torch.get_num_threads(), "compile": asked})
    chosen = choose_hardware(settings, 0)
    assert chosen.mode == mode
    assert f"updates: {mode}, {reason}" in chosen.decisions
