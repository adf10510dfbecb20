"""Settings of what chooses actions: chance, the planner, or an actor that learns in imagination."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dreamfleet.common.settings.section import Section


class BehaviourSettings(Section):
    """What chooses the actions, and how it learns."""

    kind: Literal["random", "planner", "actor_critic"] = "random"
    """`random`; `planner` searches on the model at every step (PlaNet); `actor_critic` learns a policy (Dreamer)."""
    exploration: float = Field(0.0, ge=0)
    """While collecting: deviation of the noise added to reals in [-1, 1]; probability of random choices."""
    horizon: int = Field(15, ge=1)
    """Steps imagined ahead, by the planner and for the actor."""
    candidates: int = Field(1000, ge=2)
    """Planner: action sequences tried at each iteration."""
    iterations: int = Field(10, ge=1)
    """Planner: rounds of trying."""
    elites: int = Field(100, ge=1)
    """Planner: the best so many candidates shape the next iteration's."""
    discount: float = Field(0.99, gt=0, le=1)
    """Discount per step; not read where a continue head with `loss.continue_horizon` carries the discount itself."""
    return_lambda: float = Field(0.95, ge=0, le=1)
    """λ of the λ-returns."""
    actor_layers: int = Field(3, ge=1)
    """Hidden layers of the actor; norm, activation and first weights are of the model's kind."""
    critic_layers: int = Field(3, ge=1)
    """Hidden layers of the critic, likewise."""
    units: int = Field(400, ge=1)
    """Width of actor and critic."""
    actor_output_scale: float = Field(1.0, ge=0)
    """Factor on the first weights of the actor's last layer; with 0.01 it begins with almost equal choices."""
    critic_output_scale: float = Field(1.0, ge=0)
    """Factor on the first weights of the critic's last layer; with 0 it begins by predicting 0."""
    unimix: float = Field(0.0, ge=0, lt=1)
    """Share of uniform probability mixed into the actor's choices."""
    box_policy: Literal["tanh_normal", "bounded_normal"] = "bounded_normal"
    """Distribution of an action's reals: V1's and V2's squashed Normal, or V3's."""
    critic_distribution: Literal["unit_normal", "two_hot"] = "two_hot"
    """What the critic predicts."""
    gradient: Literal["dynamics", "reinforce", "by_action"] = "reinforce"
    """The actor's gradient: through the model, by REINFORCE, or by the kind of action (V2: boxes through the model)."""
    entropy: float = Field(3e-4, ge=0)
    """Weight of the policy's entropy."""
    normalise_returns: bool = True
    """Whether advantages are divided by the spread of the returns (V3)."""
    slow_critic: Literal["none", "target", "regulariser"] = "regulariser"
    """A slow copy of the critic gives the returns (V2's target), or only pulls at the critic (V3)."""
    slow_critic_every: int = Field(1, ge=1)
    """Updates between two changes of the slow critic."""
    slow_critic_rate: float = Field(0.02, gt=0, le=1)
    """How far the slow critic moves to the critic at each change; 1 copies it."""
    replay_value_scale: float = Field(0.3, ge=0)
    """Weight of the critic's loss on replayed steps, which reaches the world model too (V3); 0: none."""
    actor_learning_rate: float = Field(4e-5, gt=0)
    """Learning rate of the actor."""
    critic_learning_rate: float = Field(4e-5, gt=0)
    """Learning rate of the critic."""
    actor_clip: float = Field(100.0, gt=0)
    """Greatest global norm of the actor's gradients, and of the critic's; not read with `learner.clipping adaptive`."""

    @model_validator(mode="after")
    def _elites_among_candidates(self) -> BehaviourSettings:
        if self.elites > self.candidates:
            raise ValueError(
                f"behaviour.elites {self.elites} are more than behaviour.candidates {self.candidates}, "
                "of which they are the best"
            )
        return self
