"""The ensemble of detectors."""

from __future__ import annotations

import warnings

import joblib
import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import GDAClassifier
from skclip.datasets import make_picture_world
from skclip.features import CLIPFeatures
from skclip.metrics import get_scorer, ood_auroc
from skclip.ood import (
    KNNDetector,
    MahalanobisDetector,
    MaxLogitDetector,
    MCMDetector,
    MSPDetector,
    OODEnsemble,
    RelativeMahalanobisDetector,
)
from skclip.ood._ensemble import _groups_of_classes, _without_classes
from skclip.zero_shot import CLIPClassifier, ZeroShotClassifier

MEMBERS = [("knn", KNNDetector(5)), ("means", MahalanobisDetector("ks"))]
RULES = ["evidence", "mean", "fisher", "min"]


@parametrize_with_checks([
    OODEnsemble([("knn", KNNDetector(2))], calibration="in_sample"),
    OODEnsemble([("forest", IsolationForest(n_estimators=5, random_state=0))], combine="min", calibration="in_sample"),
])  # fmt: skip
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def auroc(detector, world):
    return ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out))


@pytest.mark.parametrize("combine", RULES)
@pytest.mark.parametrize("n_copies", [1, 3])
def test_members_that_are_one_detector_rank_as_it_does(isotropic, combine, n_copies):
    world = isotropic(0)
    alone = KNNDetector(5).fit(world.X).score_samples(world.X_in)
    members = [(f"knn{i}", KNNDetector(5)) for i in range(n_copies)]
    scores = OODEnsemble(members, combine=combine).fit(world.X, world.y).score_samples(world.X_in)
    order = np.argsort(alone)
    assert np.diff(scores[order]).min() >= -1e-12
    assert len(np.unique(scores)) == len(np.unique(alone))


