"""Pictures by the hundred: files read and hashed, decoded and resized, by workers that persist."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from skclip._media._augment import Augmentation
from skclip._media._processes import ProcessReader
from skclip._media._reading import PictureError, content_key, load_item
from skclip._media._shared import Room
from skclip._media._transform import PictureTransform
from skclip._media._wanted import Wanted, pixels_of_slots

WORKERS = ("threads", "processes")
_MOST_WORKERS = 8
# Of files that `load` keeps; beyond it a file is read once more when it is decoded.
_LOADED_BYTES = 2**29


class PictureReader:
    """Read pictures with several workers; a context manager.

    Two threads may use one reader at once.

    Parameters
    ----------
    transform : PictureTransform
    workers : {"threads", "processes"}, default="threads"
        Who decodes and resizes what is a path or encoded bytes. Everything else is done by threads: files are read and
        hashed, and pictures resized that are in memory already. So is all within a daemonic process, which may not
        start others.
    n_workers : int, default=None
        None is one per core, at most 8.
    seed : int, default=0
        Of the random views.
    augmentation : Augmentation, default=Augmentation()
        How random views are made.

    Notes
    -----
    Threads and processes give the same pixels. Pillow decodes and resizes without Python's lock, so threads come near
    to one core each. Processes have no lock in common, but take about a second to start (once: they are kept for a
    minute after their last use) and 50 MB each. What a process cannot read is read again by a thread: here alone are
    the formats known that a program has registered with Pillow.
    """

    def __init__(
        self,
        transform: PictureTransform,
        *,
        workers: str = "threads",
        n_workers: int | None = None,
        seed: int = 0,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
    ) -> None:
        if workers not in WORKERS:
            raise ValueError(f"workers={workers!r} must be one of {list(WORKERS)}.")
        self.transform = transform
        self.seed = seed
        self.augmentation = augmentation
        self.n_workers = n_workers or min(_MOST_WORKERS, joblib.cpu_count())
        self._closing = threading.Event()
        self._threads = ThreadPoolExecutor(self.n_workers, thread_name_prefix="skclip-reader")
        self._processes = None
        if workers == "processes" and not multiprocessing.current_process().daemon:
            self._processes = ProcessReader(transform, self.n_workers, seed, augmentation)

    def __enter__(self) -> PictureReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers; what they have not begun is not read, and the reads under way end in an error."""
        self._closing.set()
        if self._processes is not None:
            self._processes.close()
        self._threads.shutdown(cancel_futures=True)

    def load(self, items: Sequence[Any]) -> list[tuple[Any, bytes | PictureError]]:
        """Read files into memory and name the content of pictures.

        Parameters
        ----------
        items : sequence of n pictures

        Returns
        -------
        loaded : list of n pairs
            What was read of an item (itself where nothing had to be, and a path once 512 MiB of files are loaded),
            and its `content_key` or the reason why there is none.
        """
        loaded: list[Any] = [None] * len(items)
        room = Room(_LOADED_BYTES)

        def load(i: int) -> None:
            data, key = _load_and_key(items[i])
            if isinstance(items[i], (str, os.PathLike)) and isinstance(data, bytes) and not room.take(len(data)):
                data = items[i]
            loaded[i] = data, key

        self._each(load, range(len(items)))
        return loaded

    def read(self, wanted: Sequence[Wanted], out: NDArray[np.uint8]) -> list[PictureError | None]:
        """Decode pictures, each once whatever the number of its slots, and write their pixels into rows of `out`.

        Under "fast" a picture is decoded once for each size (1/1, 1/2, 1/4, 1/8) that its views need: a view does not
        depend on what else is wanted.

        Parameters
        ----------
        wanted : sequence of n Wanted
        out : uint8 ndarray of shape (m, height, width, 3)
            Rows that are nobody's slot are left alone. What is in those of a picture that cannot be read is undefined.

        Returns
        -------
        errors : list of n
            None, or why the picture cannot be read.

        Raises
        ------
        ReaderDiedError
            A process died while it read a picture.
        """
        errors: list[PictureError | None] = [None] * len(wanted)

        def read(i: int) -> None:
            try:
                for row, pixels in pixels_of_slots(wanted[i], self.transform, self.seed, self.augmentation):
                    out[row] = pixels
            except PictureError as error:
                errors[i] = error

        here: Iterable[int] = range(len(wanted))
        if self._processes is not None:
            sent = [i for i in here if isinstance(wanted[i].data, (str, os.PathLike, bytes, bytearray, memoryview))]
            unread = self._processes.read(wanted, sent, out)
            here = sorted({*here} - {*sent} | {*unread})
        self._each(read, here)
        return errors

    def _each(self, work: Callable[[int], None], positions: Iterable[int]) -> None:
        """Call `work` with each position in the threads. The first exception, or an interrupt, spares the rest."""
        # One task per thread, which takes numbers until none is left: a task per picture costs several per cent of the
        # time in which a picture is resized to 48 pixels, most of them waiting for Python's lock.
        left = iter(positions)
        stop = threading.Event()

        def take() -> None:
            try:
                for i in left:
                    if stop.is_set() or self._closing.is_set():
                        return
                    work(i)
            except BaseException:
                stop.set()
                raise

        tasks: list[Future[None]] = [self._threads.submit(take) for _ in range(self.n_workers)]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            stop.set()
            # Nobody writes into the caller's rows once it has the exception. Tasks that the closing of the threads has
            # cancelled would never count as done.
            wait([task for task in tasks if not task.cancel()])
            raise
        if self._closing.is_set():
            raise RuntimeError("The reader was closed while it was reading.")


def _load_and_key(item: Any) -> tuple[Any, bytes | PictureError]:
    try:
        data = load_item(item)
        return data, content_key(data)
    except PictureError as error:
        return item, error
