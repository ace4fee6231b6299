"""The stream of blocks beneath `transform` and `extract`: order, reading ahead, and its end, early or not."""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from skclip._backbones import Backbone
from skclip._media import SharedPicture
from skclip.datasets import make_picture_world
from skclip.features._extraction import EncodedBlock, Execution, Progress, encode_blocks

EXECUTION = Execution("skclip-tiny", "cpu", "auto", 16, None)


@pytest.fixture(scope="module")
def pictures():
    return list(make_picture_world(12, random_state=5).images)


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of pictures that backbones were given."""
    sizes = []
    original = Backbone.encode_images

    def encode(self, batch, batch_size):
        sizes.append(len(batch))
        return original(self, batch, batch_size)

    monkeypatch.setattr(Backbone, "encode_images", encode)
    return sizes


def run(blocks, execution=EXECUTION, views=(0,)):
    return list(encode_blocks(blocks, views, execution, seed=0))


def n_threads():
    return sum(thread.name.startswith(("skclip-reader", "ThreadPoolExecutor")) for thread in threading.enumerate())


@pytest.mark.parametrize("store", ["none", "folder"])
@pytest.mark.parametrize("views", [(0,), (0, 1)])
def test_every_row_and_reason_stands_where_its_picture_stands(pictures, tmp_path, store, views):
    execution = EXECUTION if store == "none" else replace(EXECUTION, store=str(tmp_path / "store"))
    random = np.random.default_rng(0)
    damaged = [b"not a picture", tmp_path / "missing.png"]
    kinds = [*range(12), *range(12), *range(12), -1, -2, -2]  # equal pictures, and equally damaged ones
    numbers = random.permutation(kinds)
    alone = np.stack([block.rows[0] for block in run([[picture] for picture in pictures], views=views)])
    cuts = np.sort(random.integers(0, len(numbers), 9))
    blocks = [[pictures[n] if n >= 0 else damaged[n] for n in part] for part in np.split(numbers, cuts)]
    found = run(blocks, execution, views)
    assert [len(block.rows) for block in found] == [len(block) for block in blocks]
    rows = np.concatenate([block.rows for block in found])
    np.testing.assert_allclose(rows[numbers >= 0], alone[numbers[numbers >= 0]], atol=1e-5)
    assert np.isnan(rows[numbers < 0]).all()
    for part, block in zip(np.split(numbers, cuts), found):
        reasons = {-1: "no such file", -2: "is not a picture in any format that Pillow reads"}
        assert block.failures == [(i, reasons[n]) for i, n in enumerate(part) if n < 0]


def test_with_a_store_equal_pictures_of_blocks_in_hand_are_encoded_once(pictures, tmp_path, encoded):
    found = run([pictures[:4]] * 6, replace(EXECUTION, store=str(tmp_path)))
    assert encoded == [4]
    assert [block.n_encoded for block in found] == [4, 0, 0, 0, 0, 0]
    for block in found:
        np.testing.assert_array_equal(block.rows, found[0].rows)


def test_without_a_store_rows_depend_on_their_block_alone(pictures, encoded):
    first, *_, last = run([pictures[:3], pictures[2:5], pictures[:3], pictures[:3]])
    assert encoded == [3, 3, 3, 3]
    np.testing.assert_array_equal(first.rows, last.rows)


def test_shared_pictures_keep_their_rows_for_the_next_reader(pictures, encoded):
    shared = [SharedPicture(picture) for picture in pictures[:3]]
    first, again = run([shared]), run([shared[::-1]])
    assert encoded == [3]
    np.testing.assert_array_equal(again[0].rows, first[0].rows[::-1])


def test_two_blocks_are_read_ahead_and_no_more(pictures):
    pulled = []

    def blocks():
        for i in range(12):
            pulled.append(i)
            yield [pictures[i]]

    for n_done, _ in enumerate(encode_blocks(blocks(), [0], EXECUTION, seed=0), 1):
        time.sleep(0.02)
        assert len(pulled) <= n_done + 2


def test_blocks_before_an_error_of_the_source_are_given_first(pictures):
    def blocks():
        yield pictures[:2]
        yield pictures[2:3]
        raise OSError("the source is gone")

    encoded, sizes = encode_blocks(blocks(), [0], EXECUTION, seed=0), []
    with pytest.raises(OSError, match="the source is gone"):
        sizes.extend(len(block.rows) for block in encoded)
    assert n_threads() == 0
    assert next(encoded, None) is None


def test_closing_early_ends_all_threads_and_waits_for_no_picture_to_come(pictures):
    pulled = []

    def blocks():
        for i in range(100):
            pulled.append(i)
            if i > 1:
                time.sleep(0.2)
            yield [pictures[i % 12]]

    encoded = encode_blocks(blocks(), [0], EXECUTION, seed=0)
    next(encoded)
    encoded.close()
    assert n_threads() == 0
    assert len(pulled) <= 3


def test_closing_early_leaves_pictures_unread(pictures, monkeypatch):
    read, begun = [], threading.Event()

    def blocks():
        yield pictures[:1]
        begun.wait()
        yield pictures * 50
        yield pictures * 50

    def load(item):
        read.append(item)
        time.sleep(0.02)
        return item, b"%16d" % len(read)

    monkeypatch.setattr("skclip._media._readers._load_and_key", load)
    encoded = encode_blocks(blocks(), [0], replace(EXECUTION, n_workers=1), seed=0)
    next(encoded)
    begun.set()
    time.sleep(0.2)
    encoded.close()
    assert n_threads() == 0
    assert 2 <= len(read) < 50


@pytest.mark.parametrize(
    ("n_encoded", "said"), [(0, "skclip-tiny: 3 pictures, nothing to encode"), (2, r"batches of 16: 3 .*\(2 rows")]
)
def test_one_line_says_what_was_done(n_encoded, said, caplog):
    with caplog.at_level(logging.INFO, logger="skclip"), Progress([EXECUTION], 3) as progress:
        progress.update(EncodedBlock(np.empty((3, 1, 128), np.float32), [], n_encoded))
    (message,) = caplog.messages
    assert re.search(said, message)
