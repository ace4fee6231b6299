"""Many pictures at once, by threads and by processes: order, views, reasons, interrupts, crashes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from skclip._media import (
    Augmentation,
    PictureError,
    PictureReader,
    PictureTransform,
    ReaderDiedError,
    SharedPicture,
    Wanted,
    augment,
    content_key,
    read_picture,
)
from skclip._media._processes import _groups, _Scratch, _submit

TRANSFORM = PictureTransform((16, 24), "bilinear")


def image(i=0, mode="RGB"):
    rng = np.random.default_rng(i)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((60 + i, 50 - i % 7), Image.Resampling.BICUBIC).convert(mode)


def encoded(picture, format="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(20)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(image(i, "L" if i % 5 == 4 else "RGB")))
    return paths


def wanted_of(items, views=(0,)):
    return [
        Wanted(item, content_key(item), tuple((i * len(views) + v, view) for v, view in enumerate(views)))
        for i, item in enumerate(items)
    ]


def rows_of(items, views=(0,), seed=0, transform=TRANSFORM):
    """What a plain loop makes of pictures."""
    options = {"size": transform.size, "interpolation": transform.interpolation, "seed": seed}
    rows = []
    for item in items:
        picture, key = read_picture(item), content_key(item)
        rows += [augment(picture, key=key, view=v, **options) if v else transform(picture) for v in views]
    return np.stack(rows)


def blank(n, transform=TRANSFORM):
    return np.full((n, *transform.size, 3), 77, np.uint8)


@pytest.fixture(params=["threads", "processes"])
def workers(request):
    return request.param


@pytest.mark.parametrize("kind", ["strong+augmix", "nola"])
def test_threads_and_processes_make_the_same_views(files, workers, kind):
    augmentation, views = Augmentation(kind, (0.3, 0.9)), (0, 1, 2)
    items = [*files[:4], files[5].read_bytes(), np.asarray(image(7))]
    out = blank(len(items) * len(views))
    with PictureReader(TRANSFORM, workers=workers, n_workers=2, seed=5, augmentation=augmentation) as reader:
        assert reader.read(wanted_of(items, views), out) == [None] * len(items)
    options = {"size": TRANSFORM.size, "interpolation": TRANSFORM.interpolation, "seed": 5, "cut": augment}
    for row, (item, v) in zip(out, [(item, v) for item in items for v in views]):
        picture = read_picture(item)
        expected = augmentation(picture, key=content_key(item), view=v, **options) if v else TRANSFORM(picture)
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("n_workers", [None, 1, 3])
def test_rows_are_the_pictures_in_order(files, n_workers):
    out = blank(len(files))
    with PictureReader(TRANSFORM, n_workers=n_workers) as reader:
        assert reader.read(wanted_of(files), out) == [None] * len(files)
        np.testing.assert_array_equal(out, rows_of(files))
        out[:] = 0
        reader.read(wanted_of(files[::-1]), out)
    np.testing.assert_array_equal(out, rows_of(files[::-1]))


def test_processes_outlive_the_reader(files):
    for _ in range(2):
        with PictureReader(TRANSFORM, workers="processes", n_workers=2) as reader:
            out = blank(len(files))
            assert reader.read(wanted_of(files), out) == [None] * len(files)
        np.testing.assert_array_equal(out, rows_of(files))
    pids = {_submit(2, os.getpid).result() for _ in range(10)}
    assert os.getpid() not in pids
    assert len(pids) <= 2


def test_views_are_those_of_the_picture_and_the_seed(files, workers):
    views, out = (0, 1, 2), blank(3 * len(files))
    with PictureReader(TRANSFORM, workers=workers, n_workers=2, seed=5) as reader:
        reader.read(wanted_of(files, views), out)
    np.testing.assert_array_equal(out, rows_of(files, views, seed=5))
    assert (out[1] != out[2]).any()


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_all_kinds_of_pictures(files, workers, decode):
    array, data = np.asarray(image(3)), files[2].read_bytes()
    items = [files[0], str(files[1]), data, bytearray(data), memoryview(data), array, image(4), array[..., 0]]
    items.append(SharedPicture(files[5]))
    out, transform = blank(len(items)), PictureTransform((16, 24), "bilinear", decode=decode)
    with PictureReader(transform, workers=workers, n_workers=2) as reader:
        assert reader.read(wanted_of(items), out) == [None] * len(items)
        from_paths = out.copy()
        loaded = reader.load(items)
        wanted = [Wanted(data, key, ((i, 0),)) for i, (data, key) in enumerate(loaded)]
        assert reader.read(wanted, out) == [None] * len(items)
    np.testing.assert_array_equal(from_paths, out)
    if decode == "exact":
        np.testing.assert_array_equal(out, rows_of(items))
    assert [key for _, key in loaded] == [content_key(item) for item in items]
    assert isinstance(loaded[0][0], bytes)
    assert loaded[5][0] is array


def test_load_says_which_files_are_unreadable(files, tmp_path):
    with PictureReader(TRANSFORM) as reader:
        first, second, third = reader.load([files[0], tmp_path / "none.jpg", tmp_path])
    assert first[1] == content_key(files[0])
    assert second[0] == tmp_path / "none.jpg"
    assert isinstance(second[1], PictureError)
    assert str(second[1]) == "no such file"
    assert str(third[1]) == "is a directory, not a picture file"


def test_large_files_are_not_all_kept_in_memory(files, monkeypatch, workers):
    sizes = [path.stat().st_size for path in files]
    monkeypatch.setattr("skclip._media._readers._LOADED_BYTES", sum(sizes) // 2)
    in_memory = files[0].read_bytes()
    with PictureReader(TRANSFORM, workers=workers, n_workers=2) as reader:
        loaded = reader.load([*files, in_memory])
        kept = [data for data, _ in loaded[:-1] if isinstance(data, bytes)]
        assert sum(sizes) // 2 <= sum(map(len, kept)) <= sum(sizes) // 2 + max(sizes)
        assert all(isinstance(data, bytes) or data == path for (data, _), path in zip(loaded, files))
        assert loaded[-1][0] is in_memory
        assert [key for _, key in loaded[:-1]] == [content_key(path) for path in files]
        out = blank(len(files))
        assert not any(reader.read([Wanted(*pair, ((i, 0),)) for i, pair in enumerate(loaded[:-1])], out))
    np.testing.assert_array_equal(out, rows_of(files))


def test_an_unreadable_picture_leaves_its_rows_and_its_neighbours_alone(files, workers):
    data = files[1].read_bytes()
    items = [files[0], data[:-80], files[2], b"text"]
    out = blank(5)
    with PictureReader(TRANSFORM, workers=workers, n_workers=2) as reader:
        errors = reader.read(wanted_of(items), out)
    assert [error is None for error in errors] == [True, False, True, False]
    assert "cut off" in str(errors[1])
    np.testing.assert_array_equal(out[[0, 2]], rows_of([files[0], files[2]]))
    assert (out[[1, 3, 4]] == 77).all()


def test_a_picture_is_decoded_once_and_an_unwanted_one_not_at_all(files, monkeypatch):
    decoded = []
    monkeypatch.setattr("skclip._media._wanted.read_picture", lambda item: decoded.append(item) or read_picture(item))
    out = blank(4)
    wanted = [Wanted(files[0], b"k", ((0, 0), (1, 3), (2, 1), (3, 0))), Wanted("none.jpg", b"k", ())]
    with PictureReader(TRANSFORM) as reader:
        assert reader.read(wanted, out) == [None, None]
    assert decoded == [files[0]]
    np.testing.assert_array_equal(out[0], out[3])


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_any_other_exception_comes_through_and_spares_the_rest(files, monkeypatch, error):
    begun = []

    def broken(item):
        begun.append(item)
        if len(begun) == 3:
            raise error
        return read_picture(item)

    monkeypatch.setattr("skclip._media._wanted.read_picture", broken)
    with PictureReader(TRANSFORM, n_workers=2) as reader:
        with pytest.raises(error):
            reader.read(wanted_of(files * 10), blank(10 * len(files)))
        assert len(begun) < len(files)
        monkeypatch.undo()
        assert reader.read(wanted_of(files), blank(len(files))) == [None] * len(files)


def test_closing_ends_a_read_of_another_thread(files, monkeypatch):
    started, go_on, begun = threading.Event(), threading.Event(), []

    def slow(item):
        begun.append(item)
        started.set()
        go_on.wait(10)
        return read_picture(item)

    monkeypatch.setattr("skclip._media._wanted.read_picture", slow)
    reader = PictureReader(TRANSFORM, n_workers=2)
    with ThreadPoolExecutor(2) as others:
        reading = others.submit(reader.read, wanted_of(files), blank(len(files)))
        assert started.wait(10)
        closing = others.submit(reader.close)
        reader._closing.wait(10)
        go_on.set()
        closing.result(10)
        with pytest.raises(RuntimeError, match="closed"):
            reading.result(10)
    assert len(begun) <= 2


def test_two_threads_may_use_one_reader(files, workers):
    expected = rows_of(files)
    with PictureReader(TRANSFORM, workers=workers, n_workers=2) as reader, ThreadPoolExecutor(4) as others:

        def read(order):
            out = blank(len(files))
            reader.read(wanted_of([files[i] for i in order]), out)
            return out

        orders = [np.random.default_rng(i).permutation(len(files)) for i in range(8)]
        for order, out in zip(orders, others.map(read, orders)):
            np.testing.assert_array_equal(out, expected[order])


def test_nothing_is_wanted(workers):
    with PictureReader(TRANSFORM, workers=workers, n_workers=2) as reader:
        assert reader.load([]) == []
        assert reader.read([], blank(0)) == []


def test_a_view_does_not_depend_on_the_others(tmp_path):
    """Under "fast" views may be decoded in different sizes."""
    data, transform = encoded(image(0).resize((400, 300))), PictureTransform((60, 60), decode="fast")
    views, together = (0, 1, 2, 3, 4, 5), blank(6, transform)
    with PictureReader(transform) as reader:
        reader.read([Wanted(data, b"k", tuple(enumerate(views)))], together)
        for view in views:
            alone = blank(1, transform)
            reader.read([Wanted(data, b"k", ((0, view),))], alone)
            np.testing.assert_array_equal(alone[0], together[view])
    assert len({pixels.tobytes() for pixels in together}) == 6


# Processes


class Deadly(bytes):
    """Bytes that kill the process in which they arrive."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_process_that_dies_is_an_error_that_names_the_picture(files):
    items = [path.read_bytes() for path in files * 3]
    wanted = wanted_of(items)
    in_memory = Wanted(image(), b"k", ((0, 0),))
    deadly = [in_memory, *wanted[:35], Wanted(Deadly(items[35]), b"k", ((35, 0),)), *wanted[36:]]
    out = blank(len(items))
    with PictureReader(TRANSFORM, workers="processes", n_workers=2) as reader:
        with pytest.raises(ReaderDiedError, match=r"died while it read picture 36 of 61, .*bytes") as caught:
            reader.read(deadly, out)
        assert caught.value.position == 36
        assert reader.read(wanted, out) == [None] * len(items)
    np.testing.assert_array_equal(out, rows_of(items))


