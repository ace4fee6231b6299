"""ImageNet from class text and four pictures a class, against sets whose pictures are averages of views as well.

Flowers (16 shots), Caltech (16) and DTD (1) are averages of ten views, as the pictures of ImageNet are. Caltech holds
many classes of ImageNet, which no score should tell from it: its figures are low throughout.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import entr
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.frozen import FrozenEstimator

from skclip import ZeroShotClassifier
from skclip.adapters import LinearProbeClassifier, SimilarityVoteClassifier
from skclip.ensemble import COOkeDClassifier
from skclip.metrics import ood_auroc
from skclip.utils._arrays import unit_rows

SETS = {
    "flowers": ("oxford_flowers", "X_train_16"),
    "caltech": ("caltech101", "X_train_16"),
    "dtd": ("dtd", "X_train_1"),
}


class GivenProbe(ClassifierMixin, BaseEstimator):
    """A linear probe that others have trained."""

    def __init__(self, coef=None, intercept=None):
        self.coef = coef
        self.intercept = intercept

    def fit(self, X, y=None):
        self.classes_ = np.arange(len(self.coef))
        return self

    def logits(self, X):
        return unit_rows(X) @ self.coef.T + self.intercept

    def predict_proba(self, X):
        logits = self.logits(X)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def imagenet(real_features):
    return real_features("imagenet")


def table(clf, imagenet, real_features):
    """AUROC of the entropy, ``{set: {member or "ensemble": value}}``, and accuracy on the 2-shot set."""

    def entropies(X):
        own = clf.member_probabilities(X)
        mean = sum(clf.weights_[name] * p for name, p in own.items())
        return {name: -entr(p).sum(axis=1) for name, p in {**own, "ensemble": mean}.items()}, mean

    inside, mean = entropies(imagenet["X_train_2"])
    accuracy = np.mean(clf.classes_[mean.argmax(axis=1)] == imagenet["y_train_2"])
    reached = {}
    for name, (file, part) in SETS.items():
        outside, _ = entropies(real_features(file)[part])
        reached[name] = {member: float(ood_auroc(inside[member], outside[member])) for member in inside}
    return reached, accuracy


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:Classes 264 and 474")  # two kinds of cardigan
def test_text_probe_and_neighbours_of_four_shots(imagenet, real_features):
    """Above each member where they are comparable (DTD), and not where text alone is far better (Flowers)."""
    clf = COOkeDClassifier(zero_shot=imagenet["text"], calibration=None)
    clf.fit(imagenet["X_train_4"], imagenet["y_train_4"])
    reached, accuracy = table(clf, imagenet, real_features)
    members = ["zero_shot", "probe", "neighbors"]
    assert reached["dtd"]["ensemble"] > max(reached["dtd"][name] for name in members) + 0.003
    assert reached["dtd"]["ensemble"] == pytest.approx(0.875, abs=0.005)
    # neighbours take roses of every kind for one class of ImageNet, and are sure of it
    assert reached["flowers"]["neighbors"] < 0.35
    assert reached["flowers"]["ensemble"] == pytest.approx(0.814, abs=0.005)
    assert reached["flowers"]["ensemble"] < reached["flowers"]["zero_shot"]
    assert reached["caltech"]["zero_shot"] < reached["caltech"]["ensemble"] < reached["caltech"]["probe"]
    assert accuracy == pytest.approx(0.635, abs=0.005)
    assert accuracy > 0.611 + 0.02  # of text, the best member

    # the two members that are comparable on more than DTD
    text, probe = (FrozenEstimator(clf.named_estimators_[name]) for name in ("zero_shot", "probe"))
    pair = COOkeDClassifier([("text", text), ("probe", probe)], calibration=None).fit(imagenet["X_train_4"])
    reached, accuracy = table(pair, imagenet, real_features)
    assert reached["dtd"]["ensemble"] == pytest.approx(0.871, abs=0.005)
    assert reached["flowers"]["probe"] + 0.1 < reached["flowers"]["ensemble"] < reached["flowers"]["text"]
    assert accuracy > 0.635


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:Classes 264 and 474")
def test_text_and_a_probe_of_all_of_imagenet(imagenet, real_features):
    """The probe has been trained on the pictures that count as in-distribution here, which flatters it.

    On unit rows its probabilities are nearly uniform and add nothing; its logits are those of raw features, ten times
    as long, which a temperature of 0.1 says.
    """
    given = real_features("imagenet_linear_probe")
    probe = FrozenEstimator(GivenProbe(given["coef"], given["intercept"]).fit(None))
    members = [("text", ZeroShotClassifier(prototypes=imagenet["text"])), ("probe", probe)]
    clf = COOkeDClassifier(members, temperature={"probe": 0.1}, calibration=None)
    clf.fit(imagenet["X_train_4"], imagenet["y_train_4"])
    reached, _ = table(clf, imagenet, real_features)
    flowers, caltech, dtd = (reached[name] for name in ("flowers", "caltech", "dtd"))
    assert flowers["ensemble"] > max(flowers["text"], flowers["probe"])
    assert flowers["ensemble"] == pytest.approx(0.873, abs=0.005)
    assert caltech["text"] + 0.03 < caltech["ensemble"] < caltech["probe"]
    assert dtd["text"] + 0.02 < dtd["ensemble"] < dtd["probe"]

    clf.set_params(temperature=1.0).fit(imagenet["X_train_4"], imagenet["y_train_4"])
    flat, _ = table(clf, imagenet, real_features)
    assert flat["flowers"]["ensemble"] == pytest.approx(flat["flowers"]["text"], abs=0.01)


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:Classes 264 and 474")
def test_the_detector_accepts_new_pictures_of_known_classes(real_features):
    """Of Flowers, whose pictures to fit and to test are of other kinds: the threshold comes from pictures given."""
    flowers = real_features("oxford_flowers")
    members = [("probe", LinearProbeClassifier()), ("vote", SimilarityVoteClassifier())]
    clf = COOkeDClassifier(members, calibration=flowers["X_val"]).fit(flowers["X_train_8"], flowers["y_train_8"])
    detector = clf.as_outlier_detector()
    assert np.mean(detector.predict(flowers["X_test"]) == 1) == pytest.approx(0.95, abs=0.02)
    assert np.mean(detector.predict(real_features("caltech101")["X_test"]) == -1) > 0.7
