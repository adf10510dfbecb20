"""Plan2Explore: loss and reward against numbers of their own, where gradients go, and who acts when."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from rounding import agree
from torch import Tensor, nn
from update_trial import BOX, CHOICE, MIXED, Trial, make_batch, settings_of

from dreamfleet.common.acting.agent_networks import flatten
from dreamfleet.common.acting.model_policy import ModelPolicy
from dreamfleet.common.experience.spaces import ActionSpec
from dreamfleet.common.model.distributions import OneHot
from dreamfleet.common.settings.schema import Settings
from dreamfleet.learner.behaviour import exploration as exploration_module
from dreamfleet.learner.behaviour.actor_critic import BehaviourLosses
from dreamfleet.learner.behaviour.ensemble import Ensemble, disagreement, prediction_loss, relative_to_mean
from dreamfleet.learner.behaviour.exploration import Exploration
from dreamfleet.learner.behaviour.imagination import Imagined, imagine
from dreamfleet.learner.behaviour.returns import discount_weights, lambda_returns
from dreamfleet.learner.world_model_loss import world_model_loss

pytestmark = pytest.mark.numeric

V3, V1 = "dreamer_v3+explore", "dreamer_v1+explore"
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "relu": lambda x: np.maximum(x, 0.0),
}


def changed(settings: Settings, **sections: dict[str, object]) -> Settings:
    return Settings.model_validate(
        {**settings.model_dump(), **{n: settings.model_dump()[n] | s for n, s in sections.items()}}
    )


def by_hand(ensemble: Ensemble, x: np.ndarray, norm: str, activation: str) -> np.ndarray:
    """Return the predictions (K, N, S) of inputs (N, I), one member after the other, in numpy."""
    numbers = {name: tensor.detach().numpy() for name, tensor in ensemble.named_parameters()}
    last = max(int(name.split(".")[1]) for name in numbers)
    found = []
    for k in range(len(numbers[f"layers.{last}.weight"])):
        y = x
        for layer in range(0, last, 3):
            y = y @ numbers[f"layers.{layer}.weight"][k] + numbers[f"layers.{layer}.bias"][k]
            if norm == "rms":
                y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-4)
            elif norm == "layer":
                y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
            y = y * numbers.get(f"layers.{layer + 1}.weight", np.ones((k + 1, 1, 1)))[k]
            y = ACTIVATIONS[activation](y + numbers.get(f"layers.{layer + 1}.bias", np.zeros((k + 1, 1, 1)))[k])
        found.append(y @ numbers[f"layers.{last}.weight"][k] + numbers[f"layers.{last}.bias"][k])
    return np.stack(found)


def unlike_at_first(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


def reached(loss: Tensor, network: nn.Module) -> bool:
    grads = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
    return any(grad is not None and bool(grad.any()) for grad in grads)


# Against an account of its own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "activation"), [("rms", "silu"), ("layer", "elu"), ("none", "relu")])
def test_the_members_predict_and_disagree_as_worked_out_one_by_one(norm: str, activation: str) -> None:
    """Predictions, loss and disagreement of three members, in numpy; a step before another episode has no target."""
    torch.manual_seed(0)
    behaviour = {"ensemble": 3, "critic_layers": 2}
    settings = changed(settings_of(V3), model={"norm": norm, "activation": activation}, behaviour=behaviour)
    ensemble = Ensemble(5, 4, settings)
    unlike_at_first(ensemble)
    x, target = torch.randn(2, 6, 5), torch.randn(2, 6, 4)
    is_known = torch.rand(2, 6) < 0.6
    predicted = ensemble(x)
    wanted = by_hand(ensemble, x.flatten(0, 1).numpy(), norm, activation).reshape(3, 2, 6, 4)
    assert agree(predicted, wanted)
    loss = sum(
        0.5 * ((wanted[k, b, t] - target[b, t].numpy()) ** 2).sum() / 12
        for k in range(3) for b in range(2) for t in range(6) if is_known[b, t]
    )  # fmt: skip
    assert prediction_loss(predicted, target, is_known).item() == pytest.approx(loss)
    mean = wanted.sum(0) / 3
    assert agree(disagreement(predicted), ((wanted - mean) ** 2).sum(0).mean(-1) / 2)


@pytest.mark.parametrize("preset", [V3, V1])
def test_what_is_predicted_is_the_mean_of_the_next_posterior(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """Of one-hots their probabilities, after the next observation, without gradient."""
    trial, targets = Trial(settings_of(preset), CHOICE if preset == V3 else BOX), []

    def record(predicted: Tensor, target: Tensor, is_known: Tensor) -> Tensor:
        targets.append(target)
        return prediction_loss(predicted, target, is_known)

    monkeypatch.setattr(exploration_module, "prediction_loss", record)
    batch = make_batch(trial.action, 3)
    torch.manual_seed(1)
    posterior = world_model_loss(trial.agent.world_model, batch, trial.settings.loss).rollout.posterior
    torch.manual_seed(1)
    trial.updater._eager.go_backward(batch)
    mean = posterior.probabilities.flatten(-2) if isinstance(posterior, OneHot) else posterior.mean
    assert agree(targets[0], mean[:, 1:])
    assert not targets[0].requires_grad


def test_the_members_begin_unlike_each_other() -> None:
    """Each by itself, with the deviation that a layer of its own would have."""
    torch.manual_seed(0)
    for preset in (V3, V1):
        ensemble = Ensemble(40, 4, settings_of(preset))
        first = ensemble.layers[0].weight
        assert first.std((1, 2)).tolist() == pytest.approx([40**-0.5 / (1.0 if preset == V3 else 3**0.5)] * 8, rel=0.1)
        assert all(not torch.allclose(first[i], first[j]) for i in range(8) for j in range(i))
        assert (disagreement(ensemble(torch.randn(9, 40))) > 1e-4).all()


def explored(trial: Trial) -> tuple[Exploration, Imagined, BehaviourLosses, dict[str, Tensor], Tensor]:
    """Return what an update computes of what explores, and the batch's states (z alone) with a gradient."""
    exploration, model = trial.exploration, trial.agent.world_model
    assert exploration is not None
    batch = make_batch(trial.action, 3)
    batch["is_first"][0, 2] = True
    states = model.dynamics.initial(6).map(lambda part: torch.randn(2, 3, *part.shape[1:]).requires_grad_())
    imagined = imagine(trial.agent, states, 2, exploration.actor_critic.through_model, explores=True)
    losses = exploration.losses(trial.agent, imagined, states, torch.rand_like(states.stochastic), batch)
    return exploration, imagined, losses, batch, states.stochastic