def test_a_process_killed_from_outside_costs_no_picture(files):
    with PictureReader(TRANSFORM, workers="processes", n_workers=2) as reader:
        reader.read(wanted_of(files), blank(len(files)))
        victim = _submit(2, os.getpid).result()
        os.kill(victim, getattr(signal, "SIGKILL", signal.SIGTERM))
        out = blank(len(files))
        assert reader.read(wanted_of(files), out) == [None] * len(files)
    np.testing.assert_array_equal(out, rows_of(files))


def test_an_interrupt_leaves_no_file_and_a_reader_that_works(files, monkeypatch):
    paths = []
    original = _Scratch.__enter__
    monkeypatch.setattr(_Scratch, "__enter__", lambda self: paths.append(self.path) or original(self))

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with PictureReader(TRANSFORM, workers="processes", n_workers=2) as reader:
        with monkeypatch.context() as patch:
            patch.setattr("skclip._media._processes.wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                reader.read(wanted_of(files), blank(len(files)))
        out = blank(len(files))
        reader.read(wanted_of(files), out)
    np.testing.assert_array_equal(out, rows_of(files))
    assert len(paths) == 2
    assert not any(os.path.exists(path) for path in paths)


def test_the_limit_of_pixels_holds_in_processes(files, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with PictureReader(TRANSFORM, workers="processes", n_workers=2) as reader:
        errors = reader.read(wanted_of([path.read_bytes() for path in files[:2]]), blank(2))
    assert all("MAX_IMAGE_PIXELS" in str(error) for error in errors)


def test_formats_registered_here_are_read_with_processes_too():
    class ToyFile(ImageFile.ImageFile):
        format = "TOY"

        def _open(self):
            self._size, self._mode = (4, 4), "L"
            self.tile = [ImageFile._Tile("raw", (0, 0, 4, 4), 6, ("L", 0, 1))]

    data = b"TOYPIC" + bytes(range(0, 160, 10))
    Image.register_open("TOY", ToyFile, lambda prefix: prefix.startswith(b"TOYPIC"))
    try:
        with PictureReader(TRANSFORM, workers="processes", n_workers=2) as reader:
            out = blank(1)
            assert reader.read(wanted_of([data]), out) == [None]
            np.testing.assert_array_equal(out, rows_of([data]))
    finally:
        Image.OPEN.pop("TOY")
        Image.ID.remove("TOY")


def test_groups_have_16_rows_or_one_picture():
    sizes = [1] * 20 + [30, 8, 8, 1]
    groups = _groups([Wanted(b"", b"", ((0, 0),) * n) for n in sizes], [*range(19), *range(20, 24)])
    assert groups == [[*range(16)], [16, 17, 18], [20], [21, 22], [23]]


SCRIPT = """
import sys
import joblib
import numpy as np
from skclip._media import PictureReader, PictureTransform, Wanted
from skclip._media._processes import _submit

def read(workers):
    out = np.zeros((4, 16, 16, 3), np.uint8)
    with PictureReader(PictureTransform((16, 16)), workers=workers, n_workers=1) as reader:
        errors = reader.read([Wanted(path, b"k", ((i, 0), (i + 2, 1))) for i, path in enumerate(sys.argv[1:])], out)
    assert errors == [None, None], errors
    return out

expected = read("threads")
assert expected.any()
assert (read("processes") == expected).all()
# A process of joblib's own, and one that may not have children.
for backend in ("loky", "multiprocessing"):
    found = joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(read)("processes") for _ in range(2))
    assert all((rows == expected).all() for rows in found)
assert not _submit(1, eval, "'torch' in __import__('sys').modules").result()
"""


def run_python(*args, **options):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, *args], env=environment, text=True, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="joblib's multiprocessing needs a guarded script there")
def test_a_script_needs_no_guard_and_workers_may_have_workers(files, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("sys.argv[1:]", repr([str(path) for path in files[:2]])))
    process = run_python(str(script), stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_nothing_is_left_when_the_program_is_killed():
    script = (
        "from skclip._media._processes import _Scratch; import time; s = _Scratch(2, 100); print(s.path, flush=True)"
    )
    process = run_python("-c", f"{script}; time.sleep(100)", stdout=subprocess.PIPE)
    path = process.stdout.readline().strip()
    assert os.path.exists(path)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(path)


def test_unknown_workers():
    with pytest.raises(ValueError, match="workers='fibres' must be"):
        PictureReader(TRANSFORM, workers="fibres")
