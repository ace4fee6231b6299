"""Pictures with known truth, and few-shot sampling."""

from skclip.datasets._corruptions import corrupt_images
from skclip.datasets._digits import load_digit_pictures
from skclip.datasets._inspection import make_inspection_parts
from skclip.datasets._picture_world import make_picture_world
from skclip.datasets._splits import few_shot_split

__all__ = ["corrupt_images", "few_shot_split", "load_digit_pictures", "make_inspection_parts", "make_picture_world"]
