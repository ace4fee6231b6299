"""What every tuning method must do, whatever it tunes."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skclip import CLIPClassifier, CLIPFeatures, tuning
from skclip._backbones import load_backbone
from skclip.adapters import GDAClassifier
from skclip.datasets import make_picture_world
from skclip.features import CLIPLayerStatistics
from skclip.tuning import _tuned
from skclip.tuning._losses import cross_entropy
from skclip.tuning._tuned import PromptClassifier, TowerClassifier, TunedClassifier, label_loss
from skclip.utils import SkclipWarning, all_estimators

MODEL = "skclip-tiny"
NEW_NAMES = ["green circle", "yellow star", "blue ring"]
COMMON = {"model": MODEL, "max_iter": 2, "batch_size": 8, "random_state": 0}


def describe(name):
    color, shape = name.split()
    return [f"a {name}", f"a {shape} that is {color}", f"a picture of a {name}"]


# what the methods need besides
PARAMETERS = {
    "MoCoOpClassifier": {"template_groups": ["a photo of a {}", ["a sketch of a {}", "a drawing of a {}"]]},
    "PromptSRCClassifier": {"templates": "a photo of a {}."},
    "BiomedCoOpClassifier": {"descriptions": describe, "n_prompts": None},
    # terms that compare views have their own tests
    "GOProClassifier": {"consistency_weight": 0.0, "ssl_weight": 0.0},
}
# their own tests do the same
ELSEWHERE = {"NoLAClassifier": "learns without labels"}


def methods(base):
    found = {cls for _, cls in all_estimators() if issubclass(cls, base) and cls.__name__ not in ELSEWHERE}
    return sorted(found, key=lambda cls: cls.__name__)


def make(cls, **params):
    return cls(**{**COMMON, **PARAMETERS.get(cls.__name__, {}), **params})


@pytest.fixture(scope="module")
def world():
    made = make_picture_world(24, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"], random_state=3)
    return made.images, np.array(made.target)


@pytest.fixture(scope="module")
def rows(world):
    return CLIPFeatures(MODEL).fit_transform(world[0])


@pytest.fixture(scope="module")
def read_by(world, rows):
    """``read_by(cls) -> X``: what the method learns from."""
    layers = CLIPLayerStatistics(MODEL).fit_transform(world[0])

    def get(cls):
        if cls is tuning.GOProClassifier:
            return layers
        return rows if issubclass(cls, PromptClassifier) else world[0]

    return get


@pytest.fixture(scope="module")
def fitted(world, read_by):
    """``fitted(cls) -> (estimator, X, y)``, each fitted once."""
    known = {}

    def get(cls):
        X = read_by(cls)
        if cls not in known:
            known[cls] = make(cls).fit(X, world[1])
        return known[cls], X, world[1]

    return get


def backbone_digest():
    module = load_backbone(MODEL, precision="float32").module
    digest = hashlib.blake2b()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    return digest.hexdigest()


each_method = pytest.mark.parametrize("cls", methods(TunedClassifier), ids=lambda cls: cls.__name__)
each_prompt_method = pytest.mark.parametrize("cls", methods(PromptClassifier), ids=lambda cls: cls.__name__)
each_tower_method = pytest.mark.parametrize("cls", methods(TowerClassifier), ids=lambda cls: cls.__name__)


def test_the_lists_name_classes_that_exist():
    names = {cls.__name__ for _, cls in all_estimators() if issubclass(cls, TunedClassifier)}
    assert set(PARAMETERS) | set(ELSEWHERE) <= names
    assert names <= set(tuning.__all__)


@each_method
def test_fit_leaves_the_backbone_and_its_parameters_alone(cls, world, fitted):
    before = backbone_digest()
    fitted(cls)  # maybe here for the first time
    X = fitted(cls)[1]
    estimator = make(cls)
    params = {name: repr(value) for name, value in estimator.get_params().items()}
    estimator.fit(X, world[1])
    assert backbone_digest() == before
    assert {name: repr(value) for name, value in estimator.get_params().items()} == params
    # the same seed, the same tensors
    for name, value in fitted(cls)[0].state_delta_.items():
        np.testing.assert_array_equal(estimator.state_delta_[name], value, err_msg=name)


@each_method
def test_probabilities_and_attributes(cls, fitted):
    estimator, X, _ = fitted(cls)
    proba = estimator.predict_proba(X)
    assert proba.shape == (len(X), 4)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-6)
    assert estimator.logits(X).shape == (len(X), 4)
    np.testing.assert_array_equal(estimator.predict(X), estimator.classes_[proba.argmax(axis=1)])
    assert len(estimator.loss_curve_) == estimator.n_iter_ == 2
    totals = np.sum(list(estimator.loss_terms_.values()), axis=0)
    np.testing.assert_allclose(totals, estimator.loss_curve_, rtol=1e-4)
    assert all(isinstance(value, np.ndarray) for value in estimator.state_delta_.values())


@each_method
def test_something_is_learned(cls, fitted):
    estimator, X, y = fitted(cls)
    untrained = make(cls, max_iter=0).fit(X, y)
    moved = [
        name
        for name, value in estimator.state_delta_.items()
        if not np.array_equal(untrained.state_delta_.get(name), value)
    ]
    assert moved, "no tensor moved"


@each_method
def test_a_pickle_is_small_and_predicts_alike(cls, fitted, tmp_path):
    estimator, X, _ = fitted(cls)
    path = tmp_path / "estimator.joblib"
    joblib.dump(estimator, path)
    size = sum(value.nbytes for value in estimator.state_delta_.values())
    assert path.stat().st_size < 2.5 * size + 40_000
    loaded = joblib.load(path)
    np.testing.assert_array_equal(loaded.predict_proba(X[:4]), estimator.predict_proba(X[:4]))
    unfitted = clone(estimator)
    assert vars(unfitted).keys() == estimator.get_params(deep=False).keys()
    assert len(pickle.dumps(unfitted)) < 3000


def test_unpickling_loads_no_torch_and_predicts_alike_in_another_process(fitted, tmp_path):
    known = [fitted(cls)[:2] for cls in methods(TunedClassifier)]
    expected = [estimator.predict_proba(X[:4]) for estimator, X in known]
    joblib.dump([(estimator, X[:4]) for estimator, X in known], tmp_path / "dumped")
    code = f"""
