"""Extracted features in a folder: the same bytes whatever happens on the way, clear words when nothing can be done."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
import tracemalloc
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from skclip.features import _output_files, _parquet_output, _row_writer
from skclip.features._output_files import Commit, last_commit, npy_header
from skclip.features._outputs import OutputError, merge_extractions, open_extraction, open_writer

DIM = 3
SETTINGS = {"model": "skclip-tiny", "batch_size": "auto", "mean": [0.5, 0.5], "normalize": True}
FORMATS = pytest.mark.parametrize("format", ["npy", "parquet"])


def item(i):
    """Name, row, reason and further columns of the item `i`."""
    reason = "is a text file" if i % 7 == 3 else None
    row = np.random.default_rng(i).standard_normal(DIM).astype(np.float32)
    return f"folder/{i}.jpg", row if reason is None else np.full(DIM, np.nan), reason, {"label": i % 5, "tag": f"t{i}"}


def write(writer, numbers):
    names, rows, reasons, extras = zip(*map(item, numbers))
    failures = [(i, reason) for i, reason in enumerate(reasons) if reason is not None]
    writer.write(names, np.array(rows, dtype=np.float32).reshape(-1, DIM), failures, extras)


def begin(folder, **more):
    return open_writer(folder, **{"n_columns": DIM, "settings": SETTINGS, "rows_per_file": 16, **more})


def run(folder, n=50, block=8, numbers=None, **more):
    """What `extract` does."""
    numbers = list(range(n)) if numbers is None else numbers
    with begin(folder, **more) as writer:
        items = iter(numbers)
        writer.skip(item(i)[0] for i in items)
        rest = list(items)
        for lo in range(0, len(rest), block):
            write(writer, rest[lo : lo + block])
        writer.finish()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_holds(folder, numbers):
    extraction = open_extraction(folder)
    names, rows, reasons, extras = zip(*map(item, numbers))
    np.testing.assert_array_equal(extraction.features, np.array(rows, dtype=np.float32))
    assert extraction.names == list(names)
    failed = [(i, names[i], reason) for i, reason in enumerate(reasons) if reason is not None]
    assert extraction.failures == failed
    errors = [{} if reason is None else {"error": reason} for reason in reasons]
    assert list(extraction.manifest()) == [
        {"row": i, "name": names[i], **extras[i], **errors[i]} for i in range(len(numbers))
    ]
    assert (extraction.n_rows, len(extraction), extraction.n_failed) == (len(names), len(names), len(failed))


@pytest.fixture
def often(monkeypatch):
    """Every block is committed."""
    monkeypatch.setattr(_row_writer, "COMMIT_SECONDS", 0.0)


# --- what lies in the folder


@FORMATS
@pytest.mark.parametrize("n", [0, 1, 16, 50])
def test_a_run_is_read_back(tmp_path, format, n):
    run(tmp_path / "deep" / "out", n, format=format)
    extraction = open_extraction(tmp_path / "deep" / "out")
    assert extraction.features.shape == (n, DIM)
    assert extraction.features.dtype == np.float32
    assert extraction.settings == SETTINGS
    assert extraction.format == format
    assert repr(extraction).endswith(
        f"n_rows={n}, n_columns={DIM}, n_failed={len(extraction.failures)}, format={format!r})"
    )
    if n:
        assert_holds(tmp_path / "deep" / "out", range(n))


def test_the_array_is_what_numpy_would_save(tmp_path):
    run(tmp_path)
    saved = io.BytesIO()
    np.save(saved, np.array([item(i)[1] for i in range(50)], dtype="<f4"))
    assert (tmp_path / "features.npy").read_bytes() == saved.getvalue()
    assert isinstance(open_extraction(tmp_path).features, np.memmap)


@pytest.mark.parametrize("n_rows", [0, 1, 10**9, 2**62])
def test_headers_have_one_length_and_are_understood(n_rows):
    header = npy_header(n_rows, 10**6)
    assert len(header) == _output_files.HEADER_BYTES
    file = io.BytesIO(header)
    assert np.lib.format.read_magic(file) == (1, 0)
    assert np.lib.format.read_array_header_1_0(file) == ((n_rows, 10**6), False, np.dtype("<f4"))


def test_names_of_the_files(tmp_path):
    run(tmp_path / "npy")
    run(tmp_path / "parquet", format="parquet")
    assert sorted(content(tmp_path / "npy")) == ["extraction.json", "failures.jsonl", "features.npy", "manifest.jsonl"]
    parts = [f"part-0000{k}.parquet" for k in range(4)]
    assert sorted(content(tmp_path / "parquet")) == ["_extraction.json", "_failures.jsonl", *parts]


@FORMATS
def test_odd_names_come_back(tmp_path, format):
    names = ["new\nline", "\u2028 \x85", "snow ☃", 'quote "\\', "", "same", "same"]
    with begin(tmp_path, format=format) as writer:
        writer.write(names, np.zeros((len(names), DIM)), [(0, "line\nfeed")])
        writer.finish()
    assert open_extraction(tmp_path).names == names
    assert open_extraction(tmp_path).failures == [(0, "new\nline", "line\nfeed")]


@FORMATS
def test_names_that_are_no_unicode(tmp_path, format):
    with begin(tmp_path, format=format) as writer:
        writer.write(["a\udcff"], np.zeros((1, DIM)), [(0, "b\udcff")], [{"c": "d\udcff"}])
        writer.finish()
    extraction = open_extraction(tmp_path)
    assert extraction.names == ["a\udcff" if format == "npy" else "a\\udcff"]
    assert extraction.failures == [(0, "a\udcff", "b\udcff")]
    with begin(tmp_path, format=format) as writer:
        writer.skip(["a\udcff"])
        assert writer.finished


@FORMATS
def test_further_columns_under_names_that_are_taken(tmp_path, format):
    with begin(tmp_path, format=format) as writer:
        writer.write(["a"], np.zeros((1, DIM)), extras=[{"name": "b", "extra_name": "c", "error": "d", "extra": 1}])
        writer.finish()
    (line,) = open_extraction(tmp_path).manifest()
    assert line == {
        "row": 0,
        "name": "a",
        "extra_name": "c",
        "extra_extra_name": "b",
        "extra_error": "d",
        "extra_extra": 1,
    }


@FORMATS
def test_values_of_further_columns(tmp_path, format):
    extra = {
        "int": np.int64(3),
        "float": np.float32(0.5),
        "nan": float("nan"),
        "bool": True,
        "list": [1, float("inf"), (np.float32("nan"),)],
        "dict": {"a": None},
        "none": None,
    }
    with begin(tmp_path, format=format) as writer:
        writer.write(["a"], np.zeros((1, DIM)), extras=[extra])
        writer.finish()
    (line,) = open_extraction(tmp_path).manifest()
    assert line == {
        "row": 0,
        "name": "a",
        "int": 3,
        "float": 0.5,
        "nan": None,
        "bool": True,
        "list": [1, None, [None]],
        "dict": {"a": None},
        "none": None,
    }


@pytest.mark.parametrize("extra", [{"data": b"1"}, {"distance": float("nan"), "data": b"1"}])
def test_a_value_that_json_does_not_know(tmp_path, extra):
    with begin(tmp_path) as writer:
        with pytest.raises(OutputError, match=r"row 0, 'a', hold a value of type bytes"):
            writer.write(["a"], np.zeros((1, DIM)), extras=[extra])
        write(writer, range(3))
        writer.finish()
    assert_holds(tmp_path, range(3))


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(n):
        rows = np.zeros((256, 512), dtype=np.float32)
        tracemalloc.start()
        with open_writer(tmp_path / str(n), n_columns=512, settings={}) as writer:
            for lo in range(0, n, 256):
                writer.write([str(i) for i in range(lo, lo + 256)], rows)
            writer.finish()
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return memory

    peak(256)
    assert peak(256 * 20) < 2 * peak(256 * 2)


# --- going on


@FORMATS
@pytest.mark.parametrize("stops", [[8], [16], [24, 40], [48]])
def test_an_interrupted_run_goes_on(tmp_path, format, stops):
    run(tmp_path / "whole", format=format)
    for stop in stops:
        with suppress(KeyboardInterrupt), begin(tmp_path / "cut", format=format) as writer:
            writer.skip(item(i)[0] for i in range(50))
            for lo in range(writer.n_rows, stop, 8):
                write(writer, range(lo, lo + 8))
            raise KeyboardInterrupt
        with pytest.raises(OutputError, match=f"unfinished: {stop} rows are committed"):
            open_extraction(tmp_path / "cut")
    run(tmp_path / "cut", format=format)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert_holds(tmp_path / "cut", range(50))


def test_leaving_without_finish_commits(tmp_path):
    with begin(tmp_path) as writer:
        write(writer, range(8))
        write(writer, range(8, 10))
    with begin(tmp_path) as writer:
        assert writer.n_rows == 10
        assert writer.n_failed == 1


@FORMATS
def test_blocks_may_cross_files(tmp_path, format):
    run(tmp_path / "small", block=8, format=format)
    run(tmp_path / "large", block=50, format=format)
    assert content(tmp_path / "small") == content(tmp_path / "large")


@FORMATS
def test_a_finished_run_is_left_as_it_is(tmp_path, format):
    run(tmp_path, format=format)
    before = content(tmp_path)
    with begin(tmp_path, format=format) as writer:
        assert writer.finished
        assert writer.n_rows == 50
        writer.skip(item(i)[0] for i in range(50))
        writer.finish()
        with pytest.raises(OutputError, match="is finished with 50 rows"):
            write(writer, range(50, 52))
    assert content(tmp_path) == before


@FORMATS
@pytest.mark.parametrize("finished", [True, False])
def test_another_source_is_noticed(tmp_path, format, finished):
    with begin(tmp_path, format=format) as writer:
        write(writer, range(20))
        if finished:
            writer.finish()
    names = [item(i)[0] for i in range(20)]
    with begin(tmp_path, format=format) as writer:
        with pytest.raises(OutputError, match=r"Row 17 in .* is 'folder/17.jpg', item 17 of the source is 'other'"):
            writer.skip([*names[:17], "other", *names[18:]])
        with pytest.raises(OutputError, match=r"source has 18 items, .* has 20 rows"):
            writer.skip(names[:18])
        if finished:
            with pytest.raises(OutputError, match="further items from 'more' on"):
                writer.skip([*names, "more"])


def test_skip_takes_no_more_than_it_must(tmp_path):
    with begin(tmp_path) as writer:
        write(writer, range(5))
    names = iter(item(i)[0] for i in range(8))
    with begin(tmp_path) as writer:
        writer.skip(names)
    assert next(names) == item(5)[0]


def test_rows_found_must_be_compared_before_others_follow(tmp_path):
    with begin(tmp_path) as writer:
        write(writer, range(5))
    with begin(tmp_path) as writer:
        for action in (lambda: write(writer, range(5, 7)), writer.finish):
            with pytest.raises(RuntimeError, match="call skip"):
                action()


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        ({"settings": {**SETTINGS, "model": "other"}}, "model was 'skclip-tiny' and is 'other'"),
        ({"settings": {**SETTINGS, "mean": [0.5, 0.4]}}, r"mean was \[0.5, 0.5\] and is \[0.5, 0.4\]"),
        ({"settings": {**SETTINGS, "new": {"a": 1}}}, "new was not given and is {'a': 1}"),
        ({"settings": {**SETTINGS, "normalize": 1}}, "normalize was True and is 1"),
        ({"n_columns": 4}, "n_columns was 3 and is 4"),
        ({"format": "parquet"}, "format was 'npy' and is 'parquet'"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_named(tmp_path, more, difference, finished):
    with begin(tmp_path) as writer:
        write(writer, range(5))
        if finished:
            writer.finish()
    before = content(tmp_path)
    with pytest.raises(OutputError, match=rf"{difference}.*another folder, or begin anew with resume=False"):
        begin(tmp_path, **more)
    assert content(tmp_path) == before


def test_a_nested_setting_is_named(tmp_path):
    with begin(tmp_path, settings={"views": {"seed": "1", "kind": "crop"}}) as writer:
        write(writer, range(5))
    with pytest.raises(OutputError, match=r"settings: views.seed was '1' and is '2'"):
        begin(tmp_path, settings={"views": {"seed": "2", "kind": "crop"}})


def test_other_settings_are_taken_as_long_as_there_are_no_rows(tmp_path):
    with begin(tmp_path):
        pass
    run(tmp_path, settings={"model": "other"})
    assert open_extraction(tmp_path).settings == {"model": "other"}


def test_the_batch_size_is_taken_over(tmp_path):
    with begin(tmp_path, settings={**SETTINGS, "batch_size": 8}) as writer:
        write(writer, range(5))
    with begin(tmp_path, settings={**SETTINGS, "batch_size": 16}) as writer:
        assert writer.settings["batch_size"] == 8


def test_the_batch_size_that_was_settled_on_is_kept(tmp_path):
    with begin(tmp_path) as writer:
        writer.settle(32)
        write(writer, range(5))
    with begin(tmp_path) as writer:
        assert writer.settings["batch_size"] == 32
        writer.skip(item(i)[0] for i in range(5))
        writer.finish()
    assert open_extraction(tmp_path).settings == {**SETTINGS, "batch_size": 32}


def test_settings_that_json_does_not_know(tmp_path):
    with pytest.raises(TypeError, match=r"settings\['size'\]"):
        begin(tmp_path, settings={"size": {1, 2}})
    assert content(tmp_path) == {}


@FORMATS
@pytest.mark.parametrize("old", ["npy", "parquet"])
@pytest.mark.parametrize("finished", [True, False])
def test_beginning_anew_replaces_an_extraction_and_nothing_else(tmp_path, format, old, finished):
    out, new = tmp_path / "out", tmp_path / "new"
    with begin(out, format=old, settings={"model": "old"}) as writer:
        write(writer, range(40))
        if finished:
            writer.finish()
    (out / "notes.txt").write_text("mine")
    run(out, 20, format=format, resume=False)
    assert_holds(out, range(20))
    run(new, 20, format=format)
    assert content(out) == {"notes.txt": b"mine", **content(new)}


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    ("name", "format"), [("features.npy", "npy"), ("extraction.json", "npy"), ("part-00003.parquet", "parquet")]
)
def test_files_of_others_are_not_touched(tmp_path, resume, name, format):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(OutputError, match=rf"no extraction of skclip has left there.*{name}.*another folder"):
        begin(tmp_path, format=format, resume=resume)
    assert content(tmp_path) == {name: b"{}"}


def test_files_of_others_beside_an_extraction_that_is_replaced(tmp_path):
    run(tmp_path)
    (tmp_path / "part-00000.parquet").write_bytes(b"mine")
    before = content(tmp_path)
    with pytest.raises(OutputError, match=r"part-00000\.parquet"):
        begin(tmp_path, format="parquet", resume=False)
    assert content(tmp_path) == before


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match=r"Opening an extraction in the folder .*out.* failed"):
        begin(tmp_path / "out")


def test_an_extraction_of_a_later_format(tmp_path):
    run(tmp_path)
    state = json.loads((tmp_path / "extraction.json").read_text())
    (tmp_path / "extraction.json").write_text(json.dumps({**state, "version": 2}))
    for action in (open_extraction, begin):
        with pytest.raises(OutputError, match="version 2 of the format"):
            action(tmp_path)


@pytest.mark.parametrize("more", [{"format": "csv"}, {"format": "parquet", "rows_per_file": 0}])
def test_wrong_parameters(tmp_path, more):
    with pytest.raises(ValueError, match=next(reversed(more))):
        begin(tmp_path, **more)


@pytest.mark.parametrize("shape", [(2, DIM), (3, DIM + 1), (3,)])
def test_rows_and_names_must_belong_together(tmp_path, shape):
    with begin(tmp_path) as writer:
        with pytest.raises(ValueError, match=r"3 names, rows of shape .* expected rows of shape \(3, 3\)"):
            writer.write(["a", "b", "c"], np.zeros(shape))
        assert writer.n_rows == 0


# --- one writer


def test_a_second_run_is_refused(tmp_path):
    with begin(tmp_path) as writer:
        for _ in range(2):
            with pytest.raises(OutputError, match=r"Another run is writing into .*another folder"):
                begin(tmp_path)
        write(writer, range(5))
        writer.finish()
        with pytest.raises(OutputError, match="Another run"):
            begin(tmp_path)
    assert "extraction.lock" not in content(tmp_path)
    assert_holds(tmp_path, range(5))


def test_a_run_that_could_not_begin_holds_no_lock(tmp_path):
    (tmp_path / "features.npy").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(OutputError, match="no extraction of skclip"):
            begin(tmp_path)
    (tmp_path / "features.npy").unlink()
    run(tmp_path)


def test_drives_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(_output_files.UnlockedOutputWarning, match="no second run"):
        run(tmp_path)
    assert_holds(tmp_path, range(50))


# --- being cut off


@FORMATS
def test_a_full_disk_loses_nothing(tmp_path, format, often, monkeypatch):
    run(tmp_path / "whole", format=format)
    room = 30

    def write_some(file, data):
        nonlocal room
        view = memoryview(data).cast("B")
        file.write(view[:room])
        if len(view) > room:
            raise OSError(errno.ENOSPC, "No space left on device")

    with begin(tmp_path / "cut", format=format) as writer:
        for lo in range(0, 32, 8):
            with monkeypatch.context() as patch:
                patch.setattr(_row_writer, "write_all", write_some)
                with pytest.raises(OutputError, match="No space left on device"):
                    write(writer, range(lo, lo + 8))
            write(writer, range(lo, lo + 8))
        writer.finish()
    run(tmp_path / "whole", 32, format=format, resume=False)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@FORMATS
def test_a_write_that_failed_halfway_leaves_no_trace(tmp_path, format, monkeypatch):
    def write_twice(file, data):
        file.write(data)
        file.write(data)
        if file.name.endswith("failures.jsonl.part"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with begin(tmp_path / "cut", format=format) as writer:
        write(writer, range(5))
        with monkeypatch.context() as patch:
            patch.setattr(_row_writer, "write_all", write_twice)
            with pytest.raises(OutputError, match="No space left on device"):
                write(writer, range(5, 11))
        writer.finish()
    run(tmp_path / "whole", 5, format=format)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_data_are_on_the_disk_before_the_journal_says_so(tmp_path, monkeypatch, often):
    steps = []
    real_sync, real_write = os.fsync, _row_writer.write_all

    def sync(descriptor):
        steps.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}").rsplit("/")[-1]))
        real_sync(descriptor)

    def record(file, data):
        steps.append(("write", os.path.basename(file.name)))
        real_write(file, data)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    with begin(tmp_path) as writer:
        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(_row_writer, "write_all", record)
        write(writer, range(8))
        monkeypatch.undo()
    names = [f"{name}.jsonl.part" for name in ("manifest", "failures")]
    data = ["features.npy.part", *names]
    assert steps == [
        *(("write", name) for name in data),
        *(("sync", name) for name in data),
        ("write", "extraction.journal"),
        ("sync", "extraction.journal"),
    ]


def test_commits_wait_but_not_for_long(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_row_writer.time, "monotonic", lambda: now[0])
    found = []
    with begin(tmp_path) as writer:
        for k in range(6):
            write(writer, range(8 * k, 8 * k + 8))
            found.append(_output_files.read_journal(tmp_path)[0].rows)
            now[0] += 0.9
    assert found == [8, 8, 8, 32, 32, 32]


def test_the_last_whole_record_counts():
    commits = [Commit(k, k, 10 * k, 20 * k, k) for k in range(3)] + [Commit(3, 3, 30, 60, 3, final=True)]
    records = b"".join(commit.pack() for commit in commits)
    size = len(records) // 4
    for end in range(len(records) + 1):
        whole = end // size
        assert last_commit(records[:end]) == (commits[whole - 1] if whole else Commit(), whole * size)
    for place in range(size, 2 * size):
        damaged = bytearray(records)
        damaged[place] ^= 1
        assert last_commit(bytes(damaged)) == (commits[0], size)


@FORMATS
def test_a_cut_at_every_byte_of_the_last_record_is_harmless(tmp_path, format, often):
    run(tmp_path / "whole", 30, block=6, format=format)
    with begin(tmp_path / "cut", format=format) as writer:
        for lo in range(0, 24, 6):
            write(writer, range(lo, lo + 6))
    journal = (tmp_path / "cut" / "extraction.journal").read_bytes()
    size = len(Commit().pack())
    for end in range(len(journal) - size, len(journal) + 1):
        folder = shutil.copytree(tmp_path / "cut", tmp_path / str(end))
        os.truncate(folder / "extraction.journal", end)
        run(folder, 30, block=6, format=format)
        assert content(folder) == content(tmp_path / "whole")


class Killed(BaseException):
    """As if the process had died: from here on it does nothing more to files."""


@contextmanager
def killed_at(step):
    """Let a process die at its `step`-th operation on files, in the middle of it if that is a write."""
    left, dead = step, False

    def stepping(real, torn=None):
        def stepped(first, *args, **kwargs):
            nonlocal left, dead
            if str(first).endswith(".lock"):  # which the system would give back
                return real(first, *args, **kwargs)
            left -= 1
            if left == -1 and torn is not None:
                torn(first, *args)
            if left < 0:
                dead = True
                raise Killed
            return real(first, *args, **kwargs)

        return stepped

    def half(file, data):
        view = memoryview(data).cast("B")
        file.write(view[: len(view) // 2])

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, stepping(getattr(os, name)))
        patch.setattr(Path, "write_bytes", stepping(Path.write_bytes))
        torn = stepping(_output_files.write_all, half)
        for module in (_output_files, _row_writer):
            patch.setattr(module, "write_all", torn)
        with suppress(Killed):
            yield
    assert (left < 0) == dead


@FORMATS
def test_a_run_killed_at_every_step_ends_with_the_same_bytes(tmp_path, format, often, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # what is written outlives the process without it
    cut, whole = tmp_path / "cut", tmp_path / "whole"

    def work():
        run(cut, 20, block=6, format=format, rows_per_file=8)

    run(whole, 20, block=6, format=format, rows_per_file=8)
    for step in itertools.count():
        finished = False
        with killed_at(step):
            work()
            finished = True
        if finished:
            break
        if step % 2:
            with killed_at(random.Random(step).randrange(step)):
                work()
        work()
        assert content(cut) == content(whole), step
        shutil.rmtree(cut)
    assert step > 50


@FORMATS
@pytest.mark.parametrize("finished", [True, False])
def test_beginning_anew_killed_at_every_step_leaves_the_old_or_nothing(tmp_path, format, finished, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    cut, old = tmp_path / "cut", {"settings": {"model": "old"}, "format": "npy"}
    run(tmp_path / "new", 20, format=format)
    for step in itertools.count():
        with begin(cut, **old) as writer:
            write(writer, range(10))
            if finished:
                writer.finish()
        begun = False
        with killed_at(step):
            begin(cut, format=format, resume=False).close()
            begun = True
        with begin(cut, **old) as writer:
            assert writer.n_rows in (0, 10)
        run(cut, 20, format=format, resume=False)
        assert content(cut) == content(tmp_path / "new"), step
        shutil.rmtree(cut)
        if begun:
            break
    assert step > 5


_KILLING = """
import os, pathlib, random, signal, sys, time
sys.path[:0] = {path!r}
import test_outputs as t
from skclip.features import _parquet_output, _row_writer
_row_writer.COMMIT_SECONDS = 0.0
os.fsync = lambda descriptor: None  # what is written outlives the process without it
if {format!r} == "parquet":
    _parquet_output.import_pyarrow()
