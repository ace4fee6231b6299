from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.datasets import few_shot_split, make_picture_world
from skclip.datasets._scenes import COLORS, SHAPES
from skclip.metrics import forgetting
from skclip.tuning.prompts._cpe_clip import CPECLIPClassifier
from skclip.tuning.prompts._maple import MaPLeClassifier

MODEL = "skclip-tiny"
NAMES = ["blue circle", "blue star", "red circle", "red star"]
FAST = {"max_iter": 2, "batch_size": 8, "base_batch_size": 8, "random_state": 0}
SESSIONS = [["red circle", "red star", "green circle"], ["blue circle", "blue star"]]


@pytest.fixture(scope="module")
def world():
    made = make_picture_world(
        36, shapes=["circle", "star"], colors=["red", "blue", "green"], styles=["sketch"], random_state=3
    )
    return np.stack(made.images), np.array(made.target)


def of(world, labels):
    """The pictures of some classes."""
    rows = np.isin(world[1], labels)
    return world[0][rows], world[1][rows]


@pytest.fixture(scope="module")
def streamed(world):
    """A classifier after each of two sessions."""
    estimator, after = CPECLIPClassifier(MODEL, **FAST), []
    for session in SESSIONS:
        estimator.partial_fit(*of(world, session))
        after.append(pickle.loads(pickle.dumps(estimator)))
    return after


def setting_of(estimator, names=NAMES):
    return estimator._setting(np.array(names), list(names), "cpu")


def pixels(n=3):
    return torch.randn((n, 3, 48, 48), generator=torch.Generator().manual_seed(0))


def state_equal(one, other):
    assert one.state_delta_.keys() == other.state_delta_.keys()
    for name, value in one.state_delta_.items():
        assert_array_equal(value, other.state_delta_[name])


# ---------------------------------------------------------------------- tokens


def test_what_is_learned_and_where_it_begins():
    estimator = CPECLIPClassifier(MODEL, n_ctx=3, random_state=0)
    start = estimator._start(setting_of(estimator))
    assert {name: tuple(value.shape) for name, value in start.items()} == {
        "ctx": (4, 3, 64),
        "projection_weight": (96, 64),
        "projection_bias": (96,),
    }
    reference = torch.nn.init.xavier_uniform_(torch.empty(4, 3, 64), generator=torch.Generator().manual_seed(0))
    assert_allclose(start["ctx"].std(), reference.std(), rtol=0.1)
    bound = (6 / (64 * (3 + 4))) ** 0.5
    assert 0.95 * bound < start["ctx"].abs().max() <= bound
    assert 0.95 / 8 < start["projection_weight"].abs().max() <= 1 / 8
    assert_array_equal(CPECLIPClassifier(MODEL, depth=2)._start(setting_of(estimator))["ctx"].shape, (2, 2, 64))
    with pytest.raises(ValueError, match="depth=5 is more than the 4 blocks"):
        CPECLIPClassifier(MODEL, depth=5)._start(setting_of(estimator))


@pytest.mark.parametrize("template", ["{}.", "a photo of a {}."])
def test_without_tokens_the_text_is_zero_shot(template):
    estimator = CPECLIPClassifier(MODEL, n_ctx=0, template=template)
    setting = setting_of(estimator)
    found = torch.nn.functional.normalize(estimator._text({"ctx": torch.zeros(1, 0, 64)}, setting), dim=1)
    zero_shot = ZeroShotClassifier(MODEL, class_names=NAMES, templates=template).fit(None, np.array(NAMES))
    assert_allclose(found, zero_shot.prototypes_, atol=1e-5)


def test_tokens_that_are_words_are_read_as_words():
    estimator = CPECLIPClassifier(MODEL, n_ctx=4, depth=1)
    setting = setting_of(estimator)
    words = setting.text.embed(torch.tensor(setting.words("a photo of a {}.").before))
    found = torch.nn.functional.normalize(estimator._text({"ctx": words[None]}, setting), dim=1)
    assert_allclose(found, setting.class_text("a photo of a {}."), atol=1e-5)