import sys, joblib
known = joblib.load({str(tmp_path / "dumped")!r})
assert "torch" not in sys.modules and "open_clip" not in sys.modules
joblib.dump([estimator.predict_proba(X) for estimator, X in known], {str(tmp_path / "proba")!r})"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for (estimator, _), there, here in zip(known, joblib.load(tmp_path / "proba"), expected, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-6, err_msg=type(estimator).__name__)


@each_method
def test_skops_reads_it_back(cls, fitted, tmp_path):
    skops_io = pytest.importorskip("skops.io")
    estimator, X, _ = fitted(cls)
    if any(callable(value) for value in estimator.get_params().values()):
        pytest.skip("holds a function as parameter")
    path = tmp_path / "estimator.skops"
    skops_io.dump(estimator, path)
    trusted = skops_io.get_untrusted_types(file=path)
    assert all(name.startswith("skclip.") for name in trusted), trusted
    loaded = skops_io.load(path, trusted=trusted)
    np.testing.assert_array_equal(loaded.predict(X[:4]), estimator.predict(X[:4]))


@each_method
def test_the_order_of_the_classes_permutes_columns_only(cls, fitted):
    # other labels for the same names: sorted the other way round
    estimator, X, y = fitted(cls)
    label = {name: 3 - k for k, name in enumerate(estimator.classes_.tolist())}
    other = make(cls, class_names={k: name for name, k in label.items()}).fit(X, [label[name] for name in y])
    np.testing.assert_array_equal(other.classes_, [0, 1, 2, 3])
    np.testing.assert_allclose(other.logits(X)[:, ::-1], estimator.logits(X), rtol=1e-3, atol=5e-3)


