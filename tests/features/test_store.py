"""The feature store: right rows or none, whatever happens to the process or to the file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from skclip.features._store import (
    FILE_NAME,
    ROWS_NAME,
    FolderStore,
    MemoryStore,
    NoStore,
    StoreError,
    _checksums,
    _held,
    clear_store,
    open_store,
    row_key,
)

DIM = 8
LONG_AGO = 10**18  # nanoseconds, a settled time stamp


def key(number):
    return row_key(b"test", str(number).encode(), 0)


def row(number, dim=DIM):
    """The one right row of a number."""
    return np.random.default_rng(number).standard_normal(dim).astype(np.float32)


def fill(store, numbers, dim=DIM):
    store.put([key(i) for i in numbers], np.array([row(i, dim) for i in numbers]))


def assert_only_right_rows(store, numbers, dim=DIM):
    rows, found = store.get([key(i) for i in numbers], dim)
    for position, number in enumerate(numbers):
        if found[position]:
            np.testing.assert_array_equal(rows[position], row(number, dim))
        else:
            assert np.isnan(rows[position]).all()
    return found


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else FolderStore(tmp_path / "store")


@pytest.fixture
def file(tmp_path):
    return tmp_path / FILE_NAME


@pytest.fixture
def rows_file(tmp_path):
    return tmp_path / ROWS_NAME


@contextmanager
def unprivileged():
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def script(body, *arguments):
    """A Python process that has this module's `key`, `row` and `fill`."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_store import *\n"
    code += "folder = sys.argv[1]\n" + textwrap.dedent(body)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Both stores


def test_rows_come_back_in_the_order_asked(store):
    fill(store, range(20))
    wanted = [3, 99, 0, 3, 19, 77]
    rows, found = store.get([key(i) for i in wanted], DIM)
    assert rows.shape == (6, DIM)
    assert rows.dtype == np.float32
    assert found.tolist() == [True, False, True, True, True, False]
    assert_only_right_rows(store, wanted)


def test_more_keys_than_one_query_takes(store):
    fill(store, range(1300))
    assert assert_only_right_rows(store, np.random.default_rng(0).permutation(1500).tolist()).sum() == 1300


def test_no_keys(store):
    rows, found = store.get([], DIM)
    assert rows.shape == (0, DIM)
    assert found.shape == (0,)
    store.put([], np.empty((0, DIM)))


def test_another_width_is_missing(store):
    fill(store, [1])
    assert not store.get([key(1)], DIM + 1)[1].any()
    fill(store, [1], DIM + 1)
    assert assert_only_right_rows(store, [1], DIM + 1).all()


def test_the_last_put_counts(store):
    store.put([key(1), key(1)], np.zeros((2, DIM)))
    fill(store, [1])
    assert assert_only_right_rows(store, [1]).all()


def test_rows_are_kept_exactly_and_apart_from_the_callers_array(store):
    rows = np.array([[np.nan, -0.0, np.inf, 1e-45, 3.4e38, 1 / 3, 0, 1]], np.float32)
    original = rows.copy()
    store.put([key(1)], rows)
    rows[:] = 5
    first, _ = store.get([key(1)], DIM)
    assert first.tobytes() == original.tobytes()
    first[:] = 6
    assert store.get([key(1)], DIM)[0].tobytes() == original.tobytes()


def test_rows_of_any_float_type_and_layout(store):
    rows = np.asfortranarray(np.array([row(1), row(2)], np.float64))
    store.put([key(1), key(2)], rows)
    assert assert_only_right_rows(store, [1, 2]).all()


def test_rows_must_match_the_keys(store):
    with pytest.raises(ValueError, match=r"rows of shape \(2, 8\) do not belong to 1 keys"):
        store.put([key(1)], np.zeros((2, DIM)))
    with pytest.raises(ValueError, match="rows of shape"):
        store.put([key(1)], np.zeros(DIM))


def test_clear(store, tmp_path):
    fill(store, range(5))
    path = settled_file(tmp_path)
    store.remember(path, path.stat(), b"content")
    store.clear()
    assert not assert_only_right_rows(store, range(5)).any()
    assert store.known([path]) == [None]
    fill(store, range(5))
    assert assert_only_right_rows(store, range(5)).all()


