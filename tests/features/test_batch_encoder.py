import io
import pickle

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skclip import CLIPFeatures
from skclip.datasets import make_picture_world
from skclip.features import BatchEncoder, DenseCLIPFeatures, PictureError

LENIENT = CLIPFeatures("skclip-tiny", store=None, on_error="nan")


@pytest.fixture(scope="module")
def pictures():
    return make_picture_world(6, image_size=60).images


@pytest.fixture(scope="module")
def encoded(pictures):
    files = []
    for pixels in pictures:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="module")
def expected(pictures):
    return CLIPFeatures("skclip-tiny").transform(pictures)


def test_a_dict_keeps_its_columns(pictures, encoded, expected):
    batch = {"path": np.array(list("abcdef"), dtype=object), "bytes": np.array(encoded, dtype=object)}
    done = BatchEncoder(LENIENT)(batch)
    assert list(done) == ["path", "bytes", "features", "error"]
    assert done["features"].dtype == np.float32
    np.testing.assert_allclose(done["features"], expected, atol=1e-5)
    assert done["error"].tolist() == [None] * 6
    assert list(batch) == ["path", "bytes"]
    lean = BatchEncoder(LENIENT, output="row", error="why", keep_pictures=False)(batch)
    assert list(lean) == ["path", "row", "why"]


def test_every_kind_of_column(pictures, encoded, expected, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, data in zip(paths, encoded):
        path.write_bytes(data)
    columns = {
        "image": pictures,
        "content": encoded,
        "jpg": [bytearray(data) for data in encoded],
        "png": [Image.fromarray(pixels) for pixels in pictures],
        "path": [str(path) for path in paths],
        "url": [path.as_uri() for path in paths],
        "img": [{"bytes": data, "path": None} for data in encoded],
        "file": [{"bytes": None, "path": str(path)} for path in paths],
    }
    for name, values in columns.items():
        done = BatchEncoder(LENIENT)({"label": [0] * 6, name: values})
        assert done["error"].tolist() == [None] * 6, name
        np.testing.assert_allclose(done["features"], expected, atol=1e-5, err_msg=name)


def test_bytes_come_before_the_path_they_were_read_from(encoded, expected):
    done = BatchEncoder(LENIENT)({"path": ["gone.png"] * 6, "bytes": encoded})
    np.testing.assert_allclose(done["features"], expected, atol=1e-5)
    done = BatchEncoder(LENIENT, column="path")({"path": ["gone.png"] * 6, "bytes": encoded})
    assert done["error"].tolist() == ["no such file"] * 6


def test_unreadable_pictures_keep_their_place_with_the_reason(pictures, expected):
    items = [*pictures, b"", None, "missing.png", 7]
    done = BatchEncoder(LENIENT)({"image": items})
    np.testing.assert_allclose(done["features"][:6], expected, atol=1e-5)
    assert np.isnan(done["features"][6:]).all()
    assert done["error"].tolist()[:6] == [None] * 6
    assert done["error"][6:].tolist() == [
        "is empty (0 bytes)",
        "the column 'image' is empty here",
        "no such file",
        "the column 'image' holds an int here, neither a path nor a picture",
    ]
    with pytest.raises(PictureError, match=r"image\[1\], 'missing.png': no such file"):
        BatchEncoder(CLIPFeatures("skclip-tiny", store=None))({"image": [pictures[0], "missing.png"]})


def test_a_frame_keeps_index_and_columns(encoded, expected):
    frame = pd.DataFrame({"bytes": encoded, "label": range(6)}, index=list("uvwxyz"))
    frame.loc["z", "bytes"] = None
    encoder = BatchEncoder(LENIENT)
    (done, none) = encoder.map_pandas([frame, frame[:0]])
    assert list(done.columns) == ["bytes", "label", "features", "error"]
    assert list(done.index) == list("uvwxyz")
    np.testing.assert_allclose(np.stack(done["features"][:5]), expected[:5], atol=1e-5)
    assert done["error"].tolist() == [None] * 5 + ["the column 'bytes' is empty here"]
    assert list(none.columns) == list(done.columns)
    assert list(frame.columns) == ["bytes", "label"]
    assert list(BatchEncoder(LENIENT, keep_pictures=False)(frame).columns) == ["label", "features", "error"]


def test_a_table_has_the_same_types_in_every_batch(encoded, expected):
    pa = pytest.importorskip("pyarrow")
    encoder = BatchEncoder(LENIENT, keep_pictures=False)
    table = pa.table({"path": list("abcdef"), "bytes": encoded, "error": [0] * 6})
    done, none, bad = encoder(table), encoder(table[:0]), encoder(pa.table({"path": ["a"], "bytes": [b"x"]}))
    assert done.schema == none.schema == bad.schema
    assert done.schema.field("features").type == pa.list_(pa.float32(), 128)
    assert done.schema.field("error").type == pa.string()
    assert done.column_names == ["path", "features", "error"]
    np.testing.assert_allclose(np.stack(done["features"].to_pylist()), expected, atol=1e-5)
    assert bad["error"].to_pylist() == ["is not a picture in any format that Pillow reads"]


def test_hugging_face_datasets_get_the_new_columns_alone(encoded, expected):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in encoded]})
    data = data.cast_column("image", datasets.Image())
    done = data.map(BatchEncoder(LENIENT), batched=True, batch_size=4)
    assert done.column_names == ["image", "features", "error"]
    np.testing.assert_allclose(np.array(done["features"]), expected, atol=1e-5)
    # the pictures are those that were there, not encoded again
    assert done.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"] == encoded[0]


def test_grids_are_laid_out_in_rows(pictures):
    dense = DenseCLIPFeatures("skclip-tiny", store=None)
    done = BatchEncoder(dense)({"image": pictures[:2]})
    np.testing.assert_allclose(done["features"], dense.transform(pictures[:2]).reshape(2, -1), atol=1e-5)


def test_it_travels_small_and_without_a_model(pictures):
    encoder = BatchEncoder(LENIENT)
    encoder({"image": pictures[:1]})
    data = pickle.dumps(encoder)
    assert len(data) < 2000
    again = pickle.loads(data)({"image": pictures[:1]})
    assert again["features"].shape == (1, 128)


def test_what_is_no_batch_is_refused(pictures):
    encoder = BatchEncoder(LENIENT)
    with pytest.raises(TypeError, match="The batch is a list"):
        encoder([pictures[0]])
    with pytest.raises(ValueError, match="No column of the batch has a usual name of pictures, only a, b"):
        encoder({"a": [1], "b": [2]})
    with pytest.raises(ValueError, match="column='photo' is not in the batch, which has: image"):
        BatchEncoder(LENIENT, column="photo")({"image": pictures})
    with pytest.raises(ValueError, match=r"image\[0\] holds float64 pixels"):
        encoder({"image": pictures[:1].astype(float)})
    with pytest.raises(TypeError, match="cuts trailing zero bytes"):
        encoder({"bytes": np.array([b"abc"])})
    with pytest.raises(TypeError, match="must be a transformer of pictures"):
        BatchEncoder("skclip-tiny")
    with pytest.raises(ValueError, match="must be two columns"):
        BatchEncoder(LENIENT, output="x", error="x")