@pytest.mark.parametrize("combine", RULES)
def test_the_order_of_members_does_not_matter(isotropic, combine):
    world = isotropic(0)
    one = OODEnsemble(MEMBERS, combine=combine, weights=[1.0, 3.0]).fit(world.X, world.y)
    other = OODEnsemble(MEMBERS[::-1], combine=combine, weights=[3.0, 1.0]).fit(world.X, world.y)
    np.testing.assert_allclose(one.score_samples(world.X_in), other.score_samples(world.X_in), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(one.member_scores(world.X_in), other.member_scores(world.X_in)[:, ::-1])


@pytest.mark.parametrize("combine", RULES)
def test_a_weight_of_zero_silences(isotropic, combine):
    world = isotropic(0)
    silent = OODEnsemble(MEMBERS, combine=combine, weights=[0.0, 2.0]).fit(world.X, world.y)
    alone = OODEnsemble(MEMBERS[1:], combine=combine).fit(world.X, world.y)
    np.testing.assert_allclose(silent.score_samples(world.X_out), alone.score_samples(world.X_out))
    np.testing.assert_array_equal(silent.shares_, [0.0, 1.0])
    assert silent.member_scores(world.X_in).shape == (len(world.X_in), 2)


def test_drop_leaves_a_member_out(isotropic):
    world = isotropic(0)
    dropped = OODEnsemble(MEMBERS).set_params(knn="drop").fit(world.X, world.y)
    alone = OODEnsemble(MEMBERS[1:]).fit(world.X, world.y)
    np.testing.assert_array_equal(dropped.score_samples(world.X_in), alone.score_samples(world.X_in))
    assert list(dropped.named_detectors_) == ["means"]


def test_member_scores_are_standard_normal_for_new_known_pictures(anisotropic):
    """Which in-sample calibration fails at: pictures of `fit` lie too close to their own class means."""
    world = anisotropic(0)
    honest = OODEnsemble(MEMBERS).fit(world.X, world.y).member_scores(world.X_in)
    assert np.abs(honest.mean(axis=0)).max() < 0.4
    assert np.abs(honest.std(axis=0) - 1.0).max() < 0.3
    in_sample = OODEnsemble(MEMBERS, calibration="in_sample").fit(world.X, world.y).member_scores(world.X_in)
    assert in_sample[:, 1].mean() < -1.0


def test_threshold_is_of_held_out_scores(anisotropic):
    world = anisotropic(0)
    refused = [
        np.mean(OODEnsemble(MEMBERS, contamination=0.1, calibration=how).fit(world.X, world.y).predict(world.X_in) < 0)
        for how in ("cv", "in_sample", world.X_in)
    ]
    assert refused[0] == pytest.approx(0.1, abs=0.05)
    assert refused[1] > 0.25
    assert refused[2] == pytest.approx(0.1, abs=0.01)


def test_given_calibration_pictures_make_the_scale(isotropic):
    world = isotropic(0)
    detector = OODEnsemble(MEMBERS, calibration=world.X_in).fit(world.X, world.y)
    normal = detector.member_scores(world.X_in)
    np.testing.assert_allclose(np.median(normal, axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose(np.quantile(normal, 0.05, axis=0), -1.645, atol=0.02)


def test_string_labels_change_nothing(isotropic):
    world = isotropic(0)
    names = np.array([f"class {k:02d}" for k in range(20)])
    text = ZeroShotClassifier(prototypes=world.text[::-1], classes=names[::-1])
    named = OODEnsemble(zero_shot=text).fit(world.X, names[world.y])
    plain = OODEnsemble(zero_shot=world.text).fit(world.X, world.y)
    np.testing.assert_allclose(named.score_samples(world.X_in), plain.score_samples(world.X_in), rtol=1e-4, atol=1e-4)
    assert named.classes_[0] == "class 00"


@pytest.mark.parametrize(
    ("with_text", "with_labels", "names"),
    [
        (True, True, ["mcm", "max_logit", "nn_guide", "knn", "relative_mahalanobis", "mean_matching"]),
        (True, False, ["mcm", "max_logit", "nn_guide", "knn"]),
        (False, True, ["knn", "mahalanobis", "relative_mahalanobis"]),
        (False, False, ["knn", "mahalanobis"]),
    ],
)
def test_default_members(isotropic, with_text, with_labels, names):
    world = isotropic(0)
    detector = OODEnsemble(zero_shot=world.text if with_text else None)
    detector.fit(world.X, world.y if with_labels else None)
    assert list(detector.named_detectors_) == names
    assert (detector.weights_ is not None) == with_labels
    assert auroc(detector, world) > (0.95 if with_labels else 0.8)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_near_the_best_member_in_worlds_that_differ(anisotropic, isotropic, cluster_means, clusters, seed):
    """No member is good in all of them; the means of the logit members are below 0.75."""
    worlds = [world(seed) for world in (anisotropic, isotropic, cluster_means, clusters)]
    figures = []
    for world in worlds:
        detector = OODEnsemble(zero_shot=world.text).fit(world.X, world.y)
        inside, outside = detector.member_scores(world.X_in), detector.member_scores(world.X_out)
        members = [ood_auroc(a, b) for a, b in zip(inside.T, outside.T)]
        figures.append([auroc(detector, world), *members])
    figures = np.array(figures)
    assert figures[:, 0].min() > 0.97
    assert np.all(figures[:, 0] >= figures[:, 1:].max(axis=1) - 0.03)
    assert figures[:, 0].mean() > figures[:, 1:].mean(axis=0).max()
    assert figures[:, 1:3].mean(axis=0).max() < 0.75


def test_learned_weights_follow_the_world(anisotropic):
    """In noise that all classes share, distances in that noise tell held-out classes; neighbours and names hardly."""
    world = anisotropic(0)
    detector = OODEnsemble(zero_shot=world.text).fit(world.X, world.y)
    weights = dict(zip(detector.named_detectors_, detector.weights_))
    assert weights["relative_mahalanobis"] > 3.0 * max(weights["knn"], weights["nn_guide"], weights["mcm"])
    even = OODEnsemble(zero_shot=world.text, combine="mean").fit(world.X, world.y)
    assert even.weights_ is None
    assert auroc(detector, world) > auroc(even, world) + 0.05


def test_held_out_classes_are_unknown_to_members():
    codes = np.repeat(np.arange(12), 4)
    classes = np.array([f"c{k}" for k in range(12)])
    groups = _groups_of_classes(codes, classes)
    assert len(groups) == 5
    assert sorted(label for group in groups for label in group.labels) == sorted(classes)
    for group in groups:
        assert not set(classes[codes[group.train]]) & set(group.labels)
        assert set(classes[codes[group.unknown]]) == set(group.labels)
        assert not set(group.train) & set(group.known)
        assert set(codes[group.known]) == set(codes[group.train])


@pytest.mark.parametrize("codes", [None, [0, 0, 1, 1], [0, 0, 1, 1, 2]])
def test_classes_that_cannot_be_held_out(codes):
    """No labels, two classes, a class with one picture."""
    classes = None if codes is None else np.unique(codes)
    assert _groups_of_classes(None if codes is None else np.array(codes), classes) == []


def test_without_held_out_classes_evidence_is_of_e_values_alone(isotropic):
    world = isotropic(0)
    two = world.y < 2
    detector = OODEnsemble(MEMBERS).fit(world.X[two], world.y[two])
    assert detector.weights_ is None
    assert detector.intercept_ == 0.0
    assert ood_auroc(detector.score_samples(world.X_in[:40]), detector.score_samples(world.X_out)) > 0.9


@pytest.mark.parametrize(
    "member",
    [
        MCMDetector(np.eye(4)),
        MCMDetector(ZeroShotClassifier(prototypes=np.eye(4))),
        MCMDetector(FrozenEstimator(ZeroShotClassifier(prototypes=np.eye(4)).fit())),
        MSPDetector(np.eye(4)),
        MSPDetector(ZeroShotClassifier(prototypes=np.eye(4))),
        MSPDetector(GDAClassifier(np.eye(4))),
    ],
    ids=["array", "text", "fitted text", "prototypes", "classifier of text", "adapter"],
)
def test_text_of_held_out_classes_is_taken_out(member):
    kept = _without_classes(member, np.array([1, 3]), None)
    (text,) = [value for value in kept.get_params().values() if isinstance(value, FrozenEstimator)]
    np.testing.assert_array_equal(text.classes_, [0, 2])
    np.testing.assert_array_equal(text.prototypes_, np.eye(4)[[0, 2]])
    assert kept.fit(np.eye(4)[[0, 0, 2, 2]] + 0.1, [0, 0, 2, 2]).score_samples(np.eye(4)).shape == (4,)


def test_names_inside_a_classifier_on_pictures_are_taken_out():
    text = ZeroShotClassifier(class_names=["cat", "dog", "owl"])
    member = MSPDetector(CLIPClassifier("skclip-tiny", classifier=text))
    kept = _without_classes(member, np.array(["dog"]), np.array(["cat", "dog", "owl"]))
    assert kept.classifier.classifier.class_names == {"cat": "cat", "owl": "owl"}
    described = ZeroShotClassifier(templates={"cat": ["a cat"], "dog": ["a dog"]})
    kept = _without_classes(MSPDetector(CLIPClassifier("skclip-tiny", classifier=described)), np.array(["dog"]), None)
    assert kept.classifier.classifier.templates == {"cat": ["a cat"]}


def test_fitted_members_are_kept_and_are_not_asked_about_held_out_classes(isotropic):
    world = isotropic(0)
    frozen = FrozenEstimator(KNNDetector(5).fit(world.X_in))
    detector = OODEnsemble([("frozen", frozen), *MEMBERS]).fit(world.X, world.y)
    assert detector.named_detectors_["frozen"].estimator is frozen.estimator
    assert detector.weights_[0] == 0.0
    assert detector.weights_[1:].max() > 0.0
    head = FrozenEstimator(LogisticRegression().fit(world.X, world.y))
    assert _without_classes(MSPDetector(head), np.array([0]), None) is None
    alone = OODEnsemble([("frozen", frozen)]).fit(world.X, world.y)
    assert alone.weights_ is None
    assert auroc(alone, world) == pytest.approx(auroc(frozen.estimator, world))


def test_members_of_the_user_are_not_touched(isotropic):
    world = isotropic(0)
    members = [("knn", KNNDetector(5)), ("mcm", MCMDetector(world.text))]
    OODEnsemble(members).fit(world.X, world.y)
    assert not any(hasattr(member, "offset_") for _, member in members)
    assert members[1][1].zero_shot is world.text


def test_detectors_of_scikit_learn_are_members(isotropic):
    world = isotropic(0)
    members = [("forest", IsolationForest(n_estimators=20, random_state=0)), *MEMBERS]
    assert auroc(OODEnsemble(members).fit(world.X, world.y), world) > 0.9


def test_members_on_pictures():
    pictures = make_picture_world(24, random_state=0).images
    y = np.repeat(["a", "b", "c"], 8)
    features = CLIPFeatures("skclip-tiny")
    members = [
        ("knn", make_pipeline(features, KNNDetector(3))),
        ("means", make_pipeline(features, MahalanobisDetector("ks"))),
    ]
    detector = OODEnsemble(members).fit(pictures, y)
    X = features.transform(pictures)
    expected = OODEnsemble([("knn", KNNDetector(3)), ("means", MahalanobisDetector("ks"))]).fit(X, y).score_samples(X)
    np.testing.assert_allclose(detector.score_samples(pictures), expected, rtol=1e-3, atol=1e-3)


class Failing(BaseEstimator):
    """A detector that cannot do what `how` says."""

    def __init__(self, how="fit"):
        self.how = how

    def fit(self, X, y=None):
        if self.how == "fit":
            raise ValueError("no such luck")
        if self.how == "memory":
            raise MemoryError("too large")
        self.fitted_ = True
        return self

    def score_samples(self, X):
        scores = {"nan": np.full(len(X), np.nan), "shape": np.zeros((len(X), 2))}
        return scores.get(self.how, np.zeros(len(X)))


def test_what_fails_is_named(isotropic):
    world = isotropic(0)
    for how, message in {
        "fit": "detector 'bad': no such luck",
        "nan": "'bad' gives nan",
        "shape": "'bad' gives",
    }.items():
        with pytest.raises(ValueError, match=message):
            OODEnsemble([*MEMBERS, ("bad", Failing(how))]).fit(world.X, world.y)
    with pytest.raises(MemoryError) as raised:
        OODEnsemble([("bad", Failing("memory"))]).fit(world.X, world.y)
    assert "'bad'" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match=r"detector 'probe': .* needs y"):
        OODEnsemble([("probe", MSPDetector(LogisticRegression()))]).fit(world.X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"detectors": []}, "holds no detector"),
        ({"detectors": [("a", "drop")]}, "holds no detector"),
        ({"detectors": [("a", KNNDetector()), ("a", KNNDetector())]}, "not unique"),
        ({"detectors": [("a__b", KNNDetector())]}, "__"),
        ({"detectors": [KNNDetector()]}, "list of \\(name, detector\\)"),
        ({"detectors": [("a", KMeans())]}, "detector 'a', .* is no detector"),
        ({"detectors": [("a", KNNDetector)]}, "is no detector"),
        ({"detectors": [("a", "keep")]}, "is no detector"),
        ({"detectors": MEMBERS, "zero_shot": np.eye(64)}, "zero_shot is for the members of detectors=None"),
        ({"detectors": MEMBERS, "weights": [1.0]}, "one number for each of the 2"),
        ({"detectors": MEMBERS, "weights": [0.0, 0.0]}, "not all zero"),
        ({"detectors": MEMBERS, "weights": [1.0, -1.0]}, "not be negative"),
        ({"detectors": MEMBERS, "weights": [1.0, np.nan]}, "weights"),
        ({"combine": "vote"}, "combine"),
        ({"zero_shot": np.eye(20, 7)}, "7"),
        ({"calibration": np.zeros((3, 5))}, "features"),
    ],
)
def test_errors(isotropic, params, message):
    world = isotropic(0)
    with pytest.raises((ValueError, TypeError), match=message):
        OODEnsemble(**params).fit(world.X, world.y)


