"""The files of an extraction: their names, what is committed of them, who may write them, how they are replaced."""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import IO, Any

import numpy as np

from skclip.utils._base import SkclipWarning

KIND = "skclip extraction"
VERSION = 1
FEATURES, MANIFEST, FAILURES, STATE = "features.npy", "manifest.jsonl", "failures.jsonl", "extraction.json"
PART = ".part"
JOURNAL = "extraction.journal"
LOCK = "extraction.lock"
# Readers of a folder of Parquet files pass over names that begin with an underscore.
FINAL_NAMES = {
    "npy": {FAILURES: FAILURES, STATE: STATE},
    "parquet": {FAILURES: f"_{FAILURES}", STATE: f"_{STATE}"},
}
HEADER_BYTES = 128
RESERVED = frozenset({"row", "name", "error", "features", "extra"})

_PART_NAME = re.compile(r"part-\d{5,}\.parquet(\.tmp)?")
_RECORD = struct.Struct("<5Q?")
_CHECKSUM = struct.Struct("<I")
_RECORD_BYTES = _RECORD.size + _CHECKSUM.size


class OutputError(RuntimeError):
    """A folder of extracted features that cannot be written, continued or read; the message says why."""


class UnlockedOutputWarning(SkclipWarning):
    """The folder lies on a drive without file locks: two runs that write into it would not notice each other."""


@contextmanager
def explained(folder: Path, doing: str) -> Iterator[None]:
    """What the operating system refuses, in words that name the folder."""
    try:
        yield
    except OSError as error:
        place = error.filename or str(folder)
        raise OutputError(f"{doing} {str(folder)!r} failed: {error.strerror or error} ({place}).") from error


# --- names


def part_name(number: int) -> str:
    """The file with the rows ``number * rows_per_file`` and following."""
    return f"part-{number:05d}.parquet"