@pytest.mark.parametrize(("preset", "action"), [(V3, CHOICE), (V1, BOX)])
def test_the_explorers_reward_is_the_disagreement_and_the_tasks_the_heads(preset: str, action: ActionSpec) -> None:
    """Relative to its mean, on arriving where the members disagreed; the returns of both are those of their rewards."""
    trial = Trial(settings_of(preset), action)
    behaviour, model = trial.settings.behaviour, trial.agent.world_model
    unlike_at_first(trial.agent)
    exploration, imagined, losses, batch, _ = explored(trial)
    found = []
    for learner, is_explorer in ((exploration.actor_critic, True), (trial.actor_critic, False)):
        assert learner is not None
        with torch.no_grad():
            value = learner.critic(imagined.features).mean
            goes_on = torch.full_like(value, behaviour.discount)
            if model.continuation is not None:
                goes_on = model.predict_continue(imagined.features).mean
            x = torch.cat([imagined.features[:, :-1], imagined.actions], -1)
            members = by_hand(
                exploration.ensemble,
                x.flatten(0, 1).numpy(),
                trial.settings.model.norm,
                trial.settings.model.activation,
            )
            variance = torch.as_tensor(members.var(0, ddof=1).mean(-1)).view(x.shape[:2])
            reward = torch.cat(
                [torch.full((6, 1), 7.0), variance / variance.mean() - 1.0], 1
            )  # the first is in no return
            if not is_explorer:
                reward = model.predict_reward(imagined.features).mean
            found.append((lambda_returns(reward, value, goes_on, 0.95), discount_weights(goes_on, preset == V3)))
    returns, weight = found[0]
    assert losses.metrics["explore/return/mean"].item() == pytest.approx(returns.mean().item())
    assert losses.metrics["explore/disagreement"].item() == pytest.approx(variance.mean().item())
    if preset == V1:  # whose loss is the return itself
        assert losses.policy.item() == pytest.approx(-(weight * returns).mean().item())
    states = model.dynamics.initial(6).map(lambda part: torch.zeros(2, 3, *part.shape[1:]))
    assert trial.actor_critic is not None
    task = trial.actor_critic.losses(trial.agent, imagined, states, batch)
    assert task.metrics["return/mean"].item() == pytest.approx(found[1][0].mean().item())


