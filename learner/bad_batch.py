"""The error that ends a run whose loss is no longer a number, and the file that lets one see why."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dreamfleet.common.errors import RunFailedError


class NotFiniteLossError(RunFailedError):
    """The loss or its gradient is infinite or not a number; the update was not made."""


def not_finite_loss(
    update: int, terms: Sequence[str], batch: Mapping[str, np.ndarray], directory: Path
) -> NotFiniteLossError:
    """Save the batch of an update that must not be made, and return the error that tells of it.

    Args:
        update: its number.
        terms: metrics that are not finite.
        batch: what it was computed from.
        directory: where to save it, as bad_batch-<update>.npz.
    """
    file = directory / f"bad_batch-{update}.npz"
    try:
        write_arrays(file, batch)
        saved = f"its batch is in {file}"
    except OSError as error:
        saved = f"its batch could not be saved ({error.strerror or error})"
    poisoned = [name for name, array in batch.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if poisoned:
        hint = f"The environment gave values that are not finite: {', '.join(poisoned)}"
    else:
        hint = "All values of the batch are finite: a smaller learner.learning_rate or learner.clip may help"
    return NotFiniteLossError(f"update {update} was not made: not finite are {', '.join(terms)}; {saved}. {hint}.")


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of any names as .npz, without pickle; `numpy.savez` takes some names for its own arguments.

    Raises:
        OSError: if it cannot be written.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
