from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata

from skclip import CLIPFeatures, CLIPTextFeatures
from skclip.datasets import make_picture_world
from skclip.metrics import ood_auroc
from skclip.ood import MCMDetector, NegLabelDetector
from skclip.ood._neg_label import farthest, into_groups, negative_label_score
from skclip.utils._arrays import unit_rows
from skclip.zero_shot import ZeroShotClassifier

RNG = np.random.default_rng(0)
TEXT = unit_rows(RNG.normal(size=(5, 16)))
CANDIDATES = RNG.normal(size=(60, 16))
X = RNG.normal(size=(40, 16))

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "moon", "heart")


def transcription(X, text, candidates, *, fraction, quantile, n_groups, scale):
    """The method as the paper tells it, one picture and one group at a time; candidates stay in their order."""

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    nearness = [np.quantile([cosine(word, t) for t in text], quantile) for word in candidates]
    kept = np.argsort(nearness, kind="stable")[: int(fraction * len(candidates))]
    kept = np.random.RandomState(0).permutation(kept)
    kept = kept[: len(kept) - len(kept) % n_groups]
    scores = []
    for x in X:
        shares = []
        for group in np.split(kept, n_groups):
            own = [np.exp(scale * cosine(x, t)) for t in text]
            others = [np.exp(scale * cosine(x, candidates[j])) for j in group]
            shares.append(sum(own) / (sum(own) + sum(others)))
        scores.append(np.mean(shares))
    return np.array(scores), kept


@pytest.mark.parametrize(("n_groups", "kept"), [(1, 30), (4, 28), (7, 28), (30, 30)])
def test_is_the_method_of_the_paper(n_groups, kept):
    detector = NegLabelDetector(TEXT, candidates=CANDIDATES, fraction=0.5, n_groups=n_groups, logit_scale=10.0).fit()
    expected, negatives = transcription(X, TEXT, CANDIDATES, fraction=0.5, quantile=0.95, n_groups=n_groups, scale=10.0)
    assert_array_equal(detector.negatives_, negatives)
    assert len(negatives) == kept
    assert detector.n_groups_ == n_groups
    assert_allclose(detector.negative_prototypes_, unit_rows(CANDIDATES)[negatives])
    assert_allclose(detector.score_samples(X), expected, atol=1e-6)


def test_without_negatives_everything_is_known():
    assert_array_equal(negative_label_score(X @ TEXT.T, np.empty((40, 0)), 1, 100.0), 1.0)


def test_one_group_is_the_plain_share_of_the_softmax():
    negative = unit_rows(CANDIDATES)
    cosines = unit_rows(X) @ np.vstack([TEXT, negative]).T
    expected = softmax(100.0 * cosines, axis=1)[:, :5].sum(axis=1)
    assert_allclose(negative_label_score(cosines[:, :5], cosines[:, 5:], 1, 100.0), expected, atol=1e-12)
    detector = NegLabelDetector(TEXT, candidates=CANDIDATES, fraction=1.0, n_groups=1).fit()
    assert_allclose(detector.score_samples(X), expected, atol=1e-4)


def test_with_negatives_at_right_angles_to_everything_it_reads_the_classes_alone():
    known = np.hstack([TEXT, np.zeros((5, 30))])
    pictures = np.hstack([X, np.zeros((40, 30))])
    negatives = np.hstack([np.zeros((30, 16)), np.eye(30)])
    detector = NegLabelDetector(known, candidates=negatives, fraction=1.0, n_groups=3, logit_scale=7.0).fit()
    energy = logsumexp(7.0 * unit_rows(X) @ TEXT.T, axis=1)
    assert_allclose(detector.score_samples(pictures), 1 / (1 + 10 * np.exp(-energy)), atol=1e-6)
    assert_array_equal(rankdata(detector.score_samples(pictures)), rankdata(energy))


def test_equal_groups_score_as_one():
    negative = np.tile((unit_rows(X) @ unit_rows(CANDIDATES[:6]).T), 4)
    known = unit_rows(X) @ TEXT.T
    assert_allclose(
        negative_label_score(known, negative, 4, 20.0), negative_label_score(known, negative[:, :6], 1, 20.0)
    )


