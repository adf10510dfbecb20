"""From an id to an environment: ids of every form, wrappers of the user's own, and what is said of other interfaces."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest
from chunk_shelf import start_shelf
from fresh_rendering import before_a_library_is_chosen
from gymnasium.envs import registration
from patience import PATIENCE_S

from dreamfleet.actors.environments import lookup, other_interfaces, rendering, user_objects
from dreamfleet.actors.environments.make import make_environment, probe_environment
from dreamfleet.actors.environments.user_objects import SentCode
from dreamfleet.common import process_log
from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.chunk import parse_header
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.common.settings.environment import EnvironmentSettings
from dreamfleet.common.settings.resolve import resolve, write_settings
from dreamfleet.common.settings.schema import Settings

MODULE = """
import gymnasium

def register_all():
    gymnasium.register("{name}", entry_point="moving_square_environment:MovingSquare", max_episode_steps=5)
"""


SCRIPT = """
import gymnasium

class Scripted(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Discrete(3), gymnasium.spaces.Discrete(2)

    def __init__(self, reward=1.0):
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 1, self.reward, False, False, {}

class ScriptedWrapper(gymnasium.Wrapper):
    pass

gymnasium.register("Scripted-v0", entry_point=Scripted)
gymnasium.register("ScriptedText-v0", entry_point="__main__:Scripted")
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script's `__main__`, with the environment that it defines and registers."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(SCRIPT, main.__dict__)  # noqa: S102 (our own text)
    return main


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget after each test what it registered, and have modules that register imported anew."""
    for module in [name for name in sys.modules if name.startswith(("registering", "plugged"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(process_log, "_logged_once", {})
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)
    for cache in (lookup._plugins, lookup._load_plugin):
        cache.cache_clear()
    for module in [name for name in sys.modules if name.startswith(("registering", "plugged"))]:
        del sys.modules[module]


def load(name: str, **settings: Any) -> gymnasium.Env[Any, Any]:
    return make_environment(EnvironmentSettings(id=name, **settings))


def refusal(name: str, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        probe_environment(EnvironmentSettings(id=name, **settings))
    return str(error.value)


def install(folder: Path, group: str, name: str, value: str, module: str, text: str) -> None:
    """Write a package of one module with one entry point, as pip would leave it."""
    (folder / f"{module}.py").write_text(text)
    information = folder / f"{module}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")


@pytest.mark.parametrize(
    ("name", "registered", "limit"),
    [
        ("registering_module:Registered-v0", "Registered-v0", 7),
        ("registering_module:Registered-v2", "Registered-v2", 9),
        ("registering_module:Registered", "Registered-v2", 9),
        ("registering_module:registering/Square-v3", "registering/Square-v3", None),
        ("CartPole", "CartPole-v1", 500),
    ],
)
def test_ids_are_taken_as_gymnasium_takes_them(name: str, registered: str, limit: int | None) -> None:
    """A module before the colon is imported first; without a version the latest is taken; the id's limit holds."""
    env = load(name)
    assert env.spec is not None
    assert (env.spec.id, env.spec.max_episode_steps) == (registered, limit)
    env.close()


def test_what_follows_the_colon_is_an_attribute_before_it_is_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that has both gives its attribute; one that has neither is refused with the nearest of each."""
    text = MODULE.format(name="Pole") + "\nregister_all()\ndef Pole():\n    return gymnasium.make('CartPole-v1')\n"
    (tmp_path / "registering_both.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert load("registering_both:Pole").action_space == gymnasium.spaces.Discrete(2)
    assert "'registering_both' has no 'Pola'. Did you mean 'Pole'?" in refusal("registering_both:Pola")
    said = refusal("registering_module:Registerd-v2")
    assert "importing 'registering_module' registers no 'Registerd-v2'. Did you mean 'Registered-v" in said


def test_a_namespace_is_a_package_that_registers_as_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`registering_pusher/Push-v0` needs no module before it, also where the package spells itself otherwise."""
    text = MODULE.format(name="Registering-Pusher/Push-v0") + "\nregister_all()\n"
    (tmp_path / "registering_pusher.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert load("Registering-Pusher/Push-v0").spec.max_episode_steps == 5  # type: ignore[union-attr]
    assert "registered by the package 'registering_pusher'" in process_log.logged_once()[0][1]
    assert "Did you mean 'Registering-Pusher/Push-v0'" in refusal("Registering-Pusher/Pusj-v0")


@pytest.mark.parametrize(
    ("group", "entry", "name"),
    [
        ("gymnasium.envs", "Plugged", "Plugged/Square-v0"),
        ("gymnasium.envs", "__root__", "PluggedSquare-v0"),
        ("gymnasium.envs.__root__", "anything", "PluggedSquare-v0"),
    ],
)
def test_installed_packages_that_declare_the_entry_point_are_known(
    group: str, entry: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry's name is the namespace, `__root__` none; it is loaded once an id asks for it, and no sooner."""
    install(tmp_path, group, entry, "plugged:register_all", "plugged", MODULE.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    load("CartPole-v1").close()
    assert "plugged" not in sys.modules
    assert load(name).spec.max_episode_steps == 5  # type: ignore[union-attr]
    assert registration.current_namespace is None


def test_a_broken_package_is_named_where_its_ids_are_wanted_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it raises is said beside the unknown id; other namespaces do not load it, and it leaves none behind."""
    install(tmp_path, "gymnasium.envs", "Squares", "plugged:register_all", "plugged", "import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "'plugged', which may register it, fails: ModuleNotFoundError" in refusal("Squares/Square-v0")
    assert "plugged" not in refusal("Circles/Circle-v0")
    assert registration.current_namespace is None


def test_an_unknown_id_is_told_how_to_name_its_module() -> None:
    """The sentence spells the flag, with this id."""
    assert "`--env.id package:FlappyBird-v0`" in refusal("FlappyBird-v0")
    assert "`--env.id package:Other/Walk-v0`" in refusal("Other/Walk-v0")


def test_wrappers_are_put_around_the_bare_environment_in_their_order() -> None:
    """Rewards of 1, plus 2, doubled; then repeated twice, which sums them: 12. The other order would give 8."""
    wrappers = [{"odd_interfaces:add_one": {"reward": 2.0}}, "odd_interfaces:double"]
    env = load("odd_interfaces:New", wrappers=wrappers, action_repeat=2)
    env.reset(seed=0)
    assert env.step(0)[1] == 12.0
    env = load("odd_interfaces:New", wrappers=wrappers[::-1], action_repeat=2)
    env.reset(seed=0)
    assert env.step(0)[1] == 8.0


def test_a_tuple_of_observations_is_one_wrapper_away() -> None:
    """Blackjack's three choices become a vector by Gymnasium's own wrapper, named in a flag and kept in the file."""
    flags = [("env.id", "Blackjack-v1"), ("env.wrappers", "[gymnasium.wrappers:FlattenObservation]")]
    found = probe_environment(resolve([], flags).env)
    assert [(entry.name, entry.shape) for entry in found.observations] == [("vector", (32 + 11 + 2,))]


def test_wrappers_are_settings_like_others(tmp_path: Path) -> None:
    """They are read back from a run's file; another environment forgets them; one name alone is a list of one."""
    text = "[odd_interfaces:double, {odd_interfaces:add_one: {reward: 0.5}}]"
    settings = resolve([], [("env.wrappers", text)])
    assert settings.env.named_wrappers == [("odd_interfaces:double", {}), ("odd_interfaces:add_one", {"reward": 0.5})]
    write_settings(settings, tmp_path / "config.yaml")
    assert resolve(base=tmp_path / "config.yaml").env == settings.env
    assert resolve([], [("env.id", "CartPole-v1")], base=tmp_path / "config.yaml").env.wrappers == ()
    assert resolve([], [("env.wrappers", "odd_interfaces:double")]).env.wrappers == ("odd_interfaces:double",)


@pytest.mark.parametrize(
    "text", ["3", "[3]", "[double]", "{odd_interfaces:double: {}}", "[odd_interfaces:double: 3]", "[a:b:c]", "['a:']"]
)
def test_what_is_no_list_of_wrappers_is_refused(text: str) -> None:
    """The sentence names the flag and shows the form."""
    with pytest.raises(UserError, match=r"env.wrappers holds .*must be a list .*module:Class.*flag --env.wrappers"):
        resolve([], [("env.wrappers", text)])


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [
        ("no_such_wrappers:Wrapper", ["no module 'no_such_wrappers'"]),
        ("gymnasium.wrappers:FlatenObservation", ["has no 'FlatenObservation'", "Did you mean 'FlattenObservation'?"]),
        ("odd_interfaces:not_callable", ["is int", "gymnasium.Wrapper or a function"]),
        ("odd_interfaces:fail", ["no arguments", "ValueError: told to fail", "odd_interfaces.py, line"]),
        ("odd_interfaces:lose", ["returned NoneType", "gymnasium.Wrapper or a function"]),
        ({"odd_interfaces:add_one": {"rewrad": 2}}, ["arguments {'rewrad': 2}", "unexpected keyword"]),
    ],
)
def test_a_wrapper_that_does_not_fit_is_one_sentence(wrapper: Any, words: list[str]) -> None:
    """It names the wrapper and what is wrong with it."""
    said = refusal("odd_interfaces:New", wrappers=[wrapper])
    assert said.startswith("env.wrappers '")
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("OldReset", ["OldReset.reset returns the observation alone", "GymV21CompatibilityV0"]),
        ("OldStep", ["OldStep.step returns four values", "(observation, reward, terminated, truncated, info)"]),
        ("NoSeed", ["NoSeed.reset takes no seed", "reset(self, *, seed=None, options=None)"]),
        ("Stepped", ["returned Stepped", "is no gymnasium.Env", "derive"]),
        ("OfOldGym", ["old package gym", "shimmy.GymV2"]),
        ("OfDmEnv", ["dm_env (OfDmEnv)", "shimmy.DmControlCompatibilityV0"]),
        ("Turns", ["PettingZoo environment of several agents (Turns, AEC)", "one agent is trained"]),
        ("AtOnce", ["PettingZoo environment of several agents (AtOnce, Parallel)", "one agent is trained"]),
        ("Pure", ["functional environment (Pure)", "keeps them"]),
        ("pure_and_parameters", ["functional environment (Pure)"]),
        ("functional", ["functional environment (FuncEnv)", "FunctionalJaxEnv"]),
        ("vector", ["vector of 3 environments (SyncVectorEnv)", "--actors.environments 3"]),
        ("several", ["list of 2", "--actors.environments 2"]),
        ("a_class", ["the class New", "New(...)"]),
        ("nothing", ["nothing (None)", "`return`"]),
    ],
)
def test_other_interfaces_are_named_with_what_would_be_right(name: str, words: list[str]) -> None:
    """The old Gym, PettingZoo, dm_env, vectors and functions of a state, each in one sentence."""
    said = refusal(f"odd_interfaces:{name}")
    assert said.startswith(f"env.id 'odd_interfaces:{name}'")
    assert all(word in said for word in words), said


def test_an_old_wrapper_is_told_from_what_it_wraps() -> None:
    """The sentence names the wrapper's class, not the environment's."""
    said = refusal("odd_interfaces:New", wrappers=["odd_interfaces:OldWrapper"])
    assert "OldWrapper.step returns four values" in said


def test_a_registered_environment_of_another_interface_is_named_too() -> None:
    """What gymnasium.make refuses is said as if a function had returned it."""
    gymnasium.register("OldSquare-v0", entry_point="odd_interfaces:OfOldGym")
    assert "env.id 'OldSquare-v0' makes an environment of the old package gym (OfOldGym)" in refusal("OldSquare-v0")


def test_an_id_of_the_old_package_is_told_of_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names Shimmy's id and its argument, by the version of gym."""
    from types import SimpleNamespace

    old = SimpleNamespace(registry=SimpleNamespace(env_specs={"Ancient-v0": None}))
    monkeypatch.setitem(sys.modules, "gym.envs.registration", old)
    assert "`shimmy:GymV21Environment-v0`" in refusal("Ancient-v0")
    monkeypatch.setitem(sys.modules, "gym.envs.registration", SimpleNamespace(registry={"Ancient-v0": None}))
    assert "'{env_id: Ancient-v0, make_kwargs: {disable_env_checker: true}}'" in refusal("Ancient-v0")
    monkeypatch.setitem(sys.modules, "gym", SimpleNamespace(__version__="0.26.2"))
    assert other_interfaces._old_gym_adapter() == "GymV26CompatibilityV0"


@pytest.mark.parametrize("given", [None, "egl"])
def test_what_mujoco_draws_with_is_chosen_before_user_code_is_imported(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's module finds MUJOCO_GL set, to the user's value if there is one; where MuJoCo is not, nothing is."""
    before_a_library_is_chosen(monkeypatch, given, ["osmesa"])
    monkeypatch.setattr(rendering.importlib.util, "find_spec", lambda name: name == "mujoco")
    rendering.choice.cache_clear()
    load("registering_module:Registered-v0")
    rendering.choice.cache_clear()
    assert sys.modules["registering_module"].library == (given or "osmesa")
    assert not [line for _, line in process_log.logged_once() if "MuJoCo" in line]  # nothing has imported it


def test_nothing_is_tried_for_environments_that_are_known_not_to_use_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gymnasium's own cost no trial of libraries, but for a wrapper of the user's."""
    tried: list[int] = []
    monkeypatch.setattr("dreamfleet.actors.environments.make.prepare_library", lambda: tried.append(1))
    load("CartPole-v1")
    assert not tried
    load("CartPole-v1", wrappers=["odd_interfaces:double"])
    assert tried


@pytest.mark.ray
@pytest.mark.parametrize("name", ["__main__:Scripted", "Scripted-v0", "ScriptedText-v0"])
def test_what_lives_in_a_script_is_sent_to_actors_by_value(name: str, script: Any, local_ray: None) -> None:
    """An actor on Ray, whose `__main__` is another, makes the script's environment in the script's wrapper."""
    import ray

    from dreamfleet.actors.actor import ActorProcess

    settings = Settings.model_validate({"env": {"id": name, "wrappers": ["__main__:ScriptedWrapper"]}})
    found = probe_environment(settings.env)
    given = SentCode.of(settings.env, ray.get_runtime_context().get_node_id())
    shelf = start_shelf()
    actor = ActorProcess.options(num_cpus=0).remote(settings, 0, 0, shelf, given)  # type: ignore[attr-defined]
    assert ray.get(actor.collect.remote(3, None), timeout=PATIENCE_S).steps == 3
    (chunk,) = ray.get(shelf.chunks.remote(), timeout=PATIENCE_S)
    assert parse_header(chunk).format_identity == StepFormat(found).identity, "the actor's spaces are the driver's"
    ray.kill(actor)
    ray.kill(shelf)


def test_what_a_script_holds_and_cannot_be_sent_is_one_sentence(script: Any) -> None:
    """A lock in a registration's arguments ends the start, and says where the environment may live instead."""
    import threading

    gymnasium.register("Locked-v0", entry_point=script.Scripted, kwargs={"reward": threading.Lock()})
    with pytest.raises(UserError, match=r"'Locked-v0' lives in the program .* write it into a module of its own"):
        SentCode.of(EnvironmentSettings(id="Locked-v0"), "here")


def test_a_script_that_does_not_run_here_is_one_sentence() -> None:
    """Another program's `__main__` has no such function: the sentence says where it would be found."""
    assert "the program that runs here has no 'make_corridor'" in refusal("__main__:make_corridor")


@pytest.mark.parametrize(("machine", "expected"), [("here", "osmesa"), ("there", None)])
def test_the_library_that_draws_is_handed_over_on_one_machine(
    machine: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor beside the driver tries nothing anew, one elsewhere does; modules are found where it finds them."""
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv(rendering.FOUND_VARIABLE, "")
    given = SentCode.of(EnvironmentSettings(id="CartPole-v1"), "here")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(user_objects, "_sent_objects", {})
    monkeypatch.setattr(sys, "path", [])
    given.install(machine)
    assert rendering.os.environ.get("MUJOCO_GL") == expected
    assert sys.path == list(dict.fromkeys(given.search_path))


def test_what_takes_no_render_mode_is_made_without() -> None:
    """One that claims to draw, but cannot be asked to, is played undrawn, and refused as a picture."""
    gymnasium.register("Undrawn-v0", entry_point="odd_interfaces:Undrawn")
    env = make_environment(EnvironmentSettings(id="Undrawn-v0"), render=True)
    assert env.render_mode is None
    assert [line for _, line in process_log.logged_once() if "takes no render_mode" in line]
    assert "env.observe rendered needs" in refusal("Undrawn-v0", observe="rendered")
