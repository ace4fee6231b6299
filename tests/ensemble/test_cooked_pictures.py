"""COOkeD on pictures: each decoded once, and encoded once by every model."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skclip import CLIPClassifier, CLIPFeatures, ZeroShotClassifier
from skclip._backbones import Backbone
from skclip._media import PictureError, _reading, _shared, check_images, read_picture
from skclip.adapters import GDAClassifier, LinearProbeClassifier
from skclip.datasets import make_picture_world
from skclip.ensemble import COOkeDClassifier
from skclip.ensemble._sharing import front_end, reads_pixels
from skclip.features import MissingDeviceWarning, UnreadablePictureWarning
from skclip.metrics import ood_auroc

TINY, TINY_RN = "skclip-tiny", "skclip-tiny-rn"
NAMES = ["circle", "ring", "square", "star"]
TEMPLATE = "a photo of a {}"


def shapes_of(drawn):
    return np.array([name.split()[-1] for name in drawn.target])


class SmallNetwork(ClassifierMixin, BaseEstimator):
    """Reads pictures by itself: the nearest mean of 8 x 8 pixels, which `preprocess` makes once."""

    def preprocess(self, X):
        X = check_images(X)
        if isinstance(X, np.ndarray) and X.shape[1:] == (8, 8, 3):
            return X
        return np.stack([np.asarray(read_picture(item).convert("RGB").resize((8, 8))) for item in X])

    def fit(self, X, y):
        rows = self.preprocess(X).reshape(len(y), -1) / 255.0
        self.classes_ = np.unique(y)
        self.means_ = np.stack([rows[y == label].mean(axis=0) for label in self.classes_])
        return self

    def predict_proba(self, X):
        pixels = self.preprocess(X)
        rows = pixels.reshape(len(pixels), -1) / 255.0
        distances = ((rows[:, None] - self.means_) ** 2).sum(axis=2)
        p = np.exp(-(distances - distances.min(axis=1, keepdims=True)))
        return p / p.sum(axis=1, keepdims=True)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


class MeanColour(TransformerMixin, BaseEstimator):
    """A transformer of somebody else, which opens paths with Pillow."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return np.stack([np.asarray(Image.open(path).convert("RGB")).mean(axis=(0, 1)) for path in X])


@pytest.fixture(scope="module")
def world():
    drawn = make_picture_world(48, shapes=NAMES, colors=["red", "blue"], held_out="include", random_state=3)
    return drawn.images, shapes_of(drawn)


@pytest.fixture
def files(world, tmp_path):
    paths = []
    for i, picture in enumerate(world[0]):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(picture).save(paths[-1])
    return paths


@pytest.fixture
def work(monkeypatch, empty_stores):
    """How often each file was read, how many pictures were decoded, and how many each model encoded."""
    counts = {"read": Counter(), "decoded": 0, "encoded": Counter()}
    decode, load, encode = _reading._decode, _reading.load_item, Backbone.encode_images

    def counting_decode(data):
        counts["decoded"] += 1
        return decode(data)

    def counting_load(item):
        if isinstance(item, str):
            counts["read"][item] += 1
        return load(item)

    def counting_encode(self, batch, **kwargs):
        counts["encoded"][self.card.name] += len(batch)
        return encode(self, batch, **kwargs)

    monkeypatch.setattr(_reading, "_decode", counting_decode)
    monkeypatch.setattr(_reading, "load_item", counting_load)
    monkeypatch.setattr(Backbone, "encode_images", counting_encode)
    monkeypatch.setattr(_shared, "_FIRST_CHUNK", 5)
    monkeypatch.setattr(_shared, "_CHUNK", 20)
    return counts


def forget(counts):
    counts["read"].clear()
    counts["encoded"].clear()
    counts["decoded"] = 0


