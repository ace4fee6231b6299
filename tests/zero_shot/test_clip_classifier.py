"""The wiring of the front door, with an encoder that needs no model: a picture is its mean colour."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skclip.features import CLIPFeatures
from skclip.utils import get_logits
from skclip.zero_shot import CLIPClassifier, ZeroShotClassifier, _clip_classifier, _zero_shot
from skclip.zero_shot._clip_classifier import fill_models

ENCODED: list[int] = []
NAMES = {"b": "blue", "r": "red"}


class FakeFeatures(TransformerMixin, BaseEstimator):
    def __init__(
        self,
        model="m",
        *,
        normalize=True,
        n_views=1,
        augmentation="crop_flip",
        device="auto",
        precision="auto",
        compile=False,
        batch_size="auto",
        decode="exact",
        workers="threads",
        n_workers=None,
        store="memory",
        on_error="raise",
        random_state=None,
        verbose=0,
    ):
        self.model = model
        self.normalize = normalize
        self.n_views = n_views
        self.augmentation = augmentation
        self.device = device
        self.precision = precision
        self.compile = compile
        self.batch_size = batch_size
        self.decode = decode
        self.workers = workers
        self.n_workers = n_workers
        self.store = store
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y=None):
        return self

    def fit_transform(self, X, y=None):
        rows = self.transform(X)
        return rows if self.n_views == 1 else np.stack([rows] * self.n_views, axis=1)

    def transform(self, X):
        ENCODED.append(len(X))
        return np.array([x.mean(axis=(0, 1)) / 255 - 0.3 for x in X])


class FakeText(TransformerMixin, BaseEstimator):
    _encodes_text = True

    def __init__(self, model=None, *, device="auto", precision="auto", batch_size="auto", store="memory"):
        self.model = model
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.store = store

    def transform(self, X):
        return np.array([[1.0, 0.0, 0.0] if "red" in text else [0.0, 0.0, 1.0] for text in X])


class Adapter(ClassifierMixin, BaseEstimator):
    """A classifier with class text, a state and scores, as adapters are."""

    def __init__(self, zero_shot=None, alpha=1.0):
        self.zero_shot = zero_shot
        self.alpha = alpha

    def fit(self, X, y, sample_weight=None):
        self.classes_ = np.unique(y)
        self.shape_, self.sample_weight_ = X.shape, sample_weight
        self.zero_shot_ = clone(self.zero_shot).fit(None, self.classes_)
        return self

    def predict(self, X):
        return self.zero_shot_.predict(X)

    def logits(self, X):
        return self.zero_shot_.logits(X)

    def score_samples(self, X):
        return self.logits(X).max(axis=1)

    @available_if(lambda self: self.zero_shot is not None)
    def with_classes(self, class_names):
        new = clone(self)
        new.zero_shot_ = self.zero_shot_.with_classes(class_names)
        new.classes_ = new.zero_shot_.classes_
        return new


@pytest.fixture(autouse=True)
def encoders(monkeypatch):
    ENCODED.clear()
    monkeypatch.setattr(_clip_classifier, "CLIPFeatures", FakeFeatures)
    monkeypatch.setattr(_zero_shot, "CLIPTextFeatures", FakeText)
    monkeypatch.setattr(_zero_shot, "weights_digest", lambda model: f"digest of {model}")
    monkeypatch.setattr(_zero_shot, "get_card", lambda model: SimpleNamespace(logit_scale=10.0))


@pytest.fixture
def pictures():
    """Twelve red or blue pictures and their labels."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 60, (12, 8, 8, 3), dtype=np.uint8)
    y = np.array(["r", "b"] * 6)
    X[y == "r", ..., 0] += 180
    X[y == "b", ..., 2] += 180
    return list(X), y


def text(**params):
    return ZeroShotClassifier(templates="none", class_names=NAMES, **params)


