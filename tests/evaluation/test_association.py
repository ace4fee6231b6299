from __future__ import annotations

import pickle
from itertools import permutations

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from skclip.datasets import make_picture_world
from skclip.datasets._scenes import COLORS, SHAPES
from skclip.evaluation import ConceptAssociationProbe, compose_pairs
from skclip.features import CLIPFeatures
from skclip.metrics import cab_score
from skclip.utils._arrays import unit_rows

TEMPLATE = "a photo of a {attribute} {object}"
N = 8
OBJECTS = [f"o{i}" for i in range(N)]
ATTRIBUTES = [f"c{i}" for i in range(N)]
NATURAL = dict(zip(OBJECTS, ATTRIBUTES))
# what recoloured objects have instead of the colour that their word calls to mind
RECOLOURED = dict(zip(OBJECTS, ATTRIBUTES[3:] + ATTRIBUTES[:3]))
PAIRS = np.array(list(permutations(range(N), 2)))


class ConceptWorld:
    """Orthonormal vectors of objects, colours and bound pairs; a word for an object carries its usual colour to the
    degree s."""

    def __init__(self, s=0.0, binding=0.0):
        self.s = np.broadcast_to(s, N)
        self.binding = binding
        vectors = np.eye(2 * N + N * N)
        self.objects, self.colors, self.bound = vectors[:N], vectors[N : 2 * N], vectors[2 * N :].reshape(N, N, -1)

    def one(self, a, color):
        return self.objects[a] + self.colors[color] + self.binding * self.bound[a, color]

    def two(self, colors, pairs=PAIRS):
        return np.array([self.one(a, colors[a]) + self.one(b, colors[b]) for a, b in pairs])

    def text(self, a, color):
        return self.objects[a] + self.s[a] * self.colors[a] + self.colors[color] + self.binding * self.bound[a, color]

    def __call__(self, X, sentences):
        codes = [tuple(int(word[1:]) for word in sentence.split("/")) for sentence in sentences]
        # ties stay ties
        return np.round(unit_rows(np.asarray(X)) @ unit_rows(np.array([self.text(*pair) for pair in codes])).T, 12)


def names(pairs):
    return np.array(OBJECTS)[pairs]


def concept_probe(world, object_attribute=None, **params):
    object_attribute = NATURAL if object_attribute is None else object_attribute
    return ConceptAssociationProbe(object_attribute, templates="{object}/{attribute}", scorer=world, **params)


def colors_of(object_attribute):
    return [ATTRIBUTES.index(object_attribute[name]) for name in OBJECTS]


@pytest.mark.parametrize("candidates", ["all", "pair"])
@pytest.mark.parametrize("s", [0.05, 0.5, 2.0])
def test_a_word_that_carries_its_own_colour_gets_the_other_one(s, candidates):
    world = ConceptWorld(s)
    X = world.two(colors_of(NATURAL))
    assert concept_probe(world, candidates=candidates).fit().score(X, names(PAIRS)) == 1.0


@pytest.mark.parametrize("s", [0.0, 0.3, 1.0])
def test_cosines_of_the_closed_form(s):
    world = ConceptWorld(s)
    scores = world(world.two(range(N))[:1], ["o0/c0", "o0/c1"])[0]
    own = (2 + s) / (2 * np.sqrt(1 + (1 + s) ** 2))
    other = (2 + s) / (2 * np.sqrt(2 + s**2))
    np.testing.assert_allclose(scores, [own, other], atol=1e-11)


def test_without_association_or_binding_there_is_no_preference():
    world = ConceptWorld(0.0)
    X = world.two(colors_of(NATURAL))
    # a tie goes to the first attribute, which is the own one for exactly one of the two questions to a picture
    assert concept_probe(world).fit().score(X, names(PAIRS)) == 0.5


@pytest.mark.parametrize(("s", "binding"), [(0.5, 1.0), (0.0, 0.3)])
def test_binding_removes_the_bias(s, binding):
    world = ConceptWorld(s, binding)
    assert concept_probe(world).fit().score(world.two(colors_of(NATURAL)), names(PAIRS)) == 0.0


