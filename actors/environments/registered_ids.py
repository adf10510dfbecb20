"""Environments by the id that they are registered under, as `gymnasium.make` takes it and a little beyond.

An id is looked for until it is found:

    1. where it is registered already, or by its suite's package: see suites.py
    2. among installed packages that declare the entry point group `gymnasium.envs`
    3. in a package of the name that stands before the id's slash: `gym_pusht/PushT-v0` imports `gym_pusht`
    4. among what the process that started the run knew

An id without a version means the latest.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import gymnasium
from gymnasium.envs import registration
from gymnasium.envs.registration import EnvSpec

from dreamfleet.actors.environments.handover import handed_over
from dreamfleet.actors.environments.other_interfaces import describe_other
from dreamfleet.actors.environments.user_objects import cause_of, import_module
from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.process_log import log_once

GROUP = "gymnasium.envs"
"""The entry point group by which packages register environments; an entry's name is their namespace."""
_NO_NAMESPACE = ("__root__", "__internal__")


def known_spec(name: str) -> EnvSpec | None:
    """Return how an id is registered now, or None; without a version it means the latest."""
    spec = gymnasium.registry.get(name)
    if spec is not None:
        return spec
    try:
        namespace, bare, version = registration.parse_env_id(name)
    except gymnasium.error.Error:
        return None
    latest = registration.find_highest_version(namespace, bare) if version is None else None
    return None if latest is None else gymnasium.registry.get(registration.get_env_id(namespace, bare, latest))


def find_registered(name: str, where: str, module: str = "") -> EnvSpec:
    """Return how an id is registered, after loading what may register it.

    Args:
        name: the id, without a module.
        where: the setting and the value that name it, for messages.
        module: what was imported for it, which may have registered nothing.

    Raises:
        UserError: if it is not registered, with how to name the module that does.
    """
    spec = known_spec(name)
    failures: list[str] = []
    if spec is None:
        failures = _load_plugins(name.rpartition("/")[0], module)
        spec = known_spec(name) or _import_namespace(name, where) or handed_over(name)
    if spec is None:
        raise UserError(_unknown(name, where, module, failures))
    if spec.id != name:
        log_once(f"env.id '{name}' has no version: '{spec.id}', the latest, is taken")
    return spec


def maker_of(spec: EnvSpec, where: str) -> Callable[..., Any]:
    """Return the function that makes a registered environment of its arguments."""

    def make(**kwargs: Any) -> Any:
        try:
            return gymnasium.make(spec, disable_env_checker=True, **kwargs)
        except TypeError as error:
            if "gymnasium.Env" not in str(error):  # by which Gymnasium refuses what is no environment of its own
                raise
            create: Any = spec.entry_point
            create = create if callable(create) else registration.load_env_creator(str(create))
            raise UserError(f"{where} makes {describe_other(create(**spec.kwargs | kwargs))}.") from error

    return make


@functools.cache
def _plugins() -> list[tuple[str, EntryPoint]]:
    """Return what installed packages declare, each with its namespace; some wrote that into the group's name."""
    groups = [group for group in entry_points().groups if group.startswith(f"{GROUP}.")]
    found = [(entry.name, entry) for entry in entry_points(group=GROUP)]
    return found + [(group.removeprefix(f"{GROUP}."), entry) for group in groups for entry in entry_points(group=group)]


def _load_plugins(namespace: str, module: str) -> list[str]:
    """Have the named package register its environments, or all that may bring this namespace; return what failed.

    Others are left alone: they may be big, or broken, and cannot register an id of another namespace.
    """
    failures: list[str] = []
    for plugin_namespace, entry in _plugins():
        if module:
            may_register = entry.module.partition(".")[0] == module.partition(".")[0]
        else:
            may_register = plugin_namespace in (_NO_NAMESPACE if not namespace else (namespace,))
        if may_register:
            failures += _load_plugin(plugin_namespace, entry)
    return failures


@functools.cache
def _load_plugin(namespace: str, entry: EntryPoint) -> tuple[str, ...]:
    place = nullcontext() if namespace in _NO_NAMESPACE else registration.namespace(namespace)
    with place:  # Gymnasium's does not close by itself if something is raised within
        try:
            register = entry.load()
            if callable(register):
                register()
        except Exception as error:  # noqa: BLE001 (whatever a package raises is said beside the id that was not found)
            return (f" '{entry.module}', which may register it, fails: {cause_of(error)}.",)
    return ()


def _import_namespace(name: str, where: str) -> EnvSpec | None:
    """Import the package that is called as the id's namespace, if there is one, and return what it registered."""
    namespace = name.rpartition("/")[0]
    plain = namespace.replace("-", "_")
    for module in dict.fromkeys([plain, plain.lower()]):
        if module.isidentifier() and importlib.util.find_spec(module):
            import_module(module, where)
            spec = known_spec(name)
            if spec is not None:
                log_once(f"env.id '{name}' is registered by the package '{module}'")
                return spec
    return None


def _unknown(name: str, where: str, module: str, failures: list[str]) -> str:
    """Return the sentence of an id that nobody registered, with what failed to."""
    adapter = _adapter_of_old_gym(name)
    if adapter:
        full = f"{module}:{name}" if module else name
        # gym 0.26's own checker fails with NumPy 2
        unchecked = ", make_kwargs: {disable_env_checker: true}" if "V26" in adapter else ""
        return (
            f"{where} is registered with the old package gym: name `shimmy:{adapter}` instead, with `--env.kwargs "
            f"'{{env_id: {full}{unchecked}}}'` (pip install shimmy)."
        )
    namespace = name.rpartition("/")[0]
    known = [other for other in gymnasium.registry if not namespace or other.startswith(f"{namespace}/")]
    hint = "".join(failures) or nearest(name, known)
    if module:
        return f"{where}: importing '{module}' registers no '{name}'.{hint}"
    return (
        f"{where} is not an environment that Gymnasium has here: name the module that registers it, as in `--env.id "
        f"package:{name}`, or a function of your own, `--env.id module:function`."
        f"{hint or ' Is the package that brings it installed?'}"
    )


def _adapter_of_old_gym(name: str) -> str:
    """Return the id of Shimmy's adapter for an id that the package gym knows, if that is imported; else ""."""
    registry = getattr(sys.modules.get("gym.envs.registration"), "registry", None)
    if isinstance(registry, dict):  # since 0.26
        return "GymV26Environment-v0" if name in registry else ""
    return "GymV21Environment-v0" if name in (getattr(registry, "env_specs", None) or {}) else ""
