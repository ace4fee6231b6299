from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from skclip import CLIPFeatures
from skclip._backbones import load_backbone
from skclip._backbones._loading import Backbone
from skclip.datasets import make_picture_world
from skclip.features import CLIPLayerStatistics, UnreadablePictureWarning
from skclip.features._extraction import picture_transform
from skclip.utils._arrays import unit_rows

MODEL = "skclip-tiny"
D, L, W = 128, 4, 96
WIDTH = D + 2 * L * W


@pytest.fixture(scope="module")
def pictures():
    return make_picture_world(6, image_size=60, styles=["photo", "sketch"]).images


def seen_by_hooks(pixels):
    """Raw features, means and deviations of the tokens behind each block of the stock tower."""
    backbone, seen = load_backbone(MODEL, precision="float32"), []
    blocks = backbone.module.visual.transformer.resblocks
    hooks = [block.register_forward_hook(lambda *call: seen.append(call[2].double().numpy())) for block in blocks]
    try:
        with torch.inference_mode():
            features = backbone.module.encode_image(backbone.pixel_scale(torch.tensor(pixels)))
    finally:
        for hook in hooks:
            hook.remove()
    tokens = np.stack(seen, axis=1)  # (n, L, T, W)
    return features.numpy(), np.stack([tokens.mean(axis=2), tokens.std(axis=2)], axis=2)


def test_rows_are_what_hooks_see(pictures):
    made = CLIPLayerStatistics(MODEL)
    rows = made.fit_transform(pictures)
    assert rows.shape == (6, WIDTH)
    assert rows.dtype == np.float32
    assert made.layer_shape_ == (L, W)
    transform = picture_transform(made._execution())
    features, statistics = seen_by_hooks(np.stack([transform(Image.fromarray(picture)) for picture in pictures]))
    assert_allclose(rows[:, :D], unit_rows(features), atol=1e-5)
    assert_allclose(rows[:, D:].reshape(6, L, 2, W), statistics, rtol=1e-3, atol=1e-4)
    assert_allclose(rows[:, :D], CLIPFeatures(MODEL).transform(pictures), atol=1e-5)


def test_views(pictures):
    made = CLIPLayerStatistics(MODEL, n_views=4, random_state=0)
    rows = made.fit_transform(pictures)
    assert rows.shape == (6, 4, WIDTH)
    assert_allclose(np.linalg.norm(rows[..., :D], axis=2), 1.0, atol=1e-5)
    assert_array_equal(rows[:, 0], made.transform(pictures))
    backwards = CLIPLayerStatistics(MODEL, n_views=4, random_state=0, store=None).fit_transform(pictures[::-1])
    assert_allclose(backwards[::-1], rows, atol=1e-4)
    other = CLIPLayerStatistics(MODEL, n_views=2, random_state=1).fit_transform(pictures)
    assert np.abs(other[:, 1] - rows[:, 1]).max() > 0.1


def test_kinds_of_augmentation_take_turns(pictures):
    def views(kind):
        return CLIPLayerStatistics(MODEL, n_views=4, augmentation=kind, random_state=0).fit_transform(pictures)

    both = views("strong+augmix")
    assert_array_equal(both[:, [1, 3]], views("strong")[:, [1, 3]])
    assert_array_equal(both[:, 2], views("augmix")[:, 2])
    crops = CLIPFeatures(MODEL, n_views=4, random_state=0).fit_transform(pictures)
    assert_allclose(views("crop_flip")[..., :D], crops, atol=1e-5)
    with pytest.raises(ValueError, match=r"augmentation kind='strong\+blurry' must be one of"):
        CLIPLayerStatistics(MODEL, augmentation="strong+blurry").fit(pictures)


def test_rows_are_kept_apart_from_those_of_features(pictures, monkeypatch, empty_stores):
    calls, encode = [], Backbone.encode_through

    def counted(self, project, batch, *rest):
        calls.append(len(batch))
        return encode(self, project, batch, *rest)

    monkeypatch.setattr(Backbone, "encode_through", counted)
    made = CLIPLayerStatistics(MODEL, n_views=3, random_state=0)
    first = made.fit_transform(pictures)
    assert CLIPFeatures(MODEL).transform(pictures).shape == (6, D)
    assert_array_equal(made.fit_transform(pictures), first)
    assert calls == [18]


def test_unreadable_pictures(pictures):
    X = [pictures[0], b"no picture", pictures[1]]
    with pytest.raises(ValueError, match=r"X\[1\]"):
        CLIPLayerStatistics(MODEL).transform(X)
    with pytest.warns(UnreadablePictureWarning, match="1 of 3"):
        rows = CLIPLayerStatistics(MODEL, on_error="nan").transform(X)
    assert np.isnan(rows[1]).all()
    assert_array_equal(rows[[0, 2]], CLIPLayerStatistics(MODEL).transform(pictures[:2]))


@pytest.mark.parametrize("model", ["skclip-tiny-rn", "ViT-B-16-SigLIP/webli"])
def test_other_towers_are_refused_before_anything_is_loaded(model, pictures):
    for method in (CLIPLayerStatistics(model).fit, CLIPLayerStatistics(model).transform):
        with pytest.raises(ValueError, match=f"model='{model}': its image tower is "):
            method(pictures)


def test_names_and_pickles(pictures):
    made = CLIPLayerStatistics(MODEL).fit(pictures)
    names = made.get_feature_names_out()
    assert names[0] == "cliplayerstatistics0"
    assert len(names) == WIDTH == len(CLIPLayerStatistics(MODEL).get_feature_names_out())
    made.transform(pictures)
    assert len(pickle.dumps(made)) < 2_000