def test_extreme_cosines_overflow_nothing():
    score = negative_label_score(np.array([[1.0], [-1.0]]), np.array([[-1.0], [1.0]]), 1, 1e4)
    assert_array_equal(score, [1.0, 0.0])


def test_the_farthest_are_chosen_and_at_least_one():
    words = np.vstack([TEXT[0], -TEXT.sum(axis=0), TEXT[1] + 0.1 * TEXT[2]])
    assert_array_equal(farthest(words, TEXT, 1.0, 0.01), [1])
    assert_array_equal(sorted(farthest(words, TEXT, 1.0, 1.0)), [0, 1, 2])
    assert len(farthest(RNG.normal(size=(100, 16)), TEXT, 0.95, 0.29)) == 29
    assert len(farthest(RNG.normal(size=(99, 16)), TEXT, 0.95, 0.15)) == 14


@pytest.mark.parametrize(
    ("n", "n_groups", "kept", "groups"), [(150, 100, 100, 100), (99, 100, 99, 99), (1, 100, 1, 1), (201, 100, 200, 100)]
)
def test_groups_are_equal_and_never_more_than_negatives(n, n_groups, kept, groups):
    negatives, found = into_groups(np.arange(n), n_groups, 0)
    assert (len(negatives), found) == (kept, groups)
    assert len(set(negatives.tolist())) == kept


def test_the_shuffle_has_a_seed():
    def fit(seed):
        return NegLabelDetector(TEXT, candidates=CANDIDATES, fraction=0.5, n_groups=4, random_state=seed).fit()

    assert_array_equal(fit(0).negatives_, fit(0).negatives_)
    assert not np.array_equal(fit(0).negatives_, fit(1).negatives_)


def test_nouns_and_adjectives_are_chosen_from_separately():
    near, far = TEXT + 0.05 * RNG.normal(size=(5, 16)), -TEXT
    detector = NegLabelDetector(TEXT, candidates={"adjectives": far, "nouns": near}, fraction=0.4, n_groups=1).fit()
    assert sorted(detector.negatives_ < 5) == [False, False, True, True]  # nouns are counted first
    together = NegLabelDetector(TEXT, candidates=np.vstack([near, far]), fraction=0.4, n_groups=1).fit()
    assert together.negatives_.min() >= 5


def test_nouns_come_first_however_they_are_given():
    nouns, adjectives = CANDIDATES[:40], CANDIDATES[40:]
    given, reversed_ = (
        NegLabelDetector(TEXT, candidates=candidates, fraction=0.5, n_groups=3).fit()
        for candidates in ({"nouns": nouns, "adjectives": adjectives}, {"adjectives": adjectives, "nouns": nouns})
    )
    assert_array_equal(given.negatives_, reversed_.negatives_)
    assert_array_equal(given.negative_prototypes_, unit_rows(CANDIDATES)[given.negatives_])
    assert_array_equal(given.score_samples(X), reversed_.score_samples(X))


def _text_world(seed, *, n_known=20, n_unknown=20, d=64):
    """Unknown classes half way to a known one each; names lie across a modality gap, and some words near them."""
    rng = np.random.default_rng(seed)
    common, gap, signal = rng.normal(size=d), rng.normal(size=d), rng.normal(size=(n_known + n_unknown, d))
    signal[n_known:] = (signal[:n_known] + signal[n_known:]) / np.sqrt(2)
    synonyms = signal + 0.2 * rng.normal(size=signal.shape)
    words = common + gap + 0.5 * np.vstack([synonyms[n_known:], rng.normal(size=(400, d)), synonyms[:n_known]])
    y = np.repeat(np.arange(n_known + n_unknown), 10)
    pictures = common + 0.5 * signal[y] + 0.8 * rng.normal(size=(len(y), d))
    return common + gap + 0.5 * signal[:n_known], words, pictures[y < n_known], pictures[y >= n_known]


@pytest.mark.parametrize("seed", range(5))
def test_beats_mcm_where_the_unknown_are_near_some_words(seed):
    text, words, known, unknown = _text_world(seed)

    def auroc(detector):
        return ood_auroc(detector.fit().score_samples(known), detector.score_samples(unknown))

    ours = NegLabelDetector(text, candidates=words, fraction=0.95, n_groups=10)
    assert auroc(ours) > auroc(MCMDetector(text)) + 0.03
    assert (ours.negatives_ < 20).sum() > 10


