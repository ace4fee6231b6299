"""Every scorer works in `cross_validate`, alone and in a pipeline, and is the measure of what the estimator says."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, OutlierMixin, TransformerMixin, clone
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import has_fit_parameter

from skclip import metrics
from skclip.adapters import GDAClassifier, SimilarityVoteClassifier
from skclip.metrics import get_scorer, scorer_names
from skclip.ood import MSPDetector
from skclip.utils.estimator_checks import NearestMeanClassifier

X, CODES = make_blobs(240, centers=4, n_features=5, cluster_std=5.0, random_state=0)
Y = np.array(["ant", "bee", "cat", "dog"])[CODES]
RNG = np.random.default_rng(0)
GROUPS = RNG.choice(["indoor", "outdoor"], len(Y))
FACTORS = RNG.random((len(Y), 2)) < 0.5
CORRUPTION = RNG.choice(["blur", "noise"], len(Y))
SEVERITY = RNG.integers(0, 3, len(Y))
BASE = {"noise": [0.3, 0.6], "blur": [0.4, 0.5]}
OTHER = np.roll(Y, 1)
WEIGHTS = RNG.uniform(0.5, 2.0, len(Y))
X_OUT = X[:50] + RNG.normal(scale=4.0, size=(50, 5))
SIGNS = np.where(RNG.random(len(Y)) < 0.7, 1, -1)
BASELINE = GaussianNB(var_smoothing=1.0).fit(X, Y)


class FirstColumn(ClassifierMixin, BaseEstimator):
    """Learns the first of two columns of labels."""

    def fit(self, X, y):
        self.classifier_ = GaussianNB().fit(X, np.asarray(y)[:, 0])
        return self

    def predict(self, X):
        return self.classifier_.predict(X)


class Case(NamedTuple):
    name: str
    options: dict[str, Any]
    estimator: Any
    y: Any
    metadata: dict[str, Any]
    expected: Any  # (fitted, X_test, y_test, metadata_test) -> the measure, without the sign


def line(accuracy):
    return 0.5 * accuracy


def classifier():
    return GaussianNB()


def of_probabilities(name, **options):
    measure = getattr(metrics, name)

    def expected(est, X, y, meta):
        return measure(y, est.predict_proba(X), labels=est.classes_, **options)

    return expected


def of_predictions(measure):
    return lambda est, X, y, meta: measure(y, est.predict(X), **meta)


def corruption_errors(est, X, y, meta):
    wrong = est.predict(X) != y
    cell = lambda c, s: np.mean(wrong[(meta["corruption"] == c) & (meta["severity"] == s)])  # noqa: E731
    return [[cell(c, s) for s in (1, 2)] for c in BASE], np.mean(wrong[meta["severity"] == 0])


def relative_mce(est, X, y, meta):
    errors, clean = corruption_errors(est, X, y, meta)
    return metrics.relative_mean_corruption_error(
        errors, list(BASE.values()), clean_error=clean, baseline_clean_error=0.1
    )


def neighbours(est, X):
    """Labels of the training rows from the nearest to each row of X to the farthest."""
    rows = X
    if hasattr(est, "steps"):
        est, rows = est[-1], est[:-1].transform(X)
    _, order = est.kneighbors(rows, n_neighbors=len(est.codes_))
    return est.classes_[est.codes_][order]


def mean_average_precision(est, X, y, meta):
    hits = neighbours(est, X) == y[:, None]
    ranks = np.arange(1, hits.shape[1] + 1)
    return np.mean([(np.cumsum(h)[h] / ranks[h]).mean() for h in hits])


def cosines(est, X):
    rows, items = est.transform(X), est.transform(X_OUT)
    rows, items = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, items))
    return rows @ items.T


def largest(est, X):
    return est.predict_proba(X).max(axis=1)


def classes_of_detector(est, X):
    return est[-1].predict_class(est[:-1].transform(X)) if hasattr(est, "steps") else est.predict_class(X)


ITEM_IDS = Y[:50]
CORRUPTED = {"corruption": CORRUPTION, "severity": SEVERITY}
TWO_LABELS = np.column_stack([Y, OTHER])
OOD_MEASURES = {
    "ood_auroc": "ood_auroc",
    "ood_aupr": "ood_aupr",
    "neg_fpr_at_tpr": "fpr_at_tpr",
    "neg_detection_error": "detection_error",
}

CASES = [
    Case(
        "neg_expected_calibration_error",
        {"n_bins": 7, "strategy": "quantile"},
        classifier(),
        Y,
        {},
        of_probabilities("expected_calibration_error", n_bins=7, strategy="quantile"),
    ),
    *[
        Case(prefix + name, {}, classifier(), Y, {}, of_probabilities(name))
        for prefix, name in [
            ("neg_", "adaptive_calibration_error"),
            ("neg_", "negative_log_likelihood"),
            ("neg_", "brier_score_multiclass"),
            ("neg_", "overconfidence_rate"),
            ("", "confidence_correctness_correlation"),
            ("neg_", "area_under_risk_coverage"),
        ]
    ],
    Case(
        "group_accuracy",
        {"group": "outdoor"},
        classifier(),
        Y,
        {"groups": GROUPS},
        lambda est, X, y, meta: np.mean((est.predict(X) == y)[meta["groups"] == "outdoor"]),
    ),
    Case(
        "worst_group_accuracy",
        {},
        classifier(),
        Y,
        {"groups": GROUPS},
        of_predictions(metrics.worst_group_accuracy),
    ),
    Case(
        "factor_accuracy",
        {"factor": 1},
        classifier(),
        Y,
        {"factors": FACTORS},
        lambda est, X, y, meta: np.mean((est.predict(X) == y)[meta["factors"][:, 1]]),
    ),
    Case(
        "neg_factor_gap",
        {"factor": 1},
        classifier(),
        Y,
        {"factors": FACTORS},
        lambda est, X, y, meta: metrics.factor_gap(y, est.predict(X), meta["factors"])[1],
    ),
    *[
        Case(
            name,
            {},
            FirstColumn(),
            TWO_LABELS,
            {},
            lambda est, X, y, meta, measure=measure: measure(y[:, 0], y[:, 1], est.predict(X)),
        )
        for name, measure in [
            ("shape_bias", metrics.shape_bias),
            ("neg_cab_score", metrics.cab_score),
            ("neg_swap_rate", metrics.swap_rate),
        ]
    ],
    Case(
        "effective_robustness",
        {"line": line, "X_id": X[:60], "y_id": Y[:60]},
        classifier(),
        Y,
        {},
        lambda est, X_test, y, meta: est.score(X_test, y) - 0.5 * est.score(X[:60], Y[:60]),
    ),
    Case(
        "relative_robustness",
        {"baseline": BASELINE},
        classifier(),
        Y,
        {},
        lambda est, X, y, meta: est.score(X, y) - BASELINE.score(X, y),
    ),
    Case(
        "neg_mean_corruption_error",
        {"baseline_errors": BASE},
        classifier(),
        Y,
        CORRUPTED,
        lambda *fold: metrics.mean_corruption_error(corruption_errors(*fold)[0], list(BASE.values())),
    ),
    Case(
        "neg_relative_mean_corruption_error",
        {"baseline_errors": BASE, "baseline_clean_error": 0.1},
        classifier(),
        Y,
        CORRUPTED,
        relative_mce,
    ),
    *[
        Case(
            scorer,
            {"X_out": X_OUT},
            estimator,
            y,
            {},
            lambda est, X, y, meta, name=name, score=score: getattr(metrics, name)(score(est, X), score(est, X_OUT)),
        )
        for scorer, name in OOD_MEASURES.items()
        for estimator, y, score in [
            (classifier(), Y, largest),
            (GaussianMixture(2, random_state=0), None, lambda est, X: est.score_samples(X)),
        ]
    ],
    *[
        Case(
            scorer,
            {},
            GaussianMixture(2, random_state=0),
            SIGNS,
            {},
            lambda est, X, y, meta, name=name: getattr(metrics, name)(
                est.score_samples(X[y == 1]), est.score_samples(X[y == -1])
            ),
        )
        for scorer, name in OOD_MEASURES.items()
    ],
    Case(
        "oscr_score",
        {"X_out": X_OUT},
        classifier(),
        Y,
        {},
        lambda est, X, y, meta: metrics.oscr_score(y, est.predict(X), largest(est, X), largest(est, X_OUT)),
    ),
    Case(
        "oscr_score",
        {"X_out": X_OUT},
        MSPDetector(NearestMeanClassifier(), temperature=2.0),
        Y,
        {},
        lambda est, X, y, meta: metrics.oscr_score(
            y, classes_of_detector(est, X), est.score_samples(X), est.score_samples(X_OUT)
        ),
    ),
    Case(
        "retrieval_recall",
        {"k": 3},
        SimilarityVoteClassifier(),
        Y,
        {},
        lambda est, X, y, meta: np.mean((neighbours(est, X)[:, :3] == y[:, None]).any(axis=1)),
    ),
    Case("retrieval_average_precision", {}, SimilarityVoteClassifier(), Y, {}, mean_average_precision),
    *[
        Case(
            name,
            {"X_items": X_OUT, "y_items": ITEM_IDS},
            PCA(3),
            Y,
            {},
            lambda est, X, y, meta, name=name: getattr(metrics, name)(cosines(est, X), y[:, None] == ITEM_IDS),
        )
        for name in ("retrieval_recall", "retrieval_average_precision")
    ],
]


def test_every_scorer_has_a_case():
    assert {case.name for case in CASES} == set(scorer_names())


@pytest.mark.parametrize("piped", [False, True], ids=["alone", "pipeline"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{type(case.estimator).__name__}")
def test_in_cross_validate(case, piped):
    estimator = make_pipeline(StandardScaler(), case.estimator) if piped else case.estimator
    scorer = get_scorer(case.name, **case.options)
    with config_context(enable_metadata_routing=True):
        for scoring in (scorer, {"other": "accuracy", "measure": scorer} if case.y is Y else {"measure": scorer}):
            if isinstance(scoring, dict) and not isinstance(case.estimator, GaussianNB):
                scoring.pop("other", None)
            found = cross_validate(
                estimator,
                X,
                case.y,
                scoring=scoring,
                cv=3,
                params=case.metadata,
                return_estimator=True,
                return_indices=True,
                error_score="raise",
            )
            sign = -1 if case.name.startswith("neg_") else 1
            expected = [
                sign
                * case.expected(
                    fitted,
                    X[test],
                    None if case.y is None else case.y[test],
                    {name: values[test] for name, values in case.metadata.items()},
                )
                for fitted, test in zip(found["estimator"], found["indices"]["test"], strict=True)
            ]
            key = "test_score" if scoring is scorer else "test_measure"
            np.testing.assert_allclose(found[key], expected, atol=1e-12)
            assert found[key].any()


@pytest.mark.parametrize("case", [c for c in CASES if not c.metadata], ids=lambda case: case.name)
def test_without_metadata_routing(case):
    found = cross_val_score(
        case.estimator, X, case.y, scoring=get_scorer(case.name, **case.options), cv=3, error_score="raise"
    )
    assert np.isfinite(found).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{type(case.estimator).__name__}")
def test_pickles_and_copies_score_the_same(case):
    scorer = get_scorer(case.name, **case.options)
    fitted = clone(case.estimator).fit(X, case.y)
    expected = scorer(fitted, X, case.y, **case.metadata)
    for again in (pickle.loads(pickle.dumps(scorer)), clone(scorer, safe=False)):
        assert again(fitted, X, case.y, **case.metadata) == expected
    assert case.name in repr(scorer)


WEIGHTED = [case for case in CASES if not case.name.startswith("oscr") and case.name not in OOD_MEASURES]


@pytest.mark.parametrize("case", WEIGHTED, ids=lambda case: case.name)
def test_weights_are_routed(case):
    weights = np.random.default_rng(1).integers(1, 3, len(Y))
    many = np.repeat(np.arange(len(Y)), weights)
    fitted = clone(case.estimator).fit(X, case.y)
    repeated = {name: values[many] for name, values in case.metadata.items()}
    scorer = get_scorer(case.name, **case.options)
    found = scorer(fitted, X, case.y, sample_weight=weights, **case.metadata)
    assert found == pytest.approx(scorer(fitted, X[many], case.y[many], **repeated), abs=1e-12)
    with config_context(enable_metadata_routing=True):
        scorer.set_score_request(sample_weight=True)
        estimator = case.estimator
        if has_fit_parameter(estimator, "sample_weight"):
            estimator = clone(estimator).set_fit_request(sample_weight=False)
        params = {**case.metadata, "sample_weight": WEIGHTS}
        found = cross_validate(
            estimator,
            X,
            case.y,
            scoring=scorer,
            cv=3,
            params=params,
            error_score="raise",
            return_estimator=True,
            return_indices=True,
        )
        expected = [
            scorer(est, X[test], case.y[test], **{name: values[test] for name, values in params.items()})
            for est, test in zip(found["estimator"], found["indices"]["test"], strict=True)
        ]
    np.testing.assert_allclose(found["test_score"], expected)


def test_groups_under_another_name():
    scorer = get_scorer("worst_group_accuracy")
    with config_context(enable_metadata_routing=True):
        expected = cross_validate(classifier(), X, Y, scoring=scorer, params={"groups": GROUPS})["test_score"]
        scorer.set_score_request(groups="place")
        found = cross_validate(classifier(), X, Y, scoring=scorer, params={"place": GROUPS})["test_score"]
    np.testing.assert_array_equal(found, expected)


def test_the_second_label_can_be_routed():
    scorer = get_scorer("neg_cab_score")
    with config_context(enable_metadata_routing=True):
        scorer.set_score_request(other=True)
        found = cross_validate(classifier(), X, Y, scoring=scorer, params={"other": OTHER}, error_score="raise")
    fitted = classifier().fit(X, Y)
    assert scorer(fitted, X, Y, other=OTHER) == -metrics.cab_score(Y, OTHER, fitted.predict(X))
    assert len(found["test_score"]) == 5


def test_a_search_maximises_them():
    search = GridSearchCV(
        LogisticRegression(max_iter=500), {"C": [1e-4, 1.0]}, scoring=get_scorer("neg_negative_log_likelihood"), cv=3
    ).fit(X, Y)
    assert search.best_params_ == {"C": 1.0}
    scorer = get_scorer("retrieval_recall", k=3)
    votes = GridSearchCV(SimilarityVoteClassifier(), {"n_neighbors": [1, 5]}, scoring=scorer, cv=3).fit(X, Y)
    assert scorer(votes, X, Y) == scorer(FrozenEstimator(votes.best_estimator_), X, Y) == 1.0


def test_a_fold_without_a_class_is_no_trouble():
    rows = Y != "dog"
    fitted = classifier().fit(X, Y)
    found = get_scorer("neg_expected_calibration_error")(fitted, X[rows], Y[rows])
    assert found == -metrics.expected_calibration_error(Y[rows], fitted.predict_proba(X[rows]), labels=fitted.classes_)


def test_numbers_stand_for_measured_accuracies():
    fitted = classifier().fit(X, Y)
    accuracy = fitted.score(X, Y)
    assert get_scorer("effective_robustness", line=line, accuracy_id=0.5)(fitted, X, Y) == accuracy - 0.25
    assert get_scorer("relative_robustness", baseline=0.5)(fitted, X, Y) == accuracy - 0.5


def test_pictures_found_by_the_retriever():
    from skclip.retrieval import CLIPRetriever

    ids = np.arange(40) // 2
    retriever = CLIPRetriever().fit(X[:40], ids)
    queries = X[:40] + 1e-3
    assert get_scorer("retrieval_recall", k=2)(retriever, queries, ids) == 1.0
    in_pipeline = make_pipeline(StandardScaler(), CLIPRetriever())
    scores = cross_val_score(in_pipeline, X, Y, scoring=get_scorer("retrieval_average_precision"), cv=3)
    assert (scores > 0.3).all()


class OnlyADecision(OutlierMixin, BaseEstimator):
    """A detector of others, without ``score_samples``."""

    def fit(self, X, y=None):
        self.location_ = X.mean(axis=0)
        return self

    def decision_function(self, X):
        return 1.0 - np.linalg.norm(X - self.location_, axis=1)


class JustAProjection(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.pca_ = PCA(2).fit(X)
        return self

    def transform(self, X):
        return self.pca_.transform(X)


@pytest.mark.parametrize("wrap", [FrozenEstimator, lambda est: make_pipeline(StandardScaler(), est)])
def test_what_scores_the_unknown(wrap):
    scorer = get_scorer("ood_auroc", X_out=X_OUT)
    # the classifier's own score before its largest probability
    for estimator in (GDAClassifier().fit(X, Y), IsolationForest(random_state=0).fit(X)):
        wrapped = wrap(estimator).fit(X, Y)
        assert scorer(wrapped, X) == metrics.ood_auroc(wrapped.score_samples(X), wrapped.score_samples(X_OUT))
    wrapped = wrap(OnlyADecision().fit(X)).fit(X, Y)
    assert scorer(wrapped, X) == metrics.ood_auroc(wrapped.decision_function(X), wrapped.decision_function(X_OUT))
    wrapped = wrap(RidgeClassifier().fit(X, Y)).fit(X, Y)
    with pytest.raises(TypeError, match="has no predict_proba, which this score needs"):
        scorer(wrapped, X)
    with pytest.raises(TypeError, match="JustAProjection has neither score_samples nor decision_function"):
        scorer(wrap(JustAProjection().fit(X)).fit(X, Y), X)
    with pytest.raises(TypeError, match="predicts no class"):
        get_scorer("oscr_score", X_out=X_OUT)(wrap(OnlyADecision().fit(X)).fit(X, Y), X, Y)


def test_a_search_over_a_detector():
    search = GridSearchCV(
        MSPDetector(NearestMeanClassifier()),
        {"temperature": [1e-3, 1.0]},
        scoring=get_scorer("oscr_score", X_out=X_OUT),
        cv=3,
        error_score="raise",
    ).fit(X, Y)
    score = search.cv_results_["mean_test_score"]
    assert score[0] != score[1]
    found = get_scorer("oscr_score", X_out=X_OUT)(search, X, Y)
    best = search.best_estimator_
    assert found == metrics.oscr_score(Y, best.predict_class(X), best.score_samples(X), best.score_samples(X_OUT))


def test_bad_names_and_options():
    with pytest.raises(ValueError, match="'oscr_score' needs the option 'X_out'"):
        get_scorer("oscr_score")
    with pytest.raises(ValueError, match=r"Unknown scorer 'expected_calibration_error'. Did you mean 'neg_exp"):
        get_scorer("expected_calibration_error")
    with pytest.raises(TypeError, match="'neg_expected_calibration_error' has no option 'bins'"):
        get_scorer("neg_expected_calibration_error", bins=10)
    with pytest.raises(ValueError, match="needs the option 'baseline_errors'"):
        get_scorer("neg_mean_corruption_error")
    with pytest.raises(TypeError, match="takes no colour"):
        get_scorer("worst_group_accuracy").set_score_request(colour=True)


def test_bad_calls():
    fitted = classifier().fit(X, Y)
    with pytest.raises(ValueError, match=r"needs groups, one entry per row.*enable_metadata_routing"):
        get_scorer("worst_group_accuracy")(fitted, X, Y)
    with pytest.raises(TypeError, match="takes no groups"):
        get_scorer("neg_brier_score_multiclass")(fitted, X, Y, groups=GROUPS)
    with pytest.raises(TypeError, match="RidgeClassifier has no predict_proba"):
        get_scorer("neg_brier_score_multiclass")(RidgeClassifier().fit(X, Y), X, Y)
    with pytest.raises(TypeError, match="PCA has no kneighbors"):
        get_scorer("retrieval_recall")(PCA(2).fit(X), X, Y)
    with pytest.raises(ValueError, match=r"y\[0\] is 'eel', the id of no item"):
        get_scorer("retrieval_recall")(SimilarityVoteClassifier().fit(X, Y), X, np.full(len(Y), "eel"))
    with pytest.raises(ValueError, match="No row is of the group 'attic'"):
        get_scorer("group_accuracy", group="attic")(fitted, X, Y, groups=GROUPS)
    with pytest.raises(ValueError, match="factor is 5, but factors has 2 columns"):
        get_scorer("factor_accuracy", factor=5)(fitted, X, Y, factors=FACTORS)
    with pytest.raises(ValueError, match="y with two columns"):
        get_scorer("shape_bias")(fitted, X, Y)
    with pytest.raises(ValueError, match="needs in-distribution pictures"):
        get_scorer("effective_robustness", line=line)(fitted, X, Y)
    with pytest.raises(ValueError, match=r"y must hold 1 \(in distribution\) and -1"):
        get_scorer("ood_auroc")(fitted, X, Y)
    with pytest.raises(ValueError, match="No row is of corruption 'fog' at severity 1"):
        get_scorer("neg_mean_corruption_error", baseline_errors={"fog": [0.5]})(fitted, X, Y, **CORRUPTED)
    with pytest.raises(ValueError, match="as many severities for every corruption"):
        get_scorer("neg_mean_corruption_error", baseline_errors={"blur": [0.5], "noise": [0.5, 0.6]})(
            fitted, X, Y, **CORRUPTED
        )
    with pytest.raises(ValueError, match="No row has severity 0"):
        get_scorer("neg_relative_mean_corruption_error", baseline_errors=BASE, baseline_clean_error=0.1)(
            fitted, X, Y, corruption=CORRUPTION, severity=np.where(SEVERITY == 0, 1, SEVERITY)
        )
    with pytest.raises(ValueError, match="X_items needs y_items"):
        get_scorer("retrieval_recall", X_items=X_OUT)(PCA(2).fit(X), X, Y)
