from __future__ import annotations

import types
import warnings

import numpy as np
import open_clip
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from open_clip.hf_model import HFTextEncoder, MeanPooler

from skclip._backbones import TruncatedTextWarning, get_card, load_backbone
from skclip._backbones import _text as text
from skclip._backbones._text import encode_ids, is_causal, read_lengths, text_tower

TEXTS = [
    "a dog",
    "",
    "a photo of a very long-named thing, standing on a mat in the rain, drawn by nobody in particular",
    "a cat!",
    "a dog",
    "!!! 0 !",
    "word " * 75,
]
KINDS = ["vit", "quick", "resnet", "custom", "eos", "two-way", "last", "coca"]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_full_length(models, kind):
    backbone = load_backbone(models(kind), device="cpu")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedTextWarning)
        expected = backbone.module.encode_text(backbone.tokenizer(TEXTS), normalize=False).numpy()
        found = backbone.encode_texts(TEXTS)
    assert found.dtype == np.float32
    assert_allclose(found, expected, atol=1e-6 * max(1, np.abs(expected).max()))
    assert_array_equal(found[0], found[4])


@pytest.mark.parametrize("kind", KINDS)
def test_causal_towers_read_to_the_end_token_only(models, kind):
    backbone = load_backbone(models(kind), device="cpu")
    ids = backbone.tokenizer(["a dog", "a photo of a dog", ""])
    lengths = read_lengths(backbone.module, ids).tolist()
    causal = is_causal(text_tower(backbone.module))
    assert causal == get_card(models(kind)).causal_text == (kind not in ("two-way", "last", "coca"))
    assert lengths == ([4, 7, 2] if causal else [backbone.card.context_length] * 3)


def test_work_is_sorted_cut_and_shared(models, monkeypatch):
    backbone = load_backbone(models("vit"), device="cpu")
    shapes = []
    monkeypatch.setattr(text, "encode_ids", lambda m, ids: shapes.append(tuple(ids.shape)) or encode_ids(m, ids))
    backbone.encode_texts(["a photo of a dog", "a cat", "a dog", "a cat", "a photo of a cat"], batch_size=2)
    assert shapes == [(2, 7), (2, 4)]
    shapes.clear()
    backbone.encode_texts([f"a {i}" for i in range(500)])
    assert all(rows * length <= 1024 for rows, length in shapes)
    assert len(shapes) < 10


def test_empty_list(models):
    assert load_backbone(models("vit"), device="cpu").encode_texts([]).shape == (0, 24)


@pytest.mark.parametrize(
    ("texts", "message"),
    [("a dog", "single text"), (["a", 3], r"texts\[1\] is not a str: 3"), ([None], r"texts\[0\]")],
)
def test_wrong_texts(models, texts, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(models("vit"), device="cpu").encode_texts(texts)


@pytest.mark.parametrize("kind", ["vit", "coca"])
def test_cut_texts_warn(models, kind):
    backbone = load_backbone(models(kind), device="cpu")
    room = backbone.card.context_length - 2
    exact, over = "dog " * room, "cat " * (room + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone.encode_texts(["a", exact])
    with pytest.warns(TruncatedTextWarning, match=r"2 of 4 texts .*first at position 1: 'cat cat") as caught:
        backbone.encode_texts(["a", over, exact, over])
    assert len(caught) == 1


def test_tokenizer_options_of_the_configuration(models, own_folder):
    path = own_folder / "open_clip_config.json"
    path.write_text(path.read_text().replace('"heads"', '"tokenizer_kwargs": {"clean": "canonicalize"}, "heads"'))
    plain = load_backbone(models("vit"), device="cpu").tokenizer(["A dog!"])
    canonical = load_backbone(f"local-dir:{own_folder}", device="cpu").tokenizer(["A dog!"])
    assert plain.ne(0).sum() == 5
    assert canonical.ne(0).sum() == 4
    assert_array_equal(plain, open_clip.get_tokenizer("ViT-B-32")(["A dog!"]))


class MaskedTower(HFTextEncoder):
    """A two-way tower that masks padding, in the shape of open_clip's adapter for such towers."""

    def __init__(self, pad):
        torch.nn.Module.__init__(self)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.embedding = torch.nn.Embedding(50, 16)
        self.places = torch.nn.Parameter(torch.randn(20, 16))
        self.config = types.SimpleNamespace(pad_token_id=pad)
        self.pooler, self.proj, self.output_tokens = MeanPooler(), torch.nn.Linear(16, 8), False

    def transformer(self, input_ids, attention_mask):
        x = self.embedding(input_ids) + self.places[: input_ids.shape[1]]
        x = self.layers(x, src_key_padding_mask=attention_mask == 0)
        return types.SimpleNamespace(last_hidden_state=x)


@pytest.mark.parametrize("pad", [0, 1])
def test_towers_that_mask_padding_are_cut_at_the_last_token(pad):
    torch.manual_seed(0)
    tower = MaskedTower(pad).eval()
    module = torch.nn.Module()
    module.text = tower
    module.encode_text = lambda ids, normalize: tower(ids)
    ids = torch.randint(2, 50, (4, 20))
    for row, n in enumerate((3, 9, 1, 5)):
        ids[row, n:] = pad
    lengths = read_lengths(module, ids)
    assert lengths.tolist() == [3, 9, 1, 5]
    with torch.no_grad():
        full = tower(ids)
        cut = encode_ids(module, ids[:, :9])
    assert_allclose(cut.numpy(), full.numpy(), atol=1e-6)
    left = ids.flip(1)
    assert read_lengths(module, left).tolist() == [20] * 4