def test_only_the_largest_cosine_finds_a_synonym_of_one_class():
    text, words, _, _ = _text_world(0)

    def synonyms_kept(quantile):
        detector = NegLabelDetector(text, candidates=words, fraction=0.95, n_groups=1, quantile=quantile).fit()
        return (detector.negatives_ >= 420).sum()

    assert synonyms_kept(1.0) <= 2
    assert synonyms_kept(0.95) > 8


def test_words_are_put_into_sentences_of_their_kind():
    zero_shot = ZeroShotClassifier("skclip-tiny", class_names={7: "red circle", 3: "blue square"})
    detector = NegLabelDetector(
        zero_shot,
        candidates={"nouns": ["star", "ring", "green_moon"], "adjectives": ["striped"]},
        fraction=1.0,
        n_groups=2,
        noun_template="a photo of a {}",
        adjective_template="a {} object",
    ).fit()
    assert_array_equal(detector.classes_, [3, 7])
    encode = CLIPTextFeatures("skclip-tiny").transform
    assert_allclose(detector.prototypes_, encode(["a photo of a blue square", "a photo of a red circle"]), atol=1e-6)
    assert sorted(detector.negatives_) == ["green_moon", "ring", "star", "striped"]
    sentences = {
        "star": "a photo of a star",
        "ring": "a photo of a ring",
        "green_moon": "a photo of a green moon",
        "striped": "a striped object",
    }
    expected = encode([sentences[word] for word in detector.negatives_])
    assert_allclose(detector.negative_prototypes_, expected, atol=1e-6)


def test_the_sentences_of_the_paper_are_the_defaults():
    made = NegLabelDetector()
    assert (made.noun_template, made.adjective_template) == ("the nice {}", "This is a {} photo")
    assert (made.fraction, made.quantile, made.n_groups, made.logit_scale) == (0.15, 0.95, 100, 100.0)


def test_repeated_words_and_class_names_are_left_out_whatever_their_case():
    zero_shot = ZeroShotClassifier("skclip-tiny", class_names={0: "red circle", 1: "blue square"})
    words = ["star", "Red_Circle", "STAR", " blue  SQUARE ", "ring", "star"]
    detector = NegLabelDetector(zero_shot, candidates=words, fraction=1.0, noun_template="a {}").fit()
    assert sorted(detector.negatives_) == ["ring", "star"]
    with pytest.raises(ValueError, match="Every one of candidates is the name of a class"):
        NegLabelDetector(zero_shot, candidates=["red circle"], noun_template="a {}").fit()


def test_lists_of_names_frozen_and_described_classes():
    from sklearn.frozen import FrozenEstimator

    names = ["red circle", "blue square"]
    options = {"candidates": ["green star", "Blue Square"], "fraction": 1.0, "noun_template": "a {}"}
    by_name = NegLabelDetector(ZeroShotClassifier("skclip-tiny", class_names=names), **options).fit()
    assert_array_equal(by_name.classes_, sorted(names))
    pictures = make_picture_world(2).images
    rows = CLIPFeatures("skclip-tiny").transform(pictures)
    by_place = NegLabelDetector(ZeroShotClassifier("skclip-tiny", class_names=names), **options).fit(rows, [0, 1])
    assert_array_equal(by_place.classes_, [0, 1])
    assert_array_equal(by_place.prototypes_, by_name.prototypes_[::-1])
    frozen = ZeroShotClassifier("skclip-tiny", class_names=names, templates="the {}").fit(rows, [0, 1])
    kept = NegLabelDetector(FrozenEstimator(frozen), **options).fit()
    assert_array_equal(kept.prototypes_, by_place.prototypes_)
    assert_array_equal(kept.negatives_, ["green star"])
    described = ZeroShotClassifier("skclip-tiny", templates={"r": ["a red circle"], "b": ["a blue square"]})
    without_names = NegLabelDetector(described, **options).fit()
    assert sorted(without_names.negatives_) == ["Blue Square", "green star"]
    assert_allclose(without_names.prototypes_, by_name.prototypes_, atol=1e-6)


