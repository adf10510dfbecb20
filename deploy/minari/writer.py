"""Writes stored streams as a Minari dataset, one episode in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.steps import StepFormat
from dreamfleet.deploy.minari.format import (
    DATA_FOLDER,
    GROUP,
    SINGLE_STEPS_FILE,
    action_space,
    observation_space,
    to_episode,
    write_single_steps,
)
from dreamfleet.replay.episodes import StoredEpisode

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer


def require_minari() -> None:
    """Check that Minari and the library it stores with are installed.

    Raises:
        UserError: if not.
    """
    try:
        import h5py  # noqa: F401
        import minari  # noqa: F401
    except ImportError as error:
        raise UserError(f"Minari is not installed ({error}): pip install 'dreamfleet[minari]'.") from None


def write_dataset(
    target: Path, step_format: StepFormat, pieces: Iterable[StoredEpisode], metadata: dict[str, Any]
) -> dict[str, int]:
    """Write a dataset and return how many `episodes`, `transitions` and `single_steps` it has.

    Args:
        target: its directory, which is there and empty; an absolute path, for Minari goes wrong with others.
        step_format: the format of all steps.
        pieces: what to write, in the order of their places.
        metadata: as `describe_dataset` gives it; the counts are added.
    """
    from minari.dataset.minari_storage import MinariStorage

    data = target / DATA_FOLDER
    storage = MinariStorage.new(
        data, observation_space(step_format), action_space(step_format.spaces.action), jpeg_encoding=False
    )
    storage.update_metadata(metadata)
    single: list[StoredEpisode] = []
    storage.update_episodes(_episodes(step_format, pieces, single))
    if single:
        write_single_steps(data / SINGLE_STEPS_FILE, step_format, single)
    counts = {
        "episodes": storage.total_episodes,
        "transitions": storage.total_steps,
        "single_steps": len(single),
    }
    storage.update_metadata({GROUP: metadata[GROUP] | counts})
    return counts


def _episodes(
    step_format: StepFormat, pieces: Iterable[StoredEpisode], single: list[StoredEpisode]
) -> Iterator[EpisodeBuffer]:
    """Yield all that are episodes to Minari, and put the others aside."""
    from minari.data_collector import EpisodeBuffer

    for piece in pieces:
        if len(piece) == 1:
            single.append(piece)
        else:
            yield EpisodeBuffer(**to_episode(step_format, piece))
