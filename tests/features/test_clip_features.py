import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image

from skclip import CLIPFeatures, clear_store
from skclip._backbones import load_backbone
from skclip._backbones._loading import Backbone
from skclip._backbones._open_clip import import_open_clip
from skclip.datasets import make_picture_world
from skclip.features import UnreadablePictureWarning, WorkerStoreWarning

MODEL = "skclip-tiny"


@pytest.fixture(scope="module")
def pictures():
    return make_picture_world(12, image_size=60).images


@pytest.fixture
def files(pictures, tmp_path):
    paths = []
    for i, pixels in enumerate(pictures):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def encoded(monkeypatch, empty_stores):
    """How many pictures the image tower saw, call by call."""
    counts = []
    original = Backbone.encode_images

    def counting(self, batch, **kwargs):
        counts.append(len(batch))
        return original(self, batch, **kwargs)

    monkeypatch.setattr(Backbone, "encode_images", counting)
    return counts


@pytest.mark.parametrize("model", ["skclip-tiny", "skclip-tiny-rn"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_features_are_open_clips_own(model, mode, empty_stores):
    import torch

    import_open_clip()
    from open_clip.transform import image_transform

    backbone = load_backbone(model)
    card = backbone.card
    rng = np.random.RandomState(0)
    drawn = [
        Image.fromarray(rng.randint(0, 256, (h, w, 3), dtype=np.uint8)).resize((w, h)).convert(mode)
        for h, w in [(48, 48), (300, 200), (97, 431), (20, 30), (1, 1)]
    ]
    transform = image_transform(card.image_size, is_train=False, mean=card.mean, std=card.std)
    with torch.no_grad():
        expected = torch.stack([transform(picture) for picture in drawn])
        expected = torch.nn.functional.normalize(backbone.module.encode_image(expected), dim=1).numpy()
    ours = CLIPFeatures(model).fit_transform(drawn)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_normalize_false_gives_raw_projections(pictures):
    raw = CLIPFeatures(MODEL, normalize=False).fit_transform(pictures)
    unit = CLIPFeatures(MODEL).fit_transform(pictures)
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    assert not np.allclose(norms, 1)
    np.testing.assert_allclose(raw / norms, unit, atol=1e-6)


def test_every_kind_of_input_gives_the_same_rows(pictures, files):
    expected = CLIPFeatures(MODEL).fit_transform(pictures)
    names = [str(path) for path in files]
    buffers = [path.read_bytes() for path in files]
    kinds = {
        "paths": files,
        "strings": names,
        "tuple": tuple(names),
        "string array": np.array(names),
        "object array": np.array(files, dtype=object),
        "one column array": np.array(names, dtype=object)[:, None],
        "bytes": buffers,
        "PIL": [Image.fromarray(pixels) for pixels in pictures],
        "opened PIL": [Image.open(io.BytesIO(data)) for data in buffers],
        "list of arrays": list(pictures),
        "pandas Series": pd.Series(names, index=range(100, 112)),
        "pandas DataFrame": pd.DataFrame({"picture": names}),
        "polars Series": pl.Series(names),
        "polars DataFrame": pl.DataFrame({"picture": names}),
        "mixed": [names[0], files[1], buffers[2], *pictures[3:]],
    }
    for kind, X in kinds.items():
        np.testing.assert_allclose(CLIPFeatures(MODEL, store=None).transform(X), expected, atol=1e-6, err_msg=kind)


def test_set_output(pictures):
    for library, frame in (("pandas", pd.DataFrame), ("polars", pl.DataFrame)):
        table = CLIPFeatures(MODEL).set_output(transform=library).fit_transform(pictures)
        assert isinstance(table, frame)
        assert list(table.columns)[:2] == ["clipfeatures0", "clipfeatures1"]
        assert table.shape == (12, 128)


def test_pandas_output_keeps_the_index(files):
    X = pd.Series([str(path) for path in files], index=[f"row {i}" for i in range(12)])
    table = CLIPFeatures(MODEL).set_output(transform="pandas").fit_transform(X)
    assert list(table.index) == list(X.index)


def test_memory_store_encodes_each_picture_once(pictures, encoded):
    doubled = np.concatenate([pictures, pictures[::-1]])
    rows = CLIPFeatures(MODEL).fit_transform(doubled)
    CLIPFeatures(MODEL, normalize=False).transform(doubled)
    assert encoded == [12]
    np.testing.assert_array_equal(rows[:12], rows[12:][::-1])


def test_equal_pictures_of_neighbouring_chunks_are_encoded_once(pictures, encoded):
    many = np.concatenate([pictures] * 50)  # three chunks
    rows = CLIPFeatures(MODEL).fit_transform(many)
    assert sum(encoded) == 12
    np.testing.assert_array_equal(rows, np.concatenate([rows[:12]] * 50))


def test_without_a_store_everything_is_encoded_again(pictures, encoded):
    features = CLIPFeatures(MODEL, store=None)
    features.transform(pictures)
    features.transform(pictures)
    assert encoded == [12, 12]


def test_cold_warm_and_no_store_agree(pictures, files, tmp_path, encoded):
    folder = CLIPFeatures(MODEL, store=tmp_path / "store")
    cold, warm = folder.transform(files), folder.transform(files)
    np.testing.assert_array_equal(cold, warm)
    np.testing.assert_allclose(cold, CLIPFeatures(MODEL, store=None).transform(pictures), atol=1e-6)
    assert encoded == [12, 12]


def test_store_tells_models_and_pixels_apart(pictures, encoded):
    CLIPFeatures("skclip-tiny").transform(pictures)
    CLIPFeatures("skclip-tiny-rn").transform(pictures)
    changed = pictures.copy()
    changed[3, 0, 0, 0] ^= 1
    CLIPFeatures("skclip-tiny").transform(changed)
    assert encoded == [12, 12, 1]


def test_a_changed_file_is_encoded_again(files, encoded, tmp_path):
    features = CLIPFeatures(MODEL, store=tmp_path / "store")
    before = features.transform(files[:2])
    Image.fromarray(np.full((60, 60, 3), 9, dtype=np.uint8)).save(files[1])
    os.utime(files[1], ns=(time.time_ns() + 10**9,) * 2)
    after = features.transform(files[:2])
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.allclose(before[1], after[1])
    assert encoded == [2, 1]


def test_views(pictures):
    plain = CLIPFeatures(MODEL).transform(pictures)
    features = CLIPFeatures(MODEL, n_views=3, random_state=0)
    views = features.fit_transform(pictures)
    assert views.shape == (12, 3, 128)
    np.testing.assert_array_equal(views[:, 0], plain)
    np.testing.assert_array_equal(features.transform(pictures), plain)
    assert np.abs(views[:, 1] - views[:, 2]).max(axis=1).min() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(views, axis=2), 1, atol=1e-6)


def test_a_view_depends_on_picture_seed_and_number_not_on_position(pictures):
    views = CLIPFeatures(MODEL, n_views=3, random_state=0).fit_transform(pictures)
    order = np.random.RandomState(0).permutation(12)
    shuffled = CLIPFeatures(MODEL, n_views=3, random_state=0).fit_transform(pictures[order])
    np.testing.assert_array_equal(shuffled, views[order])
    fewer = CLIPFeatures(MODEL, n_views=2, random_state=0, store=None).fit_transform(pictures)
    np.testing.assert_allclose(fewer, views[:, :2], atol=1e-6)
    other = CLIPFeatures(MODEL, n_views=3, random_state=1).fit_transform(pictures)
    assert np.abs(other[:, 1] - views[:, 1]).max() > 1e-3


def test_views_are_encoded_once(pictures, encoded):
    for _ in range(2):
        CLIPFeatures(MODEL, n_views=3, random_state=0).fit_transform(pictures)
    CLIPFeatures(MODEL).transform(pictures)
    assert encoded == [36]


def test_views_need_an_augmentation(pictures):
    with pytest.raises(ValueError, match="n_views=2 needs augmentation"):
        CLIPFeatures(MODEL, n_views=2, augmentation=None).fit(pictures)


def _jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def broken(tmp_path, pictures):
    """Pictures that cannot be read, with a word that their reason must hold."""
    text, empty, cut = tmp_path / "text.jpg", tmp_path / "empty.png", tmp_path / "cut.jpg"
    text.write_text("this is no picture")
    empty.write_bytes(b"")
    whole = _jpeg(np.random.RandomState(0).randint(0, 256, (80, 80, 3), dtype=np.uint8))
    cut.write_bytes(whole[: len(whole) // 2])
    bomb = io.BytesIO()
    Image.new("1", (20000, 20000)).save(bomb, "PNG")
    return {
        "no such file": tmp_path / "missing.png",
        "directory": tmp_path,
        "not a picture": text,
        "empty": empty,
        "cut off": cut,
        "pixels": bomb.getvalue(),
    }


def test_unreadable_pictures_raise_with_position_and_reason(broken, pictures):
    for reason, item in broken.items():
        with pytest.raises(ValueError, match=rf"X\[2\].*{reason}"):
            CLIPFeatures(MODEL).transform([pictures[0], pictures[1], item])


def test_on_error_nan_keeps_every_row_and_reports_all(broken, pictures):
    X = [pictures[0], *broken.values(), pictures[1], broken["empty"]]
    with pytest.warns(UnreadablePictureWarning, match="7 of 9 pictures") as record:
        rows = CLIPFeatures(MODEL, on_error="nan").transform(X)
    failures = record[0].message.failures
    assert [position for position, _, _ in failures] == [1, 2, 3, 4, 5, 6, 8]
    for (_, _, said), reason in zip(failures, broken):
        assert reason in said
    assert np.isnan(rows).all(axis=1).tolist() == [False] + [True] * 6 + [False, True]
    np.testing.assert_array_equal(rows[[0, 7]], CLIPFeatures(MODEL).transform(pictures[:2]))


def test_one_by_one_picture_works():
    assert np.isfinite(CLIPFeatures(MODEL).transform(np.zeros((1, 1, 1, 3), dtype=np.uint8))).all()


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([], ValueError, "0 sample"),
        ("picture.png", TypeError, "single picture"),
        (["a.png", 3], TypeError, r"X\[1\]"),
        (np.zeros((2, 8, 8, 3)), ValueError, "uint8"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), ValueError, "shape"),
    ],
)
def test_wrong_kinds_of_input(X, error, message):
    with pytest.raises(error, match=message):
        CLIPFeatures(MODEL).transform(X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"model": "ViT-B-33/openai"}, "ViT-B-32"),
        ({"n_views": 0}, "n_views"),
        ({"on_error": "drop"}, "on_error"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "int3"}, "precision"),
        ({"augmentation": "mixup"}, "augmentation"),
    ],
)
def test_bad_parameters_are_named_at_fit(params, message, pictures):
    with pytest.raises(ValueError, match=message):
        CLIPFeatures(**{"model": MODEL, **params}).fit(pictures)


