"""How our steps lie in a Minari dataset: which of its arrays holds what, and what is kept beside them.

A stored episode (`replay/episodes.py`) of n steps becomes an episode of n observations and n - 1 transitions. With the
names of `common/experience/steps.py`, for a whole episode of four steps:

    observations     o_0   o_1   o_2   o_3
    actions          a_0   a_1   a_2
    rewards          r_1   r_2   r_3
    terminations     0     0     is_terminal_3
    truncations      0     0     not is_terminal_3
    infos/dreamfleet ...   n entries of each field of a step that is no observation, and of its place

An episode whose end is not stored is marked as truncated, as Minari's own collector marks one that it stops in the
middle: learners then bootstrap at its last observation, which is right, and never join it to the next episode. The
infos hold the flags as they were, and the first reward and the last action, for which Minari has no place.

A single step has no transition, and Minari cannot hold it: such steps lie in a file of their own beside the data, which
other tools do not see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamfleet import __version__
from dreamfleet.common.experience.spaces import ActionSpec, Spaces
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.replay.episodes import StoredEpisode

DATA_FOLDER = "data"
"""Where in a dataset's directory Minari looks for everything."""
METADATA_FILE = "metadata.json"
GROUP = "dreamfleet"
"""What is ours, in a dataset's metadata and in an episode's infos."""
VERSION = 1
"""Of what is written there; another one is refused."""
SINGLE_STEPS_FILE = "dreamfleet-single-steps.npz"
CHOICES, REALS = "choices", "reals"
"""The two entries of a mixed action."""
PLACE = "place"
"""In the infos: actor, incarnation, stream, sequence number of the chunk and number in the stream, (n, 5)."""


def minari_names(step_format: StepFormat) -> dict[str, str]:
    """Return what each observation is called there: HDF5 takes a slash for a folder."""
    names: dict[str, str] = {}
    for spec in step_format.spaces.observations:
        name = spec.name.replace("/", ".")
        while name in names.values() or name in (".", ""):
            name += "_"
        names[spec.name] = name
    return names


def observation_space(step_format: StepFormat) -> spaces.Dict:
    """Return the observations' space: a Dict of pictures (H, W, C) in uint8 and vectors (D,) in float32."""
    names = minari_names(step_format)
    boxes: dict[str, spaces.Space[Any]] = {}
    for spec in step_format.spaces.observations:
        low, high = (0, 255) if spec.dtype == "uint8" else (-np.inf, np.inf)
        boxes[names[spec.name]] = spaces.Box(low, high, spec.shape, np.dtype(spec.dtype).type)
    return spaces.Dict(boxes)


def action_space(spec: ActionSpec) -> spaces.Space[Any]:
    """Return the actions' space; a box has the shape that the environment wants, a mixed action is a Dict of two."""
    if spec.kind == "discrete":
        return spaces.Discrete(spec.sizes[0])
    if not spec.reals:
        return spaces.MultiDiscrete(np.array(spec.sizes))
    shape = spec.box_shape if spec.kind == "box" else (spec.reals,)
    low, high = (np.array(bounds, np.float32).reshape(shape) for bounds in (spec.low, spec.high))
    box = spaces.Box(low, high, dtype=np.float32)
    return spaces.Dict({CHOICES: spaces.MultiDiscrete(np.array(spec.choices)), REALS: box}) if spec.choices else box


def to_episode(step_format: StepFormat, stored: StoredEpisode) -> dict[str, Any]:
    """Return two steps or more as the arguments of Minari's `EpisodeBuffer`."""
    arrays, action = stored.arrays, step_format.spaces.action
    ended = arrays["is_last"][-1] & arrays["is_terminal"][-1]
    terminations = np.zeros(len(stored) - 1, bool)
    truncations = np.zeros(len(stored) - 1, bool)
    terminations[-1], truncations[-1] = ended, not ended
    observed = minari_names(step_format)
    ours = {field.name: arrays[field.name] for field in step_format.fields if field.name not in observed}
    return {
        "observations": {name: arrays[ours] for ours, name in observed.items()},
        "actions": _to_actions(action, arrays["action"][:-1]),
        "rewards": arrays["reward"][1:],
        "terminations": terminations,
        "truncations": truncations,
        "infos": {GROUP: {**ours, PLACE: _places(stored)}},
    }


def from_episode(step_format: StepFormat, episode: Mapping[str, Any]) -> StoredEpisode:
    """Return the steps that `to_episode` was given.

    Observations, and rewards and actions as far as Minari has them, are taken from its own arrays, the rest from ours.

    Raises:
        ValueError: if something is missing or has another length or type; KeyError and TypeError likewise.
    """
    observed = minari_names(step_format)
    ours = {name: np.asarray(array) for name, array in episode["infos"][GROUP].items()}
    places = ours.pop(PLACE)
    arrays = {field.name: ours[field.name] for field in step_format.fields if field.name not in observed}
    arrays |= {name: np.asarray(episode["observations"][other]) for name, other in observed.items()}
    stored = _from_actions(step_format.spaces.action, episode["actions"])
    length = len(places)
    for name, array in {**arrays, PLACE: places}.items():
        if len(array) != length or length != len(episode["rewards"]) + 1 or length != len(stored) + 1:
            raise ValueError(f"'{name}' has {len(array)} entries beside {len(episode['rewards'])} rewards")
    arrays["reward"] = np.append(ours["reward"][:1], episode["rewards"]).astype(ours["reward"].dtype)
    arrays["action"] = np.concatenate([stored.astype(ours["action"].dtype), ours["action"][-1:]])
    return _stored_episode(places, arrays)


