"""Folders of picture files, here or where fsspec reaches."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from skclip._media import RemotePicture
from skclip._media._remote import open_filesystem
from skclip.features._source_items import (
    Shard,
    Source,
    SourceError,
    SourceItem,
    every,
    joined,
    picture_suffixes,
    reading,
    suffix_of,
)

# Counted for a progress bar; beyond it the walk would take longer than the bar is worth.
_MOST_COUNTED = 1_000_000

Listing = Callable[[str], list[str]]


def open_folder(root: str, shard: Shard) -> Source:
    """Picture files below a folder; named by their path in it, with "/" between its parts."""
    listing = partial(_list_local, root)
    _require_one(listing, root)
    return Source(f"folder {root!r}", partial(_local_items, root, shard), partial(_count, listing), shard)


def open_remote_folder(root: str, shard: Shard) -> Source:
    """Picture files below a URL; named by their path behind it."""
    listing = partial(_list_remote, root)
    _require_one(listing, root)
    return Source(f"folder {root!r}", partial(_remote_items, root, shard), shard=shard)


def _local_items(root: str, shard: Shard) -> Iterator[SourceItem]:
    for _, name in every(_walk(partial(_list_local, root)), shard):
        yield SourceItem(name, os.path.join(root, name))


def _remote_items(root: str, shard: Shard) -> Iterator[SourceItem]:
    for _, name in every(_walk(partial(_list_remote, root)), shard):
        yield SourceItem(name, RemotePicture(joined(root, name)))


def _walk(listing: Listing) -> Iterator[str]:
    """Names of all files, sorted part by part in the order of Unicode; one list per level is held.

    Parameters
    ----------
    listing : callable
        Takes a folder, "" or "below/it/", and returns the names in it, in any order; those of folders end in "/".
    """
    levels = [("", _in_order(listing("")))]
    while levels:
        folder, names = levels[-1]
        name = next(names, None)
        if name is None:
            levels.pop()
        elif name.endswith("/"):
            levels.append((folder + name, _in_order(listing(folder + name))))
        else:
            yield folder + name


def _in_order(names: list[str]) -> Iterator[str]:
    names.sort(key=lambda name: name.removesuffix("/"))
    names.reverse()
    while names:  # what has been passed on is let go
        yield names.pop()


def _require_one(listing: Listing, root: str) -> None:
    if next(_walk(listing), None) is None:
        suffixes = ", ".join(f".{suffix}" for suffix in sorted(picture_suffixes()))
        raise SourceError(
            f"The folder {root!r} holds no pictures. Looked for, in it and below: {suffixes}; hidden files and "
            "folders, whose names begin with a dot, do not count. For tar shards or tables in a folder pass a "
            "pattern: 'folder/*.tar'."
        )


def _count(listing: Listing) -> int | None:
    n_files = sum(1 for _ in islice(_walk(listing), _MOST_COUNTED + 1))
    return n_files if n_files <= _MOST_COUNTED else None


def _list_local(root: str, folder: str) -> list[str]:
    suffixes = picture_suffixes()
    path = os.path.join(root, folder)
    found = []
    with reading(f"The folder {path!r}"), os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                # On Windows a junction is a link that does not say so.
                is_link = os.name == "nt" or entry.is_symlink()
                if not (is_link and _is_loop(root, folder, entry.path)):
                    found.append(entry.name + "/")
            elif suffix_of(entry.name) in suffixes:
                found.append(entry.name)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself is no folder, and nobody's picture
            return False
        raise


def _is_loop(root: str, folder: str, path: str) -> bool:
    """Whether a link leads to a folder that the walk is in."""
    parts = folder.split("/")[:-1]
    above = [os.path.join(root, *parts[:depth]) for depth in range(len(parts) + 1)]
    return os.path.realpath(path) in map(os.path.realpath, above)


def _list_remote(root: str, folder: str) -> list[str]:
    suffixes = picture_suffixes()
    url = joined(root, folder)
    with reading(f"The folder {url!r}"):
        filesystem, path = open_filesystem(url)
        entries = filesystem.ls(path, detail=True)
        filesystem.invalidate_cache(path)  # else the listings of the whole tree stay in memory
    found = []
    for entry in entries:
        whole = entry["name"].rstrip("/")
        name = whole.rpartition("/")[2]
        if name.startswith(".") or not name or whole == path.rstrip("/"):
            continue
        if entry["type"] == "directory":
            found.append(name + "/")
        elif suffix_of(name) in suffixes:
            found.append(name)
    return found