def count_parts(n_rows: int, rows_per_file: int) -> int:
    """The Parquet files of a finished extraction; without rows there is one, so that readers find the columns."""
    return max(1, -(-n_rows // rows_per_file))


def own_files(folder: Path, format: str) -> list[Path]:
    """Files that are called as those of an extraction, whoever has made them; the lock is not among them."""
    unfinished = [name + PART for name in (FEATURES, MANIFEST, FAILURES, STATE)]
    names = {*unfinished, JOURNAL, *FINAL_NAMES[format].values()}
    names |= {f"{name}.tmp" for name in names}
    if format == "npy":
        names |= {FEATURES, MANIFEST}
        return sorted(entry for entry in folder.iterdir() if entry.name in names)
    return sorted(entry for entry in folder.iterdir() if entry.name in names or _PART_NAME.fullmatch(entry.name))


# --- documents and lines


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a file at once: it is the old or the new one, also after a power failure."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb", buffering=0) as file:
        write_all(file, (json.dumps(document, indent=2) + "\n").encode())
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def read_state(path: Path) -> dict[str, Any] | None:
    """The settings and counts of an extraction; None if there is no such file or it is somebody else's."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        return None
    if document.get("version") != VERSION:
        raise OutputError(
            f"{str(path)!r} was written in version {document.get('version')} of the format; this skclip "
            f"knows version {VERSION} only. Use the skclip that has written it."
        )
    return document


def manifest_line(row: int, name: str, extra: Mapping[str, Any], error: str | None) -> str:
    """One line: the row, its name, further columns, why it could not be read.

    Further columns with a name of our own get ``extra_`` before it. NaN and infinities, which JSON does not know,
    become null.
    """
    line = f'{{"row": {row}, "name": {encode_basestring_ascii(name)}'
    if extra:
        line += ", " + _encode(renamed(extra), row, name)[1:-1]
    if error is not None:
        line += f', "error": {encode_basestring_ascii(error)}'
    return line + "}\n"


def failure_line(row: int, name: str, reason: str) -> str:
    return _ENCODER.encode({"row": row, "name": name, "reason": reason}) + "\n"


def renamed(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Further columns under names that are not taken."""
    if RESERVED.isdisjoint(extra) and all(isinstance(key, str) for key in extra):
        return dict(extra)
    columns = {}
    for key, value in extra.items():
        column = str(key)
        while column in RESERVED or (column != key and column in extra):
            column = f"extra_{column}"
        columns[column] = value
    return columns


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _DECODER.decode(line.decode())
            except ValueError as error:
                raise OutputError(f"{str(path)!r} is damaged in line {number}: {error}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a value of type {type(value).__name__}, which JSON does not know")


_DECODER = json.JSONDecoder()
_ENCODER = json.JSONEncoder(allow_nan=False, check_circular=False, default=_plain)


def _encode(columns: dict[str, Any], row: int, name: str) -> str:
    try:
        try:
            return _ENCODER.encode(columns)
        except ValueError:
            return _ENCODER.encode(_finite(columns))
    except (TypeError, RecursionError) as error:
        raise OutputError(
            f"The further columns of row {row}, {name!r}, hold {error}: give strings, numbers, booleans, None, or "
            "lists and dictionaries of them."
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


# --- the array


def npy_header(n_rows: int, n_columns: int) -> bytes:
    """The beginning of a .npy file, version 1.0, of float32 rows: of one length for any number of rows."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {n_columns}), }}"
    length = HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"


def npy_bytes(n_rows: int, n_columns: int) -> int:
    return HEADER_BYTES + 4 * n_rows * n_columns


# --- bytes on the disk


def write_all(file: IO[bytes], data: Any) -> None:
    """Write everything to an unbuffered file, which may take less than it is given."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def sync_folder(folder: Path) -> None:
    """Let names in a folder outlast a power failure, where the system can be asked for that."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network drives refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_sized(path: Path, size: int) -> IO[bytes]:
    """An unfinished file, cut to what is committed of it."""
    file = open(path, "r+b", buffering=0)  # noqa: SIM115
    there = file.seek(0, os.SEEK_END)
    if there < size:
        file.close()
        raise OutputError(
            f"{str(path)!r} is damaged: it has {there} bytes, {size} were committed. Begin anew with resume=False."
        )
    file.truncate(size)
    return file


# --- the journal


@dataclass(frozen=True)
class Commit:
    """A state to which all files can be taken back."""

    rows: int = 0  # of the whole run
    held: int = 0  # of them in features.npy.part: all, or those that are not yet in a Parquet file
    manifest: int = 0  # bytes
    failures: int = 0  # bytes
    failed: int = 0  # rows of the whole run
    final: bool = False  # nothing follows: only names are to be changed

    def pack(self) -> bytes:
        body = _RECORD.pack(self.rows, self.held, self.manifest, self.failures, self.failed, self.final)
        return body + _CHECKSUM.pack(zlib.crc32(body))


def last_commit(records: bytes) -> tuple[Commit, int]:
    """The last record before the first that is torn, and the bytes up to its end."""
    commit, end = Commit(), 0
    while len(record := records[end : end + _RECORD_BYTES]) == _RECORD_BYTES:
        body, (checksum,) = record[: _RECORD.size], _CHECKSUM.unpack(record[_RECORD.size :])
        if zlib.crc32(body) != checksum:
            break
        commit, end = Commit(*_RECORD.unpack(body)), end + _RECORD_BYTES
    return commit, end


def read_journal(folder: Path) -> tuple[Commit, int]:
    try:
        return last_commit((folder / JOURNAL).read_bytes())
    except FileNotFoundError:
        return Commit(), 0


# --- one writer at a time


class FolderLock:
    """Held by one process at a time; the system takes it back when that process dies, however it does."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        while True:
            file = open(self._path, "ab")  # noqa: SIM115
            if not _lock(file):
                file.close()
                raise OutputError(
                    f"Another run is writing into {str(folder)!r}. Wait for it, end it, or give another folder."
                )
            if _is_at(file, self._path):
                break
            file.close()  # its last owner has removed it in between
        self._file = file

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if sys.platform == "win32":  # where open files cannot be removed
            self._file.close()
            with suppress(OSError):
                self._path.unlink()
        elif not self._file.closed:
            with suppress(OSError):
                self._path.unlink()
            self._file.close()


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[bytes]) -> bool:
    """Whether the lock is ours now."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network drives know no locks
        warnings.warn(
            f"{file.name!r} cannot be locked ({error.strerror}): see to it that no second run writes into this folder.",
            UnlockedOutputWarning,
            stacklevel=2,
        )
    return True


# --- settings


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two documents differ: (dotted name, old value, new value); what is absent is ``ABSENT``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{name}.{key}" if name else key
            yield from differences(old.get(key, ABSENT), new.get(key, ABSENT), inner)
    elif old != new or type(old) is not type(new):
        yield name, old, new


class _Absent:
    def __repr__(self) -> str:
        return "not given"


ABSENT = _Absent()


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a file."""
    for key, value in settings.items():
        try:
            _ENCODER.encode({key: value})
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"settings[{key!r}]={value!r} cannot be written as JSON: {error}.") from error
    return json.loads(_ENCODER.encode(dict(settings)))
