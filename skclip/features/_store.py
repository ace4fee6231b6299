"""The feature store: one row per input, kept in memory or in a folder, found by content.

A row is float32 and belongs to a 16-byte key, see `row_key`. Both stores answer alike: a row that is not
there, has another width or (in a folder) no longer matches its checksum is missing, to be computed again.

The memory store is one per process and holds `MEMORY_BYTES` (1 GiB: half a million rows of 512) at most; the
rows unused for the longest time leave first. It is empty in a new process, also in joblib's workers.

The folder store is one SQLite file on a local disk (write-ahead logs do not work on network drives).
Processes may read and write it together. A killed process leaves whole transactions only; a row damaged on
disk is noticed.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
import threading
import time
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

MEMORY_BYTES = 2**30
MEMORY_ALIASES = 2**20
FILE_NAME = "skclip-features.sqlite3"

_ROW_OVERHEAD = 250  # bytes of the dictionary entry, the key and the array object around a row
_APPLICATION_ID = 0x736B636C  # "skcl"
_VERSION = 1
# Measured with 200,000 rows of 512: pages of 64 KiB write 3 times faster than SQLite's own 4 KiB.
_PAGE_SIZE = 65536
_BUSY_SECONDS = 60.0
_KEYS_PER_QUERY = 500
# Clocks of file systems are coarse: a file may change twice under one time stamp.
_CLOCK_NS = 50_000_000
_COARSE_CLOCK_NS = 2_000_000_000

PathLike: TypeAlias = str | os.PathLike[str]
Alias: TypeAlias = tuple[PathLike, os.stat_result, bytes]


class StoreError(RuntimeError):
    """A feature store that cannot be opened, read or written; the message names the file."""


class Store(Protocol):
    """What `open_store` returns."""

    def get(self, keys: Sequence[bytes], dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Rows of shape (n, dim) in the order of `keys`, NaN where missing, and (n,) which were found."""

    def put(self, keys: Sequence[bytes], rows: ArrayLike) -> None:
        """Keep rows of shape (n, dim) under `keys`: all of them or, on an error, none."""

    def known(self, paths: Sequence[PathLike]) -> list[bytes | None]:
        """Content keys of the files that are unchanged - size and time - since `remember`, else None."""

    def remember(self, path: PathLike, stat: os.stat_result, content_key: bytes) -> None:
        """Note a file's content key; `stat` was taken **before** the file was read."""

    def remember_many(self, aliases: Iterable[Alias]) -> None:
        """`remember` for many (path, stat, content_key) at once."""

    def clear(self) -> None:
        """Forget all rows and files."""


def open_store(store: PathLike | None = "memory") -> Store:
    """Open a feature store.

    Parameters
    ----------
    store : "memory", folder or None, default="memory"
        A folder is made if missing; "~" stands for the home folder; a folder called memory is "./memory".
        With None nothing is ever found.

    Raises
    ------
    StoreError
        The folder cannot be made or written, or its file is damaged or belongs to something else.
    TypeError
        `store` is none of these.
    """
    if store is None:
        return NoStore()
    if store == "memory":
        return _MEMORY
    if not isinstance(store, (str, os.PathLike)):
        raise TypeError(f"store={store!r} must be 'memory', a folder (str or Path) or None.")
    return FolderStore(store)


def clear_store(store: PathLike = "memory") -> None:
    """Delete every row of a feature store; the next extraction computes them again.

    Parameters
    ----------
    store : "memory" or folder, default="memory"
        "memory" is the store of this process. In a folder the rows go and their disk space is given back;
        a folder without a store is left as it is.

    Raises
    ------
    StoreError
        The folder's file is damaged or belongs to something else; it is not deleted.
    """
    if isinstance(store, (str, os.PathLike)) and store != "memory" and not _store_file(store).exists():
        return
    open_store(store).clear()


