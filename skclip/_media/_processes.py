"""Pictures decoded by other processes. Their pixels come back through a file in shared memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import replace
from typing import Any

import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.backend import resource_tracker
from numpy.typing import NDArray
from PIL import Image

from skclip._media._augment import Augmentation
from skclip._media._reading import PictureError
from skclip._media._sources import describe
from skclip._media._transform import PictureTransform
from skclip._media._wanted import Wanted, pixels_of_slots

_GROUP = 16  # pictures that travel together
_IDLE_SECONDS = 60
_SHARED_MEMORY = "/dev/shm"

_executors: dict[tuple[int, int], ProcessPoolExecutor] = {}
_executors_lock = threading.Lock()


class ReaderDiedError(RuntimeError):
    """A worker process died while it read a picture, as a decoder that reads beyond its memory makes it.

    Attributes
    ----------
    position : int
        Of the picture among those wanted.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.position)


class ProcessReader:
    """Read encoded pictures in processes, which outlive the reader and are used by the next one.

    They are started by joblib's loky, afresh and without the main script, and end after a minute without work.

    Parameters
    ----------
    transform : PictureTransform
    n_workers : int
    seed : int
    augmentation : Augmentation
    """

    def __init__(self, transform: PictureTransform, n_workers: int, seed: int, augmentation: Augmentation) -> None:
        self.transform = transform
        self.n_workers = n_workers
        self.seed = seed
        self.augmentation = augmentation
        self._closed = threading.Event()
        _submit(n_workers, os.getpid)  # they start while the caller does something else

    def close(self) -> None:
        """End the reads under way."""
        self._closed.set()

    def read(self, wanted: Sequence[Wanted], positions: Sequence[int], out: NDArray[np.uint8]) -> list[int]:
        """Write pixels into rows of `out`.

        Parameters
        ----------
        wanted : sequence of n Wanted
        positions : sequence of int
            Which of them to read; their data are paths or encoded bytes.
        out : uint8 ndarray of shape (m, height, width, 3)

        Returns
        -------
        unread : list of int
            Positions of the pictures that the workers cannot read.

        Raises
        ------
        ReaderDiedError
        """
        groups = _groups(wanted, positions)
        n_rows = max((sum(len(wanted[i].slots) for i in group) for group in groups), default=0)
        read_group = _GroupReader(self.transform, self.seed, self.augmentation, out)
        unread: list[int] = []
        suspects: list[int] = []
        waiting = groups[::-1]
        with _Scratch(2 * self.n_workers, n_rows * out[:1].nbytes) as scratch:
            pending: dict[Future[list[bool]], tuple[list[int], int]] = {}
            try:
                while waiting or pending:
                    while waiting and scratch.free:
                        group, place = waiting.pop(), scratch.free.pop()
                        task = read_group.task([wanted[i] for i in group], scratch, place)
                        pending[_submit(self.n_workers, *task)] = group, place
                    for future in wait(pending, timeout=1.0, return_when=FIRST_COMPLETED).done:
                        group, place = pending.pop(future)
                        try:
                            is_read = future.result()
                        except BrokenExecutor:  # one of those under way killed its process, and with it all others
                            suspects += group
                        else:
                            read_group.take([wanted[i] for i in group], is_read, scratch, place)
                            unread += [i for i, done in zip(group, is_read) if not done]
                        scratch.free.append(place)
                    if self._closed.is_set():
                        raise RuntimeError("The reader was closed while it was reading.")
                for i in suspects:
                    if not self._alone(i, wanted[i], len(wanted), read_group, scratch):
                        unread.append(i)
            finally:
                for future in pending:
                    future.cancel()
        return sorted(unread)

    def _alone(self, position: int, wanted: Wanted, n: int, read_group: _GroupReader, scratch: _Scratch) -> bool:
        try:
            is_read = _submit(self.n_workers, *read_group.task([wanted], scratch, 0)).result()
        except BrokenExecutor as error:
            raise ReaderDiedError(
                f"A worker process died while it read picture {position} of {n}, {describe(wanted.data)}: its decoder "
                "crashed, or memory ran out. Leave the picture out, or use workers='threads' to see the crash itself.",
                position,
            ) from error
        read_group.take([wanted], is_read, scratch, 0)
        return is_read[0]