def test_replacing_is_maple_with_one_map_for_all_layers():
    estimator, maple = CPECLIPClassifier(MODEL, vision_mode="replace"), MaPLeClassifier(MODEL, ctx_init=None)
    setting = setting_of(estimator)
    learned = estimator._start(setting)
    same = {
        "ctx": learned["ctx"][0],
        "deep_ctx": learned["ctx"][1:],
        "projection_weight": learned["projection_weight"].expand(4, -1, -1),
        "projection_bias": learned["projection_bias"].expand(4, -1),
    }
    assert_allclose(estimator._text(learned, setting), maple._text(same, setting_of(maple)), atol=1e-5)
    assert_allclose(estimator._image(learned, setting, pixels()), maple._image(same, setting, pixels()), atol=1e-5)


@pytest.mark.parametrize(("mode", "counts"), [("accumulate", [2, 4, 6, 8]), ("replace", [2, 2, 2, 2])])
def test_accumulated_tokens_make_every_layer_longer(mode, counts, monkeypatch):
    import skclip._backbones._opened_vision as opened

    seen = []

    def counted(function):
        def call(part, tokens, *args, **options):
            seen.append(tokens.shape[1])
            return function(part, tokens, *args, **options)

        return call

    for name in ("attend", "read_out"):  # the second reads the last block
        monkeypatch.setattr(opened, name, counted(getattr(opened, name)))
    estimator = CPECLIPClassifier(MODEL, vision_mode=mode)
    setting = setting_of(estimator)
    estimator._image(estimator._start(setting), setting, pixels(1))
    n_plain = seen[0] - 2
    assert [n - n_plain for n in seen] == counts


def test_the_modes_differ_and_all_that_is_learned_has_a_gradient():
    found = {}
    for mode in ("replace", "accumulate", "accumulate_same"):
        estimator = CPECLIPClassifier(MODEL, text_mode=mode, vision_mode=mode, random_state=0)
        setting = setting_of(estimator)
        learned = {name: value.requires_grad_() for name, value in estimator._start(setting).items()}
        text, image = estimator._text(learned, setting), estimator._image(learned, setting, pixels())
        (image @ text.T).square().sum().backward()
        assert (learned["ctx"].grad.abs().amax(dim=(1, 2)) > 0).all()
        assert learned["projection_weight"].grad.any()
        assert learned["projection_bias"].grad.any()
        found[mode] = torch.cat([text, image]).detach()
    for one, other in (("replace", "accumulate"), ("accumulate", "accumulate_same"), ("accumulate_same", "replace")):
        assert (found[one] - found[other]).abs().max() > 1e-3


@pytest.mark.parametrize("template", ["a photo", "{} {}"])
def test_a_template_without_one_place_for_the_name_is_refused(template, world):
    with pytest.raises(ValueError, match=r"template=.* needs one \{\} where the name goes"):
        CPECLIPClassifier(MODEL, template=template, max_iter=0).fit(*world)


# ---------------------------------------------------------------------- sessions


def test_a_session_adds_its_classes(streamed, world):
    first, second = streamed
    assert_array_equal(first.classes_, sorted(SESSIONS[0]))
    assert_array_equal(second.classes_, sorted(SESSIONS[0] + SESSIONS[1]))
    assert [session.tolist() for session in second.sessions_] == [sorted(session) for session in SESSIONS]
    assert_array_equal(second.class_names_, second.classes_)
    assert set(first.predict(world[0])) <= set(first.classes_)
    assert second.predict_proba(world[0]).shape == (36, 5)
    assert second.ctx_.shape == (4, 2, 64)
    assert second.visual_ctx_.shape == (4, 2, 96)
    assert not np.array_equal(first.ctx_, second.ctx_)


def test_the_first_session_is_fit_and_fit_forgets_the_sessions(streamed, world):
    fitted = CPECLIPClassifier(MODEL, **FAST).fit(*of(world, SESSIONS[0]))
    state_equal(fitted, streamed[0])
    again = pickle.loads(pickle.dumps(streamed[1])).fit(*of(world, SESSIONS[0]))
    state_equal(again, fitted)
    assert len(again.sessions_) == 1


