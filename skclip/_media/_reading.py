"""One picture from wherever it is to upright 8-bit pixels, and the key of its content.

The rules, for files, encoded bytes, arrays and PIL images alike:

- An upright 8-bit RGB or grey picture is taken as it is. Colour profiles are not applied.
- EXIF (or XMP) orientation is applied.
- Opacity - RGBA, LA, a transparent palette entry or colour - is laid over white: what a page shows behind a
  picture, and what was done to the web pictures that CLIP models were trained on. Hidden colours stay hidden.
- A palette gives its colours; bilevel gives black and white; CMYK, YCbCr, LAB and HSV are converted to RGB.
- 16 bits per channel give their high byte, so that 65535 is white: a fixed scale, never stretched per
  picture, and for grey the same as Pillow's own for colour. Integers of mode "I" count as 16 bits.
- Floating-point pixels are refused: nothing says which value is white.
- Of an animation or a multi-page file the first frame counts; of an opened PIL image the frame it stands at.
- Vector drawings are refused. So is a file of more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (about 89
  million unless the user changed it; None lifts the limit), before it is decoded.
- Files are decoded at full size, unless the reader asks for less (`SizedPicture`). A truncated file is an error
  unless the user told Pillow otherwise.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from skclip._media._remote import FetchError, MissingPicture, RemotePicture, fetch
from skclip._media._shared import SharedPicture
from skclip._media._sources import Picture

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_FROM_RIGHT, _FROM_BOTTOM = (2, 3, 6, 7), (3, 4, 7, 8)  # what is stored last comes first
_OPACITY_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_COLOUR_MODES = ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX")
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_ENCODED = (bytes, bytearray, memoryview)
# Opening one of these is harmless, decoding it would start an interpreter of drawings.
_VECTOR_FORMATS = ("EPS", "WMF", "EMF")
_MAX_BYTES_PER_PIXEL = 16

# A PIL image opened from a file decodes itself on first use, which two threads must not do at once.
# A prime number of locks: addresses, by which they are given out, are multiples of 16 and often of 64.
_PIL_LOCKS = [threading.Lock() for _ in range(61)]


class PictureError(ValueError):
    """A picture that cannot be read; the message is the reason alone, without name or position."""


def unknown_file(item: Picture) -> Path | None:
    """Path of a picture whose content nothing has looked at yet; None of one that is no file."""
    if isinstance(item, SharedPicture):
        return None if item.is_read else unknown_file(item.source)
    return Path(item) if isinstance(item, (str, os.PathLike)) else None


def load_item(item: Picture) -> Any:
    """Read a path or URL into the file's bytes, once; any other picture is returned as it is.

    What it returns is understood by both `content_key` and `read_picture`.

    Raises
    ------
    PictureError
        The path does not lead to a readable, non-empty regular file of a picture's size, or the URL to a file.
    """
    if isinstance(item, RemotePicture):
        try:
            return fetch(item.url)
        except FetchError as error:
            raise PictureError(str(error)) from error
    if isinstance(item, MissingPicture):
        raise PictureError(item.reason)
    if not isinstance(item, (str, os.PathLike)):
        return item
    try:
        status = os.stat(item)
        if stat.S_ISDIR(status.st_mode):
            raise PictureError("is a directory, not a picture file")
        if not stat.S_ISREG(status.st_mode):
            raise PictureError("is not a regular file")
        if Image.MAX_IMAGE_PIXELS and status.st_size > _MAX_BYTES_PER_PIXEL * Image.MAX_IMAGE_PIXELS:
            raise PictureError(f"the file has {status.st_size / 2**30:.1f} GiB, too much for one picture")
        with open(item, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        if "://" in os.fspath(item):
            raise PictureError("is a web address; download the picture and pass its path") from None
        raise PictureError("no such file") from None
    except PermissionError:
        raise PictureError("no permission to read the file") from None
    except OSError as error:
        raise PictureError(f"the file cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"not a valid path: {error}") from None


def read_picture(item: Picture) -> Image.Image:
    """Read one picture as upright 8-bit pixels; the rules are those of this module.

    Reading what this returns gives the same picture again.

    Parameters
    ----------
    item : str, Path, PIL.Image.Image, bytes, bytearray, memoryview or uint8 ndarray
        Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

    Returns
    -------
    picture : PIL.Image.Image
        Mode "RGB", or "L" for a grey picture. It may be `item` itself: do not draw on it.

    Raises
    ------
    PictureError
        With the reason in words.
    """
    if isinstance(item, SharedPicture):
        return item.once("picture", lambda: read_picture(_data_of(item)))
    loaded = load_item(item)
    if isinstance(loaded, np.ndarray):
        return _upright_rgb(_from_pixels(loaded))
    if isinstance(loaded, Image.Image):
        with _lock_of(loaded):
            _load(loaded)
        return _upright_rgb(loaded)
    return _upright_rgb(_decode(loaded))


class SizedPicture:
    """A picture whose size is known before it is decoded, so that a JPEG can be decoded smaller.

    Parameters
    ----------
    item : Picture, as for `read_picture`

    Attributes
    ----------
    size : (int, int)
        Width and height of the upright picture, before it is made smaller.

    Raises
    ------
    PictureError
        Under the rules of this module, which hold for the whole picture; in `at` as well.
    """

    def __init__(self, item: Picture) -> None:
        self._item = item
        self._made: dict[int, Image.Image] = {}
        self._opened: Image.Image | None = None
        data = _data_of(item) if isinstance(item, SharedPicture) else load_item(item)
        self._jpeg: Any = None
        if isinstance(data, _ENCODED):
            self._opened = opened = _open(data)
            if isinstance(opened, JpegImageFile):  # of others the orientation may not be known before they are decoded
                self._jpeg = data
                self._orientation = _orientation(opened)
                self.size = opened.size[::-1] if self._orientation in _SIDEWAYS else opened.size
        if self._jpeg is None:
            self._made[1] = self._whole()
            self.size = self._made[1].size

    def at(self, reduction: int) -> tuple[Image.Image, tuple[float, float, float, float]]:
        """Decode the picture with sides of 1/1, 1/2, 1/4 or 1/8.

        Parameters
        ----------
        reduction : {1, 2, 4, 8}
            Only a JPEG file heeds it, which gives the smaller picture without making the whole.

        Returns
        -------
        picture : PIL.Image.Image
            As `read_picture` gives it, with sides rounded up.
        frame : (float, float, float, float)
            (left, top, right, bottom) of the whole picture within the smaller one, which rounding has made larger.
        """
        if self._jpeg is None:
            reduction = 1
        if reduction not in self._made:
            self._made[reduction] = self._whole() if reduction == 1 else self._reduced(reduction)
        picture = self._made[reduction]
        width, height = self.size[0] / reduction, self.size[1] / reduction
        left = picture.width - width if reduction > 1 and self._orientation in _FROM_RIGHT else 0.0
        top = picture.height - height if reduction > 1 and self._orientation in _FROM_BOTTOM else 0.0
        return picture, (left, top, left + width, top + height)

    def _whole(self) -> Image.Image:
        if isinstance(self._item, SharedPicture) or self._opened is None:
            return read_picture(self._item)
        return self._decode(1)

    def _reduced(self, reduction: int) -> Image.Image:
        if isinstance(self._item, SharedPicture):
            return self._item.once(f"picture at 1/{reduction}", lambda: self._decode(reduction))
        return self._decode(reduction)

    def _decode(self, reduction: int) -> Image.Image:
        image, self._opened = self._opened, None
        if image is None:  # it was decoded in another size before
            image = _open(self._jpeg)
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        _load(image)
        return _upright_rgb(image)


def content_key(item: Picture) -> bytes:
    """16 bytes that name a picture's content: a BLAKE2b hash of the encoded file, or of the pixels.

    A path has the key of its bytes. Pixels are those of `read_picture`, so that an array and a PIL image of
    equal pixels share a key, which never equals that of a file.

    Raises
    ------
    PictureError
        The path or the PIL image cannot be read. Encoded bytes are not decoded.
    """
    if isinstance(item, SharedPicture):
        return item.once("key", lambda: content_key(_data_of(item)))
    loaded = load_item(item)
    if isinstance(loaded, _ENCODED):
        return hashlib.blake2b(loaded, digest_size=16, person=b"encoded").digest()
    pixels: Any
    if isinstance(loaded, np.ndarray) and loaded.shape[2:] != (4,):
        shape = (loaded.shape[0], loaded.shape[1], 3 if loaded.ndim == 3 and loaded.shape[2] == 3 else 1)
        pixels = np.ascontiguousarray(loaded)
    else:
        picture = read_picture(loaded)
        shape = (picture.height, picture.width, len(picture.getbands()))
        pixels = picture.tobytes()
    digest = hashlib.blake2b(repr(shape).encode(), digest_size=16, person=b"pixels")
    digest.update(pixels)
    return digest.digest()


def _lock_of(image: Image.Image) -> threading.Lock:
    return _PIL_LOCKS[id(image) % len(_PIL_LOCKS)]


def _data_of(item: SharedPicture) -> Any:
    return item.once("data", lambda: load_item(item.source))


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(pixels)


def _decode(data: bytes | bytearray | memoryview) -> Image.Image:
    image = _open(data)
    _load(image)
    return image


def _open(data: bytes | bytearray | memoryview) -> Image.Image:
    """Look at the header of an encoded picture; nothing is decoded yet."""
    if memoryview(data).nbytes == 0:
        raise PictureError("is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise PictureError("is not a picture in any format that Pillow reads") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(f"has more than {Image.MAX_IMAGE_PIXELS} pixels, {_LIMIT_HINT}") from None
    except Exception as error:
        raise PictureError(f"cannot be opened as a picture: {_reason(error)}") from error
    if image.format in _VECTOR_FORMATS:
        raise PictureError(f"is a vector drawing ({image.format}); render it to PNG first")
    # Pillow only warns up to twice its limit, and warning filters belong to the user and to no single thread.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise PictureError(f"has {image.width} x {image.height} pixels, {_LIMIT_HINT}")
    return image


_LIMIT_HINT = "more than PIL.Image.MAX_IMAGE_PIXELS allows (set it higher if you trust the picture)"


def _load(image: Image.Image) -> None:
    """Decode the pixels of a lazily opened image, in place."""
    try:
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(f"has {image.width} x {image.height} pixels, {_LIMIT_HINT}") from None
    except MemoryError as error:
        raise PictureError(f"memory does not suffice for {image.width} x {image.height} pixels") from error
    except Exception as error:
        reason = _reason(error)
        if "truncated" in reason.lower():
            raise PictureError(f"the file is cut off before the picture ends ({reason})") from error
        raise PictureError(f"is damaged, it cannot be decoded ({reason})") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise PictureError("has no pixels")
    try:
        orientation = _orientation(image)
        picture = _eight_bit(image)
        if orientation in _UPRIGHT:
            picture = picture.transpose(_UPRIGHT[orientation])
    except PictureError:
        raise
    except MemoryError as error:
        raise PictureError(f"memory does not suffice for {image.width} x {image.height} pixels") from error
    except Exception as error:
        raise PictureError(f"cannot be converted from mode {image.mode} to RGB: {_reason(error)}") from error
    if picture is not image:
        picture.info = {}  # orientation and opacity are dealt with: nobody may apply them twice
    return picture


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata says nothing about the pixels
        return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """`image` in mode "RGB" or "L", opacity laid over white."""
    if image.mode in _SIXTEEN_BIT_MODES:
        return _high_byte(image)
    if image.mode in _OPACITY_MODES or image.info.get("transparency") is not None:
        return _over_white(image)
    if image.mode in ("RGB", "L"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in _COLOUR_MODES:
        return image.convert("RGB")
    if image.mode == "F":
        raise PictureError(
            "has floating-point pixels (mode F), and nothing says which value is white; "
            "scale them to 0..255 and convert to 8 bits"
        )
    raise PictureError(f"has pixels of mode {image.mode}, which have no rule of conversion to RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise PictureError(
            f"has 32-bit pixels from {values.min()} to {values.max()}, outside the 16-bit range 0..65535; "
            "scale them to 0..255 and convert to 8 bits"
        )
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _over_white(image: Image.Image) -> Image.Image:
    image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
    *colours, opacity = image.split()
    picture = Image.merge("RGB", colours) if len(colours) == 3 else colours[0]
    white = Image.new(picture.mode, picture.size, "white")
    white.paste(picture, mask=opacity)
    return white


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
