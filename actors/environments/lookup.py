"""From `env.id` to the function that makes the environment.

An id `module:attribute` is the user's function or class. Any other id is looked up among registered ones, as
`gymnasium.make` does and a little further, until it is found:

    1. among those registered already, or registered by its suite's package: see suites.py
    2. in installed packages that declare the entry point group `gymnasium.envs`
    3. in a package with the name before the id's slash: `gym_pusht/PushT-v0` imports `gym_pusht`
    4. among those that the process that started the run has sent

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

from dreamfleet.actors.environments.other_interfaces import describe_other
from dreamfleet.actors.environments.suites import Suite, known_spec, register_suite, suite_of
from dreamfleet.actors.environments.user_code import cause_of
from dreamfleet.actors.environments.user_objects import (
    NoSuchAttributeError,
    find_function,
    import_module,
    sent_object,
)
from dreamfleet.common.errors import UserError, nearest
from dreamfleet.common.process_log import log_once

GROUP = "gymnasium.envs"
"""The entry point group by which packages register environments; an entry's name is their namespace."""
_NO_NAMESPACE = ("__root__", "__internal__")

Make = Callable[..., Any]


def find_environment(name: str) -> tuple[Suite, Make]:
    """Return the suite that an id belongs to, and the function that makes its environment.

    In `module:name`, the name is an attribute of the module or, if it has no such attribute, an id that is registered
    once the module is imported.

    Raises:
        UserError: if it is not found, or is not a function.
    """
    module, colon, inside = name.rpartition(":") if name.count(":") == 1 else ("", "", name)
    where = f"env.id '{name}'"
    missing: NoSuchAttributeError | None = None
    if colon and all(part.isidentifier() for part in inside.split(".")):
        try:
            return Suite(), find_function(name, where, "a function that returns a gymnasium.Env")
        except NoSuchAttributeError as error:
            missing = error
    elif colon:
        import_module(module, where)
    try:
        suite = suite_of(inside)
        if not module or known_spec(inside) is None:
            register_suite(suite, inside)
        return suite, _registered_maker(_find_spec(inside, where, module), where)
    except UserError as error:
        raise missing or error from error


def _registered_maker(spec: EnvSpec, where: str) -> Make:
    def make(**kwargs: Any) -> Any:
        try:
            return gymnasium.make(spec, disable_env_checker=True, **kwargs)
        except TypeError as error:
            if "gymnasium.Env" not in str(error):  # Gymnasium's refusal of other interfaces
                raise
            create: Any = spec.entry_point
            create = create if callable(create) else registration.load_env_creator(str(create))
            raise UserError(f"{where} makes {describe_other(create(**spec.kwargs | kwargs))}.") from error

    return make


def _find_spec(name: str, where: str, module: str) -> EnvSpec:
    """Return the registration of an id, after loading what may register it; `module` was imported for it already."""
    spec = known_spec(name)
    failures: list[str] = []
    if spec is None:
        failures = _load_plugins(name.rpartition("/")[0], module)
        spec = known_spec(name) or _import_namespace(name, where) or sent_object(name)
    if spec is None:
        raise UserError(_unknown(name, where, module, failures))
    if spec.id != name:
        log_once(f"env.id '{name}' has no version: '{spec.id}', the latest, is taken")
    return spec


@functools.cache
def _plugins() -> list[tuple[str, EntryPoint]]:
    """Return the entry points of installed packages, each with its namespace: its name, or part of its group's name."""
    groups = [group for group in entry_points().groups if group.startswith(f"{GROUP}.")]
    found = [(entry.name, entry) for entry in entry_points(group=GROUP)]
    return found + [(group.removeprefix(f"{GROUP}."), entry) for group in groups for entry in entry_points(group=group)]


def _load_plugins(namespace: str, module: str) -> list[str]:
    """Load the entry points of the named module, or all of this namespace; return sentences on those that failed.

    Others are not loaded: they may be slow or broken, and cannot register an id of another namespace.
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
        except Exception as error:  # noqa: BLE001 (any error of the package becomes part of the message)
            return (f" '{entry.module}', which may register it, fails: {cause_of(error)}.",)
    return ()


def _import_namespace(name: str, where: str) -> EnvSpec | None:
    """Import a package of the id's namespace, if there is one, and return what it registered."""
    plain = name.rpartition("/")[0].replace("-", "_")
    for module in dict.fromkeys([plain, plain.lower()]):
        if module.isidentifier() and importlib.util.find_spec(module):
            import_module(module, where)
            spec = known_spec(name)
            if spec is not None:
                log_once(f"env.id '{name}' is registered by the package '{module}'")
                return spec
    return None


def _unknown(name: str, where: str, module: str, failures: list[str]) -> str:
    adapter = _old_gym_adapter(name)
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


def _old_gym_adapter(name: str) -> str:
    """Return the id of Shimmy's adapter for an id that the package gym, if imported, has registered; else ""."""
    registry = getattr(sys.modules.get("gym.envs.registration"), "registry", None)
    if isinstance(registry, dict):  # since 0.26
        return "GymV26Environment-v0" if name in registry else ""
    return "GymV21Environment-v0" if name in (getattr(registry, "env_specs", None) or {}) else ""
