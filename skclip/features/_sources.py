"""Where the pictures of an extraction come from: folders, lists, tables, tar shards, datasets, here or elsewhere."""

from __future__ import annotations

import glob
import operator
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from functools import partial
from itertools import chain, product
from typing import Any

import numpy as np

from skclip._media import RemotePicture, check_images
from skclip._media._remote import is_url, open_filesystem
from skclip._media._sources import PICTURE_TYPES, WANTED, check_pixels, table_kind, with_article
from skclip.features._source_folders import open_folder, open_remote_folder
from skclip.features._source_items import (
    Shard,
    Source,
    SourceError,
    SourceItem,
    bare,
    every,
    picture_at,
    picture_suffixes,
    reading,
    suffix_of,
    unknown_count,
)
from skclip.features._source_tables import TABLE_SUFFIXES, is_dataset, open_dataset, open_frame, open_tables
from skclip.features._source_tars import TAR_SUFFIXES, open_tars

__all__ = ["Source", "SourceError", "SourceItem", "open_source"]

_CONTAINERS = (*TAR_SUFFIXES, *TABLE_SUFFIXES)

_POSSIBLE = (
    "Possible are: a folder; a list, array, Series or generator of pictures or of (name, picture) pairs; a .csv, .tsv, "
    ".jsonl or .parquet table or a DataFrame with a column of pictures; webdataset .tar shards, by a pattern such as "
    "'shard-{000..009}.tar' or '*.tar'; a Hugging Face dataset; URLs of these that fsspec reads; '-' or an open text "
    "file, one path or URL per line"
)


def open_source(source: Any, *, column: str | None = None, shard: Shard = (0, 1)) -> Source:
    """Open a source of pictures.

    Nothing is dropped: a place where a picture should be and is not gives an item that fails when it is read.

    Parameters
    ----------
    source : str, Path, sequence, iterable, DataFrame, dataset or open file
        - A folder: all picture files in it and below, sorted part by part in the order of Unicode; their names are
          their paths in the folder, with "/". Hidden files and folders are passed over, links are followed.
        - A list, tuple, array or Series of pictures or of (name, picture) pairs; or an iterable of these, iterated
          over once if it is an iterator. The name of a path is the path, that of another picture its position.
        - A table, ".csv", ".tsv", ".jsonl" (these also with ".gz") or ".parquet", or a DataFrame. Paths are relative
          to the file. Cells of CSV tables stay text. Columns of bytes other than the pictures are left out.
        - Tar shards in webdataset's format. Consecutive members whose paths agree up to the first dot of the base
          name are one item, named by that key. Members .txt, .json and .cls up to 64 KiB are kept, as text or as
          what the JSON holds.
        - A Hugging Face ``Dataset`` or ``IterableDataset``.
        - The URL of a folder, a table or shards, or a pattern of the latter. In all sources, strings that are URLs
          are pictures to be fetched.
        - "-" for the standard input, or an open file: paths or URLs, one per line or ended by NUL characters.
    column : str, default=None
        Column of the pictures; None is the only picture column of a dataset, otherwise the first of "path",
        "filepath", "file", "filename", "file_name", "image", "image_path", "img", "url" and "image_url", in small
        or capital letters. Of tar shards the suffix of the pictures' members, where a key has several.
    shard : (int, int), default=(0, 1)
        ``(i, n)`` are the items i, i + n, i + 2n, ...; of n tar shards or more the tars i, i + n, ...

    Returns
    -------
    source : Source
        Iterates over `SourceItem`.

    Raises
    ------
    SourceError
        For what is no source, for an empty one where that can be seen, and while iterating where it cannot be read on.
    ImportError
        Naming the extra that is missing.

    Examples
    --------
    >>> from skclip.features._sources import open_source
    >>> source = open_source(["cat.jpg", "dog.jpg", ("my bird", "bird.jpg")], shard=(0, 2))
    >>> source
    <Source: list of 3 pictures, shard 0 of 2>
    >>> [item.name for item in source]
    ['cat.jpg', 'my bird']
    """
    shard = _checked_shard(shard)
    if isinstance(source, (str, os.PathLike)):
        return _open_address(os.fsdecode(os.fspath(source)), column, shard)
    if table_kind(source) == "DataFrame":
        return open_frame(source, column, shard)
    if is_dataset(source):
        return open_dataset(source, column, shard)
    if _are_containers(source):
        return _open_files([os.fsdecode(os.fspath(file)) for file in source], column, shard)
    if column is not None:
        raise SourceError(f"column={column!r} belongs to tables, datasets and tar shards, not to {_kind(source)}.")
    if isinstance(source, PICTURE_TYPES) and not isinstance(source, np.ndarray):
        raise SourceError(f"The source is a single picture, {_kind(source)}; pass a list of pictures.")
    if hasattr(source, "readline"):
        return _open_lines(source, shard)
    if isinstance(source, (np.ndarray, list, tuple)) or table_kind(source):
        return _open_sequence(source, shard)
    if isinstance(source, Iterable) and not isinstance(source, (Mapping, Set)):
        return _open_iterable(source, shard)
    hint = " Pass list(source.items())." if isinstance(source, Mapping) else ""
    raise SourceError(f"The source is {_kind(source)}.{hint} {_POSSIBLE}.")


