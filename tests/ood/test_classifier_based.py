from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils import get_tags

from skclip.adapters import (
    CLAPClassifier,
    CLIPAdapterClassifier,
    FewShotInspector,
    GDAClassifier,
    LinearProbeClassifier,
    LPPlusPlusClassifier,
    SimilarityVoteClassifier,
    SuSXClassifier,
    TipAdapterClassifier,
    TipAdapterFClassifier,
    UnsupervisedGDA,
)
from skclip.ood import (
    EnergyDetector,
    GradNormDetector,
    MahalanobisDetector,
    MCMDetector,
    MSPDetector,
    NNGuideDetector,
    RelativeMahalanobisDetector,
    ResidualDetector,
    SHEDetector,
    ViMDetector,
)
from skclip.ood._classifier_based import linear_head
from skclip.utils import SkclipWarning, get_logits
from skclip.utils.estimator_checks import NearestMeanClassifier
from skclip.zero_shot import CLIPClassifier, ZeroShotClassifier

LINEAR = [MSPDetector, ViMDetector, GradNormDetector]


def training_set(n_classes=3, n_features=12, shots=10, dtype=np.float64):
    """Rows of any length around class directions, and the directions as class text."""
    rng = np.random.default_rng(n_classes)
    text = rng.normal(size=(n_classes, n_features))
    y = np.repeat(np.arange(n_classes), shots)
    X = (text[y] + 0.7 * rng.normal(size=(len(y), n_features))) * rng.uniform(0.5, 3.0, size=(len(y), 1))
    return X.astype(dtype), y, text


X, Y, TEXT = training_set()

READS_UNIT_ROWS = [
    lambda text: GDAClassifier(),
    lambda text: GDAClassifier(text),
    lambda text: LinearProbeClassifier(),
    lambda text: LPPlusPlusClassifier(text),
    lambda text: LPPlusPlusClassifier(),
    lambda text: CLAPClassifier(text, max_iter=5),
    lambda text: ZeroShotClassifier(prototypes=text),
    lambda text: UnsupervisedGDA(text),
    lambda text: make_pipeline(Normalizer(), LogisticRegression()),
]
READS_ROWS = [
    lambda text: NearestMeanClassifier(),
    lambda text: LogisticRegression(),
    lambda text: LinearDiscriminantAnalysis(),
    lambda text: RidgeClassifier(),
    lambda text: LinearSVC(),
    lambda text: make_pipeline(StandardScaler(), LogisticRegression()),
]
NOT_LINEAR = [
    lambda text: TipAdapterClassifier(text),
    lambda text: TipAdapterClassifier(),
    lambda text: TipAdapterFClassifier(text, max_iter=1),
    lambda text: CLIPAdapterClassifier(text, max_iter=1),
    lambda text: SuSXClassifier(text),
    lambda text: FewShotInspector(),
    lambda text: SVC(),
    # standardised rows, and the length of those is what it reads
    lambda text: make_pipeline(StandardScaler(), LinearProbeClassifier()),
]


def name_of(make):
    return str(make(None)).split("(", maxsplit=1)[0]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("make", READS_UNIT_ROWS + READS_ROWS, ids=name_of)
def test_the_linear_map_of_a_classifier(make, n_classes, dtype):
    X, y, text = training_set(n_classes, dtype=dtype)
    classifier = make(text).fit(X, y)
    head = linear_head(classifier, X)
    assert head.unit == (make in READS_UNIT_ROWS)
    assert head.coef.shape == (n_classes, 12)
    others = 2.0 * np.random.default_rng(1).normal(size=(50, 12)).astype(dtype)
    expected = get_logits(classifier, others)
    np.testing.assert_allclose(head.logits(head.read(others)), expected, atol=2e-6 * np.ptp(expected))


def test_the_weights_are_those_of_the_classifier():
    probe = LinearProbeClassifier().fit(X, Y)
    head = linear_head(probe, X)
    np.testing.assert_allclose(head.coef, probe.coef_, atol=1e-12)
    np.testing.assert_allclose(head.intercept, probe.intercept_, atol=1e-12)


def test_unit_rows_do_not_hide_how_the_head_reads():
    rows = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert not linear_head(LogisticRegression().fit(rows, Y), rows).unit
    assert linear_head(LinearProbeClassifier().fit(rows, Y), rows).unit


