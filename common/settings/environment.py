"""The environment's settings: their types, defaults and meanings. `--help` shows the text under each one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dreamfleet.common.errors import shown
from dreamfleet.common.settings.model import Section


class EnvironmentSettings(Section):
    """The environment and its wrappers."""

    id: str = "CarRacing-v3"
    """A Gymnasium id, also `module:Id-v0` as in gymnasium.make, or your own `module:function` that returns a Gymnasium
    environment."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the environment, such as `{continuous: false}`; another env.id drops them, unless it has the same
    namespace, such as `ALE/`."""
    wrappers: tuple[str | dict[str, dict[str, Any]], ...] = ()
    """Wrappers around the bare environment, Gymnasium's or your own, the first innermost:
    `[gymnasium.wrappers:FlattenObservation, {my_module:MyWrapper: {size: 3}}]`; dropped like env.kwargs."""
    action_repeat: int = Field(1, ge=1)
    """Simulator steps per environment step; their rewards are summed."""
    image_size: int = Field(64, ge=0)
    """Height and width to which pictures are resized (area interpolation); 0 keeps their size."""
    grey: bool = False
    """Whether pictures are converted to grey."""
    pictures: tuple[str, ...] = ()
    """Observations to treat as pictures, if that is ambiguous: a name, or a list such as `[image]` (the name of an
    observation that is not a Dict). Channels may come first; values are scaled from their declared bounds to 0-255."""
    vectors: tuple[str, ...] = ()
    """Observations to treat as plain numbers, flattened: a matrix, a grid, or a choice that would become a one-hot."""
    one_hot: tuple[str, ...] = ()
    """Observations of whole numbers, such as a board, of which each number becomes a one-hot; flattened."""
    observe: Literal["own", "rendered", "both"] = "own"
    """What the model sees: the environment's own observations, the picture it renders instead, or both."""
    time_limit: int = Field(0, ge=0)
    """Environment steps after which an episode is truncated; 0: the environment decides."""
    noop_max: int = Field(0, ge=0)
    """Episodes begin with a random number of no-op simulator steps, at most this many."""

    @field_validator("pictures", "vectors", "one_hot", mode="before")
    @classmethod
    def _names(cls, names: Any) -> Any:
        """Accept a single name for a list, and whole numbers for names: parts of a Tuple are called 0, 1 and so on."""
        names = list(names) if isinstance(names, list | tuple) else [names]
        return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in names]

    @model_validator(mode="after")
    def _named_once(self) -> EnvironmentSettings:
        named = [*self.pictures, *self.vectors, *self.one_hot]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"'{twice}' is named twice in env.pictures, env.vectors and env.one_hot, and can be one alone"
            )
        return self

    @field_validator("wrappers", mode="before")
    @classmethod
    def _names_of_wrappers(cls, wrappers: Any) -> Any:
        """Accept a single name for a list, and refuse anything else that is not a name."""
        wrappers = [wrappers] if isinstance(wrappers, str) else wrappers
        for wrapper in wrappers if isinstance(wrappers, list | tuple) else [None]:
            name, arguments = next(iter(wrapper.items())) if isinstance(wrapper, dict) and wrapper else (wrapper, {})
            is_named = isinstance(name, str) and all(name.partition(":")) and ":" not in name.partition(":")[2]
            if not is_named or not isinstance(arguments, dict) or (isinstance(wrapper, dict) and len(wrapper) > 1):
                wrong = wrappers if wrapper is None else wrapper
                raise ValueError(
                    f"env.wrappers holds {shown(wrong)}, but must be a list of names and of names with arguments, such "
                    "as [module:Class, {module:Class: {name: value}}]"
                )
        return wrappers

    @property
    def named_wrappers(self) -> list[tuple[str, dict[str, Any]]]:
        """The wrappers' names, each with its arguments."""
        return [item for one in self.wrappers for item in ({one: {}} if isinstance(one, str) else one).items()]