def row_key(namespace: bytes, content: bytes, view: int) -> bytes:
    """The 16-byte key of one row.

    Parameters
    ----------
    namespace : bytes
        Everything beside the input that the row depends on: weights digest, preprocessing, layer, precision
        and, for ``view > 0``, the seed.
    content : bytes
        Content key of the picture or text.
    view : int
        0 is the plain input.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"row")
    digest.update(struct.pack("<QQ", len(namespace), view))
    digest.update(namespace)
    digest.update(content)
    return digest.digest()


class NoStore:
    """The store that keeps nothing."""

    def get(self, keys: Sequence[bytes], dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return _missing(len(keys), dim)

    def put(self, keys: Sequence[bytes], rows: ArrayLike) -> None:
        _check_rows(keys, rows)

    def known(self, paths: Sequence[PathLike]) -> list[bytes | None]:
        return [None] * len(paths)

    def remember(self, path: PathLike, stat: os.stat_result, content_key: bytes) -> None: ...

    def remember_many(self, aliases: Iterable[Alias]) -> None: ...

    def clear(self) -> None: ...


class MemoryStore:
    """Rows in this process, at most `max_bytes` of them; safe for threads.

    Parameters
    ----------
    max_bytes : int, default=MEMORY_BYTES
    """

    def __init__(self, max_bytes: int = MEMORY_BYTES) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._rows: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._bytes = 0
        self._aliases: OrderedDict[bytes, tuple[int, int, bytes]] = OrderedDict()
        _LIVE.add(self)

    def get(self, keys: Sequence[bytes], dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows, found = _missing(len(keys), dim)
        with self._lock:
            for position, key in enumerate(keys):
                row = self._rows.get(key)
                if row is not None and len(row) == dim:
                    self._rows.move_to_end(key)
                    rows[position] = row
                    found[position] = True
        return rows, found

    def put(self, keys: Sequence[bytes], rows: ArrayLike) -> None:
        checked = _check_rows(keys, rows)
        with self._lock:
            for key, row in zip(keys, checked):
                old = self._rows.pop(key, None)
                if old is not None:
                    self._bytes -= old.nbytes + _ROW_OVERHEAD
                self._rows[key] = row.copy()  # a view would keep the whole batch alive
                self._bytes += row.nbytes + _ROW_OVERHEAD
            while self._bytes > self.max_bytes:
                _, oldest = self._rows.popitem(last=False)
                self._bytes -= oldest.nbytes + _ROW_OVERHEAD

    def known(self, paths: Sequence[PathLike]) -> list[bytes | None]:
        states = [_file_state(path) for path in paths]
        keys: list[bytes | None] = []
        with self._lock:
            for state in states:
                alias = self._aliases.get(state[0]) if state else None
                keys.append(alias[2] if state and alias and alias[:2] == state[1:] else None)
        return keys

    def remember(self, path: PathLike, stat: os.stat_result, content_key: bytes) -> None:
        self.remember_many([(path, stat, content_key)])

    def remember_many(self, aliases: Iterable[Alias]) -> None:
        with self._lock:
            for path, size, mtime_ns, key in _settled(aliases):
                self._aliases.pop(path, None)
                self._aliases[path] = (size, mtime_ns, key)
            while len(self._aliases) > MEMORY_ALIASES:
                self._aliases.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()
            self._aliases.clear()
            self._bytes = 0

    def __reduce__(self) -> tuple:
        return open_store, ("memory",)  # the rows stay: there is one such store in each process

    def _after_fork(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it


class FolderStore:
    """Rows in one SQLite file of a folder; safe for threads and processes of one machine.

    Parameters
    ----------
    folder : str or Path
        Made if missing.

    Raises
    ------
    StoreError
        The folder or its file cannot be used.
    """

    def __init__(self, folder: PathLike) -> None:
        self.path = _store_file(folder)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror or error
            raise StoreError(f"No feature store in the folder {str(self.path.parent)!r}: {reason}.") from error
        self._pool = _Pool(self.path)
        _LIVE.add(self)
        with self._pool.connection() as connection:
            _prepare(connection, self.path)

    def get(self, keys: Sequence[bytes], dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows, found = _missing(len(keys), dim)
        places: dict[bytes, list[int]] = {}
        for position, key in enumerate(keys):
            places.setdefault(key, []).append(position)
        with self._pool.connection() as connection:
            # By place in the file, so that each page is read once: twice as fast as by key.
            numbers = _select(connection, "SELECT rowid FROM rows WHERE key IN ({})", list(places))
            query = "SELECT key, dim, checksum, data FROM rows WHERE rowid IN ({})"
            for key, width, checksum, data in _select(connection, query, sorted(n for (n,) in numbers)):
                whole = isinstance(data, bytes) and len(data) == 4 * dim
                if width == dim and whole and checksum == _row_checksum(key, data):
                    for position in places.get(key, ()):
                        rows[position] = np.frombuffer(data, dtype="<f4")
                        found[position] = True
        return rows, found

    def put(self, keys: Sequence[bytes], rows: ArrayLike) -> None:
        checked = np.ascontiguousarray(_check_rows(keys, rows), dtype="<f4")
        dim = checked.shape[1]
        with self._pool.connection() as connection, _transaction(connection):
            connection.executemany(
                "INSERT INTO rows (key, dim, checksum, data) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET dim = excluded.dim, checksum = excluded.checksum, data = excluded.data",
                ((key, dim, _row_checksum(key, row.data), row.data) for key, row in zip(keys, checked)),
            )

    def known(self, paths: Sequence[PathLike]) -> list[bytes | None]:
        states = [_file_state(path) for path in paths]
        stored: dict[bytes, tuple[int, int, bytes]] = {}
        query = "SELECT path, size, mtime_ns, content, checksum FROM files WHERE path IN ({})"
        with self._pool.connection() as connection:
            wanted = list({state[0] for state in states if state})
            for path, size, mtime_ns, content, checksum in _select(connection, query, wanted):
                if checksum == _alias_checksum(path, size, mtime_ns, content):
                    stored[path] = (size, mtime_ns, content)
        keys: list[bytes | None] = []
        for state in states:
            alias = stored.get(state[0]) if state else None
            keys.append(alias[2] if state and alias and alias[:2] == state[1:] else None)
        return keys

    def remember(self, path: PathLike, stat: os.stat_result, content_key: bytes) -> None:
        self.remember_many([(path, stat, content_key)])

    def remember_many(self, aliases: Iterable[Alias]) -> None:
        settled = [(*alias, _alias_checksum(*alias)) for alias in _settled(aliases)]
        if not settled:
            return
        with self._pool.connection() as connection, _transaction(connection):
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", settled)

    def clear(self) -> None:
        with self._pool.connection() as connection:
            with _transaction(connection):
                connection.execute("DELETE FROM rows")
                connection.execute("DELETE FROM files")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the idle connections, as happens when the store is collected; another use opens new ones."""
        self._pool.close()

    def __reduce__(self) -> tuple:
        return FolderStore, (self.path.parent,)

    def _after_fork(self) -> None:
        self._pool.after_fork()


