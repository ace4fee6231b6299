"""Tables whose rows are pictures: CSV, JSON lines and Parquet files, data frames, Hugging Face datasets."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import IO, Any

import numpy as np

from skclip._media import MissingPicture
from skclip._media._remote import is_url
from skclip._media._sources import PICTURE_TYPES, with_article
from skclip.features._source_items import (
    Shard,
    Source,
    SourceError,
    SourceItem,
    bare,
    every,
    joined,
    opened,
    picture_at,
    plain,
    reading,
    unknown_count,
)

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet")

# In this order, in capital letters too.
PICTURE_COLUMNS = (
    "path",
    "filepath",
    "file",
    "filename",
    "file_name",
    "image",
    "image_path",
    "img",
    "url",
    "image_url",
)

# A row, and what is wrong with it if it cannot be trusted.
Record = tuple[dict[str, Any], str | None]

_ROWS_AT_ONCE = 64
_BUFFER_BYTES = 2**20
_MOST_BYTES_COUNTED = 2**28


@dataclass(frozen=True)
class _Table:
    """Rows of named columns.

    Parameters
    ----------
    columns : list of str
        All that there are.
    read : callable (column) -> iterator of Record
        The column of the pictures is always among those read; others that JSON cannot hold are not.
    count : callable () -> int or None
    base : str
        Folder that paths are relative to.
    """

    columns: list[str]
    read: Callable[[str], Iterator[Record]]
    count: Callable[[], int | None]
    base: str = ""


def open_tables(files: Sequence[str], column: str | None, shard: Shard) -> Source:
    """Rows of table files, one file after the other."""
    tables = [_open_table(file) for file in files]
    column = _picture_column(tables[0].columns, column, repr(files[0]))
    for file, table in zip(files, tables):
        _picture_column(table.columns, column, repr(file))
    names = f"table {files[0]!r}" if len(files) == 1 else f"{len(files)} tables from {files[0]!r} on"
    return Source(f"{names}, column {column!r}", partial(_items, tables, column, shard), partial(_count, tables), shard)


def open_frame(frame: Any, column: str | None, shard: Shard) -> Source:
    """Rows of a pandas or polars DataFrame."""
    columns = [str(name) for name in frame.columns]
    table = _Table(columns, partial(_frame_records, frame), partial(len, frame))
    column = columns[0] if column is None and len(columns) == 1 else _picture_column(columns, column, "the DataFrame")
    what = f"DataFrame of {len(frame)} rows, column {column!r}"
    return Source(what, partial(_items, [table], column, shard), table.count, shard)


def open_dataset(dataset: Any, column: str | None, shard: Shard) -> Source:
    """Rows of a Hugging Face dataset, pictures as they were stored."""
    from datasets import Image

    dataset = dataset.with_format(None)
    features = dataset.features or {}
    columns = list(dataset.column_names or next(iter(dataset), {}))
    pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
    kind = type(dataset).__name__
    if column is None and len(pictures) > 1:
        raise SourceError(f"The {kind} has several columns of pictures, {pictures}; choose one with column=.")
    if column is None and pictures:
        column = pictures[0]
    column = _picture_column(columns, column, f"the {kind}")
    if column in pictures:
        dataset = dataset.cast_column(column, Image(decode=False))
    heavy = [name for name, feature in features.items() if name != column and not _is_small_feature(feature)]
    dataset = dataset.remove_columns(heavy) if heavy else dataset
    count = partial(len, dataset) if hasattr(dataset, "__len__") else unknown_count
    return Source(f"{kind}, column {column!r}", partial(_dataset_items, dataset, column, shard), count, shard)


def is_dataset(source: Any) -> bool:
    """Whether it is a dataset of the Hugging Face library, which is not imported to find out."""
    return any(
        base.__module__.partition(".")[0] == "datasets" and base.__name__ in ("Dataset", "IterableDataset")
        for base in type(source).__mro__
    )


def _items(tables: Sequence[_Table], column: str, shard: Shard) -> Iterator[SourceItem]:
    records = ((table.base, record) for table in tables for record in table.read(column))
    for position, (base, record) in every(records, shard):
        yield _item(record, column, base, position)


def _dataset_items(dataset: Any, column: str, shard: Shard) -> Iterator[SourceItem]:
    numbered: Iterator[tuple[int, Any]] = every(dataset, shard)
    if hasattr(dataset, "select"):  # the rows between need not be read
        positions = range(len(dataset))[shard[0] :: shard[1]]
        numbered = zip(positions, dataset.select(positions))
    for position, row in numbered:
        yield _item((dict(row), None), column, "", position)


def _item(record: Record, column: str, base: str, position: int) -> SourceItem:
    row, problem = record
    name, picture = picture_in_cell(row.pop(column, None), base, position, column)
    picture = picture if problem is None else MissingPicture(problem)
    return SourceItem(name, picture, {key: plain(value) for key, value in row.items() if not _is_heavy(value)})


def picture_in_cell(value: Any, base: str, position: int, column: str) -> tuple[str, Any]:
    """Name and picture of a cell: a path, a URL, encoded bytes, or these as Hugging Face's libraries store them."""
    name = str(position)
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        name = value.get("path") or name
        value = value.get("bytes") or value.get("path")
    if value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value):
        return name, MissingPicture(f"the column {column!r} is empty here")
    if isinstance(value, (str, os.PathLike)):
        address = os.fspath(value)
        return address, picture_at(joined(base, address))
    if isinstance(value, PICTURE_TYPES):
        return name, value
    return name, MissingPicture(f"the column {column!r} holds {with_article(value)} here, neither a path nor a picture")