@pytest.mark.parametrize(("binding", "expected"), [(0.0, 0.5), (0.3, 0.0)])
def test_objects_of_unusual_colour_show_no_bias(binding, expected):
    world = ConceptWorld(0.5, binding)
    usual = np.array(colors_of(NATURAL))
    colors = np.array(colors_of(RECOLOURED))
    # neither object has a colour that one of the two words calls to mind
    a, b = PAIRS.T
    kept = (colors[a] != usual[b]) & (colors[b] != usual[a])
    probe = concept_probe(world, RECOLOURED, candidates="pair").fit()
    assert probe.score(world.two(colors, PAIRS[kept]), names(PAIRS[kept])) == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_bias_grows_with_how_often_shapes_have_their_colour(seed):
    """Words learned by least squares from single objects whose colour is named every second time."""
    rng = np.random.default_rng(seed)
    reached = []
    for dial in (0.0, 0.1, 0.2, 0.4):
        shape = rng.integers(0, N, 20_000)
        color = np.where(rng.random(len(shape)) < dial, shape, rng.integers(0, N, len(shape)))
        world = ConceptWorld()
        pictures = world.objects[shape] + world.colors[color]
        words = np.hstack([np.eye(N)[shape], np.eye(N)[color] * (rng.random((len(shape), 1)) < 0.5)])
        vectors = np.linalg.lstsq(words, pictures, rcond=None)[0]
        world.text = lambda a, c, vectors=vectors: vectors[a] + vectors[N + c]
        X = np.repeat(world.two(range(N)), 20, axis=0)
        X = X + 0.1 * rng.normal(size=X.shape)
        reached.append(concept_probe(world).fit().score(X, np.repeat(names(PAIRS), 20, axis=0)))
    assert abs(reached[0] - 0.5) < 0.1
    assert np.all(np.diff(reached) > 0.0)
    assert reached[-1] > 0.9


def test_answers_of_an_oracle_and_of_its_opposite():
    def oracle(X, sentences):
        return [[float(f"c{x[0]}" in s) for s in sentences] for x in X]

    probe = ConceptAssociationProbe(NATURAL, templates="{object}/{attribute}", scorer=oracle).fit()
    assert probe.score(PAIRS, names(PAIRS)) == 0.0
    assert probe.score(PAIRS[:, ::-1], names(PAIRS)) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_guessing_among_the_pair_is_one_half(seed):
    rng = np.random.default_rng(seed)

    def guess(X, sentences):
        return rng.random((len(X), len(sentences)))

    pairs = PAIRS[rng.integers(0, len(PAIRS), 4000)]
    probe = concept_probe(guess, candidates="pair").fit()
    report = probe.report(pairs, names(pairs))
    assert report["chance"] == 0.5
    assert abs(report["cab"] - 0.5) < 4 * 0.5 / np.sqrt(4000)
    assert report["accuracy"] + report["swap_rate"] == pytest.approx(1.0)
    everything = concept_probe(guess).fit().report(pairs, names(pairs))
    assert abs(everything["accuracy"] - everything["chance"]) < 0.03


def noisy_world(seed=0, repeats=5):
    world = ConceptWorld(0.1, 0.1)
    rng = np.random.default_rng(seed)
    pairs = np.repeat(PAIRS, repeats, axis=0)
    X = world.two(range(N), pairs)
    return world, X + 0.2 * rng.normal(size=X.shape), names(pairs)


def test_swapping_the_roles_of_the_objects_turns_the_score_round():
    world, X, y = noisy_world()
    probe = concept_probe(world).fit()
    answers = probe.predict(X, y)
    own, other = ([NATURAL[name] for name in column] for column in y.T)
    assert probe.score(X, y) == cab_score(own, other, answers)
    assert cab_score(other, own, answers) == pytest.approx(1.0 - probe.score(X, y))


def test_scale_order_of_rows_and_names_change_nothing():
    world, X, y = noisy_world()
    probe = concept_probe(world).fit()
    expected = probe.score(X, y)
    assert 0.1 < expected < 0.9
    assert concept_probe(world, logit_scale=3.0).fit().score(X, y) == expected
    order = np.random.default_rng(1).permutation(len(X))
    assert probe.score(X[order], y[order]) == expected
    np.testing.assert_array_equal(probe.predict(X[order], y[order]), probe.predict(X, y)[order])

    def renamed(X, sentences):
        return world(X, [f"o{7 - int(s.split('/')[0][1:])}/c{7 - int(s.split('/')[1][1:])}" for s in sentences])

    reversed_names = np.array([[f"o{7 - int(name[1:])}" for name in pair] for pair in y.tolist()])
    assert concept_probe(renamed).fit().score(X, reversed_names) == expected


