"""Many pictures at once: order, views, reasons, interrupts."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from skclip._media import (
    PictureError,
    PictureReader,
    PictureTransform,
    SharedPicture,
    Wanted,
    augment,
    content_key,
    read_picture,
)

TRANSFORM = PictureTransform((16, 24), "bilinear")


def image(i=0, mode="RGB"):
    rng = np.random.default_rng(i)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((60 + i, 50 - i % 7), Image.Resampling.BICUBIC).convert(mode)


def encoded(picture, format="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(20)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(image(i, "L" if i % 5 == 4 else "RGB")))
    return paths


def wanted_of(items, views=(0,)):
    return [
        Wanted(item, content_key(item), tuple((i * len(views) + v, view) for v, view in enumerate(views)))
        for i, item in enumerate(items)
    ]


def rows_of(items, views=(0,), seed=0, transform=TRANSFORM):
    """What a plain loop makes of pictures."""
    options = {"size": transform.size, "interpolation": transform.interpolation, "seed": seed}
    rows = []
    for item in items:
        picture, key = read_picture(item), content_key(item)
        rows += [augment(picture, key=key, view=v, **options) if v else transform(picture) for v in views]
    return np.stack(rows)


def blank(n, transform=TRANSFORM):
    return np.full((n, *transform.size, 3), 77, np.uint8)


@pytest.mark.parametrize("n_workers", [None, 1, 3])
def test_rows_are_the_pictures_in_order(files, n_workers):
    out = blank(len(files))
    with PictureReader(TRANSFORM, n_workers=n_workers) as reader:
        assert reader.read(wanted_of(files), out) == [None] * len(files)
        np.testing.assert_array_equal(out, rows_of(files))
        out[:] = 0
        reader.read(wanted_of(files[::-1]), out)
    np.testing.assert_array_equal(out, rows_of(files[::-1]))


def test_views_are_those_of_the_picture_and_the_seed(files):
    views, out = (0, 1, 2), blank(3 * len(files))
    with PictureReader(TRANSFORM, seed=5) as reader:
        reader.read(wanted_of(files, views), out)
    np.testing.assert_array_equal(out, rows_of(files, views, seed=5))
    assert (out[1] != out[2]).any()


def test_all_kinds_of_pictures(files):
    array = np.asarray(image(3))
    items = [files[0], str(files[1]), files[2].read_bytes(), array, image(4), SharedPicture(files[5]), array[..., 0]]
    out = blank(len(items))
    with PictureReader(TRANSFORM) as reader:
        loaded = reader.load(items)
        wanted = [Wanted(data, key, ((i, 0),)) for i, (data, key) in enumerate(loaded)]
        assert reader.read(wanted, out) == [None] * len(items)
    np.testing.assert_array_equal(out, rows_of(items))
    assert [key for _, key in loaded] == [content_key(item) for item in items]
    assert isinstance(loaded[0][0], bytes)
    assert loaded[3][0] is array


def test_load_says_which_files_are_unreadable(files, tmp_path):
    with PictureReader(TRANSFORM) as reader:
        first, second, third = reader.load([files[0], tmp_path / "none.jpg", tmp_path])
    assert first[1] == content_key(files[0])
    assert second[0] == tmp_path / "none.jpg"
    assert isinstance(second[1], PictureError)
    assert str(second[1]) == "no such file"
    assert str(third[1]) == "is a directory, not a picture file"


def test_an_unreadable_picture_leaves_its_rows_and_its_neighbours_alone(files):
    data = files[1].read_bytes()
    items = [files[0], data[:-80], files[2], b"text"]
    out = blank(5)
    with PictureReader(TRANSFORM) as reader:
        errors = reader.read(wanted_of(items), out)
    assert [error is None for error in errors] == [True, False, True, False]
    assert "cut off" in str(errors[1])
    np.testing.assert_array_equal(out[[0, 2]], rows_of([files[0], files[2]]))
    assert (out[[1, 3, 4]] == 77).all()


def test_a_picture_is_decoded_once_and_an_unwanted_one_not_at_all(files, monkeypatch):
    decoded = []
    monkeypatch.setattr("skclip._media._readers.read_picture", lambda item: decoded.append(item) or read_picture(item))
    out = blank(4)
    wanted = [Wanted(files[0], b"k", ((0, 0), (1, 3), (2, 1), (3, 0))), Wanted("none.jpg", b"k", ())]
    with PictureReader(TRANSFORM) as reader:
        assert reader.read(wanted, out) == [None, None]
    assert decoded == [files[0]]
    np.testing.assert_array_equal(out[0], out[3])


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_any_other_exception_comes_through_and_spares_the_rest(files, monkeypatch, error):
    begun = []

    def broken(item):
        begun.append(item)
        if len(begun) == 3:
            raise error
        return read_picture(item)

    monkeypatch.setattr("skclip._media._readers.read_picture", broken)
    with PictureReader(TRANSFORM, n_workers=2) as reader:
        with pytest.raises(error):
            reader.read(wanted_of(files * 10), blank(10 * len(files)))
        assert len(begun) < len(files)
        monkeypatch.undo()
        assert reader.read(wanted_of(files), blank(len(files))) == [None] * len(files)


def test_closing_ends_a_read_of_another_thread(files, monkeypatch):
    started, go_on, begun = threading.Event(), threading.Event(), []

    def slow(item):
        begun.append(item)
        started.set()
        go_on.wait(10)
        return read_picture(item)

    monkeypatch.setattr("skclip._media._readers.read_picture", slow)
    reader = PictureReader(TRANSFORM, n_workers=2)
    with ThreadPoolExecutor(2) as others:
        reading = others.submit(reader.read, wanted_of(files), blank(len(files)))
        assert started.wait(10)
        closing = others.submit(reader.close)
        reader._closing.wait(10)
        go_on.set()
        closing.result(10)
        with pytest.raises(RuntimeError, match="closed"):
            reading.result(10)
    assert len(begun) <= 2


def test_two_threads_may_use_one_reader(files):
    expected = rows_of(files)
    with PictureReader(TRANSFORM) as reader, ThreadPoolExecutor(4) as others:

        def read(order):
            out = blank(len(files))
            reader.read(wanted_of([files[i] for i in order]), out)
            return out

        orders = [np.random.default_rng(i).permutation(len(files)) for i in range(8)]
        for order, out in zip(orders, others.map(read, orders)):
            np.testing.assert_array_equal(out, expected[order])


def test_nothing_is_wanted():
    with PictureReader(TRANSFORM) as reader:
        assert reader.load([]) == []
        assert reader.read([], blank(0)) == []


def test_unknown_workers():
    with pytest.raises(ValueError, match="workers='fibres' must be"):
        PictureReader(TRANSFORM, workers="fibres")