def test_fit_predict_and_delegation(pictures):
    X, y = pictures
    clf = CLIPClassifier("m", LogisticRegression()).fit(X, y)
    rows = FakeFeatures().transform(X)
    inner = LogisticRegression().fit(rows, y)
    assert_array_equal(clf.predict(X), y)
    assert_allclose(clf.predict_proba(X), inner.predict_proba(rows))
    assert_allclose(clf.decision_function(X), inner.decision_function(rows))
    assert_array_equal(clf.classes_, ["b", "r"])
    assert clf.score(X, y) == 1.0
    assert isinstance(clf.features_, FakeFeatures)
    assert get_logits(clf, X).shape == (12, 2)


def test_methods_are_those_of_the_classifier(pictures):
    X, y = pictures
    unfitted = CLIPClassifier("m", LinearSVC())
    for clf in (unfitted, clone(unfitted).fit(X, y)):
        assert hasattr(clf, "decision_function")
        assert not any(hasattr(clf, name) for name in ("predict_proba", "logits", "score_samples", "with_classes"))
    adapter = CLIPClassifier("m", Adapter(text()))
    for clf in (adapter, clone(adapter).fit(X, y)):
        assert all(hasattr(clf, name) for name in ("logits", "score_samples", "with_classes"))
        assert not hasattr(clf, "decision_function")
    assert not hasattr(CLIPClassifier("m", Adapter()), "with_classes")
    assert not hasattr(unfitted, "classes_")


def test_default_classifier_is_gda():
    import skclip.adapters

    made = CLIPClassifier("m")._prepared_classifier()
    assert isinstance(made, skclip.adapters.GDAClassifier)


def test_parameters_reach_the_encoder(pictures):
    options = {
        "normalize": False,
        "device": "cpu",
        "precision": "float32",
        "batch_size": 3,
        "compile": False,
        "decode": "fast",
        "workers": "threads",
        "n_workers": 2,
        "store": None,
        "on_error": "nan",
        "verbose": 1,
        "augmentation": None,
        "random_state": 4,
    }
    clf = CLIPClassifier("m", LogisticRegression(), **options).fit(*pictures)
    assert clf.features_.get_params() == {"model": "m", "n_views": 1, **options}


def test_every_parameter_of_the_encoder_is_one_of_ours():
    assert {*CLIPFeatures().get_params(), "classifier"} == set(CLIPClassifier().get_params(deep=False))
    defaults = CLIPClassifier().get_params(deep=False)
    assert CLIPFeatures().get_params() == {name: defaults[name] for name in CLIPFeatures().get_params()}


def test_views_reach_the_classifier_at_fit_only(pictures):
    X, y = pictures
    clf = CLIPClassifier("m", Adapter(text()), n_views=5).fit(X, y)
    assert clf.classifier_.shape_ == (12, 5, 3)
    assert clf.logits(X).shape == (12, 2)


# ---- class text


def test_names_alone_predict_without_fit(pictures):
    X, y = pictures
    clf = CLIPClassifier("m", ZeroShotClassifier(class_names=["red", "blue"], templates="a {}"))
    before = pickle.dumps(clf)
    check_is_fitted(clf)
    expected = np.where(y == "r", "red", "blue")
    assert_array_equal(clf.predict(X), expected)
    assert clf.predict_proba(X).shape == (12, 2)
    assert clf.score(X, expected) == 1.0
    assert pickle.dumps(clf) == before
    assert clf.classifier.model is None
    assert clf.fit(X).predict(X).tolist() == expected.tolist()


def test_frozen_classifier_predicts_without_fit(pictures):
    X, y = pictures
    inner = LogisticRegression().fit(FakeFeatures().transform(X), y)
    clf = CLIPClassifier("m", FrozenEstimator(inner))
    assert_array_equal(clf.predict(X), y)
    assert clf.fit(X, y).classifier_.estimator is inner


def test_unfitted_says_so(pictures):
    for inner in (LogisticRegression(), ZeroShotClassifier(), None):
        clf = CLIPClassifier("m", inner)
        with pytest.raises(NotFittedError, match="CLIPClassifier is not fitted yet"):
            clf.predict(pictures[0])
        with pytest.raises(NotFittedError):
            check_is_fitted(clf)


