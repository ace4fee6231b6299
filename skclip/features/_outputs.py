"""Extracted features in a folder: writing them, reading them, putting shards together.

Layout "npy"::

    features.npy      float32, one row per item in the order of the source, NaN where it could not be read
    manifest.jsonl    one line per row: {"row": 0, "name": "cat.jpg", further columns, "error": only where there is one}
    failures.jsonl    one line per row that is NaN: {"row": 7, "name": "dog.jpg", "reason": "..."}
    extraction.json   settings, versions, counts; written last

Layout "parquet"::

    part-00000.parquet, part-00001.parquet, ...   name, features, error, further columns, extra
    _failures.jsonl, _extraction.json             as above
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skclip.features import _parquet_output as parquet
from skclip.features._output_files import (
    FAILURES,
    FEATURES,
    FINAL_NAMES,
    HEADER_BYTES,
    MANIFEST,
    RESERVED,
    OutputError,
    UnlockedOutputWarning,
    count_parts,
    differences,
    explained,
    part_name,
    read_journal,
    read_lines,
)
from skclip.features._row_writer import TAKEN_OVER, RowWriter, check_files, find_state, open_writer

__all__ = [
    "Extraction",
    "OutputError",
    "RowWriter",
    "UnlockedOutputWarning",
    "merge_extractions",
    "open_extraction",
    "open_writer",
]

_BLOCK = 4096


def open_extraction(out: str | os.PathLike[str]) -> Extraction:
    """Open a folder of extracted features.

    Costs the same for any number of rows: features are mapped, names and failures read when asked for.

    Parameters
    ----------
    out : str or Path
        The folder that `extract` or `merge_extractions` has filled.

    Returns
    -------
    extraction : Extraction

    Raises
    ------
    OutputError
        There is no extraction, it is unfinished, or a file of it is missing or cut short.

    Examples
    --------
    >>> import tempfile
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.features import CLIPFeatures, extract, open_extraction
    >>> folder = tempfile.mkdtemp()
    >>> pictures = [*make_picture_world(2).images, "gone.jpg"]
    >>> _ = extract(pictures, folder, CLIPFeatures("skclip-tiny"), verbose=0)
    >>> extraction = open_extraction(folder)
    >>> extraction.features.shape
    (3, 128)
    >>> extraction.names
    ['0', '1', 'gone.jpg']
    >>> extraction.failures
    [(2, 'gone.jpg', 'no such file')]
    """
    folder = Path(out).absolute()  # what is read later is found from another working directory, too
    with explained(folder, "Opening the extraction in the folder"):
        done, begun = find_state(folder)
        if done is not None:
            check_files(folder, done)
            return Extraction(folder, done)
        if begun is not None:
            raise OutputError(
                f"The extraction in {str(folder)!r} is unfinished: {read_journal(folder)[0].rows} rows are committed. "
                "Call extract with the same arguments to go on with it."
            )
        if not folder.is_dir():
            raise OutputError(f"There is no folder {str(folder)!r}.")
        inner = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and any(find_state(entry)))
    hint = f" It holds extractions in {', '.join(inner[:3])}{', ...' if inner[3:] else ''}." if inner else ""
    raise OutputError(f"There is no extraction in {str(folder)!r}.{hint}")


class Extraction:
    """Features of many pictures in a folder, finished; made by `open_extraction`.

    Attributes
    ----------
    folder : Path
    format : {"npy", "parquet"}
    n_rows, n_columns, n_failed : int
    settings : dict
        Model, precision, versions and all else that the rows depend on.
    features : ndarray of shape (n_rows, n_columns), float32
        Under "npy" a read-only memory map, whatever its size. Under "parquet" an array in memory,
        ``4 * n_rows * n_columns`` bytes, read when first asked for.
    names : list of str
        Read when first asked for: some 100 bytes of memory per row. Under "parquet" names that are no Unicode have
        backslash escapes.
    failures : list of (int, str, str)
        Row, name and reason of what could not be read: these rows are NaN.
    """

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self.format: str = state["format"]
        self.n_rows: int = state["n_rows"]
        self.n_columns: int = state["n_columns"]
        self.n_failed: int = state["n_failed"]
        self.settings: dict[str, Any] = state["settings"]
        self._rows_per_file: int | None = state["rows_per_file"]

    def __repr__(self) -> str:
        counts = f"n_rows={self.n_rows}, n_columns={self.n_columns}, n_failed={self.n_failed}"
        return f"Extraction({str(self.folder)!r}, {counts}, format={self.format!r})"

    def __len__(self) -> int:
        return self.n_rows

    def __reduce__(self) -> tuple[Callable[[Path], Extraction], tuple[Path]]:
        return open_extraction, (self.folder,)

    @cached_property
    def features(self) -> NDArray[np.float32]:
        if self._rows_per_file is None:
            return self._map()
        features = np.empty((self.n_rows, self.n_columns), dtype=np.float32)
        row = 0
        for block in self._feature_blocks(_BLOCK):
            features[row : row + len(block)] = block
            row += len(block)
        return features

    @cached_property
    def names(self) -> list[str]:
        if self._rows_per_file is None:
            return [line["name"] for line in self.manifest()]
        return list(chain.from_iterable(map(parquet.read_names, self._parts())))

    @cached_property
    def failures(self) -> list[tuple[int, str, str]]:
        path = self.folder / FINAL_NAMES[self.format][FAILURES]
        return [(line["row"], line["name"], line["reason"]) for line in read_lines(path)]

    def manifest(self) -> Iterator[dict[str, Any]]:
        """Iterate over the rows: dictionaries with row, name, further columns and, where there is one, error.

        One row is in memory at a time ("parquet": some thousand). Under "parquet" further columns that a row was not
        given are None.
        """
        if self._rows_per_file is None:
            yield from read_lines(self.folder / MANIFEST)
        else:
            lines = chain.from_iterable(map(parquet.read_manifest, self._parts()))
            yield from ({"row": row, **line} for row, line in enumerate(lines))

    def _parts(self) -> list[Path]:
        assert self._rows_per_file is not None
        return [self.folder / part_name(k) for k in range(count_parts(self.n_rows, self._rows_per_file))]

    def _map(self) -> NDArray[np.float32]:
        path = self.folder / FEATURES
        try:
            features = np.load(path, mmap_mode="r")
        except ValueError as error:
            raise OutputError(f"{str(path)!r} is damaged: {error}.") from error
        if features.shape != (self.n_rows, self.n_columns) or features.dtype != np.dtype("<f4"):
            raise OutputError(
                f"{str(path)!r} is damaged: it holds {features.dtype} of shape {features.shape} instead of float32 of "
                f"shape ({self.n_rows}, {self.n_columns})."
            )
        return features

    def _feature_blocks(self, size: int) -> Iterator[NDArray[np.float32]]:
        """All rows, `size` at once; read, not mapped, so that what was read is not kept."""
        if self._rows_per_file is not None:
            yield from _resized(chain.from_iterable(map(parquet.read_features, self._parts())), size)
            return
        self._map()  # checks the file
        for lo in range(0, self.n_rows, size):
            m = min(size, self.n_rows - lo)
            offset = HEADER_BYTES + 4 * lo * self.n_columns
            block = np.fromfile(self.folder / FEATURES, dtype="<f4", count=m * self.n_columns, offset=offset)
            yield block.reshape(m, self.n_columns)

    def _lines(self) -> Iterator[tuple[str, dict[str, Any], str | None]]:
        """Name, further columns and error of all rows."""
        for line in self.manifest():
            yield line["name"], {key: value for key, value in line.items() if key not in RESERVED}, line.get("error")


def merge_extractions(
    folders: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    rows_per_file: int | None = None,
    resume: bool = True,
) -> Extraction:
    """Put the shards of one extraction together, in the order of the source.

    Of n shards, shard i holds the items i, i + n, i + 2n, ... of the source, and row r of shard i becomes row
    ``i + r * n``. Where shards are whole tar files instead, the rows of shard 0 come first, then those of shard 1, and
    so on. The shards are read in blocks, one after the other; memory does not grow with the number of rows. They are
    left as they are.

    Parameters
    ----------
    folders : iterable of str or Path
        All shards, in any order.
    out : str or Path
        Another folder.
    format : {"npy", "parquet"}, default=None
        None means that of the shards.
    rows_per_file : int, default=None
        Rows of one Parquet file; None means that of the shards, or 65536.
    resume : bool, default=True
        As in `extract`.

    Returns
    -------
    extraction : Extraction
        Its settings are those of the shards, with "merged_shards" (n) instead of "shard".

    Raises
    ------
    OutputError
        A shard is missing, there twice, unfinished or of another extraction, or `out` cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.features import CLIPFeatures, extract, merge_extractions
    >>> folder, tiny = tempfile.mkdtemp(), CLIPFeatures("skclip-tiny")
    >>> pictures = make_picture_world(3).images
    >>> shards = [extract(pictures, folder, tiny, shard=f"{i}/2", verbose=0).folder for i in range(2)]
    >>> merge_extractions(shards, f"{folder}/all").names
    ['0', '1', '2']
    """
    shards = _in_order([open_extraction(folder) for folder in folders])
    if any(shard.folder.samefile(out) for shard in shards if Path(out).exists()):
        raise OutputError(f"{str(out)!r} is one of the shards; give another folder.")
    first = shards[0]
    settings = {key: value for key, value in first.settings.items() if key != "shard"}
    interleaved = settings.get("shard_unit", "item") == "item"
    if interleaved:
        _check_lengths(shards)
    with open_writer(
        Path(out),
        n_columns=first.n_columns,
        settings={**settings, "merged_shards": len(shards)},
        resume=resume,
        format=format or first.format,
        rows_per_file=rows_per_file or first._rows_per_file,
    ) as writer:
        found, row = writer.n_rows, 0
        writer.skip(name for block in _merged(shards, interleaved) for name, _, _ in block[1])
        for rows, lines in () if writer.finished else _merged(shards, interleaved):
            cut = min(max(found - row, 0), len(lines))
            row += len(lines)
            names, extras, errors = zip(*lines[cut:]) if lines[cut:] else ((), (), ())
            failures = [(i, error) for i, error in enumerate(errors) if error is not None]
            writer.write(names, rows[cut:], failures, extras)
        writer.finish()
    return open_extraction(out)


_Lines: TypeAlias = list[tuple[str, dict[str, Any], str | None]]


def _merged(shards: list[Extraction], interleaved: bool) -> Iterator[tuple[NDArray[np.float32], _Lines]]:
    """Rows and their lines in blocks, in the order of the merged extraction."""
    if not interleaved:
        for shard in shards:
            yield from _blocks(shard, _BLOCK)
        return
    n = len(shards)
    for blocks in zip_longest(*(_blocks(shard, max(1, _BLOCK // n)) for shard in shards)):
        there = [block for block in blocks if block is not None]
        total = sum(len(lines) for _, lines in there)
        rows = np.empty((total, shards[0].n_columns), dtype=np.float32)
        merged: list[Any] = [None] * total
        for i, (part, lines) in enumerate(there):
            rows[i::n] = part
            merged[i::n] = lines
        yield rows, merged


def _resized(blocks: Iterable[NDArray[np.float32]], size: int) -> Iterator[NDArray[np.float32]]:
    """The same rows in blocks of `size`, the last one excepted."""
    held: list[NDArray[np.float32]] = []
    n_held = 0
    for block in blocks:
        held.append(block)
        n_held += len(block)
        if n_held >= size:
            rows = np.concatenate(held)
            whole = n_held // size * size
            yield from (rows[lo : lo + size] for lo in range(0, whole, size))
            held, n_held = [rows[whole:]], n_held - whole
    if n_held:
        yield np.concatenate(held)


def _blocks(shard: Extraction, size: int) -> Iterator[tuple[NDArray[np.float32], _Lines]]:
    lines = shard._lines()
    for block in shard._feature_blocks(size):
        yield block, list(islice(lines, len(block)))


def _in_order(shards: list[Extraction]) -> list[Extraction]:
    """All shards of one run by number, or an error that says what is wrong with them."""
    if not shards:
        raise OutputError("There are no folders to merge.")
    numbered: dict[int, Extraction] = {}
    first = shards[0]
    for shard in shards:
        number = _shard(shard)[0]
        twin = numbered.setdefault(number, shard)
        if twin is not shard:
            raise OutputError(f"{str(twin.folder)!r} and {str(shard.folder)!r} are both shard {number}.")
        unequal = [f"{name} is {was!r} and {now!r}" for name, was, now in differences(_common(first), _common(shard))]
        if unequal:
            raise OutputError(
                f"{str(first.folder)!r} and {str(shard.folder)!r} are no shards of one extraction: "
                f"{'; '.join(unequal[:5])}."
            )
    n = _shard(first)[1]
    missing = [str(i) for i in range(n) if i not in numbered]
    if missing:
        raise OutputError(f"Of {n} shards {len(missing)} are not given: {', '.join(missing[:10])}.")
    return [numbered[i] for i in range(n)]


def _shard(shard: Extraction) -> tuple[int, int]:
    """(i, n) from "i/n"."""
    if not shard.settings.get("shard"):
        raise OutputError(f"{str(shard.folder)!r} is no shard: it was extracted with shard=None.")
    i, n = shard.settings["shard"].split("/")
    return int(i), int(n)


def _common(shard: Extraction) -> dict[str, Any]:
    """What the shards of one extraction agree in; machines differ in how many pictures they take together."""
    own = {key: value for key, value in shard.settings.items() if key not in ("shard", *TAKEN_OVER)}
    return {**own, "n_columns": shard.n_columns, "number of shards": _shard(shard)[1]}


def _check_lengths(shards: list[Extraction]) -> None:
    total, n = sum(shard.n_rows for shard in shards), len(shards)
    for i, shard in enumerate(shards):
        expected = len(range(i, total, n))
        if shard.n_rows != expected:
            raise OutputError(
                f"{str(shard.folder)!r}, shard {i} of {n}, has {shard.n_rows} rows; of {total} items it would have "
                f"{expected}. The shards are not of one source."
            )
