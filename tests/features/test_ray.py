"""A run of Ray, on this machine: what the example writes is what `CLIPFeatures` gives."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skclip import CLIPFeatures
from skclip.datasets import make_picture_world

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'skclip[ray]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'skclip[ray]'")
parquet = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def loads(tmp_path):
    """A running Ray, and the file in which its processes note that they load a model."""
    note = tmp_path / "loads"

    def note_loads():
        import os

        from skclip._backbones import _loading

        original = _loading._load

        def load(*args):
            with open(note, "a") as file:
                file.write(f"{os.getpid()}\n")
            return original(*args)

        _loading._load = load

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}, "worker_process_setup_hook": note_loads},
    )
    yield note
    ray.shutdown()


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("extract_with_ray", ROOT / "examples" / "extract_with_ray.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_two_workers_write_the_rows_of_one_transformer(loads, example, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "inner").mkdir(parents=True)
    pictures = make_picture_world(24, image_size=60).images
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(photos / ("inner" if i % 2 else "") / f"{i}.png")
    (photos / "inner" / "1.png").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("no picture either")

    example.main([str(photos), str(out), "--model", "skclip-tiny", "--workers", "2", "--batch-size", "4"])

    table = parquet.ParquetDataset(out).read()
    assert table.column_names == ["path", "features", "error"]
    numbers = [int(Path(path).stem) for path in table["path"].to_pylist()]
    assert sorted(numbers) == list(range(24))
    expected = CLIPFeatures("skclip-tiny").transform(pictures)[numbers]
    rows = np.array(table["features"].to_pylist(), dtype=np.float32)
    errors = dict(zip(numbers, table["error"].to_pylist()))
    assert errors.pop(1) == "is not a picture in any format that Pillow reads"
    assert set(errors.values()) == {None}
    readable = np.array(numbers) != 1
    assert np.isnan(rows[~readable]).all()
    np.testing.assert_allclose(rows[readable], expected[readable], atol=1e-5)

    loaded_by = loads.read_text().split()
    assert 1 <= len(loaded_by) <= 2
    assert len(set(loaded_by)) == len(loaded_by)
