"""Rows as Parquet files: columns name, features, error, further columns and, for what fits none of them, extra.

The types of further columns are those of the first file, so that all files of a folder have one schema: booleans,
whole numbers, numbers and strings as such; columns with values of several types, lists or dictionaries as JSON text
(the field's metadata say ``skclip: json``). What turns up in a later file in a column that is not there, or with
another type, is kept as JSON text in the column extra.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skclip.features._output_files import HEADER_BYTES, RESERVED, OutputError, part_name, read_lines, sync_folder

# A group of rows is what is in memory while a file is written or read.
_GROUP_BYTES = 2**23
_LARGEST_INT = 2**63 - 1
_LARGEST_EXACT = 2**53
_JSON_TEXT = {b"skclip": b"json"}


def import_pyarrow() -> Any:
    """The package pyarrow with its Parquet part."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files need the package pyarrow: pip install 'skclip[parquet]', or use format='npy'."
        ) from error
    return pyarrow


def as_text(text: str) -> str:
    """A string as Parquet can hold it: what is no Unicode (file names may be so) is written as ``\\\\udcff``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def write_part(folder: Path, *, number: int, features: Path, manifest: Path, n_rows: int, n_columns: int) -> None:
    """Turn rows and the lines of their manifest into one complete file; the same rows give the same bytes."""
    pa = import_pyarrow()
    path = folder / part_name(number)
    if number == 0:
        schema = _schema(islice(read_lines(manifest), n_rows), n_columns)
    else:
        with _opened(folder / part_name(0)) as first:
            schema = first.schema_arrow
    temporary = path.with_name(path.name + ".tmp")
    fixed = ("name", "error")
    options = {
        "compression": {**dict.fromkeys(_leaves(schema), "zstd"), _FEATURES_LEAF: "none"},
        "use_dictionary": [column for column in schema.names if column not in ("features", *fixed)],
        "write_statistics": [column for column in schema.names if column != "features"],
    }
    lines = read_lines(manifest)
    with open(temporary, "wb") as file:
        with pa.parquet.ParquetWriter(file, schema, **options) as writer, open(features, "rb") as rows:
            rows.seek(HEADER_BYTES)
            for lo in range(0, n_rows, group := group_rows(n_columns)):
                m = min(group, n_rows - lo)
                data = np.fromfile(rows, dtype="<f4", count=m * n_columns)
                writer.write_table(_table(pa, schema, data, list(islice(lines, m))), row_group_size=m)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(folder)


def group_rows(n_columns: int) -> int:
    return max(1, _GROUP_BYTES // (4 * n_columns))


def read_names(path: Path) -> Iterator[str]:
    """The names in one file."""
    for names in _arrays(path, "name"):
        yield from names.to_pylist()


def read_features(path: Path) -> Iterator[NDArray[np.float32]]:
    """The rows of one file in blocks."""
    for features in _arrays(path, "features"):
        yield features.flatten().to_numpy().reshape(len(features), -1)


def read_manifest(path: Path) -> Iterator[dict[str, Any]]:
    """Every row of one file without its number and its features, further columns as they were given."""
    with _opened(path) as file:
        schema = file.schema_arrow
        columns = [name for name in schema.names if name != "features"]
        encoded = [name for name in columns if name == "extra" or schema.field(name).metadata == _JSON_TEXT]
        for k in range(file.num_row_groups):
            for line in file.read_row_group(k, columns=columns, use_threads=False).to_pylist():
                line |= {name: json.loads(line[name]) for name in encoded if line[name] is not None}
                error, extra = line.pop("error"), line.pop("extra")
                yield {**line, **(extra or {}), **({} if error is None else {"error": error})}


def _arrays(path: Path, column: str) -> Iterator[Any]:
    """A column of one file; by groups, because pyarrow's iteration over batches comes to hold the whole file."""
    with _opened(path) as file:
        for k in range(file.num_row_groups):
            yield from file.read_row_group(k, columns=[column], use_threads=False).column(column).chunks


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with import_pyarrow().parquet.ParquetFile(path) as file:
            yield file
    except (ValueError, OSError) as error:  # Arrow's own errors are ValueErrors
        raise OutputError(f"{str(path)!r} is damaged: {error}.") from error


_FEATURES_LEAF = "features.list.element"


def _leaves(schema: Any) -> list[str]:
    return [_FEATURES_LEAF if name == "features" else name for name in schema.names]


def _schema(lines: Iterable[dict[str, Any]], n_columns: int) -> Any:
    """The columns that hold the lines of a manifest."""
    pa = import_pyarrow()
    kinds: dict[str, set[str]] = {}
    for line in lines:
        for key, value in line.items():
            if key not in RESERVED:
                kinds.setdefault(key, set()).add(_kind(value))
    further = []
    for key, found in kinds.items():
        arrow = _ARROW_TYPES.get(frozenset(found - {"none"}))
        further.append(pa.field(key, arrow or "string", metadata=None if arrow else _JSON_TEXT))
    return pa.schema(
        [
            pa.field("name", pa.string()),
            pa.field("features", pa.list_(pa.float32(), n_columns)),
            pa.field("error", pa.string()),
            *further,
            pa.field("extra", pa.string()),
        ]
    )


_ARROW_TYPES = {
    frozenset({"bool"}): "bool",
    frozenset({"int"}): "int64",
    frozenset({"int", "exact"}): "int64",
    frozenset({"exact"}): "int64",
    frozenset({"float"}): "double",
    frozenset({"float", "exact"}): "double",
    frozenset({"str"}): "string",
}


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if abs(value) <= _LARGEST_EXACT:
            return "exact"
        return "int" if abs(value) <= _LARGEST_INT else "other"
    return {float: "float", str: "str"}.get(type(value), "other")


_FITTING = {"bool": {"bool"}, "int64": {"int", "exact"}, "double": {"float", "exact"}, "string": {"str"}}


def _table(pa: Any, schema: Any, data: NDArray[np.float32], lines: list[dict[str, Any]]) -> Any:
    further = {
        field.name: (field.metadata == _JSON_TEXT, _FITTING[str(field.type)])
        for field in schema
        if field.name not in RESERVED
    }
    columns: dict[str, list[Any]] = {name: [None] * len(lines) for name in schema.names if name != "features"}
    for i, line in enumerate(lines):
        columns["name"][i] = as_text(line["name"])
        columns["error"][i] = as_text(line["error"]) if "error" in line else None
        rest = {}
        for key, value in line.items():
            if key in RESERVED or (value is None and key in further):
                continue
            as_json, fitting = further.get(key, (False, ()))
            if as_json:
                columns[key][i] = json.dumps(value)
            elif _kind(value) in fitting:
                columns[key][i] = as_text(value) if isinstance(value, str) else value
            else:
                rest[key] = value
        if rest:
            columns["extra"][i] = json.dumps(rest)
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(data), schema.field("features").type.list_size)
        if field.name == "features"
        else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
