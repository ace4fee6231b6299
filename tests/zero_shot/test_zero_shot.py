"""Rules of class text, with an encoder that needs no model: a sentence is a fixed random direction."""

from __future__ import annotations

import pickle
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import cross_val_score
from sklearn.utils.validation import check_is_fitted

from skclip._backbones import Backbone, get_card, load_backbone, weights_digest
from skclip.features import CLIPTextFeatures
from skclip.templates import get_templates
from skclip.utils import SkclipWarning
from skclip.utils._cosine import cosine_logits, is_chance
from skclip.zero_shot import ZeroShotClassifier, _zero_shot
from skclip.zero_shot._zero_shot import mean_prototypes

WIDTH = 16
NAMES = {"n3": "ant", "n1": "wasp", "n2": "bee"}


def embed(text: str) -> np.ndarray:
    row = np.random.default_rng(zlib.crc32(text.encode())).normal(size=WIDTH)
    return (row / np.linalg.norm(row)).astype(np.float32)


def prototype(sentences: list[str]) -> np.ndarray:
    mean = np.mean([embed(sentence) for sentence in sentences], axis=0)
    return mean / np.linalg.norm(mean)


@pytest.fixture
def calls(monkeypatch):
    """The stand-in for the text tower, and what it was asked for."""
    seen: list[SimpleNamespace] = []

    class TextFeatures:
        def __init__(self, model, **options):
            self.model, self.options = model, options

        def transform(self, texts):
            seen.append(SimpleNamespace(model=self.model, options=self.options, texts=texts))
            return np.array([embed(text) for text in texts])

    monkeypatch.setattr(_zero_shot, "CLIPTextFeatures", TextFeatures)
    monkeypatch.setattr(_zero_shot, "weights_digest", lambda model: f"digest of {model}")
    monkeypatch.setattr(_zero_shot, "get_card", lambda model: SimpleNamespace(logit_scale=50.0))
    return seen


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(7, WIDTH))


def test_prototypes_are_normalised_means_over_templates_in_one_pass(calls):
    templates = ["a {}.", "one {}.", "{}"]
    clf = ZeroShotClassifier("m", class_names=NAMES, templates=templates).fit()
    assert clf.classes_.tolist() == ["n1", "n2", "n3"]
    expected = [prototype([t.replace("{}", name) for t in templates]) for name in ("wasp", "bee", "ant")]
    assert_allclose(clf.prototypes_, expected, atol=1e-6)
    assert clf.prototypes_.dtype == np.float32
    assert len(calls) == 1
    assert len(calls[0].texts) == 9
    assert clf.weights_digest_ == "digest of m"


def test_default_templates_are_openai(calls):
    ZeroShotClassifier("m", class_names=["ant"]).fit()
    assert calls[0].texts == [t.replace("{}", "ant") for t in get_templates("openai")]


def test_execution_parameters_reach_the_encoder(calls):
    ZeroShotClassifier(
        "m",
        class_names=["ant"],
        templates="none",
        device="cpu",
        precision="float32",
        batch_size=3,
        store=None,
    ).fit()
    assert calls[0].model == "m"
    assert calls[0].options == {"device": "cpu", "precision": "float32", "batch_size": 3, "store": None}


def test_no_model_means_the_default(calls):
    ZeroShotClassifier(class_names=["ant"], templates="none").fit()
    assert calls[0].model == _zero_shot.DEFAULT_MODEL


def test_descriptions_of_different_lengths(calls):
    descriptions = {3: ["six legs", "it walks", "it stings"], 1: "it flies"}
    clf = ZeroShotClassifier("m", templates=descriptions).fit()
    assert clf.classes_.tolist() == [1, 3]
    assert_allclose(clf.prototypes_, [prototype(["it flies"]), prototype(descriptions[3])], atol=1e-6)
    named = ZeroShotClassifier("m", class_names={3: "ant"}, templates={3: ["a {} walks"], 9: ["unused"]}).fit()
    assert_allclose(named.prototypes_, [embed("a ant walks")], atol=1e-6)


def test_descriptions_that_ask_for_a_name_need_one(calls):
    with pytest.raises(ValueError, match=r"templates\[1\] holds 'a \{\}'.*class_names"):
        ZeroShotClassifier("m", templates={1: ["a {}"]}).fit()