@pytest.mark.parametrize(("preset", "action"), [(V3, CHOICE), (V1, BOX)])
def test_the_explorers_entropy_weighs_more_by_a_setting_and_the_tasks_does_not(preset: str, action: ActionSpec) -> None:
    """Its loss is less by that weight times the mean of what each state's entropy counts; the actor's is as it was."""
    found = []
    for added in (0.0, 0.5):
        torch.manual_seed(0)
        trial = Trial(changed(settings_of(preset), behaviour={"explorer_entropy": added}), action)
        torch.manual_seed(1)
        _, imagined, losses, batch, _ = explored(trial)
        model = trial.agent.world_model
        assert trial.actor_critic is not None
        states = model.dynamics.initial(6).map(lambda part: torch.zeros(2, 3, *part.shape[1:]))
        torch.manual_seed(2)
        task = trial.actor_critic.losses(trial.agent, imagined, states, batch)
        goes_on = torch.full((6, 3), trial.settings.behaviour.discount)
        if model.continuation is not None:
            goes_on = model.predict_continue(imagined.features).mean.detach()
        found.append((losses.policy.item(), task.policy.item(), losses.metrics["explore/policy/entropy"].item()))
    weight = discount_weights(goes_on, preset == V3).mean().item()
    (without, task_without, entropy), (with_it, task_with, _) = found
    assert without - with_it == pytest.approx(0.5 * weight * entropy, rel=0.05)  # weights and entropies vary a little
    assert task_with == task_without


@pytest.mark.parametrize(("preset", "action"), [(V3, CHOICE), (V3, MIXED), (V1, BOX)])
def test_what_explores_teaches_the_model_nothing(preset: str, action: ActionSpec) -> None:
    """The ensemble's and the critic's loss reach these alone, and a replayed value loss there is none."""
    trial = Trial(settings_of(preset), action)
    unlike_at_first(trial.agent)
    exploration, _, losses, _, states = explored(trial)
    agent = trial.agent
    assert agent.actor is not None
    assert agent.explorer is not None
    for network in (agent.world_model, agent.actor, agent.explorer):
        assert not reached(losses.value, network)
    assert reached(losses.value, exploration.ensemble)
    assert reached(losses.value, exploration.actor_critic.critic)
    assert reached(losses.policy, agent.explorer)
    assert torch.autograd.grad(losses.value, states, allow_unused=True, retain_graph=True) == (None,)
    assert losses.replay_value.item() == 0.0


@pytest.mark.parametrize(("preset", "action"), [(V3, CHOICE), (V1, BOX)])
def test_members_learn_from_a_step_and_its_action_what_the_next_step_is(preset: str, action: ActionSpec) -> None:
    """The loss added up step by step: from h, z and the action at t to the mean of z at t + 1, within an episode."""
    trial = Trial(settings_of(preset), action)
    exploration, model = trial.exploration, trial.agent.world_model
    assert exploration is not None
    unlike_at_first(exploration.ensemble)
    batch = make_batch(action, 5)
    batch["is_first"][0, 2] = batch["is_first"][1, 4] = True
    states = model.dynamics.initial(10).map(lambda part: torch.randn(2, 5, *part.shape[1:]))
    expected = torch.randn_like(states.stochastic)
    stored = batch["action"].numpy()
    # A choice as a one-hot; of the box's bounds (-1, 1) and (-1, 3) each becomes (-1, 1).
    acted = np.eye(3)[stored] if action is CHOICE else stored / np.array([1.0, 2.0]) - np.array([0.0, 0.5])
    wanted, settings = 0.0, trial.settings.model
    for b, t in ((0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)):  # neither the last, nor those before a first
        x = np.concatenate([states.deterministic[b, t, -1], states.stochastic[b, t], acted[b, t]])
        predicted = by_hand(exploration.ensemble, x[None], settings.norm, settings.activation)[:, 0]  # (K, S)
        wanted += 0.5 * ((predicted - expected[b, t + 1].numpy()) ** 2).sum() / (2 * 4)
    assert exploration._ensemble_loss(trial.agent, states, expected, batch).item() == pytest.approx(wanted)


