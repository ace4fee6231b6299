"""`TimmClassifier`: networks that learn from pictures, as any classifier."""

from __future__ import annotations

import math
import pickle
import warnings

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from safetensors.numpy import save_file
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV

from skclip import clear_backbones
from skclip._backbones import BackboneError, network_card
from skclip._media import PictureError, PictureTransform, read_picture
from skclip.datasets import load_digit_pictures, make_picture_world
from skclip.features import MissingDeviceWarning
from skclip.ood import MSPDetector, OpenSetClassifier
from skclip.tuning import TimmClassifier
from skclip.tuning._network_training import NetworkRecipe, Pixels, draws_random_numbers, random_crops, train_network

torch = pytest.importorskip("torch")


NAMES = np.array(["zero", "one", "two", "three", "four"])


def network(**params):
    small = {"image_size": 32, "max_iter": 4, "batch_size": 16, "augmentation": None, "device": "cpu"}
    return TimmClassifier("test_resnet", **{**small, "random_state": 0, **params})


def digits(of, n, subset, seed=0):
    """Pictures of some digits."""
    every = load_digit_pictures(image_size=32, subset=subset)
    chosen = np.flatnonzero(np.isin(every.target, of))
    chosen = np.random.default_rng(seed).permutation(chosen)[:n]
    return every.images[chosen], every.target[chosen]


@pytest.fixture(scope="module")
def low():
    return digits(range(5), 200, "train"), digits(range(5), 150, "test")


@pytest.fixture(scope="module")
def fitted(low):
    (X, y), _ = low
    return network().fit(X, NAMES[y])