def members(store=None):
    text = ZeroShotClassifier(class_names={name: name for name in NAMES}, templates=TEMPLATE)
    return [
        ("text", CLIPClassifier(TINY, text, store=store)),
        ("probe", make_pipeline(CLIPFeatures(TINY, normalize=False, store=store), LinearProbeClassifier())),
        ("gda", make_pipeline(CLIPFeatures(TINY_RN, store=store), GDAClassifier())),
        ("text_rn", make_pipeline(CLIPFeatures(TINY_RN, store=store), clone(text))),
    ]


@pytest.mark.parametrize("store", [None, "memory"])
@pytest.mark.parametrize("network", [False, True])
def test_four_members_of_two_models_decode_once_and_encode_once_each(files, world, work, store, network):
    _, y = world
    clf = COOkeDClassifier(members(store) + ([("net", SmallNetwork())] if network else []))
    clf.fit(files, y)  # with five folds of every member
    assert work["decoded"] == 48
    assert set(work["read"].values()) == {1}
    assert work["encoded"] == {TINY: 48, TINY_RN: 48}
    forget(work)
    clf.predict_proba(files)
    again = 0 if store and not network else 48
    assert work["decoded"] == again
    assert work["encoded"] == ({} if store else {TINY: 48, TINY_RN: 48})
    assert max(work["read"].values(), default=0) <= 1
    forget(work)
    clf.disagreement(files[:10])
    clf.score_samples(files[:10])
    assert work["decoded"] == (0 if store and not network else 20)


def test_alone_they_would_read_again(files, world, work):
    """What the counts of the test above are to be compared with."""
    _, y = world
    alone = members()
    alone[3][1][-1].set_params(model=TINY_RN)
    for _, member in alone:
        member.fit(files, y)
    assert work["decoded"] == 4 * 48
    assert work["encoded"] == {TINY: 2 * 48, TINY_RN: 2 * 48}


def test_answers_are_those_of_the_members_alone(files, world, empty_stores):
    _, y = world
    clf = COOkeDClassifier([*members(), ("net", SmallNetwork())]).fit(files, y)
    own = clf.member_probabilities(files)
    alone = members("memory")
    alone[3][1][-1].set_params(model=TINY_RN)
    for name, member in [*alone, ("net", SmallNetwork())]:
        fitted = member.fit(files, y)
        np.testing.assert_allclose(own[name], fitted.predict_proba(files), atol=1e-5)
        # each fitted member is whole
        np.testing.assert_allclose(clf.named_estimators_[name].predict_proba(files), own[name], atol=1e-5)
    np.testing.assert_allclose(clf.predict_proba(files), np.mean(list(own.values()), axis=0), atol=1e-12)
    assert clf.score(files, y) > 0.9


def test_pictures_of_every_kind(files, world, empty_stores):
    pictures, y = world
    clf = COOkeDClassifier([*members("memory"), ("net", SmallNetwork())], calibration=None).fit(files, y)
    expected = clf.predict_proba(files[:6])
    encoded = [Path(path).read_bytes() for path in files[:6]]
    for X in (pictures[:6], list(pictures[:6]), [Image.fromarray(picture) for picture in pictures[:6]], encoded):
        np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-5)


def test_memory_is_bounded_by_a_chunk(files, world, work):
    """No picture stays decoded after its chunk, neither in fit nor in predict."""
    _, y = world
    held = []

    class Watching(SmallNetwork):
        def preprocess(self, X):
            if not isinstance(X, np.ndarray):
                held.append(sum(item.held_bytes() > 0 for item in X))
                assert len(X) <= 20
            return super().preprocess(X)

    clf = COOkeDClassifier([*members()[:2], ("net", Watching())], calibration=None).fit(files, y)
    assert held == [5, 20, 20, 3]  # held by the readers before
    held.clear()
    clf.predict(files)
    assert [n for n in held if n] == [5, 20, 20, 3]


