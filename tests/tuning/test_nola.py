"""NoLA: names and pictures without labels."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import copy

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import FunctionTransformer

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip._backbones import OpenedTowerError, load_backbone
from skclip.adapters import GDAClassifier
from skclip.datasets import make_picture_world
from skclip.tuning import _perceptron
from skclip.tuning._perceptron import _Perceptron
from skclip.tuning.prompts import _nola
from skclip.tuning.prompts._nola import NoLAClassifier
from skclip.utils import SkclipWarning

MODEL = "skclip-tiny"
PAIRS = {"shapes": ["circle", "star"], "colors": ["red", "blue"]}


class Truth(TransformerMixin, BaseEstimator):
    """The perfect teacher: knows of every picture what it shows, as one-hot rows and noise."""

    def __init__(self, known=None, noise=0.05):
        self.known = known
        self.noise = noise

    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        codes = np.array([self.known[picture.tobytes()] for picture in np.asarray(X)])
        return np.eye(4)[codes] + self.noise * np.random.default_rng(0).normal(size=(len(X), 4))


@pytest.fixture(scope="module")
def world():
    return make_picture_world(96, **PAIRS, styles=["sketch"], random_state=5)


@pytest.fixture(scope="module")
def text(world):
    return ZeroShotClassifier(class_names=world.target_names, templates="a photo of a {}")


@pytest.fixture(scope="module")
def teacher(world):
    codes = np.searchsorted(world.target_names, world.target)
    return FrozenEstimator(Truth({picture.tobytes(): code for picture, code in zip(world.images, codes)}).fit(None))


def make(text, **params):
    return NoLAClassifier(MODEL, zero_shot=text, **{"max_iter": 2, "batch_size": 32, "random_state": 0, **params})


def quick(text, **params):
    """On few pictures, with a head that is fitted at once."""
    few = {"teacher_head": LogisticRegression(), "n_tokens": 4, "augmentation": None, "batch_size": 16}
    return make(text, **{**few, **params})


@pytest.fixture(scope="module")
def fitted(world, text):
    return make(text).fit(world.images)


def assert_same_state(one, other):
    assert one.state_delta_.keys() == other.state_delta_.keys()
    for name, value in one.state_delta_.items():
        np.testing.assert_array_equal(other.state_delta_[name], value, err_msg=name)


# The parts


def test_the_head_unlearns_a_fifth_of_wrong_labels():
    rng = np.random.default_rng(0)
    codes = rng.integers(4, size=200)
    X = np.eye(4, 8)[codes] + 0.1 * rng.normal(size=(200, 8))
    wrong = np.where(rng.random(200) < 0.2, (codes + rng.integers(1, 4, size=200)) % 4, codes)
    head = _Perceptron(random_state=0).fit(X, wrong)
    assert np.mean(head.predict(X) == codes) > 0.97
    assert len(head.loss_curve_) == 50
    assert head.loss_curve_[-1] < head.loss_curve_[0]


def test_the_unit_of_the_teachers_features_plays_no_part():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(60, 5)), rng.integers(3, size=60)
    one, other = _Perceptron(random_state=0).fit(X, y), _Perceptron(random_state=0).fit(1000 * X + 300, y)
    np.testing.assert_allclose(other.logits(1000 * X + 300), one.logits(X), atol=0.02)


def test_the_head_is_adam_on_two_layers():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(16, 3)).astype(np.float32), rng.integers(2, size=16)
    X = (X - X.mean(axis=0)) / np.sqrt(np.mean((X - X.mean(axis=0)) ** 2))
    start = _Perceptron(n_hidden=4, max_iter=0, random_state=3).fit(X, y).layers_
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    names = ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]
    with torch.no_grad():
        for name, parameter in zip(names, layers.parameters()):
            parameter.copy_(torch.tensor(start[name]))
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-3)
    for _ in range(3):  # one batch holds all, so that the order plays no part
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layers(torch.tensor(X)), torch.tensor(y)).backward()
        optimizer.step()
    trained = _Perceptron(n_hidden=4, max_iter=3, batch_size=16, random_state=3).fit(X, y).layers_
    for name, parameter in zip(names, layers.parameters()):
        np.testing.assert_allclose(trained[name], parameter.detach().numpy(), atol=1e-5, err_msg=name)


def test_the_head_sees_every_picture_in_every_epoch(monkeypatch):
    torch = pytest.importorskip("torch")
    sizes, forward = [], _perceptron._forward

    def watched(layers, rows):
        sizes.append(len(rows))
        return forward(layers, rows)

    monkeypatch.setattr(_perceptron, "_forward", watched)
    X = torch.randn((10, 3), generator=torch.Generator().manual_seed(0)).numpy()
    _Perceptron(max_iter=2, batch_size=4, random_state=0).fit(X, np.arange(10) % 2)
    assert sizes == [4, 4, 2] * 2


# The whole


def test_with_nothing_learned_it_is_zero_shot_but_for_the_scale(world, text):
    clf = make(text, max_iter=0, n_tokens=0).fit(world.images)
    X = CLIPFeatures(MODEL, normalize=False).transform(world.images)
    zero_shot = ZeroShotClassifier(MODEL, class_names=world.target_names, templates="a photo of a {}").fit()
    np.testing.assert_allclose(clf.logits(world.images), X @ zero_shot.prototypes_.T, atol=1e-4)
    np.testing.assert_array_equal(clf.predict(world.images), zero_shot.predict(X))


def test_tokens_stand_between_class_token_and_patches(world, text):
    torch = pytest.importorskip("torch")
    clf = make(text, max_iter=0, tune_norms=False).fit(world.images[:40])
    module = load_backbone(MODEL, precision="float32").module
    tokens = torch.tensor(clf.state_delta_["tokens"])
    limit = (6 / (3 * 16 * 16 + 96)) ** 0.5
    assert tokens.shape == (16, 96)
    assert 0.9 * limit < float(tokens.abs().max()) <= limit
    seen = []
    hook = module.visual.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        picture = torch.zeros(1, 3, 48, 48)
        with torch.no_grad():
            module.encode_image(picture)
            plain = seen[0]
            sequence = torch.cat([plain[:, :1], tokens[None], plain[:, 1:]], dim=1)
            expected = module.visual.ln_post(module.visual.transformer(sequence)[:, 0]) @ module.visual.proj
            setting = clf._restored()
            found = clf._image(clf._tensors(setting), setting, picture)
    finally:
        hook.remove()
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_labels_change_nothing(world, text, fitted):
    for y in (world.target, np.full(len(world.images), -1)):
        again = make(text).fit(world.images, y)
        for name, value in fitted.state_delta_.items():
            np.testing.assert_array_equal(again.state_delta_[name], value)


def test_the_order_of_the_pictures_plays_no_part_for_what_is_trusted(world, text, fitted):
    order = np.random.default_rng(0).permutation(len(world.images))
    again = make(text, max_iter=0).fit(world.images[order])
    pairs = set(zip(fitted.pseudo_rows_, fitted.pseudo_labels_))
    assert set(zip(order[again.pseudo_rows_], again.pseudo_labels_)) == pairs


def test_what_is_trusted_is_zero_shot_and_bounded(world, fitted):
    zero_shot = ZeroShotClassifier(MODEL, class_names=world.target_names, templates="a photo of a {}")
    proba = zero_shot.predict_proba(CLIPFeatures(MODEL).transform(world.images))
    columns = np.searchsorted(fitted.classes_, fitted.pseudo_labels_)
    np.testing.assert_allclose(fitted.pseudo_confidence_, proba[fitted.pseudo_rows_, columns], atol=1e-4)
    assert np.unique(fitted.pseudo_labels_, return_counts=True)[1].max() <= 16


def test_the_student_follows_a_teacher_that_knows(world, text, teacher):
    zero_shot = ZeroShotClassifier(MODEL, class_names=world.target_names, templates="a photo of a {}")
    other = make_picture_world(100, **PAIRS, styles=["sketch"], random_state=6)
    clf = make(text, teacher=teacher, max_iter=6, n_tokens=4, augmentation=None).fit(world.images)
    before = zero_shot.score(CLIPFeatures(MODEL).transform(world.images), world.target)
    assert before < 0.8
    assert clf.aligned_teacher_.score(world.images, world.target) > 0.95
    # which cannot tell of pictures that it does not know
    before = zero_shot.score(CLIPFeatures(MODEL).transform(other.images), other.target)
    assert clf.score(other.images, other.target) > before + 0.15


def test_logits_are_float32_where_the_tower_works_in_half_precision(world, text, monkeypatch):
    seen, scores = [], NoLAClassifier._scores

    def watched(self, step):
        seen.append(str(scores(self, step).dtype))
        return scores(self, step)

    monkeypatch.setattr(NoLAClassifier, "_scores", watched)
    make(text, max_iter=1, precision="bf16").fit(world.images[:32])
    assert set(seen) == {"torch.float32"}


def test_held_out_pictures_measure_the_agreement_with_the_teacher(world, text):
    clf = make(text, early_stopping=True, n_iter_no_change=1, max_iter=3).fit(world.images[:60])
    assert 1 <= len(clf.validation_scores_) <= 3
    assert all(0.0 <= score <= 1.0 for score in clf.validation_scores_)


def test_only_what_was_asked_for_learns(world, text):
    clf = make(text, n_tokens=0, tune_head=False, max_iter=1).fit(world.images[:48])
    np.testing.assert_array_equal(clf.coef_, clf.prototypes_)
    norms = [name for name in clf.state_delta_ if name.startswith("visual.")]
    module = load_backbone(MODEL, precision="float32").module
    assert len(norms) == 2 * (2 + 2 * 4)
    changed = [not np.array_equal(clf.state_delta_[name], module.get_parameter(name).numpy()) for name in norms]
    assert all(changed)
    assert set(make(text, tune_norms=False, max_iter=0).fit(world.images[:48]).state_delta_) == {"head", "tokens"}


def test_features_pickle_and_search(world, text, fitted):
    images, labels = world.images, world.target
    tuned = fitted.as_features()
    rows = tuned.transform(images[:4])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    assert GDAClassifier().fit(tuned.transform(images), labels).predict(rows).shape == (4,)
    saved = pickle.dumps(fitted)
    assert len(saved) < 400_000
    np.testing.assert_allclose(pickle.loads(saved).logits(images[:4]), fitted.logits(images[:4]), rtol=1e-6)
    assert not hasattr(clone(fitted), "classes_")


def test_another_head_and_pixels_as_teacher(world, text):
    pixels = FunctionTransformer(lambda X: np.asarray(X, dtype=np.float32).mean(axis=(1, 2)))
    clf = make(text, teacher=pixels, teacher_head=LogisticRegression(), max_iter=0).fit(world.images)
    assert isinstance(clf.aligned_teacher_["head"], LogisticRegression)
    assert clf.aligned_teacher_["teacher"] is not pixels


def test_descriptions_are_class_text_too(world):
    text = ZeroShotClassifier(templates=world.class_descriptions)
    clf = make(text, max_iter=0).fit(world.images[:40])
    np.testing.assert_array_equal(clf.classes_, world.target_names)


@pytest.mark.filterwarnings("ignore:The class text finds no picture")
def test_towers_without_tokens_are_refused_before_anything_is_encoded(world, monkeypatch):
    names = {"class_names": world.target_names, "templates": "a photo of a {}"}
    clf = NoLAClassifier(
        zero_shot=ZeroShotClassifier("skclip-tiny-rn", **names),
        teacher_head=LogisticRegression(),
        max_iter=1,
        batch_size=8,
        random_state=0,
    )
    read = []
    monkeypatch.setattr(CLIPFeatures, "transform", lambda self, X: read.append(X))
    for asked, named in (({"tune_norms": False}, "n_tokens=16"), ({"n_tokens": 0}, "tune_norms=True")):
        message = rf"^{named}.*skclip-tiny-rn.*NoLAClassifier\(n_tokens=0, tune_norms=False\)"
        with pytest.raises(OpenedTowerError, match=message):
            clone(clf).set_params(**asked).fit(world.images[:24])
    assert read == []
    monkeypatch.undo()
    clf.set_params(n_tokens=0, tune_norms=False).fit(world.images[:24])
    assert set(clf.state_delta_) == {"head"}
    assert not np.array_equal(clf.coef_, clf.prototypes_)
    assert clf.predict(world.images[:3]).shape == (3,)


# What holds of every tuned classifier


def backbone_digest():
    digest = hashlib.blake2b()
    for name, value in load_backbone(MODEL, precision="float32").module.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def test_fit_leaves_the_backbone_and_the_parameters_alone(world, text):
    before, clf = backbone_digest(), quick(text, max_iter=1)
    params = {name: repr(value) for name, value in clf.get_params().items()}
    clf.fit(world.images[:32])
    assert backbone_digest() == before
    assert {name: repr(value) for name, value in clf.get_params().items()} == params


def test_skops_reads_it_back(world, fitted, tmp_path):
    skops_io = pytest.importorskip("skops.io")
    path = tmp_path / "estimator.skops"
    skops_io.dump(fitted, path)
    trusted = skops_io.get_untrusted_types(file=path)
    assert all(name.startswith("skclip.") for name in trusted), trusted
    loaded = skops_io.load(path, trusted=trusted)
    np.testing.assert_array_equal(loaded.logits(world.images[:4]), fitted.logits(world.images[:4]))
    np.testing.assert_array_equal(
        loaded.aligned_teacher_.predict(world.images[:4]), fitted.aligned_teacher_.predict(world.images[:4])
    )


@pytest.mark.slow
def test_another_process_unpickles_without_torch_and_predicts_alike(world, fitted, tmp_path):
    joblib.dump((fitted, world.images[:4]), tmp_path / "dumped")
    code = f"""
