"""Which batch size is fastest, found out on work that has to be done anyway."""

from __future__ import annotations

import threading

_GAIN = 1.07  # what is less may be noise, and larger batches cost memory
_TRIALS = 2  # of each size; the faster counts, as other work on the machine only delays


class BatchSizeSearch:
    """Doubles the batch size, or else halves it, for as long as that pays; then stays with what it found.

    Several threads may use one search; only the one that holds `measuring` records.

    Parameters
    ----------
    start, smallest, largest : int
        The first size and the range. Every size is `start` times a power of two.

    Attributes
    ----------
    size : int
        The best size so far.
    measuring : threading.Lock
    """

    def __init__(self, start: int, smallest: int, largest: int) -> None:
        self.size = start
        self.measuring = threading.Lock()
        self._smallest, self._largest = smallest, largest
        self._rates: dict[int, list[float]] = {}
        self._trial: int | None = start

    @property
    def trial(self) -> int | None:
        """The size to be measured next, or None once the search is over."""
        return self._trial

    def record(self, rate: float) -> None:
        """Note how many rows per second a round with batches of `trial` rows took."""
        trial = self._trial
        if trial is None:
            return
        rates = self._rates.setdefault(trial, [])
        rates.append(rate)
        if len(rates) < _TRIALS:
            return
        if trial == self.size:  # the first
            self._trial = self._new(2 * trial) or self._new(trial // 2)
        elif max(rates) >= _GAIN * max(self._rates[self.size]):
            self._trial = self._new(2 * trial if trial > self.size else trial // 2)
            self.size = trial
        else:
            self._trial = self._new(self.size // 2)

    def ran_out(self, fitted: int) -> None:
        """Memory ran out, and batches of `fitted` rows were what fitted: the search ends."""
        self._trial = None
        self.size = min(self.size, fitted)

    def _new(self, size: int) -> int | None:
        return size if self._smallest <= size <= self._largest and size not in self._rates else None
