"""From pictures and texts to raw rows: look up, read what is missing, encode it once, keep it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skclip._backbones import (
    BackboneCard,
    device_of_fitted,
    get_card,
    grid_shape,
    load_backbone,
    resolve_device,
    resolve_precision,
    weights_digest,
)
from skclip._media import (
    PictureError,
    PictureTransform,
    SharedPicture,
    augment,
    content_key,
    describe,
    load_item,
    read_picture,
    unknown_file,
)
from skclip.features._store import Store, open_store, row_key
from skclip.utils import SkclipWarning

_CHUNK = 256  # pictures looked up, read and kept together, if their rows are not too wide
_CHUNK_BYTES = 2**26
_TEXT_CHUNK = 8192


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
    verbose: int = 0

    def card(self) -> BackboneCard:
        return get_card(self.model)

    def backbone(self) -> Any:
        return load_backbone(self.model, device=self.device, precision=self.precision)

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


def encode_pictures(
    pictures: Sequence[Any],
    views: Sequence[int],
    execution: Execution,
    *,
    seed: int,
    on_error: str,
    places: bool = False,
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
    places : bool
        Whether a row holds the picture and its places, (1 + h * w) * d numbers (`Backbone.encode_places`), instead
        of the picture alone.

    Returns
    -------
    rows : ndarray of shape (n, len(views), d), float32
        One row per picture and view, in input order; NaN for unreadable pictures under "nan".
    """
    job = _PictureJob(pictures, views, execution, seed, places)
    rows = np.empty((len(pictures), len(views), job.width), dtype=np.float32)
    failures: list[tuple[int, str, str]] = []
    fresh: dict[bytes, NDArray] = {}
    backbone = None
    progress = tqdm(total=len(pictures), unit="picture", disable=not execution.verbose)
    with progress:
        for chunk in job.chunks():
            for position, reason in chunk.failures:
                failures.append((position, describe(pictures[position]), reason))
                if on_error == "raise":
                    raise PictureError(f"X[{position}], {failures[-1][1]}: {reason}.")
            # The chunk was looked up while the one before was being encoded.
            known = {key: row for key, row in fresh.items() if key in chunk.pixels}
            missing = [key for key in chunk.pixels if key not in known]
            fresh = {}
            if missing:
                warn_worker(execution.store)
                batch = np.stack([chunk.pixels[key] for key in missing])
                backbone = backbone or execution.backbone()
                encode = backbone.encode_places if places else backbone.encode_images
                encoded = encode(batch, batch_size=execution.batch_size)
                job.store.put(missing, encoded)
                fresh = dict(zip(missing, encoded))
            for (i, v), key in chunk.unfilled:
                row = fresh[key] if key in fresh else known[key]
                chunk.rows[i, v] = row
                _share(pictures[chunk.start + i], key, row)
            rows[chunk.start : chunk.start + len(chunk.rows)] = chunk.rows
            progress.update(len(chunk.rows))
    if failures:
        warnings.warn(_failure_warning(failures, len(pictures)), stacklevel=4)
    return rows


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
class _Chunk:
    """Some consecutive pictures, looked up and read: rows that were kept, pixels of those that were not."""

    start: int
    rows: NDArray  # (m, n_views, d)
    pixels: dict[bytes, NDArray] = field(default_factory=dict)
    unfilled: list[tuple[tuple[int, int], bytes]] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)