class _Pool:
    """Connections to one file, each used by one thread at a time and never by another process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reset()
        self._finalizer = weakref.finalize(self, _close_all, self._all, os.getpid())

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._all: list[sqlite3.Connection] = []

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._take()
            try:
                yield connection
            finally:
                with self._lock:
                    if connection in self._all:
                        self._idle.append(connection)
                    else:
                        connection.close()
        except sqlite3.Error as error:
            raise StoreError(_explain(error, self._path)) from error

    def close(self) -> None:
        with self._lock:
            for connection in self._idle:
                self._all.remove(connection)
                connection.close()
            self._idle.clear()

    def after_fork(self) -> None:
        # A connection must not cross a fork, not even to be closed: the child keeps it, unused.
        _INHERITED.extend(self._all)
        self._finalizer.detach()
        self._reset()
        self._finalizer = weakref.finalize(self, _close_all, self._all, os.getpid())

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        with self._lock:
            self._all.append(connection)
        connection.text_factory = bytes  # no text is stored; what a damaged page shows as text need not decode
        # A power cut may cost the last rows, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection


def _close_all(connections: list[sqlite3.Connection], pid: int) -> None:
    if os.getpid() == pid:
        for connection in connections:
            connection.close()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file; make sure that an old one is ours."""
    connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
    if _pragma(connection, "application_id") == 0:
        with _transaction(connection):
            # Looked at again inside the transaction: another process may have been faster.
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if _pragma(connection, "application_id") == 0 and tables == 0:
                # Rows beside an index are written 9 times faster than rows sorted by their random keys.
                connection.execute(
                    "CREATE TABLE rows (key BLOB NOT NULL UNIQUE, dim INTEGER NOT NULL, "
                    "checksum INTEGER NOT NULL, data BLOB NOT NULL)"
                )
                connection.execute(
                    "CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER "
                    "NOT NULL, content BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID"
                )
                connection.execute(f"PRAGMA user_version = {_VERSION}")
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    if _pragma(connection, "application_id") != _APPLICATION_ID:
        raise StoreError(f"{str(path)!r} is not a feature store of skclip; choose another folder.")
    version = _pragma(connection, "user_version")
    if version != _VERSION:
        raise StoreError(
            f"The feature store {str(path)!r} has format {version!r}, this skclip reads format {_VERSION}; "
            "choose another folder or delete the file."
        )
    _use_write_ahead_log(connection)


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Let readers and a writer work side by side. The file keeps the setting."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while _pragma(connection, "journal_mode") != b"wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # The one change that SQLite does not wait for others to allow.
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            break


