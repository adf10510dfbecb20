"""The two loops over time, observing and imagining, whose single step is compiled and called once for each.

A compiler that saw a whole loop would take minutes for it, and its backward pass a product per step for the weights'
gradients. A step is seconds, and is given all that it reads as arguments:

* Observing: the slots and weights of the loop layers (`common/model/loop_layers.py`), and for each step a view of the
  norms' parameters, whose gradients are then one sum over all steps.
* Imagining: the parameters in the products' type, cast once and not in each step; the model's without a gradient.

Every step is called with tensors of one kind, so that it is compiled once: states before the first step ask for a
gradient too, where later ones do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.model.layers import LayerNorm, RMSNorm
from dreamfleet.common.model.loop_layers import BlockLinear, OneStep, Steps
from dreamfleet.common.model.recurrence import Layers
from dreamfleet.common.model.rssm import RSSM, LoopInputs, State, stack_steps
from dreamfleet.learner.behaviour.imagination import act

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Returns a function compiled; see `hardware.compile_region`."""


class CompiledLoops:
    """The loops of an agent; each does what the RSSM's own does, with the same random numbers."""

    def __init__(self, agent: AgentNetworks, compile_: Compile) -> None:
        self._dynamics = agent.world_model.dynamics
        observe_step = _ObserveStep(self._dynamics)

        def observe_once(norms: Mapping[str, Tensor], *read: Any) -> Any:
            return functional_call(observe_step, dict(norms), read)

        self._observe_once = compile_(observe_once)
        self._norms = {
            name: parameter
            for name, parameter, owner in _owned(observe_step)
            if isinstance(owner, LayerNorm | RMSNorm) and ".prior_" not in name
        }
        followed = [False] if agent.explorer is None else [False, True]
        self._imagining = {explores: _Imagining(agent, compile_, explores) for explores in followed}

    def observe(self, inputs: LoopInputs) -> tuple[State, Tensor]:
        """Return what `RSSM.loop` does from zeros; under the autocast of the loss."""
        batch, length = inputs.first.shape[:2]
        steps = [Steps(length) for _ in self._dynamics.step_layers]
        for layer, own in zip(self._dynamics.step_layers, steps, strict=True):
            own.begin(layer, batch)
        weights = [own.weight for own in steps]
        norms = {name: norm.expand(length, *norm.shape).unbind(0) for name, norm in self._norms.items()}
        layers, z = _begin(self._dynamics.initial(batch), with_graph=True)
        # By time: a flag is one byte, and a kernel would copy those that begin anywhere.
        read = inputs._replace(first=inputs.first.transpose(0, 1).contiguous().transpose(0, 1))
        made: list[tuple[Layers, Tensor, Tensor]] = []
        for step, now in enumerate(zip(*(part.unbind(1) for part in read), strict=True)):
            of_step = {name: norm[step] for name, norm in norms.items()}
            slots = [own.slots[step] for own in steps]
            layers, z, raw, seen = self._observe_once(of_step, layers, z, *now, slots, weights)
            for own, x in zip(steps, seen, strict=True):
                own.inputs.append(x)
            made.append((layers, z, raw))
        return stack_steps(made)

    def imagine(self, start: State, horizon: int, explores: bool = False) -> tuple[State, Tensor]:
        """Return what `RSSM.imagine_with` does with the agent's policy; under the autocast of the losses.

        Args:
            explores: whether it is the explorer's policy.
        """
        noise = self._dynamics.latents.draw_noise(len(start.stochastic), horizon, device=start.stochastic.device)
        imagining = self._imagining[explores]
        parameters = imagining.cast()
        layers, z = _begin(start, with_graph=torch.is_grad_enabled())
        made: list[tuple[Layers, Tensor, Tensor]] = []
        for now in noise.unbind(1):
            layers, z, action = imagining.once(parameters, layers, z, now)
            made.append((layers, z, action))
        return stack_steps(made)


class _Imagining:
    """The compiled step of imagining with one policy, `once`, and the parameters that it reads."""

    def __init__(self, agent: AgentNetworks, compile_: Compile, explores: bool) -> None:
        step = _ImagineStep(agent, explores)

        def imagine_once(parameters: Mapping[str, Tensor], *read: Any) -> Any:
            return functional_call(step, dict(parameters), read)

        self.once = compile_(imagine_once)
        actor = "agent.explorer." if explores else "agent.actor."
        is_dynamics = {id(parameter) for parameter in agent.world_model.dynamics.parameters()}
        self._read = [
            (name, parameter, isinstance(owner, nn.Linear | BlockLinear), id(parameter) in is_dynamics)
            for name, parameter, owner in _owned(step)
            if name.startswith((actor, "agent.world_model.dynamics."))
        ]

    def cast(self) -> dict[str, Tensor]:
        """Return what imagining reads, as autocast would cast it at every product."""
        cast = {}
        for name, parameter, is_of_product, is_dynamics in self._read:
            value = parameter.detach() if is_dynamics else parameter
            kind = value.device.type
            if is_of_product and torch.is_autocast_enabled(kind):
                value = value.to(torch.get_autocast_dtype(kind))
            cast[name] = value
        return cast


class _ObserveStep(nn.Module):
    """One step of `RSSM.loop`."""

    def __init__(self, dynamics: RSSM) -> None:
        super().__init__()
        self.dynamics = dynamics

    def forward(
        self,
        layers: Layers,
        z: Tensor,
        first: Tensor,
        prepared: Tensor,
        from_embedding: Tensor,
        noise: Tensor,
        slots: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> tuple[Layers, Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the results of `RSSM.observe_once`, and what each of the loop layers read."""
        called = self.dynamics.step_layers
        steps = [OneStep(slot, weight) for slot, weight in zip(slots, weights, strict=True)]
        for layer, step in zip(called, steps, strict=True):
            layer._steps = step
        layers, z, raw = self.dynamics.observe_once(layers, z, first, prepared, from_embedding, noise)
        for layer in called:
            layer._steps = None
        return layers, z, raw, tuple(step.taken for step in steps)


class _ImagineStep(nn.Module):
    """One step of `RSSM.imagine_with`, with the agent's policy."""

    def __init__(self, agent: AgentNetworks, explores: bool) -> None:
        super().__init__()
        self.agent, self._explores = agent, explores

    def forward(self, layers: Layers, z: Tensor, noise: Tensor) -> tuple[Layers, Tensor, Tensor]:
        """Return the results of `RSSM.imagine_once`."""
        policy = partial(act, self.agent, explores=self._explores)
        return self.agent.world_model.dynamics.imagine_once(layers, z, policy, noise)


def _owned(network: nn.Module) -> list[tuple[str, nn.Parameter, nn.Module]]:
    """Return all parameters, each with its name and the module that it is of."""
    return [
        (f"{prefix}.{name}", parameter, module)
        for prefix, module in network.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]


def _begin(state: State, with_graph: bool) -> tuple[Layers, Tensor]:
    """Return a state's parts as a step's are: each with memory of its own, and with a graph asking for a gradient."""
    parts = [part.detach().clone(memory_format=torch.contiguous_format) for part in state.deterministic.unbind(-2)]
    z = state.stochastic.detach().clone()
    for part in (*parts, z) if with_graph else ():
        part.requires_grad_()
    return tuple(parts), z