@pytest.fixture(scope="module")
def checkpoint(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(fitted.state_delta_, path)
    return path


@pytest.fixture(scope="module")
def tiny():
    """Twelve pictures of two colours and a network that has seen them once."""
    world = make_picture_world(12, shapes=["circle"], colors=["red", "blue"], image_size=40, random_state=0)
    return world.images, world.target, network(max_iter=1).fit(world.images, world.target)


# ------------------------------------------------------------------------------------------------------- it learns


def test_from_scratch_it_reads_digits(low, fitted):
    (X, y), (X_test, y_test) = low
    scores = [network(random_state=seed).fit(X, y).score(X_test, y_test) for seed in (1, 2)]
    scores.append(fitted.score(X_test, NAMES[y_test]))
    assert np.mean(scores) > 0.9, scores  # chance is 0.2; single runs differ with the number of threads


def test_crops_and_flips_and_smoothed_labels_learn_colours():
    world = make_picture_world(
        160, shapes=["circle", "star"], colors=["red", "blue"], image_size=40, backgrounds=["gray"], textures=["plain"]
    )
    colour = np.array([name.split()[0] for name in world.target])
    clf = network(augmentation="crop_flip", label_smoothing=0.1, max_iter=6).fit(world.images[:100], colour[:100])
    assert clf.score(world.images[100:], colour[100:]) > 0.9


def test_fine_tuning_beats_training_from_scratch_in_few_epochs(checkpoint):
    X_test, y_test = digits(range(5, 10), 200, "test")
    gains = []
    for seed in range(3):
        X, y = digits(range(5, 10), 60, "train", seed)
        tuned, scratch = (
            network(pretrained=start, max_iter=3, random_state=seed).fit(X, y).score(X_test, y_test)
            for start in (str(checkpoint), False)
        )
        gains.append(tuned - scratch)
    assert np.mean(gains) > 0.1, gains


def test_the_head_alone_learns_on_given_weights(checkpoint):
    X, y = digits(range(5, 10), 60, "train")
    clf = network(pretrained=checkpoint, trainable="head", max_iter=10, learning_rate=0.1).fit(X, y)
    assert set(clf.state_delta_) == {"fc.weight", "fc.bias"}
    assert clf.score(*digits(range(5, 10), 200, "test")) > 0.35
    assert len(pickle.dumps(clf)) < 20_000
    again = pickle.loads(pickle.dumps(clf))
    before = clf.logits(X)
    clear_backbones()
    assert_array_equal(again.logits(X), before)


# ------------------------------------------------------------------------------------------- the shape of a classifier


def test_a_new_head_is_kept_even_if_training_has_not_moved_it(checkpoint, tiny):
    X, y, _ = tiny
    still = network(pretrained=checkpoint, trainable="head", learning_rate=1e-30, max_iter=1, random_state=3).fit(X, y)
    expected = still.logits(X)
    clear_backbones()
    assert_array_equal(still.logits(X), expected)


def test_answers_have_the_shapes_of_scikit_learn(fitted, low, tiny):
    X_test = low[1][0][:7]
    assert_array_equal(fitted.classes_, ["four", "one", "three", "two", "zero"])
    assert fitted.logits(X_test).shape == (7, 5)
    assert fitted.logits(X_test).dtype == np.float64
    assert_array_equal(fitted.decision_function(X_test), fitted.logits(X_test))
    assert_allclose(fitted.predict_proba(X_test).sum(axis=1), 1.0)
    assert_array_equal(fitted.predict(X_test), fitted.classes_[fitted.logits(X_test).argmax(axis=1)])
    X, _, two = tiny
    assert two.logits(X).shape == (12, 2)
    assert_array_equal(two.decision_function(X), two.logits(X)[:, 1] - two.logits(X)[:, 0])
    assert two.n_iter_ == len(two.loss_curve_) == 1


@pytest.mark.parametrize("labels", [[True, False], [-1, 1], [0.5, 1.0], ["b", "a"]], ids=repr)
def test_labels_of_any_kind(tiny, labels):
    X, target, _ = tiny
    y = np.array(labels)[(target == "red circle").astype(int)]
    if y.dtype.kind == "f":
        y = y * 2  # continuous targets are a regression's
    clf = network(max_iter=1).fit(X, y)
    assert clf.predict(X).dtype == y.dtype
    assert set(clf.predict(X).tolist()) <= set(y.tolist())


def test_an_integer_gives_the_same_network_and_another_gives_another(tiny):
    X, y, first = tiny
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    same, other = network(max_iter=1).fit(X, y), network(max_iter=1, random_state=1).fit(X, y)
    assert same.state_digest_ == first.state_digest_
    assert all(np.array_equal(value, first.state_delta_[name]) for name, value in same.state_delta_.items())
    assert other.state_digest_ != first.state_digest_
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    crops = [network(max_iter=1, augmentation="crop_flip").fit(X, y).state_digest_ for _ in range(2)]
    assert crops[0] == crops[1] != first.state_digest_


def test_fitted_state_is_numpy_and_of_float32(fitted):
    for value in fitted.state_delta_.values():
        assert isinstance(value, np.ndarray)
        assert value.dtype in (np.float32, np.int64)
    assert fitted.start_digest_ == ""
    card = network_card("test_resnet")
    assert fitted.preprocessing_["image_size"] == (32, 32)
    assert fitted.preprocessing_["stored_size"] == card.resized((32, 32)) == (33, 33)


def test_statistics_of_the_batch_do_not_enter_predictions(fitted, low):
    X_test = low[1][0][:40]
    together = fitted.logits(X_test)
    assert_allclose(np.concatenate([fitted.logits(X_test[i : i + 1]) for i in range(5)]), together[:5], atol=1e-5)
    assert_allclose(fitted.logits(X_test[::-1])[::-1], together, atol=1e-5)


def test_many_pictures_are_read_in_chunks(fitted, low, monkeypatch):
    monkeypatch.setattr("skclip.tuning._timm_classifier._CHUNK", 7)
    X_test = low[1][0][:40]
    chunked = fitted.logits(list(X_test))
    monkeypatch.undo()
    assert_allclose(chunked, fitted.logits(X_test), atol=1e-5)


def test_a_prediction_that_runs_out_of_memory_is_halved(fitted, low, monkeypatch):
    X_test = low[1][0][:40]
    expected, sizes = fitted.logits(X_test), []
    original = Pixels.centre

    def small_memory(self, batch, device):
        sizes.append(len(batch))
        if len(batch) > 5:
            raise RuntimeError("CUDA out of memory")
        return original(self, batch, device)

    monkeypatch.setattr(Pixels, "centre", small_memory)
    assert_allclose(fitted.logits(X_test), expected, atol=1e-5)
    assert sizes[:3] == [16, 8, 4]
    with pytest.raises(BackboneError, match="out of memory with batch_size=12"):
        network(max_iter=1, batch_size=12).fit(X_test, np.arange(40) % 2)


# -------------------------------------------------------------------------------------------------------- pictures


def wide_pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in [(50, 90), (90, 50), (33, 33)]]


