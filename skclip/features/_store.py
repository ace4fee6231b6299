"""The feature store: one row per input, kept in memory or in a folder, found by content.

A row is float32 and belongs to a 16-byte key, see `row_key`. Both stores answer alike: a row that is not
there, has another width or (in a folder) no longer matches its checksum is missing, to be computed again.

The memory store is one per process and holds `MEMORY_BYTES` (1 GiB: half a million rows of 512) at most; the
rows unused for the longest time leave first. It is empty in a new process, also in joblib's workers.

The folder store is two files on a local disk (write-ahead logs do not work on network drives):

- the rows, each followed by a checksum of its key and its numbers, appended put by put and never changed;
- an SQLite file that lists the puts - keys and place of the first row - and the known files.

Each process holds where every row lies: 16 bytes per row, read once (1 million rows: a fifth of a second) and
brought up to date before each look-up. Rows are believed only if their checksum is right, so that a list that
is old or damaged makes a row missing, never wrong. Processes may read and write together: a put holds SQLite's
lock while it appends and is listed last. A killed process leaves whole puts only, and perhaps some bytes that
no list mentions.
"""

from __future__ import annotations

import errno
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
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

MEMORY_BYTES = 2**30
MEMORY_ALIASES = 2**20
FILE_NAME = "skclip-features.sqlite3"
ROWS_NAME = "skclip-features.rows"