@pytest.mark.parametrize("make", NOT_LINEAR, ids=name_of)
def test_other_classifiers_have_none(make):
    classifier = make(TEXT).fit(X, Y)
    with pytest.raises(ValueError, match=r"logits of \w+ are not linear .* such as LinearProbeClassifier"):
        linear_head(classifier, X)
    with pytest.raises(ValueError, match="not linear"):
        ViMDetector(make(TEXT)).fit(X, Y)


@pytest.mark.parametrize("classifier", [KNeighborsClassifier(), SimilarityVoteClassifier(), GaussianNB()])
def test_probabilities_have_none(classifier):
    for detector in (ViMDetector, GradNormDetector, EnergyDetector):
        with pytest.raises(TypeError, match=r"offers probabilities only.*use a classifier with logits"):
            detector(classifier).fit(X, Y)


class BrokenClassifier(NearestMeanClassifier):
    """NaN for the seventh row that it is asked about."""

    def logits(self, X):
        logits = super().logits(X)
        logits[6:7] = np.nan
        return logits


def test_logits_that_are_not_finite():
    with pytest.raises(ValueError, match=r"logits of BrokenClassifier are not finite: nan"):
        ViMDetector(BrokenClassifier()).fit(X, Y)
    with pytest.raises(ValueError, match=r"MSPDetector gives nan for X\[6\] \(1 of 30 scores are not finite\)"):
        MSPDetector(BrokenClassifier()).fit(X, Y)
    with pytest.raises(ValueError, match=r"MSPDetector gives nan for calibration\[6\] \(1 of 10 "):
        MSPDetector(BrokenClassifier(), calibration=X[:10]).fit(X, Y)
    detector = MSPDetector(BrokenClassifier(), calibration=X[:6]).fit(X, Y)
    with pytest.raises(ValueError, match=r"gives nan for X\[6\]"):
        detector.calibrate(X)


