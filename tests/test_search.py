"""The main job: a pipeline from pictures to labels under a grid search, saved and opened elsewhere."""

import importlib
import os
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skclip import CLIPClassifier, CLIPFeatures, GDAClassifier, ZeroShotClassifier
from skclip._backbones._loading import Backbone
from skclip.datasets import make_picture_world

N_DIFFERENT = 60
GRID = {"gda__alpha": [0.1, 1.0, 10.0], "gda__covariance": ["ks", "empirical", "oas"]}

# Worker processes import this module afresh, so that their encodings can be counted.
COUNTING = """
import os
import uuid
from pathlib import Path

from skclip._backbones._loading import Backbone

_encode = Backbone.encode_images


def _counting(self, batch, **kwargs):
    (Path(os.environ["SKCLIP_TEST_COUNTS"]) / uuid.uuid4().hex).write_text(str(len(batch)))
    return _encode(self, batch, **kwargs)


Backbone.encode_images = _counting

from skclip import CLIPFeatures


class CountingFeatures(CLIPFeatures):
    pass
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Picture files of three colours, ten of them twice under another name."""
    folder = tmp_path_factory.mktemp("pictures")
    world = make_picture_world(
        N_DIFFERENT, colors=["red", "green", "blue"], shapes=["circle"], held_out="include", random_state=1
    )
    paths = []
    for i, pixels in enumerate([*world.images, *world.images[:10]]):
        paths.append(str(folder / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
        os.utime(paths[-1], (1.7e9, 1.7e9))
    labels = [pair.split()[0] for pair in [*world.target, *world.target[:10]]]
    return paths, labels


def _pipeline(features=None):
    return Pipeline([("features", features or CLIPFeatures("skclip-tiny")), ("gda", GDAClassifier())])


def test_memory_store_each_picture_is_encoded_once_in_the_whole_search(pictures, monkeypatch, empty_stores):
    counts = []
    encode = Backbone.encode_images
    monkeypatch.setattr(
        Backbone, "encode_images", lambda self, batch, **kw: counts.append(len(batch)) or encode(self, batch, **kw)
    )
    search = GridSearchCV(_pipeline(), GRID, cv=5).fit(*pictures)
    assert sum(counts) == N_DIFFERENT
    assert search.score(*pictures) > 0.9
    assert sum(counts) == N_DIFFERENT


@pytest.mark.slow
def test_folder_store_serves_two_workers(pictures, tmp_path, monkeypatch):
    counts = tmp_path / "counts"
    counts.mkdir()
    (tmp_path / "counting_features.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SKCLIP_TEST_COUNTS", str(counts))
    get_reusable_executor().shutdown(wait=True)  # workers of other tests do not know the new module
    encode = Backbone.encode_images
    module = importlib.import_module("counting_features")
    try:
        features = module.CountingFeatures("skclip-tiny", store=str(tmp_path / "store"))
        for warm in (False, True):
            with joblib.parallel_config("loky", inner_max_num_threads=1):
                GridSearchCV(_pipeline(features), GRID, cv=5, n_jobs=2).fit(*pictures)
            total = sum(int(file.read_text()) for file in counts.iterdir())
            assert total == 0 if warm else N_DIFFERENT <= total <= 2 * N_DIFFERENT
            for file in counts.iterdir():
                file.unlink()
    finally:
        get_reusable_executor().shutdown(wait=True)
        Backbone.encode_images = encode
        del sys.modules["counting_features"]


def _array_bytes(state):
    values = list(state.values())
    nested = sum(_array_bytes(value) for value in values if isinstance(value, dict))
    return nested + sum(value.nbytes for value in values if isinstance(value, np.ndarray))


_OPEN_ELSEWHERE = """
import sys
import joblib
import numpy as np

model = joblib.load(sys.argv[1])
for module in ("open_clip", "torchvision", "timm"):
    assert module not in sys.modules, module
paths = open(sys.argv[2]).read().split("\\n")
np.save(sys.argv[3], model.predict_proba(paths))
"""


@pytest.mark.slow
def test_saved_search_predicts_the_same_in_a_fresh_process(pictures, tmp_path):
    paths, labels = pictures
    search = GridSearchCV(_pipeline(), GRID, cv=5).fit(paths, labels)
    file = tmp_path / "search.joblib"
    joblib.dump(search, file)
    assert file.stat().st_size < 50_000 + _array_bytes(vars(search.best_estimator_["gda"]))
    (tmp_path / "paths").write_text("\n".join(paths))
    subprocess.run(
        [sys.executable, "-c", _OPEN_ELSEWHERE, file, tmp_path / "paths", tmp_path / "proba.npy"], check=True
    )
    np.testing.assert_array_equal(np.load(tmp_path / "proba.npy"), search.predict_proba(paths))


def test_an_unfitted_pipeline_is_small():
    text = GDAClassifier(zero_shot=ZeroShotClassifier(class_names={0: "cat", 1: "dog"}), alpha="cv")
    for estimator in (_pipeline(), Pipeline([("features", CLIPFeatures()), ("gda", text)]), CLIPClassifier()):
        assert len(pickle.dumps(estimator)) < 2000


def test_the_front_door_takes_folders_of_pictures(pictures):
    paths, labels = pictures
    model = CLIPClassifier("skclip-tiny").fit(paths[:40], labels[:40])
    assert model.score(paths[40:60], labels[40:60]) > 0.9
    names = {color: f"{color} circle" for color in ("red", "green", "blue")}
    zero_shot = CLIPClassifier("skclip-tiny", ZeroShotClassifier(class_names=names, templates="a photo of a {}"))
    assert zero_shot.score(paths, labels) > 0.9