def test_frozen_and_calibrated_members_share_as_well(files, world, work):
    _, y = world
    fitted = make_pipeline(CLIPFeatures(TINY, store=None), LinearProbeClassifier()).fit(files, y)
    network = FrozenEstimator(SmallNetwork().fit(files, y))
    piped = make_pipeline(CLIPFeatures(TINY, store=None), GDAClassifier())
    forget(work)
    clf = COOkeDClassifier(
        [
            ("frozen", FrozenEstimator(fitted)),
            ("text", members()[0][1]),
            ("net", network),
            ("calibrated", CalibratedClassifierCV(piped, cv=2)),
        ]
    )
    clf.fit(files, y)
    assert work["encoded"] == {TINY: 48}
    assert work["decoded"] == 48
    forget(work)
    clf.predict(files)
    assert work["encoded"] == {TINY: 48}
    assert work["decoded"] == 48
    assert clf.named_estimators_["net"] is network
    forget(work)
    COOkeDClassifier([("frozen", FrozenEstimator(fitted)), ("net", network)]).fit(files)  # a threshold, no labels
    assert work["decoded"] == 48


def test_where_the_device_is_missing_it_predicts_on_the_cpu(files, world, empty_stores):
    _, y = world
    clf = COOkeDClassifier(members("memory")[:2], calibration=None).fit(files, y)
    expected = clf.predict_proba(files[:6])
    text, probe = clf.estimators_
    text.features_.device = probe[0].device = "cuda:78"
    with pytest.warns(MissingDeviceWarning, match=r"cuda:78.*Running on the CPU"):
        np.testing.assert_array_equal(clf.predict_proba(files[:6]), expected)


def test_views_are_encoded_once(files, world, work):
    _, y = world
    views = [
        ("a", make_pipeline(CLIPFeatures(TINY, n_views=3, random_state=0, store=None), LinearProbeClassifier())),
        ("b", make_pipeline(CLIPFeatures(TINY, n_views=3, random_state=0, store=None), GDAClassifier())),
        ("c", make_pipeline(CLIPFeatures(TINY, store=None), GDAClassifier())),
    ]
    clf = COOkeDClassifier(views, calibration=None).fit(files, y)
    assert work["encoded"] == {TINY: 3 * 48}
    assert work["decoded"] == 48
    alone = make_pipeline(CLIPFeatures(TINY, n_views=3, random_state=0), LinearProbeClassifier()).fit(files, y)
    np.testing.assert_allclose(clf.member_probabilities(files)["a"], alone.predict_proba(files), atol=1e-4)


def test_somebody_elses_transformer_is_given_paths(files, world, work):
    _, y = world
    colour = make_pipeline(MeanColour(), StandardScaler(), LogisticRegression())
    search = GridSearchCV(make_pipeline(CLIPFeatures(TINY), GDAClassifier()), {"gdaclassifier__alpha": [1.0]}, cv=2)
    clf = COOkeDClassifier([*members("memory")[:2], ("colour", colour), ("search", search)]).fit(files, y)
    np.testing.assert_allclose(
        clf.member_probabilities(files)["colour"], clone(colour).fit(files, y).predict_proba(files), atol=1e-12
    )
    assert work["encoded"] == {TINY: 48}  # the search finds them in the store


def test_text_in_a_pipeline_takes_the_model_of_the_pictures(files, world, empty_stores):
    _, y = world
    clf = COOkeDClassifier(members("memory"), calibration=None).fit(files, y)
    assert clf.named_estimators_["text_rn"][-1].model == TINY_RN
    assert clf.named_estimators_["text"].classifier_.model == TINY
    other = make_pipeline(CLIPFeatures(TINY), ZeroShotClassifier(TINY_RN, class_names=NAMES, templates=TEMPLATE))
    with pytest.raises(ValueError, match=r"member 'text': .*model='skclip-tiny-rn', but the pictures are encoded by"):
        COOkeDClassifier([("text", other)]).fit(files, y)