def test_preprocessed_pictures_are_resized_and_cut():
    clf = network()
    made = clf.preprocess(wide_pictures())
    assert made.dtype == np.uint8
    assert made.shape == (3, 33, 33, 3)
    transform = PictureTransform((33, 33), "bilinear")
    for pixels, picture in zip(made, wide_pictures()):
        assert_array_equal(pixels, transform(read_picture(picture)))
    assert clf.preprocess(made) is made
    assert vars(clf) == vars(network())


def test_preprocessed_pictures_take_the_place_of_pictures(tmp_path):
    X = wide_pictures() * 4
    y = ["a", "b", "a", "b"] * 3
    paths = [tmp_path / f"{i}.png" for i in range(len(X))]
    for path, picture in zip(paths, X):
        picture.save(path)
    made = network().preprocess(paths)
    for augmentation in (None, "crop_flip"):
        clf = network(augmentation=augmentation, max_iter=1)
        from_paths, from_pixels = clone(clf).fit(paths, y), clone(clf).fit(made, y)
        assert from_paths.state_digest_ == from_pixels.state_digest_
        assert_array_equal(from_paths.logits(X), from_pixels.logits(made))
        assert_array_equal(from_paths.preprocess(paths), made)
    in_a_file = np.lib.format.open_memmap(tmp_path / "pixels.npy", "w+", np.uint8, made.shape)
    in_a_file[:] = made
    in_a_file.flush()
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    assert clone(clf).fit(mapped, y).state_digest_ == from_paths.state_digest_


def test_the_model_decides_how_pictures_are_made():
    assert TimmClassifier("resnet18").preprocess(wide_pictures()).shape == (3, 235, 235, 3)
    assert TimmClassifier("test_vit", image_size=64).preprocess(wide_pictures()).shape == (3, 67, 67, 3)


def test_the_network_reads_the_normalised_centre():
    batch = np.random.default_rng(0).integers(0, 256, (2, 35, 35, 3), dtype=np.uint8)
    making = Pixels((32, 32), (0.5, 0.4, 0.3), (0.2, 0.1, 0.5))
    expected = (batch[:, 1:33, 1:33] / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.1, 0.5]
    found = making.centre(batch, torch.device("cpu")).numpy()
    assert_allclose(found, np.moveaxis(expected, 3, 1), atol=1e-5)


def test_random_regions_hold_half_of_the_picture_or_more_and_are_mirrored_half_of_the_time():
    # a picture whose pixels say where they are
    n, side = 400, 60
    position = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
    x, y = position.expand(side, side), position[:, None].expand(side, side)
    pictures = torch.stack([x, y, x]).expand(n, 3, side, side).contiguous()
    crops = random_crops(pictures, (24, 24), torch.Generator().manual_seed(0)).numpy()
    step_x = np.median(np.diff(crops[:, 0], axis=2), axis=(1, 2)) * 24 / 2  # share of the width, signed
    step_y = np.median(np.diff(crops[:, 1], axis=1), axis=(1, 2)) * 24 / 2
    area, ratio = np.abs(step_x) * step_y, np.abs(step_x) / step_y
    assert area.min() > 0.45
    assert area.max() < 1.001
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert abs((step_x < 0).mean() - 0.5) < 0.08
    assert np.abs(crops).max() <= 1.0
    assert abs(crops[:, 0].mean()) < 0.03  # centred on the average
    same = random_crops(pictures, (24, 24), torch.Generator().manual_seed(0)).numpy()
    assert_array_equal(crops, same)