import sys, joblib, numpy as np
estimator, X = joblib.load({str(tmp_path / "dumped")!r})
assert "torch" not in sys.modules and "open_clip" not in sys.modules
np.save({str(tmp_path / "proba.npy")!r}, estimator.predict_proba(X))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = fitted.predict_proba(world.images[:4])
    np.testing.assert_allclose(np.load(tmp_path / "proba.npy"), expected, rtol=1e-5, atol=1e-7)


def test_an_interrupted_fit_goes_on_from_its_checkpoint(world, text, tmp_path, monkeypatch):
    X, params = world.images[:32], {"max_iter": 3, "augmentation": "nola"}
    whole = quick(text, **params).fit(X)
    halted = quick(text, **params, checkpoint=tmp_path / "state")
    terms, steps = NoLAClassifier._terms, []

    def interrupted(self, setting):
        def stop(step):
            steps.append(step.batch.epoch)
            if len(steps) == 4:  # the second of two steps of the second epoch
                raise KeyboardInterrupt
            return 0.0 * step.logits.sum()

        return {**terms(self, setting), "stop": stop}

    monkeypatch.setattr(NoLAClassifier, "_terms", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"(?s)epoch 2 of 3.*state"):
        halted.fit(X)
    monkeypatch.undo()
    resumed = halted.fit(X)
    assert resumed.n_iter_ == 3
    assert_same_state(whole, resumed)