def test_threads(store):
    def work(thread):
        for step in range(10):
            numbers = [thread * 100 + step, step, 1000 + step]
            fill(store, numbers)
            assert assert_only_right_rows(store, numbers).all()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert assert_only_right_rows(store, range(10)).all()


# Known files


def settled_file(folder, name="picture.bin", content=b"abc"):
    path = folder / name
    path.write_bytes(content)
    os.utime(path, ns=(LONG_AGO + 1, LONG_AGO + 1))
    return path


def test_an_unchanged_file_is_known(store, tmp_path, monkeypatch):
    path, other = settled_file(tmp_path), settled_file(tmp_path, "other.bin")
    assert store.known([path]) == [None]
    store.remember(path, path.stat(), b"content")
    missing = tmp_path / "missing.bin"
    assert store.known([other, path, missing, str(path), "nul\0"]) == [
        None,
        b"content",
        None,
        b"content",
        None,
    ]
    monkeypatch.chdir(tmp_path)
    assert store.known(["picture.bin"]) == [b"content"]
    store.remember_many([(other, other.stat(), b"two"), (path, path.stat(), b"three")])
    assert store.known([path, other]) == [b"three", b"two"]


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_a_changed_file_is_not_known(store, tmp_path, change):
    path = settled_file(tmp_path)
    store.remember(path, path.stat(), b"content")
    if change == "size":
        settled_file(tmp_path, content=b"abcd")
    elif change == "time":
        os.utime(path, ns=(LONG_AGO, LONG_AGO + 2))
    else:
        path.unlink()
    assert store.known([path]) == [None]


def test_a_file_written_this_moment_is_not_trusted_yet(store, tmp_path):
    path = settled_file(tmp_path)
    for age, whole_seconds, trusted in [
        (0, False, False),
        (1.0, False, True),
        (0.5, True, False),
        (4, True, True),
    ]:
        time_ns = time.time_ns() - int(age * 1e9)
        time_ns = time_ns // 10**9 * 10**9 if whole_seconds else time_ns // 10**9 * 10**9 + time_ns % 10**9 // 2 * 2 + 1
        os.utime(path, ns=(time_ns, time_ns))
        store.remember(path, path.stat(), b"content")
        assert store.known([path]) == [b"content" if trusted else None], (age, whole_seconds)


def test_a_file_name_that_is_no_text(store, tmp_path):
    name = os.fsdecode(b"picture\xff.bin")
    try:
        path = settled_file(tmp_path, name)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes text names only")
    store.remember(path, path.stat(), b"content")
    assert store.known([path]) == [b"content"]


# Opening


def test_open_store(tmp_path, monkeypatch):
    assert open_store() is open_store("memory")
    assert isinstance(open_store(None), NoStore)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_store("relative/deep").path == tmp_path / "relative" / "deep" / FILE_NAME
    assert open_store(Path("memory")).path == tmp_path / "memory" / FILE_NAME
    assert open_store("./memory").path == tmp_path / "memory" / FILE_NAME
    if os.name == "posix":
        assert open_store("~/cache").path == tmp_path / "home" / "cache" / FILE_NAME
    for wrong in (3, True, ["memory"]):
        with pytest.raises(TypeError, match="must be 'memory', a folder"):
            open_store(wrong)


def test_no_store():
    store = open_store(None)
    fill(store, [1])
    rows, found = store.get([key(1)], DIM)
    assert np.isnan(rows).all()
    assert not found.any()
    assert store.known(["a"]) == [None]
    store.remember("a", os.stat("."), b"content")
    store.clear()


def test_a_folder_keeps_rows_from_one_opening_to_the_next(tmp_path):
    fill(open_store(tmp_path), range(5))
    assert assert_only_right_rows(open_store(str(tmp_path)), range(5)).all()


def test_clear_store(tmp_path, file, rows_file):
    clear_store(tmp_path / "never-made")
    assert not (tmp_path / "never-made").exists()
    store = open_store(tmp_path)
    empty = file.stat().st_size
    for start in range(0, 2000, 2):
        fill(store, [start, start + 1])
    clear_store(str(tmp_path))
    assert not assert_only_right_rows(store, range(500)).any()
    store.close()
    assert file.stat().st_size <= empty + 2**17  # pages of the tables
    assert rows_file.stat().st_size == 0
    fill(open_store("memory"), [1])
    clear_store()
    assert not open_store("memory").get([key(1)], DIM)[1].any()


