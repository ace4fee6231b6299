"""GOPro: learned words that the statistics of all layers move, held to those of augmented views."""

from __future__ import annotations

import pickle
from copy import copy

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.pipeline import Pipeline

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip._backbones import TextTower, load_backbone
from skclip.datasets import make_picture_world
from skclip.features import CLIPLayerStatistics
from skclip.tuning.prompts import CoOpClassifier, GOProClassifier
from skclip.tuning.prompts._gopro import ViewsOfKinds, self_supervision, shifts
from skclip.utils import SkclipWarning

MODEL = "skclip-tiny"
D, L, W, TEXT = 128, 4, 96, 64
COMMON = {"model": MODEL, "batch_size": 8, "max_iter": 2, "learning_rate": 0.02, "random_state": 0}
ALONE = {"consistency_weight": 0.0, "ssl_weight": 0.0}
MOVING = ("style.weight", "style.bias", "content.weight", "content.bias", "layers.weight", "layers.bias")


@pytest.fixture(scope="module")
def world():
    made = make_picture_world(24, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    return made.images, made.target


@pytest.fixture(scope="module")
def rows(world):
    """Statistics (n, 3, width) and labels."""
    return CLIPLayerStatistics(MODEL, n_views=3, random_state=0).fit_transform(world[0]), world[1]


@pytest.fixture(scope="module")
def fitted(rows):
    return GOProClassifier(**COMMON).fit(*rows)


def changed(clf, **values):
    """A copy whose learned tensors of these names (dots as underscores) hold these values."""
    made = copy(clf)
    made.state_delta_ = dict(clf.state_delta_)
    for name, value in values.items():
        key = name.replace("_", ".")
        made.state_delta_[key] = np.full_like(clf.state_delta_[key], value)
    return made


def slow_shift(statistics, learned):
    """Layer by layer, as the paper has it, for one picture (L, 2, W), in float64."""
    shift = np.full(TEXT, learned["layers.bias"][0], dtype=np.float64)
    for layer, (mean, deviation) in enumerate(np.asarray(statistics, dtype=np.float64)):
        style = learned["style.weight"][layer] @ ((mean + deviation) / 2) + learned["style.bias"][layer]
        content = learned["content.weight"][layer] @ mean + learned["content.bias"][layer]
        shift += learned["layers.weight"][0, layer] * (style + content) / 2
    return shift


def slow_cosines(row, learned, names):
    """One picture, one class at a time, through open_clip's own tower."""
    backbone = load_backbone(MODEL, precision="float32")
    module, found = backbone.module, []
    image = torch.tensor(row[:D])
    moved = learned["ctx"] + slow_shift(row[D:].reshape(L, 2, W), learned)
    for name in names:
        ids = backbone.tokenizer([f"a photo of a {name}."])
        tokens = module.token_embedding(ids)[0].clone()
        tokens[1:5] = torch.tensor(moved)
        hidden = module.transformer((tokens + module.positional_embedding)[None], attn_mask=module.attn_mask)
        text = module.ln_final(hidden[0, ids[0].argmax()]) @ module.text_projection
        found.append(float(torch.cosine_similarity(image, text, dim=0)))
    return np.array(found)


def test_what_is_learned(rows, fitted):
    shapes = {name: value.shape for name, value in fitted.state_delta_.items()}
    assert shapes["ctx"] == fitted.ctx_.shape == (4, TEXT)
    assert shapes["style.weight"] == shapes["content.weight"] == (L, TEXT, W)
    assert [shapes[name] for name in ("layers.weight", "layers.bias", "head.weight")] == [(1, L), (1,), (D, D)]
    assert fitted.n_features_in_ == D + 2 * L * W
    assert set(fitted.loss_terms_) == {"cross_entropy", "consistency", "ssl"}
    start = GOProClassifier(**{**COMMON, "max_iter": 0}).fit(*rows).state_delta_
    assert start.keys() == fitted.state_delta_.keys()
    for name in ("ctx", *MOVING, "head.weight", "norm.weight"):
        assert not np.array_equal(fitted.state_delta_[name], start[name]), name


def test_without_a_shift_it_is_the_hand_written_prompt(rows):
    X, y = rows
    clf = GOProClassifier(**{**COMMON, "max_iter": 0}).fit(X, y)
    still = changed(clf, layers_weight=0.0, layers_bias=0.0)
    names = {name: name for name in clf.classes_}
    zero_shot = ZeroShotClassifier(MODEL, class_names=names, templates="a photo of a {}.").fit()
    expected = zero_shot.logits(X[:, 0, :D]) / zero_shot.logit_scale_
    np.testing.assert_allclose(still.logits(X) / clf.logit_scale_, expected, atol=1e-5)
    np.testing.assert_allclose(clf.text_features_, zero_shot.prototypes_, atol=1e-5)
    assert np.abs(clf.logits(X) / clf.logit_scale_ - expected).max() > 1e-3


def test_without_weights_of_layers_it_is_coop(rows, fitted):
    X, y = rows
    coop = CoOpClassifier(**{**COMMON, "max_iter": 0}, ctx_init="a photo of a").fit(X[:, 0, :D], y)

    def like(ctx):
        made = copy(coop)
        made.state_delta_ = {"ctx": ctx}
        made._encode_classes(made._restored())
        return made.logits(X[:, 0, :D])

    still = changed(fitted, layers_weight=0.0, layers_bias=0.0)
    np.testing.assert_allclose(still.logits(X), like(fitted.ctx_), rtol=1e-4, atol=1e-3)
    assert np.abs(fitted.logits(X) - still.logits(X)).max() > 0.05
    # what rho_0 adds to all units alike, the norms of the text tower take away
    constant = changed(fitted, layers_weight=0.0, layers_bias=0.05)
    np.testing.assert_allclose(constant.logits(X), like(fitted.ctx_ + np.float32(0.05)), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(constant.logits(X), still.logits(X), rtol=1e-4, atol=1e-3)


def test_the_shift_is_one_affine_map():
    random = np.random.default_rng(0)
    shapes = [(L, TEXT, W), (L, TEXT), (L, TEXT, W), (L, TEXT), (1, L), (1,)]
    learned = {name: random.normal(size=shape) for name, shape in zip(MOVING, shapes)}
    statistics = random.normal(size=(5, L, 2, W))
    found = shifts(torch.tensor(statistics).flatten(1), {name: torch.tensor(v) for name, v in learned.items()})
    np.testing.assert_allclose(found, [slow_shift(of_one, learned) for of_one in statistics], rtol=1e-10)


def test_every_picture_has_prompts_of_its_own(rows, fitted):
    X = rows[0][:3]
    found = fitted.logits(X) / fitted.logit_scale_
    with torch.no_grad():
        expected = [slow_cosines(row, fitted.state_delta_, fitted.classes_) for row in X[:, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_without_views_it_is_coop_conditioned_on_the_picture(rows):
    """The loss of the first epoch, before a step of any size, is that of the plain path; other views are not read."""
    X, y = rows
    params = {**COMMON, **ALONE, "batch_size": len(y)}
    alone = GOProClassifier(**params).fit(X[:, 0], y)
    assert list(alone.loss_terms_) == ["cross_entropy"]
    start = GOProClassifier(**{**params, "max_iter": 0}).fit(X[:, 0], y)
    with torch.no_grad():
        cosines = np.stack([slow_cosines(row, start.state_delta_, start.classes_) for row in X[:, 0]])
    logits = torch.tensor(start.logit_scale_ * cosines)
    codes = torch.tensor(np.searchsorted(start.classes_, y))
    expected = torch.nn.functional.cross_entropy(logits, codes)
    np.testing.assert_allclose(alone.loss_curve_[0], expected, rtol=1e-4)
    with_views = GOProClassifier(**params).fit(X, y)
    np.testing.assert_array_equal(with_views.logits(X), alone.logits(X))


def test_views_that_are_equal_do_not_differ(rows, fitted):
    X, y = rows
    same = np.repeat(X[:, :1], 3, axis=1)
    clf = GOProClassifier(**{**COMMON, "max_iter": 1}).fit(same, y)
    assert max(clf.loss_terms_["consistency"]) < 1e-12
    assert min(fitted.loss_terms_["consistency"]) > 1e-5


def test_consistency_draws_the_text_of_views_together(rows):
    """Of the same pictures, trained with it and without."""
    X, y = rows
    apart = GOProClassifier(**{**COMMON, "max_iter": 6}, consistency_weight=1e-9, ssl_weight=0.0).fit(X, y)
    held = GOProClassifier(**{**COMMON, "max_iter": 6}, consistency_weight=300.0, ssl_weight=0.0).fit(X, y)
    assert held.loss_terms_["consistency"][-1] / 300.0 < 0.5 * apart.loss_terms_["consistency"][-1] / 1e-9


def test_the_contrastive_loss_of_the_head_moves_no_prediction(rows, fitted):
    X, y = rows
    without = GOProClassifier(**COMMON, ssl_weight=0.0).fit(X, y)
    np.testing.assert_array_equal(without.predict_proba(X), fitted.predict_proba(X))
    assert not np.array_equal(without.state_delta_["head.weight"], fitted.state_delta_["head.weight"])


def test_the_contrastive_loss_of_the_prompts_moves_predictions(rows):
    X, y = rows
    params = {**COMMON, "ssl_affects": "prompts", "learning_rate": 0.002}
    start = GOProClassifier(**{**params, "max_iter": 0}).fit(X, y)
    as_head = GOProClassifier(**{**params, "max_iter": 0, "ssl_affects": "head"}).fit(X, y)
    np.testing.assert_allclose(start.logits(X), as_head.logits(X), rtol=1e-4, atol=1e-4)
    with_loss, without = (GOProClassifier(**params, ssl_weight=weight).fit(X, y) for weight in (1.0, 0.0))
    assert np.abs(with_loss.logits(X) - without.logits(X)).max() > 1e-4
    assert np.abs(with_loss.state_delta_["text.weight"] - np.eye(D)).max() > 1e-5


@pytest.mark.parametrize("ssl_affects", ["head", "prompts"])
def test_half_precision_trains_alike(ssl_affects, rows):
    X, y = rows
    params = {**COMMON, "ssl_affects": ssl_affects, "learning_rate": 0.002}
    half, whole = (GOProClassifier(**params, precision=precision).fit(X, y) for precision in ("bf16", "float32"))
    assert set(half.loss_terms_) == {"cross_entropy", "consistency", "ssl"}
    np.testing.assert_allclose(half.loss_terms_["cross_entropy"], whole.loss_terms_["cross_entropy"], rtol=0.1)
    np.testing.assert_allclose(half.predict_proba(X), whole.predict_proba(X), atol=0.1)
    assert not np.array_equal(half.ctx_, whole.ctx_)  # it was in half precision


def test_the_contrastive_loss_of_one_picture_is_nothing():
    first = torch.randn((5, 6), generator=torch.Generator().manual_seed(0))
    learned = {"image.weight": torch.eye(6), "image.bias": torch.zeros(6)}
    assert float(self_supervision(first[:1], first[1:2], learned)) == 0.0
    vectors = torch.nn.functional.normalize(torch.cat([first[:2], first[2:4]])).double()
    scores = (vectors @ vectors.T / 0.5).exp()
    scores.fill_diagonal_(0.0)
    expected = -sum((scores[i, (i + 2) % 4] / scores[i].sum()).log() for i in range(4)) / 4
    np.testing.assert_allclose(self_supervision(first[:2], first[2:4], learned, 0.5), expected, rtol=1e-5)


def test_the_head_is_normalised_over_the_batch():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 4, 6))
    head = {"head.weight": random.normal(size=(6, 6)), "head.bias": random.normal(size=6)}
    learned = {**head, "norm.weight": random.normal(size=6), "norm.bias": random.normal(size=6)}

    def outputs(rows):
        mapped = rows @ head["head.weight"].T + head["head.bias"]
        standard = (mapped - mapped.mean(axis=0)) / np.sqrt(mapped.var(axis=0) + 1e-5)
        made = standard * learned["norm.weight"] + learned["norm.bias"]
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    vectors = np.concatenate([outputs(first), outputs(second)])
    scores = np.exp(vectors @ vectors.T / 0.1)
    np.fill_diagonal(scores, 0.0)
    expected = -np.mean([np.log(scores[i, (i + 4) % 8] / scores[i].sum()) for i in range(8)])
    tensors = {name: torch.tensor(value) for name, value in learned.items()}
    np.testing.assert_allclose(self_supervision(torch.tensor(first), torch.tensor(second), tensors), expected)


@pytest.mark.parametrize("n_views", [1, 2, 3, 4, 7])
def test_views_of_each_kind_take_turns(n_views):
    views = torch.arange(n_views).expand(50, n_views)[..., None]
    inputs = ViewsOfKinds(views)
    parts = [np.arange(20), np.arange(20, 50)]
    shown = torch.cat(list(inputs.batches(parts, 0, torch.Generator().manual_seed(0))))[..., 0]
    assert len(inputs) == len(shown) == 50
    assert shown.shape[1] == min(n_views, 3)
    expected = [{0}, set(range(1, n_views, 2)), set(range(2, n_views, 2))]
    assert [set(column.tolist()) for column in shown.T] == expected[: shown.shape[1]]
    again = torch.cat(list(inputs.batches(parts[1:], 0, torch.Generator().manual_seed(0))))[..., 0]
    assert torch.equal(again, shown[20:])


def test_rows_do_not_depend_on_their_company(rows, fitted, monkeypatch):
    X, _ = rows
    whole, sizes, call = fitted.logits(X), [], TextTower.__call__

    def watched(self, prompts, **options):
        sizes.append(len(prompts.prefix))
        return call(self, prompts, **options)

    np.testing.assert_allclose(fitted.logits(X[5:6]), whole[5:6], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fitted.logits(X[::-1, 0])[::-1], whole, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(TextTower, "__call__", watched)
    with config_context(working_memory=1):
        np.testing.assert_allclose(fitted.logits(X), whole, rtol=1e-4, atol=1e-4)
    assert sum(sizes) == len(X)
    assert 1 < max(sizes) < 20
    longer = X.astype(np.float64)
    longer[..., :D] *= 3.0  # features may have any length, statistics are as they are
    assert longer.dtype == fitted.logits(longer).dtype
    np.testing.assert_allclose(fitted.logits(longer), whole, rtol=1e-4, atol=1e-4)


def test_new_classes_have_prompts_of_their_own(rows, fitted):
    new = fitted.with_classes(["green star", "red circle"])
    assert new.text_features_.shape == (2, D)
    known = list(fitted.classes_).index("red circle")
    np.testing.assert_allclose(new.logits(rows[0])[:, 1], fitted.logits(rows[0])[:, known], rtol=1e-4, atol=1e-3)


def test_behind_the_transformer_in_a_pipeline(world, fitted):
    steps = [("statistics", CLIPLayerStatistics(MODEL, n_views=3, random_state=0)), ("clf", GOProClassifier(**COMMON))]
    made = pickle.loads(pickle.dumps(Pipeline(steps).fit(*world)))
    statistics = steps[0][1].transform(world[0])
    np.testing.assert_array_equal(made.predict(world[0]), fitted.predict(statistics))


def test_early_stopping_and_weights(rows):
    X, y = rows
    clf = GOProClassifier(**COMMON, early_stopping=True, validation_fraction=0.25)
    clf.fit(X, y, sample_weight=np.arange(len(y)) % 3)
    assert len(clf.validation_scores_) == clf.n_iter_


def test_one_view_has_nothing_to_compare(rows):
    X, y = rows
    clf = GOProClassifier(**{**COMMON, "max_iter": 0})
    with pytest.warns(
        SkclipWarning, match=r"consistency_weight=1.0 and ssl_weight=0.1 have nothing to compare"
    ) as seen:
        clf.fit(X[:, 0], y)
    assert seen[0].filename == __file__
    assert clf.loss_terms_ == {}


def test_other_rows_are_refused(world, rows):
    with pytest.raises(ValueError, match=r"X has 128 columns, .* 128 \+ 2 \* 4 \* 96 = 896 .* CoCoOpClassifier"):
        GOProClassifier(MODEL).fit(CLIPFeatures(MODEL).transform(world[0]), world[1])
    with pytest.raises(ValueError, match="its image tower is a ResNet"):
        GOProClassifier("skclip-tiny-rn").fit(*rows)
    with pytest.raises(ValueError, match="ssl_affects"):
        GOProClassifier(MODEL, ssl_affects="everything").fit(*rows)


@pytest.mark.slow
def test_words_learned_in_one_style_serve_in_others():
    """Eight shapes in noise, learned from some 16 photos of each: 6 points above zero-shot when written."""

    def drawn(n, style, seed):
        made = make_picture_world(n, styles=[style], noise=40.0, random_state=seed)
        return made.images, np.array([name.split()[1] for name in made.target])

    images, y = drawn(128, "photo", 501)
    X = CLIPLayerStatistics(MODEL, n_views=3, random_state=0, store=None).fit_transform(images)
    clf = GOProClassifier(**{**COMMON, "batch_size": 16, "max_iter": 10}).fit(X, y)
    names = {name: name for name in clf.classes_}
    zero_shot = ZeroShotClassifier(MODEL, class_names=names, templates="a photo of a {}.").fit()
    gains = []
    for style in ("painting", "sketch", "blurry", "pixel"):
        images, y = drawn(300, style, 502)
        rows = CLIPLayerStatistics(MODEL, store=None).transform(images)
        gains.append(clf.score(rows, y) - zero_shot.score(rows[:, :D], y))
    assert np.mean(gains) > 0.03, gains