@each_method
def test_new_classes_by_name(cls, fitted):
    estimator, X, _ = fitted(cls)
    before = pickle.dumps(estimator)
    new = estimator.with_classes(NEW_NAMES)
    assert sorted(new.classes_) == sorted(NEW_NAMES)
    assert new.predict_proba(X).shape == (len(X), 3)
    same = new.with_classes(estimator.classes_.tolist())
    np.testing.assert_allclose(same.logits(X), estimator.logits(X), rtol=1e-4, atol=1e-4)
    assert pickle.dumps(estimator) == before
    numbered = copy(estimator)
    numbered.classes_ = np.arange(4)
    with pytest.raises(ValueError, match="list of names"):
        numbered.with_classes(["red ring"])


@each_method
def test_errors_name_what_to_do(cls, fitted):
    _, X, y = fitted(cls)
    with pytest.raises(ValueError, match="class_names="):
        make(cls).fit(X, np.arange(24) % 4)
    with pytest.raises(ValueError, match="one class"):
        make(cls).fit(X, ["red circle"] * 24)
    long = " ".join(["red"] * 80)
    with pytest.raises(ValueError, match=r"red red.* tokens"):
        make(cls, class_names={**{name: name for name in set(y)}, "red circle": long}).fit(X, y)
    with pytest.raises(NotFittedError):
        make(cls).predict(X)
    with pytest.raises(ValueError, match="random_state"):
        make(cls, checkpoint="x", random_state=None).fit(X, y)
    with pytest.raises(ValueError, match="learning_rate"):
        make(cls, learning_rate=-1.0).fit(X, y)


@each_prompt_method
def test_features_of_another_width_are_refused(cls, read_by, world):
    with pytest.raises(ValueError, match=r"X has 64 (features|columns)"):
        make(cls).fit(read_by(cls)[:, :64], world[1])


@each_prompt_method
def test_features_of_another_model_are_noticed_where_fit_is_called(cls, read_by, world):
    y = np.tile(world[1], 2)
    X = np.random.default_rng(0).standard_normal((len(y), read_by(cls).shape[1]))
    with pytest.warns(SkclipWarning, match=f"no better than chance.*model='{MODEL}'") as caught:
        make(cls, max_iter=0).fit(X, y)
    assert caught[0].filename == __file__


@each_prompt_method
def test_pictures_in_place_of_features_are_refused(cls, world):
    for X in (world[0], ["a.jpg"] * 24):
        with pytest.raises(ValueError, match=r"X holds pictures.*CLIPFeatures"):
            make(cls).fit(X, world[1])


@each_prompt_method
def test_one_view_is_no_view(cls, read_by, world, fitted):
    one = make(cls).fit(read_by(cls)[:, None], world[1])
    for name, value in fitted(cls)[0].state_delta_.items():
        np.testing.assert_array_equal(one.state_delta_[name], value)


@each_tower_method
def test_features_in_place_of_pictures_are_refused(cls, rows, world):
    with pytest.raises(ValueError, match="pictures"):
        make(cls).fit(rows, world[1])


@each_tower_method
def test_the_tuned_tower_stands_before_an_adapter(cls, fitted):
    estimator, X, y = fitted(cls)
    encoded = estimator.encode_image(X)
    np.testing.assert_allclose(np.linalg.norm(encoded, axis=1), 1.0, rtol=1e-5)
    pipe = make_pipeline(estimator.as_features(), GDAClassifier()).fit(X, y)
    np.testing.assert_array_equal(pipe[:-1].transform(X[:3]), encoded[:3])
    np.testing.assert_array_equal(clone(pipe).fit(X, y).predict(X), pipe.predict(X))
    # other pictures around it, another place, another batch: the same row
    np.testing.assert_allclose(estimator.encode_image(X[5:8]), encoded[5:8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["CoOpClassifier", "GOProClassifier", "MaPLeClassifier"])
def test_an_interrupted_fit_goes_on_from_its_checkpoint(name, fitted, tmp_path, monkeypatch):
    cls = getattr(tuning, name)
    _, X, y = fitted(cls)
    whole = make(cls, max_iter=4).fit(X, y)
    path = tmp_path / "state"
    halted = make(cls, max_iter=4, checkpoint=path)
    terms, steps = cls._terms, []

    def interrupted(self, setting):
        def stop(step):
            steps.append(step)
            if len(steps) == 8:
                raise KeyboardInterrupt
            return 0.0 * step.logits.sum()

        return {**terms(self, setting), "stop": stop}

    monkeypatch.setattr(cls, "_terms", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"(?s)epoch 3 of 4.*state"):
        halted.fit(X, y)
    monkeypatch.undo()
    resumed = halted.fit(X, y)
    assert resumed.n_iter_ == 4
    for key, value in whole.state_delta_.items():
        np.testing.assert_array_equal(resumed.state_delta_[key], value)
    with pytest.raises(ValueError, match="learning_rate"):
        make(cls, max_iter=4, checkpoint=path, learning_rate=0.5).fit(X, y)


def test_ctrl_c_says_what_is_kept(rows, world, tmp_path):
    path = tmp_path / "state"
    estimator = make(tuning.CoOpClassifier, max_iter=100_000, checkpoint=path)

    def press():
        while not path.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt, match=r"in epoch \d+ of 100000\. checkpoint='.*state' holds the training"):
        estimator.fit(rows, world[1])
    pressing.join()


