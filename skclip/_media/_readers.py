"""Pictures by the hundred: files read and hashed, decoded and resized, by workers that persist."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from skclip._media._augment import augment, augment_reduced
from skclip._media._reading import PictureError, SizedPicture, content_key, load_item, read_picture
from skclip._media._transform import PictureTransform

_MOST_WORKERS = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """One picture to be read, and where its pixels go.

    Parameters
    ----------
    data : Picture
        Or what `PictureReader.load` has made of one.
    key : bytes
        Its `content_key`, on which its random views depend.
    slots : tuple of (int, int)
        Row of the block of pixels, and view: 0 is the plain picture, v >= 1 the v-th random crop and flip.
    """

    data: Any
    key: bytes
    slots: tuple[tuple[int, int], ...]


class PictureReader:
    """Read pictures with several workers; a context manager, whose workers live as long as it does.

    Two threads may use one reader at once.

    Parameters
    ----------
    transform : PictureTransform
    workers : {"threads"}, default="threads"
    n_workers : int, default=None
        None is one per core, at most 8.
    seed : int, default=0
        Of the random views.
    """

    def __init__(
        self, transform: PictureTransform, *, workers: str = "threads", n_workers: int | None = None, seed: int = 0
    ) -> None:
        if workers != "threads":
            raise ValueError(f"workers={workers!r} must be 'threads'.")
        self.transform = transform
        self.seed = seed
        self.n_workers = n_workers or min(_MOST_WORKERS, joblib.cpu_count())
        self._threads = ThreadPoolExecutor(self.n_workers, thread_name_prefix="skclip-reader")
        self._closing = threading.Event()

    def __enter__(self) -> PictureReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers; what they have not begun is not read."""
        self._closing.set()
        self._threads.shutdown(cancel_futures=True)

    def load(self, items: Sequence[Any]) -> list[tuple[Any, bytes | PictureError]]:
        """Read files into memory and name the content of pictures.

        Parameters
        ----------
        items : sequence of n pictures

        Returns
        -------
        loaded : list of n pairs
            What was read of an item (itself where nothing had to be), and its `content_key` or the reason why there
            is none.
        """
        loaded: list[Any] = [None] * len(items)

        def load(i: int) -> None:
            loaded[i] = _load_and_key(items[i])

        self._each(load, len(items))
        return loaded

    def read(self, wanted: Sequence[Wanted], out: NDArray[np.uint8]) -> list[PictureError | None]:
        """Decode pictures, each once, and write their pixels into rows of `out`.

        Parameters
        ----------
        wanted : sequence of n Wanted
        out : uint8 ndarray of shape (m, height, width, 3)
            Rows that are nobody's slot, and those of pictures that cannot be read, are left alone.

        Returns
        -------
        errors : list of n
            None, or why the picture cannot be read.
        """
        errors: list[PictureError | None] = [None] * len(wanted)

        def read(i: int) -> None:
            try:
                _write(wanted[i], self.transform, self.seed, out)
            except PictureError as error:
                errors[i] = error

        self._each(read, len(wanted))
        return errors

    def _each(self, work: Callable[[int], None], n: int) -> None:
        """Call `work` with 0, ..., n - 1 in the threads. The first exception, or an interrupt, spares the rest."""
        # One task per thread, which takes numbers until none is left: a task per picture costs a tenth of the time
        # in which a picture is resized to 48 pixels.
        numbers = iter(range(n))
        stop = threading.Event()

        def take() -> None:
            try:
                for i in numbers:
                    if stop.is_set() or self._closing.is_set():
                        return
                    work(i)
            except BaseException:
                stop.set()
                raise

        tasks: list[Future[None]] = [self._threads.submit(take) for _ in range(min(self.n_workers, n))]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            stop.set()
            for task in tasks:
                task.cancel()
            wait(tasks)  # nobody writes into the caller's rows once it has the exception
            raise
        if self._closing.is_set():
            raise RuntimeError("The reader was closed while it was reading.")


def _load_and_key(item: Any) -> tuple[Any, bytes | PictureError]:
    try:
        data = load_item(item)
        return data, content_key(data)
    except PictureError as error:
        return item, error


def _write(wanted: Wanted, transform: PictureTransform, seed: int, out: NDArray[np.uint8]) -> None:
    for row, pixels in _pixels(wanted, transform, seed):
        out[row] = pixels


def _pixels(wanted: Wanted, transform: PictureTransform, seed: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Slots' rows and pixels. The picture is decoded once; under "fast", once for each size that its views need."""
    if not wanted.slots:
        return
    plain: Callable[[Any], NDArray[np.uint8]]
    random: Callable[..., NDArray[np.uint8]]
    picture: Any
    if transform.decode == "fast":
        picture, plain, random = SizedPicture(wanted.data), transform.reduced, augment_reduced
    else:
        picture, plain, random = read_picture(wanted.data), transform, augment
    size, interpolation = transform.size, transform.interpolation
    for row, view in wanted.slots:
        if view == 0:
            yield row, plain(picture)
        else:
            yield row, random(picture, seed=seed, key=wanted.key, view=view, size=size, interpolation=interpolation)