# -------------------------------------------------------------------------------------------------------- training


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    recipe = NetworkRecipe(10, 8, 0.4, 0.9, 0.0, "cosine", 0.2, 0.0, None)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert_allclose(rates[:20], 0.4 * np.arange(1, 21) / 21)
    assert_allclose(rates[20:], 0.2 * (1 + np.cos(np.pi * np.arange(80) / 80)))
    constant = NetworkRecipe(10, 8, 0.4, 0.9, 0.0, "constant", 0.0, 0.0, None)
    assert {constant.rate(step, 100) for step in range(100)} == {0.4}


def test_documented_learning_rates(checkpoint):
    assert network()._recipe().learning_rate == 0.1
    assert network(pretrained=checkpoint)._recipe().learning_rate == 0.01
    assert network(pretrained=True, learning_rate=0.3)._recipe().learning_rate == 0.3


def linear(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))


def trained(weights=None, n_steps=3, module=None, device="cpu", **params):
    """A linear network after full-batch steps on six pictures of 2 x 2 pixels, and its losses."""
    rng = np.random.default_rng(0)
    pixels, codes = rng.integers(0, 256, (6, 2, 2, 3), dtype=np.uint8), np.array([0, 1, 2, 0, 1, 2])
    recipe = NetworkRecipe(
        **{
            "max_iter": n_steps, "batch_size": 6, "learning_rate": 0.5, "momentum": 0.9, "weight_decay": 0.01,
            "schedule": "constant", "warmup": 0.0, "label_smoothing": 0.1, "augmentation": None, **params,
        }
    )  # fmt: skip
    device = torch.device(device)
    module = (linear() if module is None else module).to(device)
    losses = train_network(
        module, None, pixels, codes, weights, recipe, Pixels((2, 2), (0.0,) * 3, (1.0,) * 3),
        device=device, precision="float32", seed=0, name="Linear",
    )  # fmt: skip
    return module, losses, pixels, codes


def test_steps_are_those_of_stochastic_gradient_descent_written_out():
    weights = np.array([1.0, 2.0, 0.5, 1.0, 1.0, 3.0])
    module, losses, pixels, codes = trained(weights)
    start = linear()[1]
    W, b = start.weight.detach().numpy().astype(float), start.bias.detach().numpy().astype(float)
    x = np.moveaxis(pixels / 255, 3, 1).reshape(6, 12)
    target = 0.9 * np.eye(3)[codes] + 0.1 / 3
    share = weights / weights.mean()
    vW, vb, expected = 0.0, 0.0, []
    for _ in range(3):
        z = x @ W.T + b
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        expected.append(-(share @ (target * log_p).sum(axis=1)) / 6)
        gradient = share[:, None] * (np.exp(log_p) - target) / 6
        vW, vb = 0.9 * vW + gradient.T @ x + 0.01 * W, 0.9 * vb + gradient.sum(axis=0)  # no decay of the intercept
        W, b = W - 0.5 * vW, b - 0.5 * vb
    assert_allclose(losses, expected, rtol=1e-5)
    assert_allclose(module[1].weight.numpy(), W, atol=1e-5)
    assert_allclose(module[1].bias.numpy(), b, atol=1e-5)
    assert not module.training


def test_pictures_of_weight_zero_are_left_out(tiny):
    X, y, reference = tiny
    strange = np.zeros_like(X[:2])
    weights = np.append(np.ones(12), [0.0, 0.0])
    clf = network(max_iter=1).fit(np.concatenate([X, strange]), [*y, "nothing", "nothing"], sample_weight=weights)
    assert clf.state_digest_ == reference.state_digest_
    assert_array_equal(clf.classes_, reference.classes_)


