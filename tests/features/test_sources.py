"""Sources of pictures: what they hold, in which order, and what they say when they cannot be read."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import itertools
import json
import os
import pickle
import sys
import tarfile
import threading
import tracemalloc
import uuid
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image

from skclip._media import MissingPicture, PictureError, RemotePicture, load_item
from skclip.features import _source_folders as folders
from skclip.features._sources import SourceError, SourceItem, open_source

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")


def names(source):
    return [item.name for item in source]


def picture(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 3), colour).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, *files: str) -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(len(name)))
    return folder


# Folders


def test_a_folder_gives_all_pictures_below_it_sorted_part_by_part(tmp_path):
    write(tmp_path, "b/2.jpg", "b/10.PNG", "a.jpg", "a/z.webp", "a/b/c.Tiff", "Z.gif", "é.bmp", "a-b.jpg")
    write(tmp_path, "notes.txt", "b/jpg", ".hidden.jpg", ".git/x.jpg", "b/._2.jpg")
    source = open_source(tmp_path)
    expected = ["Z.gif", "a/b/c.Tiff", "a/z.webp", "a-b.jpg", "a.jpg", "b/10.PNG", "b/2.jpg", "é.bmp"]
    assert names(source) == expected
    assert expected == sorted(expected, key=lambda name: name.split("/"))
    assert names(source) == expected  # once more
    assert source.n_items == 8
    for item in source:
        assert load_item(item.picture) == (tmp_path / item.name).read_bytes()
        assert item.extra == {}


def test_the_order_is_not_that_of_the_file_system(tmp_path, monkeypatch):
    write(tmp_path, *(f"{k % 3}/{k}.jpg" for k in range(30)))
    expected = names(open_source(str(tmp_path)))
    scandir = os.scandir

    class Backwards:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *args):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert names(open_source(str(tmp_path))) == expected


def test_a_folder_may_be_named_like_a_picture_or_a_table(tmp_path):
    write(tmp_path, "x.csv/y.jpg/z.png")
    assert names(open_source(tmp_path / "x.csv")) == ["y.jpg/z.png"]


@needs_links
def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path, "in/a.jpg", "in/deep/b.jpg", "out/c.jpg", "out/more/d.jpg")
    (tmp_path / "in" / "deep" / "up").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out", target_is_directory=True)
    (tmp_path / "out" / "more" / "back").symlink_to(tmp_path / "in" / "deep", target_is_directory=True)
    (tmp_path / "in" / "itself").symlink_to("itself")
    (tmp_path / "in" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    found = names(open_source(tmp_path / "in"))
    # From "in/link/more/back" the walk is in "in/deep", where it was not on this way: its "up" is the circle.
    assert found == ["a.jpg", "deep/b.jpg", "gone.jpg", "link/c.jpg", "link/more/back/b.jpg", "link/more/d.jpg"]
    gone = next(item for item in open_source(tmp_path / "in") if item.name == "gone.jpg")
    with pytest.raises(PictureError, match="no such file"):
        load_item(gone.picture)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_names_that_are_no_text_lead_to_their_files(tmp_path):
    for name in (b"caf\xe9.jpg", b"two\nlines.jpg", b"back\\slash.jpg"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    found = {item.name: load_item(item.picture) for item in open_source(tmp_path)}
    assert found == {os.fsdecode(data): data for data in (b"caf\xe9.jpg", b"two\nlines.jpg", b"back\\slash.jpg")}


def test_a_folder_without_pictures_says_what_was_looked_for(tmp_path):
    write(tmp_path, "a.txt", "b/.c.jpg")
    with pytest.raises(SourceError, match=r"holds no pictures.*\.jpeg.*\.webp"):
        open_source(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write(tmp_path, "a/x.jpg", "locked/x.jpg")
    scandir = os.scandir

    def refuse(path):
        if "locked" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(tmp_path)
    with pytest.raises(SourceError, match=r"locked.*cannot be read: Permission denied"):
        names(source)


def test_a_folder_too_large_to_count_has_no_number(tmp_path, monkeypatch):
    write(tmp_path, *(f"{k}.jpg" for k in range(5)))
    monkeypatch.setattr(folders, "_MOST_COUNTED", 5)
    assert open_source(tmp_path).n_items == 5
    monkeypatch.setattr(folders, "_MOST_COUNTED", 4)
    assert open_source(tmp_path).n_items is None


def test_a_walk_holds_one_folder_at_a_time():
    n_folders, n_files = 100, 300

    def listing(folder):
        if not folder:
            return [f"{k:03d}/" for k in range(n_folders)]
        return [f"picture-{k:032d}.jpg" for k in reversed(range(n_files))]

    tracemalloc.start()
    try:
        n_found = sum(1 for _ in folders._walk(listing))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_found == n_folders * n_files
    assert peak < 300_000  # a list of all names takes more than ten times this


# Lists and iterators


def test_a_list_keeps_its_order_and_names_what_has_no_name(tmp_path):
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    source = open_source(
        ["b.jpg", tmp_path / "a.jpg", picture(3), pixels, ("my name", picture(4)), "https://host/x.jpg"]
    )
    assert names(source) == ["b.jpg", str(tmp_path / "a.jpg"), "2", "3", "my name", "https://host/x.jpg"]
    items = list(source)
    assert items[2].picture == picture(3)
    assert items[3].picture is pixels
    assert items[4].picture == picture(4)
    assert items[5].picture == RemotePicture("https://host/x.jpg")
    assert source.n_items == 6


@pytest.mark.parametrize(
    "make",
    [
        tuple,
        np.array,
        lambda paths: np.array(paths, dtype=object)[:, None],
        pd.Series,
        pl.Series,
        lambda paths: pd.DataFrame({"whatever": paths}),
        lambda paths: pl.DataFrame({"whatever": paths}),
    ],
)
def test_everything_that_is_like_a_list_of_paths(make):
    source = open_source(make(["b.jpg", "a.jpg"]))
    assert [(item.name, item.picture) for item in source] == [("b.jpg", "b.jpg"), ("a.jpg", "a.jpg")]
    assert source.n_items == 2


def test_a_batch_of_pixels():
    batch = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    items = list(open_source(batch))
    assert [item.name for item in items] == ["0", "1"]
    np.testing.assert_array_equal([item.picture for item in items], batch)


def test_a_generator_is_read_as_it_goes_and_once():
    n_asked = itertools.count()
    source = open_source(f"{next(n_asked)}.jpg" for _ in range(10**9))
    assert source.n_items is None
    assert [item.name for item in itertools.islice(source, 3)] == ["0.jpg", "1.jpg", "2.jpg"]
    assert next(n_asked) == 3
    with pytest.raises(SourceError, match="only once"):
        next(iter(source))


def test_an_iterable_of_ones_own_is_read_again():
    class Mine:
        def __iter__(self):
            yield "x", picture(1)
            yield SourceItem("y", picture(2), {"label": 5})

        def __len__(self):
            return 2

    source = open_source(Mine())
    assert names(source) == names(source) == ["x", "y"]
    assert source.n_items == 2
    assert [item.extra for item in source] == [{}, {"label": 5}]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (7, r"Item 1 of the source is an int; a picture is a path"),
        (None, r"Item 1 of the source is None"),
        ((picture(1), 3), r"Item 1 of the source is a tuple of 2: \(bytes, int\); .* or \(name, picture\)"),
        (np.zeros((4, 4, 3)), r"Item 1 of the source holds float64 pixels; uint8 is expected"),
        (("name", np.zeros((3, 4), dtype=int)), r"Item 1 of the source holds int64 pixels"),
    ],
)
def test_what_is_no_picture_is_named_by_its_position(bad, message):
    with pytest.raises(SourceError, match=message):
        open_source(["a.jpg", bad])
    items = iter(open_source(iter(["a.jpg", bad])))
    assert next(items).name == "a.jpg"
    with pytest.raises(SourceError, match=message):
        next(items)


@pytest.mark.parametrize(
    ("make", "lines"),
    [
        (io.StringIO, "a.jpg\nb c.jpg\n\nhttps://host/x.jpg"),
        (io.BytesIO, b"a.jpg\r\nb c.jpg\r\nhttps://host/x.jpg\r\n"),
        (io.BytesIO, b"a.jpg\0b c.jpg\0https://host/x.jpg\0"),
        (io.StringIO, "a.jpg\0b c.jpg\0\0https://host/x.jpg"),
    ],
)
def test_lines_of_an_open_file(make, lines):
    source = open_source(make(lines))
    assert [item.picture for item in source] == ["a.jpg", "b c.jpg", RemotePicture("https://host/x.jpg")]
    assert source.n_items is None


def test_names_of_any_length_and_content_come_through_an_open_file():
    long = "x" * 200_000
    assert names(open_source(io.StringIO(f"{long}\nb\n"))) == [long, "b"]
    assert names(open_source(io.BytesIO(f"{long}\0two\nlines\0".encode()))) == [long, "two\nlines"]
    for end in "\n\0":  # letters of two bytes, of which some lie across the ends of blocks
        paths = [f"{'é' * k}.jpg" for k in range(500)]
        assert names(open_source(io.BytesIO((end.join(paths) + end).encode()))) == paths
    assert names(open_source(io.BytesIO(b"\0two\nlines\0b\0"))) == ["two\nlines", "b"]
    assert names(open_source(io.BytesIO(b"caf\xe9\n"))) == [os.fsdecode(b"caf\xe9")]
    with pytest.raises(SourceError, match="lines first and then a NUL"):
        names(open_source(io.BytesIO(b"two\nlines\0b\0")))


def test_lines_are_passed_on_before_the_input_ends():
    end_to_read, end_to_write = os.pipe()
    with os.fdopen(end_to_read, "rb") as readable, os.fdopen(end_to_write, "wb", buffering=0) as writable:
        writable.write(b"a.jpg\n")
        items = iter(open_source(readable))
        assert next(items).name == "a.jpg"
        writable.write(b"b.jpg\n")
        assert next(items).name == "b.jpg"


def test_a_dash_is_the_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.jpg\nb.jpg\n")))
    assert names(open_source("-")) == ["a.jpg", "b.jpg"]


# Tables


def write_table(path: Path, rows: list[dict]) -> Path:
    suffix = path.name.partition(".")[2]
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        pd.DataFrame(rows).to_parquet(path)
        return path
    text = io.StringIO()
    if suffix.startswith("jsonl"):
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if suffix.startswith("tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    return path


ROWS = [
    {"id": 1, "image_path": "b.jpg", "text": 'a "quoted, word"\nand a line'},
    {"id": 2, "image_path": "https://host/x.jpg", "text": "é"},
    {"id": 3, "image_path": os.path.abspath(os.path.join(os.sep, "c.jpg")), "text": ""},
]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "jsonl", "jsonl.gz", "parquet"])
def test_a_table_gives_its_pictures_and_the_other_columns(tmp_path, suffix):
    source = open_source(write_table(tmp_path / f"table.{suffix}", ROWS))
    items = list(source)
    assert [item.name for item in items] == [row["image_path"] for row in ROWS]
    assert [item.picture for item in items] == [
        os.path.join(tmp_path, "b.jpg"),
        RemotePicture("https://host/x.jpg"),
        ROWS[2]["image_path"],
    ]
    ids = ["1", "2", "3"] if suffix.startswith(("csv", "tsv")) else [1, 2, 3]
    assert [item.extra for item in items] == [{"id": i, "text": row["text"]} for i, row in zip(ids, ROWS)]
    assert source.n_items == 3
    assert list(source) == items
    assert "image_path" in source.describe()
    assert list(pickle.loads(pickle.dumps(source))) == items


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_column_can_be_chosen(tmp_path, suffix):
    table = write_table(tmp_path / f"table.{suffix}", [{"path": "a.jpg", "thumb": "b.jpg"}])
    assert names(open_source(table)) == ["a.jpg"]
    (item,) = open_source(table, column="thumb")
    assert (item.name, item.extra) == ("b.jpg", {"path": "a.jpg"})
    with pytest.raises(SourceError, match=r"no column 'pic'.*\['path', 'thumb'\]"):
        open_source(table, column="pic")


def test_the_first_known_column_counts_in_capitals_too(tmp_path):
    assert names(open_source(write_table(tmp_path / "a.csv", [{"URL": "u", "TEXT": "t"}]))) == ["u"]
    assert names(open_source(write_table(tmp_path / "b.csv", [{"url": "u", "filename": "f"}]))) == ["f"]
    with pytest.raises(SourceError, match=r"known to hold pictures: \['pic', 'label'\].*column="):
        open_source(write_table(tmp_path / "c.csv", [{"pic": "u", "label": "f"}]))


def test_rows_without_a_picture_are_kept_with_a_reason(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeffpath,label\na.jpg,1\n\n,2\nb.jpg,3,4\nc.jpg\n", encoding="utf-8")
    items = list(open_source(tmp_path / "t.csv"))
    assert [item.name for item in items] == ["a.jpg", "1", "b.jpg", "c.jpg"]
    assert items[1] == SourceItem("1", MissingPicture("the column 'path' is empty here"), {"label": "2"})
    assert "3 fields, the first line of the table 2" in items[2].picture.reason
    assert "1 fields" in items[3].picture.reason

    write_table(tmp_path / "t.jsonl", [{"path": "a.jpg"}, {"path": None}, {"other": 1}, {"path": 5}])
    items = list(open_source(tmp_path / "t.jsonl"))
    assert [item.name for item in items] == ["a.jpg", "1", "2", "3"]
    assert "holds an int here" in items[3].picture.reason
    assert items[2].extra == {"other": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"path,path\na,b\n", "columns of one name"),
        ("t.csv", b'path\n"' + b"x" * 200_000, r"line 2: field larger than field limit"),
        ("t.csv.gz", gzip.compress(b"path\n" + os.urandom(5000).hex().encode())[:-200], "cannot be read"),
        ("t.jsonl", b"", "is empty"),
        ("t.jsonl", b'{"path": "a"}\n{"pa', "Line 2 .* is not JSON"),
        ("t.jsonl", b'{"path": "a"}\n[1]\n', "Line 2 .* is a list"),
        ("t.parquet", b"PAR1 or not", "cannot be read"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        list(open_source(tmp_path / name))


@pytest.mark.parametrize("as_struct", [False, True])
def test_a_parquet_column_of_encoded_pictures(tmp_path, as_struct):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    cells = [picture(k) for k in range(3)]
    if as_struct:
        cells = [
            {"bytes": cells[0], "path": "x.png"},
            {"bytes": None, "path": "y.png"},
            {"bytes": cells[2], "path": None},
        ]
    table = pa.table({"mask": [b"m"] * 3, "image": cells, "label": [5, 6, 7]})
    parquet.write_table(table, tmp_path / "t.parquet")
    items = list(open_source(tmp_path / "t.parquet"))
    assert [item.extra for item in items] == [{"label": 5}, {"label": 6}, {"label": 7}]  # bytes are no column of a list
    if as_struct:
        assert [item.name for item in items] == ["x.png", "y.png", "2"]
        assert [item.picture for item in items] == [picture(0), os.path.join(tmp_path, "y.png"), picture(2)]
    else:
        assert [(item.name, item.picture) for item in items] == [(str(k), picture(k)) for k in range(3)]


def test_a_parquet_table_is_read_piece_by_piece(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    cell = np.random.default_rng(0).bytes(20_000)
    schema = pa.schema([("image", pa.binary())])
    with parquet.ParquetWriter(tmp_path / "t.parquet", schema, use_dictionary=False, write_batch_size=64) as writer:
        writer.write_table(pa.table({"image": [cell] * 2000}))
    assert parquet.read_metadata(tmp_path / "t.parquet").num_row_groups == 1
    before = pa.total_allocated_bytes()
    most = 0
    tracemalloc.start()  # what is read from a file object is Python's memory, what becomes of it is Arrow's
    try:
        for item in open_source(tmp_path / "t.parquet"):
            assert len(item.picture) == 20_000
            most = max(most, pa.total_allocated_bytes() - before)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most + peak < 15_000_000  # of 40 million


def test_tables_of_one_pattern_follow_each_other(tmp_path):
    for part in range(3):
        write_table(tmp_path / f"part-{part}.csv", [{"path": f"{part}{k}.jpg"} for k in range(2)])
    source = open_source(str(tmp_path / "part-*.csv"))
    assert names(source) == ["00.jpg", "01.jpg", "10.jpg", "11.jpg", "20.jpg", "21.jpg"]
    assert source.n_items == 6
    assert names(open_source(str(tmp_path / "part-{1..2}.csv"))) == names(source)[2:]
    assert names(open_source([tmp_path / "part-2.csv", tmp_path / "part-0.csv"])) == [
        "20.jpg",
        "21.jpg",
        "00.jpg",
        "01.jpg",
    ]


@pytest.mark.parametrize("library", [pd, pl])
def test_a_data_frame_is_a_table(library):
    frame = library.DataFrame(
        {
            "label": [1, 2, 3],
            "path": ["a.jpg", None, "c.jpg"],
            "score": [0.5, float("nan"), float("inf")],
            "near": [[1, 2], [3, 4], [5, 6]],
            "when": [pd.Timestamp(2020, 1, day + 1).to_pydatetime() for day in range(3)],
        }
    )
    source = open_source(frame)
    items = list(source)
    assert [item.name for item in items] == ["a.jpg", "1", "c.jpg"]
    assert isinstance(items[1].picture, MissingPicture)
    assert [item.extra["score"] for item in items] == [0.5, None, None]
    assert items[0].extra["when"] == "2020-01-01T00:00:00"
    assert [item.extra["label"] for item in items] == [1, 2, 3]
    assert items[2].extra["near"] == [5, 6]
    json.dumps([item.extra for item in items], allow_nan=False)
    assert source.n_items == 3
    with pytest.raises(SourceError, match="no column 'x' in the DataFrame"):
        open_source(frame, column="x")


# Tar shards


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def shard_members(start: int, n: int) -> dict[str, bytes]:
    members = {}
    for k in range(start, start + n):
        members[f"set/{k:04d}.jpg"] = picture(k)
        members[f"set/{k:04d}.json"] = json.dumps({"k": k}).encode()
        members[f"set/{k:04d}.txt"] = f"number {k} é".encode()
        members[f"set/{k:04d}.cls"] = str(k).encode()
        members[f"set/{k:04d}.npy"] = b"\x93NUMPY"
    return members


@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.xz", "w:xz")])
def test_a_tar_shard_gives_pictures_by_key(tmp_path, suffix, mode):
    source = open_source(write_tar(tmp_path / f"s.{suffix}", shard_members(0, 3), mode))
    items = list(source)
    assert [item.name for item in items] == ["set/0000", "set/0001", "set/0002"]
    assert [item.picture for item in items] == [picture(k) for k in range(3)]
    assert items[1].extra == {"json": {"k": 1}, "txt": "number 1 é", "cls": "1"}
    assert list(source) == items
    assert source.n_items is None


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_every_dialect_with_long_names_folders_and_links(tmp_path, format):
    long = "d" * 90 + "/" + "é" * 40
    with tarfile.open(tmp_path / "s.tar", "w", format=format) as tar:
        folder = tarfile.TarInfo("d" * 90)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in (f"{long}.png", f"{long}.txt"):
            header = tarfile.TarInfo(name)
            header.size = len(picture(1))
            tar.addfile(header, io.BytesIO(picture(1)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "x.png"
        tar.addfile(link)
    (item,) = open_source(tmp_path / "s.tar")
    assert (item.name, item.picture) == (long, picture(1))


def test_tar_shards_are_read_as_webdataset_reads_them(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    members = {"__meta__/x.json": b"{}", "readme": b"no suffix", **shard_members(0, 4)}
    members["a.b/c.JPG"] = picture(9)
    members["a.b/c.seg.png"] = picture(10)
    members["only.text.txt"] = b"no picture"
    members["set/0001.png"] = picture(11)  # a key that comes back is a new sample
    write_tar(tmp_path / "s-000.tar", members)
    write_tar(tmp_path / "s-001.tar", {"only.jpg": picture(12), **shard_members(7, 2)})
    pattern = str(tmp_path / "s-{000..001}.tar").replace("\\", "/")
    theirs = list(webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False))
    ours = list(open_source(pattern))
    assert [item.name for item in ours] == [sample["__key__"] for sample in theirs]
    for item, sample in zip(ours, theirs):
        pictures = [sample[suffix] for suffix in ("jpg", "png") if suffix in sample]
        if pictures:
            assert item.picture == pictures[0]
        else:
            assert item.name == "only"
            assert item.picture == MissingPicture("the tar shard has no picture of this key, only .text.txt")
            assert item.extra == {"text.txt": "no picture"}


def test_the_member_can_be_chosen_where_a_key_has_several_pictures(tmp_path):
    tar = write_tar(
        tmp_path / "s.tar", {"a.jpg": picture(1), "a.png": picture(2), "a.seg.png": picture(3), "b.jpg": b"x"}
    )
    with pytest.raises(SourceError, match=r"several pictures of the key 'a'.*\.jpg and \.png.*column='jpg'"):
        list(open_source(tar))
    assert [item.picture for item in open_source(tar, column="seg.png")] == [
        picture(3),
        MissingPicture("the tar shard has no member .seg.png of this key, only .jpg"),
    ]
    # One picture is enough, however its suffix goes on before the last dot.
    (item,) = open_source(write_tar(tmp_path / "t.tar", {"a.large.png": picture(4), "a.txt": b"t"}))
    assert item.picture == picture(4)


def test_text_that_is_too_long_or_no_json_is_no_reason_to_fail(tmp_path):
    members = {"a.jpg": picture(1), "a.txt": b"x" * (2**16 + 1), "a.json": b"{not", "a.cls": b"\xff"}
    (item,) = open_source(write_tar(tmp_path / "s.tar", members))
    assert item.extra == {"json": "{not", "cls": "\ufffd"}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_cut_tar_gives_its_whole_samples_and_then_says_where_it_ends(tmp_path, suffix):
    members = {f"{k}.jpg": np.random.default_rng(k).bytes(3000) for k in range(20)}
    whole = write_tar(tmp_path / f"whole.{suffix}", members, "w:gz" if suffix.endswith("gz") else "w").read_bytes()
    expected = {name.removesuffix(".jpg"): data for name, data in members.items()}
    member = 512 + 3072
    for cut in (1, 300, 511, 512, 512 + 1500, member, member * 7 + 100, member * 20 - 80, member * 20 - 1, member * 20):
        tar = tmp_path / f"cut.{suffix}"
        tar.write_bytes(whole[: min(cut, len(whole) - 1)])
        found: list[SourceItem] = []
        with pytest.raises(SourceError, match=r"cut\.tar.*(last whole member is '\d+\.jpg'|no member could be read)"):
            found += open_source(tar)  # what came before the error is there
        assert {item.name: item.picture for item in found}.items() <= expected.items()
        if suffix == "tar":
            n_whole = sum(member * k + 512 + 3000 <= cut for k in range(20))
            assert len(found) == max(0, n_whole - 1)  # more might have belonged to the last


def test_a_damaged_tar_is_not_taken_for_its_end(tmp_path):
    data = bytearray(write_tar(tmp_path / "s.tar", {f"{k}.jpg": bytes(600) for k in range(9)}).read_bytes())
    data[1536 * 4 + 3] ^= 0xFF  # the fifth header
    (tmp_path / "s.tar").write_bytes(data)
    with tarfile.open(tmp_path / "s.tar") as tar:
        assert len(tar.getnames()) < 9  # and not a word about it
    with pytest.raises(SourceError, match=r"bad checksum.*last whole member is '3\.jpg'"):
        list(open_source(tmp_path / "s.tar"))


def test_a_damaged_gzip_is_noticed_though_all_members_can_be_read(tmp_path):
    tar = write_tar(tmp_path / "s.tar.gz", {f"{k}.jpg": picture(k) for k in range(9)}, "w:gz")
    data = bytearray(tar.read_bytes())
    data[-6] ^= 0xFF  # of the sum at the end
    tar.write_bytes(data)
    with pytest.raises(SourceError, match="CRC"):
        list(open_source(tar))


def test_tars_strung_together_are_refused_rather_than_cut_off(tmp_path):
    first, second = (write_tar(tmp_path / f"{k}.tar", {f"{k}.jpg": picture(k)}).read_bytes() for k in range(2))
    (tmp_path / "both.tar").write_bytes(first + second)
    with pytest.raises(SourceError, match="more data follows"):
        list(open_source(tmp_path / "both.tar"))
    # Two gzip members are one file.
    (tmp_path / "both.tar.gz").write_bytes(gzip.compress(first[:700]) + gzip.compress(first[700:]))
    assert names(open_source(tmp_path / "both.tar.gz")) == ["0"]


def test_a_tar_of_many_members_takes_little_memory(tmp_path):
    write_tar(tmp_path / "s.tar", {f"{k:05d}.jpg": b"x" * 100 for k in range(1500)})
    next(iter(open_source(tmp_path / "s.tar")))  # what is loaded on first use does not count
    tracemalloc.start()
    try:
        n_items = sum(1 for _ in open_source(tmp_path / "s.tar"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_items == 1500
    assert peak < 300_000  # with the headers of all members it is several times that


# Hugging Face datasets


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


def picture_dataset(datasets):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "tags": datasets.List(datasets.Value("string")),
            "raw": datasets.Value("binary"),
        }
    )
    rows = [
        {"image": {"bytes": picture(0), "path": "x.png"}, "label": 0, "tags": ["a"], "raw": b"r"},
        {"image": {"bytes": picture(1), "path": None}, "label": 1, "tags": [], "raw": b"r"},
        {"image": None, "label": 1, "tags": ["b", "c"], "raw": b"r"},
        {"image": {"bytes": None, "path": "elsewhere.png"}, "label": 0, "tags": [], "raw": b"r"},
    ]
    return datasets.Dataset.from_list(rows, features=features)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hugging_face_dataset(datasets, streaming):
    dataset = picture_dataset(datasets).with_format("numpy")
    source = open_source(dataset.to_iterable_dataset() if streaming else dataset)
    items = list(source)
    assert [item.name for item in items] == ["x.png", "1", "2", "elsewhere.png"]
    assert [item.picture for item in items[:2]] == [picture(0), picture(1)]
    assert isinstance(items[2].picture, MissingPicture)
    assert items[3].picture == "elsewhere.png"
    assert items[2].extra == {"label": 1, "tags": ["b", "c"]}
    assert source.n_items == (None if streaming else 4)
    assert list(source) == items


@pytest.mark.parametrize("streaming", [False, True])
def test_shards_of_a_dataset(datasets, streaming):
    dataset = picture_dataset(datasets)
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    whole = list(open_source(dataset))
    assert list(open_source(dataset, shard=(1, 3))) == whole[1::3]
    assert list(open_source(dataset, shard=(0, 3))) == whole[0::3]


def test_columns_of_a_dataset(datasets):
    paths = datasets.Dataset.from_dict({"filename": ["a.jpg", "https://host/x.jpg"], "n": [1, 2]})
    assert [item.picture for item in open_source(paths)] == ["a.jpg", RemotePicture("https://host/x.jpg")]
    two = picture_dataset(datasets)
    two = two.add_column("other", [picture(5)] * 4).cast_column("other", datasets.Image())
    with pytest.raises(SourceError, match=r"several columns of pictures, \['image', 'other'\]"):
        open_source(two)
    items = list(open_source(two, column="other"))
    assert items[0].picture == picture(5)
    assert set(items[0].extra) == {"label", "tags"}
    with pytest.raises(SourceError, match="no column 'pic' in the Dataset"):
        open_source(two, column="pic")


def test_a_dictionary_of_splits_is_no_source(datasets):
    with pytest.raises(SourceError, match="DatasetDict"):
        open_source(datasets.DatasetDict({"train": picture_dataset(datasets)}))


# URLs


@pytest.fixture
def memory():
    fsspec = pytest.importorskip("fsspec")
    folder = f"/{uuid.uuid4().hex}"
    filesystem = fsspec.filesystem("memory")
    filesystem.makedirs(folder)
    yield f"memory:/{folder}", filesystem
    filesystem.rm(folder, recursive=True)


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_elsewhere_is_walked_like_one_here(memory, tmp_path, end):
    url, filesystem = memory
    files = ["b/2.jpg", "b/10.PNG", "a.jpg", "a/z.webp", "a-b.jpg", "notes.txt", "b/.h.jpg", ".git/x.jpg"]
    write(tmp_path, *files)
    for name in files:
        filesystem.pipe(f"{url}/{name}", (tmp_path / name).read_bytes())
    source = open_source(url + end)
    assert names(source) == names(open_source(tmp_path))
    for item in source:
        assert item.picture == RemotePicture(f"{url}/{item.name}")
        assert load_item(item.picture) == (tmp_path / item.name).read_bytes()
    assert names(open_source(url, shard=(1, 2))) == names(source)[1::2]


def test_a_folder_in_an_archive_elsewhere(memory, tmp_path):
    import zipfile

    url, filesystem = memory
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("in/b.png", picture(1))
        archive.writestr("in/deep/a.png", picture(2))
    filesystem.pipe(f"{url}/x.zip", file.getvalue())
    items = list(open_source(f"zip://in::{url}/x.zip"))
    assert [item.name for item in items] == ["b.png", "deep/a.png"]
    assert [load_item(item.picture) for item in items] == [picture(1), picture(2)]
    assert names(open_source(f"zip://::{url}/x.zip")) == ["in/b.png", "in/deep/a.png"]


def test_tables_and_shards_elsewhere(memory, tmp_path):
    url, filesystem = memory
    filesystem.pipe(f"{url}/pics/a.png", picture(1))
    filesystem.pipe(f"{url}/table.csv", b"path,label\npics/a.png,x\nhttps://host/x.jpg,y\n")
    items = list(open_source(f"{url}/table.csv"))
    assert [item.name for item in items] == ["pics/a.png", "https://host/x.jpg"]
    assert load_item(items[0].picture) == picture(1)
    for k in range(3):
        tar = write_tar(tmp_path / "x.tar.gz", shard_members(10 * k, 2), "w:gz")
        filesystem.pipe(f"{url}/s-{k:02d}.tar.gz", tar.read_bytes())
    expected = [f"set/{k:04d}" for k in (0, 1, 10, 11, 20, 21)]
    assert names(open_source(f"{url}/s-{{00..02}}.tar.gz")) == expected
    assert names(open_source(f"{url}/s-*.tar.gz")) == expected
    assert names(open_source([f"{url}/s-02.tar.gz", f"{url}/s-00.tar.gz"])) == expected[4:] + expected[:2]
    with pytest.raises(SourceError, match=r"s-03.tar.gz' cannot be read.*no member could be read"):
        names(open_source(f"{url}/s-03.tar.gz"))
    if pytest.importorskip("pyarrow"):
        write_table(tmp_path / "t.parquet", [{"path": "pics/a.png", "label": 3}])
        filesystem.pipe(f"{url}/t.parquet", (tmp_path / "t.parquet").read_bytes())
        (item,) = open_source(f"{url}/t.parquet")
        assert (load_item(item.picture), item.extra) == (picture(1), {"label": 3})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing/there/", "cannot be read: there is no such file"),
        ("memory://nothing/there.csv", "cannot be read: there is no such file"),
        ("memory://x/a.jpg", "single picture"),
        ("https://host/folder/", "cannot be listed over http"),
        ("htps://host/folder", "Protocol not known"),
    ],
)
def test_urls_that_are_no_source(url, message):
    pytest.importorskip("fsspec")
    with pytest.raises(SourceError, match=message):
        list(open_source(url))


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_tables_and_shards_over_http(tmp_path):
    pytest.importorskip("aiohttp")
    write(tmp_path, "pics/a.png")
    write_table(tmp_path / "t.csv", [{"path": "pics/a.png", "label": "x"}, {"path": "pics/b.png", "label": "y"}])
    write_tar(tmp_path / "s.tar", shard_members(0, 3))
    write_tar(tmp_path / "s.tgz", shard_members(5, 3), "w:gz")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        items = list(open_source(f"{url}/t.csv?signed=by/me*"))
        assert [item.extra["label"] for item in items] == ["x", "y"]
        assert load_item(items[0].picture) == (tmp_path / "pics" / "a.png").read_bytes()
        with pytest.raises(PictureError, match="no such file"):
            load_item(items[1].picture)
        assert list(open_source(f"{url}/s.tar")) == list(open_source(tmp_path / "s.tar"))
        assert list(open_source(f"{url}/s.tgz?x=1")) == list(open_source(tmp_path / "s.tgz"))
        with pytest.raises(SourceError, match=r"none\.tar"):
            list(open_source(f"{url}/none.tar"))
        with pytest.raises(SourceError, match=r"none\.csv"):
            list(open_source(f"{url}/none.csv"))
        server.shutdown()
        thread.join()


def test_a_missing_package_is_an_error_of_the_whole_source(monkeypatch):
    monkeypatch.setattr(
        "skclip._media._remote._require_protocol", lambda protocol: (_ for _ in ()).throw(ImportError("x"))
    )
    with pytest.raises(ImportError):
        list(open_source(["https://host/a.jpg"]))


# Shards and errors


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_shards_are_disjoint_and_complete(tmp_path, n):
    write(tmp_path, *(f"{k:02d}.jpg" for k in range(11)))
    table = write_table(tmp_path / "t.csv", [{"path": f"{k}.jpg"} for k in range(11)])
    for given in (tmp_path, table, [picture(k) for k in range(11)]):
        whole = list(open_source(given))
        shards = [open_source(given, shard=(i, n)) for i in range(n)]
        for i, shard in enumerate(shards):
            assert list(shard) == whole[i::n]
            assert shard.n_items == len(whole[i::n])
        assert n == 1 or "shard 1 of" in shards[1].describe()


def test_shards_of_tars_are_whole_tars_where_there_are_enough(tmp_path):
    for k in range(4):
        write_tar(tmp_path / f"s-{k}.tar", shard_members(10 * k, 3))
    pattern = str(tmp_path / "s-{0..3}.tar")
    whole = names(open_source(pattern))
    assert names(open_source(pattern, shard=(1, 3))) == whole[3:6]
    assert names(open_source(pattern, shard=(0, 3))) == whole[0:3] + whole[9:12]
    assert names(open_source(pattern, shard=(2, 5))) == whole[2::5]


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (1,), 3, ("0", "1"), (0.0, 1), None])
def test_a_shard_that_is_none(shard):
    with pytest.raises(SourceError, match="shard="):
        open_source(["a.jpg"], shard=shard)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, r"The source is an int\. Possible are: a folder"),
        (None, "The source is None"),
        ({"a.jpg"}, "The source is a set"),
        ({"name": "a.jpg"}, r"The source is a dict\. Pass list\(source.items\(\)\)"),
        ([], "holds no pictures"),
        (np.zeros((2, 4, 4, 3)), "float64 pixels"),
        (np.zeros((4, 4, 3), dtype=np.uint8), "single array"),
        (picture(1), "single picture"),
        (Image.new("L", (3, 3)), "single picture"),
        ("no/such/folder", "There is nothing at 'no/such/folder'"),
        ("", "There is nothing at ''"),
        ("no/such/*.tar", "There is nothing at"),
        ("no/such-{0..1}.tar", "There is no file 'no/such-0.tar'"),
    ],
)
def test_what_is_no_source(source, message):
    with pytest.raises(SourceError, match=message):
        open_source(source)


def test_files_that_are_no_source(tmp_path):
    write(tmp_path, "a.jpg", "notes.docx", "b.csv")
    with pytest.raises(SourceError, match=r"is a single picture; pass a list, \['"):
        open_source(tmp_path / "a.jpg")
    with pytest.raises(SourceError, match=r"notes\.docx' is no source"):
        open_source(tmp_path / "notes.docx")
    with pytest.raises(SourceError, match="not all of one kind"):
        open_source(str(tmp_path / "*"))
    assert names(open_source(str(tmp_path / "*.jpg"))) == [str(tmp_path / "a.jpg")]


@pytest.mark.parametrize("source", [["a.jpg"], iter(["a.jpg"]), Path()])
def test_a_column_is_refused_where_there_is_none(source):
    with pytest.raises(SourceError, match="column='x' belongs to tables"):
        open_source(source, column="x")


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("s-{008..011}.tar", ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]),
        ("s-{9..11}.tar", ["s-9.tar", "s-10.tar", "s-11.tar"]),
        ("{train,val}-{0..1}.tar", ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]),
        ("s-{x}.tar", ["s-{x}.tar"]),
    ],
)
def test_braces(tmp_path, pattern, files):
    for file in files:
        write_tar(tmp_path / file, {f"{file.partition('.')[0]}.jpg": picture(1)})
    assert names(open_source(str(tmp_path / pattern))) == [file.partition(".")[0] for file in files]