def test_a_checkpoint_knows_the_contents_of_what_it_is_given(world, text, tmp_path):
    prototypes = clone(text).set_params(model=MODEL).fit().prototypes_
    classes, X = world.target_names, world.images[:24]

    def of(rows, path):
        known = ZeroShotClassifier(prototypes=rows, classes=classes)
        return quick(known, max_iter=1, checkpoint=tmp_path / path)

    of(prototypes, "rows").fit(X)
    of(prototypes.copy(), "rows").fit(X)
    others = prototypes.copy()
    others[1, 60] += 1e-4  # in what `repr` leaves out; no label changes
    with pytest.raises(ValueError, match="zero_shot differs"):
        of(others, "rows").fit(X)

    def pixels(factor):
        """As another process defines it: at another address."""
        namespace = {"np": np, "__name__": "pixels"}
        exec(f"def pixels(X):\n    return {factor} * np.asarray(X, dtype=float).mean(axis=(1, 2))", namespace)
        return FunctionTransformer(namespace["pixels"])

    clf = quick(text, teacher=pixels(0.004), max_iter=1, checkpoint=tmp_path / "function").fit(X)
    again = quick(text, teacher=pixels(0.004), max_iter=1, checkpoint=tmp_path / "function").fit(X)
    assert_same_state(clf, again)
    with pytest.raises(ValueError, match="teacher differs"):
        quick(text, teacher=pixels(0.005), max_iter=1, checkpoint=tmp_path / "function").fit(X)