def test_labels_in_another_order_give_the_same_model(streamed, world):
    code = {name: 9 - k for k, name in enumerate(streamed[1].classes_.tolist())}
    estimator = CPECLIPClassifier(MODEL, class_names={k: name for name, k in code.items()}, **FAST)
    for session in SESSIONS:
        X, y = of(world, session)
        estimator.partial_fit(X, [code[name] for name in y])
    assert_array_equal(estimator.classes_, [5, 6, 7, 8, 9])
    X = world[0][:6]
    assert_allclose(estimator.logits(X)[:, ::-1], streamed[1].logits(X), rtol=1e-3, atol=5e-3)


def test_gradients_are_scaled_by_the_share_of_new_classes(streamed):
    first, second = streamed
    assert first._share_of_new() == 1.0
    assert second._share_of_new() == 2 / 5
    for regularization, share in (("balance", 0.4), (None, 1.0)):
        second.regularization = regularization
        value = torch.ones(3, requires_grad=True)
        second._gradients({"a": 2 * value.sum(), "b": value[0]}, {"value": value})
        assert_allclose(value.grad, np.array([3.0, 2.0, 2.0]) * share, rtol=1e-6)
    second.regularization = "balance"


def test_without_a_share_of_new_classes_nothing_that_was_learned_moves(streamed, world, monkeypatch):
    estimator = pickle.loads(pickle.dumps(streamed[0])).set_params(weight_decay=0.0)
    monkeypatch.setattr(CPECLIPClassifier, "_share_of_new", lambda self: 0.0)
    estimator.partial_fit(*of(world, SESSIONS[1]))
    assert len(estimator.loss_curve_) == 2
    state_equal(estimator, streamed[0])


def test_frozen_later_sessions_bring_names_alone(streamed, world):
    estimator = pickle.loads(pickle.dumps(streamed[0])).set_params(regularization="freeze")
    estimator.partial_fit(*of(world, SESSIONS[1]))
    state_equal(estimator, streamed[0])
    state_equal(CPECLIPClassifier(MODEL, regularization="freeze", **FAST).fit(*of(world, SESSIONS[0])), streamed[0])
    assert len(estimator.classes_) == 5
    assert estimator.loss_curve_ == []


def test_the_first_session_has_epochs_and_batches_of_its_own():
    estimator = CPECLIPClassifier(MODEL, max_iter=3, batch_size=4, base_max_iter=7, base_batch_size=16)
    estimator.sessions_ = [np.array(["a"])]
    recipe = estimator._recipe(99, 9)
    assert (recipe.max_iter, recipe.batch_size, recipe.schedule) == (7, 16, "cpe_restarts")
    assert estimator.set_params(base_max_iter=None)._recipe(99, 9).max_iter == 3
    estimator.sessions_ += [np.array(["b"])]
    recipe = estimator._recipe(99, 9)
    assert (recipe.max_iter, recipe.batch_size, recipe.weight_decay) == (3, 4, 1e-5)


def test_a_class_of_a_session_needs_no_picture(world):
    X, y = of(world, SESSIONS[1])
    estimator = CPECLIPClassifier(MODEL, **FAST).partial_fit(X, y, classes=[*SESSIONS[1], "green star"])
    assert_array_equal(estimator.classes_, sorted([*SESSIONS[1], "green star"]))
    with pytest.raises(ValueError, match="'blue star', unknown to classes"):
        CPECLIPClassifier(MODEL, **FAST).partial_fit(X, y, classes=["blue circle", "green star"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["red star", "yellow star"], "class 'red star' has been learned in session 1"),
        ([1, 2], "labels such as 1, session 1 had"),
    ],
)
def test_a_session_that_fails_leaves_the_classifier_as_it_was(labels, message, streamed, world):
    estimator = pickle.loads(pickle.dumps(streamed[1]))
    before = pickle.dumps(estimator)
    with pytest.raises(ValueError, match=message):
        estimator.partial_fit(world[0][:2], labels)
    assert pickle.dumps(estimator) == before