def filled(estimator):
    estimator = clone(estimator)
    fill_models(estimator, "m")
    return estimator.get_params(deep=True)


def test_model_is_filled_in_wherever_text_waits_for_one(pictures):
    assert filled(text())["model"] == "m"
    assert filled(Adapter(text()))["zero_shot__model"] == "m"
    deep = filled(make_pipeline(StandardScaler(), CalibratedClassifierCV(Adapter(text()))))
    assert deep["calibratedclassifiercv__estimator__zero_shot__model"] == "m"
    members = filled(VotingClassifier([("a", Adapter(text())), ("b", text()), ("c", FakeText())]))
    assert members["a__zero_shot__model"] == members["b__model"] == members["c__model"] == "m"
    original = Adapter(text())
    clf = CLIPClassifier("m", original).fit(*pictures)
    assert original.zero_shot.model is None
    assert clf.classifier_.zero_shot_.weights_digest_ == "digest of m"


def test_model_is_left_alone_where_nothing_waits_for_it():
    given = ZeroShotClassifier(prototypes=np.eye(3))
    assert filled(Adapter(given))["zero_shot__model"] is None
    assert filled(Adapter(text(model="m")))["zero_shot__model"] == "m"
    frozen = FrozenEstimator(text())
    assert filled(Adapter(frozen))["zero_shot"].estimator.model is None
    own = make_pipeline(FakeFeatures("other"), Adapter(text(model="other")))
    unioned = make_pipeline(FeatureUnion([("clip", FakeFeatures("other"))]), Adapter(text()))
    members = filled(
        VotingClassifier([("own", own), ("union", unioned), ("door", CLIPClassifier("o", text())), ("z", text())])
    )
    assert members["own__adapter__zero_shot__model"] == "other"
    assert members["union__adapter__zero_shot__model"] is None
    assert members["door__classifier__model"] is None
    assert members["z__model"] == "m"


def test_another_model_is_an_error_before_anything_is_encoded(pictures):
    clf = CLIPClassifier(
        "ViT-B-32/laion2b_e16", make_pipeline(StandardScaler(), Adapter(text(model="ViT-B-16/openai")))
    )
    with pytest.raises(
        ValueError, match=r"classifier__adapter__zero_shot__model='ViT-B-16/openai'.*'ViT-B-32/laion2b_e16'"
    ):
        clf.fit(*pictures)
    assert ENCODED == []


def test_two_spellings_of_one_model_are_one_model():
    estimator = text(model="ViT-B-32/openai")
    fill_models(estimator, "ViT-B-32-quickgelu/openai")
    assert estimator.model == "ViT-B-32/openai"


def test_with_classes(pictures):
    X, y = pictures
    for inner in (text(), Adapter(text())):
        clf = CLIPClassifier("m", inner).fit(X, y)
        new = clf.with_classes({"x": "blue thing", "y": "red thing"})
        assert_array_equal(new.predict(X), np.where(y == "r", "y", "x"))
        assert_array_equal(clf.predict(X), y)
        assert_array_equal(new.classes_, ["x", "y"])
    unfitted = CLIPClassifier("m", text()).with_classes(["blue", "red"])
    assert_array_equal(unfitted.predict(X), np.where(y == "r", "red", "blue"))


# ---- errors


def test_lengths_are_compared_before_anything_is_encoded(pictures):
    X, y = pictures
    with pytest.raises(ValueError, match="12 pictures and y 11 labels"):
        CLIPClassifier("m", LogisticRegression()).fit(X, y[:-1])
    with pytest.raises(TypeError, match="mixed type"):
        CLIPClassifier("m", LogisticRegression()).fit(X, [1, "a"] * 6)
    assert ENCODED == []


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (LinearRegression(), "not a classifier"),
        (make_pipeline(FakeFeatures(), LogisticRegression()), "reads pictures itself"),
        (FrozenEstimator(make_pipeline(FakeFeatures(), LogisticRegression())), "reads pictures itself"),
        (CLIPClassifier("m"), "reads pictures itself"),
        ("gda", "'classifier' parameter"),
    ],
)
def test_what_is_no_classifier_on_features(inner, message, pictures):
    with pytest.raises((TypeError, ValueError), match=message):
        CLIPClassifier("m", inner).fit(*pictures)


