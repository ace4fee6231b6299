from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from skclip.tuning import _losses as losses

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
LOGITS, TEACHER = 3.0 * RNG.normal(size=(2, 6, 4))
CODES = np.array([0, 3, 1, 1, 2, 0])
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 1.5, 3.0])
TEXT, FROZEN = RNG.normal(size=(2, 4, 5))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def value(term, *arrays, **options):
    """The term of arrays as tensors; an array among the options goes along."""
    tensors = [torch.from_numpy(array) for array in arrays]
    given = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
    return float(term(*tensors, **given))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(smoothing):
    wanted = (1 - smoothing) * np.eye(4)[CODES] + smoothing / 4
    each = -(wanted * log_softmax(LOGITS, axis=1)).sum(axis=1)
    assert value(losses.cross_entropy, LOGITS, CODES, label_smoothing=smoothing) == pytest.approx(each.mean())
    weighted = value(losses.cross_entropy, LOGITS, CODES, weights=WEIGHTS, label_smoothing=smoothing)
    assert weighted == pytest.approx(np.sum(WEIGHTS * each) / 6)


def test_cross_entropy_with_probabilities():
    wanted = softmax(TEACHER, axis=1)
    each = -(wanted * log_softmax(LOGITS, axis=1)).sum(axis=1)
    assert value(losses.cross_entropy, LOGITS, wanted) == pytest.approx(each.mean())
    certain = value(losses.cross_entropy, LOGITS, np.eye(4)[CODES])
    assert certain == pytest.approx(value(losses.cross_entropy, LOGITS, CODES))


def test_weights_of_whole_numbers_are_repeated_pictures():
    counts = np.array([1, 2, 0, 3, 1, 1])
    repeated = np.repeat(np.arange(6), counts)
    for term, a, b in (
        (losses.cross_entropy, LOGITS, CODES),
        (losses.kl_divergence, TEACHER, LOGITS),
        (losses.mse, LOGITS, TEACHER),
        (losses.mean_absolute, LOGITS, TEACHER),
    ):
        weighted = value(term, a, b, weights=counts / counts.mean())
        assert weighted == pytest.approx(value(term, a[repeated], b[repeated]))


def test_sums_over_pictures_are_float32_where_towers_work_in_half_precision():
    """Few tenths of a percent of the loss would be lost, and weighted pictures not be repeated ones."""
    logits, teacher, text, frozen = (torch.tensor(a, dtype=torch.float32) for a in (LOGITS, TEACHER, TEXT, FROZEN))
    codes, weights = torch.from_numpy(CODES), torch.tensor(WEIGHTS, dtype=torch.float32)
    text, frozen = (torch.nn.functional.normalize(rows, dim=1) for rows in (text, frozen))
    cases = {
        "cross_entropy": lambda: losses.cross_entropy(logits, codes, weights),
        "kl_divergence": lambda: losses.kl_divergence(teacher, logits, weights=weights),
        "mean_absolute": lambda: losses.mean_absolute(logits, teacher, weights),
        "mse": lambda: losses.mse(logits, teacher, weights),
        "text_to_text": lambda: losses.text_to_text(text, frozen),
        "nt_xent": lambda: losses.nt_xent(text, frozen),
    }
    for name, term in cases.items():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = term()
        assert found.dtype == torch.float32, name
        assert float(found) == pytest.approx(float(term()), rel=1e-6), name


def test_cosine_distance_to():
    cosines = (unit(TEXT) * unit(FROZEN)).sum(axis=1)
    assert value(losses.cosine_distance_to, TEXT, FROZEN) == pytest.approx(1 - cosines.mean())
    assert value(losses.cosine_distance_to, TEXT, 7 * TEXT) == pytest.approx(0)


