"""Pictures of one size in one array, read by threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skclip._media._readers import PictureReader
from skclip._media._reading import PictureError
from skclip._media._sources import describe
from skclip._media._transform import PictureTransform
from skclip._media._wanted import Wanted


def stack_pictures(
    pictures: Sequence[Any],
    transform: PictureTransform,
    *,
    n_workers: int | None = None,
    positions: Sequence[int] | NDArray | None = None,
) -> NDArray[np.uint8]:
    """Read pictures and resize them.

    Parameters
    ----------
    pictures : sequence of n pictures, as `check_images` returns them
    transform : PictureTransform
    n_workers : int, default=None
        None is one per core, at most 8.
    positions : sequence of n int, default=None
        Where they were in what the user passed. None is 0, 1, 2, ...

    Returns
    -------
    uint8 ndarray of shape (n, height, width, 3)

    Raises
    ------
    PictureError
        Naming the first picture that cannot be read.
    """
    stacked = np.empty((len(pictures), *transform.size, 3), dtype=np.uint8)
    wanted = [Wanted(picture, b"", ((i, 0),)) for i, picture in enumerate(pictures)]
    with PictureReader(transform, n_workers=n_workers) as reader:
        errors = reader.read(wanted, stacked)
    for i, error in enumerate(errors):
        if error is not None:
            place = i if positions is None else positions[i]
            raise PictureError(f"X[{place}], {describe(pictures[i])}: {error}.") from error
    return stacked