def test_a_session_may_have_pictures_of_one_class(streamed, world):
    X, y = of(world, ["blue star"])
    estimator = pickle.loads(pickle.dumps(streamed[0])).partial_fit(X, y)
    assert_array_equal(estimator.classes_, sorted([*SESSIONS[0], "blue star"]))
    assert [session.tolist() for session in estimator.sessions_] == [sorted(SESSIONS[0]), ["blue star"]]
    assert estimator._share_of_new() == 1 / 4
    # there is nothing to tell it from: the name is new, what was learned but decays
    ctx = streamed[0].ctx_
    assert np.abs(estimator.ctx_ - ctx).max() < 1e-4 * np.abs(ctx).max()
    assert estimator.predict_proba(X).shape == (len(X), 4)
    # others are named
    first = CPECLIPClassifier(MODEL, **FAST).partial_fit(X, y, classes=["blue star", "red circle"])
    assert_array_equal(first.classes_, ["blue star", "red circle"])
    start = CPECLIPClassifier(MODEL, **{**FAST, "max_iter": 0}).partial_fit(X, y, classes=["blue star", "red circle"])
    assert np.abs(first.ctx_ - start.ctx_).max() > 1e-3


def test_one_class_alone_is_no_first_session(world):
    X, y = of(world, ["red star"])
    unfitted = CPECLIPClassifier(MODEL, **FAST)
    for call in (unfitted.partial_fit, unfitted.fit):
        with pytest.raises(ValueError, match="one class only, 'red star'"):
            call(X, y)
    assert vars(unfitted) == vars(CPECLIPClassifier(MODEL, **FAST))


def test_every_picture_is_seen_in_every_epoch(world, monkeypatch):
    X, y = (part[:11] for part in of(world, SESSIONS[0]))
    sizes, terms = [], CPECLIPClassifier._terms

    def watched(self, setting):
        def count(step):
            sizes.append(len(step.batch.rows))
            return 0.0 * step.logits.sum()

        return {**terms(self, setting), "count": count}

    monkeypatch.setattr(CPECLIPClassifier, "_terms", watched)
    CPECLIPClassifier(MODEL, **{**FAST, "base_batch_size": 4}).fit(X, y)
    assert sizes == [4, 4, 3] * 2


def test_the_tower_that_stands_before_others_stays_as_it_was(streamed, world):
    estimator, X = pickle.loads(pickle.dumps(streamed[0])), world[0][:4]
    features = estimator.as_features()
    rows = features.transform(X)
    estimator.partial_fit(*of(world, SESSIONS[1]))
    assert np.abs(estimator.encode_image(X) - rows).max() > 1e-3
    features.classifier.estimator.store = None  # not what is remembered of it
    assert_array_equal(features.transform(X), rows)
    estimator.set_params(vision_mode="replace").fit(*of(world, SESSIONS[1]))
    assert_array_equal(features.transform(X), rows)


def test_other_tokens_than_those_learned_are_refused(streamed, world):
    estimator = pickle.loads(pickle.dumps(streamed[0])).set_params(n_ctx=3)
    with pytest.raises(ValueError, match="partial_fit go on from tensors of shapes"):
        estimator.partial_fit(*of(world, SESSIONS[1]))


def test_classes_by_name_alone_have_no_sessions_to_go_on_with(streamed, world):
    named = streamed[0].with_classes([*SESSIONS[0], "yellow star"])
    assert named.predict(world[0][:3]).shape == (3,)
    with pytest.raises(ValueError, match="made by with_classes"):
        named.partial_fit(*of(world, SESSIONS[1]))


def test_no_pictures_are_kept(world):
    X, y = of(world, SESSIONS[0])
    estimator = CPECLIPClassifier(MODEL, **FAST).partial_fit(X, y)
    arrays = [value for value in vars(estimator).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in arrays) < min(20_000, X.nbytes / 2)
    assert len(pickle.dumps(estimator)) < 2 * sum(v.nbytes for v in estimator.state_delta_.values()) + 20_000


