"""Learned prompts on text towers of other kinds: without a mask, without a start token, of transformers."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch

from skclip._backbones import Backbone, get_card
from skclip._backbones._building import build_module
from skclip._backbones._open_clip import import_open_clip
from skclip.tuning.prompts._cocoop import CoCoOpClassifier
from skclip.tuning.prompts._coop import CoOpClassifier
from skclip.tuning.prompts._kgcoop import KgCoOpClassifier

import_open_clip()

NAMES = ["small dog", "cat", "very old car"]
WORDS = sorted({word for name in NAMES for word in name.split()} | {"a", "photo", "of", "."})
CONTEXT = 16
TEXT = {"context_length": CONTEXT, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TOWERS = {
    "clip": {},
    "two-way": {"no_causal_mask": True},
    "last": {"no_causal_mask": True, "pool_type": "last"},
    "siglip": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "bert": {},
}


class WordTokenizer:
    """Words to ids 3, 4, ...; start token 58, end token 59 and padding 0, or end token and padding 1 alone."""

    def __init__(self, kind):
        self.context_length = CONTEXT
        self.start, self.end, self.padding = ([], 1, 1) if kind == "siglip" else ([58], 59, 0)
        self.tokenizer = types.SimpleNamespace(pad_token_id=self.padding, eos_token_id=self.end)

    def __call__(self, texts, context_length=None):
        length = context_length or self.context_length
        ids = torch.full((len(texts), length), self.padding)
        for row, text in enumerate(texts):
            words = text.replace(".", " .").split()
            codes = [*self.start, *(3 + WORDS.index(word) for word in words), self.end][:length]
            ids[row, : len(codes)] = torch.tensor(codes)
        return ids


def make_backbone(kind):
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": {**TEXT, **TOWERS[kind]}, "custom_text": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_module(config)
        if kind == "bert":
            from open_clip.hf_model import HFTextEncoder
            from transformers import BertConfig

            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            bert = BertConfig(vocab_size=60, max_position_embeddings=CONTEXT, pad_token_id=0, **sizes)
            module.text = HFTextEncoder("", 24, config=bert, pooler_type="cls_pooler", proj_type="linear")
    return Backbone(
        get_card("ViT-B-32/openai"),
        digest=kind,
        module=module,
        make_tokenizer=lambda: WordTokenizer(kind),
        device=torch.device("cpu"),
        precision="float32",
    )


@pytest.fixture(scope="module")
def backbones():
    return {kind: make_backbone(kind) for kind in TOWERS}


@pytest.fixture(params=list(TOWERS))
def model(request, backbones, monkeypatch):
    """A backbone that every model name stands for, and labelled features that its class names recognise."""
    backbone = backbones[request.param]
    backbone.card = types.SimpleNamespace(name="tiny", logit_scale=None, dim=24, context_length=CONTEXT)
    monkeypatch.setattr("skclip.tuning._tuned.load_backbone", lambda *_, **__: backbone)
    rows = backbone.encode_texts([f"{name}." for name in NAMES])
    noise = np.random.default_rng(0).normal(size=(30, 24))
    X = np.repeat(rows / np.linalg.norm(rows, axis=1, keepdims=True), 10, axis=0) + 0.001 * noise
    return backbone, X, np.repeat(NAMES, 10)


def unit_texts(backbone, template="a photo of a {}."):
    ids = backbone.tokenizer([template.format(name) for name in sorted(NAMES)])
    rows = backbone.module.encode_text(ids, normalize=False)
    return torch.nn.functional.normalize(rows, dim=1).detach().numpy()


@pytest.mark.parametrize("class_specific", [False, True])
def test_untrained_prompts_are_the_words_that_they_begin_with(model, class_specific):
    backbone, X, y = model
    clf = CoOpClassifier("any", ctx_init="a photo of a", class_specific=class_specific, max_iter=0, random_state=0)
    clf.fit(X, y)
    assert clf.ctx_.shape == ((3, 4, 32) if class_specific else (4, 32))
    np.testing.assert_allclose(clf.text_features_, unit_texts(backbone), atol=1e-5)
    ids = backbone.tokenizer(["a photo of a"])[0]
    first = len(backbone.tokenizer.start)
    words = backbone.module.get_parameter(
        "text.transformer.embeddings.word_embeddings.weight"
        if hasattr(backbone.module.text.transformer, "embeddings")
        else "text.token_embedding.weight"
    )
    np.testing.assert_array_equal(clf.ctx_.reshape(-1, 4, 32)[-1], words[ids[first : first + 4]].numpy())


@pytest.mark.parametrize("position", ["front", "middle"])
def test_the_place_of_the_name(model, position):
    backbone, X, y = model
    template = {"front": "{} a photo of a.", "middle": "a photo {} of a."}[position]
    clf = CoOpClassifier("any", ctx_init="a photo of a", class_position=position, max_iter=0).fit(X, y)
    np.testing.assert_allclose(clf.text_features_, unit_texts(backbone, template), atol=1e-5)


@pytest.mark.parametrize("cls", [CoOpClassifier, KgCoOpClassifier, CoCoOpClassifier])
def test_prompts_learn(model, cls):
    backbone, X, y = model
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    start, clf = (
        cls("any", n_ctx=4, max_iter=max_iter, batch_size=10, random_state=0).fit(X, y) for max_iter in (0, 4)
    )
    assert 1e-6 < np.abs(clf.ctx_ - start.ctx_).max() < 1.0
    assert np.isfinite(clf.with_classes(["car", "old dog"]).logits(X)).all()
    assert all(torch.equal(before[name], value) for name, value in backbone.module.state_dict().items())


def test_token_ids_stand_between_start_and_end(backbones):
    for kind, backbone in backbones.items():
        ids = backbone.token_ids(["", "cat", "a " * 50])
        start, end = backbone.tokenizer.start, backbone.tokenizer.end
        assert ids[0] == [*start, end]
        assert ids[1] == [*start, 3 + WORDS.index("cat"), end]
        assert len(ids[2]) == len(start) + 51
        assert backbone.pad_id == (1 if kind == "siglip" else 0)


@pytest.mark.filterwarnings("ignore::skclip._backbones.TruncatedTextWarning")
def test_names_that_do_not_fit(model):
    _, X, y = model
    names = {name: name for name in NAMES} | {"cat": "cat " * 20}
    with pytest.raises(ValueError, match=r"'cat cat .*more than the 16 that the model reads"):
        CoOpClassifier("any", class_names=names, n_ctx=4, max_iter=1, random_state=0).fit(X, y)


@pytest.mark.parametrize("class_specific", [False, True])
def test_vectors_that_do_not_fit(model, class_specific):
    """Start, 12 or 13 vectors, the three words of the longest name, full stop and end in 16 places."""
    backbone, X, y = model
    n_most = 11 - len(backbone.tokenizer.start)
    params = {"class_specific": class_specific, "max_iter": 0}
    clf = CoOpClassifier("any", n_ctx=n_most, **params).fit(X, y)
    assert np.isfinite(clf.text_features_).all()
    message = (
        rf"class 'very old car' has 17 tokens \({n_most + 1} learned, 3 of its name\), more than the 16 that the model "
        "reads; use a smaller n_ctx"
    )
    with pytest.raises(ValueError, match=message):
        CoOpClassifier("any", n_ctx=n_most + 1, **params).fit(X, y)


def test_vectors_that_do_not_fit_clip(monkeypatch):
    """77 places, and the tokens of CLIP."""
    from open_clip import SimpleTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = {**TEXT, "context_length": 77, "vocab_size": 49408}
        module = build_module({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text})
    backbone = Backbone(
        get_card("ViT-B-32/openai"),
        digest="clip",
        module=module,
        make_tokenizer=SimpleTokenizer,
        device=torch.device("cpu"),
        precision="float32",
    )
    backbone.card = types.SimpleNamespace(name="tiny", logit_scale=None, dim=24, context_length=77)
    monkeypatch.setattr("skclip.tuning._tuned.load_backbone", lambda *_, **__: backbone)
    X, y = backbone.encode_texts(["cat.", "tree."]), ["cat", "tree"]
    params = {"model": "any", "max_iter": 0, "random_state": 0}
    clf = CoOpClassifier(**params, n_ctx=73).fit(X, y)
    assert clf.ctx_.shape == (73, 32)
    with pytest.raises(ValueError, match=r"'red car' has 78 tokens \(73 learned, 2 of its name\)"):
        clf.with_classes(["cat", "red car"])
    message = r"has 79 tokens \(75 learned, 1 of its name\), more than the 77 .* use a smaller n_ctx or a shorter name"
    with pytest.raises(ValueError, match=message):
        CoOpClassifier(**params, n_ctx=75).fit(X, y)
