"""dreamfleet: RSSM world models learned from pixels by a distributed actor-learner service.

    import dreamfleet as df

    result = df.train(df.settings("cartpole", train={"env_steps": 8000}), directory="runs/mine")
    agent = df.load(result.directory).agent()
    episodes = df.Replay(result.directory).episodes()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Callbacks", "Replay", "RunFailedError", "UserError", "collect", "compare", "dream", "evaluate", "load", "settings",
    "train",
]  # fmt: skip

if TYPE_CHECKING:
    from dreamfleet.common.errors import RunFailedError, UserError
    from dreamfleet.deploy.compare.compare import compare
    from dreamfleet.deploy.fleet.fleet_state import Callbacks
    from dreamfleet.deploy.run.loaded_run import LoadedRun as load
    from dreamfleet.deploy.run.evaluate import evaluate
    from dreamfleet.deploy.run.runs import collect, dream, train
    from dreamfleet.deploy.run.prepare import make_settings as settings
    from dreamfleet.deploy.run.stored_replay import StoredReplay as Replay

_PLACES = {
    "Callbacks": ("deploy.fleet.fleet_state", "Callbacks"),
    "Replay": ("deploy.run.stored_replay", "StoredReplay"),
    "RunFailedError": ("common.errors", "RunFailedError"),
    "UserError": ("common.errors", "UserError"),
    "collect": ("deploy.run.runs", "collect"),
    "compare": ("deploy.compare.compare", "compare"),
    "dream": ("deploy.run.runs", "dream"),
    "evaluate": ("deploy.run.evaluate", "evaluate"),
    "load": ("deploy.run.loaded_run", "LoadedRun"),
    "settings": ("deploy.run.prepare", "make_settings"),
    "train": ("deploy.run.runs", "train"),
}


def __dir__() -> list[str]:
    """Return what is public, for those who complete names."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Import what is public when it is first used: the command line must not wait for torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'dreamfleet' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(import_module(f"dreamfleet.{module}"), attribute)
