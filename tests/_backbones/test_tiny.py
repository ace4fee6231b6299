import numpy as np
import pytest
import torch

from skclip import CLIPTextFeatures
from skclip._backbones._open_clip import import_open_clip
from skclip._backbones._tiny import (
    TINY_NAMES,
    TinyTokenizer,
    UnknownWordWarning,
    load_tiny,
    tiny_config,
    tiny_weights_path,
)
from skclip._backbones._tiny_training import (
    BATCH_SIZE,
    _batches,
    _contrastive,
    _embed,
    _encode_text,
    evaluate_tiny_clip,
    train_tiny_clip,
)
from skclip.datasets._scenes import HELD_OUT_PAIRS


@pytest.mark.parametrize("name", TINY_NAMES)
def test_ordinary_open_clip_models_with_room_for_deep_prompts(name):
    module, tokenizer = load_tiny(name)
    assert type(module) is import_open_clip().CLIP
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert tokenizer.context_length >= 64
    assert len(module.transformer.resblocks) >= 4
    if name == "skclip-tiny":
        assert len(module.visual.transformer.resblocks) >= 4
    card = tiny_weights_path(name).with_suffix(".md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n")


def test_both_models_have_at_most_8_megabytes():
    folder = tiny_weights_path("skclip-tiny").parent
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8e6


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_tiny("skclip-tiny")
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY_NAMES)
def test_the_bundled_weights_reach_what_their_card_says(name):
    module, _ = load_tiny(name)
    config = tiny_config(name)
    figures = evaluate_tiny_clip(module, config)
    assert figures.keys() == config["evaluation"].keys()
    for measure, value in config["evaluation"].items():
        assert figures[measure] == pytest.approx(value, abs=0.5), measure
    assert figures["zero_shot_all"] >= 99
    assert figures["zero_shot_held_out_pairs"] >= 95
    assert figures["digits"] >= 97
    if name == "skclip-tiny":
        assert figures["patch_accuracy"] >= 60


def test_tokenizer_ids():
    tokenizer = TinyTokenizer(["a", "circle", "red"], 8)
    ids = tokenizer(["A red, circle!", "a " * 20])
    assert ids.tolist() == [[2, 3, 5, 4, 6, 0, 0, 0], [2, 3, 3, 3, 3, 3, 3, 6]]
    assert ids.dtype == torch.int64
    assert (ids.argmax(1) == torch.tensor([4, 7])).all()
    assert tokenizer("red", context_length=4).tolist() == [[2, 5, 6, 0]]


def test_unknown_words_warn_with_word_and_position():
    with pytest.warns(UnknownWordWarning, match=r"'giraffe' \(text 1\)"):
        CLIPTextFeatures("skclip-tiny", store=None).transform(["a red circle", "a red giraffe"])


@pytest.mark.slow
def test_training_is_a_function_of_its_seed():
    states = [train_tiny_clip("vit", seed=seed, n_steps=8, n_detail_steps=0)[0].state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("first", [0, 160, 320])
def test_training_never_shows_held_out_pairs(first):
    held = [" ".join(pair) for pair in HELD_OUT_PAIRS]
    batches = _batches("vit", 0, first, 320, 16, 48)
    for _ in range(8):
        _, batch = next(batches)
        assert batch["images"].shape == (BATCH_SIZE, 48, 48, 3)
        assert len(batch["captions"]) == BATCH_SIZE
        assert not any(pair in caption for pair in held for caption in batch["captions"])
        assert batch["truth"].diagonal()[-1]


@pytest.mark.slow
def test_resumed_training_sees_the_same_pictures():
    whole = _batches("rn", 5, 0, 32, 0, 64)
    resumed = _batches("rn", 5, 16, 32, 0, 64)
    seen = dict(whole)
    for step, batch in resumed:
        assert seen[step]["captions"] == batch["captions"]
        assert torch.equal(seen[step]["images"], batch["images"])


def test_contrastive_loss_against_plain_infonce():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(6, 6, dtype=torch.bool)
    own = torch.arange(6)
    expected = 0.5 * (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own))
    assert _contrastive(logits, own, none) == pytest.approx(expected.item(), abs=1e-6)
    # a caption that is true of picture 0, but not its own, is no negative of it
    truth = none.clone()
    truth[0, 3] = True
    lower = logits.clone()
    lower[0, 3] = -1e4
    assert _contrastive(logits, own, truth) == pytest.approx(_contrastive(lower, own, none).item(), abs=1e-6)
    # equal captions share the target
    twice = torch.tensor([0, 0, 2, 3, 4, 5])
    rows = logits.log_softmax(1)
    by_hand = -(rows[0, :2].mean() + rows[1, :2].mean() + rows[[2, 3, 4, 5], [2, 3, 4, 5]].sum()) / 6
    columns = logits.log_softmax(0)
    by_hand -= (columns[:2, 0].mean() + columns[:2, 1].mean() + columns[[2, 3, 4, 5], [2, 3, 4, 5]].sum()) / 6
    assert _contrastive(logits, twice, none) == pytest.approx(by_hand.item() / 2, abs=1e-6)


def test_training_forward_is_the_models_own():
    module, tokenizer = load_tiny("skclip-tiny")
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    ids = tokenizer(["a red circle", "a photo of a large striped blue star at the top left"])
    with torch.no_grad():
        pooled, grid = _embed(module, pixels)
        assert torch.nn.functional.cosine_similarity(pooled, module.encode_image(pixels)).min() > 0.99
        np.testing.assert_allclose(_encode_text(module, ids), module.encode_text(ids), atol=1e-5)
    assert grid.shape == (3, 36, 128)