def test_a_worker_is_warned_when_it_encodes_what_others_may_have_encoded(pictures, empty_stores, monkeypatch):
    class Worker:
        name, pid = "LokyProcess-1", -1

    monkeypatch.setattr(multiprocessing, "current_process", Worker)
    monkeypatch.setattr("skclip.features._extraction._warned_workers", set())
    with pytest.warns(WorkerStoreWarning, match="is per process"):
        CLIPFeatures(MODEL).transform(pictures)
    monkeypatch.setattr("skclip.features._extraction._warned_workers", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CLIPFeatures(MODEL).transform(pictures)  # every row is there
    with pytest.warns(WorkerStoreWarning, match="is per process"):
        CLIPFeatures(MODEL).transform(pictures[:1, ::2])


def test_missing_device_raises(pictures):
    with pytest.raises(ValueError, match="device='cuda:7'"):
        CLIPFeatures(MODEL, device="cuda:7", store=None).transform(pictures)


_KILLED = """
import sys
from skclip import CLIPFeatures
from skclip.datasets import make_picture_world
features = CLIPFeatures("skclip-tiny", store=sys.argv[1])
print("ready", flush=True)
for start in range(0, 10**6, 300):
    features.transform(make_picture_world(300, start=start).images)
    print(start, flush=True)
"""


@pytest.mark.slow
def test_a_killed_extraction_leaves_a_store_of_whole_rows(tmp_path, encoded):
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.strip() == "300":
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    pictures = make_picture_world(900).images
    rows = CLIPFeatures(MODEL, store=tmp_path / "store").transform(pictures)
    assert sum(encoded) <= 300  # the first 600 were kept
    clear_store()
    np.testing.assert_allclose(rows, CLIPFeatures(MODEL).transform(pictures), atol=1e-6)
