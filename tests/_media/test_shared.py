from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from skclip import CLIPFeatures
from skclip._media import (
    PictureError,
    SharedPicture,
    _reading,
    _shared,
    check_images,
    content_key,
    describe,
    held_chunks,
    read_picture,
)


@pytest.fixture
def decodes(monkeypatch):
    """Every decoding of encoded bytes."""
    calls = []
    original = _reading._decode

    def counting(data):
        calls.append(len(data))
        return original(data)

    monkeypatch.setattr(_reading, "_decode", counting)
    return calls


def pixels(seed=0, side=20):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def path(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_it_is_the_picture_of_its_source(path):
    encoded = io.BytesIO()
    Image.fromarray(pixels()).save(encoded, "png")
    for source in (path, str(path), encoded.getvalue(), Image.fromarray(pixels()), pixels()):
        shared = SharedPicture(source)
        assert content_key(shared) == content_key(source)
        np.testing.assert_array_equal(np.asarray(read_picture(shared)), np.asarray(read_picture(source)))
        assert describe(shared) == describe(source)
        items = [shared]
        assert check_images(items) is items
        with pytest.raises(TypeError, match="X is a single picture"):
            check_images(shared)


def test_it_is_decoded_once_while_it_is_held(path, decodes):
    shared = SharedPicture(path)
    shared.hold()
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(read_picture, [shared] * 40))
    assert len(decodes) == 1
    assert all(picture is pictures[0] for picture in pictures)
    assert shared.held_bytes() == 20 * 20 * 3 + path.stat().st_size
    path.unlink()
    content_key(shared)  # of the bytes that it holds
    shared.release()
    assert shared.held_bytes() == 0
    content_key(shared)
    with pytest.raises(PictureError, match="no such file"):
        read_picture(shared)


def test_nothing_is_kept_that_is_not_held(path, decodes):
    shared = SharedPicture(path)
    for _ in range(3):
        read_picture(shared)
    assert len(decodes) == 3
    assert shared.held_bytes() == 0


def test_what_cannot_be_read_says_why(tmp_path):
    (tmp_path / "b.png").write_bytes(b"nothing")
    shared = SharedPicture(tmp_path / "b.png")
    shared.hold()
    for _ in range(2):
        with pytest.raises(PictureError, match="not a picture in any format"):
            read_picture(shared)


def test_chunks_hold_in_turn_and_shrink_where_pictures_are_large(monkeypatch):
    monkeypatch.setattr(_shared, "_HELD_BYTES", 20 * 20 * 3 * 5)
    pictures = [SharedPicture(pixels(i)) for i in range(30)]
    sizes = []
    for start, chunk in held_chunks(pictures):
        assert start == sum(sizes)
        sizes.append(len(chunk))
        for picture in chunk:
            read_picture(picture)
        held = sum(picture.held_bytes() > 0 for picture in pictures)
        assert held == len(chunk)
    assert sizes == [16, 5, 5, 4]
    assert not any(picture.held_bytes() for picture in pictures)


def test_large_pictures_after_small_ones_do_not_fill_the_memory(tmp_path, decodes, monkeypatch):
    small, large = pixels(0, side=4), pixels(1, side=60)
    monkeypatch.setattr(_shared, "_FIRST_CHUNK", 2)
    monkeypatch.setattr(_shared, "_HELD_BYTES", 3 * large.nbytes)
    monkeypatch.setattr(_shared, "_MOST_HELD_BYTES", 5 * large.nbytes)
    for i in range(20):
        Image.fromarray(small if i < 2 else large).save(tmp_path / f"{i}.bmp")
    pictures = [SharedPicture(tmp_path / f"{i}.bmp") for i in range(20)]
    for _, chunk in held_chunks(pictures):
        for _ in range(2):
            for picture in chunk:
                expected = small if picture is pictures[0] or picture is pictures[1] else large
                np.testing.assert_array_equal(np.asarray(read_picture(picture)), expected)
            content_key(picture)
        assert sum(picture.held_bytes() for picture in pictures) <= 6 * large.nbytes
    assert len(decodes) > 20  # what is not kept is decoded again


def test_chunks_grow_where_nothing_is_held():
    assert [len(chunk) for _, chunk in held_chunks([SharedPicture(pixels())] * 600)] == [16, 256, 256, 72]


def test_a_reader_that_fails_leaves_nothing_held():
    pictures = [SharedPicture(pixels(i)) for i in range(3)]

    def walk():
        for _, chunk in held_chunks(pictures):
            read_picture(chunk[0])
            raise KeyError

    with pytest.raises(KeyError):
        walk()
    assert not any(picture.held_bytes() for picture in pictures)


def test_rows_and_key_travel_pixels_do_not(path):
    shared = SharedPicture(path)
    shared.hold()
    read_picture(shared)
    key = content_key(shared)
    shared.rows[b"row"] = np.ones(3, dtype=np.float32)
    again = pickle.loads(pickle.dumps(shared))
    assert again.source == path
    assert again.is_read
    assert content_key(again) == key
    np.testing.assert_array_equal(again.rows[b"row"], np.ones(3))
    assert again.held_bytes() == 0


@pytest.mark.parametrize("store", ["memory", None])
def test_features_are_those_of_the_sources(path, store, empty_stores):
    sources = [path, pixels(1), Image.fromarray(pixels(2))]
    shared = [SharedPicture(source) for source in sources]
    plain = CLIPFeatures("skclip-tiny", store=None).transform(sources)
    np.testing.assert_array_equal(CLIPFeatures("skclip-tiny", store=store).transform(shared), plain)
    np.testing.assert_array_equal(CLIPFeatures("skclip-tiny", store=store).transform(shared), plain)
    assert all(len(picture.rows) == 1 for picture in shared)


def test_a_file_that_changes_is_not_served_from_the_store(path, empty_stores):
    features = CLIPFeatures("skclip-tiny")
    before = features.transform([SharedPicture(path)])
    np.testing.assert_array_equal(features.transform([path]), before)  # by the same content
    Image.fromarray(pixels(5)).save(path)
    after = features.transform([SharedPicture(path)])
    np.testing.assert_array_equal(after, CLIPFeatures("skclip-tiny", store=None).transform([path]))
    assert np.abs(after - before).max() > 0.01