def test_logits_are_scaled_cosines(calls, X):
    clf = ZeroShotClassifier("m", class_names=NAMES, templates="none").fit(X)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    expected = 50.0 * unit @ clf.prototypes_.T.astype(float)
    assert_allclose(clf.logits(X), expected)
    assert_allclose(clf.logits(3.0 * X), expected)
    assert_allclose(clf.decision_function(X), expected)
    assert_allclose(clf.predict_proba(X), softmax(expected, axis=1))
    assert_array_equal(clf.predict(X), clf.classes_[expected.argmax(axis=1)])
    assert clf.logits(X.astype(np.float32)).dtype == np.float32
    assert clf.logits(X).dtype == np.float64


def test_two_classes_in_both_shapes(calls, X):
    clf = ZeroShotClassifier("m", class_names=["wasp", "ant"], templates="none").fit(X)
    logits = clf.logits(X)
    assert logits.shape == (7, 2)
    assert_allclose(clf.decision_function(X), logits[:, 1] - logits[:, 0])
    assert_array_equal(clf.predict(X), np.where(clf.decision_function(X) > 0, "wasp", "ant"))


def test_one_class_is_always_predicted(calls, X):
    clf = ZeroShotClassifier("m", class_names=["ant"], templates="none").fit(X)
    assert set(clf.predict(X)) == {"ant"}
    assert_allclose(clf.predict_proba(X), 1.0)


def test_logit_scale_of_the_model_of_prototypes_and_given(calls, monkeypatch):
    assert ZeroShotClassifier("m", class_names=["ant"]).fit().logit_scale_ == 50.0
    assert ZeroShotClassifier("m", class_names=["ant"], logit_scale=7).fit().logit_scale_ == 7.0
    assert ZeroShotClassifier(prototypes=np.eye(3)).fit().logit_scale_ == 100.0
    monkeypatch.setattr(_zero_shot, "get_card", lambda model: SimpleNamespace(logit_scale=None))
    monkeypatch.setattr(_zero_shot, "load_backbone", lambda model: SimpleNamespace(logit_scale=33.0))
    assert ZeroShotClassifier("m", class_names=["ant"]).fit().logit_scale_ == 33.0


# ---- labels and names


def test_list_takes_the_meaning_of_the_labels(calls, X):
    names = ["wasp", "bee", "ant"]
    integers = ZeroShotClassifier("m", class_names=names, templates="none").fit(X, [0, 1, 1, 0, 1, 0, 0])
    assert integers.classes_.tolist() == [0, 1, 2]
    assert_allclose(integers.prototypes_, [embed(name) for name in names], atol=1e-6)
    strings = ZeroShotClassifier("m", class_names=names, templates="none").fit(X, ["ant"] * 7)
    assert strings.classes_.tolist() == ["ant", "bee", "wasp"]
    assert_allclose(strings.prototypes_, [embed(name) for name in sorted(names)], atol=1e-6)
    explicit = ZeroShotClassifier("m", class_names=names, templates="none", classes=[0, 1, 2]).fit()
    assert_allclose(explicit.prototypes_, integers.prototypes_)


def test_list_that_could_be_misread(calls, X):
    with pytest.raises(ValueError, match=r"class_names=\{'n1': <its name>, 'n2': <its name>, \.\.\.\}"):
        ZeroShotClassifier("m", class_names=["ant", "bee", "wasp"]).fit(X, ["n2", "n1"] * 3 + ["n1"])
    assert calls == []


def test_classes_never_come_from_y(calls, X):
    clf = ZeroShotClassifier("m", class_names=NAMES, templates="none").fit(X, np.array(["n2"] * 7, dtype=object))
    assert clf.classes_.tolist() == ["n1", "n2", "n3"]
    assert ZeroShotClassifier("m", class_names=NAMES).fit(X).classes_.tolist() == ["n1", "n2", "n3"]


def test_unknown_label_is_named(calls, X):
    with pytest.raises(ValueError, match=r"y holds 'n9', unknown to class_names.*'n1', 'n2', 'n3'"):
        ZeroShotClassifier("m", class_names=NAMES).fit(X, ["n1"] * 6 + ["n9"])
    with pytest.raises(ValueError, match="y holds 5, unknown to templates"):
        ZeroShotClassifier("m", templates={1: ["x"]}).fit(X, [1] * 6 + [5])