def test_pickles_reconnect(tmp_path):
    fill(open_store(tmp_path), [1])
    assert assert_only_right_rows(pickle.loads(pickle.dumps(open_store(tmp_path))), [1]).all()
    assert pickle.loads(pickle.dumps(open_store("memory"))) is open_store("memory")


# Memory


def test_memory_is_bounded_and_the_least_used_rows_leave():
    store = MemoryStore(max_bytes=10 * (512 * 4 + 250))
    fill(store, range(10), dim=512)
    assert assert_only_right_rows(store, range(10), dim=512).all()
    store.get([key(0), key(2)], 512)
    fill(store, [10, 11], dim=512)
    found = assert_only_right_rows(store, range(12), dim=512)
    assert np.flatnonzero(~found).tolist() == [1, 3]
    fill(store, range(100, 200), dim=512)
    assert assert_only_right_rows(store, range(100, 200), dim=512).sum() == 10
    fill(store, [5] * 50, dim=512)
    assert assert_only_right_rows(store, range(100, 200), dim=512).sum() == 9


# Folder


def test_the_file_is_set_up_for_speed_and_sharing(tmp_path, file):
    store = open_store(tmp_path)
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA page_size").fetchone() == (16384,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    store.close()


def test_connections_are_closed_with_the_store(tmp_path, file):
    store = open_store(tmp_path)
    fill(store, range(3))
    assert file.with_name(FILE_NAME + "-wal").exists()
    del store
    assert not file.with_name(FILE_NAME + "-wal").exists()


RECORD = 4 * DIM + 8  # a row and its checksum


@pytest.mark.parametrize("place", [0, 9, 4 * DIM - 1, 4 * DIM, RECORD - 1])
def test_a_damaged_row_is_missing_and_can_be_written_again(tmp_path, rows_file, place):
    store = open_store(tmp_path)
    fill(store, range(4))
    records = bytearray(rows_file.read_bytes())
    assert len(records) == 4 * RECORD
    records[RECORD + place] ^= 4
    rows_file.write_bytes(records)
    assert assert_only_right_rows(store, range(4)).tolist() == [True, False, True, True]
    fill(store, [1])
    assert assert_only_right_rows(store, range(4)).all()
    assert assert_only_right_rows(open_store(tmp_path), range(4)).all()


def test_a_row_in_anothers_place_is_missing(tmp_path, rows_file):
    store = open_store(tmp_path)
    fill(store, range(4))
    records = rows_file.read_bytes()
    rows_file.write_bytes(records[RECORD : 2 * RECORD] * 2 + records[2 * RECORD :])
    assert assert_only_right_rows(store, range(4)).tolist() == [False, True, True, True]


def test_any_flipped_bit_of_a_row_is_noticed(tmp_path, rows_file):
    store = open_store(tmp_path)
    fill(store, [0])
    good = rows_file.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        rows_file.write_bytes(bad)
        assert not assert_only_right_rows(store, [0]).any(), bit


@pytest.mark.parametrize(
    "damage",
    [
        "place = place + 4",
        "place = 10000000",
        "place = -8",
        f"place = {2**62}",
        "place = 'here'",
        "size = 3",
        f"size = {2**62}",
        "prints = 'abc'",
        "prints = zeroblob(16)",
        "prints = x''",
    ],
)
def test_a_damaged_list_of_puts_makes_rows_missing(tmp_path, file, damage):
    store = open_store(tmp_path)
    fill(store, [0, 1])
    fill(store, [2, 3])
    connection = sqlite3.connect(file)
    connection.execute(f"UPDATE puts SET {damage} WHERE id = 1")
    connection.execute("UPDATE store SET generation = x'00'")  # let those who know the list read it again
    connection.commit()
    connection.close()
    found = assert_only_right_rows(store, range(4))
    assert not found[1]
    assert found[2:].all()
    fill(store, [0, 1])
    assert assert_only_right_rows(store, range(4)).all()