@pytest.mark.parametrize(("reduction", "divisor"), [("batch", 6), ("batch_classes", 24)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_divergence(reduction, divisor, temperature):
    p = softmax(TEACHER / temperature, axis=1)
    q = softmax(LOGITS / temperature, axis=1)
    literal = temperature**2 * np.sum(p * (np.log(p) - np.log(q))) / divisor
    options = {"temperature": temperature, "reduction": reduction}
    assert value(losses.kl_divergence, TEACHER, LOGITS, **options) == pytest.approx(literal)
    assert value(losses.kl_divergence, LOGITS + 3.0, LOGITS, **options) == pytest.approx(0, abs=1e-12)


def test_gradient_of_the_divergence_is_that_of_the_cross_entropy_with_the_teacher():
    teacher = torch.from_numpy(TEACHER)
    one, other = (torch.from_numpy(LOGITS).requires_grad_() for _ in range(2))
    losses.kl_divergence(teacher, one, temperature=2.0).backward()
    soft = -(torch.softmax(teacher / 2, dim=1) * torch.log_softmax(other / 2, dim=1)).sum(dim=1).mean() * 4
    soft.backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_a_class_that_neither_thinks_possible_leaves_the_divergence_finite():
    far = np.array([[0.0, -1e6], [2.0, -1e6]])
    assert value(losses.kl_divergence, far, far + 1.0) == 0.0


def test_mean_absolute_and_mse():
    stacked, others = RNG.normal(size=(2, 6, 4, 5))
    assert value(losses.mean_absolute, TEXT, FROZEN) == pytest.approx(np.abs(TEXT - FROZEN).mean())
    assert value(losses.mse, TEXT, FROZEN) == pytest.approx(((TEXT - FROZEN) ** 2).mean())
    assert value(losses.mse, stacked, others) == pytest.approx(((stacked - others) ** 2).mean())
    cosines = (unit(TEXT) * unit(FROZEN)).sum(axis=1)
    assert value(losses.mse, unit(TEXT), unit(FROZEN)) == pytest.approx((2 - 2 * cosines).mean() / 5)


def test_nt_xent():
    temperature, n = 0.3, 4
    vectors = unit(np.concatenate([TEXT, FROZEN]))
    each = []
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        scores = vectors[others] @ vectors[i] / temperature
        each.append(-log_softmax(scores)[others.index((i + n) % (2 * n))])
    assert value(losses.nt_xent, TEXT, FROZEN, temperature=temperature) == pytest.approx(np.mean(each))
    assert value(losses.nt_xent, FROZEN, 2 * TEXT, temperature=temperature) == pytest.approx(np.mean(each))


def test_nt_xent_has_a_finite_gradient():
    one, other = (torch.from_numpy(a).requires_grad_() for a in (TEXT, FROZEN))
    losses.nt_xent(one, other).backward()
    assert torch.isfinite(one.grad).all()
    assert float(other.grad.abs().max()) > 0


def test_text_to_text():
    text, prototypes = unit(RNG.normal(size=(2, 3, 4, 5)))
    each = [
        -log_softmax([text[g, k] @ prototypes[g, other] for other in range(4)])[k] for g in range(3) for k in range(4)
    ]
    assert value(losses.text_to_text, text, prototypes) == pytest.approx(np.mean(each))
    assert value(losses.text_to_text, text[1], prototypes[1]) == pytest.approx(np.mean(each[4:8]))


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_project_gradients(weight):
    for seed in range(20):
        g_d, g_g = np.random.default_rng(seed).normal(size=(2, 3, 5))
        projected = losses.project_gradients(torch.from_numpy(g_d), torch.from_numpy(g_g), weight).numpy()
        a, b = g_d.ravel(), g_g.ravel()
        literal = a - weight * (a @ b) / (b @ b) * b if a @ b < 0 else a
        np.testing.assert_allclose(projected.ravel(), literal, atol=1e-12)
        if weight == 1.0:
            assert projected.ravel() @ b > -1e-12


def test_a_teacher_that_agrees_already_leaves_the_gradient():
    g_d = torch.from_numpy(TEXT)
    assert torch.equal(losses.project_gradients(g_d, torch.zeros_like(g_d)), g_d)


@pytest.mark.parametrize("length", [1e-7, 1e-21])
def test_what_rounding_leaves_of_a_gradient_has_no_direction(length):
    g_d = torch.tensor(TEXT, dtype=torch.float32)
    noise = -length * g_d / g_d.norm()
    assert torch.equal(losses.project_gradients(g_d, noise), g_d)
    # short beside nothing is not short: all of a gradient that opposes is left out at any scale
    small = 1e-21 * g_d
    assert float(losses.project_gradients(small, -small).norm()) < 1e-6 * float(small.norm())
