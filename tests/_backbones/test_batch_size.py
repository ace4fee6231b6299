from __future__ import annotations

import pytest

from skclip._backbones._batch_size import BatchSizeSearch


def search_through(rates, start=16, smallest=8, largest=64, noise=(1.0, 1.0)):
    """The size that is found where batches of b rows run at ``rates[b]``, and the sizes that were tried."""
    search, tried = BatchSizeSearch(start, smallest, largest), []
    while search.trial is not None:
        tried.append(search.trial)
        search.record(rates[search.trial] * noise[len(tried) % 2])
        assert len(tried) < 20
    return search.size, tried


@pytest.mark.parametrize(
    ("rates", "size", "tried"),
    [
        ({8: 100, 16: 100, 32: 100}, 16, [16, 32, 8]),
        ({8: 100, 16: 100, 32: 106}, 16, [16, 32, 8]),  # not worth it
        ({16: 100, 32: 108, 64: 110}, 32, [16, 32, 64]),
        ({16: 100, 32: 150, 64: 200}, 64, [16, 32, 64]),
        ({8: 108, 16: 100, 32: 90}, 8, [16, 32, 8]),
    ],
)
@pytest.mark.parametrize("noise", [(1.0, 1.0), (1.0, 0.4), (0.4, 1.0)])
def test_the_search(rates, size, tried, noise):
    assert search_through(rates, noise=noise) == (size, [b for b in tried for _ in range(2)])


def test_the_range_is_kept():
    assert search_through({16: 1}, smallest=16, largest=16) == (16, [16, 16])
    assert search_through({16: 1, 8: 2}, smallest=8, largest=16) == (8, [16, 16, 8, 8])


def test_nothing_changes_once_it_is_over():
    search = BatchSizeSearch(16, 16, 32)
    for rate in (100, 100, 50, 50):
        search.record(rate)
    assert (search.trial, search.size) == (None, 16)
    search.record(10_000)
    assert (search.trial, search.size) == (None, 16)


def test_memory_ends_the_search():
    search = BatchSizeSearch(16, 8, 64)
    search.record(100)
    search.record(100)
    assert search.trial == 32
    search.ran_out(16)
    assert (search.trial, search.size) == (None, 16)
    search.ran_out(3)
    assert search.size == 3
    search.ran_out(8)
    assert search.size == 3
