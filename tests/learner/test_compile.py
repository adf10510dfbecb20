"""Compiled updates: they compute what eager ones do, for one shape of batch, and give way to these where they fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.settings.resolve import resolve
from dreamfleet.common.settings.schema import LearnerSettings, Settings
from dreamfleet.learner import updater as updater_module
from dreamfleet.learner.behaviour.actor_critic import ActorCritic
from dreamfleet.learner.hardware import Hardware, choose_hardware, compile_region
from dreamfleet.learner.updater import Stopwatch, Updater

pytestmark = pytest.mark.numeric

B, T, UPDATES = 2, 2, 4
CHOICE = ActionSpec("discrete", (3,))
BOX = ActionSpec("box", (2,), (-1.0, -1.0), (1.0, 3.0), (2,))
HAS_CPP = any(shutil.which(name) for name in ("g++", "clang++"))
HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="torch finds no GPU here")
MIXED = ActionSpec("mixed", (2, 3), (-1.0, 0.0), (1.0, float("inf")))
CASES = [
    ("dreamer_v3", MIXED),
    pytest.param("dreamer_v3", CHOICE, marks=pytest.mark.long),
    pytest.param("dreamer_v3", BOX, marks=pytest.mark.long),
    ("dreamer_v2", CHOICE),
    ("dreamer_v1", BOX),
    ("planet", BOX),
]


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    """Else every test's updates were one more variant of the same functions, of which torch compiles eight."""
    yield
    torch.compiler.reset()


def settings_of(preset: str) -> Settings:
    """Return a preset's settings at a size that compiles in seconds.

    The large epsilon makes a step proportional to the gradient: else a gradient that is nothing but rounding would
    be blown up to a whole step.
    """
    flags = {
        "learner.batch_size": B,
        "learner.sequence_length": T,
        "learner.epsilon": 1.0,
        "learner.learning_rate": 0.1,
        "loss.free_nats": 0.0,
    }
    if preset != "planet":
        flags |= {f"behaviour.{name}": 1 for name in ("actor_layers", "critic_layers")} | {"behaviour.horizon": 2}
    return resolve([preset, "debug"], [(name, str(value)) for name, value in flags.items()])


