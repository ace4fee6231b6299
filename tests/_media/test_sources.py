"""What `check_images` takes, what it refuses, and how it says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image

from skclip._media import are_pictures, check_images, describe

PATHS = ["a.jpg", "b/c.png", "d"]


def pixels(*shape):
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)


@pytest.mark.parametrize(
    "X",
    [
        PATHS,
        tuple(PATHS),
        np.array(PATHS),
        np.array(PATHS)[:, None],
        np.array(PATHS, dtype=object),
        np.array(PATHS, dtype=object)[:, None],
        pd.Series(PATHS, index=[7, 5, 3]),
        pd.DataFrame({"path": PATHS}, index=[7, 5, 3]),
        pl.Series(PATHS),
        pl.DataFrame({"path": PATHS}),
    ],
    ids=lambda X: type(X).__module__ + "." + type(X).__name__,
)
def test_every_container_gives_the_items_in_order(X):
    assert [str(item) for item in check_images(X)] == PATHS
    assert len(check_images(X)) == 3
    assert str(check_images(X)[2]) == "d"


def test_numpy_variable_width_strings():
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("this NumPy has no StringDType")
    assert check_images(np.array(PATHS, dtype=np.dtypes.StringDType())) == PATHS


def test_every_kind_of_picture_may_be_mixed():
    items = [
        "a.jpg",
        Path("b.jpg"),
        Image.new("P", (2, 3)),
        b"encoded",
        bytearray(b"encoded"),
        memoryview(b"encoded"),
        pixels(4, 5),
        pixels(4, 5, 1),
        pixels(4, 5, 3),
        pixels(4, 5, 4),
    ]
    assert check_images(items) is items
    column = np.empty((len(items), 1), dtype=object)
    column[:, 0] = items
    assert all(a is b for a, b in zip(check_images(column), items, strict=True))
    assert all(a is b for a, b in zip(check_images(pd.Series(items)), items, strict=True))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_batch_of_pixels_is_not_copied(channels):
    batch = pixels(2, 4, 5, channels)
    assert check_images(batch) is batch


@pytest.mark.parametrize(
    ("X", "words"),
    [
        ("a.jpg", r"single picture \('a.jpg'\).*\[X\]"),
        (Path("a.jpg"), r"single picture \('a.jpg'\)"),
        (Image.new("L", (2, 3)), "single picture .PIL image, mode L, 2 x 3"),
        (b"abc", "single picture .3 encoded bytes"),
        (pixels(4, 5, 3), r"single array of shape \(4, 5, 3\).*X\[None\]"),
        (pixels(4, 5), "single array"),
        ({"a.jpg": 1}, r"X is a dict.*list\(X\)"),
        ((p for p in PATHS), r"X is a generator.*list\(X\)"),
        (3, "X is an int; expected a list"),
        (None, "X is None; expected"),
        (np.array([b"abc"]), "trailing zero bytes"),
        (pl.DataFrame({"path": PATHS}).lazy(), "X is a LazyFrame"),
    ],
)
def test_what_is_no_collection(X, words):
    with pytest.raises(TypeError, match=words):
        check_images(X)


@pytest.mark.parametrize(
    "X",
    [
        [],
        (),
        np.empty((0,), dtype=object),
        np.empty((0, 1), dtype=object),
        np.empty((0,)),
        np.empty((0, 4, 5, 3), dtype=np.uint8),
        pd.Series([], dtype=object),
        pl.DataFrame({"path": []}),
    ],
    ids=lambda X: f"{type(X).__module__}-{getattr(X, 'shape', '')}",
)
def test_no_pictures_at_all(X):
    with pytest.raises(ValueError, match=r"0 sample\(s\) in X"):
        check_images(X)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (None, r"X\[1\] is None; a picture is a path"),
        (3, r"X\[1\] is an int"),
        (float("nan"), r"X\[1\] is a float"),
        (["b.jpg"], r"X\[1\] is a list"),
    ],
)
def test_a_wrong_item_is_named(item, words):
    with pytest.raises(TypeError, match=words):
        check_images(["a.jpg", item])
    with pytest.raises(TypeError, match=words):
        check_images(pd.Series(["a.jpg", item], dtype=object))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (np.zeros((4, 5, 3)), r"X\[1\] holds float64 pixels; uint8 is expected.*255 \* X"),
        (np.zeros((4, 5, 3), np.int64), r"X\[1\] holds int64 pixels; uint8"),
        (pixels(3, 4, 5), r"X\[1\] has picture shape \(3, 4, 5\).*moveaxis"),
        (pixels(4, 5, 2), r"X\[1\] has picture shape \(4, 5, 2\)"),
        (pixels(4), r"X\[1\] has picture shape \(4,\)"),
        (pixels(0, 5, 3), "without pixels"),
    ],
)
def test_wrong_pixels_are_named(item, words):
    with pytest.raises(ValueError, match=words):
        check_images([pixels(4, 5, 3), item])


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.zeros((2, 4, 5, 3), np.float32), "X holds float32 pixels; uint8 is expected"),
        (np.zeros((2, 4), np.float64), "X holds float64 pixels; uint8 is expected"),
        (pixels(2, 3, 4, 5), "Channels come last"),
        (pixels(1, 2, 3, 4, 3), "a batch of pictures has shape"),
        (np.array([PATHS, PATHS]), r"shape \(2, 3\); expected \(n,\) or \(n, 1\)"),
        (pd.DataFrame({"a": PATHS, "b": PATHS}), "DataFrame of 2 columns"),
        (pl.DataFrame({"a": PATHS, "b": PATHS}), "DataFrame of 2 columns"),
    ],
)
def test_wrong_arrays_and_tables(X, words):
    with pytest.raises(ValueError, match=words):
        check_images(X)


def test_describe():
    assert describe(Path("b/c.jpg")) == "'b/c.jpg'"
    assert describe(pixels(4, 5)) == "uint8 array of shape (4, 5)"
    assert describe(memoryview(b"abc")) == "3 encoded bytes"
    assert describe(Image.new("RGB", (2, 3))) == "PIL image, mode RGB, 2 x 3"


def test_needs_neither_torch_nor_tables():
    code = (
        "import sys, skclip._media; "
        "assert not {'torch', 'open_clip', 'pandas', 'polars'} & set(sys.modules), 'too much imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("X", "expected"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), True),
        (np.zeros((4, 4, 3), np.uint8), True),
        (np.zeros((4, 4), np.uint8), False),
        (np.zeros((2, 3, 4), np.float32), False),
        (np.zeros((2, 3), object), False),
        (np.array(["a.png", "b.png"]), True),
        (np.array([["a.png"], ["b.png"]], dtype=object), True),
        (["a.png"], True),
        ("a.png", True),
        (Path("a.png"), True),
        ([b"bytes"], True),
        ([Image.new("RGB", (2, 2))], True),
        ((np.zeros((4, 4), np.uint8),), True),
        ([np.zeros(4, np.uint8)], False),
        ([None, "a.png"], True),
        ([[0.1, 0.2]], False),
        ([], True),
        (None, False),
        (3, False),
    ],
)
def test_pictures_are_told_from_features(X, expected):
    assert are_pictures(X) is expected


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_pictures_in_tables_are_told_from_features(library):
    module = pytest.importorskip(library)
    assert are_pictures(module.Series(["a.png"]))
    assert are_pictures(module.DataFrame({"path": ["a.png"]}))
    assert not are_pictures(module.DataFrame({"a": [1.0], "b": [2.0]}))
    assert not are_pictures(module.Series([1.0]))
