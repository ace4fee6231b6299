"""One picture that is wanted, and the pixels that are wanted of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skclip._media._augment import Augmentation, augment, augment_reduced
from skclip._media._reading import SizedPicture, read_picture
from skclip._media._transform import PictureTransform


@dataclass(frozen=True, slots=True)
class Wanted:
    """One picture to be read, and where its pixels go.

    Parameters
    ----------
    data : Picture
        Or what `PictureReader.load` has made of one.
    key : bytes
        Its `content_key`, on which its random views depend.
    slots : tuple of (int, int)
        Row of the block of pixels, and view: 0 is the plain picture, v >= 1 the v-th random view.
    """

    data: Any
    key: bytes
    slots: tuple[tuple[int, int], ...]


def pixels_of_slots(
    wanted: Wanted, transform: PictureTransform, seed: int, augmentation: Augmentation
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Slots' rows and pixels. The picture is decoded once; under "fast", once for each size that its views need."""
    if not wanted.slots:
        return
    plain: Callable[[Any], NDArray[np.uint8]]
    cut: Callable[..., NDArray[np.uint8]]
    picture: Any
    if transform.decode == "fast":
        picture, plain, cut = SizedPicture(wanted.data), transform.reduced, augment_reduced
    else:
        picture, plain, cut = read_picture(wanted.data), transform, augment
    size, interpolation = transform.size, transform.interpolation
    for row, view in wanted.slots:
        if view == 0:
            yield row, plain(picture)
        else:
            yield (
                row,
                augmentation(
                    picture, cut=cut, seed=seed, key=wanted.key, view=view, size=size, interpolation=interpolation
                ),
            )
