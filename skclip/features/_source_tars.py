"""Tar shards as the webdataset format has them: members of one key side by side, one of them a picture."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from skclip._media import MissingPicture
from skclip.features._source_items import (
    Shard,
    Source,
    SourceError,
    SourceItem,
    every,
    opened,
    picture_suffixes,
    suffix_of,
)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_MOST_EXTRA_BYTES = 2**16
_EXTRA_SUFFIXES = ("txt", "json", "cls")


def open_tars(tars: Sequence[str], column: str | None, shard: Shard) -> Source:
    """Pictures of tar shards; with as many tars as shards or more, a shard is whole tars."""
    what = f"tar shard {tars[0]!r}" if len(tars) == 1 else f"{len(tars)} tar shards from {tars[0]!r} on"
    if len(tars) >= shard[1] > 1:
        return Source(what, partial(_items, tars[shard[0] :: shard[1]], column, (0, 1)), shard=shard, shard_unit="tar")
    return Source(what, partial(_items, tars, column, shard), shard=shard)


def _items(tars: Sequence[str], column: str | None, shard: Shard) -> Iterator[SourceItem]:
    samples = (sample for tar in tars for sample in _samples(tar))
    wanted = column.lower().removeprefix(".") if column is not None else None
    for _, (tar, key, members) in every(samples, shard):
        yield _item(tar, key, members, wanted)


def _item(tar: str, key: str, members: dict[str, bytes], wanted: str | None) -> SourceItem:
    extra = {suffix: _value(suffix, data) for suffix, data in members.items() if _is_extra(suffix, data)}
    pictures = [suffix for suffix in members if suffix in picture_suffixes()]
    if wanted is not None:
        pictures = [wanted] if wanted in members else []
    elif not pictures:
        pictures = [suffix for suffix in members if suffix_of(f".{suffix}") in picture_suffixes()]
    if len(pictures) > 1:
        several = " and ".join(f".{suffix}" for suffix in pictures)
        raise SourceError(
            f"The tar shard {tar!r} has several pictures of the key {key!r}, which ends at the first dot of a name: "
            f"{several}. Choose one by its suffix: column={pictures[0]!r}."
        )
    if not pictures:
        others = ", ".join(f".{suffix}" for suffix in members)
        sought = "no picture" if wanted is None else f"no member .{wanted}"
        return SourceItem(key, MissingPicture(f"the tar shard has {sought} of this key, only {others}"), extra)
    return SourceItem(key, members[pictures[0]], extra)


def _is_extra(suffix: str, data: bytes) -> bool:
    return suffix.rpartition(".")[2] in _EXTRA_SUFFIXES and len(data) <= _MOST_EXTRA_BYTES


def _value(suffix: str, data: bytes) -> Any:
    text = data.decode("utf-8", errors="replace")
    if suffix.endswith("json"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _samples(tar: str) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """The tar, a key, and what the members of the key hold by their suffixes: all between two first dots."""
    current, members = None, dict[str, bytes]()
    for name, data in _members(tar):
        match = _KEY.fullmatch(name)
        if match is None:
            continue
        key, suffix = match[1], match[2].lower()
        if key != current:
            if current is not None:
                yield tar, current, members
            current, members = key, {}
        if suffix in members:
            raise SourceError(f"The tar shard {tar!r} has two members {name!r} side by side.")
        members[suffix] = data
    if current is not None:
        yield tar, current, members


class _Header(tarfile.TarInfo):
    """A header that leaves word why there is no further one: ``tarfile`` ends at damage as at the regular end."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except Exception as error:
            tarfile.ending = error
            raise


class _Tar(tarfile.TarFile):
    tarinfo = _Header
    ending: Exception | None = None


def _members(tar: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the regular files of a tar, read from its beginning to its end."""
    last = None
    try:
        with opened(tar) as file, _Tar.open(fileobj=file, mode="r|*") as archive:
            while (header := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else all headers stay in memory
                if _counts(header):
                    content = archive.extractfile(header)
                    data = content.read() if content is not None else b""
                    if len(data) != header.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield header.name, data
                last = header.name
            _require_end(archive)
    except ImportError:
        raise
    except Exception as error:
        after = f"the last whole member is {last!r}" if last is not None else "no member could be read"
        raise SourceError(f"The tar shard {tar!r} cannot be read to its end: {error}; {after}.") from error


def _counts(header: tarfile.TarInfo) -> bool:
    """Whether a member is data: a file, not hidden, and not webdataset's "__name__" of its own."""
    base = header.name.rpartition("/")[2]
    return header.isreg() and not base.startswith(".") and not re.match(r"__[^/]*__($|/)", header.name)


def _require_end(archive: _Tar) -> None:
    if not isinstance(archive.ending, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
        raise tarfile.ReadError(f"the mark of its end is missing ({archive.ending})")
    while block := archive.fileobj.read(2**16):
        if block.strip(b"\0"):
            raise tarfile.ReadError("more data follows the mark of its end, as where tars were strung together")