def test_prototypes_of_a_named_model_can_stand_beside_words():
    prototypes = CLIPTextFeatures("skclip-tiny").transform(["a red circle", "a blue square"])
    zero_shot = ZeroShotClassifier("skclip-tiny", prototypes=prototypes)
    detector = NegLabelDetector(zero_shot, candidates=["green star"], noun_template="a {}").fit()
    assert_allclose(detector.prototypes_, prototypes, atol=1e-6)


@pytest.mark.parametrize("zero_shot", [TEXT, ZeroShotClassifier(prototypes=TEXT)], ids=["array", "prototypes"])
def test_prototypes_of_unknown_origin_cannot_encode_words(zero_shot):
    with pytest.raises(ValueError, match="candidates are words, but zero_shot holds prototypes of unknown origin"):
        NegLabelDetector(zero_shot, candidates=["a", "b"]).fit()


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        (None, ValueError, "candidates, which is None"),
        ([], ValueError, "candidates is empty"),
        ({"nouns": [], "adjectives": []}, ValueError, "candidates is empty"),
        ({"verbs": ["go"]}, ValueError, "candidates holds 'verbs'"),
        ("dog", TypeError, "single word"),
        ({"nouns": "dog"}, TypeError, r"candidates\['nouns'\]='dog' is a single word"),
        (["dog", 3], TypeError, r"candidates\[1\] is 3"),
        ({"adjectives": ["big", " "]}, TypeError, r"candidates\['adjectives'\]\[1\]"),
        ({"nouns": ["dog"], "adjectives": np.ones((2, 16))}, ValueError, "mixes words"),
        (np.full((3, 16), np.nan), ValueError, "NaN"),
        (np.zeros((3, 16)), ValueError, r"candidates\[0\] is all zeros"),
        (np.ones((3, 15)), ValueError, "candidates are text features of width 15"),
        (np.ones(16), ValueError, "2D"),
    ],
)
def test_bad_candidates_are_named(candidates, error, message):
    with pytest.raises(error, match=message):
        NegLabelDetector(TEXT, candidates=candidates).fit()


@pytest.mark.parametrize("name", ["noun_template", "adjective_template"])
def test_a_template_needs_a_place_for_the_word(name):
    zero_shot = ZeroShotClassifier("skclip-tiny", class_names={0: "red circle", 1: "blue square"})
    detector = NegLabelDetector(zero_shot, candidates={"nouns": ["star"], "adjectives": ["green"]}, noun_template="{}")
    with pytest.raises(ValueError, match=f"{name}='nothing' has no '{{}}'"):
        detector.set_params(**{name: "nothing"}).fit()


@pytest.mark.parametrize("seed", range(3))
def test_beats_mcm_on_pictures_whose_names_are_among_the_words(seed):
    """Known and unknown differ in shape; the words name all pairs, those of known classes among them."""
    colors, known_shapes, unknown_shapes = COLORS[:4], SHAPES[:4], SHAPES[4:]
    names = {f"{color} {shape}": f"{color} {shape}" for color in colors for shape in known_shapes}
    words = [f"{color} {shape}" for color in COLORS for shape in SHAPES]

    def encode(shapes):
        world = make_picture_world(150, colors=colors, shapes=shapes, random_state=seed)
        return CLIPFeatures("skclip-tiny").transform(world.images)

    known, unknown = encode(known_shapes), encode(unknown_shapes)
    zero_shot = ZeroShotClassifier("skclip-tiny", class_names=names, templates="a photo of a {}")
    ours = NegLabelDetector(zero_shot, candidates=words, fraction=0.5, noun_template="a photo of a {}").fit(known)
    theirs = MCMDetector(zero_shot).fit(known)
    auroc, auroc_mcm = (ood_auroc(d.score_samples(known), d.score_samples(unknown)) for d in (ours, theirs))
    assert auroc > 0.95
    assert auroc > auroc_mcm + 0.08
    assert (ours.predict(known) == -1).mean() == pytest.approx(0.05, abs=0.01)
