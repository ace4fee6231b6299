from __future__ import annotations

import copy

import numpy as np
import pytest

from skclip import CLIPFeatures, CLIPTextFeatures
from skclip._backbones import load_backbone
from skclip._backbones._opened import OpenedTowerError
from skclip.adapters import LinearProbeClassifier
from skclip.datasets import make_picture_world
from skclip.tuning._weight_specs import LowRank
from skclip.tuning.prompts._coop import CoOpClassifier
from skclip.tuning.weights._clip_lora import CLIPLoRAClassifier
from skclip.tuning.weights._weight_classifier import WeightClassifier

torch = pytest.importorskip("torch")

MODEL = "skclip-tiny"
COMMON = {"batch_size": 16, "max_iter": 2, "learning_rate": 2e-3, "random_state": 0}
# blocks, matrices, and the two halves of an update, of each tower
N_VISION, N_TEXT = 4 * 3 * 2 * 96, 4 * 3 * 2 * 64


@pytest.fixture(scope="module")
def world():
    made = make_picture_world(48, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"], random_state=3)
    return made.images, made.target


@pytest.fixture(scope="module")
def fitted(world):
    return CLIPLoRAClassifier(MODEL, **COMMON).fit(*world)


def plain_text(names):
    return CLIPTextFeatures(MODEL).transform([f"a photo of a {name}." for name in names])


@pytest.mark.parametrize("encoder", ["both", "vision", "text"])
def test_without_training_it_is_the_model(encoder, world):
    X, y = world
    clf = CLIPLoRAClassifier(MODEL, encoder=encoder, max_iter=0, random_state=0).fit(X, y)
    np.testing.assert_allclose(clf.text_features_, plain_text(clf.classes_), atol=1e-6)
    np.testing.assert_allclose(clf.encode_image(X), CLIPFeatures(MODEL).transform(X), atol=1e-6)


@pytest.mark.parametrize(("encoder", "n_wanted"), [("both", N_VISION + N_TEXT), ("vision", N_VISION), ("text", N_TEXT)])
def test_what_is_trained_is_of_the_chosen_tower(encoder, n_wanted, world):
    clf = CLIPLoRAClassifier(MODEL, encoder=encoder, r=3, **COMMON | {"max_iter": 1}).fit(*world)
    assert sum(value.size for value in clf.state_delta_.values()) == 3 * n_wanted
    assert all(name.startswith("visual.") == (encoder == "vision") for name in clf.state_delta_) or encoder == "both"
    for name, value in clf.state_delta_.items():
        assert not name.endswith(".B") or np.abs(value).max() > 0, name
    text_moved = not np.allclose(clf.text_features_, plain_text(clf.classes_), atol=1e-6)
    assert text_moved == (encoder != "vision")
    pictures_moved = not np.allclose(clf.encode_image(world[0]), CLIPFeatures(MODEL).transform(world[0]), atol=1e-6)
    assert pictures_moved == (encoder != "text")


def test_the_merged_weights_are_the_tuned_model(world, fitted):
    backbone = load_backbone(MODEL, precision="float32")
    module = copy.deepcopy(backbone.module)
    merged = {name: torch.from_numpy(value) for name, value in fitted.merge().items()}
    assert len(merged) == 8
    module.load_state_dict(merged, strict=False)
    ids = backbone.text_ids([f"a photo of a {name}." for name in fitted.classes_])
    with torch.no_grad():
        text = module.encode_text(ids, normalize=True).numpy()
        setting = fitted._restored()
        pictures = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 48, 48)).astype(np.float32))
        tuned = fitted._image_encoder(fitted._tensors(setting), setting)(pictures)
        np.testing.assert_allclose(tuned, module.encode_image(pictures), atol=1e-5)
    np.testing.assert_allclose(fitted.text_features_, text, atol=1e-5)


def test_branches_without_dropout_are_the_merged_weights(fitted):
    clf = copy.copy(fitted)
    clf._spec = lambda sides: LowRank(sides=sides, dropout=0.0)
    setting = clf._restored()
    learned, generator = clf._tensors(setting), torch.Generator().manual_seed(0)
    pictures = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 48, 48)).astype(np.float32))
    with torch.no_grad():
        for training, wanted in (
            (clf._image(learned, setting, pictures, generator), clf._image(learned, setting, pictures)),
            (clf._class_text(learned, setting, generator), clf._text(learned, setting)),
        ):
            np.testing.assert_allclose(training, wanted, atol=1e-5)
        dropped = fitted._class_text(learned, setting, generator)
        assert not np.allclose(dropped, wanted, atol=1e-4)