def test_labels_of_mixed_type(calls, X):
    with pytest.raises(TypeError, match=r"y\[6\] is 1 \(number\)"):
        ZeroShotClassifier("m", class_names=NAMES).fit(X, ["n1"] * 6 + [1])


def test_lengths_must_agree(calls, X):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ZeroShotClassifier("m", class_names=NAMES).fit(X, ["n1"])


def test_regression_target_is_refused(X):
    with pytest.raises(ValueError, match="Unknown label type"):
        ZeroShotClassifier(prototypes=np.eye(WIDTH)).fit(X, np.linspace(0, 1, 7))


@pytest.mark.parametrize("labels", [np.arange(50), np.arange(50).astype(str)])
def test_one_row_of_each_class_draws_no_warning(labels):
    # as an adapter fits it, on nothing but the labels it saw
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = ZeroShotClassifier(prototypes=np.eye(50), classes=labels).fit(None, labels)
    assert_array_equal(clf.classes_, np.sort(labels))


def test_classes_must_be_those_of_the_text(calls):
    with pytest.raises(ValueError, match="differ"):
        ZeroShotClassifier("m", class_names=NAMES, classes=["n1", "n2"]).fit()


# ---- prototypes


def test_prototypes_follow_their_labels(X):
    rows = np.random.default_rng(1).normal(size=(3, WIDTH))
    clf = ZeroShotClassifier(prototypes=rows, classes=["wasp", "ant", "bee"]).fit(X, ["ant"] * 7)
    assert clf.classes_.tolist() == ["ant", "bee", "wasp"]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert_allclose(clf.prototypes_, unit[[1, 2, 0]], atol=1e-6)
    assert clf.weights_digest_ is None
    assert_array_equal(clf.predict(rows), ["wasp", "ant", "bee"])


def test_prototypes_without_labels_are_numbered(X):
    rows = np.random.default_rng(1).normal(size=(3, WIDTH))
    clf = ZeroShotClassifier(prototypes=rows.tolist()).fit(X, [2, 0] * 3 + [0])
    assert_array_equal(clf.predict(rows), [0, 1, 2])
    with pytest.raises(ValueError, match=r"y holds 'ant', unknown to the prototypes.*classes=\[labels\]"):
        ZeroShotClassifier(prototypes=rows).fit(X, ["ant"] * 7)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"prototypes": np.eye(3), "classes": ["a", "b"]}, "2 labels for 3 prototypes"),
        ({"prototypes": np.eye(3), "classes": ["a", "b", "a"]}, r"repeats \['a'\]"),
        ({"prototypes": np.eye(3), "class_names": ["a", "b", "c"]}, "Both prototypes and class text"),
        ({"prototypes": [[1.0, np.nan]]}, "prototypes contains NaN"),
        ({"prototypes": [[1.0, 1.0], [0.0, 0.0]]}, r"prototypes\[1\] is all zeros"),
        ({"prototypes": [1.0, 2.0]}, "Expected 2D array"),
        ({"prototypes": np.eye(3), "logit_scale": 0.0}, "'logit_scale' parameter"),
        ({"class_names": "ant"}, "class_names must be a dict"),
        ({"model": 3, "class_names": ["ant"]}, "'model' parameter"),
        ({}, "needs classes: pass class_names"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ZeroShotClassifier(**params).fit()


def test_wrong_width_names_both_and_the_source(calls, X):
    with pytest.raises(ValueError, match=r"X has 3 features.*expecting 16 features.*text tower of 'm'"):
        ZeroShotClassifier("m", class_names=NAMES).fit(X[:, :3])
    clf = ZeroShotClassifier(prototypes=np.eye(WIDTH))
    for fitted in (clf, clone(clf).fit(X)):
        with pytest.raises(ValueError, match=r"X has 3 features.*expecting 16 features.*given prototypes"):
            fitted.predict(X[:, :3])


# ---- without fit


def test_prediction_without_fit(calls, X):
    clf = ZeroShotClassifier("m", class_names=NAMES, templates="none")
    before = pickle.dumps(clf)
    check_is_fitted(clf)
    assert_array_equal(clf.predict(X), clone(clf).fit(X).predict(X))
    assert_allclose(clf.predict_proba(X), clone(clf).fit(X).predict_proba(X))
    assert_array_equal(clf.predict(pd.DataFrame(X)), clf.predict(X))
    assert pickle.dumps(clf) == before


def test_prediction_without_classes(X):
    with pytest.raises(NotFittedError, match="knows no classes"):
        ZeroShotClassifier().predict(X)
    with pytest.raises(NotFittedError):
        check_is_fitted(ZeroShotClassifier())


def test_features_are_validated_without_fit(calls, X):
    clf = ZeroShotClassifier("m", class_names=NAMES)
    X[2, 1] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        clf.predict(X)
    with pytest.raises(ValueError, match="1D array"):
        clf.predict(X[0])


def test_frozen_in_a_search(calls, X):
    clf = ZeroShotClassifier("m", class_names=NAMES, templates="none").fit(X)
    y = clf.predict(X)
    scores = cross_val_score(FrozenEstimator(clf), X, y, cv=[([0, 1, 2], [3, 4, 5, 6])])
    assert scores.tolist() == [1.0]
    assert len(calls) == 1


# ---- views, state


def test_view_zero_is_read(calls, X):
    views = np.random.default_rng(3).normal(size=(7, 4, WIDTH))
    views[:, 0] = X
    clf = ZeroShotClassifier("m", class_names=NAMES, templates="none").fit(views, ["n1"] * 7)
    assert clf.n_features_in_ == WIDTH
    assert_allclose(clf.logits(views), clf.logits(X))


def test_fitted_state_is_plain_and_small(calls, X):
    clf = ZeroShotClassifier("m", class_names=NAMES).fit(X)
    loaded = pickle.loads(pickle.dumps(clf))
    assert_array_equal(loaded.logits(X), clf.logits(X))
    assert len(pickle.dumps(clf)) < clf.prototypes_.nbytes + 10_000
    assert len(calls) == 1


def test_data_frame_columns_are_kept(calls, X):
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(WIDTH)])
    clf = ZeroShotClassifier("m", class_names=NAMES).fit(frame)
    assert clf.feature_names_in_.tolist() == list(frame.columns)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        clf.predict(X)