def test_rows_that_are_there_take_no_more_space(tmp_path, rows_file):
    store = open_store(tmp_path)
    fill(store, range(4))
    fill(open_store(tmp_path), range(5))
    fill(store, range(5))
    assert rows_file.stat().st_size == 5 * RECORD


def test_the_rows_of_a_deleted_list_give_their_space_back(tmp_path, file, rows_file):
    store = open_store(tmp_path)
    fill(store, range(4))
    store.close()
    file.unlink()
    again = open_store(tmp_path)
    for either in (again, store):
        assert not assert_only_right_rows(either, range(4)).any()
    assert rows_file.stat().st_size == 0
    fill(again, [1, 2])
    assert assert_only_right_rows(store, [1, 2]).all()


@pytest.mark.parametrize("size", [0, RECORD, 2 * RECORD + 5])
def test_a_cut_file_of_rows(tmp_path, rows_file, size):
    store = open_store(tmp_path)
    fill(store, range(4))
    os.truncate(rows_file, size)
    assert assert_only_right_rows(store, range(4)).tolist() == [RECORD * (i + 1) <= size for i in range(4)]
    fill(store, range(4))
    assert assert_only_right_rows(store, range(4)).all()


def test_a_file_of_rows_that_is_gone(tmp_path, rows_file):
    store = open_store(tmp_path)
    fill(store, range(4))
    store.close()
    rows_file.unlink()
    assert not assert_only_right_rows(store, range(4)).any()
    fill(store, range(4))
    assert assert_only_right_rows(store, range(4)).all()


def test_the_checksum_is_the_same_everywhere():
    keys = np.arange(8, dtype="<u4").reshape(2, 4)
    data = np.arange(6, dtype="<u4").reshape(2, 3)
    assert [f"{number:016x}" for number in _checksums(keys, data)] == ["6edbe0079f1d5d86", "7ff838abf260cc21"]


def test_a_damaged_file_note_is_forgotten(tmp_path, file):
    path, store = settled_file(tmp_path), open_store(tmp_path)
    store.remember(path, path.stat(), b"content")
    connection = sqlite3.connect(file)
    connection.execute("UPDATE files SET content = ?", (b"kontent",))
    connection.commit()
    connection.close()
    assert store.known([path]) == [None]


@pytest.mark.parametrize("name", [FILE_NAME, ROWS_NAME])
def test_flipped_bytes_anywhere_never_give_a_wrong_row(tmp_path, file, name):
    store = open_store(tmp_path)
    for start in range(0, 300, 10):
        fill(store, range(start, start + 10), dim=64)
    store.close()
    damaged = tmp_path / name
    good = damaged.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(25):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), 20):
            bad[place] ^= 1 << rng.integers(8)
        damaged.write_bytes(bad)
        _held.cache_clear()  # as another process sees it
        try:
            store = open_store(tmp_path)
            assert_only_right_rows(store, range(300), dim=64)
        except StoreError as error:
            message = str(error)
            assert str(file) in message
        finally:
            store.close()


@pytest.mark.parametrize("content", [b"something else entirely" * 99, b"SQLite format 3\0" + b"\x07" * 200])
def test_a_file_that_is_no_database(tmp_path, file, content):
    file.write_bytes(content)
    for call in (open_store, clear_store):
        with pytest.raises(StoreError, match=FILE_NAME):
            call(tmp_path)
    assert file.read_bytes() == content


def test_a_truncated_file(tmp_path, file):
    store = open_store(tmp_path)
    fill(store, range(500), dim=512)
    store.close()
    file.write_bytes(file.read_bytes()[: 3 * 16384])
    with pytest.raises(StoreError, match=rf"{FILE_NAME}.*damaged.*Delete the file"):
        open_store(tmp_path).get([key(i) for i in range(500)], 512)


def test_somebody_elses_database(tmp_path, file):
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE rows (a, b)")
    connection.close()
    for call in (open_store, clear_store):
        with pytest.raises(StoreError, match=rf"{FILE_NAME}' is not a feature store of skclip"):
            call(tmp_path)


def test_a_store_of_another_format(tmp_path, file):
    open_store(tmp_path).close()
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(StoreError, match=r"has format 7, this skclip reads format 2; .*delete the file"):
        open_store(tmp_path)


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match=r"store': it is a file"):
        open_store(tmp_path / "store")