def _is_heavy(value: Any) -> bool:
    """Whether a cell is something that belongs in no list of rows: a further picture, for example."""
    if isinstance(value, dict):
        return any(map(_is_heavy, value.values()))
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim >= 2
    return isinstance(value, PICTURE_TYPES) and not isinstance(value, (str, os.PathLike))


def _picture_column(columns: Sequence[str], column: str | None, what: str) -> str:
    if column is not None:
        if column in columns:
            return column
        raise SourceError(f"There is no column {column!r} in {what}; its columns are {list(columns)}.")
    by_small_letters = {name.lower(): name for name in reversed(columns)}
    for candidate in PICTURE_COLUMNS:
        if candidate in by_small_letters:
            return by_small_letters[candidate]
    raise SourceError(
        f"No column of {what} is known to hold pictures: {list(columns)}. Name it with column=. Found by themselves "
        f"are {', '.join(PICTURE_COLUMNS)}."
    )


def _count(tables: Sequence[_Table]) -> int | None:
    counts = [table.count() for table in tables]
    return None if None in counts else sum(count for count in counts if count is not None)


def _open_table(file: str) -> _Table:
    if bare(file).endswith(".parquet"):
        return _parquet_table(file)
    return _jsonl_table(file) if bare(file).endswith((".jsonl", ".jsonl.gz")) else _csv_table(file)


def _csv_table(file: str) -> _Table:
    header = next(_csv_rows(file), None)
    if header is None:
        raise SourceError(f"The table {file!r} is empty; its first line names the columns.")
    if len(set(header)) < len(header):
        raise SourceError(f"The table {file!r} has columns of one name: {header}.")
    return _Table(
        header, partial(_csv_records, file, header), partial(_count_rows, _csv_rows, file, 1), _folder_of(file)
    )


def _csv_rows(file: str) -> Iterator[list[str]]:
    with reading(f"The table {file!r}"), _lines(file) as lines:
        reader = csv.reader(lines, delimiter="\t" if bare(file).endswith((".tsv", ".tsv.gz")) else ",")
        try:
            yield from filter(None, reader)  # a blank line is no row
        except csv.Error as error:
            raise SourceError(f"The table {file!r} cannot be read on at line {reader.line_num}: {error}.") from error