# ---- other classes


def test_with_classes_is_new_and_fitted(calls, X):
    clf = ZeroShotClassifier("m", class_names=NAMES, templates="none", logit_scale=9.0).fit(X)
    new = clf.with_classes({"n8": "fly", "n7": "moth"})
    assert new.classes_.tolist() == ["n7", "n8"]
    assert_allclose(new.prototypes_, [embed("moth"), embed("fly")], atol=1e-6)
    assert (new.logit_scale_, new.n_features_in_) == (9.0, WIDTH)
    assert clf.classes_.tolist() == ["n1", "n2", "n3"]
    assert new.with_classes(["fly"]).classes_.tolist() == ["fly"]
    assert ZeroShotClassifier("m").with_classes(["fly"]).predict(X).tolist() == ["fly"] * 7


def test_with_classes_refuses_a_list_for_numbered_labels(calls, X):
    clf = ZeroShotClassifier("m", class_names=["ant", "bee"]).fit(X, [0, 1, 0, 1, 0, 1, 0])
    with pytest.raises(ValueError, match=r"labels of this classifier are numbers.*\{label: name"):
        clf.with_classes(["fly"])


def test_with_classes_needs_to_know_the_model_of_prototypes(calls):
    clf = ZeroShotClassifier(prototypes=np.eye(WIDTH)[:2], classes=["a", "b"]).fit()
    with pytest.raises(ValueError, match="unknown origin: pass model="):
        clf.with_classes(["fly"])
    named = ZeroShotClassifier("m", prototypes=np.eye(WIDTH)[:2], classes=["a", "b"]).fit()
    assert named.with_classes(["fly"]).classes_.tolist() == ["fly"]
    narrow = ZeroShotClassifier("m", prototypes=np.eye(3), classes=["a", "b", "c"]).fit()
    with pytest.raises(
        ValueError, match="'m' gives prototypes of width 16, but this classifier works on features of width 3"
    ):
        narrow.with_classes(["fly"])