@pytest.mark.skipif(os.name != "posix", reason="permissions are set the POSIX way")
def test_a_folder_that_may_not_be_written(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    with unprivileged(), pytest.raises(StoreError, match=r"locked.*(cannot be written|denied)"):
        open_store(locked)
    with unprivileged(), pytest.raises(StoreError, match="locked"):
        open_store(locked / "new")


def test_a_failed_put_leaves_nothing_and_the_store_works_on(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(TypeError):
        store.put([key(1), None], np.array([row(1), row(2)]))
    assert not assert_only_right_rows(store, [1]).any()
    fill(store, [1])
    assert assert_only_right_rows(store, [1]).all()


class FullDisk:
    """A connection that refuses to commit."""

    def __init__(self, sql):
        self._sql = sql

    def __getattr__(self, name):
        return getattr(self._sql, name)

    def execute(self, query, *parameters):
        if query == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return self._sql.execute(query, *parameters)


def test_a_put_that_cannot_be_committed_leaves_nothing_and_the_store_works_on(tmp_path, rows_file):
    store = FolderStore(tmp_path)
    fill(store, [1])
    size = rows_file.stat().st_size
    [link] = store._pool._idle
    sql, link.sql = link.sql, FullDisk(link.sql)
    with pytest.raises(StoreError, match="disk is full"):
        fill(store, [2])
    with pytest.raises(StoreError, match="disk is full"):
        store.clear()
    link.sql = sql
    assert not FolderStore(tmp_path).get([key(2)], DIM)[1].any()  # nobody is locked out
    fill(store, [3])
    assert rows_file.stat().st_size == size  # that of 3 stands where 1 stood: clear had cut the file
    assert assert_only_right_rows(store, [1, 2, 3]).tolist() == [False, False, True]


def test_a_folder_put_back_to_an_earlier_state(tmp_path):
    folder, backup = tmp_path / "store", tmp_path / "backup"
    store = FolderStore(folder)
    fill(store, [1])
    store.close()
    shutil.copytree(folder, backup)
    for number in (2, 3, 4):
        fill(store, [number])
    assert assert_only_right_rows(store, [1, 2, 3, 4]).all()
    store.close()
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
    assert assert_only_right_rows(store, [1, 2, 3, 4]).tolist() == [True, False, False, False]
    fill(store, [5])
    assert assert_only_right_rows(store, [1, 5]).all()


# Several processes


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_a_killed_writer_leaves_whole_rows(tmp_path):
    for attempt in range(2):
        process = script(
            """
            store = open_store(folder)
            print("ready", flush=True)
            start = int(sys.argv[2])
            for step in range(10**6):
                fill(store, range(start + 20 * step, start + 20 * step + 20), dim=2048)
                print(step, flush=True)
            """,
            tmp_path,
            attempt * 10**6,
        )
        lines = 5 + 7 * attempt
        for _ in range(lines):
            assert process.stdout.readline(), process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        store = open_store(tmp_path)
        numbers = list(range(attempt * 10**6, attempt * 10**6 + 2000))
        found = assert_only_right_rows(store, numbers, dim=2048)
        assert found[: 20 * (lines - 1)].all()  # what was reported as written is there
        assert found.sum() % 20 == 0  # and a transaction is whole or absent
        fill(store, [1])
        assert assert_only_right_rows(store, [1]).all()


def test_processes_open_and_write_the_same_new_folder(tmp_path):
    processes = [
        script(
            """
            mine = int(sys.argv[2])
            store = open_store(folder)
            for step in range(10):
                numbers = [step] + list(range(1000 * mine + 10 * step, 1000 * mine + 10 * step + 10))
                fill(store, numbers)
                assert assert_only_right_rows(store, numbers).all()
            """,
            tmp_path,
            number,
        )
        for number in range(1, 3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    store = open_store(tmp_path)
    for number in range(1, 3):
        assert assert_only_right_rows(store, range(1000 * number, 1000 * number + 100)).all()


def quick_rows(numbers, dim=64):
    return (np.asarray(numbers)[:, None] * 1.5 + np.arange(dim)).astype(np.float32)


def hammer(folder, number, seconds):
    """Put 50 own rows and 50 that all processes put, read what is there, say so; over and over."""
    store, rng = open_store(folder), np.random.default_rng()
    end = time.monotonic() + seconds
    step = 0
    while time.monotonic() < end:
        own = range(number * 10**6 + 50 * step, number * 10**6 + 50 * step + 50)
        common = range(50 * (step % 100), 50 * (step % 100) + 50)
        numbers = [*own, *common]
        store.put([key(i) for i in numbers], quick_rows(numbers))
        print(step, flush=True)
        numbers += [*range(1000), *rng.integers(number * 10**6, own.stop, 100).tolist()]
        rows, found = store.get([key(i) for i in numbers], 64)
        assert found[:100].all()
        assert found[1100:].all()
        np.testing.assert_array_equal(rows[found], quick_rows(numbers)[found])
        step += 1


def hammer_together(folder, n_processes, seconds, kill_after):
    """Processes at full speed; one more of them is killed at each of the times, and another one follows it."""

    def start(number, seconds):
        return script("hammer(folder, int(sys.argv[2]), float(sys.argv[3]))", folder, number, seconds)

    steady = [start(number, seconds) for number in range(1, n_processes)]
    killed = []
    for number, after in enumerate(kill_after, n_processes):
        process = start(number, 1000)
        assert process.stdout.readline(), process.stderr.read()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        killed.append(process)
    n_steps = []
    for process in steady + killed:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0 or process in killed, errors
        assert not errors
        n_steps.append(len(output.splitlines()) + (process in killed))  # the first line was read above
    assert min(n_steps) > 2
    store = open_store(folder)
    for number, n in enumerate(n_steps, 1):
        numbers = [*range(50 * min(n, 100)), *range(number * 10**6, number * 10**6 + 50 * n)]
        rows, found = store.get([key(i) for i in numbers], 64)
        assert found.all(), number
        np.testing.assert_array_equal(rows, quick_rows(numbers))
    return sum(n_steps)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_processes_share_a_folder_at_full_speed(tmp_path):
    hammer_together(tmp_path, 2, 3, [0.3, 0.5])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
@pytest.mark.parametrize("n_processes", [2, 4])
def test_processes_share_a_folder_at_full_speed_for_long(tmp_path, n_processes):
    hammer_together(tmp_path, n_processes, 12, np.random.default_rng(0).uniform(0.1, 2.5, 8).tolist())


def test_many_threads_open_the_same_new_folder(tmp_path):
    for attempt in range(5):
        with ThreadPoolExecutor(8) as pool:
            stores = list(pool.map(open_store, [tmp_path / str(attempt)] * 8))
        fill(stores[0], [1])
        assert all(assert_only_right_rows(store, [1]).all() for store in stores)


def child(store, numbers, queue):
    try:
        found = assert_only_right_rows(store, range(3)).tolist()
        fill(store, numbers)
        queue.put((found, assert_only_right_rows(store, numbers).all()))
    except Exception as error:
        queue.put(error)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_works_with_connections_of_its_own(store):
    context = multiprocessing.get_context("fork")
    fill(store, range(3))
    queue = context.Queue()
    processes = [context.Process(target=child, args=(store, range(10 * i, 10 * i + 5), queue)) for i in (1, 2)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert answers == [([True] * 3, True)] * 2
    fill(store, range(30, 35))
    assert assert_only_right_rows(store, [0, 1, 2, *range(30, 35)]).all()
    if isinstance(store, FolderStore):
        assert assert_only_right_rows(store, [*range(10, 15), *range(20, 25)]).all()


# Keys


def test_row_keys_differ_wherever_anything_differs():
    keys = [
        row_key(b"ab", b"c", 0),
        row_key(b"a", b"bc", 0),
        row_key(b"ab", b"c", 1),
        row_key(b"ab", b"d", 0),
        row_key(b"", b"abc", 0),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(k) == 16 for k in keys)
    assert row_key(b"ab", b"c", 0) == keys[0]


def test_the_row_key_does_not_depend_on_the_session():
    assert row_key(b"namespace", b"content", 2).hex() == "467d76a631cf8b2ef9221dbdd18d1b30"
