"""What every source of pictures gives, whatever it is: named pictures in a fixed order."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date, time
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from skclip._media import RemotePicture
from skclip._media._remote import is_url, open_filesystem, require_protocols

Shard = tuple[int, int]

# Of formats of pictures that Pillow reads by itself.
_SUFFIXES = frozenset(
    {"apng", "avif", "bmp", "dib", "gif", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg", "jpx"}
    | {"pbm", "pcx", "pgm", "png", "pnm", "ppm", "qoi", "tga", "tif", "tiff", "webp"}
)
# Read if the user has registered a plugin, such as pillow-heif's.
_PLUGIN_SUFFIXES = ("heic", "heif", "jxl")


class SourceError(ValueError):
    """A source of pictures that is none, or that cannot be read on."""


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One picture of a source.

    Parameters
    ----------
    name : str
        Path, URL, key, or position in the source where there is none of these.
    picture : Picture
        As `skclip._media.load_item` takes it.
    extra : dict {str: value}
        Further columns; values that JSON has.
    """

    name: str
    picture: Any
    extra: dict[str, Any] = field(default_factory=dict)


def unknown_count() -> None:
    """The number of items of a source that has to be read through to know it."""


class Source:
    """Pictures by name, in the same order at each iteration.

    Parameters
    ----------
    what : str
        The source in words.
    items : callable () -> iterator of SourceItem
        Those of the shard alone.
    count : callable () -> int or None
        How many items there are in all shards; None where it is not known beforehand.
    shard : (int, int), default=(0, 1)
        The i-th of n, which is part of the description and of the count.
    shard_unit : {"item", "tar"}, default="item"
        Whether shards hold every n-th item or every n-th tar.
    """

    def __init__(
        self,
        what: str,
        items: Callable[[], Iterator[SourceItem]],
        count: Callable[[], int | None] = unknown_count,
        shard: Shard = (0, 1),
        shard_unit: str = "item",
    ) -> None:
        self.shard_unit = shard_unit
        self._what = what
        self._items = items
        self._count = count
        self._shard = shard

    def __iter__(self) -> Iterator[SourceItem]:
        return self._items()

    def __repr__(self) -> str:
        return f"<Source: {self.describe()}>"

    @cached_property
    def n_items(self) -> int | None:
        """Number of items of this shard; None where only the whole way through would tell."""
        n_all = self._count()
        return None if n_all is None else len(range(n_all)[self._shard[0] :: self._shard[1]])

    def describe(self) -> str:
        """The source in a few words."""
        return self._what if self._shard == (0, 1) else f"{self._what}, shard {self._shard[0]} of {self._shard[1]}"


def every(things: Iterable[Any], shard: Shard) -> Iterator[tuple[int, Any]]:
    """Things i, i + n, i + 2n, ... with their positions among all."""
    return islice(enumerate(things), shard[0], None, shard[1])


def picture_suffixes() -> frozenset[str]:
    """Suffixes of picture files, in small letters and without the dot."""
    registered = Image.registered_extensions()
    return _SUFFIXES | {suffix for suffix in _PLUGIN_SUFFIXES if f".{suffix}" in registered}


def suffix_of(name: str) -> str:
    """What stands behind the last dot, in small letters."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""


def bare(address: str) -> str:
    """An address in small letters, a web address without its query: the end says what kind of file it is."""
    return (address.partition("?")[0] if is_url(address) else address).lower()


def picture_at(address: str) -> str | RemotePicture:
    """A path as it is, a URL as a picture that lies elsewhere."""
    if not is_url(address):
        return address
    require_protocols(address)
    return RemotePicture(address)


def joined(folder: str, name: str) -> str:
    """Address of `name` in a folder; of itself if it is an absolute path or a URL."""
    if not is_url(folder) or is_url(name) or os.path.isabs(name):
        return name if is_url(name) else os.path.join(folder, name)
    # Of a chain, "zip://folder/::s3://bucket/file.zip", the first link that has a path.
    links = folder.split("::")
    inner = next(i for i, link in enumerate(links) if "://" in link)
    links[inner] = f"{links[inner].rstrip('/')}/{name}" if not links[inner].endswith("://") else links[inner] + name
    return "::".join(links)


@contextmanager
def opened(address: str) -> Iterator[Any]:
    """A file to be read, here or elsewhere; unpacked if its name says that gzip packed it."""
    with ExitStack() as stack:
        if is_url(address):
            filesystem, path = open_filesystem(address)
            file = stack.enter_context(filesystem.open(path, "rb"))
        else:
            file = stack.enter_context(open(address, "rb"))
        yield stack.enter_context(gzip.GzipFile(fileobj=file)) if bare(address).endswith((".gz", ".tgz")) else file


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Name what was being read in errors that do not."""
    try:
        yield
    except (SourceError, ImportError):
        raise
    except Exception as error:
        raise SourceError(f"{what} cannot be read: {_why(error)}.") from error


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def plain(value: Any) -> Any:
    """A value as JSON has it: dates as ISO text, numbers that are not finite as None, the unknown as text."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value.isoformat() if isinstance(value, (date, time)) else str(value)