def test_with_classes_notices_other_weights(calls, monkeypatch):
    clf = ZeroShotClassifier("m", class_names=["ant"]).fit()
    monkeypatch.setattr(_zero_shot, "weights_digest", lambda model: "something else")
    with pytest.raises(ValueError, match=r"weights of 'm' have changed since fit"):
        clf.with_classes(["fly"])


# ---- two towers


def test_features_of_another_tower_are_noticed():
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(4, WIDTH))
    y = rng.integers(0, 4, 200)
    X = prototypes[y] + 0.3 * rng.normal(size=(200, WIDTH))
    ZeroShotClassifier(prototypes=prototypes).fit(X, y)  # warnings of skclip are errors here
    elsewhere = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    with pytest.warns(SkclipWarning, match=r"no better than chance \(1/4\).*same model"):
        ZeroShotClassifier(prototypes=prototypes).fit(X @ elsewhere, rng.permutation(y))


def test_chance_needs_enough_rows():
    assert not is_chance(0, 29, 4)
    assert is_chance(8, 30, 4)
    assert not is_chance(30, 30, 4)
    assert not is_chance(100, 100, 1)


# ---- formulas


def test_mean_prototypes_is_the_literal_mean():
    rows = np.random.default_rng(0).normal(size=(7, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = [group.mean(axis=0) / np.linalg.norm(group.mean(axis=0)) for group in np.split(rows, [3, 4])]
    assert_allclose(mean_prototypes(rows, [3, 1, 3]), expected, atol=1e-6)


def test_cosine_logits_limits():
    eye = np.eye(3)
    assert_allclose(cosine_logits(eye, eye, 10.0), 10 * eye)
    assert_allclose(cosine_logits(np.zeros((1, 3)), eye, 10.0), 0.0)


# ---- with a model and with real features


def test_bundled_model_encodes_each_sentence_once(monkeypatch, empty_stores):
    encoded = []
    encode_texts = Backbone.encode_texts

    def counted(self, texts, *args, **kwargs):
        encoded.extend(texts)
        return encode_texts(self, texts, *args, **kwargs)

    monkeypatch.setattr(Backbone, "encode_texts", counted)
    names, templates = ["red circle", "blue square", "green star"], ["a photo of a {}", "a {}"]
    clf = ZeroShotClassifier("skclip-tiny", class_names=names, templates=templates, device="cpu")
    width = get_card("skclip-tiny").dim
    X = np.random.default_rng(0).normal(size=(5, width))
    for _ in range(2):
        clf.predict(X)  # without fit: every call looks the sentences up
    assert len(encoded) == 6
    fitted = clf.fit(X)
    assert len(encoded) == 6
    single = CLIPTextFeatures("skclip-tiny", device="cpu", store=None)
    for name, found in zip(sorted(names), fitted.prototypes_):
        rows = np.vstack([single.transform([template.replace("{}", name)]) for template in templates])
        assert_allclose(found, rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0)), atol=1e-5)
    assert fitted.weights_digest_ == weights_digest("skclip-tiny")
    # the weights are stored in half precision, the card is not
    assert_allclose(fitted.logit_scale_, load_backbone("skclip-tiny", device="cpu").logit_scale, rtol=1e-3)


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:Classes 264 and 474")  # two kinds of cardigan
def test_imagenet_zero_shot_reaches_the_reference(realdata):
    with np.load(realdata / "clip-vit-b-32-openai" / "imagenet.npz") as data:
        text = sum(data[key] / np.linalg.norm(data[key], axis=1, keepdims=True) for key in ("text_a", "text_b"))
        X, y = data["X_train_2"].astype(np.float32), data["y_train_2"]
    shuffled = np.random.default_rng(0).permutation(1000)
    clf = ZeroShotClassifier(prototypes=text[shuffled], classes=shuffled).fit(X, y)
    assert_allclose(100 * clf.score(X, y), 61.05, atol=0.05)


def test_classes_that_share_a_name_warn():
    names = {0: "red circle", 1: "blue star", 2: "red circle"}
    with pytest.warns(SkclipWarning, match=r"Classes 0 and 2 have the same prototype.* \(1 such in all\)"):
        ZeroShotClassifier("skclip-tiny", class_names=names, templates="a photo of a {}").fit()
    with pytest.warns(SkclipWarning, match="2 such in all"):
        ZeroShotClassifier(prototypes=np.ones((3, 4))).fit()