def test_without_dropout_the_weights_train_as_the_branches_do(world):
    class Branched(CLIPLoRAClassifier):
        def _in_place(self, learned, setting, side, generator=None):
            return WeightClassifier._in_place(self, learned, setting, side, generator)

    params = COMMON | {"dropout": 0.0, "learning_rate": 1e-3}
    of_weights, of_branches = (cls(MODEL, **params).fit(*world) for cls in (CLIPLoRAClassifier, Branched))
    np.testing.assert_allclose(of_weights.loss_curve_, of_branches.loss_curve_, rtol=1e-4)
    np.testing.assert_allclose(of_weights.text_features_, of_branches.text_features_, atol=1e-3)


def test_a_large_rank_learns_sixteen_pictures_by_heart():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, size=(16, 48, 48, 3), dtype=np.uint8)
    y = np.tile(["red circle", "blue star"], 8)
    clf = CLIPLoRAClassifier(
        MODEL, r=32, dropout=0.0, augmentation=None, learning_rate=5e-3, max_iter=30, random_state=0
    ).fit(X, y)
    assert clf.score(X, y) == 1.0


def test_text_alone_learns_the_same_from_features(world):
    X, y = world
    params = {"encoder": "text", **COMMON}
    features = CLIPFeatures(MODEL).transform(X)
    of_pictures = CLIPLoRAClassifier(MODEL, augmentation=None, **params).fit(X, y)
    of_features = CLIPLoRAClassifier(MODEL, **params).fit(features, y)
    views = CLIPLoRAClassifier(MODEL, **params).fit(features[:, None], y)
    for name, value in of_pictures.state_delta_.items():
        np.testing.assert_allclose(of_features.state_delta_[name], value, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(views.state_delta_[name], of_features.state_delta_[name])
    np.testing.assert_allclose(of_features.logits(features), of_pictures.logits(X), atol=1e-3)
    np.testing.assert_allclose(of_features.logits(X), of_features.logits(features), atol=1e-3)


def test_features_of_another_model_are_refused(world):
    with pytest.raises(ValueError, match=r"X has 12 features.*gives 128"):
        CLIPLoRAClassifier(MODEL, encoder="text", **COMMON).fit(np.eye(12), ["dog", "cat"] * 6)


def test_features_are_refused_where_pictures_are_needed(world):
    with pytest.raises(ValueError, match="reads the pictures themselves"):
        CLIPLoRAClassifier(MODEL, **COMMON).fit(np.zeros((48, 128)), world[1])


def test_steps_follow_from_the_pictures_per_class(world):
    X, y = world  # 12 per class, give or take
    shots = round(len(y) / 4)
    clf = CLIPLoRAClassifier(MODEL, encoder="text", steps_per_shot=2, batch_size=16, random_state=0).fit(X, y)
    assert clf.n_iter_ == -(-2 * shots // 3)  # three steps in an epoch
    recipe = CLIPLoRAClassifier()._recipe(160, 10)
    assert recipe.n_steps == 8000
    assert CLIPLoRAClassifier()._recipe(3, 10).n_steps == 500


def test_every_picture_is_seen_in_every_epoch(world, monkeypatch):
    sizes, terms = [], CLIPLoRAClassifier._terms

    def watched(self, setting):
        def count(step):
            sizes.append(len(step.batch.rows))
            return 0.0 * step.logits.sum()

        return {**terms(self, setting), "count": count}

    monkeypatch.setattr(CLIPLoRAClassifier, "_terms", watched)
    X, y = CLIPFeatures(MODEL).transform(world[0])[:20], world[1][:20]
    CLIPLoRAClassifier(MODEL, encoder="text", **COMMON).fit(X, y)
    assert sizes == [16, 4] * 2
    sizes.clear()
    shots = round(20 / len(np.unique(y)))
    clf = CLIPLoRAClassifier(MODEL, encoder="text", batch_size=16, steps_per_shot=1, random_state=0).fit(X, y)
    assert len(sizes) == shots
    assert clf.n_iter_ == -(-shots // 2)


def test_a_tower_without_attention_is_refused_and_text_alone_is_tuned(world):
    X, y = world
    with pytest.raises(OpenedTowerError, match="text tower alone"):
        CLIPLoRAClassifier("skclip-tiny-rn", **COMMON).fit(X, y)
    clf = CLIPLoRAClassifier("skclip-tiny-rn", encoder="text", **COMMON).fit(X, y)
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]


def test_a_template_without_a_place_for_the_name_is_refused(world):
    with pytest.raises(ValueError, match=r"a photo.*no '\{\}'"):
        CLIPLoRAClassifier(MODEL, template="a photo", **COMMON).fit(*world)


@pytest.mark.slow
def test_beats_coop_and_the_linear_probe_on_sketches_at_four_pictures_per_class():
    made = make_picture_world(
        1000, shapes=["circle", "star", "square", "heart"], colors=["red", "blue", "green"], styles=["sketch"]
    )
    features, y = CLIPFeatures(MODEL).fit_transform(made.images), made.target
    test = np.arange(500, 1000)
    scores = {"lora": [], "coop": [], "probe": []}
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        train = np.concatenate([rng.choice(np.flatnonzero(y[:500] == name), 4, replace=False) for name in np.unique(y)])
        # fewer steps at a higher rate than for models of the usual size
        lora = CLIPLoRAClassifier(MODEL, steps_per_shot=30, learning_rate=5e-3, augmentation=None, random_state=seed)
        scores["lora"].append(lora.fit(made.images[train], y[train]).score(made.images[test], y[test]))
        for name, other in (("coop", CoOpClassifier(MODEL, random_state=seed)), ("probe", LinearProbeClassifier("cv"))):
            scores[name].append(other.fit(features[train], y[train]).score(features[test], y[test]))
    assert np.mean(scores["lora"]) > np.mean(scores["probe"]) + 0.05, scores
    assert np.mean(scores["lora"]) > np.mean(scores["coop"]) + 0.1, scores


@pytest.mark.parametrize("targets", [(), ["q", "fc1"]])
def test_targets_are_matrices_of_the_attention(targets, world):
    with pytest.raises(ValueError, match=r"targets=.* must hold some of 'q', 'k', 'v', 'o'"):
        CLIPLoRAClassifier(MODEL, targets=targets, **COMMON).fit(*world)


def test_blocks_and_matrices_that_are_chosen_alone_are_tuned(world):
    clf = CLIPLoRAClassifier(MODEL, targets=["q", "o"], layers=[0, -1], encoder="vision", **COMMON).fit(*world)
    paths = [f"visual.transformer.resblocks.{i}.attn.{kind}.{part}" for i in (0, 3) for kind in "qo" for part in "AB"]
    assert set(clf.state_delta_) == set(paths)


@pytest.mark.parametrize("encoder", ["vision", "both"])
def test_a_name_that_is_too_long_is_refused(encoder, world):
    names = {name: name for name in np.unique(world[1])} | {"blue star": "blue " * 70 + "star"}
    with pytest.raises(ValueError, match=r"class 'blue blue.* has 77 tokens, more than the 64"):
        CLIPLoRAClassifier(MODEL, class_names=names, encoder=encoder, **COMMON).fit(*world)


def test_text_towers_of_transformers_are_tuned_without_dropout(bert_model, world):
    X, y = world
    common = COMMON | {"augmentation": None, "max_iter": 4, "learning_rate": 0.01}
    for encoder in ("both", "text"):
        with pytest.raises(OpenedTowerError, match=r"one of transformers.*dropout=0"):
            CLIPLoRAClassifier(bert_model, encoder=encoder, **common).fit(X, y)
    text = CLIPLoRAClassifier(bert_model, encoder="text", dropout=0, **common).fit(X, y)
    assert text.loss_curve_[-1] < text.loss_curve_[0]
    assert not any(name.startswith("visual.") for name in text.state_delta_)
    clf = CLIPLoRAClassifier(bert_model, dropout=0.0, **common).fit(X, y)
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    assert any("attention.self.q.B" in name for name in clf.state_delta_)
    start = CLIPLoRAClassifier(bert_model, dropout=0.0, **common | {"max_iter": 0}).fit(X, y)
    sentences = [f"a photo of a {name}." for name in clf.classes_]
    np.testing.assert_allclose(start.text_features_, CLIPTextFeatures(bert_model).transform(sentences), atol=1e-5)
    assert not np.allclose(clf.text_features_, start.text_features_, atol=1e-4)


def test_features_in_a_list_or_a_table_train_a_text_tower(world):
    pandas = pytest.importorskip("pandas")
    rows = CLIPFeatures(MODEL).fit_transform(world[0]).astype(np.float64)
    clf = CLIPLoRAClassifier(MODEL, encoder="text", **COMMON | {"max_iter": 1}).fit(rows, world[1])
    for X in (rows.tolist(), pandas.DataFrame(rows).add_prefix("x")):
        other = CLIPLoRAClassifier(MODEL, encoder="text", **COMMON | {"max_iter": 1}).fit(X, world[1])
        np.testing.assert_allclose(other.logits(X), clf.logits(rows), rtol=1e-4, atol=1e-4)