def test_rows_of_equal_attributes_are_left_out_and_counted():
    world, X, y = noisy_world()
    same = np.stack([y[:7, 0], y[:7, 0]], axis=1)
    probe = concept_probe(world).fit()
    plain = probe.report(X, y)
    report = probe.report(np.concatenate([X, X[:7]]), np.concatenate([y, same]))
    assert plain["n_same_attribute"] == 0
    assert (report["n_samples"], report["n_same_attribute"]) == (len(X) + 7, 7)
    assert report["cab"] == plain["cab"] == probe.score(np.concatenate([X, X[:7]]), np.concatenate([y, same]))
    with pytest.raises(ValueError, match="share the attribute"):
        probe.report(X[:7], same)


def test_report_adds_up():
    world, X, y = noisy_world()
    report = concept_probe(world).fit().report(X, y)
    table = report["per_object"]
    assert list(table) == OBJECTS
    for key in ("accuracy", "swap_rate", "cab"):
        weighted = sum(row["n"] * row[key] for row in table.values()) / report["n_samples"]
        assert weighted == pytest.approx(report[key])
    assert report["cab"] == pytest.approx((report["swap_rate"] - report["accuracy"] + 1) / 2)
    assert report["chance"] == 1 / N


def test_control_of_single_objects():
    world = ConceptWorld(0.5)
    X = np.array([world.one(a, a) for a in range(N)])
    report = concept_probe(world).fit().report(X, OBJECTS)
    assert report["accuracy"] == 1.0
    assert "cab" not in report
    with pytest.raises(ValueError, match="queried and other"):
        concept_probe(world).fit().score(X, OBJECTS)


def test_swaps_follow_the_association():
    strength = np.linspace(0.0, 0.7, N)
    world = ConceptWorld(strength, 0.3)
    rng = np.random.default_rng(0)
    pairs = np.repeat(PAIRS, 10, axis=0)
    X = world.two(range(N), pairs)
    X += 0.1 * rng.normal(size=X.shape)
    table = {o: {c: strength[i] * (i == j) for j, c in enumerate(ATTRIBUTES)} for i, o in enumerate(OBJECTS)}
    report = concept_probe(world, association=table).fit().report(X, names(pairs))
    assert report["association_correlation"] > 0.5
    flat = {o: dict.fromkeys(ATTRIBUTES, 1.0) for o in OBJECTS}
    assert np.isnan(concept_probe(world, association=flat).fit().report(X, names(pairs))["association_correlation"])


def test_probabilities():
    world, X, y = noisy_world()
    probe = concept_probe(world).fit()
    proba = probe.predict_proba(X, y[:, 0])
    np.testing.assert_allclose(proba.sum(axis=1), 1.0)
    np.testing.assert_array_equal(probe.attributes_[proba.argmax(axis=1)], probe.predict(X, y))
    pair = concept_probe(world, candidates="pair").fit().predict_proba(X, y)
    np.testing.assert_array_equal(np.count_nonzero(pair, axis=1), 2)


def test_debias_removes_a_preference_of_the_sentences():
    world, X, y = noisy_world()

    def shouting(X, sentences):
        return world(X, sentences) + np.array([2.0 * s.endswith("c3") for s in sentences])

    assert concept_probe(shouting).fit().predict(X, y).tolist() == ["c3"] * len(X)
    expected = concept_probe(world, debias=True).fit(X).predict(X, y)
    np.testing.assert_array_equal(concept_probe(shouting, debias=True).fit(X).predict(X, y), expected)
    with pytest.raises(ValueError, match="debias=True"):
        concept_probe(world, debias=True).fit()


def test_several_templates_are_averaged():
    world, X, y = noisy_world()
    probe = concept_probe(world).set_params(templates=["{object}/{attribute}", "{object}/{attribute}"]).fit()
    assert probe.texts_.shape == (N, N, 2)
    assert probe.score(X, y) == concept_probe(world).fit().score(X, y)