def write_single_steps(file: Path, step_format: StepFormat, steps: list[StoredEpisode]) -> None:
    """Write single steps, which are no episodes to Minari."""
    columns: dict[str, Any] = {PLACE: np.concatenate([_places(step) for step in steps])}
    for number, field in enumerate(step_format.fields):
        columns[f"field_{number}"] = np.concatenate([step.arrays[field.name] for step in steps])
    np.savez(file, **columns)


def read_single_steps(file: Path, step_format: StepFormat) -> list[StoredEpisode]:
    """Return the steps that `write_single_steps` wrote, none if there is no file.

    Raises:
        OSError, ValueError, KeyError: if it is damaged; nothing in it is executed.
    """
    if not file.exists():
        return []
    with np.load(file, allow_pickle=False) as stored:
        places = stored[PLACE]
        arrays = {field.name: stored[f"field_{n}"] for n, field in enumerate(step_format.fields)}
    return [
        _stored_episode(places[i : i + 1], {name: array[i : i + 1] for name, array in arrays.items()})
        for i in range(len(places))
    ]


def write_dataset(
    target: Path, step_format: StepFormat, episodes: Iterable[StoredEpisode], metadata: dict[str, Any]
) -> dict[str, int]:
    """Write a dataset, one episode in memory at a time; return its number of episodes, transitions and single steps.

    Args:
        target: an empty directory; an absolute path, since Minari goes wrong with others.
        metadata: of `describe_dataset`; the counts are added.
    """
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    data = target / DATA_FOLDER
    actions = action_space(step_format.spaces.action)
    storage = MinariStorage.new(data, observation_space(step_format), actions, jpeg_encoding=False)
    storage.update_metadata(metadata)
    single: list[StoredEpisode] = []

    def longer() -> Iterator[EpisodeBuffer]:
        for episode in episodes:
            if len(episode) == 1:
                single.append(episode)
            else:
                yield EpisodeBuffer(**to_episode(step_format, episode))

    storage.update_episodes(longer())
    if single:
        write_single_steps(data / SINGLE_STEPS_FILE, step_format, single)
    counts = {"episodes": storage.total_episodes, "transitions": storage.total_steps, "single_steps": len(single)}
    storage.update_metadata({GROUP: metadata[GROUP] | counts})
    return counts


def describe_dataset(name: str, settings: str | None, stored: Spaces) -> dict[str, Any]:
    """Return the metadata of a dataset of ours, beside what Minari writes itself.

    `name` is the dataset's id, and `settings` the text of the run's `config.yaml` if it is known.
    """
    import minari

    ours = {"format": VERSION, "version": __version__, "settings": settings, "spaces": stored.to_json()}
    description = (
        "Written by dreamfleet. infos/dreamfleet holds the fields of each step as they were; an episode whose last "
        "is_last there is false is a part of one, marked as truncated where it breaks off."
    )
    return {"dataset_id": name, "minari_version": minari.__version__, "description": description, GROUP: ours}


def _to_actions(spec: ActionSpec, stored: np.ndarray) -> Any:
    """Return stored actions (n, *stored_shape) as `action_space` has them."""
    if not spec.reals:
        return stored.astype(np.int64)
    if not spec.choices:
        return stored.reshape(-1, *spec.box_shape)
    numbers, reals = np.split(stored, [len(spec.choices)], axis=1)
    return {CHOICES: numbers.astype(np.int64), REALS: reals}


def _from_actions(spec: ActionSpec, actions: Any) -> np.ndarray:
    """Return (n, *stored_shape) of what `_to_actions` gave."""
    if spec.kind == "mixed":
        return np.concatenate([actions[CHOICES], actions[REALS]], axis=1)
    stored = np.asarray(actions)
    return stored.reshape(len(stored), *spec.stored_shape)


def _places(stored: StoredEpisode) -> np.ndarray:
    """Return the place of each step, (n, 5)."""
    places = np.empty((len(stored), 5), np.int64)
    places[:, :3] = stored.place[:3]
    places[:, 3] = stored.chunks
    places[:, 4] = stored.first_step + np.arange(len(stored))
    return places


def _stored_episode(places: np.ndarray, arrays: dict[str, np.ndarray]) -> StoredEpisode:
    first = places[0]
    same_stream = (places[:, :3] == first[:3]).all()
    if not same_stream or not (places[:, 4] == first[4] + np.arange(len(places))).all():
        raise ValueError("its steps do not follow each other in one stream")
    actor, incarnation, stream, _, step = (int(number) for number in first)
    return StoredEpisode(actor, incarnation, stream, step, places[:, 3], arrays)