def test_single_pictures_cannot_be_held_out(isotropic):
    world = isotropic(0)
    with pytest.raises(ValueError, match="calibration"):
        OODEnsemble(MEMBERS[:1]).fit(world.X[::16], world.y[::16])
    detector = OODEnsemble(MEMBERS[:1], calibration=world.X_in).fit(world.X[::16], world.y[::16])
    assert detector.weights_ is None


def test_few_rows_get_fewer_neighbours():
    y = np.repeat([0, 1, 2], 3)
    X = np.eye(3, 4)[y] + 0.1 * np.random.default_rng(0).normal(size=(9, 4))
    detector = OODEnsemble(zero_shot=np.eye(3, 4)).fit(X, y)
    assert detector.named_detectors_["knn"].n_neighbors == 4  # of 9: a third in held-out rows, a third in classes
    assert np.isfinite(detector.score_samples(X)).all()


def test_parameters_reach_members():
    detector = OODEnsemble(MEMBERS)
    assert detector.get_params()["knn__n_neighbors"] == 5
    copy = clone(detector).set_params(knn__n_neighbors=7)
    assert dict(copy.detectors)["knn"].n_neighbors == 7
    assert MEMBERS[0][1].n_neighbors == 5
    copy.set_params(means=RelativeMahalanobisDetector())
    assert isinstance(dict(copy.detectors)["means"], RelativeMahalanobisDetector)
    assert OODEnsemble().get_params()["detectors"] is None


