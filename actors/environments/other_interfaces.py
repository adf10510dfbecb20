"""Environments of other interfaces than Gymnasium's: said in words what they are, and what would be right."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import gymnasium
from gymnasium.experimental.functional import FuncEnv
from gymnasium.vector import VectorEnv

_FUNCTIONAL = ("brax", "gymnax", "jumanji", "mujoco_playground", "navix", "pgx", "xminigrid")
"""Packages whose environments are functions of their state, as JAX wants it."""
_RESET = "reset(self, *, seed=None, options=None)"


def describe_other(value: Any) -> str:
    """Return what something is that is no `gymnasium.Env`, and what is wanted instead: the end of a sentence."""
    packages = {kind.__module__.partition(".")[0] for kind in type(value).__mro__}
    kind = type(value).__name__
    if value is None:
        return "nothing (None): it should return a gymnasium.Env; is a `return` missing"
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
    if _is_functional(value, packages):
        return _functional(kind)
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
    if isinstance(value, list | tuple):
        return _several(value)
    if hasattr(value, "reset") and hasattr(value, "step"):
        return f"{kind}, which can be reset and stepped, but is no gymnasium.Env: its class should derive from that"
    return f"{kind}: it should return a gymnasium.Env"


def describe_old_interface(env: gymnasium.Env[Any, Any]) -> str:
    """Return what is old in how an environment is reset and stepped, or an empty string; asked after it has failed.

    Each layer is tried, the innermost first, so that a wrapper of the user's is told from what it wraps.
    """
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    for layer in reversed(layers):
        try:
            found = _old_in(layer)
        except Exception:  # noqa: BLE001 (it fails for another reason, which the caller knows)
            return ""
        if found:
            return f"{type(layer).__name__}.{found}"
    return ""


def _old_in(env: gymnasium.Env[Any, Any]) -> str:
    """Return what is old in one layer, of which those below are as they should be.

    Raises:
        Exception: whatever it raises.
    """
    parameters = inspect.signature(env.reset).parameters.values()
    takes_seed = any(one.name == "seed" or one.kind is one.VAR_KEYWORD for one in parameters)
    shown = env.reset()
    if not (isinstance(shown, tuple) and len(shown) == 2 and isinstance(shown[1], dict)):
        return (
            "reset returns the observation alone, as the old Gym's did: Gymnasium's returns (observation, info), and "
            f"step (observation, reward, terminated, truncated, info); {_way_out()}"
        )
    if not takes_seed:
        return f"reset takes no seed: Gymnasium's is {_RESET}"
    stepped = env.step(env.action_space.sample())
    if isinstance(stepped, tuple) and len(stepped) == 4:
        return (
            "step returns four values, (observation, reward, done, info), as the old Gym's did: Gymnasium's returns "
            f"(observation, reward, terminated, truncated, info); {_way_out()}"
        )
    if not (isinstance(stepped, tuple) and len(stepped) == 5):
        return f"step returns {_shape(stepped)}, not (observation, reward, terminated, truncated, info)"
    return ""


def _way_out() -> str:
    return "shimmy.GymV21CompatibilityV0(env=...) adapts one of the package gym"


def _shape(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _old_gym_adapter() -> str:
    version = str(getattr(sys.modules.get("gym"), "__version__", "0.21")).split(".")
    is_new = version[0] != "0" or (len(version) > 1 and version[1].isdigit() and int(version[1]) >= 26)
    return "GymV26CompatibilityV0" if is_new else "GymV21CompatibilityV0"


def _is_functional(value: Any, packages: set[str]) -> bool:
    """Return whether an environment is handed its state and its random numbers instead of keeping them."""
    if isinstance(value, FuncEnv) or packages & set(_FUNCTIONAL):
        return True
    try:
        first = next(iter(inspect.signature(value.reset).parameters), "")
    except (AttributeError, TypeError, ValueError):
        return False
    return first in ("key", "rng", "rng_key", "prng_key")


def _functional(kind: str) -> str:
    return (
        f"a functional environment ({kind}), which is handed its state and random key at each step, as in JAX: it "
        "should return a gymnasium.Env that keeps them, such as Gymnasium's FunctionalJaxEnv, gymnax's "
        "GymnaxToGymWrapper or Brax's GymWrapper makes"
    )


def _several(values: list[Any] | tuple[Any, ...]) -> str:
    """Return what a list or tuple is: `gymnax.make` returns an environment and its parameters, others several."""
    first = values[0] if values else None
    if first is not None and _is_functional(first, {kind.__module__.partition(".")[0] for kind in type(first).__mro__}):
        return _functional(type(first).__name__)
    name = type(values).__name__
    if first is not None and (callable(first) or hasattr(first, "step")):
        return (
            f"a {name} of {len(values)}: it should return one environment, and `--actors.environments {len(values)}` "
            "steps several in each actor"
        )
    return f"a {name}: it should return a gymnasium.Env"