def test_v1s_explorer_is_told_by_the_disagreements_gradient_where_to_go() -> None:
    """With a critic of zeros all of its gradient comes from the rewards: each counts in the returns before it."""
    trial = Trial(settings_of(V1), BOX)
    assert trial.exploration is not None
    assert trial.agent.explorer is not None
    for parameter in trial.exploration.actor_critic.critic.output.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        trial.agent.explorer.output.bias[2:] -= 6.0  # else nearly every action is at a bound
    exploration, imagined, losses, *_ = explored(trial)
    found = disagreement(exploration.ensemble(torch.cat([imagined.features[:, :-1], imagined.actions], -1)))
    first, second = (found / found.detach().mean()).unbind(1)  # (6,) each; the mean less 1 has no gradient
    wanted = -(first + (0.99 * 0.95 + 0.99) * second).sum() / (6 * 2)
    explorer = list(trial.agent.explorer.parameters())
    gradients = [torch.autograd.grad(loss, explorer, retain_graph=True) for loss in (losses.policy, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        assert theirs.any()
        assert agree(ours, theirs)


def test_a_batch_of_no_second_step_teaches_the_ensemble_nothing() -> None:
    """Where each next step begins an episode."""
    trial = Trial(settings_of(V3), CHOICE)
    batch = make_batch(CHOICE, 3)
    batch["is_first"][:] = True
    assert trial.exploration is not None
    states = trial.agent.world_model.dynamics.initial(6).map(lambda part: torch.randn(2, 3, *part.shape[1:]))
    assert trial.exploration._ensemble_loss(trial.agent, states, states.stochastic, batch).item() == 0.0


# It learns -----------------------------------------------------------------------------------------------------------


def test_the_members_agree_where_there_were_data_and_not_elsewhere() -> None:
    """A curve of which one half is seen: the disagreement falls there, and stays on the other half."""
    torch.manual_seed(0)
    settings = changed(settings_of(V1), behaviour={"ensemble": 5, "units": 16, "critic_layers": 2})
    ensemble = Ensemble(1, 1, settings)
    optimiser = torch.optim.Adam(ensemble.parameters(), 1e-2)
    seen, unseen = torch.linspace(-3, -0.5, 50)[:, None], torch.linspace(1.5, 3, 50)[:, None]

    def doubt() -> list[float]:
        return [disagreement(ensemble(x)).mean().item() for x in (seen, unseen)]

    before = doubt()
    for _ in range(150):
        optimiser.zero_grad()
        x = seen[torch.randint(50, (2, 16))]
        prediction_loss(ensemble(x), torch.sin(2 * x), torch.ones(2, 16)).backward()
        optimiser.step()
    after = doubt()
    assert after[0] < 0.5 * before[0]
    assert after[1] > 20 * after[0]


def test_rewards_are_relative_to_the_mean_of_all() -> None:
    """However small they are: half the mean is -0.5; the mean itself has no gradient."""
    found = torch.tensor([[1e-7, 2e-7], [4e-7, 1e-7]]).requires_grad_()
    rewards = relative_to_mean(found)
    assert rewards.tolist() == [pytest.approx([-0.5, 0.0]), pytest.approx([1.0, -0.5])]
    rewards[0, 0].backward()
    assert found.grad is not None
    assert found.grad.tolist() == [[pytest.approx(5e6), 0.0], [0.0, 0.0]]
    assert relative_to_mean(torch.zeros(2, 3)).tolist() == [[-1.0] * 3] * 2


@pytest.mark.numeric(dtype="float32")
def test_the_ensemble_learns_in_half_precision_too() -> None:
    """Under autocast, whose copies of the weights are not to be those that were made without a graph."""
    trial = Trial(settings_of(V3), CHOICE, bfloat16=True)
    assert trial.exploration is not None
    before = [parameter.clone() for parameter in trial.exploration.ensemble.parameters()]
    trial.update()
    pairs = zip(trial.exploration.ensemble.parameters(), before, strict=True)
    assert all(not torch.equal(parameter, was) for parameter, was in pairs)


# Who acts ------------------------------------------------------------------------------------------------------------


@pytest.mark.numeric(dtype="float32")
def test_the_explorer_acts_where_it_is_collected_and_the_actor_where_it_is_judged() -> None:
    """With both in the weights that are published."""
    trial = Trial(settings_of(V3), CHOICE)
    agent = trial.agent
    with torch.no_grad():
        for head, choice in ((agent.actor, 0), (agent.explorer, 2)):
            assert head is not None
            head.output.bias[choice] += 50.0
    weights = flatten(agent.acting_parameters())
    seen = {"state": np.ones((4, 4), np.float32)}
    for explores, choice in ((True, 2), (False, 0)):
        policy = ModelPolicy(trial.settings, agent.world_model.spaces, 4, seed=0, explores=explores)
        policy.adopt(1, weights)
        assert policy.act(seen, np.ones(4, bool)).tolist() == [choice] * 4
