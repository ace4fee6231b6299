"""From pictures and texts to raw rows: look up, read what is missing, encode it once, keep it."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import time
import warnings
from collections import deque
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skclip._backbones import (
    BackboneCard,
    device_of_fitted,
    get_card,
    load_backbone,
    n_lanes,
    resolve_device,
    resolve_precision,
    weights_digest,
)
from skclip._media import (
    Augmentation,
    PictureError,
    PictureReader,
    PictureTransform,
    SharedPicture,
    Wanted,
    describe,
    unknown_file,
)
from skclip.features._readings import WHOLE, Reading
from skclip.features._store import Store, open_store, row_key
from skclip.utils import SkclipWarning

_CPU_BLOCK, _ACCELERATOR_BLOCK = 256, 1024
_LANE_PICTURES = 32  # of a block, for each core that encodes: fewer would leave it idle between two blocks
_BLOCK_BYTES = 2**27
_BLOCKS_AHEAD = 2
_TEXT_CHUNK = 8192

logger = logging.getLogger("skclip")


class UnreadablePictureWarning(SkclipWarning):
    """Some pictures could not be read and have rows of NaN.

    Attributes
    ----------
    failures : list of (int, str, str)
        Position in X, the picture in words, the reason.
    """

    def __init__(self, message: str, failures: list[tuple[int, str, str]]) -> None:
        super().__init__(message)
        self.failures = failures


class WorkerStoreWarning(SkclipWarning):
    """A worker process keeps features in its own memory, where no other process finds them."""


@dataclass(frozen=True)
class Execution:
    """Where and how a backbone runs, and where its rows are kept; the parameters of the public classes."""

    model: str
    device: str
    precision: str
    batch_size: int | str
    store: Any
    n_workers: int | None = None
    workers: str = "threads"
    decode: str = "exact"
    compile: bool = False
    verbose: int = 0
    block: int | None = None

    def card(self) -> BackboneCard:
        return get_card(self.model)

    def backbone(self) -> Any:
        return load_backbone(self.model, device=self.device, precision=self.precision, compile=self.compile)

    def namespace(self, kind: str) -> bytes:
        """16 bytes that differ whenever the same input could give another row."""
        card = self.card()
        precision = resolve_precision(self.precision, resolve_device(self.device))
        parts = (weights_digest(self.model), card.config, card.mean, card.std, "projection", precision, kind)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def plan_execution(estimator: Any, model: str, **more: Any) -> Execution:
    """The `Execution` that the parameters of a transformer ask for.

    A missing device is an error, unless the transformer was fitted, presumably elsewhere: then it is the CPU.
    """
    device, precision = estimator.device, estimator.precision
    if hasattr(estimator, "_n_features_out"):
        device, precision = device_of_fitted(device, precision)
    elif device != "auto":
        resolve_device(device)
    return Execution(model, device, precision, estimator.batch_size, estimator.store, **more)


def reading_parameters(estimator: Any) -> dict[str, Any]:
    """What only transformers of pictures have, for `plan_execution`."""
    return {name: getattr(estimator, name) for name in ("n_workers", "workers", "decode", "compile", "verbose")}


def encode_pictures(
    pictures: Sequence[Any],
    views: Sequence[int],
    execution: Execution,
    *,
    seed: int,
    on_error: str,
    reading: Reading = WHOLE,
    augmentation: Augmentation | None = None,
) -> NDArray[np.float32]:
    """Raw projections of pictures.

    Parameters
    ----------
    pictures : sequence of n pictures, as `check_images` returns them
    views : sequence of int
        0 is the plain picture, others are random crops and flips.
    seed : int
        Of the views.
    on_error : {"raise", "nan"}
    reading : Reading
        What a row holds.
    augmentation : Augmentation, default=None
        How views are made. None is a random crop, mirrored half of the time.

    Returns
    -------
    rows : ndarray of shape (n, len(views), d), float32
        One row per picture and view, in input order; NaN for unreadable pictures under "nan".
    """
    rows = np.empty((len(pictures), len(views), reading.width(execution.card())), dtype=np.float32)
    size = block_size(execution, reading)
    blocks = (pictures[lo : lo + size] for lo in range(0, len(pictures), size))
    failures: list[tuple[int, str, str]] = []
    start = 0
    with Progress([execution], len(pictures)) as progress:
        for block in encode_blocks(blocks, views, execution, seed=seed, reading=reading, augmentation=augmentation):
            for i, reason in block.failures:
                position = start + i
                failures.append((position, describe(pictures[position]), reason))
                if on_error == "raise":
                    raise PictureError(f"X[{position}], {failures[-1][1]}: {reason}.")
            rows[start : start + len(block.rows)] = block.rows
            start += len(block.rows)
            progress.update(block)
    if failures:
        warnings.warn(_failure_warning(failures, len(pictures)), stacklevel=4)
    return rows


@dataclass(frozen=True)
class EncodedBlock:
    """Raw rows of consecutive pictures.

    Attributes
    ----------
    rows : ndarray of shape (m, n_views, d), float32
        NaN for pictures that could not be read.
    failures : list of (int, str)
        Place in the block and reason of each picture that could not be read.
    n_encoded : int
        How many rows the backbone made; the others were known.
    """

    rows: NDArray[np.float32]
    failures: list[tuple[int, str]]
    n_encoded: int


def encode_blocks(
    blocks: Iterable[Sequence[Any]],
    views: Sequence[int],
    execution: Execution,
    *,
    seed: int,
    reading: Reading = WHOLE,
    augmentation: Augmentation | None = None,
) -> Generator[EncodedBlock]:
    """Raw projections of a stream of pictures.

    Two blocks are looked up and read while one is encoded, and no more are held: memory does not depend on how many
    there are. Without a store the rows of a block depend on its pictures alone, not on other blocks.

    Parameters
    ----------
    blocks : iterable of sequences of pictures
        `block_size` pictures each suit the machine. Read in order, by another thread.
    views, execution, seed, reading, augmentation
        See `encode_pictures`.

    Yields
    ------
    EncodedBlock
        In the order of `blocks`.
    """
    job = _PictureJob(views, execution, seed, reading, augmentation)
    # Rows that were made after the blocks in hand were looked up.
    recent: deque[dict[bytes, NDArray]] = deque(maxlen=_BLOCKS_AHEAD)
    with closing(job.prepare_ahead(iter(blocks))) as prepared_blocks:
        for prepared in prepared_blocks:
            known = {key: rows[key] for rows in recent for key in prepared.slots.keys() & rows.keys()}
            fresh = job.encode(prepared, known)
            if execution.store is not None:
                recent.append(fresh)
            for place, key in prepared.unfilled:
                row = fresh[key] if key in fresh else known[key]
                prepared.rows[place] = row
                _share(prepared.items[place[0]], key, row)
            yield EncodedBlock(prepared.rows, prepared.failures, len(fresh))


def picture_transform(execution: Execution) -> PictureTransform:
    """How pictures become the model's pixels."""
    card = execution.card()
    return PictureTransform(card.image_size, card.interpolation, card.resize_mode, card.fill_color, execution.decode)


