"""Pictures in: what users pass, how it is read, cropped and resized. Needs Pillow and NumPy alone."""

from __future__ import annotations

from skclip._media._augment import AUGMENTATIONS, Augmentation, augment
from skclip._media._processes import ReaderDiedError
from skclip._media._readers import PictureReader
from skclip._media._reading import PictureError, content_key, load_item, read_picture, unknown_file
from skclip._media._remote import MissingPicture, RemotePicture
from skclip._media._shared import SharedPicture, held_chunks
from skclip._media._sources import are_pictures, check_images, describe
from skclip._media._stacking import stack_pictures
from skclip._media._transform import PictureTransform
from skclip._media._wanted import Wanted

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "MissingPicture",
    "PictureError",
    "PictureReader",
    "PictureTransform",
    "ReaderDiedError",
    "RemotePicture",
    "SharedPicture",
    "Wanted",
    "are_pictures",
    "augment",
    "check_images",
    "content_key",
    "describe",
    "held_chunks",
    "load_item",
    "read_picture",
    "stack_pictures",
    "unknown_file",
]