def test_a_checkpoint_belongs_to_one_session(streamed, world, tmp_path):
    path = tmp_path / "session"
    X, y = of(world, SESSIONS[1])
    estimator = pickle.loads(pickle.dumps(streamed[0])).set_params(checkpoint=path).partial_fit(X, y)
    state_equal(estimator, streamed[1])
    again = pickle.loads(pickle.dumps(streamed[0])).set_params(checkpoint=path).partial_fit(X, y)
    state_equal(again, streamed[1])
    with pytest.raises(ValueError, match=r"holds another training.*starts from differs; sessions differs"):
        CPECLIPClassifier(MODEL, checkpoint=path, **FAST).partial_fit(X, y)


@pytest.mark.slow
def test_balance_forgets_less_of_what_tells_the_classes_of_a_session_apart():
    """8 pairs and four times 5 more, 5 noisy pictures of each; accuracy among the classes of each session.

    When written 0.6 points with it and 2.0 without over eight draws, in seven of them less; among all classes so far,
    where later classes compete, 13.7 and 14.6, and over the first five draws 16.1 and 15.6.
    """
    pairs = [f"{color} {SHAPES[(3 * i + k) % 8]}" for k in (2, 4, 6, 1) for i, color in enumerate(COLORS)][:28]
    sessions = [pairs[:8], *(pairs[i : i + 5] for i in range(8, 28, 5))]

    def drawn(n, seed):
        made = make_picture_world(n, styles=["photo"], noise=60.0, held_out="include", random_state=seed)
        return of((made.images, np.array(made.target)), pairs)

    pool, (images, labels) = drawn(1600, 501), drawn(1200, 502)
    forgotten = {"balance": [], None: []}
    for seed in range(3):
        rows = few_shot_split(pool[1], 5, random_state=seed)[0]
        for regularization, found in forgotten.items():
            estimator = CPECLIPClassifier(MODEL, regularization=regularization, random_state=seed)
            accuracies = np.zeros((5, 5))
            for i, session in enumerate(sessions):
                estimator.partial_fit(*of((pool[0][rows], pool[1][rows]), session))
                logits = estimator.logits(images)
                for j, earlier in enumerate(sessions[: i + 1]):
                    own, columns = np.isin(labels, earlier), np.isin(estimator.classes_, earlier)
                    guesses = estimator.classes_[columns][logits[own][:, columns].argmax(axis=1)]
                    accuracies[i, j] = np.mean(guesses == labels[own])
            found.append(forgetting(accuracies))
    assert np.mean(forgotten["balance"]) < np.mean(forgotten[None]), forgotten


def test_text_alone_learns_from_features_as_from_pictures(world):
    features = CLIPFeatures(MODEL).fit_transform(world[0])
    read, seen = (CPECLIPClassifier(MODEL, vision_mode=None, **FAST) for _ in range(2))
    for session in [*SESSIONS, ["green star"]]:
        rows = np.isin(world[1], session)
        read.partial_fit(features[rows], world[1][rows])
        seen.partial_fit(world[0][rows], world[1][rows])
    assert list(read.state_delta_) == ["ctx"]
    assert not hasattr(read, "visual_ctx_")
    assert_allclose(read.ctx_, seen.ctx_, atol=1e-6)
    assert_allclose(read.logits(features), seen.logits(world[0]), atol=1e-3)
    assert_allclose(seen.encode_image(world[0]), features, atol=1e-6)
    assert np.abs(read.ctx_ - CPECLIPClassifier(MODEL, vision_mode=None, max_iter=0).fit(*world).ctx_).max() > 1e-3
    with pytest.raises(ValueError, match="X has 64 features"):
        read.partial_fit(features[:2, :64], ["a", "b"])


def test_text_alone_reads_what_clip_features_have_encoded(world, monkeypatch):
    estimator = CPECLIPClassifier(MODEL, vision_mode=None, **FAST).fit(*world)
    features = CLIPFeatures(MODEL).transform(world[0])
    monkeypatch.setattr("skclip._backbones.Backbone.encode_images", None)
    monkeypatch.setattr("skclip._backbones.Backbone.encode_through", None)
    assert_allclose(estimator.encode_image(world[0]), features, atol=1e-6)


def test_text_alone_goes_with_every_image_tower(world):
    estimator = CPECLIPClassifier("skclip-tiny-rn", vision_mode=None, **FAST).fit(*world)
    assert estimator.predict_proba(world[0][:2]).shape == (2, 6)