def test_a_picture_that_cannot_be_read_is_named_by_its_place(files, world, tmp_path, empty_stores):
    _, y = world
    (tmp_path / "17.png").write_bytes(b"nothing")
    for which in ([*members()], [("net", SmallNetwork())], [*members()[:1], ("net", SmallNetwork())]):
        with pytest.raises(PictureError, match=r"X\[17\], .*17\.png.*is not a picture in any format"):
            COOkeDClassifier(which, calibration=None).fit(files, y)
    text = ZeroShotClassifier(class_names=NAMES, templates=TEMPLATE)
    lenient = FrozenEstimator(CLIPClassifier(TINY, text, on_error="nan", store=None).fit(files[:4], y[:4]))
    with (
        pytest.warns(UnreadablePictureWarning, match=r"X\[17\]"),
        pytest.raises(ValueError, match="NaN"),
    ):
        COOkeDClassifier([("text", lenient)]).fit(files)
    with pytest.raises(ValueError, match="columns needs X to be a matrix of features"):
        COOkeDClassifier(members(), columns={"text": slice(2)}).fit(world[0], y)
    with pytest.raises(TypeError, match=r"X\[1\] is None"):
        COOkeDClassifier(members()).fit([files[0], None], y[:2])


class BlindInTheDark(SmallNetwork):
    def predict_proba(self, X):
        dark = self.preprocess(X).reshape(len(X), -1).max(axis=1, keepdims=True) == 0
        return np.where(dark, np.nan, super().predict_proba(X))


def test_answers_of_a_network_that_are_no_numbers_are_named_by_their_place(files, world, work):
    pictures, y = world
    clf = COOkeDClassifier([("net", BlindInTheDark())], calibration=None).fit(files, y)
    with pytest.raises(ValueError, match=r"member 'net' gives .*nan.* for X\[30\]: not finite"):
        clf.predict([*pictures[:30], np.zeros((20, 20, 3), dtype=np.uint8), *pictures[31:]])


def test_what_reads_pictures_is_recognised():
    assert front_end(LogisticRegression()) is None
    assert front_end(make_pipeline(MeanColour(), LogisticRegression())) is None
    assert front_end(FrozenEstimator(members()[1][1])).model == TINY
    assert front_end(members()[0][1]).model == TINY
    assert not reads_pixels(LogisticRegression())
    assert not reads_pixels(CLIPClassifier())
    assert reads_pixels(FrozenEstimator(SmallNetwork()))


def test_unknown_shapes_are_told_from_known_ones(empty_stores):
    known = make_picture_world(300, shapes=NAMES, colors=["red", "blue"], held_out="include", random_state=5)
    unknown = make_picture_world(80, shapes=["heart", "moon", "cross"], colors=["red", "blue"], held_out="include")
    y = shapes_of(known)
    clf = COOkeDClassifier(members("memory")).fit(known.images[:180], y[:180])
    held_out = known.images[180:]
    assert ood_auroc(clf.score_samples(held_out), clf.score_samples(unknown.images)) > 0.9
    detector = clf.as_outlier_detector()
    assert np.mean(detector.predict(held_out) == 1) == pytest.approx(0.95, abs=0.05)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.predict(held_out), detector.predict(held_out))


def test_a_network_of_timm_is_a_member(files, world, work):
    from skclip.tuning import TimmClassifier

    _, y = world
    network = TimmClassifier("resnet10t", image_size=32, max_iter=2, random_state=0)
    clf = COOkeDClassifier([*members()[:2], ("net", network)], calibration=None).fit(files, y)
    assert work["decoded"] == 48
    assert work["encoded"] == {TINY: 48}
    forget(work)
    own = clf.member_probabilities(files)
    assert work["decoded"] == 48
    np.testing.assert_allclose(own["net"], clone(network).fit(files, y).predict_proba(files), atol=1e-5)
    calm = clone(clf).set_params(temperature={"net": 4.0}).fit(files, y)
    expected = own["net"] ** 0.25
    np.testing.assert_allclose(
        calm.member_probabilities(files)["net"], expected / expected.sum(axis=1, keepdims=True), atol=1e-4
    )