def test_the_order_of_the_classes_permutes_columns_only(world):
    names = ZeroShotClassifier(MODEL, class_names=world.target_names, templates="a photo of a {}")
    prototypes, order, X = names.fit().prototypes_, np.array([2, 0, 3, 1]), world.images[:48]
    one, other = (quick(rows, max_iter=1).fit(X) for rows in (prototypes, prototypes[order]))
    np.testing.assert_array_equal(order[other.pseudo_labels_], one.pseudo_labels_)
    np.testing.assert_allclose(other.logits(X), one.logits(X)[:, order], rtol=1e-3, atol=5e-3)


def test_the_order_of_the_pictures_plays_no_part_where_a_step_sees_them_all(world, text):
    # in smaller batches other pictures meet, as after another shuffling
    X, order = world.images[:32], np.random.default_rng(0).permutation(32)
    params = {"batch_size": 32, "augmentation": "crop_flip"}
    one, other = (quick(text, **params).fit(pictures) for pictures in (X, X[order]))
    np.testing.assert_allclose(other.logits(X), one.logits(X), rtol=1e-3, atol=5e-3)
    assert np.abs(one.logits(X) - quick(text, max_iter=0).fit(X).logits(X)).max() > 0.1


def test_two_threads_predict_as_one(world, text, fitted):
    classifiers = [copy(fitted), quick(text).fit(world.images[:32])]
    for clf in classifiers:
        clf.store = None
    X = world.images[:40]
    expected = [clf.logits(X) for clf in classifiers]
    with ThreadPoolExecutor(2) as pool:
        found = [list(pool.map(lambda clf: clf.logits(X), classifiers)) for _ in range(3)]
    for once in found:
        for one, wanted in zip(once, expected):
            np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=1e-5)