def block_size(execution: Execution, reading: Reading = WHOLE) -> int:
    """Pictures that are looked up, read and encoded together: enough for the device, within 128 MiB."""
    if execution.block is not None:
        return execution.block
    height, width = execution.card().image_size
    if resolve_device(execution.device).type == "cpu":
        n = max(_CPU_BLOCK, _LANE_PICTURES * n_lanes())
    else:
        n = _ACCELERATOR_BLOCK
    return max(1, min(n, _BLOCK_BYTES // (3 * height * width), _BLOCK_BYTES // (8 * reading.width(execution.card()))))


class Progress:
    """A progress bar while pictures are encoded, and one line in the log when they are.

    Parameters
    ----------
    executions : sequence of Execution
        One for each device; the `verbose` of the first says whether the bar is shown.
    total : int or None
        Pictures in all, if known.
    n_done : int, default=0
        Those of an earlier run.
    """

    def __init__(self, executions: Sequence[Execution], total: int | None, n_done: int = 0) -> None:
        self._executions = executions
        self._n_rows = self._n_encoded = 0
        self._bar = tqdm(total=total, initial=n_done, unit="picture", disable=not executions[0].verbose)
        self._start = time.perf_counter()

    def update(self, block: EncodedBlock) -> None:
        self._n_rows += len(block.rows)
        self._n_encoded += block.n_encoded
        self._bar.update(len(block.rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if error[0] is None and logger.isEnabledFor(logging.INFO):
            logger.info(self.summary())

    def summary(self) -> str:
        """Model, device, precision, batch size and speed, in one line."""
        seconds = time.perf_counter() - self._start
        first = self._executions[0]
        rate = f"{self._n_rows / seconds:.4g} pictures/s"
        if not self._n_encoded:
            return f"{first.model}: {self._n_rows} pictures, nothing to encode, {rate}."
        devices = [resolve_device(execution.device) for execution in self._executions]
        batch = first.batch_size
        if batch == "auto" and len(devices) == 1:
            batch = first.backbone().picture_batch_size
        return (
            f"{first.model} on {', '.join(map(str, devices))}, {resolve_precision(first.precision, devices[0])}, "
            f"batches of {batch}: {self._n_rows} pictures ({self._n_encoded} rows encoded), {rate}."
        )


def encode_texts(texts: Sequence[str], execution: Execution) -> NDArray[np.float32]:
    """Raw projections (n, d) of texts, in input order; equal texts are encoded once."""
    namespace = execution.namespace("text")
    store = open_store(execution.store)
    warn_worker(execution.store)
    rows = np.empty((len(texts), execution.card().dim), dtype=np.float32)
    for lo in range(0, len(texts), _TEXT_CHUNK):
        chunk = texts[lo : lo + _TEXT_CHUNK]
        keys = [row_key(namespace, hashlib.blake2b(text.encode(), digest_size=16).digest(), 0) for text in chunk]
        found_rows, found = store.get(keys, rows.shape[1])
        missing = {keys[i]: chunk[i] for i in np.flatnonzero(~found).tolist()}
        if missing:
            encoded = execution.backbone().encode_texts(list(missing.values()), batch_size=execution.batch_size)
            store.put(list(missing), encoded)
            place = {key: i for i, key in enumerate(missing)}
            for i in np.flatnonzero(~found):
                found_rows[i] = encoded[place[keys[i]]]
        rows[lo : lo + len(chunk)] = found_rows
    return rows


@dataclass
class _Prepared:
    """Consecutive pictures, looked up and read: rows that were known, pixels of those that were not."""

    items: Sequence[Any]
    rows: NDArray  # (m, n_views, d)
    pixels: NDArray  # (n_slots, H, W, 3)
    slots: dict[bytes, int]
    unfilled: list[tuple[tuple[int, int], bytes]]
    failures: list[tuple[int, str]]


class _PictureJob:
    """Everything of one call that does not change from block to block."""

    def __init__(
        self,
        views: Sequence[int],
        execution: Execution,
        seed: int,
        reading: Reading,
        augmentation: Augmentation | None,
    ) -> None:
        self.views = list(views)
        self.execution = execution
        self.seed = seed
        self.reading = reading
        self.augmentation = augmentation or Augmentation()
        self.width = reading.width(execution.card())
        self.transform = picture_transform(execution)
        self.store: Store = open_store(execution.store)
        kind = f"{reading.kind} {self.transform.key()}"
        self._plain = execution.namespace(kind)
        self._augmented = execution.namespace(f"{kind} {self.augmentation.key()} {seed}")

    def prepare_ahead(self, blocks: Iterator[Sequence[Any]]) -> Generator[_Prepared]:
        """Blocks in order, prepared while the caller works on those before."""
        execution = self.execution
        with (
            ThreadPoolExecutor(1) as source,
            ThreadPoolExecutor(_BLOCKS_AHEAD) as ahead,
            # Closed first: where the caller stops early, what is being read ends in an error instead of being awaited.
            PictureReader(
                self.transform,
                workers=execution.workers,
                n_workers=execution.n_workers,
                seed=self.seed,
                augmentation=self.augmentation,
            ) as reader,
        ):

            def prepare(pulled: Future) -> _Prepared | None:
                block = pulled.result()
                return None if block is None else self._prepare(block, reader)

            def submit() -> Future:
                return ahead.submit(prepare, source.submit(next, blocks, None))

            coming = deque(submit() for _ in range(_BLOCKS_AHEAD))
            try:
                while (prepared := coming.popleft().result()) is not None:
                    coming.append(submit())
                    yield prepared
            finally:
                source.shutdown(wait=False, cancel_futures=True)
                for future in coming:
                    future.cancel()

    def encode(self, prepared: _Prepared, known: Container[bytes]) -> dict[bytes, NDArray]:
        """Rows of the pictures that were read and are not `known`, kept in the store."""
        missing = {key: slot for key, slot in prepared.slots.items() if key not in known}
        if not missing:
            return {}
        warn_worker(self.execution.store)
        slots = list(missing.values())
        pixels = prepared.pixels if len(slots) == len(prepared.pixels) else prepared.pixels[slots]
        backbone = self.execution.backbone()
        encoded = self.reading.encode(backbone, pixels, self.execution.batch_size)
        self.store.put(list(missing), encoded)
        return dict(zip(missing, encoded))

    def _prepare(self, items: Sequence[Any], reader: PictureReader) -> _Prepared:
        loaded, contents = self._identify(items, reader)
        reasons = {i: str(content) for i, content in enumerate(contents) if isinstance(content, PictureError)}
        places = [(i, v) for i in range(len(items)) if i not in reasons for v in range(len(self.views))]
        keys = [self._key(contents[i], self.views[v]) for i, v in places]
        all_rows = np.full((len(items), len(self.views), self.width), np.nan, dtype=np.float32)
        looked_up = []
        for place, key in zip(places, keys):
            shared = _shared_row(items[place[0]], key)
            if shared is None:
                looked_up.append((place, key))
            else:
                all_rows[place] = shared
        wanted: dict[bytes, list[tuple[int, int]]] = {}
        rows, found = self.store.get([key for _, key in looked_up], self.width)
        for (place, key), row, is_there in zip(looked_up, rows, found):
            if is_there:
                all_rows[place] = row
                _share(items[place[0]], key, row)
            else:
                wanted.setdefault(key, []).append(place)

        # Each picture is decoded once, whatever the number of its views and of its equals.
        slots = {key: slot for slot, key in enumerate(wanted)}
        readers: dict[int, list[bytes]] = {}
        for key, (first, *_) in wanted.items():
            readers.setdefault(first[0], []).append(key)
        pixels = self._empty(len(slots))
        answers = reader.read(
            [
                Wanted(loaded[i], contents[i], tuple((slots[key], self.views[wanted[key][0][1]]) for key in own))
                for i, own in readers.items()
            ],
            pixels,
        )
        for own, answer in zip(readers.values(), answers):
            if answer is not None:
                equals = {place[0] for key in own for place in wanted[key]}
                reasons.update(dict.fromkeys(equals, str(answer)))
                for key in own:
                    del slots[key]
        all_rows[list(reasons)] = np.nan
        unfilled = [(place, key) for key in slots for place in wanted[key]]
        return _Prepared(items, all_rows, pixels, slots, unfilled, sorted(reasons.items()))

    def _empty(self, n: int) -> NDArray[np.uint8]:
        if n == 0:  # no need for a backbone
            return np.empty((0, *self.transform.size, 3), dtype=np.uint8)
        return self.execution.backbone().empty_pictures(n)

    def _identify(self, items: Sequence[Any], reader: PictureReader) -> tuple[list[Any], list[Any]]:
        """What was read of each item (itself where nothing had to be), and its content key or `PictureError`."""
        paths = {i: path for i, item in enumerate(items) if (path := unknown_file(item)) is not None}
        known = dict(zip(paths, self.store.known(list(paths.values()))))
        contents: list[Any] = [known.get(i) for i in range(len(items))]
        loaded = list(items)
        unknown = [i for i, content in enumerate(contents) if content is None]
        stats = {i: _stat(paths[i]) for i in unknown if i in paths}  # before reading: a change in between shows
        for i, (data, content) in zip(unknown, reader.load([items[i] for i in unknown])):
            loaded[i], contents[i] = data, content
        self.store.remember_many(
            [
                (paths[i], status, contents[i])
                for i, status in stats.items()
                if status is not None and isinstance(contents[i], bytes)
            ]
        )
        return loaded, contents

    def _key(self, content: bytes, view: int) -> bytes:
        return row_key(self._plain if view == 0 else self._augmented, content, view)


def _shared_row(item: Any, key: bytes) -> NDArray | None:
    """The row that another reader of the same picture has made."""
    return item.rows.get(key) if isinstance(item, SharedPicture) else None


def _share(item: Any, key: bytes, row: NDArray) -> None:
    if isinstance(item, SharedPicture):
        item.rows[key] = row


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _failure_warning(failures: list[tuple[int, str, str]], n: int) -> UnreadablePictureWarning:
    lines = [f"X[{position}], {what}: {reason}" for position, what, reason in failures[:5]]
    more = f"\n... and {len(failures) - 5} more, all in the warning's `failures`" if len(failures) > 5 else ""
    text = f"{len(failures)} of {n} pictures could not be read; their rows are NaN:\n" + "\n".join(lines) + more
    return UnreadablePictureWarning(text, failures)


_warned_workers: set[int] = set()


def warn_worker(store: Any) -> None:
    """Say once per worker process that rows kept in its memory reach no other process."""
    worker = multiprocessing.current_process()
    if store == "memory" and worker.name != "MainProcess" and worker.pid not in _warned_workers:
        _warned_workers.add(worker.pid or 0)
        warnings.warn(
            'store="memory" is per process: this worker encodes again what others have encoded. '
            'Give a folder, store="path/to/folder", when n_jobs > 1.',
            WorkerStoreWarning,
            stacklevel=2,
        )