_ROW_OVERHEAD = 250  # bytes of the dictionary entry, the key and the array object around a row
_APPLICATION_ID = 0x736B636C  # "skcl"
_VERSION = 2
_PAGE_SIZE = 16384
_BUSY_SECONDS = 60.0
_KEY_BYTES = 16
_CHECKSUM_BYTES = 8
_READ_BYTES = 2**21  # read and checked together: what a processor's cache holds
_PUTS_TOGETHER = 4096
_FOLDERS_HELD = 8
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
    """Rows in two files of a folder; safe for threads and processes of one machine.

    Parameters
    ----------
    folder : str or Path
        Made if missing.

    Raises
    ------
    StoreError
        The folder or its files cannot be used.
    """

    def __init__(self, folder: PathLike) -> None:
        self.path = _store_file(folder)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror or error
            raise StoreError(f"No feature store in the folder {str(self.path.parent)!r}: {reason}.") from error
        self._pool = _Pool(self.path)
        self._held = _held(self.path)
        _LIVE.add(self)
        with self._pool.link() as link:
            _prepare(link, self.path)

    def get(self, keys: Sequence[bytes], dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows = np.empty((len(keys), dim), dtype=np.float32)
        found = np.zeros(len(keys), dtype=bool)
        with self._pool.link() as link:
            for positions, stored in self._stored(link, _key_words(keys), dim):
                rows[positions] = stored.view("<f4")
                found[positions] = True
        rows[~found] = np.nan
        return rows, found

    def put(self, keys: Sequence[bytes], rows: ArrayLike) -> None:
        checked = np.ascontiguousarray(_check_rows(keys, rows), dtype="<f4").view("<u4")
        words = _key_words(keys)
        with self._pool.link() as link, _transaction(link.sql):
            new = np.ones(len(keys), dtype=bool)
            for positions, stored in self._stored(link, words, checked.shape[1]):
                # Processes that encode the same pictures at the same time keep them once.
                new[positions] = (stored != checked[positions]).any(axis=1)
            if new.any():
                _append(link, words[new], checked[new])

    def _stored(
        self, link: _Link, keys: NDArray[np.uint32], dim: int
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint32]]]:
        """Positions in `keys` and whole rows, as 32-bit words, some at a time."""
        self._held.directory = directory = self._held.directory.refreshed(link.sql)
        size = 4 * dim + _CHECKSUM_BYTES
        places = directory.places(_prints(keys))
        # By place in the file: what lies together is read together.
        order = places.argsort(kind="stable")
        ends = places[order].searchsorted([0, link.rows.seek(0, os.SEEK_END) - size + 1])
        order = order[ends[0] : ends[1]]
        n_together = max(1, _READ_BYTES // size)
        buffer = np.empty((min(n_together, len(order)), dim + 2), dtype="<u4")
        for start in range(0, len(order), n_together):
            positions = order[start : start + n_together]
            records = buffer[: len(positions)]
            _read_records(link.rows, places[positions], records)
            data = records[:, :dim]
            right = (_checksums(keys[positions], data).view("<u4").reshape(-1, 2) == records[:, dim:]).all(axis=1)
            yield (positions, data) if right.all() else (positions[right], data[right])

    def known(self, paths: Sequence[PathLike]) -> list[bytes | None]:
        states = [_file_state(path) for path in paths]
        stored: dict[bytes, tuple[int, int, bytes]] = {}
        query = "SELECT path, size, mtime_ns, content, checksum FROM files WHERE path IN ({})"
        with self._pool.link() as link:
            wanted = list({state[0] for state in states if state})
            for path, size, mtime_ns, content, checksum in _select(link.sql, query, wanted):
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
        with self._pool.link() as link, _transaction(link.sql):
            link.sql.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", settled)

    def clear(self) -> None:
        with self._pool.link() as link:
            with _transaction(link.sql):
                link.sql.execute("DELETE FROM puts")
                link.sql.execute("DELETE FROM files")
                link.sql.execute("UPDATE store SET generation = ?", (os.urandom(16),))
                link.rows.truncate(0)
            link.sql.execute("VACUUM")
            link.sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the idle connections, as happens when the store is collected; another use opens new ones."""
        self._pool.close()

    def __reduce__(self) -> tuple:
        return FolderStore, (self.path.parent,)

    def _after_fork(self) -> None:
        self._pool.after_fork()


class _Link:
    """One thread's way to the two files."""

    def __init__(self, path: Path) -> None:
        self._rows_path = path.with_name(ROWS_NAME)
        self._rows: FileIO | None = None
        self.sql = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self.sql.text_factory = bytes  # no text is stored; what a damaged page shows as text need not decode

    @property
    def rows(self) -> FileIO:
        """Opened on first use: not beside a file that is no store of ours."""
        if self._rows is None:
            self._rows = FileIO(self._rows_path, "a+")
        return self._rows

    def close(self) -> None:
        self.sql.close()
        if self._rows is not None:
            self._rows.close()


class _Pool:
    """Links to one folder, each used by one thread at a time and never by another process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reset()
        self._finalizer = weakref.finalize(self, _close_all, self._all, os.getpid())

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Link] = []
        self._all: list[_Link] = []

    @contextmanager
    def link(self) -> Iterator[_Link]:
        try:
            link = self._take()
            try:
                yield link
            finally:
                with self._lock:
                    if link in self._all:
                        self._idle.append(link)
                    else:
                        link.close()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(_explain(error, self._path)) from error

    def close(self) -> None:
        with self._lock:
            for link in self._idle:
                self._all.remove(link)
                link.close()
            self._idle.clear()

    def after_fork(self) -> None:
        # A link must not cross a fork, not even to be closed: the child keeps it, unused.
        _INHERITED.extend(self._all)
        self._finalizer.detach()
        self._reset()
        self._finalizer = weakref.finalize(self, _close_all, self._all, os.getpid())

    def _take(self) -> _Link:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        link = _Link(self._path)
        with self._lock:
            self._all.append(link)
        # A power cut may cost the last rows, never the file.
        link.sql.execute("PRAGMA synchronous = NORMAL")
        return link


def _close_all(links: list[_Link], pid: int) -> None:
    if os.getpid() == pid:
        for link in links:
            link.close()


class _Directory(NamedTuple):
    """Where the rows lie, as one process knows it; never changed, so that threads need no lock."""

    generation: bytes = b""
    last: int = 0  # number of the newest put in it
    runs: tuple[tuple[NDArray[np.uint64], NDArray[np.int64]], ...] = ()  # sorted prints and places; newest last

    def places(self, prints: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Place of each key's newest row in the file of rows, -1 where there is none."""
        found = np.full(len(prints), -1, dtype=np.int64)
        for known, places in self.runs:
            at = np.minimum(np.searchsorted(known, prints), len(known) - 1)
            hit = known[at] == prints
            found[hit] = places[at[hit]]
        return found

    def refreshed(self, connection: sqlite3.Connection) -> _Directory:
        """With what other threads and processes have put since."""
        query = "SELECT generation, (SELECT max(id) FROM puts) FROM store"
        generation, last = connection.execute(query).fetchone() or (b"", None)
        # Fewer puts than before: the folder was put back to an earlier state.
        directory = self if generation == self.generation and (last or 0) >= self.last else _Directory(generation)
        if last is None or last == directory.last:
            return directory
        cursor = connection.execute(
            "SELECT id, place, size, prints FROM puts WHERE id > ? ORDER BY id", (directory.last,)
        )
        while puts := cursor.fetchmany(_PUTS_TOGETHER):
            directory = directory._with(puts)
        return directory

    def _with(self, puts: list[tuple]) -> _Directory:
        runs = list(self.runs)
        whole = [put[1:] for put in puts if _is_whole(*put[1:])]
        if whole:
            firsts, sizes, prints = zip(*whole)
            counts = np.array([len(some) // 8 for some in prints])
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            places = np.repeat(firsts, counts) + np.repeat(sizes, counts) * within
            runs.append(_run(np.frombuffer(b"".join(prints), dtype="<u8"), places))
        # Few runs to search, and each row is sorted again a few times only.
        while len(runs) > 1 and len(runs[-2][0]) < 4 * len(runs[-1][0]):
            newer, older = runs.pop(), runs.pop()
            runs.append(_run(np.concatenate([older[0], newer[0]]), np.concatenate([older[1], newer[1]])))
        return _Directory(self.generation, puts[-1][0], tuple(runs))


class _Held:
    """The newest directory of a folder that this process has seen."""

    def __init__(self) -> None:
        self.directory = _Directory()


@lru_cache(maxsize=_FOLDERS_HELD)
def _held(path: Path) -> _Held:
    """One for all stores of a folder: each call of `transform` opens a store of its own."""
    return _Held()


def _is_whole(place: object, size: object, prints: object) -> bool:
    """Whether a put's entry has its types, which SQLite does not see to in a damaged file."""
    return type(place) is int and type(size) is int and type(prints) is bytes and len(prints) % 8 == 0 < len(prints)


def _run(prints: NDArray[np.uint64], places: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Sorted prints and their places; of equal prints the last one counts."""
    order = np.argsort(prints, kind="stable")
    prints = prints[order]
    newest = np.append(prints[1:] != prints[:-1], True)
    return prints[newest], places[order][newest]


def _key_words(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """Keys as an array (n, 4)."""
    joined = b"".join(keys)
    if len(joined) != _KEY_BYTES * len(keys):
        raise ValueError(f"Keys have {_KEY_BYTES} bytes each, as row_key makes them.")
    return np.frombuffer(joined, dtype="<u4").reshape(-1, 4)


def _prints(keys: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Half a key finds a row, for the row's checksum tells whether it is the right one."""
    return np.ascontiguousarray(keys[:, :2]).view("<u8")[:, 0]


@lru_cache(maxsize=16)
def _weights(dim: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Weights of a key (4,) and of a row (dim,) and a term (1,) of the width: odd and random, the same for ever."""
    numbers = np.arange(1, 6 + dim, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    # SplitMix64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    odd = numbers ^ (numbers >> np.uint64(31)) | np.uint64(1)
    return odd[:4], odd[5:], odd[4:5] * np.uint64(dim)


def _checksums(keys: NDArray[np.uint32], data: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """A 64-bit checksum (n,) of each key and row.

    A weighted sum modulo 2**64 with odd weights: no damage within one 32-bit word goes unnoticed, other damage
    does once in 2**33 times. All rows at once, which is 3 times faster than a CRC row by row.
    """
    key_weights, row_weights, width = _weights(data.shape[1])
    return np.einsum("ij,j->i", data, row_weights) + keys @ key_weights + width


def _read_records(file: FileIO, places: NDArray[np.int64], records: NDArray[np.uint32]) -> None:
    """Fill `records` (n, words) from ascending places; what a file too short leaves unread has no checksum."""
    size = records.shape[1] * records.itemsize
    view = records.data.cast("B")
    starts = [0, *((places[1:] - places[:-1] != size).nonzero()[0] + 1).tolist()]
    for place, start, stop in zip(places[starts].tolist(), starts, [*starts[1:], len(places)]):
        file.seek(place)
        file.readinto(view[start * size : stop * size])


def _append(link: _Link, keys: NDArray[np.uint32], data: NDArray[np.uint32]) -> None:
    """Write rows behind all others, list them, and end the transaction within which this is called."""
    dim = data.shape[1]
    records = np.empty((len(keys), dim + 2), dtype="<u4")
    records[:, :dim] = data
    records[:, dim:] = _checksums(keys, data).astype("<u8", copy=False).view("<u4").reshape(-1, 2)
    place = link.rows.seek(0, os.SEEK_END)
    try:
        view = records.data.cast("B")
        while view:
            view = view[link.rows.write(view) :]
        link.sql.execute(
            "INSERT INTO puts (place, size, prints) VALUES (?, ?, ?)",
            (place, records[0].nbytes, _prints(keys).tobytes()),
        )
        link.sql.execute("COMMIT")
    except BaseException:
        if link.sql.in_transaction:  # nobody has appended since
            link.rows.truncate(place)  # a full disk gets its space back
        raise


def _prepare(link: _Link, path: Path) -> None:
    """Make the tables of a new file; make sure that an old one is ours."""
    connection = link.sql
    connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
    if _pragma(connection, "application_id") == 0:
        with _transaction(connection):
            # Looked at again inside the transaction: another process may have been faster.
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if _pragma(connection, "application_id") == 0 and tables == 0:
                connection.execute("CREATE TABLE store (generation BLOB NOT NULL)")
                connection.execute("INSERT INTO store VALUES (?)", (os.urandom(16),))
                connection.execute(
                    "CREATE TABLE puts (id INTEGER PRIMARY KEY, place INTEGER NOT NULL, size INTEGER NOT NULL, "
                    "prints BLOB NOT NULL)"
                )
                connection.execute(
                    "CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER "
                    "NOT NULL, content BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID"
                )
                connection.execute(f"PRAGMA user_version = {_VERSION}")
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                link.rows.truncate(0)  # of a store whose list was deleted
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
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        if connection.in_transaction:
            connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # after a COMMIT that failed as well
            connection.execute("ROLLBACK")
        raise


def _select(connection: sqlite3.Connection, query: str, keys: Sequence[bytes | int]) -> Iterator[tuple]:
    """Rows of a query with one ``IN ({})``, asked for many keys at a time."""
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        part = keys[start : start + _KEYS_PER_QUERY]
        yield from connection.execute(query.format(",".join("?" * len(part))), part).fetchall()


def _explain(error: sqlite3.Error | OSError, path: Path) -> str:
    if isinstance(error, OSError):
        return _explain_os(error, path.with_name(ROWS_NAME))
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


def _explain_os(error: OSError, path: Path) -> str:
    reason = error.strerror or error
    if error.errno == errno.ENOSPC:
        return f"No disk space is left for the feature store {str(path)!r}; nothing was half written."
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"The feature store {str(path)!r} cannot be written ({reason}); choose a folder you may write to."
    return f"The feature store {str(path)!r} failed: {reason}."


def _store_file(folder: PathLike) -> Path:
    return Path(os.path.abspath(os.path.expanduser(folder))) / FILE_NAME


def _missing(n: int, dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return np.full((n, dim), np.nan, dtype=np.float32), np.zeros(n, dtype=bool)


def _check_rows(keys: Sequence[bytes], rows: ArrayLike) -> NDArray[np.float32]:
    checked = np.asarray(rows, dtype=np.float32)
    if checked.ndim != 2 or len(checked) != len(keys):
        raise ValueError(f"rows of shape {checked.shape} do not belong to {len(keys)} keys.")
    return checked


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
_INHERITED: list[_Link] = []
_MEMORY = MemoryStore()


def _after_fork() -> None:
    for store in list(_LIVE):
        store._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
