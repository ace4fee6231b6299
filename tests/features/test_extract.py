"""`extract` as a whole; its parts - sources, outputs, devices - have files of their own."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from skclip.datasets import make_picture_world
from skclip.features import (
    CLIPFeatures,
    CLIPLayerStatistics,
    DenseCLIPFeatures,
    OutputError,
    PictureError,
    extract,
    merge_extractions,
    open_extraction,
)
from skclip.features import _extract as module

TINY = CLIPFeatures("skclip-tiny", store=None)


@pytest.fixture(scope="module")
def pictures():
    return list(make_picture_world(11, random_state=3).images)


@pytest.fixture(scope="module")
def expected(pictures):
    return TINY.transform(pictures)


@pytest.fixture
def folder(pictures, tmp_path):
    folder = tmp_path / "photos"
    for i, picture in enumerate(pictures):
        (folder / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / str(i % 2) / f"{i:02d}.png")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("skclip.features._extraction._CPU_BLOCK", 4)
    monkeypatch.setattr("skclip.features._extraction._LANE_PICTURES", 1)


def run(source, out, features=TINY, **options):
    return extract(source, out, features, **{"verbose": 0, **options})


def interrupted(pictures):
    yield from pictures[:9]
    raise KeyboardInterrupt


@pytest.mark.usefixtures("small_blocks")
def test_rows_are_those_of_transform(pictures, expected, folder, out):
    done = run(folder, out)
    order = [*range(0, 11, 2), *range(1, 11, 2)]
    assert done.names == [f"{i % 2}/{i:02d}.png" for i in order]
    np.testing.assert_allclose(done.features, expected[order], atol=1e-6)
    assert isinstance(done.features, np.memmap)
    np.testing.assert_array_equal(np.load(out / "features.npy"), done.features)
    assert not list(out.glob("*.part"))


@pytest.mark.parametrize("wrap", [list, iter, np.stack, lambda pictures: ((str(i), p) for i, p in enumerate(pictures))])
def test_sources_of_pictures_in_memory(pictures, expected, out, wrap):
    done = run(wrap(pictures), out)
    assert done.names == [str(i) for i in range(11)]
    np.testing.assert_allclose(done.features, expected, atol=1e-6)


def test_places_are_flattened(pictures, out):
    dense = DenseCLIPFeatures("skclip-tiny", store=None)
    done = run(pictures[:3], out, dense)
    np.testing.assert_allclose(done.features, dense.transform(pictures[:3]).reshape(3, -1), atol=1e-6)


def test_statistics_of_layers(pictures, out):
    layers = CLIPLayerStatistics("skclip-tiny", store=None)
    np.testing.assert_allclose(run(pictures[:3], out, layers).features, layers.transform(pictures[:3]), atol=1e-5)


def test_raw_rows(pictures, out):
    raw = CLIPFeatures("skclip-tiny", store=None, normalize=False)
    np.testing.assert_allclose(run(pictures, out, raw).features, raw.transform(pictures), atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
def test_unreadable_pictures_are_rows_of_nan_and_listed(folder, out):
    (folder / "0" / "04.png").write_bytes(b"")
    (folder / "1" / "09.png").write_bytes(b"no picture")
    done = run(folder, out)
    assert [(row, name) for row, name, _ in done.failures] == [(2, "0/04.png"), (10, "1/09.png")]
    assert "empty" in done.failures[0][2]
    assert np.flatnonzero(np.isnan(done.features).any(axis=1)).tolist() == [2, 10]
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(11))
    assert [line["row"] for line in lines if "error" in line] == [2, 10]


@pytest.mark.usefixtures("small_blocks")
def test_raises_at_the_first_unreadable_picture_and_goes_on_when_it_is_mended(pictures, expected, folder, out):
    good = (folder / "1" / "05.png").read_bytes()
    (folder / "1" / "05.png").write_bytes(b"")
    with pytest.raises(PictureError, match=r"Row 8, '1/05.png': .*empty"):
        run(folder, out, on_error="raise")
    with pytest.raises(OutputError, match="8 rows"):
        open_extraction(out)
    (folder / "1" / "05.png").write_bytes(good)
    done = run(folder, out, on_error="raise")
    np.testing.assert_allclose(done.features, expected[[*range(0, 11, 2), *range(1, 11, 2)]], atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_an_interrupted_run_is_resumed_to_the_same_bytes(pictures, out, tmp_path):
    whole = run(pictures, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(interrupted(pictures), out)
    done = run(iter(pictures), out)
    for file in whole.folder.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    assert done.n_rows == 11


@pytest.mark.usefixtures("small_blocks")
def test_a_machine_of_more_cores_goes_on_with_the_blocks_that_were_begun(pictures, out, tmp_path, monkeypatch):
    whole = run(pictures, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(interrupted(pictures), out)
    monkeypatch.setattr("skclip.features._extraction.n_lanes", lambda: 6)
    assert run(iter(pictures), tmp_path / "more").settings["block"] == 6
    done = run(iter(pictures), out)
    assert done.settings["block"] == 4
    assert (out / "features.npy").read_bytes() == (whole.folder / "features.npy").read_bytes()


def test_a_finished_extraction_is_not_made_again(folder, out, monkeypatch):
    first = run(folder, out)
    before = (out / "features.npy").stat().st_mtime_ns
    monkeypatch.setattr(module, "encode_blocks", None)
    again = run(folder, out)
    assert again.names == first.names
    assert (out / "features.npy").stat().st_mtime_ns == before


@pytest.mark.parametrize("verbose", [0, 1])
def test_pictures_are_counted_for_the_bar_only(folder, out, verbose, monkeypatch):
    counted = []
    monkeypatch.setattr("skclip.features._source_folders._count", lambda listing: counted.append(11) or 11)
    run(folder, out, verbose=verbose)
    assert len(counted) == verbose


def test_other_settings_and_other_pictures_are_refused(folder, out):
    run(folder, out)
    with pytest.raises(OutputError, match="normalize"):
        run(folder, out, CLIPFeatures("skclip-tiny", normalize=False))
    with pytest.raises(OutputError, match="pixels"):
        run(folder, out, CLIPFeatures("skclip-tiny", decode="fast"))
    (folder / "0" / "00.png").rename(folder / "0" / "03.png")
    with pytest.raises(OutputError, match=r"Row 0 .*'0/00.png'.*'0/02.png'"):
        run(folder, out)
    assert run(folder, out, resume=False).names[1] == "0/03.png"


def test_batch_size_is_that_of_the_first_run(folder, out):
    assert run(folder, out).settings["batch_size"] == 16
    assert run(folder, out, CLIPFeatures("skclip-tiny", batch_size=5)).settings["batch_size"] == 16


def test_a_measured_batch_size_is_kept_for_the_run(folder, out, monkeypatch):
    monkeypatch.setattr(module, "_CPU_BATCH", "auto")
    assert run(folder, out).settings["batch_size"] == TINY.load_backbone().picture_batch_size


def test_tar_files_are_shared_out_whole(pictures, tmp_path, out):
    for k in range(2):
        for i, picture in enumerate(pictures[4 * k : 4 * k + 4]):
            Image.fromarray(picture).save(tmp_path / f"{i}.png")
        with tarfile.open(tmp_path / f"part-{k}.tar", "w") as tar:
            for i in range(4):
                tar.add(tmp_path / f"{i}.png", f"{k}{i}.png")
    parts = [run(str(tmp_path / "part-{0..1}.tar"), out, shard=(i, 2)).folder for i in range(2)]
    whole = merge_extractions(parts, out / "whole")
    assert whole.names == ["00", "01", "02", "03", "10", "11", "12", "13"]
    np.testing.assert_allclose(whole.features, TINY.transform(pictures[:8]), atol=1e-6)


def test_shards_hold_every_picture_once(folder, out, expected):
    parts = [run(folder, out, shard=f"{i}/3") for i in range(3)]
    assert [part.folder.name for part in parts] == [f"shard-000{i}-of-0003" for i in range(3)]
    assert sum(len(part) for part in parts) == 11
    whole = merge_extractions([part.folder for part in parts], out / "whole")
    order = [*range(0, 11, 2), *range(1, 11, 2)]
    assert whole.names == [f"{i % 2}/{i:02d}.png" for i in order]
    np.testing.assert_allclose(whole.features, expected[order], atol=1e-6)


def test_parquet(folder, out, expected):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    done = run(folder, out, format="parquet", rows_per_file=np.int64(4))
    assert len(done) == 11
    table = pandas.concat([pandas.read_parquet(file) for file in sorted(out.glob("part-*.parquet"))])
    order = [*range(0, 11, 2), *range(1, 11, 2)]
    np.testing.assert_allclose(np.stack(table["features"].to_list()), expected[order], atol=1e-6)


def test_two_processes_give_the_rows_of_one(folder, out, tmp_path):
    one, two = run(folder, tmp_path / "one"), run(folder, out, devices=["cpu", "cpu"])
    assert two.names == one.names
    np.testing.assert_allclose(two.features, one.features, atol=1e-6)


def test_says_in_one_line_what_ran(pictures, out, caplog):
    with caplog.at_level(logging.INFO, logger="skclip"):
        run(pictures, out)
    (record,) = [record for record in caplog.records if record.name == "skclip"]
    assert "skclip-tiny on cpu, float32, batches of 16: 11 pictures" in record.getMessage()
    assert "pictures/s" in record.getMessage()


def test_a_folder_store_is_used_and_a_memory_store_is_not(folder, out, tmp_path, monkeypatch):
    kept = CLIPFeatures("skclip-tiny", store=tmp_path / "store")
    first = run(folder, out, kept)
    with monkeypatch.context() as patched:
        patched.setattr("skclip._backbones.Backbone.encode_images", None)
        second = run(folder, tmp_path / "again", kept)
    np.testing.assert_array_equal(first.features, second.features)
    in_memory = CLIPFeatures("skclip-tiny", store="memory")
    in_memory.transform(sorted(folder.glob("*/*.png")))
    with monkeypatch.context() as patched:
        patched.setattr("skclip._backbones.Backbone.encode_images", None)
        with pytest.raises(TypeError):
            run(folder, tmp_path / "third", in_memory)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"features": "skclip-tiny"}, TypeError, "CLIPFeatures"),
        ({"on_error": "drop"}, ValueError, "on_error='drop'"),
        ({"shard": "3/3"}, ValueError, "from 0 to 2"),
        ({"shard": "a/b"}, ValueError, "'i/n'"),
        ({"devices": "cpu"}, ValueError, "sequence"),
        ({"devices": []}, ValueError, "sequence"),
        ({"devices": ["cpu", "warp:0"], "features": CLIPFeatures("skclip-tiny", batch_size=4)}, ValueError, "warp:0"),
        ({"format": "csv"}, ValueError, "format='csv'"),
        ({"features": CLIPFeatures("skclip-tiny", decode="sloppy")}, ValueError, "decode"),
        ({"shard": (0.5, 2)}, ValueError, "'i/n'"),
        ({"rows_per_file": -5, "format": "parquet"}, ValueError, "rows_per_file=-5"),
        ({"rows_per_file": 1e4, "format": "parquet"}, ValueError, "rows_per_file=10000.0"),
    ],
)
def test_wrong_options_leave_nothing_behind(pictures, out, options, error, message):
    with pytest.raises(error, match=message):
        run(pictures, out, **options)
    assert not out.exists()


_PEAK = """
import resource, sys
import numpy as np
from skclip.features import CLIPFeatures, extract

def pictures(n):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 48, 3), dtype=np.uint8)
    for i in range(n):
        picture = noise[i % 64].copy()
        picture[0, :4, 0] = np.frombuffer(np.uint32(i).tobytes(), dtype=np.uint8)
        yield picture

extract(pictures(int(sys.argv[1])), sys.argv[2], CLIPFeatures("skclip-tiny", store=None), verbose=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    def peak(n):
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(n), str(tmp_path / str(n))], check=True, capture_output=True, text=True
        )
        return int(done.stdout) / 1024

    few, many = peak(10_000), peak(100_000)
    print(f"peak of 10,000 pictures {few:.0f} MiB, of 100,000 {many:.0f} MiB")
    assert many < few * 1.05 + 10
