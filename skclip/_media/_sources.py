"""What counts as a collection of pictures, and the errors for what does not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skclip._media._remote import MissingPicture, RemotePicture
from skclip._media._shared import SharedPicture

Picture: TypeAlias = (
    str
    | os.PathLike[str]
    | Image.Image
    | bytes
    | bytearray
    | memoryview
    | NDArray[np.uint8]
    | RemotePicture
    | MissingPicture
    | SharedPicture
)
"""One picture: a path, an opened or drawn PIL image, an encoded file's bytes, uint8 pixels, a URL, or one of these
shared; or one that is known to be missing."""

PICTURE_TYPES = (
    str,
    os.PathLike,
    Image.Image,
    bytes,
    bytearray,
    memoryview,
    np.ndarray,
    RemotePicture,
    MissingPicture,
    SharedPicture,
)
CHANNELS = (1, 3, 4)

WANTED = (
    "a picture is a path (str or Path), a PIL image, an encoded file's bytes or a uint8 array of shape "
    "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
)
_EMPTY = "Found 0 sample(s) in X while a minimum of 1 is required: X holds no pictures."


def check_images(X: Any) -> Sequence[Picture]:
    """Check a collection of pictures and return it as a sequence that can be indexed.

    Nothing is read: a path that does not exist passes, `read_picture` reports it.

    Parameters
    ----------
    X : sequence of n pictures, or uint8 ndarray of shape (n, H, W, C)
        A list, tuple, object or string array of shape (n,) or (n, 1), pandas or polars Series or one-column
        DataFrame of pictures: paths, PIL images, encoded bytes, uint8 arrays (H, W), (H, W, 1), (H, W, 3) or
        (H, W, 4). A batch has C = 1 (grey), 3 (RGB) or 4 (RGB and opacity) channels.

    Returns
    -------
    pictures : sequence of length n
        `X` itself where it can be indexed by position, else a list. Pixels are never copied.

    Raises
    ------
    TypeError
        `X` is one picture, or not a sequence, or item k is not a picture.
    ValueError
        `X` is empty, has several columns, or pixels have the wrong dtype or shape.
    """
    pictures = _as_sequence(X)
    if len(pictures) == 0:
        raise ValueError(_EMPTY)
    if isinstance(pictures, np.ndarray):
        check_pixels(pictures[0], "X")
        return cast("Sequence[Picture]", pictures)
    for position, item in enumerate(pictures):
        if not isinstance(item, PICTURE_TYPES):
            raise TypeError(f"X[{position}] is {with_article(item)}; {WANTED}.")
        if isinstance(item, np.ndarray):
            check_pixels(item, f"X[{position}]")
    return pictures


def are_pictures(X: Any) -> bool:
    """Whether X holds pictures, or is one, rather than a matrix of features; nothing is checked or read.

    An array of numbers is one of pictures only if it is uint8 and has three dimensions or more. An empty list counts
    as one of pictures.
    """
    if isinstance(X, PICTURE_TYPES) and not isinstance(X, np.ndarray):
        return True
    if table_kind(X):
        X = np.asarray(X)
    if isinstance(X, np.ndarray):
        if X.dtype.kind not in "OSUT":
            return X.dtype == np.uint8 and X.ndim >= 3
        X = X.ravel()
    elif not isinstance(X, Sequence):
        return False
    return len(X) == 0 or any(
        item.dtype == np.uint8 and item.ndim >= 2 if isinstance(item, np.ndarray) else isinstance(item, PICTURE_TYPES)
        for item in X
    )


def describe(item: Any) -> str:
    """A picture in a few words, for messages: its path, or what kind of picture it is."""
    if isinstance(item, (str, os.PathLike)):
        return repr(os.fspath(item))
    if isinstance(item, Image.Image):
        return f"PIL image, mode {item.mode}, {item.width} x {item.height}"
    if isinstance(item, (bytes, bytearray, memoryview)):
        return f"{memoryview(item).nbytes} encoded bytes"
    if isinstance(item, np.ndarray):
        return f"{item.dtype} array of shape {item.shape}"
    if isinstance(item, RemotePicture):
        return repr(item.url)
    if isinstance(item, MissingPicture):
        return "no picture"
    if isinstance(item, SharedPicture):
        return describe(item.source)
    return with_article(item)


def _as_sequence(X: Any) -> Any:
    """`X` as a list, another sequence, or a (n, H, W, C) array."""
    if isinstance(X, PICTURE_TYPES) and not isinstance(X, np.ndarray):
        raise TypeError(f"X is a single picture ({describe(X)}); pass a list of pictures: [X].")
    if isinstance(X, np.ndarray):
        return _from_array(X)
    table = table_kind(X)
    if table == "DataFrame":
        if X.shape[1] != 1:
            raise ValueError(f"X is a DataFrame of {X.shape[1]} columns; select the one that holds the pictures.")
        X = X.iloc[:, 0] if hasattr(X, "iloc") else X.to_series(0)
    if table:
        return X.to_list()
    if isinstance(X, Sequence):
        return X
    hint = " Collect it first: list(X)." if hasattr(X, "__iter__") else ""
    expected = "a list, array, Series or one-column DataFrame of pictures"
    raise TypeError(f"X is {with_article(X)}; expected {expected}.{hint}")


def _from_array(X: NDArray) -> Any:
    if X.dtype.kind in "OUT":
        if X.ndim == 1 or (X.ndim == 2 and X.shape[1] == 1):
            return list(X.ravel())
        raise ValueError(f"X is an array of objects of shape {X.shape}; expected (n,) or (n, 1).")
    if X.dtype.kind == "S":
        raise TypeError(
            f"X has dtype {X.dtype}: NumPy cuts trailing zero bytes off encoded pictures. "
            "Pass a list of bytes, or paths as str."
        )
    if X.ndim == 4:
        return X
    if X.shape[0:1] == (0,):
        raise ValueError(_EMPTY)
    _check_dtype(X, "X")
    if X.ndim in (2, 3):
        raise TypeError(
            f"X is a single array of shape {X.shape}; one picture is passed as X[None] of shape "
            "(1, H, W, C), n grey pictures as X[..., None] of shape (n, H, W, 1)."
        )
    raise ValueError(f"X has shape {X.shape}; a batch of pictures has shape (n, H, W, C).")


def _check_dtype(pixels: NDArray, name: str) -> None:
    if pixels.dtype == np.uint8:
        return
    if pixels.dtype.kind == "f":
        hint = "Floats leave open whether white is 1 or 255; for 0..1: (255 * X).round().astype(numpy.uint8)."
    else:
        hint = "Convert the values to 0..255 and use .astype(numpy.uint8)."
    raise ValueError(f"{name} holds {pixels.dtype} pixels; uint8 is expected. {hint}")


def check_pixels(pixels: NDArray, name: str) -> None:
    _check_dtype(pixels, name)
    shape = pixels.shape
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in CHANNELS):
        if 0 in shape:
            raise ValueError(f"{name} is an array of shape {shape}: a picture without pixels.")
        return
    hint = ""
    if len(shape) == 3 and shape[0] in CHANNELS:
        hint = " Channels come last: numpy.moveaxis(picture, 0, -1)."
    raise ValueError(f"{name} has picture shape {shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).{hint}")


def table_kind(X: Any) -> str:
    """'Series', 'DataFrame' or ''; pandas and polars are recognised without importing them."""
    for base in type(X).__mro__:
        library = base.__module__.partition(".")[0]
        if library in ("pandas", "polars") and base.__name__ in ("Series", "DataFrame"):
            return base.__name__
    return ""


def with_article(item: Any) -> str:
    if item is None:
        return "None"
    name = type(item).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