def _checked_shard(shard: Any) -> Shard:
    try:
        i, n = map(operator.index, shard)
    except (TypeError, ValueError):
        raise SourceError(f"shard={shard!r} must be two integers (i, n), the i-th of n.") from None
    if not 0 <= i < n:
        raise SourceError(f"shard={(i, n)} must have 0 <= i < n: shards are counted from 0.")
    return i, n


def _open_address(address: str, column: str | None, shard: Shard) -> Source:
    if address == "-":
        return _open_lines(sys.stdin.buffer, shard)
    if is_url(address):
        return _open_url(address, column, shard)
    if os.path.isdir(address):
        _refuse_column(column, address)
        return open_folder(address, shard)
    if os.path.exists(address):
        _refuse_single(address)
        return _open_files([address], column, shard)
    files = [file for pattern in _braces(address) for file in _matches(pattern)]
    if files in ([], [address]):
        raise SourceError(f"There is nothing at {address!r}. {_POSSIBLE}.")
    return _open_files(files, column, shard)


def _open_url(url: str, column: str | None, shard: Shard) -> Source:
    if bare(url).endswith(_CONTAINERS):
        files = [file for pattern in _braces(url) for file in _remote_matches(pattern)]
        if not files:
            raise SourceError(f"There is nothing at {url!r}.")
        return _open_files(files, column, shard)
    _refuse_single(url)
    if url.startswith(("http://", "https://")):
        raise SourceError(f"{url!r}: folders cannot be listed over http. Pass a list of URLs, or a table of them.")
    _refuse_column(column, url)
    return open_remote_folder(url, shard)


def _open_files(files: list[str], column: str | None, shard: Shard) -> Source:
    for file in files:
        if not is_url(file) and not os.path.isfile(file):
            raise SourceError(f"There is no file {file!r}.")
    if all(bare(file).endswith(TAR_SUFFIXES) for file in files):
        return open_tars(files, column, shard)
    if all(bare(file).endswith(TABLE_SUFFIXES) for file in files):
        return open_tables(files, column, shard)
    if all(suffix_of(bare(file)) in picture_suffixes() for file in files):
        _refuse_column(column, files[0])
        return _open_sequence(files, shard)
    if len(files) == 1:
        raise SourceError(f"{files[0]!r} is no source of pictures. {_POSSIBLE}.")
    raise SourceError(f"{files[0]!r} and {len(files) - 1} further files are not all of one kind. {_POSSIBLE}.")


def _refuse_single(address: str) -> None:
    if suffix_of(bare(address)) in picture_suffixes():
        raise SourceError(f"The source {address!r} is a single picture; pass a list, [{address!r}], or its folder.")


def _refuse_column(column: str | None, address: str) -> None:
    if column is not None:
        raise SourceError(f"column={column!r} belongs to tables, datasets and tar shards; {address!r} is none.")


def _are_containers(source: Any) -> bool:
    """Whether a list names tables or tar shards rather than pictures."""
    return (
        isinstance(source, (list, tuple))
        and len(source) > 0
        and all(
            isinstance(file, (str, os.PathLike)) and bare(os.fsdecode(file)).endswith(_CONTAINERS) for file in source
        )
    )


def _open_sequence(source: Any, shard: Shard) -> Source:
    """Pictures that are all there already; each is looked at now, so that no work is lost to the last of them."""
    if not isinstance(source, (list, tuple)):
        try:
            source = check_images(source)
        except (TypeError, ValueError) as error:
            raise SourceError(f"The source cannot be taken as pictures: {error}") from error
    if len(source) == 0:
        raise SourceError("The source is an empty list: it holds no pictures.")
    if not isinstance(source, np.ndarray):
        for position, thing in enumerate(source):
            _named(thing, position)
    what = f"{type(source).__name__} of {len(source)} pictures"
    return Source(what, partial(_sequence_items, source, shard), partial(len, source), shard)


def _sequence_items(source: Sequence[Any], shard: Shard) -> Iterator[SourceItem]:
    for position in range(len(source))[shard[0] :: shard[1]]:
        yield _item(source[position], position)


def _open_iterable(source: Iterable[Any], shard: Shard) -> Source:
    kind = type(source).__name__
    count = partial(len, source) if isinstance(source, Sized) else unknown_count
    if isinstance(source, Iterator):
        source = _Once(source)
    return Source(f"{kind} of pictures", partial(_iterable_items, source, shard), count, shard)