class _PictureJob:
    """Everything of one call that does not change from chunk to chunk."""

    def __init__(
        self, pictures: Sequence[Any], views: Sequence[int], execution: Execution, seed: int, places: bool
    ) -> None:
        card = execution.card()
        self.pictures = pictures
        self.views = list(views)
        self.seed = seed
        n_tokens = 1 + prod(grid_shape(card)) if places else 1
        self.width = n_tokens * card.dim
        self.n_together = max(1, min(_CHUNK, _CHUNK_BYTES // (4 * self.width)))
        self.transform = PictureTransform(card.image_size, card.interpolation, card.resize_mode, card.fill_color)
        self.store: Store = open_store(execution.store)
        self.n_workers = execution.n_workers or min(8, joblib.cpu_count())
        kind = f"{'value path' if places else 'picture'} {self.transform.key()}"
        self._plain = execution.namespace(kind)
        self._augmented = execution.namespace(f"{kind} crop_flip {seed}")

    def chunks(self) -> Iterator[_Chunk]:
        """Chunks in order, each prepared while the caller works on the one before."""
        starts = range(0, len(self.pictures), self.n_together)
        with ThreadPoolExecutor(self.n_workers) as pool, ThreadPoolExecutor(1) as ahead:
            future = ahead.submit(self._prepare, starts[0], pool)
            for following in [*starts[1:], None]:
                chunk = future.result()
                if following is not None:
                    future = ahead.submit(self._prepare, following, pool)
                yield chunk

    def _prepare(self, start: int, pool: Executor) -> _Chunk:
        items = [self.pictures[i] for i in range(start, min(start + self.n_together, len(self.pictures)))]
        loaded, contents = self._identify(items, pool)
        reasons = {i: str(content) for i, content in enumerate(contents) if isinstance(content, PictureError)}
        places = [(i, v) for i in range(len(items)) if i not in reasons for v in range(len(self.views))]
        keys = [self._key(contents[i], self.views[v]) for i, v in places]
        chunk = _Chunk(start, np.full((len(items), len(self.views), self.width), np.nan, dtype=np.float32))
        wanted: dict[bytes, list[tuple[int, int]]] = {}
        looked_up = []
        for place, key in zip(places, keys):
            shared = _shared_row(items[place[0]], key)
            if shared is None:
                looked_up.append((place, key))
            else:
                chunk.rows[place] = shared
        rows, found = self.store.get([key for _, key in looked_up], self.width)
        for (place, key), row, is_there in zip(looked_up, rows, found):
            if is_there:
                chunk.rows[place] = row
                _share(items[place[0]], key, row)
            else:
                wanted.setdefault(key, []).append(place)

        # Each picture is decoded once, whatever the number of its views and of its equals.
        readers: dict[int, list[bytes]] = {}
        for key, (first, *_) in wanted.items():
            readers.setdefault(first[0], []).append(key)
        views = {i: [self.views[wanted[key][0][1]] for key in own] for i, own in readers.items()}
        read = pool.map(lambda i: self._read(loaded[i], contents[i], views[i]), readers)
        for (_i, own), pixels in zip(readers.items(), read):
            if isinstance(pixels, PictureError):
                equals = {place[0] for key in own for place in wanted[key]}
                reasons.update(dict.fromkeys(equals, str(pixels)))
            else:
                chunk.pixels.update(zip(own, pixels))
        chunk.unfilled = [(place, key) for key, places in wanted.items() if key in chunk.pixels for place in places]
        chunk.rows[list(reasons)] = np.nan
        chunk.failures = [(start + i, reasons[i]) for i in sorted(reasons)]
        return chunk

    def _identify(self, items: list[Any], pool: Executor) -> tuple[list[Any], list[Any]]:
        """What was read of each item (itself where nothing had to be), and its content key or `PictureError`."""
        paths = {i: path for i, item in enumerate(items) if (path := unknown_file(item)) is not None}
        known = dict(zip(paths, self.store.known(list(paths.values()))))
        contents: list[Any] = [known.get(i) for i in range(len(items))]
        loaded = list(items)
        unknown = [i for i, content in enumerate(contents) if content is None]
        stats = {i: _stat(paths[i]) for i in unknown if i in paths}  # before reading: a change in between shows
        for i, (data, content) in zip(unknown, pool.map(_load_and_key, [items[i] for i in unknown])):
            loaded[i], contents[i] = data, content
        self.store.remember_many(
            [
                (paths[i], status, contents[i])
                for i, status in stats.items()
                if status is not None and isinstance(contents[i], bytes)
            ]
        )
        return loaded, contents

    def _read(self, data: Any, content: bytes, views: list[int]) -> list[NDArray] | PictureError:
        try:
            picture = read_picture(data)
        except PictureError as error:
            return error
        size, interpolation = self.transform.size, self.transform.interpolation
        return [
            self.transform(picture)
            if view == 0
            else augment(picture, seed=self.seed, key=content, view=view, size=size, interpolation=interpolation)
            for view in views
        ]

    def _key(self, content: bytes, view: int) -> bytes:
        return row_key(self._plain if view == 0 else self._augmented, content, view)


def _shared_row(item: Any, key: bytes) -> NDArray | None:
    """The row that another reader of the same picture has made."""
    return item.rows.get(key) if isinstance(item, SharedPicture) else None


def _share(item: Any, key: bytes, row: NDArray) -> None:
    if isinstance(item, SharedPicture):
        item.rows[key] = row


def _load_and_key(item: Any) -> tuple[Any, bytes | PictureError]:
    try:
        data = load_item(item)
        return data, content_key(data)
    except PictureError as error:
        return item, error


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
