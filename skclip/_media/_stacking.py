"""Pictures of one size in one array, read by threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from skclip._media._reading import PictureError, read_picture
from skclip._media._sources import describe
from skclip._media._transform import PictureTransform


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

    def read(i: int) -> None:
        try:
            stacked[i] = transform(read_picture(pictures[i]))
        except PictureError as error:
            place = i if positions is None else positions[i]
            raise PictureError(f"X[{place}], {describe(pictures[i])}: {error}.") from error

    with ThreadPoolExecutor(n_workers or min(8, joblib.cpu_count())) as pool:
        futures = [pool.submit(read, i) for i in range(len(pictures))]
        try:
            for future in futures:
                future.result()
        except BaseException:  # an interrupt does not wait for the rest either
            pool.shutdown(cancel_futures=True)
            raise
    return stacked
