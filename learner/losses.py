"""All losses of an update and their gradients, computed eagerly or by compiled functions.

Compiled, each of the loops over time is one step that is called again and again (`CompiledLoops`), and what surrounds
them are functions: what precedes the loop over the batch, what follows it, and the losses of actor and critic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from dreamfleet.common.acting.agent_networks import AgentNetworks
from dreamfleet.common.model.rssm import LoopInputs, State
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner import world_model_loss as world
from dreamfleet.learner.behaviour.actor_critic import ActorCritic, BehaviourLosses
from dreamfleet.learner.behaviour.exploration import Exploration
from dreamfleet.learner.behaviour.imagination import Follow, Imagined, imagine
from dreamfleet.learner.behaviour.networks import Networks
from dreamfleet.learner.compiled_loops import Compile, CompiledLoops
from dreamfleet.learner.hardware import Hardware
from dreamfleet.learner.ranks import ALONE, Ranks

BehaviourLossesOf = Callable[[Imagined, State, Tensor | None, Mapping[str, Tensor]], BehaviourLosses]
"""The losses of an actor and its critic, of what is imagined from the states (B, T, …) of a batch.

The third argument is the mean of their z (B, T, S), where something explores.
"""


class Losses:
    """The losses of the world model and, where an actor learns, of actor and critic.

    Args:
        networks: what learns.
        ranks: that share the batch.
        compile_: compiles a function; nothing is compiled if None.
    """

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        hardware: Hardware,
        ranks: Ranks = ALONE,
        compile_: Compile | None = None,
    ) -> None:
        agent, actor_critic, exploration = networks
        self._agent = agent
        self._model = agent.world_model
        self._settings = settings
        self._hardware = hardware
        self._ranks = ranks
        self._before: Callable[..., Any] = self._before_loop
        self._after: Callable[..., Any] = self._after_loop
        self._loop: Callable[[LoopInputs], tuple[State, Tensor]] = self._eager_loop
        self._learning: list[_Learning] = []
        if actor_critic is not None:
            self._learning.append(_Learning(actor_critic, _losses_of(actor_critic, agent)))
        if exploration is not None:
            self._learning.append(_Learning(exploration.actor_critic, _losses_of(exploration, agent), explores=True))
        if compile_ is not None:
            loops = CompiledLoops(agent, compile_)
            self._before, self._after = compile_(self._before_loop), compile_(self._after_loop)
            self._loop = loops.observe
            for each in self._learning:
                each.follow = partial(loops.imagine, explores=each.explores)
                if not each.actor_critic.through_model:
                    # A compiled backward runs once, for all parameters; through the model each loss needs one for some.
                    each.losses = compile_(each.losses)

    def go_backward(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute all gradients; return the metrics and the sum of all losses, detached.

        Args:
            batch: the fields of the step format, (B, T, …).
        """
        with self._hardware.autocast():
            seen = self._before(batch)
            states, raw = self._loop(seen.inputs)
            others, metrics, expected = self._after(batch, seen, states, raw)
        metrics, policies = dict(metrics), []
        for each in self._learning:
            with self._hardware.autocast():
                imagined = self._imagine(each, states)
            with self._hardware.autocast():  # another one: see `imagine`
                losses = each.losses(imagined, states, expected, batch)
            others = others + losses.value + losses.replay_value
            policies.append((each.actor_critic, losses.policy))
            metrics |= losses.metrics
        total = others
        for _, loss in policies:
            total = total + loss
        if any(learner.through_model for learner, _ in policies):
            others.backward()
            for learner, loss in policies:  # through the model it would reach everything, and is the actor's alone
                loss.backward(inputs=list(learner.actor.parameters()))
        else:
            total.backward()
        return metrics, total.detach()

    def _before_loop(self, batch: Mapping[str, Tensor]) -> world.Seen:
        return world.before_loop(self._model, batch)

    def _eager_loop(self, inputs: LoopInputs) -> tuple[State, Tensor]:
        return self._model.dynamics.loop(inputs, self._model.dynamics.initial(len(inputs.first)))

    def _after_loop(
        self, batch: Mapping[str, Tensor], seen: world.Seen, states: State, raw: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        found = world.after_loop(self._model, batch, seen, states, raw, self._settings.loss, self._ranks)
        explores = any(each.explores for each in self._learning)
        return found.total, found.metrics, found.rollout.posterior.mean.detach() if explores else None

    def _imagine(self, learning: _Learning, states: State) -> Imagined:
        through_model, horizon = learning.actor_critic.through_model, self._settings.behaviour.horizon
        return imagine(self._agent, states, horizon, through_model, learning.follow, learning.explores)


def _losses_of(learner: ActorCritic | Exploration, agent: AgentNetworks) -> BehaviourLossesOf:
    """Return a learner's losses as a function of what is imagined; torch compiles no `functools.partial`."""

    def _behaviour_losses(
        imagined: Imagined, states: State, expected: Tensor | None, batch: Mapping[str, Tensor]
    ) -> BehaviourLosses:
        if isinstance(learner, ActorCritic):
            return learner.losses(agent, imagined, states, batch)
        assert expected is not None, "the ensemble needs what it is to predict"
        return learner.losses(agent, imagined, states, expected, batch)

    return _behaviour_losses


@dataclass
class _Learning:
    """What an actor learns by: the losses of what is imagined with it, and how that is followed; see `imagine`."""

    actor_critic: ActorCritic
    losses: BehaviourLossesOf
    explores: bool = False
    follow: Follow | None = None
