import numpy as np
import pandas as pd
import polars as pl
import pytest

from skclip import CLIPTextFeatures
from skclip._backbones import load_backbone
from skclip._backbones._loading import Backbone

MODEL = "skclip-tiny"
TEXTS = ["a photo of a red circle", "a blue star", "a large striped green heart at the top left", "a blue star"]


def test_rows_are_the_models_own():
    import torch

    backbone = load_backbone(MODEL)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(backbone.module.encode_text(backbone.tokenizer(TEXTS)), dim=1)
    ours = CLIPTextFeatures(MODEL).fit_transform(TEXTS)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)


def test_equal_texts_are_encoded_once(monkeypatch, empty_stores):
    seen = []
    original = Backbone.encode_texts
    monkeypatch.setattr(
        Backbone, "encode_texts", lambda self, texts, **kw: seen.extend(texts) or original(self, texts, **kw)
    )
    for _ in range(2):
        CLIPTextFeatures(MODEL).transform(TEXTS)
    assert sorted(seen) == sorted(set(TEXTS))


def test_every_kind_of_input_gives_the_same_rows():
    expected = CLIPTextFeatures(MODEL).transform(TEXTS)
    for X in (
        tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object)[:, None], pd.Series(TEXTS, index=list("abcd")),
        pd.DataFrame({"text": TEXTS}), pl.Series(TEXTS), pl.DataFrame({"text": TEXTS}),
    ):  # fmt: skip
        np.testing.assert_array_equal(CLIPTextFeatures(MODEL).transform(X), expected)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([], ValueError, "0 sample"),
        ("a text", TypeError, "single text"),
        (["a", None], TypeError, r"X\[1\] is a NoneType"),
        (["a", 3.0], TypeError, r"X\[1\] is a float"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), ValueError, "2 columns"),
        (pl.DataFrame({"a": ["x"], "b": ["y"]}), ValueError, "2 columns"),
        (iter(["a"]), TypeError, "list"),
    ],
)
def test_wrong_kinds_of_input(X, error, message):
    with pytest.raises(error, match=message):
        CLIPTextFeatures(MODEL).transform(X)


def test_names_and_containers():
    features = CLIPTextFeatures(MODEL)
    assert features.get_feature_names_out()[:1].tolist() == ["cliptextfeatures0"]
    assert features.set_output(transform="pandas").fit_transform(TEXTS).shape == (4, 128)


def test_without_a_model_the_default_one_is_meant():
    assert CLIPTextFeatures()._model() == "ViT-B-32/datacomp_xl_s13b_b90k"