def test_model_is_a_string(pictures):
    with pytest.raises(ValueError, match="'model' parameter"):
        CLIPClassifier(None).fit(*pictures)


# ---- scikit-learn around it


def test_tags():
    tags = get_tags(CLIPClassifier("m", LinearSVC()))
    assert is_classifier(CLIPClassifier("m", LinearSVC()))
    assert (tags.input_tags.two_d_array, tags.input_tags.one_d_array) == (False, True)
    assert (tags.input_tags.string, tags.input_tags.three_d_array) == (True, True)
    assert tags.requires_fit
    assert tags.target_tags.required
    stateless = get_tags(CLIPClassifier("m", text()))
    assert not stateless.requires_fit
    assert not stateless.target_tags.required


def test_searches_reach_the_classifier_by_name(pictures):
    X, y = pictures
    clf = CLIPClassifier("m", KNeighborsClassifier())
    grid = {"classifier__n_neighbors": [1, 2], "normalize": [True, False]}
    search = GridSearchCV(clf, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_score_ == 1.0
    assert get_logits(search, X, shift_invariant=True).shape == (12, 2)
    swap = GridSearchCV(clf, {"classifier": [GaussianNB(), LogisticRegression()]}, cv=2, error_score="raise").fit(X, y)
    assert swap.best_score_ == 1.0
    assert cross_val_score(CLIPClassifier("m", Adapter(text())), X, y, cv=2, error_score="raise").mean() == 1.0


def test_sample_weight_without_routing(pictures):
    X, y = pictures
    weight = np.arange(12.0)
    assert_array_equal(
        CLIPClassifier("m", Adapter(text())).fit(X, y, sample_weight=weight).classifier_.sample_weight_,
        weight,
    )
    with pytest.raises(ValueError, match="KNeighborsClassifier takes no sample_weight"):
        CLIPClassifier("m", KNeighborsClassifier()).fit(X, y, weight)
    pipeline = CLIPClassifier("m", make_pipeline(StandardScaler(), Adapter(text())))
    fitted = pipeline.fit(X, y, adapter__sample_weight=weight)
    assert_array_equal(fitted.classifier_[-1].sample_weight_, weight)
    search = GridSearchCV(CLIPClassifier("m", Adapter(text())), {"n_views": [1]}, cv=2, error_score="raise")
    assert_array_equal(search.fit(X, y, sample_weight=weight).best_estimator_.classifier_.sample_weight_, weight)


def test_sample_weight_through_routing(pictures):
    X, y = pictures
    weight = np.arange(12.0) + 1
    with sklearn.config_context(enable_metadata_routing=True):
        inner = Adapter(text()).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        clf = CLIPClassifier("m", inner)
        assert_array_equal(clone(clf).fit(X, y, sample_weight=weight).classifier_.sample_weight_, weight)
        search = GridSearchCV(clf, {"n_views": [1]}, cv=2, error_score="raise").fit(X, y, sample_weight=weight)
        assert_array_equal(search.best_estimator_.classifier_.sample_weight_, weight)
        assert clf.fit(X, y).score(X, y, sample_weight=weight) == 1.0
        with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError):
            CLIPClassifier("m", Adapter(text())).fit(X, y, sample_weight=weight)


def test_pickles_are_small(pictures):
    X, y = pictures
    clf = CLIPClassifier("m", Adapter(text()))
    assert len(pickle.dumps(clf)) < 2_000
    fitted = clf.fit(X, y)
    data = pickle.dumps(fitted)
    assert len(data) < 10_000
    assert_array_equal(pickle.loads(data).predict(X), y)
