"""Environments of other interfaces than Gymnasium's: sentences on what they are, and on what would be right."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import gymnasium
from gymnasium.experimental.functional import FuncEnv
from gymnasium.vector import VectorEnv

_FUNCTIONAL = {"brax", "gymnax", "jumanji", "mujoco_playground", "navix", "pgx", "xminigrid"}
"""Packages whose environments are functions of their state, as in JAX."""
_OLD_STEP = (
    "Gymnasium's returns {}(observation, reward, terminated, truncated, info); shimmy.GymV21CompatibilityV0(env=...) "
    "adapts one of the package gym"
)


def describe_other(value: Any) -> str:
    """Return what a value is that is no `gymnasium.Env`, and what it should be: the end of a sentence."""
    packages, kind = _packages(value), type(value).__name__
    if value is None:
        return "nothing (None): it should return a gymnasium.Env, and a `return` may be missing"
    if isinstance(value, type):
        return f"the class {value.__name__}: it should return an environment made of it, {value.__name__}(...)"
    if isinstance(value, VectorEnv) or (hasattr(value, "num_envs") and hasattr(value, "step")):
        count = getattr(value, "num_envs", "several")
        return (
            f"a vector of {count} environments ({kind}): it should return one, and `--actors.environments {count}` "
            "steps several in each actor"
        )
    if hasattr(value, "possible_agents") or hasattr(value, "agent_iter"):
        form = "AEC" if hasattr(value, "agent_iter") else "Parallel"
        return (
            f"a PettingZoo environment of several agents ({kind}, {form}): one agent is trained here, so it should "
            "return a gymnasium.Env that shows what one of them sees and plays the others itself"
        )
    if isinstance(value, list | tuple) and value and _is_functional(value[0]):  # gymnax.make returns parameters too
        return describe_other(value[0])
    if _is_functional(value):
        return (
            f"a functional environment ({kind}), which is handed its state and random key at each step, as in JAX: it "
            "should return a gymnasium.Env that keeps them, such as Gymnasium's FunctionalJaxEnv, gymnax's "
            "GymnaxToGymWrapper or Brax's GymWrapper makes"
        )
    if packages & {"dm_env", "dm_control"} or all(
        callable(getattr(value, name, None)) for name in ("observation_spec", "action_spec", "step")
    ):
        return (
            f"an environment of dm_env ({kind}): it should return a gymnasium.Env, which "
            "shimmy.DmControlCompatibilityV0(env) makes of those of dm_control (pip install 'dreamfleet[dmc]'), and an "
            "adapter of your own of others"
        )
    if "gym" in packages:
        return (
            f"an environment of the old package gym ({kind}): it should return a gymnasium.Env, which shimmy."
            f"{_old_gym_adapter()}(env=...) makes of it (pip install shimmy)"
        )
    if isinstance(value, list | tuple) and value and (callable(value[0]) or hasattr(value[0], "step")):
        return (
            f"a {kind} of {len(value)}: it should return one environment, and `--actors.environments {len(value)}` "
            "steps several in each actor"
        )
    if isinstance(value, list | tuple):
        return f"a {kind}: it should return a gymnasium.Env"
    if hasattr(value, "reset") and hasattr(value, "step"):
        return f"{kind}, which can be reset and stepped, but is no gymnasium.Env: its class should derive from that"
    return f"{kind}: it should return a gymnasium.Env"


def describe_old_interface(env: gymnasium.Env[Any, Any]) -> str:
    """Return what is old in the interface of an environment that has failed, or an empty string.

    Each layer is tried, the innermost first, so that a wrapper of the user's is not blamed for the environment in it.
    """
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    for layer in reversed(layers):
        try:
            found = _old_in_layer(layer)
        except Exception:  # noqa: BLE001 (it fails for another reason, which the caller knows)
            return ""
        if found:
            return f"{type(layer).__name__}.{found}"
    return ""


def _old_in_layer(env: gymnasium.Env[Any, Any]) -> str:
    """Return what is old in one layer, below which everything is right; raises whatever the environment raises."""
    parameters = inspect.signature(env.reset).parameters.values()
    takes_seed = any(one.name == "seed" or one.kind is one.VAR_KEYWORD for one in parameters)
    begun = env.reset()
    if not (isinstance(begun, tuple) and len(begun) == 2 and isinstance(begun[1], dict)):
        wanted = _OLD_STEP.format("(observation, info), and step ")
        return f"reset returns the observation alone, as the old Gym's did: {wanted}"
    if not takes_seed:
        return "reset takes no seed: Gymnasium's is reset(self, *, seed=None, options=None)"
    stepped = env.step(env.action_space.sample())
    if isinstance(stepped, tuple) and len(stepped) == 4:
        return (
            f"step returns four values, (observation, reward, done, info), as the old Gym's did: {_OLD_STEP.format('')}"
        )
    if not (isinstance(stepped, tuple) and len(stepped) == 5):
        shape = f"a tuple of {len(stepped)}" if isinstance(stepped, tuple) else f"a {type(stepped).__name__}"
        return f"step returns {shape}, not (observation, reward, terminated, truncated, info)"
    return ""


def _packages(value: Any) -> set[str]:
    return {kind.__module__.partition(".")[0] for kind in type(value).__mro__}


def _old_gym_adapter() -> str:
    version = str(getattr(sys.modules.get("gym"), "__version__", "0.21")).split(".")
    is_new = version[0] != "0" or (len(version) > 1 and version[1].isdigit() and int(version[1]) >= 26)
    return "GymV26CompatibilityV0" if is_new else "GymV21CompatibilityV0"


def _is_functional(value: Any) -> bool:
    """Return whether an environment is passed its state and its random numbers instead of keeping them."""
    if isinstance(value, FuncEnv) or _packages(value) & _FUNCTIONAL:
        return True
    try:
        first = next(iter(inspect.signature(value.reset).parameters), "")
    except (AttributeError, TypeError, ValueError):
        return False
    return first in ("key", "rng", "rng_key", "prng_key")