folder, whole = pathlib.Path({folder!r}), t.content(pathlib.Path({whole!r}))

def child():
    pid = os.fork()
    if pid == 0:
        try:
            t.run(folder, 30, block=6, format={format!r})
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            code = 1
        os._exit(code)
    return pid

def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

draw, killed, seconds = random.Random(0), 0, 0.0
while killed < {n}:
    began = time.perf_counter()
    pid = child()
    if seconds:
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
    code = status(pid)
    if code == 0:
        seconds = seconds or time.perf_counter() - began
        assert t.content(folder) == whole
        for path in folder.iterdir():
            path.unlink()
    else:
        assert code == -signal.SIGKILL, code
        killed += 1
"""


@FORMATS
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, format):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    run(tmp_path / "whole", 30, block=6, format=format)
    (tmp_path / "cut").mkdir()
    source = _KILLING.format(
        path=[os.path.dirname(__file__), os.getcwd()],
        folder=str(tmp_path / "cut"),
        whole=str(tmp_path / "whole"),
        format=format,
        n=6,
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    run(tmp_path / "cut", 30, block=6, format=format)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@FORMATS
def test_finishing_that_is_refused_is_done_by_the_next_run(tmp_path, format, monkeypatch):
    """As Windows does while another program has a file open."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(_row_writer.os, "replace", refuse)
        with pytest.raises(OutputError, match="failed: Permission denied"):
            run(tmp_path / "cut", format=format)
    run(tmp_path / "cut", format=format)
    run(tmp_path / "whole", format=format)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_killed_process_leaves_no_lock(tmp_path):
    script = f"""
        import sys
        from skclip.features._outputs import open_writer
        writer = open_writer({str(tmp_path)!r}, n_columns={DIM}, settings={SETTINGS!r})
        print("ready", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().strip() == b"ready"
        with pytest.raises(OutputError, match="Another run"):
            begin(tmp_path)
        process.kill()
        process.wait()
    run(tmp_path)
    assert_holds(tmp_path, range(50))


# --- Parquet


def test_pandas_and_polars_read_the_folder(tmp_path):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    run(tmp_path, format="parquet")
    expected = np.array([item(i)[1] for i in range(50)], dtype=np.float32)
    frame = pandas.read_parquet(tmp_path)
    assert list(frame.columns) == ["name", "features", "error", "label", "tag", "extra"]
    np.testing.assert_array_equal(np.stack(frame["features"]), expected)
    assert frame["label"].tolist() == [i % 5 for i in range(50)]
    assert frame["error"].isna().sum() == 50 - sum(i % 7 == 3 for i in range(50))
    table = polars.read_parquet(tmp_path / "*.parquet")
    assert table.schema["features"] == polars.Array(polars.Float32, DIM)
    np.testing.assert_array_equal(table["features"].to_numpy(), expected)


def test_datasets_reads_the_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    run(tmp_path / "out", format="parquet")
    data = datasets.Dataset.from_parquet(
        sorted(map(str, (tmp_path / "out").glob("*.parquet"))), cache_dir=str(tmp_path / "cache")
    )
    assert data.num_rows == 50
    np.testing.assert_array_equal(data[49]["features"], item(49)[1])


def write_columns(folder, values, rows_per_file=100):
    with begin(folder, format="parquet", rows_per_file=rows_per_file) as writer:
        extras = [{} if value is ... else {"c": value} for value in values]
        writer.write([str(i) for i in range(len(values))], np.zeros((len(values), DIM)), extras=extras)
        writer.finish()


@pytest.mark.parametrize(
    ("values", "arrow"),
    [
        ([1, None, 2**62], "int64"),
        ([1, 2.5, ...], "double"),
        ([True, False], "bool"),
        (["a", None], "string"),
    ],
)
def test_columns_of_one_type(tmp_path, values, arrow):
    pq = pytest.importorskip("pyarrow.parquet")
    write_columns(tmp_path, values)
    assert str(pq.read_schema(tmp_path / "part-00000.parquet").field("c").type) == arrow
    table = pq.read_table(tmp_path)
    expected = [None if value is ... else value for value in values]
    assert table["c"].to_pylist() == expected
    assert table["extra"].null_count == len(values)
    assert [line["c"] for line in open_extraction(tmp_path).manifest()] == expected


@pytest.mark.parametrize(
    "values", [[1, "1"], [True, 1], [2**53 + 1, 0.5], [2**64], [[1], {"a": 2}], [None, None], ["a", False, None]]
)
def test_columns_of_several_types_are_json(tmp_path, values):
    pq = pytest.importorskip("pyarrow.parquet")
    write_columns(tmp_path, values)
    texts = pq.read_table(tmp_path)["c"].to_pylist()
    assert texts == [None if value is None else json.dumps(value) for value in values]
    assert [line["c"] for line in open_extraction(tmp_path).manifest()] == values


def test_what_does_not_fit_the_first_file_is_kept(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    with begin(tmp_path, format="parquet", rows_per_file=2) as writer:
        extras = [{"a": 1}, {"a": 2}, {"a": "three"}, {"a": 4, "b": [5]}, {"a": None}]
        writer.write(list("vwxyz"), np.zeros((5, DIM)), extras=extras)
        writer.finish()
    table = pq.read_table(tmp_path)
    assert table["a"].to_pylist() == [1, 2, None, 4, None]
    assert table["extra"].to_pylist() == [None, None, '{"a": "three"}', '{"b": [5]}', None]
    assert [line["a"] for line in open_extraction(tmp_path).manifest()] == [1, 2, "three", 4, None]
    assert list(open_extraction(tmp_path).manifest())[3]["b"] == [5]


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(_parquet_output, "_GROUP_BYTES", 4 * DIM * 5)
    run(tmp_path, format="parquet")
    metadata = pq.ParquetFile(tmp_path / "part-00000.parquet").metadata
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [5, 5, 5, 1]
    assert_holds(tmp_path, range(50))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'skclip\[parquet\]', or use format='npy'"):
        begin(tmp_path / "out", format="parquet")
    assert not (tmp_path / "out").exists()


# --- reading


def test_no_extraction(tmp_path):
    with pytest.raises(OutputError, match="There is no folder"):
        open_extraction(tmp_path / "none")
    with pytest.raises(OutputError, match="There is no extraction in"):
        open_extraction(tmp_path)
    run(tmp_path / "shard-0000-of-0002")
    with pytest.raises(OutputError, match="It holds extractions in shard-0000-of-0002"):
        open_extraction(tmp_path)


@FORMATS
@pytest.mark.parametrize("cut", [0, None])
def test_files_cut_short_or_missing(tmp_path, format, cut):
    run(tmp_path, format=format)
    whole = content(tmp_path)
    for name in whole.keys() - {"extraction.json", "_extraction.json"}:
        if cut is None:
            (tmp_path / name).unlink()
        else:
            os.truncate(tmp_path / name, len(whole[name]) - 1)
        for action in (open_extraction, lambda folder: begin(folder, format=format)):
            with pytest.raises(OutputError, match=f"is damaged: {name} (is missing|has .* bytes instead of)"):
                action(tmp_path)
        (tmp_path / name).write_bytes(whole[name])
    assert_holds(tmp_path, range(50))


def test_damage_inside_the_files(tmp_path):
    run(tmp_path)
    for name, part, read in [
        ("features.npy", (0, b"junk"), lambda e: e.features),
        ("features.npy", (10, npy_header(25, 2 * DIM)[10:]), lambda e: e.features),
        ("manifest.jsonl", (5, b"\n"), lambda e: e.names),
        ("manifest.jsonl", (5, b"\xff"), lambda e: e.names),
        ("failures.jsonl", (0, b"["), lambda e: e.failures),
    ]:
        path = tmp_path / name
        whole = path.read_bytes()
        start, junk = part
        path.write_bytes(whole[:start] + junk + whole[start + len(junk) :])
        with pytest.raises(OutputError, match="is damaged"):
            read(open_extraction(tmp_path))
        path.write_bytes(whole)


def test_damaged_parquet(tmp_path):
    run(tmp_path, format="parquet")
    path = tmp_path / "part-00001.parquet"
    path.write_bytes(bytes(len(path.read_bytes())))
    extraction = open_extraction(tmp_path)
    for read in (lambda: extraction.features, lambda: extraction.names, lambda: list(extraction.manifest())):
        with pytest.raises(OutputError, match=r"part-00001\.parquet' is damaged"):
            read()


def test_committed_rows_that_are_gone(tmp_path):
    with begin(tmp_path) as writer:
        write(writer, range(8))
    os.truncate(tmp_path / "features.npy.part", 140)
    with pytest.raises(OutputError, match=r"features\.npy\.part' is damaged: it has 140 bytes, 224 were committed"):
        begin(tmp_path)
    run(tmp_path, resume=False)
    assert_holds(tmp_path, range(50))


def test_an_extraction_pickles_as_its_folder(tmp_path):
    run(tmp_path)
    extraction = open_extraction(tmp_path)
    np.testing.assert_array_equal(extraction.features[:1], [item(0)[1]])
    pickled = pickle.dumps(extraction)
    assert len(pickled) < 500
    assert pickle.loads(pickled).names == extraction.names


# --- shards


def extract_shards(folder, n_shards, n, **more):
    folders = []
    for i in range(n_shards):
        folders.append(folder / f"shard-{i:04d}-of-{n_shards:04d}")
        settings = {**SETTINGS, "shard": f"{i}/{n_shards}", **more.pop("settings", {})}
        run(folders[-1], numbers=list(range(i, n, n_shards)), settings=settings, **more)
    return folders


@FORMATS
@pytest.mark.parametrize(("n_shards", "n"), [(1, 20), (3, 50), (4, 2), (2, 0)])
def test_shards_come_back_in_the_order_of_the_source(tmp_path, monkeypatch, format, n_shards, n):
    monkeypatch.setattr("skclip.features._outputs._BLOCK", 7)
    folders = [] if n == 0 else None
    if folders is None:
        folders = extract_shards(tmp_path, n_shards, n, format=format)
    else:
        for i in range(n_shards):
            folders.append(tmp_path / str(i))
            with begin(folders[-1], format=format, settings={**SETTINGS, "shard": f"{i}/{n_shards}"}) as writer:
                writer.finish()
    random.Random(0).shuffle(folders)
    merged = merge_extractions(folders, tmp_path / "merged")
    run(tmp_path / "whole", n, format=format, settings={**SETTINGS, "merged_shards": n_shards})
    assert content(tmp_path / "merged") == content(tmp_path / "whole")
    assert (merged.n_rows, merged.format) == (n, format)


def test_shards_of_one_format_can_be_merged_into_another(tmp_path):
    folders = extract_shards(tmp_path, 3, 50)
    assert merge_extractions(folders, tmp_path / "merged", format="parquet", rows_per_file=20).format == "parquet"
    assert_holds(tmp_path / "merged", range(50))


def test_shards_are_not_merged_into_one_of_them(tmp_path):
    folders = extract_shards(tmp_path, 2, 10)
    before = [content(folder) for folder in folders]
    with pytest.raises(OutputError, match="is one of the shards"):
        merge_extractions(folders, folders[1], resume=False)
    assert [content(folder) for folder in folders] == before


def test_an_extraction_is_read_from_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Path("out"), 10)
    extraction = open_extraction("out")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(extraction.names) == len(extraction.features) == 10
    assert pickle.loads(pickle.dumps(extraction)).n_rows == 10


def test_merging_goes_on_and_ends_only_once(tmp_path, monkeypatch):
    monkeypatch.setattr("skclip.features._outputs._BLOCK", 6)
    folders = extract_shards(tmp_path, 2, 50)
    merge_extractions(folders, tmp_path / "whole")
    real, calls = _row_writer.RowWriter.write, []

    def fail(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_row_writer.RowWriter, "write", fail)
        with pytest.raises(KeyboardInterrupt):
            merge_extractions(folders, tmp_path / "cut")
    merge_extractions(folders, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    monkeypatch.setattr(_row_writer.RowWriter, "write", None)
    assert merge_extractions(folders, tmp_path / "cut").n_rows == 50


def test_shards_of_whole_files_follow_each_other(tmp_path):
    for i, numbers in enumerate([range(10), range(10, 13)]):
        settings = {**SETTINGS, "shard": f"{i}/2", "shard_unit": "tar"}
        run(tmp_path / str(i), numbers=list(numbers), settings=settings)
    merge_extractions([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    assert_holds(tmp_path / "merged", range(13))


def test_shards_that_do_not_belong_together(tmp_path):
    first, second, third = extract_shards(tmp_path, 3, 20)
    run(tmp_path / "whole", 20)
    settings = {**SETTINGS, "shard": "2/3"}
    run(tmp_path / "short", numbers=[2, 5], settings=settings)
    run(tmp_path / "model", numbers=[2, 5], settings={**settings, "model": "other"})
    for folders, reason in [
        ([], "no folders"),
        ([first, third], "Of 3 shards 1 are not given: 1"),
        ([first, second, second], "are both shard 1"),
        ([first, tmp_path / "whole"], "is no shard"),
        ([first, second, tmp_path / "model"], "no shards of one extraction: model is 'skclip-tiny' and 'other'"),
        ([first, second, tmp_path / "short"], "shard 0 of 3, has 7 rows; of 16 items it would have 6"),
    ]:
        with pytest.raises(OutputError, match=reason):
            merge_extractions(folders, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