def test_columns_with_names_draw_no_warning():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=[f"f{j}" for j in range(X.shape[1])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = ViMDetector(LogisticRegression()).fit(table, Y)
        scores = detector.score_samples(table)
    assert detector.feature_names_in_.tolist() == list(table.columns)
    np.testing.assert_allclose(scores, ViMDetector(LogisticRegression()).fit(X, Y).score_samples(X))


@pytest.mark.parametrize("cls", LINEAR)
def test_the_default_classifier_is_a_probe(cls):
    detector = cls().fit(X, Y)
    assert isinstance(detector.classifier_, LinearProbeClassifier)
    np.testing.assert_array_equal(detector.classes_, [0, 1, 2])
    np.testing.assert_array_equal(detector.predict_class(X), LinearProbeClassifier().fit(X, Y).predict(X))
    assert detector.classifier is None


@pytest.mark.parametrize("cls", LINEAR)
def test_prototypes_are_a_classifier(cls):
    by_text = cls(ZeroShotClassifier(prototypes=TEXT)).fit(X)
    np.testing.assert_array_equal(cls(TEXT).fit(X).score_samples(X), by_text.score_samples(X))
    with pytest.raises(ValueError, match=r"classifier\[1\] is all zeros"):
        cls(TEXT * [[1.0], [0.0], [1.0]]).fit(X)


@pytest.mark.parametrize("cls", LINEAR)
def test_labels_are_needed_to_fit_a_classifier(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__} needs y, .* LogisticRegression; got None. Wrap"):
        cls(LogisticRegression()).fit(X)
    for hidden in (
        make_pipeline(StandardScaler(), LogisticRegression()),
        GridSearchCV(LogisticRegression(), {"C": [1.0]}),
    ):
        with pytest.raises(ValueError, match=rf"{cls.__name__} needs y, .* {type(hidden).__name__}; got None. Wrap"):
            cls(hidden).fit(X)
    frozen = FrozenEstimator(LogisticRegression().fit(X, Y))
    assert cls(frozen).fit(X).classifier_ is frozen
    assert cls(make_pipeline(frozen)).fit(X).classifier_[0] is frozen


def test_what_is_no_classifier():
    with pytest.raises(TypeError, match=r"classifier=Ridge\(\) is not a classifier"):
        MSPDetector(Ridge()).fit(X, Y)
    with pytest.raises(ValueError, match="fit a classifier before freezing it"):
        MSPDetector(FrozenEstimator(ZeroShotClassifier(prototypes=TEXT))).fit(X)


def test_the_classifier_is_cloned():
    classifier = LogisticRegression()
    detector = MSPDetector(classifier).fit(X, Y)
    assert detector.classifier_ is not classifier
    assert not hasattr(classifier, "coef_")


def test_unfitted_detectors_say_so():
    for call in ("predict_class", "score_samples", "predict", "calibrate"):
        with pytest.raises(NotFittedError):
            getattr(MSPDetector(TEXT), call)(X)


def test_views_train_and_the_first_is_scored():
    rng = np.random.default_rng(0)
    views = np.stack([X, X + 0.3 * rng.normal(size=X.shape)], axis=1)
    detector = ViMDetector(LinearProbeClassifier()).fit(views, Y)
    assert detector.n_features_in_ == 12
    np.testing.assert_array_equal(detector.score_samples(views), detector.score_samples(X))
    # the residual is that of the rows of both views, whichever comes first
    other = ViMDetector(detector.classifier_).fit(views[:, ::-1], Y)
    np.testing.assert_allclose(
        other.residual_basis_ @ other.residual_basis_.T, detector.residual_basis_ @ detector.residual_basis_.T
    )


@pytest.mark.parametrize("cls", [EnergyDetector, *LINEAR])
def test_a_row_is_scored_by_itself(cls):
    detector = cls(LogisticRegression()).fit(X, Y)
    scores = detector.score_samples(X)
    with sklearn.config_context(working_memory=1e-4):
        np.testing.assert_allclose(detector.score_samples(X), scores, rtol=1e-12)
        np.testing.assert_allclose(cls(LogisticRegression()).fit(X, Y).score_samples(X), scores, rtol=1e-9)
    np.testing.assert_allclose([detector.score_samples(X[i : i + 1])[0] for i in range(5)], scores[:5], rtol=1e-12)


class WeighingClassifier(NearestMeanClassifier):
    """Keeps what `fit` is given beside X and y."""

    def fit(self, X, y=None, sample_weight=None, marks=None):
        self.given_ = {"sample_weight": sample_weight, "marks": marks}
        return super().fit(X, y)


def test_weights_reach_the_classifier():
    weights = np.linspace(0.1, 3.0, len(Y))
    for cls in (MSPDetector, ViMDetector, ResidualDetector):
        detector = cls(LogisticRegression()).fit(X, Y, sample_weight=weights)
        np.testing.assert_array_equal(
            detector.classifier_.coef_, LogisticRegression().fit(X, Y, sample_weight=weights).coef_
        )
        assert detector.fit_predict(X, Y, sample_weight=weights).shape == (len(X),)
    assert MSPDetector(LogisticRegression()).fit(X, Y, sample_weight=None).classes_.shape == (3,)
    with pytest.raises(ValueError, match="KNeighborsClassifier takes no sample_weight"):
        MSPDetector(KNeighborsClassifier()).fit(X, Y, sample_weight=weights)
    with pytest.raises(TypeError, match=r"ResidualDetector.fit got \['sample_weight'\]"):
        ResidualDetector().fit(X, Y, sample_weight=weights)


def test_weights_follow_their_pictures_into_the_folds(monkeypatch):
    seen = []

    class Recorder(WeighingClassifier):
        def fit(self, X, y=None, sample_weight=None, marks=None):
            seen.append((X[:, 0].tolist(), np.asarray(sample_weight).tolist(), marks))
            return super().fit(X, y)

    MSPDetector(Recorder(), calibration="cv").fit(X, Y, sample_weight=X[:, 0], marks="one for all")
    assert len(seen) == 1 + 5
    assert [len(rows) for rows, _, _ in seen] == [30, 24, 24, 24, 24, 24]
    for rows, weights, marks in seen:
        assert rows == weights
        assert marks == "one for all"


@pytest.mark.parametrize("calibration", ["in_sample", "cv"])
def test_metadata_routing(calibration):
    weights = np.linspace(0.1, 3.0, len(Y))
    with sklearn.config_context(enable_metadata_routing=True):
        asking = WeighingClassifier().set_fit_request(sample_weight=True, marks="labels_of_marks")
        detector = MSPDetector(asking, calibration=calibration).fit(X, Y, sample_weight=weights, labels_of_marks=Y)
        np.testing.assert_array_equal(detector.classifier_.given_["sample_weight"], weights)
        np.testing.assert_array_equal(detector.classifier_.given_["marks"], Y)
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            MSPDetector(WeighingClassifier()).fit(X, Y, sample_weight=weights)
        routing = detector.get_metadata_routing()
        assert routing.consumes("fit", ["sample_weight", "labels_of_marks"]) == {"sample_weight", "labels_of_marks"}
        assert MSPDetector().get_metadata_routing().consumes("fit", ["sample_weight"]) == set()
        assert ResidualDetector().get_metadata_routing().consumes("fit", ["sample_weight"]) == set()
        # through a search, and a pipeline inside
        inner = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=False),
            LogisticRegression().set_fit_request(sample_weight=True),
        )
        search = GridSearchCV(
            MSPDetector(inner), {"temperature": [1.0, 2.0]}, scoring=lambda estimator, X, y: 0.0, cv=2
        )
        fitted = search.fit(X, Y, sample_weight=weights).best_estimator_.classifier_[-1]
        scaled = StandardScaler().fit_transform(X)
        expected = LogisticRegression().fit(scaled, Y, sample_weight=weights).coef_
        np.testing.assert_allclose(fitted.coef_, expected)