BAD = [
    ({"object_attribute": None}, "object_attribute is empty"),
    ({"object_attribute": {}}, "object_attribute is empty"),
    ({"object_attribute": {"lemon": 3}}, "values of object_attribute"),
    ({"object_attribute": {3: "red"}}, "keys of object_attribute"),
    ({"attributes": ["c1", "c2"]}, "object_attribute holds 'c0'"),
    ({"templates": "the {object}"}, r"templates\[0\]"),
    ({"templates": ["{object} {attribute}", "none"]}, r"templates\[1\]"),
    ({"templates": []}, "templates is empty"),
    ({"candidates": "two"}, "candidates"),
    ({"logit_scale": 0.0}, "logit_scale"),
    ({"association": {"o0": {}}}, r"association holds no strength for \('o0', 'c0'\)"),
    ({"association": "text"}, "text tower"),
]


@pytest.mark.parametrize(("params", "message"), BAD)
def test_bad_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        concept_probe(ConceptWorld()).set_params(**params).fit()


def test_bad_rows():
    world, X, y = noisy_world()
    probe = concept_probe(world).fit()
    with pytest.raises(ValueError, match="objects holds 'unicorn'"):
        probe.predict(X[:2], ["o0", "unicorn"])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        probe.predict(X[:3], y[:2])
    with pytest.raises(ValueError, match="got \\(2, 3\\)"):
        probe.predict(X[:2], [["o0", "o1", "o2"]] * 2)
    with pytest.raises(ValueError, match="needs objects of shape"):
        concept_probe(world, candidates="pair").fit().predict(X[:2], y[:2, 0])
    with pytest.raises(ValueError, match="scorer must return"):
        concept_probe(lambda X, sentences: np.zeros(3)).fit().predict(X[:2], y[:2])
    with pytest.raises(NotFittedError):
        concept_probe(world).predict(X, y)


# -- with a model ---------------------------------------------------------------------------------------------------

SHAPE_COLOR = {shape: COLORS[(i + 2) % 8] for i, shape in enumerate(SHAPES)}


@pytest.fixture(scope="module")
def drawn():
    """Pictures of every shape in a colour of its own, their shapes, and both places of each pair among them."""
    worlds = [
        make_picture_world(20, shapes=[shape], colors=[color], sizes=["medium", "large", "huge"], held_out="include")
        for shape, color in SHAPE_COLOR.items()
    ]
    shapes = np.repeat(list(SHAPE_COLOR), 20)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, len(shapes), (2, 300))
    kept = shapes[a] != shapes[b]
    return np.concatenate([world.images for world in worlds]), shapes, a[kept], b[kept]


@pytest.mark.parametrize("model", ["skclip-tiny", "skclip-tiny-rn"])
def test_drawn_shapes_lose_their_colours_in_company(model, drawn):
    images, shapes, a, b = drawn
    features = CLIPFeatures(model)
    probe = ConceptAssociationProbe(SHAPE_COLOR, model=model, templates=TEMPLATE).fit()
    alone = probe.report(features.transform(images), shapes)
    assert alone["accuracy"] > 0.95
    pairs = features.transform(compose_pairs(images[a], images[b]))
    both_ways = np.concatenate([pairs, pairs])
    y = np.concatenate([np.stack([shapes[a], shapes[b]], axis=1), np.stack([shapes[b], shapes[a]], axis=1)])
    together = probe.report(both_ways, y)
    # it sees both colours, and hardly knows whose is which; colours were independent of shapes in its training, so
    # that no word favours the other's
    assert together["accuracy"] < 0.6
    assert together["accuracy"] + together["swap_rate"] > 0.85
    assert 0.4 < together["cab"] < 0.6
    pair = clone(probe).set_params(candidates="pair").fit().report(both_ways, y)
    assert 0.4 < pair["accuracy"] < 0.6