def _csv_records(file: str, header: list[str], column: str) -> Iterator[Record]:
    for cells in islice(_csv_rows(file), 1, None):
        problem = None
        if len(cells) != len(header):
            problem = f"the row has {len(cells)} fields, the first line of the table {len(header)}"
        yield dict(zip(header, cells)), problem


def _jsonl_table(file: str) -> _Table:
    first = next(_jsonl_rows(file), None)
    if first is None:
        raise SourceError(f"The table {file!r} is empty.")
    return _Table(
        list(first), partial(_jsonl_records, file), partial(_count_rows, _jsonl_rows, file, 0), _folder_of(file)
    )


def _jsonl_rows(file: str) -> Iterator[dict[str, Any]]:
    with reading(f"The table {file!r}"), _lines(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise SourceError(f"Line {number} of the table {file!r} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise SourceError(f"Line {number} of the table {file!r} is {with_article(row)}, not an object.")
            yield row


def _jsonl_records(file: str, column: str) -> Iterator[Record]:
    for row in _jsonl_rows(file):
        yield row, None


def _count_rows(rows: Callable[[str], Iterator[Any]], file: str, n_header: int) -> int | None:
    """Number of rows of a file that is near and not too large to be read for that."""
    if is_url(file) or os.path.getsize(file) > _MOST_BYTES_COUNTED:
        return None
    return sum(1 for _ in rows(file)) - n_header


@contextmanager
def _lines(file: str) -> Iterator[IO[str]]:
    """A text file; bytes that are not UTF-8 stay what they are, so that paths lead where they led."""
    with opened(file) as data, io.TextIOWrapper(data, "utf-8-sig", errors="surrogateescape", newline="") as lines:
        yield lines


def _folder_of(file: str) -> str:
    if not is_url(file):
        return os.path.dirname(file)
    head, chain, rest = file.partition("?")[0].partition("::")
    return head.rpartition("/")[0] + chain + rest


def _parquet_table(file: str) -> _Table:
    parquet = _import_parquet(file)
    with reading(f"The table {file!r}"), opened(file) as data, parquet.ParquetFile(data) as table:
        schema, n_rows = table.schema_arrow, table.metadata.num_rows
    small = [field.name for field in schema if not _is_heavy_type(field.type)]
    return _Table(schema.names, partial(_parquet_records, file, small), partial(int, n_rows), _folder_of(file))


def _parquet_records(file: str, small: list[str], column: str) -> Iterator[Record]:
    parquet = _import_parquet(file)
    columns = list(dict.fromkeys([column, *small]))
    # Row groups of pictures can be larger than the memory: they are read piece by piece.
    with (
        reading(f"The table {file!r}"),
        opened(file) as data,
        parquet.ParquetFile(data, pre_buffer=False, buffer_size=_BUFFER_BYTES) as table,
    ):
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                yield row, None


def _import_parquet(file: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"Reading {file!r} needs pyarrow: pip install 'skclip[parquet]'.") from error
    return pyarrow.parquet


def _is_heavy_type(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(_is_heavy_type(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_heavy_type(kind.value_type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _frame_records(frame: Any, column: str) -> Iterator[Record]:
    is_pandas = hasattr(frame, "iloc")
    for start in range(0, len(frame), _ROWS_AT_ONCE):
        stop = start + _ROWS_AT_ONCE
        rows = frame.iloc[start:stop].to_dict("records") if is_pandas else frame[start:stop].to_dicts()
        for row in rows:
            yield {str(key): value for key, value in row.items()}, None


def _is_small_feature(feature: Any) -> bool:
    """Whether a column of a dataset is text or numbers, not pictures or sounds that reading would decode."""
    if isinstance(feature, dict):
        return all(map(_is_small_feature, feature.values()))
    if isinstance(feature, (list, tuple)):
        return all(map(_is_small_feature, feature))
    if hasattr(feature, "feature"):
        return _is_small_feature(feature.feature)
    return not hasattr(feature, "decode_example") and getattr(feature, "dtype", None) not in ("binary", "large_binary")