def _pragma(connection: sqlite3.Connection, name: str) -> int | bytes:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _select(connection: sqlite3.Connection, query: str, keys: Sequence[bytes | int]) -> Iterator[tuple]:
    """Rows of a query with one ``IN ({})``, asked for many keys at a time."""
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        part = keys[start : start + _KEYS_PER_QUERY]
        yield from connection.execute(query.format(",".join("?" * len(part))), part).fetchall()


def _explain(error: sqlite3.Error, path: Path) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return f"{str(path)!r} is not a feature store of skclip; choose another folder or delete the file."
    if code == sqlite3.SQLITE_CORRUPT:
        return (
            f"The feature store {str(path)!r} is damaged ({error}). Delete the file: "
            "everything in it is computed again when needed."
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return f"The feature store {str(path)!r} cannot be written ({error}); choose a folder you may write to."
    if code == sqlite3.SQLITE_FULL:
        return f"No disk space is left for the feature store {str(path)!r}; nothing was half written."
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"The feature store {str(path)!r} was locked by other processes for {_BUSY_SECONDS:.0f} s."
    return f"The feature store {str(path)!r} failed: {error}."


def _store_file(folder: PathLike) -> Path:
    return Path(os.path.abspath(os.path.expanduser(folder))) / FILE_NAME


def _missing(n: int, dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return np.full((n, dim), np.nan, dtype=np.float32), np.zeros(n, dtype=bool)


def _check_rows(keys: Sequence[bytes], rows: ArrayLike) -> NDArray[np.float32]:
    checked = np.asarray(rows, dtype=np.float32)
    if checked.ndim != 2 or len(checked) != len(keys):
        raise ValueError(f"rows of shape {checked.shape} do not belong to {len(keys)} keys.")
    return checked


def _row_checksum(key: bytes, data: bytes | memoryview) -> int:
    # Over the key too, so that a damaged index cannot serve another input's row.
    return zlib.crc32(data, zlib.crc32(key))


def _alias_checksum(path: bytes, size: int, mtime_ns: int, content: bytes) -> int:
    return zlib.crc32(repr((path, size, mtime_ns, content)).encode())


def _absolute(path: PathLike) -> bytes:
    return os.fsencode(os.path.abspath(path))


def _file_state(path: PathLike) -> tuple[bytes, int, int] | None:
    """(absolute path, size, time) or None where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return _absolute(path), status.st_size, status.st_mtime_ns


def _settled(aliases: Iterable[Alias]) -> Iterator[tuple[bytes, int, int, bytes]]:
    """Aliases as stored, without files so new that a further change might not move their time stamp."""
    now = time.time_ns()
    for path, status, key in aliases:
        modified = status.st_mtime_ns
        clock = _COARSE_CLOCK_NS if modified % 1_000_000_000 == 0 else _CLOCK_NS
        if now - modified > clock:
            yield _absolute(path), status.st_size, modified, key


_LIVE: weakref.WeakSet[MemoryStore | FolderStore] = weakref.WeakSet()
_INHERITED: list[sqlite3.Connection] = []
_MEMORY = MemoryStore()


def _after_fork() -> None:
    for store in list(_LIVE):
        store._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