def test_processes_that_train_together_learn_the_labels_of_the_main_one(world, text, monkeypatch):
    told = []

    class Second:
        def from_main(self, codes):
            told.append(codes)
            return 3 - codes

    monkeypatch.setattr(_nola, "join_processes", lambda device, distributed: Second() if distributed else None)
    examples = quick(text, distributed=True)._examples(world.images[:24], [], None)
    np.testing.assert_array_equal(examples.codes, 3 - told[0])


def test_a_warm_start_goes_on_with_the_same_classes_alone(world, text):
    X = world.images[:32]
    clf = quick(text, max_iter=1, warm_start=True).fit(X)
    first, logits = clf.state_delta_, clf.logits(X)
    names = [*world.target_names[:3], "green heart"]
    clf.set_params(zero_shot=ZeroShotClassifier(class_names=names, templates="a photo of a {}"))
    with pytest.raises(ValueError, match=r"belongs to the classes.*clone"):
        clf.fit(X)
    np.testing.assert_array_equal(clf.logits(X), logits)
    again = clf.set_params(zero_shot=text).fit(X).state_delta_
    assert not np.array_equal(again["tokens"], first["tokens"])
    assert not np.array_equal(again["tokens"], quick(text, max_iter=1).fit(X).state_delta_["tokens"])


def test_errors_say_what_to_do(world, text, fitted):
    images = world.images[:20]
    with pytest.raises(ValueError, match="needs class text"):
        NoLAClassifier(MODEL).fit(images)
    with pytest.raises(ValueError, match="zero_shot__model"):
        make(ZeroShotClassifier("skclip-tiny-rn", class_names=["a", "b"])).fit(images)
    with pytest.raises(ValueError, match="both must come from one model"):
        make(np.eye(4, 5)).fit(images)
    with pytest.raises(ValueError, match="nothing is left to learn"):
        make(text, n_tokens=0, tune_norms=False, tune_head=False).fit(images)
    with pytest.raises(ValueError, match="one row for each"):
        make(text, teacher=FunctionTransformer(lambda X: np.asarray(X))).fit(images)
    with pytest.raises(ValueError, match="all 2 pictures to one class"):
        make(text).fit(np.repeat(images[:1], 2, axis=0))
    with pytest.raises(ValueError, match="19 labels"):
        make(text).fit(images, np.zeros(19))
    with pytest.raises(ValueError, match="Fit again with the new"):
        fitted.with_classes(["red ring"])
    with pytest.raises(ValueError, match="pictures"):
        make(text).fit(np.zeros((20, 128)))


def test_a_class_without_pictures_is_reported(world):
    reds = world.images[[name.startswith("red") for name in world.target]][:20]
    names = [*world.target_names, *(f"{color} heart" for color in ("green", "cyan", "pink", "yellow", "purple"))]
    text = ZeroShotClassifier(class_names=names, templates="a photo of a {}")
    with pytest.warns(SkclipWarning, match="finds no picture"):
        make(text, max_iter=0).fit(reds)