class Trial:
    """An agent that makes updates, always the same ones from the same beginning.

    Args:
        settings: its own.
        action: what it does.
        compiled: whether its updates are compiled.
        device: where.
        bfloat16: in which arithmetic.
    """

    def __init__(
        self, settings: Settings, action: ActionSpec, compiled: bool, device: str = "cpu", bfloat16: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.device, self.action = torch.device(device), action
        self.agent = AgentNetworks(Spaces((ObservationSpec("state", (4,), "float32"),), action), settings).to(
            self.device
        )
        learns = settings.behaviour.kind == "actor_critic"
        self.actor_critic = ActorCritic(self.agent, settings).to(self.device) if learns else None
        hardware = Hardware(self.device, bfloat16, 1, (), compiled)
        self.updater = Updater(self.agent, self.actor_critic, settings, hardware)
        self.made = 0

    def update(self, length: int = T) -> dict[str, float]:
        """Make the next update, and return its metrics."""
        self.made += 1
        torch.manual_seed(self.made)
        batch = {name: value.to(self.device) for name, value in make_batch(self.action, length).items()}
        update = self.updater.update(self.made, batch, Stopwatch())
        assert not update.not_finite
        return {name: value.item() for name, value in update.metrics.items()}

    def gradients(self) -> dict[str, Tensor]:
        """Return the last update's gradients, clipped."""
        networks: dict[str, torch.nn.Module | None] = {"agent": self.agent, "behaviour": self.actor_critic}
        return {
            f"{prefix}.{name}": parameter.grad
            for prefix, network in networks.items()
            if network is not None
            for name, parameter in network.named_parameters()
            if parameter.grad is not None
        }

    def state(self) -> dict[str, Tensor]:
        """Return all that was learnt."""
        behaviour = self.actor_critic.state_dict() if self.actor_critic is not None else {}
        return {**self.agent.state_dict(), **{f"behaviour.{name}": value for name, value in behaviour.items()}}


def make_batch(action: ActionSpec, length: int) -> dict[str, Tensor]:
    """Return sequences of noise."""
    choices = torch.randint(2, (B, length, 2))
    of_kind = {"box": torch.rand(B, length, 2), "mixed": torch.cat([choices, torch.rand(B, length, 2)], -1)}
    never = torch.zeros(B, length, dtype=torch.bool)
    return {
        "state": torch.randn(B, length, 4),
        "action": of_kind.get(action.kind, torch.randint(3, (B, length), dtype=torch.int32)),
        "reward": torch.randn(B, length),
        "is_first": never.index_fill(1, torch.tensor(0), value=True),
        "is_last": never,
        "is_terminal": never,
    }


def pretend(monkeypatch: pytest.MonkeyPatch, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace torch's compiler by this."""
    monkeypatch.setattr(updater_module, "compile_region", lambda region, device: compiled(region))


def assert_parity(preset: str, action: ActionSpec, device: str) -> None:
    """Make a few updates both ways from one beginning with one noise: gradients and what is learnt stay together."""
    settings = settings_of(preset)
    eager, compiled = Trial(settings, action, False, device), Trial(settings, action, True, device)
    reached = set()
    for _ in range(UPDATES):
        expected = eager.update()
        assert compiled.update() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        gradients, found = eager.gradients(), compiled.gradients()
        assert gradients.keys() == found.keys()
        for name, gradient in gradients.items():
            largest = gradient.abs().max().item()
            reached |= {name} if largest else set()
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * largest, msg=partial(_of, name))
    assert reached == gradients.keys()  # else nothing was compared
    assert compiled.updater.is_compiled, "it gave way to eager updates"
    learnt = eager.state()
    assert learnt.keys() == compiled.state().keys()
    for name, value in compiled.state().items():
        torch.testing.assert_close(value, learnt[name], rtol=1e-4, atol=1e-5, msg=partial(_of, name))


def _of(name: str, text: str) -> str:
    return f"{name}: {text}"


# Parity ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "action"), CASES)
def test_a_traced_update_is_the_eager_one(monkeypatch: pytest.MonkeyPatch, preset: str, action: ActionSpec) -> None:
    """Forward and backward as traced for the compiler, without its kernels: those take a CPU minutes."""
    monkeypatch.setattr(updater_module, "compile_region", partial(compile_region, backend="aot_eager"))
    assert_parity(preset, action, "cpu")


@pytest.mark.long
@pytest.mark.hangs_after(900)  # the compiler took 91 s on two cores that much else shared
@pytest.mark.skipif(not HAS_CPP, reason="no C++ compiler, which torch.compile needs on a CPU")
def test_a_compiled_update_is_the_eager_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the compiler's own kernels on a CPU, compiled here and now."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    assert_parity("planet", BOX, "cpu")


@pytest.mark.slow
@needs_gpu
@pytest.mark.parametrize(("preset", "action"), CASES)
def test_a_captured_update_is_the_eager_one(preset: str, action: ActionSpec) -> None:
    """On a GPU the last updates are replays of a graph, each with random numbers of its own seed."""
    assert_parity(preset, action, "cuda")


@pytest.mark.slow
@needs_gpu
@pytest.mark.parametrize(("preset", "action"), CASES)
def test_lower_precision_is_captured_too(preset: str, action: ActionSpec) -> None:
    """In bfloat16, as a GPU's runs are; its roundings differ, so that only the loss is held to the eager one."""
    settings = settings_of(preset)
    eager, compiled = (Trial(settings, action, way, "cuda", bfloat16=True) for way in (False, True))
    for _ in range(UPDATES):
        assert compiled.update()["loss/total"] == pytest.approx(eager.update()["loss/total"], rel=0.05)
    assert compiled.updater.is_compiled, "it gave way to eager updates"


# Where it does not go -------------------------------------------------------------------------------------------------


def test_a_batch_of_another_shape_goes_the_eager_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not compiled anew; the next one of the usual shape goes the compiled way again."""
    calls = []

    def counted(region: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs: calls.append(inputs) or region(*inputs)

    pretend(monkeypatch, counted)
    trial = Trial(settings_of("planet"), BOX, compiled=True)
    made = [trial.update(length) and len(calls) for length in (T, T + 1, T)]
    assert made == [1, 1, 2]


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_what_does_not_compile_goes_on_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """The update that failed is made eagerly as if nothing had been, with one sentence, and it is not tried again."""
    calls = []

    def broken(region: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            calls.append(region.__name__)
            if region.__name__ == "_world_losses":
                return region(*inputs)
            losses = region(*inputs)  # the normaliser has taken the returns in by now
            if when == "backward":
                losses.value.register_hook(fail)
                return losses
            return fail()

        return run

    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel\nand a page of hints")

    pretend(monkeypatch, broken)
    settings = settings_of("dreamer_v3")
    eager, failing = Trial(settings, CHOICE, False), Trial(settings, CHOICE, True)
    for _ in range(2):
        assert failing.update() == eager.update()
    assert all(torch.equal(value, failing.state()[name]) for name, value in eager.state().items())
    assert calls == ["_world_losses", "_behaviour_losses"]
    assert not failing.updater.is_compiled
    assert [record.getMessage() for record in caplog.records] == [
        "Updates go on uncompiled, as without learner.compile, since torch.compile failed: "
        "RuntimeError: no such kernel and a page of hints"
    ]


# When it is chosen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [False, True])
def test_the_choice_is_said(asked: bool) -> None:
    """Nobody gets it unasked, and the log says which way updates go."""
    settings = LearnerSettings.model_validate({"threads": torch.get_num_threads(), "compile": asked})
    chosen = choose_hardware(settings, 0)
    (decision,) = (text for text in chosen.decisions if text.startswith("compile: "))
    assert chosen.compiled is asked
    assert decision == f"compile: {'yes' if asked else 'no'}, as learner.compile says"
