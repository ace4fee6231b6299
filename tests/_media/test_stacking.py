"""Pictures of one size in one array."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from skclip._media import PictureError, PictureTransform, SharedPicture, read_picture, stack_pictures

TRANSFORM = PictureTransform((8, 8), "bilinear")


def pictures(n=5):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (10 + i, 20 - i, 3), dtype=np.uint8)) for i in range(n)]


@pytest.mark.parametrize("n_workers", [None, 1, 3])
def test_rows_are_the_pictures_in_order(n_workers):
    stacked = stack_pictures(pictures(), TRANSFORM, n_workers=n_workers)
    assert stacked.dtype == np.uint8
    np.testing.assert_array_equal(stacked, [TRANSFORM(read_picture(picture)) for picture in pictures()])


def test_shared_pictures_give_the_same():
    shared = [SharedPicture(picture) for picture in pictures()]
    np.testing.assert_array_equal(stack_pictures(shared, TRANSFORM), stack_pictures(pictures(), TRANSFORM))


def test_the_first_picture_that_cannot_be_read_is_named():
    with pytest.raises(PictureError, match=r"X\[102\], 'none.png': no such file\.$"):
        stack_pictures([*pictures(2), "none.png", b"damaged", *pictures()], TRANSFORM, positions=range(100, 110))
