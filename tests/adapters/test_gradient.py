from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.utils.validation import check_random_state

from skclip.adapters._gradient import Pictures, Recipe, minimise_cross_entropy
from skclip.utils._training import Training

torch = pytest.importorskip("torch")


def linear(learned, fixed, rows):
    return rows @ learned["coef"].T


def problem(n=40, d=5, n_classes=3, n_views=1, weights=None, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % n_classes
    centres = rng.normal(size=(n_classes, d))
    views = centres[codes][:, None] + rng.normal(size=(n, n_views, d))
    return Pictures(views.astype(dtype), codes, weights), np.zeros((n_classes, d))


def train(pictures, start, seed=0, logits=linear, **params):
    options = {
        key: params.pop(key)
        for key in ("penalty", "constants", "after_epoch", "training_logits", "validation")
        if key in params
    }
    recipe = Recipe(**{"max_iter": 5, "batch_size": 1000, "learning_rate": 0.5, **params})
    return minimise_cross_entropy(
        logits, {"coef": start}, pictures, recipe, random_state=check_random_state(seed), name="test", **options
    )


def literal_descent(pictures, coef, max_iter, learning_rate, momentum=0.0):
    """Gradient descent over all pictures, learning rate along a cosine."""
    rows, codes = pictures.views[:, 0], pictures.codes
    weights = np.ones(len(codes)) if pictures.weights is None else pictures.weights
    shares = weights / weights.sum()
    step, losses = np.zeros_like(coef), []
    for epoch in range(max_iter):
        scores = rows @ coef.T
        losses.append(-shares @ log_softmax(scores, axis=1)[np.arange(len(codes)), codes])
        residual = shares[:, None] * (softmax(scores, axis=1) - np.eye(len(coef))[codes])
        step = momentum * step + residual.T @ rows
        coef = coef - learning_rate * 0.5 * (1 + np.cos(np.pi * epoch / max_iter)) * step
    return coef, losses


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_batch_is_gradient_descent(weighted, momentum):
    weights = np.random.default_rng(1).uniform(0.1, 5, 40) if weighted else None
    pictures, start = problem(weights=weights)
    trained = train(pictures, start, max_iter=7, optimizer_options={"momentum": momentum})
    coef, losses = literal_descent(pictures, start, 7, 0.5, momentum)
    np.testing.assert_allclose(trained.parameters["coef"], coef, rtol=1e-9)
    np.testing.assert_allclose(trained.loss_curve, losses, rtol=1e-9)
    assert trained.n_iter == 7
    assert trained.validation_curve == []


def test_whole_weights_are_repeats_within_one_batch():
    weights = np.random.default_rng(1).integers(1, 4, 40)
    pictures, start = problem()
    repeated = Pictures(np.repeat(pictures.views, weights, axis=0), np.repeat(pictures.codes, weights), None)
    expected = train(repeated, start)
    trained = train(pictures._replace(weights=weights.astype(float)), start)
    np.testing.assert_allclose(trained.parameters["coef"], expected.parameters["coef"], rtol=1e-9)


def test_weights_follow_the_whole_objective_in_small_batches():
    """With a small learning rate an epoch of small batches is one step along the gradient of all pictures."""
    weights = np.random.default_rng(1).uniform(0.1, 10, 40)
    pictures, start = problem(weights=weights)
    rate = 1e-4
    trained = train(pictures, start, max_iter=1, batch_size=1, learning_rate=rate)
    gradient = start - literal_descent(pictures, start, 1, 1.0)[0]
    # 40 steps of learning rates that fall along a cosine: mean 1/2, each picture at its own place of it
    moved = np.mean(
        [
            train(pictures, start, seed, max_iter=1, batch_size=1, learning_rate=rate).parameters["coef"]
            for seed in range(12)
        ],
        axis=0,
    )
    np.testing.assert_allclose(-moved / (rate * 20.5), gradient, atol=0.25 * np.abs(gradient).max())
    assert np.isfinite(trained.loss_curve).all()


def test_no_epochs_leave_the_start():
    pictures, start = problem()
    trained = train(pictures, start + 2, max_iter=0)
    np.testing.assert_array_equal(trained.parameters["coef"], start + 2)
    assert trained.n_iter == 0
    assert trained.loss_curve == []


def test_the_start_is_not_modified_and_may_be_read_only():
    pictures, start = problem()
    for array in (pictures.views, pictures.codes, start):
        array.flags.writeable = False
    train(pictures, start)
    assert not start.any()


def test_equal_seeds_are_equal_and_others_differ():
    pictures, start = problem()
    first, again, other = (train(pictures, start, seed, batch_size=7).parameters["coef"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6


def test_global_generators_are_left_alone():
    pictures, start = problem()
    state = torch.random.get_rng_state()
    train(pictures, start, batch_size=7)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_epoch_draws_one_view_of_each_picture():
    pictures, start = problem(n_views=6)
    seen = []

    def spy(learned, fixed, rows):
        seen.append(rows.numpy().copy())
        return linear(learned, fixed, rows)

    train(pictures, start, max_iter=30, batch_size=16, logits=spy)
    assert len(seen) == 30 * 3
    drawn = np.zeros((30, 40), dtype=int)
    for epoch in range(30):
        rows = np.concatenate(seen[3 * epoch : 3 * epoch + 3])
        assert len(rows) == 40
        places = np.argmin(np.abs(pictures.views[None] - rows[:, None, None]).sum(axis=3).reshape(40, -1), axis=1)
        picture, view = np.divmod(places, 6)
        np.testing.assert_array_equal(np.sort(picture), np.arange(40))
        drawn[epoch, picture] = view
    assert all(len(np.unique(drawn[:, picture])) > 3 for picture in range(40))


def test_float32_stays_float32():
    pictures, start = problem(dtype=np.float32)
    assert train(pictures, start).parameters["coef"].dtype == np.float32


def test_penalty_and_constants_reach_the_loss():
    pictures, start = problem()

    def penalty(learned, fixed):
        return fixed["strength"] * (learned["coef"] - 1.0).square().sum()

    free = train(pictures, start, max_iter=1)
    tied = train(pictures, start, max_iter=1, penalty=penalty, constants={"strength": np.array(2.0)})
    assert tied.loss_curve[0] == pytest.approx(free.loss_curve[0] + 2.0 * start.size)
    np.testing.assert_allclose(tied.parameters["coef"], free.parameters["coef"] + 0.5 * 2 * 2.0, rtol=1e-9)


def test_after_epoch_changes_constants():
    pictures, start = problem()
    seen = []

    def after_epoch(learned, fixed):
        fixed["strength"] += 1.0
        seen.append(float(fixed["strength"]))

    train(pictures, start, max_iter=4, constants={"strength": np.array(0.0)}, after_epoch=after_epoch)
    assert seen == [1.0, 2.0, 3.0, 4.0]


def test_training_logits_know_the_places_of_their_rows():
    pictures, start = problem(n=60)
    held, pictures = pictures.take(np.arange(40, 60)), pictures.take(np.arange(40))
    offsets = np.random.default_rng(0).normal(size=(40, 3))
    seen = []

    def shifted(learned, fixed, rows, places):
        seen.extend(places.tolist())
        np.testing.assert_array_equal(rows.numpy(), pictures.views[places.numpy(), 0])
        return linear(learned, fixed, rows) + fixed["offsets"][places]

    trained = train(
        pictures,
        start,
        max_iter=1,
        batch_size=16,
        learning_rate=1e-12,
        training_logits=shifted,
        constants={"offsets": offsets},
        validation=held,
    )
    assert sorted(seen) == list(range(40))
    expected = -log_softmax(offsets, axis=1)[np.arange(40), pictures.codes].mean()
    assert trained.loss_curve[0] == pytest.approx(expected)
    scores = held.views[:, 0] @ trained.parameters["coef"].T
    assert trained.validation_curve[0] == pytest.approx(np.mean(scores.argmax(axis=1) == held.codes))


def test_training_ends_without_improvement():
    pictures, start = problem()
    trained = train(pictures, start, max_iter=200, tol=10.0, n_iter_no_change=3)
    assert trained.n_iter == 4


def test_the_best_epoch_by_validation_is_returned():
    pictures, start = problem(n=60)
    held = Pictures(pictures.views[40:], pictures.codes[40:], np.arange(1.0, 21.0))
    pictures = pictures.take(np.arange(40))
    states = []

    def after_epoch(learned, fixed):
        states.append(learned["coef"].detach().numpy().copy())

    trained = train(
        pictures, start, max_iter=20, learning_rate=30.0, batch_size=5, validation=held, after_epoch=after_epoch
    )
    scores = [
        np.average(np.argmax(held.views[:, 0] @ coef.T, axis=1) == held.codes, weights=held.weights) for coef in states
    ]
    np.testing.assert_allclose(trained.validation_curve, scores, atol=1e-12)
    assert len(set(scores)) > 1
    np.testing.assert_array_equal(trained.parameters["coef"], states[int(np.argmax(scores))])


def test_patience_counts_epochs_without_a_better_validation_score():
    pictures, start = problem(n=60)
    train_on, held = pictures.split(0.2, check_random_state(0))
    trained = train(train_on, start, max_iter=300, validation=held, n_iter_no_change=5)
    best = int(np.argmax(trained.validation_curve))
    assert trained.n_iter == best + 1 + 5


def test_a_loss_that_overflows_says_what_to_do():
    pictures, start = problem()
    with pytest.raises(
        ValueError, match=r"loss of test is no longer finite in epoch \d+; a smaller learning_rate than"
    ):
        train(
            pictures,
            start,
            max_iter=500,
            learning_rate=1e6,
            penalty=lambda learned, fixed: learned["coef"].pow(4).sum(),
        )


def test_adamw():
    pictures, start = problem()
    trained = train(pictures, start, max_iter=50, optimizer="adamw", learning_rate=0.1)
    assert trained.loss_curve[-1] < 0.7 * trained.loss_curve[0]


def test_unknown_device():
    pictures, start = problem()
    with pytest.raises(ValueError, match="device='abacus'"):
        minimise_cross_entropy(
            linear, {"coef": start}, pictures, Recipe(1, 1, 0.1), random_state=check_random_state(0), device="abacus"
        )


def test_progress_bar_only_when_asked(capfd):
    pictures, start = problem()
    train(pictures, start)
    assert capfd.readouterr().err == ""
    minimise_cross_entropy(
        linear, {"coef": start}, pictures, Recipe(2, 9, 0.1), random_state=check_random_state(0), verbose=1, name="Bar"
    )
    assert "Bar" in capfd.readouterr().err


def test_pictures_of_a_training_set():
    X = np.arange(1.0, 25.0).reshape(8, 3)
    pictures = Pictures.of(Training(X, np.array([0, 1, 0, 1]), np.arange(1.0, 5.0), 2, np.arange(4)))
    assert pictures.views.shape == (4, 2, 3)
    np.testing.assert_allclose(np.linalg.norm(pictures.views, axis=2), 1.0)
    np.testing.assert_allclose(pictures.views[1, 1], X[3] / np.linalg.norm(X[3]))
    rows, codes, weights = pictures.flat()
    np.testing.assert_array_equal(codes, [0, 0, 1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(weights, [1, 1, 2, 2, 3, 3, 4, 4])
    np.testing.assert_array_equal(rows[5], pictures.views[2, 1])


def test_split_keeps_pictures_whole_and_every_class():
    pictures, _ = problem(n=31, n_views=2, weights=np.arange(1.0, 32.0))
    train_on, held = pictures.split(0.25, check_random_state(0))
    assert len(train_on.codes) + len(held.codes) == 31
    np.testing.assert_array_equal(np.bincount(held.codes), np.ceil(0.25 * np.bincount(pictures.codes)))
    np.testing.assert_array_equal(np.sort(np.r_[train_on.weights, held.weights]), pictures.weights)


def test_split_of_single_pictures():
    pictures, _ = problem(n=3)
    with pytest.raises(ValueError, match="early_stopping=False"):
        pictures.split(0.25, check_random_state(0))