def test_is_an_estimator_of_features(drawn):
    images, shapes, *_ = drawn
    probe = ConceptAssociationProbe(SHAPE_COLOR, model="skclip-tiny", templates=TEMPLATE, association="text")
    X = CLIPFeatures("skclip-tiny").transform(images)
    fitted = clone(probe).fit(X)
    assert fitted.prototypes_.shape == (8, 8, 128)
    assert fitted.association_.shape == (8, 8)
    assert "association_correlation" in fitted.report(X[:3], [["circle", "star"]] * 3)
    before = joblib.hash(fitted)
    answers = fitted.predict(X, shapes)
    fitted.report(X, shapes)
    assert joblib.hash(fitted) == before
    np.testing.assert_array_equal(fitted.fit(X).predict(X, shapes), answers)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(X, shapes), answers)
    np.testing.assert_array_equal(fitted.predict(5.0 * X.astype(np.float64), shapes), answers)
    np.testing.assert_array_equal(fitted.predict(np.stack([X, -X], axis=1), shapes), answers)
    np.testing.assert_allclose(
        fitted.predict_proba(X[::-1], shapes[::-1])[::-1], fitted.predict_proba(X, shapes), atol=1e-5
    )
    with pytest.raises(ValueError, match="expecting 128 features"):
        fitted.predict(X[:, :5], shapes)
    with pytest.raises(ValueError, match=r"X\[1, 0\]"):
        fitted.predict(np.where(np.arange(len(X))[:, None] == 1, np.nan, X), shapes)


def test_debias_and_a_scorer_of_cosines_agree_with_the_features():
    world = make_picture_world(40, random_state=3)
    X = CLIPFeatures("skclip-tiny").transform(world.images)
    objects = np.array([target.split()[1] for target in world.target])
    plain = ConceptAssociationProbe(SHAPE_COLOR, model="skclip-tiny", templates=TEMPLATE, debias=True).fit(X)
    texts = dict(zip(plain.texts_.ravel().tolist(), plain.prototypes_.reshape(64, -1)))

    def cosines(X, sentences):
        return X @ np.array([texts[sentence] for sentence in sentences]).T

    scored = clone(plain).set_params(scorer=cosines).fit(X)
    np.testing.assert_allclose(scored.offsets_, plain.offsets_, atol=1e-6)
    np.testing.assert_allclose(scored.predict_proba(X, objects), plain.predict_proba(X, objects), atol=1e-4)


def test_behind_the_encoder_in_a_pipeline(drawn):
    images, shapes, a, b = drawn
    pipe = make_pipeline(
        CLIPFeatures("skclip-tiny"), ConceptAssociationProbe(SHAPE_COLOR, model="skclip-tiny", templates=TEMPLATE)
    )
    pipe.fit(images)
    own = [SHAPE_COLOR[shape] for shape in shapes]
    assert np.mean(pipe.predict(images, objects=shapes) == own) > 0.95
    y = np.stack([shapes[a], shapes[b]], axis=1)
    assert 0.3 < pipe.score(compose_pairs(images[a], images[b]), y) < 0.7


# -- composites -----------------------------------------------------------------------------------------------------


def test_pairs_are_whole_and_side_by_side():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 3, 10, 10, 3), dtype=np.uint8)
    pictures = compose_pairs(a, b)
    assert pictures.shape == (3, 20, 20, 3)
    np.testing.assert_array_equal(pictures[:, 5:15, :10], a)
    np.testing.assert_array_equal(pictures[:, 5:15, 10:], b)
    assert np.all(pictures[:, :5] == 128)
    assert np.all(pictures[:, 15:] == 128)


def test_a_fit_that_fails_leaves_a_probe_that_is_not_fitted():
    probe = concept_probe(ConceptWorld(0.5)).fit().set_params(debias=True)
    with pytest.raises(ValueError, match="pass them to fit"):
        probe.fit()
    with pytest.raises(NotFittedError):
        probe.predict(np.eye(1), ["o0"])


def test_pairs_of_other_shapes_keep_their_proportions():
    tall, wide = np.zeros((40, 10, 3), np.uint8), Image.new("RGB", (40, 10), (255, 0, 0))
    picture = compose_pairs([tall], [wide], size=40, background=(0, 255, 0))[0]
    assert picture.shape == (40, 40, 3)
    assert np.all(picture[:, 5:15] == 0)
    red = np.all(picture == [255, 0, 0], axis=2)
    assert red[:, 20:].sum() == 20 * 5
    assert not red[:, :20].any()


def test_bad_pairs():
    picture = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="images_a holds 1 pictures and images_b 2"):
        compose_pairs(picture, np.concatenate([picture, picture]))
    with pytest.raises(ValueError, match=r"images_b\[0\], 'nowhere.png': no such file"):
        compose_pairs(picture, ["nowhere.png"])
    with pytest.raises(TypeError, match="images_a: X is a single picture"):
        compose_pairs("one.png", picture)
    with pytest.raises(ValueError, match="size must be"):
        compose_pairs(picture, picture, size=1)
