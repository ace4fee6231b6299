from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.pipeline import make_pipeline

from skclip import CLIPFeatures, CLIPTextFeatures
from skclip._backbones._loading import Backbone
from skclip.datasets import make_picture_world
from skclip.datasets._scenes import ALL_COLORS, ALL_SHAPES
from skclip.features import DenseCLIPFeatures, UnreadablePictureWarning
from skclip.ood import GLMCMDetector
from skclip.utils._arrays import unit_rows
from skclip.zero_shot import ZeroShotClassifier

MODELS = {"skclip-tiny": (6, 6), "skclip-tiny-rn": (2, 2)}


@pytest.fixture(scope="module")
def pictures():
    return make_picture_world(8, image_size=60).images


@pytest.fixture
def encoded(monkeypatch, empty_stores):
    """How many pictures the image tower saw, call by call, and for what."""
    calls = []
    for name in ("encode_images", "encode_places"):
        monkeypatch.setattr(Backbone, name, _counted(calls, name, getattr(Backbone, name)))
    return calls


def _counted(calls, name, original):
    def encode(self, batch, **options):
        calls.append((name, len(batch)))
        return original(self, batch, **options)

    return encode


@pytest.mark.parametrize("model", MODELS)
def test_layouts(model, pictures):
    shape = MODELS[model]
    grid = DenseCLIPFeatures(model)
    tokens = grid.fit_transform(pictures)
    assert grid.grid_shape_ == shape
    assert tokens.shape == (8, *shape, 128)
    assert tokens.dtype == np.float32
    assert_allclose(np.linalg.norm(tokens, axis=-1), 1.0, atol=1e-6)
    flat = DenseCLIPFeatures(model, layout="flat").fit_transform(pictures)
    assert_array_equal(flat, tokens.reshape(8, -1))
    assert grid.n_tokens_ == shape[0] * shape[1]
    with_whole = DenseCLIPFeatures(model, layout="flat", global_token=True)
    whole = with_whole.fit_transform(pictures)
    assert whole.shape[1] == with_whole.n_tokens_ * 128
    assert_array_equal(whole[:, 128:], flat)
    assert_allclose(whole[:, :128], CLIPFeatures(model).transform(pictures), atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_normalize_false_gives_raw_projections(model, pictures):
    raw = DenseCLIPFeatures(model, normalize=False).fit_transform(pictures)
    lengths = np.linalg.norm(raw, axis=-1, keepdims=True)
    assert np.ptp(lengths) > 0.1
    assert_allclose(raw / lengths, DenseCLIPFeatures(model).transform(pictures), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_patches_of_the_picture_world_name_what_they_show(seed):
    """Two objects of 56 kinds: a patch names its own, where the name of the picture as a whole fits one of them."""
    world = make_picture_world(120, min_objects=2, max_objects=2, random_state=seed)
    names = {name: code for code, name in enumerate(world.target_names)}
    text = CLIPTextFeatures("skclip-tiny").transform([f"a photo of a {name}" for name in names])
    tokens = DenseCLIPFeatures("skclip-tiny").transform(world.images)
    whole = CLIPFeatures("skclip-tiny").transform(world.images)
    truth, right_regions = np.full((120, 6, 6), -1), []
    for slot in range(2):
        inside = (world.id_map.reshape(120, 6, 8, 6, 8) == slot + 1).mean(axis=(2, 4))
        kinds = [
            names.get(f"{ALL_COLORS[color]} {ALL_SHAPES[shape]}", -1)
            for color, shape in zip(world.scenes.color[:, slot], world.scenes.shape[:, slot])
        ]
        truth = np.where(inside > 0.5, np.reshape(kinds, (-1, 1, 1)), truth)
        regions = np.einsum("nhw,nhwd->nd", inside, tokens)
        right_regions.extend(((regions @ text.T).argmax(axis=1) == kinds)[world.scenes.n_objects > slot])
    shown = truth >= 0
    right_patches = ((tokens @ text.T).argmax(axis=-1) == truth)[shown].mean()
    right_painted = ((whole @ text.T).argmax(axis=-1)[:, None, None] == truth)[shown].mean()
    assert right_patches > 0.7
    assert right_patches > right_painted + 0.1
    assert np.mean(right_regions) > right_patches + 0.1


def test_names_and_set_output(pictures):
    flat = DenseCLIPFeatures("skclip-tiny-rn", layout="flat", global_token=True)
    names = [f"denseclipfeatures{i}" for i in range(5 * 128)]
    assert_array_equal(flat.get_feature_names_out(), names)
    assert list(flat.set_output(transform="pandas").fit_transform(pictures).columns) == names
    assert_array_equal(flat.get_feature_names_out(), names)
    assert len(DenseCLIPFeatures("skclip-tiny").get_feature_names_out()) == 128


def test_one_pass_serves_every_layout(pictures, encoded):
    for options in ({}, {"layout": "flat"}, {"layout": "flat", "global_token": True}, {"normalize": False}):
        DenseCLIPFeatures("skclip-tiny", **options).transform(pictures)
    assert encoded == [("encode_places", 8)]


def test_rows_of_places_and_of_pictures_never_mix(pictures, encoded, tmp_path):
    for store in ("memory", tmp_path / "store"):
        encoded.clear()
        places = DenseCLIPFeatures("skclip-tiny-rn", store=store).transform(pictures)
        whole = CLIPFeatures("skclip-tiny-rn", store=store).transform(pictures)
        assert_array_equal(DenseCLIPFeatures("skclip-tiny-rn", store=store).transform(pictures), places)
        assert_array_equal(CLIPFeatures("skclip-tiny-rn", store=store).transform(pictures), whole)
        assert encoded == [("encode_places", 8), ("encode_images", 8)]


def test_wide_rows_go_in_smaller_chunks(pictures, encoded, monkeypatch):
    from skclip.features import _extraction

    expected = DenseCLIPFeatures("skclip-tiny", store=None).transform(pictures)
    encoded.clear()
    monkeypatch.setattr(_extraction, "_BLOCK_BYTES", 3 * 8 * 37 * 128)
    found = DenseCLIPFeatures("skclip-tiny", store=None).transform(pictures)
    assert_allclose(found, expected, atol=1e-5)
    assert encoded == [("encode_places", n) for n in (3, 3, 2)]


def test_batch_equals_one_by_one(pictures):
    together = DenseCLIPFeatures("skclip-tiny", store=None).transform(pictures)
    singly = [DenseCLIPFeatures("skclip-tiny", store=None, batch_size=1).transform([x])[0] for x in pictures]
    assert_allclose(together, singly, atol=1e-5)


def test_unreadable_pictures(pictures):
    X = [pictures[0], b"no picture", pictures[1]]
    with pytest.raises(ValueError, match=r"X\[1\]"):
        DenseCLIPFeatures("skclip-tiny").transform(X)
    with pytest.warns(UnreadablePictureWarning, match="1 of 3"):
        rows = DenseCLIPFeatures("skclip-tiny", on_error="nan").transform(X)
    assert np.isnan(rows[1]).all()
    assert_array_equal(rows[[0, 2]], DenseCLIPFeatures("skclip-tiny").transform(pictures[:2]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": "ViT-B-16-SigLIP/webli"}, "model='ViT-B-16-SigLIP/webli': its image tower is timm's"),
        ({"model": "coca_ViT-B-32/laion2b_s13b_b90k"}, "pools its places by attention"),
        ({"mode": "qq"}, "mode"),
        ({"layout": "row"}, "layout"),
        ({"global_token": True}, 'global_token=True has no place in layout="grid"'),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_parameters_are_named(parameters, message, pictures):
    made = DenseCLIPFeatures(**{"model": "skclip-tiny", **parameters})
    for method in (made.fit, made.transform):
        with pytest.raises(ValueError, match=message):
            method(pictures)


def test_the_backbone_stays_out_of_pickles(pictures):
    made = DenseCLIPFeatures("skclip-tiny", layout="flat").fit(pictures)
    made.transform(pictures)
    assert len(pickle.dumps(made)) < 2_000
    assert made.load_backbone().card.name == "skclip-tiny"


def test_gl_mcm_on_pictures(pictures):
    names = {"c": "red circle", "s": "blue square", "t": "green triangle"}
    zero_shot = ZeroShotClassifier("skclip-tiny", class_names=names, templates="a {}")
    tokens = DenseCLIPFeatures("skclip-tiny", layout="flat", global_token=True)
    pipeline = make_pipeline(tokens, GLMCMDetector(zero_shot)).fit(pictures)
    rows = tokens.transform(pictures)
    text = unit_rows(CLIPTextFeatures("skclip-tiny").transform(["a red circle", "a blue square", "a green triangle"]))
    shares = np.exp(rows.reshape(8, 37, 128) @ text.T)
    best = (shares / shares.sum(axis=2, keepdims=True)).max(axis=2)
    assert_allclose(pipeline.score_samples(pictures), best[:, 0] + best[:, 1:].max(axis=1), atol=1e-5)
    assert set(pipeline.predict(pictures)) <= {-1, 1}