def test_weights_reach_the_training(tiny):
    X, y, reference = tiny
    equal = network(max_iter=1).fit(X, y, sample_weight=np.full(12, 7.0))
    assert equal.state_digest_ == reference.state_digest_
    assert network(max_iter=1).fit(X, y, sample_weight=np.arange(1.0, 13.0)).state_digest_ != reference.state_digest_


def test_no_batch_holds_a_single_picture_left_over():
    # 17 pictures in batches of 16: statistics of one picture at 1 x 1 positions do not exist
    X = np.random.default_rng(0).integers(0, 256, (17, 33, 33, 3), dtype=np.uint8)
    for n, batch_size in [(17, 16), (3, 2), (2, 2)]:
        clf = network(max_iter=1, batch_size=batch_size).fit(X[:n], np.arange(n) % 2)
        assert np.isfinite(clf.loss_curve_).all()
    with pytest.raises(ValueError, match="TimmClassifier: batch_size=1 leaves nothing to take batch statistics of"):
        network(max_iter=1, batch_size=1).fit(X, np.arange(17) % 2)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda:0", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))],
)
def test_dropout_draws_from_a_generator_of_its_own(device):
    def dropping():
        return torch.nn.Sequential(*linear(), torch.nn.Dropout(0.5))

    assert draws_random_numbers(dropping())
    assert not draws_random_numbers(linear())
    read_state = torch.cuda.get_rng_state if device == "cuda:0" else torch.random.get_rng_state
    before = read_state()
    runs = [trained(module=dropping(), device=device)[1] for _ in range(2)]
    assert torch.equal(read_state(), before)
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)
    assert runs[0] != pytest.approx(trained(device=device)[1], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_weights_in_float32(tiny, precision):
    X, y, reference = tiny
    clf = network(max_iter=1, precision=precision).fit(X, y)
    assert all(value.dtype in (np.float32, np.int64) for value in clf.state_delta_.values())
    assert_allclose(clf.loss_curve_, reference.loss_curve_, rtol=0.1)
    assert clf.state_digest_ != reference.state_digest_


def test_a_loss_that_leaves_the_numbers_is_named(tiny):
    X, y, _ = tiny
    with pytest.raises(ValueError, match=r"no longer finite at step \d+ of 6 \(epoch \d\).*learning_rate than 1e\+20"):
        network(max_iter=6, learning_rate=1e20, warmup=0.0, momentum=0.0).fit(X, y)


# ----------------------------------------------------------------------------------------------- around scikit-learn


def test_saved_and_loaded(fitted, low, tmp_path):
    X_test = low[1][0]
    expected = fitted.logits(X_test)
    joblib.dump(fitted, tmp_path / "clf.joblib")
    clear_backbones()
    for loaded in (
        pickle.loads(pickle.dumps(fitted)),
        joblib.load(tmp_path / "clf.joblib"),
        joblib.load(tmp_path / "clf.joblib", mmap_mode="r"),
    ):
        clear_backbones()
        assert_array_equal(loaded.logits(X_test), expected)


def test_fine_tuned_wholly_it_needs_the_checkpoint_no_more(checkpoint, tmp_path, tiny):
    X, y, _ = tiny
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(checkpoint.read_bytes())
    whole = network(pretrained=copied, max_iter=1).fit(X, y)
    head = network(pretrained=copied, max_iter=1, trainable="head").fit(X, y)
    assert whole.start_digest_ == head.start_digest_ != ""
    expected = whole.logits(X), head.logits(X)
    clear_backbones()
    assert_array_equal(head.logits(X), expected[1])
    clear_backbones()
    state = dict(network(max_iter=1).fit(X, y).state_delta_)
    save_file(state, copied)
    clear_backbones()
    with pytest.raises(BackboneError, match="holds other weights than those that training started with"):
        head.logits(X)
    copied.unlink()
    with pytest.raises(BackboneError, match="there is no such file"):
        head.logits(X)
    assert_array_equal(whole.logits(X), expected[0])


def test_searched(tiny):
    X, y, _ = tiny
    grid = {"learning_rate": [0.01, 0.1], "model": ["test_resnet", "test_efficientnet"]}
    search = GridSearchCV(network(max_iter=1), grid, cv=2, error_score="raise").fit(list(X), y)
    assert search.predict(list(X)).shape == (12,)


def test_missing_device_predicts_on_the_cpu(tiny):
    X, _, clf = tiny
    elsewhere = pickle.loads(pickle.dumps(clf)).set_params(device="cuda:77")
    with pytest.warns(MissingDeviceWarning, match="cuda:77"):
        assert_array_equal(elsewhere.logits(X), clf.logits(X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elsewhere.predict(X)  # said once


def test_as_member_of_an_open_set_classifier(fitted, low):
    X_test, _ = low[1]
    X_out, _ = digits(range(5, 10), 100, "test")
    names = NAMES[low[1][1]]
    clf = OpenSetClassifier(FrozenEstimator(fitted), MSPDetector(), calibration="in_sample").fit(X_test, names)
    assert clf.is_known(X_test).mean() == pytest.approx(0.95, abs=0.02)
    assert (clf.predict(X_out) == "unknown").mean() > 0.15


# ------------------------------------------------------------------------------------------------------------ errors


def test_errors_name_what_is_wrong(tiny, checkpoint, tmp_path):
    X, y, _ = tiny
    with pytest.raises(ValueError, match=r"model='test_resnt' is unknown to timm.*'test_resnet'"):
        network().set_params(model="test_resnt").fit(X, y)
    with pytest.raises(ValueError, match="one class only, 'red'"):
        network().fit(X, ["red"] * 12)
    with pytest.raises(ValueError, match="12 pictures and y 3 labels"):
        network().fit(X, y[:3])
    with pytest.raises(ValueError, match='trainable="head" leaves random weights'):
        network(trainable="head").fit(X, y)
    with pytest.raises(ValueError, match="cannot read pictures of 50 x 50 pixels"):
        network(image_size=50).set_params(model="test_vit").fit(X, y)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="damaged"):
        network(pretrained=damaged).fit(X, y)
    with pytest.raises(BackboneError, match="no such file"):
        network(pretrained="nowhere.safetensors").fit(X, y)
    with pytest.raises(PictureError, match=r"X\[1\], 'none.png': no such file"):
        network().preprocess([X[0], "none.png", X[1], "none either.png"])


def test_an_unreadable_picture_is_named_in_later_chunks(tiny, monkeypatch):
    X, _, clf = tiny
    monkeypatch.setattr("skclip.tuning._timm_classifier._CHUNK", 2)
    with pytest.raises(PictureError, match=r"X\[5\]"):
        clf.logits([*X[:5], b"no picture", *X[6:]])


def test_an_unreadable_picture_is_named_where_others_weigh_nothing(tiny):
    X, y, _ = tiny
    with pytest.raises(PictureError, match=r"X\[5\]"):
        network().fit([*X[:5], b"no picture", *X[6:]], y, sample_weight=[0, 0, 0, *[1] * 9])


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_iter", 0), ("learning_rate", 0.0), ("augmentation", "mixup"), ("warmup", 1.0), ("pretrained", 3.5)],
)
def test_parameters_out_of_range_are_named(tiny, name, value):
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        network().set_params(**{name: value}).fit(*tiny[:2])


def test_a_failed_fit_leaves_nothing_fitted(tiny):
    X, y, _ = tiny
    clf = network(max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match="finite"):
        clf.set_params(learning_rate=1e20, max_iter=6, warmup=0.0).fit(X, y)
    assert not hasattr(clf, "state_delta_")
    assert not hasattr(clf, "classes_")


def test_probabilities_are_worth_something(fitted, low):
    _, (X_test, y_test) = low
    names = NAMES[y_test]
    assert log_loss(names, fitted.predict_proba(X_test), labels=fitted.classes_) < math.log(5)