def test_search_over_a_member(isotropic):
    world = isotropic(0)
    grid = {"knn__n_neighbors": [1, 10], "combine": ["evidence", "min"]}
    folds = list(StratifiedKFold(2).split(world.X, world.y))
    search = GridSearchCV(OODEnsemble(MEMBERS), grid, scoring=get_scorer("ood_auroc", X_out=world.X_out), cv=folds)
    search.fit(world.X, world.y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_score_ > 0.9


@pytest.mark.parametrize("text", [False, True])
def test_persistence(isotropic, tmp_path, text):
    world = isotropic(0)
    detector = OODEnsemble(zero_shot=world.text if text else None).fit(world.X, world.y)
    joblib.dump(detector, tmp_path / "ensemble.joblib")
    loaded = joblib.load(tmp_path / "ensemble.joblib", mmap_mode="r")
    np.testing.assert_array_equal(loaded.score_samples(world.X_out), detector.score_samples(world.X_out))


def test_jobs_change_nothing(isotropic):
    world = isotropic(0)
    one = OODEnsemble(MEMBERS).fit(world.X, world.y)
    with joblib.parallel_backend("threading"):
        two = OODEnsemble(MEMBERS, n_jobs=2).fit(world.X, world.y)
    np.testing.assert_array_equal(one.score_samples(world.X_in), two.score_samples(world.X_in))


def test_batches_do_not_matter(isotropic):
    world = isotropic(0)
    detector = OODEnsemble(zero_shot=world.text).fit(world.X, world.y)
    scores = detector.score_samples(world.X_in)
    np.testing.assert_allclose(detector.score_samples(world.X_in[7:9]), scores[7:9], rtol=1e-9)
    with config_context(working_memory=0.05):
        np.testing.assert_allclose(detector.score_samples(world.X_in), scores, rtol=1e-9)


def test_views_reach_the_default_members(isotropic):
    world = isotropic(0)
    views = np.stack([world.X, world.X[::-1]], axis=1)
    detector = OODEnsemble(zero_shot=world.text).fit(views, world.y)
    np.testing.assert_allclose(detector.score_samples(views), detector.score_samples(world.X), rtol=1e-9)


def test_text_warns_once(isotropic):
    world = isotropic(0)
    text = world.text.copy()
    text[1] = text[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        OODEnsemble(zero_shot=text).fit(world.X, world.y)
    assert len([w for w in caught if "same prototype" in str(w.message)]) == 1


def test_maximum_logit_of_a_probe_is_a_member(clusters):
    """Members that learn from labels are fitted anew without the classes held out."""
    world = clusters(0)
    members = [("probe", MaxLogitDetector(LogisticRegression(C=10.0))), *MEMBERS]
    detector = OODEnsemble(members).fit(world.X, world.y)
    assert detector.weights_.shape == (3,)
    assert auroc(detector, world) > 0.95