def test_ctrl_c_before_the_first_epoch_says_so(rows, world, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning.CoOpClassifier, "_start", interrupted)
    with pytest.raises(KeyboardInterrupt, match="outside training; nothing is kept"):
        make(tuning.CoOpClassifier).fit(rows, world[1])


def test_estimators_of_one_model_do_not_meet(rows, world, fitted):
    estimators = [fitted(cls)[0] for cls in (tuning.CoOpClassifier, tuning.MaPLeClassifier, tuning.CLIPLoRAClassifier)]
    inputs = [fitted(type(estimator))[1] for estimator in estimators]
    before = [estimator.logits(X) for estimator, X in zip(estimators, inputs)]
    with ThreadPoolExecutor(3) as pool:
        again = pool.map(lambda pair: clone(pair[0]).fit(pair[1], world[1]), zip(estimators, inputs))
        for one, other in zip(again, estimators, strict=True):
            for name, value in other.state_delta_.items():
                np.testing.assert_array_equal(one.state_delta_[name], value, err_msg=name)
    for estimator, X, logits in zip(estimators, inputs, before):
        np.testing.assert_array_equal(estimator.logits(X), logits)


@each_method
def test_what_an_accelerator_has_learned_works_without_it(cls, fitted):
    estimator, X, _ = fitted(cls)
    moved = pickle.loads(pickle.dumps(estimator)).set_params(device="cuda:7")
    with pytest.warns(SkclipWarning, match="cuda:7"):
        proba = moved.with_classes(estimator.classes_.tolist()).predict_proba(X[:4])
    np.testing.assert_allclose(proba, estimator.predict_proba(X[:4]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["CoOpClassifier", "MaPLeClassifier"])
def test_one_picture_per_class_leaves_none_to_hold_out(name, fitted):
    cls = getattr(tuning, name)
    _, X, y = fitted(cls)
    first = [y.tolist().index(label) for label in np.unique(y)]
    with pytest.raises(ValueError, match=r"early_stopping"):
        make(cls, early_stopping=True).fit(X[first], y[first])


@pytest.mark.parametrize("name", ["CoCoOpClassifier", "MaPLeClassifier"])
def test_what_is_fitted_draws_no_random_numbers(name, fitted):
    estimator, X, _ = fitted(getattr(tuning, name))
    estimator = copy(estimator)
    estimator.random_state, unused = np.random.RandomState(0), np.random.RandomState(0)
    estimator.predict(X[:2])
    estimator.with_classes(NEW_NAMES)
    assert estimator.random_state.randint(2**31) == unused.randint(2**31)


def test_towers_that_read_one_state_in_two_ways_share_no_rows(world):
    X, y = world
    ways = ("replace", "accumulate")
    one, other = (make(tuning.CPECLIPClassifier, max_iter=0, vision_mode=way).fit(X, y) for way in ways)
    assert one.state_digest_ == other.state_digest_
    rows = one.encode_image(X[:4]), other.encode_image(X[:4])
    np.testing.assert_array_equal(other.set_params(store=None).encode_image(X[:4]), rows[1])
    assert np.abs(rows[0] - rows[1]).max() > 0.01


def test_a_tuned_tower_reads_no_picture_twice(fitted, tmp_path, monkeypatch):
    estimator, X, _ = fitted(tuning.MaPLeClassifier)
    estimator = copy(estimator).set_params(store=tmp_path)
    rows = estimator.encode_image(X[:4])
    loaded = pickle.loads(pickle.dumps(estimator)).with_classes(NEW_NAMES)
    monkeypatch.setattr(tuning.MaPLeClassifier, "_image", None)
    np.testing.assert_array_equal(loaded.encode_image(X[:4]), rows)


def test_a_checkpoint_knows_functions_by_their_code_and_what_is_held_out(rows, world, tmp_path):
    params = {"checkpoint": tmp_path / "state", "early_stopping": True, "validation_fraction": 0.3, "n_prompts": None}
    namespace = dict(describe.__globals__)
    exec("def describe(name):\n    return [f'a {name}', f'one {name}']", namespace)
    estimator = make(tuning.BiomedCoOpClassifier, **params | {"descriptions": namespace["describe"]})
    estimator.fit(rows, world[1])
    # as another process defines it: the same function at another address
    exec("def describe(name):\n    return [f'a {name}', f'one {name}']", namespace)
    estimator.set_params(descriptions=namespace["describe"]).fit(rows, world[1])
    exec("def describe(name):\n    return [f'a {name}', f'that {name}']", namespace)
    with pytest.raises(ValueError, match="descriptions differs"):
        estimator.set_params(descriptions=namespace["describe"]).fit(rows, world[1])
    exec("def describe(name):\n    return [f'a {name}', f'one {name}']", namespace)
    estimator.set_params(descriptions=namespace["describe"])
    for changed in range(0, 24, 6):  # some of them are held out
        others = rows.copy()
        others[changed : changed + 6] *= -1
        with pytest.raises(ValueError, match="X differs"):
            estimator.fit(others, world[1])


def test_a_fingerprint_knows_all_that_a_function_does():
    def saying(words):
        return lambda name: [f"{word} {name}" for word in words]

    functions = [
        saying(["a"]),
        saying(["the"]),
        lambda name: ["a", "b", "c"],
        lambda name: ["a", "b", "d"],
        lambda name, count=1: [name] * count,
        lambda name, count=2: [name] * count,
        lambda name: {"a", "b"} | {name},
    ]
    assert len({_tuned._shown(function).split()[-1] for function in functions}) == len(functions)
    assert _tuned._shown(saying(["a"])) == _tuned._shown(functions[0])


@each_method
def test_logits_are_float32_where_towers_work_in_half_precision(cls, fitted, monkeypatch):
    _, X, y = fitted(cls)
    seen = []

    def watched(logits, *args):
        seen.append(logits.dtype)
        return cross_entropy(logits, *args)

    monkeypatch.setattr(_tuned, "cross_entropy", watched)
    make(cls, precision="bf16", max_iter=1).fit(X, y)
    assert {str(dtype) for dtype in seen} == {"torch.float32"}


def test_a_loss_that_is_not_finite_names_the_step(fitted):
    _, X, y = fitted(tuning.CoOpClassifier)
    with pytest.raises(ValueError, match=r"(?s)step.*learning_rate"):
        make(tuning.CoOpClassifier, learning_rate=1e30, max_iter=20).fit(X, y)


def test_search_over_a_pipeline_with_views(world):
    images, y = world
    pipe = make_pipeline(CLIPFeatures(MODEL, n_views=3, random_state=0), make(tuning.CoOpClassifier))
    grid = {"n_ctx": [2, 4], "learning_rate": [0.002, 0.02], "max_iter": [1, 2]}
    grid = {f"coopclassifier__{name}": values for name, values in grid.items()}
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(images, y)
    assert search.best_estimator_[-1].ctx_.shape[0] in (2, 4)
    assert search.predict(images[:2]).shape == (2,)


def test_two_processes_search_at_once(rows, world):
    search = GridSearchCV(make(tuning.CoOpClassifier), {"n_ctx": [2, 4]}, cv=2, n_jobs=2, error_score="raise")
    search.fit(rows, world[1])
    alone = clone(search.best_estimator_).fit(rows, world[1])
    np.testing.assert_allclose(alone.predict_proba(rows), search.predict_proba(rows), rtol=1e-4, atol=1e-6)


def test_the_front_door_names_the_model(world):
    images, y = world
    front = CLIPClassifier(MODEL, classifier=tuning.CoOpClassifier(n_ctx=2, max_iter=1, random_state=0)).fit(images, y)
    assert front.classifier_.model == MODEL
    assert front.with_classes(NEW_NAMES).predict(images[:2]).shape == (2,)
    with pytest.raises(TypeError, match="reads pictures itself"):
        CLIPClassifier(MODEL, classifier=make(tuning.MaPLeClassifier)).fit(images, y)


@each_prompt_method
def test_weights_count_as_repeated_pictures_do_in_the_loss(cls, read_by, world):
    X, y = read_by(cls), world[1]
    weights = np.arange(len(y)) % 3 + 1
    params = {"batch_size": 64, "learning_rate": 0.01}
    weighted = make(cls, **params).fit(X, y, sample_weight=weights)
    repeated = make(cls, **params).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    start = make(cls, max_iter=0).fit(X, y)
    for name, value in repeated.state_delta_.items():
        moved = np.abs(value - start.state_delta_[name]).max()
        np.testing.assert_allclose(weighted.state_delta_[name], value, rtol=0, atol=0.01 * moved, err_msg=name)


def test_weights_that_are_alike_or_zero(rows, world):
    y = world[1]
    once = make(tuning.CoOpClassifier, batch_size=64).fit(rows, y, sample_weight=np.full(24, 2.0))
    np.testing.assert_array_equal(once.ctx_, make(tuning.CoOpClassifier, batch_size=64).fit(rows, y).ctx_)
    weights = np.where(y == "red circle", 0.0, 1.0)
    without = make(tuning.CoOpClassifier).fit(rows, y, sample_weight=weights)
    assert "red circle" not in without.classes_
    with pytest.raises(ValueError, match="zero"):
        make(tuning.CoOpClassifier).fit(rows, y, sample_weight=np.zeros(24))


def test_warm_start_goes_on(rows, world):
    estimator = make(tuning.CoOpClassifier, warm_start=True).fit(rows, world[1])
    first = estimator.ctx_
    again = estimator.fit(rows, world[1]).ctx_
    assert not np.array_equal(first, again)
    cold = make(tuning.CoOpClassifier).fit(rows, world[1]).ctx_
    assert not np.array_equal(again, cold)
    with pytest.raises(ValueError, match="warm_start"):
        estimator.set_params(n_ctx=3).fit(rows, world[1])


def test_an_interrupted_warm_start_loses_nothing_and_goes_on(rows, world, tmp_path, monkeypatch):
    params = {"warm_start": True, "max_iter": 4}
    first = make(tuning.CoOpClassifier, **params).fit(rows, world[1])
    again, whole = copy(first), copy(first).fit(rows, world[1])
    again.checkpoint = tmp_path / "state"

    def interrupted(self, setting):
        def term(step):
            if step.batch.epoch == 2:
                raise KeyboardInterrupt
            return label_loss(step)

        return {"cross_entropy": term}

    monkeypatch.setattr(tuning.CoOpClassifier, "_terms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        again.fit(rows, world[1])
    monkeypatch.undo()
    np.testing.assert_array_equal(again.predict_proba(rows), first.predict_proba(rows))
    np.testing.assert_array_equal(again.fit(rows, world[1]).ctx_, whole.ctx_)


def test_early_stopping_keeps_the_best_epoch(rows, world):
    estimator = make(
        tuning.CoOpClassifier, max_iter=30, early_stopping=True, validation_fraction=0.3, n_iter_no_change=3
    )
    estimator.fit(rows, world[1])
    assert len(estimator.validation_scores_) == estimator.n_iter_
    best = int(np.argmax(estimator.validation_scores_))
    assert estimator.n_iter_ in (30, best + 4)