def test_tags_are_those_of_the_classifier():
    assert get_tags(MSPDetector(LogisticRegression())).target_tags.required
    assert get_tags(MSPDetector()).target_tags.required
    assert not get_tags(MSPDetector(TEXT)).target_tags.required
    assert not get_tags(MSPDetector(FrozenEstimator(LogisticRegression()))).target_tags.required
    assert not get_tags(ResidualDetector()).target_tags.required
    assert get_tags(ResidualDetector(LogisticRegression())).target_tags.required
    pictures = get_tags(MSPDetector(CLIPClassifier("skclip-tiny")))
    assert pictures.input_tags.one_d_array
    assert not pictures.input_tags.two_d_array
    assert pictures.estimator_type == "outlier_detector"
    assert get_tags(MSPDetector(TEXT)).input_tags.three_d_array


@pytest.mark.parametrize("cls", [*LINEAR, ResidualDetector])
def test_persistence_without_pickle(cls):
    skops = pytest.importorskip("skops.io")
    detector = cls().fit(X, Y)
    stored = skops.dumps(detector)
    foreign = skops.get_untrusted_types(data=stored)
    assert all(name.startswith("skclip.") for name in foreign)
    loaded = skops.loads(stored, trusted=foreign)
    np.testing.assert_array_equal(loaded.decision_function(X), detector.decision_function(X))


class ConstantClassifier(ClassifierMixin, BaseEstimator):
    """Knows two classes, whatever it is shown."""

    def fit(self, X, y=None):
        self.classes_ = np.array([0, 1])
        return self

    def logits(self, X):
        return np.zeros((len(X), 2))

    def predict(self, X):
        return np.zeros(len(X), dtype=int)


def test_logits_that_never_change_are_linear():
    head = linear_head(ConstantClassifier().fit(X), X)
    assert not head.coef.any()
    assert clone(GradNormDetector(ConstantClassifier())).fit(X, Y).score_samples(X).max() == 0.0


@pytest.mark.parametrize("detector", [MSPDetector, ViMDetector, SHEDetector, NNGuideDetector])
def test_labels_of_another_length_beside_a_frozen_classifier(detector):
    X, y = np.random.default_rng(0).normal(size=(40, 6)) + 5.0 * np.eye(2, 6)[np.arange(40) % 2], np.arange(40) % 2
    frozen = FrozenEstimator(LogisticRegression().fit(X, y))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        detector(frozen).fit(X, y[:-1])


@pytest.mark.filterwarnings("ignore:Zero-shot accuracy")  # warned of beside the message asked for
@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (MahalanobisDetector(), "is singular"),
        (RelativeMahalanobisDetector(), "is singular"),
        (NNGuideDetector(-np.eye(2, 8), n_neighbors=2), "energies that are not positive"),
        (SHEDetector(-np.eye(2, 8)), "recognises no picture"),
        (ViMDetector(-0.5 * np.eye(2, 8) - np.eye(2, 8)[::-1]), "largest logits of the training pictures are negative"),
        (MCMDetector(np.eye(2, 8)[::-1]), "no better than chance"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_warnings_point_at_the_code_that_calls(detector, message):
    y = np.arange(60) % 2
    X = np.eye(2, 8)[y] + 0.01 * np.tile(np.random.default_rng(0).normal(size=(6, 8)), (10, 1))
    for way in ("fit", "partial_fit"):
        if hasattr(detector, way):
            with pytest.warns(SkclipWarning, match=message) as caught:
                getattr(clone(detector), way)(X, y)
            assert {warning.filename for warning in caught if re.search(message, str(warning.message))} == {__file__}
