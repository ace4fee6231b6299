"""The training loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy  # noqa: E402

from skclip.tuning._averaging import EMA, Gaussian, WiSE  # noqa: E402
from skclip.tuning._batches import FeatureInputs  # noqa: E402
from skclip.tuning._checkpoint import CheckpointError  # noqa: E402
from skclip.tuning._engine import Group, Recipe, n_batches, train  # noqa: E402
from skclip.tuning._schedules import Position, learning_rate  # noqa: E402

CPU = torch.device("cpu")
RECIPE = Recipe(max_iter=4, batch_size=5, learning_rate=0.3, weight_decay=0.01)


class Task:
    """Three classes of points in two views, told apart by a linear map."""

    def __init__(self, n=17):
        rng = np.random.default_rng(0)
        self.codes = np.arange(n) % 3
        self.views = torch.tensor(rng.normal(size=(n, 2, 4)) + 2 * np.eye(4)[self.codes][:, None], dtype=torch.float32)
        self.learned = {"weight": torch.zeros(4, 3), "bias": torch.zeros(3), "unread": torch.ones(2)}
        self.seen = []  # epoch, rows and weight of each step

    def losses(self, batch):
        weight = self.learned["weight"]
        self.seen.append((batch.epoch, batch.rows.tolist(), weight.detach().clone()))
        noise = 0.1 * torch.randn(batch.inputs.shape, generator=batch.generator)
        scores = (batch.inputs + noise) @ weight + self.learned["bias"]
        each = cross_entropy(scores, batch.codes, reduction="none")
        fit = each.mean() if batch.weights is None else (each * batch.weights).mean()
        return {"fit": fit, "size": 0.01 * weight.square().sum()}

    def train(self, recipe=RECIPE, *, losses=None, weights=None, seed=0, **options):
        return train(
            self.learned,
            losses or self.losses,
            FeatureInputs(self.views),
            self.codes,
            weights,
            recipe,
            generator=torch.Generator().manual_seed(seed),
            device=CPU,
            name="Task",
            **options,
        )


def equal(one, other):
    assert one.loss_curve == other.loss_curve
    assert one.loss_terms == other.loss_terms
    assert one.validation_curve == other.validation_curve
    assert one.n_iter == other.n_iter
    for key, value in one.learned.items():
        assert_array_equal(value, other.learned[key])


def test_a_training_is_stochastic_gradient_descent():
    task = Task()
    task.views = task.views[:, :1]

    def losses(batch):
        return {"fit": cross_entropy(batch.inputs @ task.learned["weight"], batch.codes)}

    trained = task.train(replace(RECIPE, schedule="constant", batch_size=17, weight_decay=0.1), losses=losses)
    x, one_hot = task.views[:, 0].numpy().astype(np.float64), np.eye(3)[task.codes]
    weight = momentum = np.zeros((4, 3))
    for _ in range(4):
        scores = np.exp(x @ weight)
        gradient = x.T @ (scores / scores.sum(axis=1, keepdims=True) - one_hot) / 17
        momentum = 0.9 * momentum + gradient + 0.1 * weight
        weight = weight - 0.3 * momentum
    assert_allclose(trained.learned["weight"], weight, rtol=1e-4, atol=1e-6)
    # a tensor that no loss reads has no gradient, and does not decay either
    assert_array_equal(trained.learned["unread"], [1, 1])


def test_what_is_returned_and_what_the_tensors_hold():
    task = Task()
    given = dict(task.learned)
    trained = task.train()
    assert trained.n_iter == len(trained.loss_curve) == 4
    assert set(trained.loss_terms) == {"fit", "size"}
    assert_allclose(np.sum(list(trained.loss_terms.values()), axis=0), trained.loss_curve)
    assert trained.loss_curve[-1] < trained.loss_curve[1] < trained.loss_curve[0]
    for key, value in trained.learned.items():
        assert_array_equal(task.learned[key].numpy(), value)
        assert value.flags.owndata
    assert not given["weight"].any()
    equal(Task().train(), trained)
    assert Task().train(seed=1).loss_curve != trained.loss_curve


@pytest.mark.parametrize(
    ("n", "shuffle", "sizes"), [(17, True, [5, 5, 5]), (15, True, [5, 5, 5]), (4, True, [4]), (7, False, [5, 2])]
)
def test_an_incomplete_batch_is_left_out_where_there_is_a_full_one(n, shuffle, sizes):
    task, recipe = Task(n), replace(RECIPE, shuffle=shuffle)
    assert n_batches(n, recipe) == len(sizes)
    task.train(recipe)
    for epoch in range(4):
        rows = [rows for at, rows, _ in task.seen if at == epoch]
        assert [len(one) for one in rows] == sizes
        flat = [row for of_batch in rows for row in of_batch]
        assert len(set(flat)) == len(flat)
        assert (flat == sorted(flat)) == (not shuffle)


def test_steps_in_place_of_epochs_end_within_one():
    task = Task()
    trained = task.train(replace(RECIPE, n_steps=7))
    assert len(task.seen) == 7
    assert trained.n_iter == 3


def test_each_step_has_the_rate_of_its_schedule():
    task = Task()
    recipe = replace(RECIPE, momentum=0.0, weight_decay=0.0, schedule="dassl_cosine")
    task.train(recipe, losses=lambda b: (task.losses(b), {"slope": task.learned["weight"].sum()})[1])
    steps = [float(a[2][0, 0] - b[2][0, 0]) for a, b in zip(task.seen, task.seen[1:])]
    expected = [learning_rate("dassl_cosine", 0.3, Position(i // 3, i, 4, 12), 1) for i in range(11)]
    assert_allclose(steps, expected, rtol=1e-3, atol=1e-7)


def test_groups_by_name_and_pattern():
    def slope(task):
        return lambda batch: {"slope": sum(value.sum() for value in task.learned.values())}

    recipe = replace(RECIPE, n_steps=1, schedule="constant", weight_decay=0.5)
    task = Task()
    groups = {"wei*": Group(0.1, 0.0), "weight": Group(5.0), "bias": Group(0.0)}
    trained = task.train(recipe, losses=slope(task), groups=groups)
    assert_allclose(trained.learned["weight"], -0.03, rtol=1e-5)  # the first that fits counts
    assert_array_equal(trained.learned["bias"], 0)
    assert_allclose(trained.learned["unread"], 1 - 0.3 * (1 + 0.5))
    with pytest.raises(
        ValueError, match=r"Task: the group 'visual\.\*' fits none of the learned tensors: weight, bias"
    ):
        Task().train(groups={"visual.*": Group()})


def test_weights_are_relative_to_all_pictures_and_whole_ones_repeat():
    seen = []
    task = Task(6)
    weights = [1, 2, 3, 1, 2, 3]
    task.train(
        replace(RECIPE, batch_size=2, max_iter=1, shuffle=False),
        weights=weights,
        losses=lambda b: (seen.extend(b.weights.tolist()), task.losses(b))[1],
    )
    assert_allclose(seen, np.array(weights) / 2)


def test_gradients_take_the_place_of_the_backward_pass():
    task = Task()
    calls = []

    def gradients(losses, learned):
        calls.append(sorted(losses))
        losses["fit"].backward()
        learned["bias"].grad.zero_()

    trained = task.train(gradients=gradients)
    assert calls == [["fit", "size"]] * 12
    assert trained.learned["weight"].any()
    assert not trained.learned["bias"].any()


def test_the_norm_of_all_gradients_is_bounded():
    task = Task()
    recipe = replace(RECIPE, n_steps=1, schedule="constant", weight_decay=0.0, learning_rate=1.0, clip_norm=0.01)
    moved = task.train(recipe, losses=lambda b: {"steep": 100 * task.learned["weight"].sum() + task.learned["bias"][0]})
    norm = np.sqrt(sum(np.square(value - start).sum() for value, start in zip(moved.learned.values(), (0, 0, 1))))
    assert_allclose(norm, 0.01, rtol=1e-3)


def test_averages():
    def after(n):
        """The tensors of a training of four epochs after the first n."""
        task = Task()
        task.train(replace(RECIPE, n_steps=12))
        return (task.seen[3 * n][2] if n < 4 else task.learned["weight"]).numpy()

    def weight(averaging):
        return Task().train(replace(RECIPE, averaging=averaging)).learned["weight"]

    assert_array_equal(weight(Gaussian(4, 1e-4)), after(4))
    assert_array_equal(weight(Gaussian(2, 1e-4)), after(2))
    assert_allclose(weight(Gaussian(2, float("inf"))), np.mean([after(n) for n in range(1, 5)], axis=0), rtol=1e-5)
    assert_allclose(weight(WiSE(0.5)), after(4) / 2, rtol=1e-6)
    assert_array_equal(weight(EMA(0.0)), after(4))
    assert abs(weight(EMA(0.9))).sum() < abs(after(4)).sum()


def test_early_stopping_keeps_the_best_epoch():
    task, kept = Task(), []
    scores = iter([0.2, 0.5, 0.5, 0.4, 0.9])

    def validate():
        kept.append(task.learned["weight"].detach().clone().numpy())
        return next(scores)

    trained = task.train(replace(RECIPE, max_iter=9, n_iter_no_change=2), validate=validate)
    assert trained.validation_curve == [0.2, 0.5, 0.5, 0.4]
    assert trained.n_iter == 4
    assert_array_equal(trained.learned["weight"], kept[1])
    assert_array_equal(task.learned["weight"].numpy(), kept[1])
    with pytest.raises(ValueError, match="Task: n_iter_no_change=2 needs pictures to validate with"):
        Task().train(replace(RECIPE, n_iter_no_change=2))


def test_validation_sees_the_average_and_training_goes_on_from_the_tensors():
    task, seen = Task(), []

    def validate():
        seen.append(task.learned["weight"].detach().clone().numpy())
        return len(seen)

    trained = task.train(replace(RECIPE, averaging=Gaussian(1, 1e-4)), validate=validate)
    for one in seen:
        assert_array_equal(one, seen[0])
    assert_array_equal(trained.learned["weight"], seen[0])
    plain = Task()
    plain.train()
    for (_, rows, weight), (_, other_rows, other) in zip(task.seen, plain.seen):
        assert rows == other_rows
        assert_array_equal(weight, other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_longer_finite_says_where(bad):
    task = Task()

    def losses(batch):
        return {"fit": task.losses(batch)["fit"], "extra": torch.tensor(bad if batch.step == 7 else 0.0)}

    with pytest.raises(
        ValueError, match=r"loss \(extra\) of Task.*step 8 of 12 \(epoch 3\).*learning rate was"
    ) as caught:
        task.train(losses=losses)
    assert "a smaller learning_rate than 0.3 may help" in str(caught.value)


def test_a_learned_tensor_that_is_no_longer_finite_is_named():
    task = Task()
    with pytest.raises(ValueError, match="learned tensor 'weight' of Task is no longer finite"):
        # the gradient of a root is infinite at 0, while the loss is not
        task.train(replace(RECIPE, n_steps=1), losses=lambda batch: {"root": task.learned["weight"].abs().sqrt().sum()})


class Interrupted:
    """A loss during which someone presses Ctrl-C."""

    def __init__(self, task, step):
        self.task, self.step = task, step

    def __call__(self, batch):
        if batch.step == self.step:
            raise KeyboardInterrupt
        return self.task.losses(batch)


RESUMED = {
    "sgd": RECIPE,
    "adamw": replace(RECIPE, optimizer="adamw", learning_rate=0.01, averaging=EMA(0.9)),
    "steps": replace(RECIPE, n_steps=11, averaging=Gaussian(3, 2.0), schedule="cosine"),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_a_training_that_goes_on_is_the_same_to_the_last_bit(kind, tmp_path):
    recipe = RESUMED[kind]
    whole = Task().train(recipe)
    for epoch in range(4):
        path = tmp_path / f"{epoch}"
        task = Task()
        with pytest.raises(KeyboardInterrupt):
            task.train(recipe, losses=Interrupted(task, 3 * epoch + 1), checkpoint=path)
        equal(Task().train(recipe, checkpoint=path), whole)
        done = Task()
        equal(done.train(recipe, checkpoint=path), whole)
        assert done.seen == []
        assert [one.name for one in tmp_path.iterdir() if one.suffix] == []


def test_early_stopping_goes_on_with_its_best_epoch(tmp_path):
    def run(task, **options):
        # the second epoch is the best
        score = lambda: -abs(len({at for at, *_ in task.seen}) + offset - 2)  # noqa: E731
        return task.train(replace(RECIPE, n_iter_no_change=5), validate=score, **options)

    offset, path = 0, tmp_path / "run"
    whole = run(Task())
    task = Task()
    with pytest.raises(KeyboardInterrupt):
        run(task, losses=Interrupted(task, 10), checkpoint=path)
    offset = 3
    equal(run(Task(), checkpoint=path), whole)
    assert whole.validation_curve == [-1, 0, -1, -2]


def test_another_training_is_refused_by_what_differs(tmp_path):
    path = tmp_path / "run"
    Task().train(checkpoint=path, fingerprint={"model": "a"})
    for changed, told in {
        "recipe": "batch_size is 5 there and 4 here",
        "fingerprint": 'model is "a" there and "b" here',
        "codes": "labels and weights differs",
        "shape": "learned tensors differs",
    }.items():
        task, recipe, model = Task(), RECIPE, "a"
        if changed == "recipe":
            recipe = replace(RECIPE, batch_size=4)
        elif changed == "fingerprint":
            model = "b"
        elif changed == "codes":
            task.codes = task.codes[::-1]
        else:
            task.learned["unread"] = torch.ones(3)
        with pytest.raises(CheckpointError, match="holds another training") as caught:
            task.train(recipe, checkpoint=path, fingerprint={"model": model})
        assert told in str(caught.value)


def test_a_damaged_checkpoint_is_an_error_and_stays(tmp_path):
    path = tmp_path / "run"
    Task().train(checkpoint=path)
    content = path.read_bytes()[:-7]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="remove it to begin anew"):
        Task().train(checkpoint=path)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    task = Task()
    with pytest.raises(CheckpointError, match="is a folder"):
        task.train(checkpoint=tmp_path)
    assert task.seen == []


@pytest.mark.parametrize(
    ("checkpoint", "step", "told"),
    [
        (False, 4, "interrupted in epoch 2 of 4; nothing is kept. With checkpoint=<file>"),
        (True, 1, "interrupted in epoch 1 of 4, before checkpoint="),
        (True, 4, "interrupted in epoch 2 of 4. checkpoint="),
    ],
)
def test_ctrl_c_says_how_to_go_on(checkpoint, step, told, tmp_path):
    task = Task()
    with pytest.raises(KeyboardInterrupt) as caught:
        task.train(losses=Interrupted(task, step), checkpoint=tmp_path / "run" if checkpoint else None)
    assert str(caught.value).startswith(f"Task: {told}")