class _GroupReader:
    """What all groups of one call have in common."""

    def __init__(
        self, transform: PictureTransform, seed: int, augmentation: Augmentation, out: NDArray[np.uint8]
    ) -> None:
        self._transform = transform
        self._seed = seed
        self._augmentation = augmentation
        self._out = out

    def task(self, group: list[Wanted], scratch: _Scratch, place: int) -> tuple[Any, ...]:
        """A function and its arguments, for a process."""
        renumbered, n_rows = [], 0
        for wanted in group:
            slots = tuple((n_rows + i, view) for i, (_, view) in enumerate(wanted.slots))
            data = bytes(wanted.data) if isinstance(wanted.data, memoryview) else wanted.data
            renumbered.append(replace(wanted, data=data, slots=slots))
            n_rows += len(slots)
        return (
            _read_group,
            scratch.path,
            scratch.offset(place),
            renumbered,
            self._transform,
            self._seed,
            self._augmentation,
            Image.MAX_IMAGE_PIXELS,
        )

    def take(self, group: list[Wanted], is_read: list[bool], scratch: _Scratch, place: int) -> None:
        """Put the pixels that a process has left where they are wanted."""
        rows = [row for wanted in group for row, _ in wanted.slots]
        pixels = scratch.rows(place, len(rows), self._out.shape[1:])
        kept = np.repeat(is_read, [len(wanted.slots) for wanted in group])
        self._out[np.array(rows)[kept]] = pixels[kept]


class _Scratch:
    """A file, in memory where there is such a folder, of places for groups of pixels.

    It is written and read, never mapped: the cost is one copy in the kernel, a full disk is an error instead of a
    crash, and an open file does not hinder its deletion.
    """

    def __init__(self, n_places: int, n_bytes: int) -> None:
        self.free = list(range(n_places))
        self._n_bytes = n_bytes
        descriptor, self.path = tempfile.mkstemp(prefix="skclip-", dir=_folder(n_places * n_bytes))
        # Deletes it should this process be killed.
        resource_tracker.register(self.path, "file")
        self._file = os.fdopen(descriptor, "rb", buffering=0)

    def __enter__(self) -> _Scratch:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        with contextlib.suppress(OSError):  # a process that is still writing holds it on Windows: the tracker is left
            os.unlink(self.path)
            resource_tracker.unregister(self.path, "file")

    def offset(self, place: int) -> int:
        return place * self._n_bytes

    def rows(self, place: int, n: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        pixels = np.empty((n, *shape), np.uint8)
        self._file.seek(self.offset(place))
        self._file.readinto(pixels.data.cast("B"))
        return pixels


def _folder(n_bytes: int) -> str | None:
    """Where there is memory for as much; None is the folder of temporary files."""
    try:
        enough = shutil.disk_usage(_SHARED_MEMORY).free > 2 * n_bytes
        return _SHARED_MEMORY if enough and os.access(_SHARED_MEMORY, os.W_OK) else None
    except OSError:
        return None


def _groups(wanted: Sequence[Wanted], positions: Sequence[int]) -> list[list[int]]:
    """Positions that travel together: as many as make 16 rows, and one at least."""
    groups: list[list[int]] = []
    n_rows = _GROUP
    for i in positions:
        if n_rows + len(wanted[i].slots) > _GROUP:
            groups.append([])
            n_rows = 0
        groups[-1].append(i)
        n_rows += len(wanted[i].slots)
    return groups


def _submit(n_workers: int, function: Callable[..., Any], *args: Any) -> Future[Any]:
    """Run a function in one of the processes; start them again where they have died."""
    key = os.getpid(), n_workers
    with _executors_lock:
        if key in _executors:
            try:
                return _executors[key].submit(function, *args)
            except BrokenExecutor:
                pass
        _executors[key] = ProcessPoolExecutor(n_workers, timeout=_IDLE_SECONDS, initializer=_ignore_interrupts)
        return _executors[key].submit(function, *args)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_group(
    path: str,
    offset: int,
    group: list[Wanted],
    transform: PictureTransform,
    seed: int,
    augmentation: Augmentation,
    most_pixels: int | None,
) -> list[bool]:
    """Write the pixels of pictures into a file; which of them could be read."""
    Image.MAX_IMAGE_PIXELS = most_pixels
    n_bytes = transform.size[0] * transform.size[1] * 3
    is_read = []
    with open(path, "r+b") as file:
        for wanted in group:
            try:
                for row, pixels in pixels_of_slots(wanted, transform, seed, augmentation):
                    file.seek(offset + row * n_bytes)
                    file.write(np.ascontiguousarray(pixels).data)
                is_read.append(True)
            except PictureError:
                is_read.append(False)
    return is_read