def _iterable_items(source: Iterable[Any], shard: Shard) -> Iterator[SourceItem]:
    for position, thing in every(source, shard):
        yield _item(thing, position)


class _Once:
    """An iterator that says so when it is asked for its beginning again."""

    def __init__(self, things: Iterator[Any]) -> None:
        self._things: Iterator[Any] | None = things

    def __iter__(self) -> Iterator[Any]:
        if self._things is None:
            raise SourceError(
                "The source is an iterator, which can be iterated over only once. Pass a list, or open it anew."
            )
        things, self._things = self._things, None
        return things


def _item(thing: Any, position: int) -> SourceItem:
    if isinstance(thing, SourceItem):
        return thing
    name, picture = _named(thing, position)
    if isinstance(picture, str):
        picture = picture_at(picture)
    return SourceItem(name, picture)


def _named(thing: Any, position: int) -> tuple[str, Any]:
    """Name and picture of what a user's list or iterator holds at a position."""
    if isinstance(thing, SourceItem):
        return thing.name, thing.picture
    if isinstance(thing, tuple) and len(thing) == 2 and isinstance(thing[0], str):
        name, picture = thing
    else:
        name, picture = None, thing
    if not isinstance(picture, PICTURE_TYPES):
        raise SourceError(f"Item {position} of the source is {_kind(thing)}; {WANTED}, or (name, picture).")
    if isinstance(picture, np.ndarray):
        try:
            check_pixels(picture, f"Item {position} of the source")
        except ValueError as error:
            raise SourceError(str(error)) from error
    if name is not None:
        return name, picture
    if isinstance(picture, RemotePicture):
        return picture.url, picture
    return (os.fsdecode(picture) if isinstance(picture, (str, os.PathLike)) else str(position)), picture


def _open_lines(file: Any, shard: Shard) -> Source:
    what = f"lines of {getattr(file, 'name', type(file).__name__)!r}"
    return Source(what, partial(_iterable_items, _Once(_lines(file)), shard), shard=shard)


_LINE = 2**16


def _lines(file: Any) -> Iterator[str]:
    """Paths of an open file, text or binary: its lines, or what stands between NUL characters if the first has one."""
    first = _line(file)
    nul = b"\0" if isinstance(first, bytes) else "\0"
    if nul in first:
        yield from map(os.fsdecode, filter(None, _between(first, nul, file)))
        return
    for line in chain([first], iter(partial(_line, file), type(first)())):
        if nul in line:
            raise SourceError(
                f"The input holds lines first and then a NUL character, in {os.fsdecode(line[:200])!r}. Where a name "
                "may hold a line feed, begin the input with a NUL."
            )
        if path := os.fsdecode(line).removesuffix("\n").removesuffix("\r"):
            yield path


def _line(file: Any) -> Any:
    """The next line, with its end, of at most what is needed to see a NUL character in it."""
    line = file.readline(_LINE)
    end, nul = (b"\n", b"\0") if isinstance(line, bytes) else ("\n", "\0")
    while not line.endswith(end) and nul not in line and (more := file.readline(_LINE)):
        line += more
    return line


def _between(rest: Any, nul: Any, file: Any) -> Iterator[Any]:
    read = getattr(file, "read1", file.read)  # what is there, without waiting for more
    while block := read(_LINE):
        *paths, rest = (rest + block).split(nul)
        yield from paths
    yield from rest.split(nul)


def _braces(pattern: str) -> list[str]:
    """All texts of a pattern with "{000..009}" or "{train,val}" in it."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if k % 2 == 0 else _choices(part) for k, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(braced: str) -> list[str]:
    limits = re.fullmatch(r"(\d+)\.\.(\d+)", braced)
    if limits is None:
        return braced.split(",") if "," in braced else [f"{{{braced}}}"]
    first, last = limits.groups()
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]


def _matches(pattern: str) -> list[str]:
    """Files of a pattern, sorted; a text that is none is itself, whether there is such a file or not."""
    if not glob.has_magic(pattern) or os.path.exists(pattern):
        return [pattern]
    return sorted(glob.glob(pattern, recursive=True))


def _remote_matches(pattern: str) -> list[str]:
    # No other signs count: the query of a web address begins with a question mark.
    if "*" not in bare(pattern):
        return [pattern]
    with reading(pattern):
        filesystem, path = open_filesystem(pattern)
        return sorted(filesystem.unstrip_protocol(match) for match in filesystem.glob(path))


def _kind(thing: Any) -> str:
    if isinstance(thing, tuple):
        return f"a tuple of {len(thing)}: ({', '.join(type(part).__name__ for part in thing)})"
    return with_article(thing)
