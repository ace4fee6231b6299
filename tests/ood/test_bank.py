"""Searches of a bank: by NumPy, by torch, by faiss, and after a pickle."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone

from skclip.ood import KNNDetector, NNGuideDetector, _bank, _detector
from skclip.ood._bank import most_similar_on
from skclip.utils._arrays import unit_rows
from skclip.utils._neighbors import most_similar

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 8)) + 2.0
X_NEW = RNG.normal(size=(70, 8)) + 2.0
TEXT = RNG.normal(size=(3, 8)) + 2.0
VIEWS = X.reshape(100, 3, 8)

DETECTORS = [
    KNNDetector(5),
    NNGuideDetector(TEXT),
    KNNDetector(5, calibration="cv"),
    NNGuideDetector(TEXT, calibration="cv"),
]


@pytest.mark.parametrize("working_memory", [1024, 0.05, 0.001])
@pytest.mark.parametrize("k", [1, 9, 300])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_torch_finds_what_numpy_finds(working_memory, k, dtype):
    torch = pytest.importorskip("torch")
    queries, bank = unit_rows(X_NEW).astype(dtype), unit_rows(X).astype(dtype)
    queries.setflags(write=False)
    with config_context(working_memory=working_memory):
        similarities, indices = most_similar_on(torch.device("cpu"), queries, bank, k)
    expected, places = most_similar(queries, bank, k)
    assert similarities.dtype == dtype
    assert indices.dtype == np.intp
    np.testing.assert_allclose(similarities, expected, atol=4 * np.finfo(dtype).eps)
    if dtype is np.float64:
        np.testing.assert_array_equal(indices, places)


@pytest.fixture
def torch_on_the_cpu(monkeypatch):
    torch = pytest.importorskip("torch")
    asked = []

    def most_similar_there(*args):
        asked.append(args[0])
        return most_similar_on(*args)

    for name in ("resolve", "resolve_fitted"):
        monkeypatch.setattr(_bank, name, lambda device: None if device == "cpu" else torch.device("cpu"))
    monkeypatch.setattr(_bank, "most_similar_on", most_similar_there)
    return asked


@pytest.mark.parametrize("X", [X, VIEWS], ids=["rows", "views"])
@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: f"{type(d).__name__}-{d.calibration}")
def test_a_device_changes_nothing(torch_on_the_cpu, detector, X):
    here = detector.fit(X)
    expected, offset = here.score_samples(X_NEW), here.offset_
    assert not torch_on_the_cpu
    there = detector.set_params(device="cuda").fit(X)
    np.testing.assert_allclose(there.score_samples(X_NEW), expected, rtol=1e-9)
    assert there.offset_ == pytest.approx(offset)
    assert torch_on_the_cpu
    detector.set_params(device="cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: f"{type(d).__name__}-{d.calibration}")
def test_an_accelerator_changes_nothing(detector):
    expected = detector.fit(X).score_samples(X_NEW)
    there = detector.set_params(device="auto").fit(X)
    np.testing.assert_allclose(there.score_samples(X_NEW), expected, rtol=1e-4, atol=1e-5)
    detector.set_params(device="cpu")


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="device='cuda:99' is not on this machine"):
        KNNDetector(5, device="cuda:99").fit(X)


@pytest.mark.parametrize("working_memory", [0.05, 0.001])
@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: f"{type(d).__name__}-{d.calibration}")
def test_blocks_change_nothing(detector, working_memory):
    expected, offset = detector.fit(VIEWS).score_samples(X_NEW), detector.offset_
    with config_context(working_memory=working_memory):
        np.testing.assert_allclose(detector.fit(VIEWS).score_samples(X_NEW), expected, rtol=1e-9)
    assert detector.offset_ == pytest.approx(offset)


class TestFaiss:
    @pytest.fixture(autouse=True)
    def faiss(self):
        pytest.importorskip("faiss")

    @pytest.mark.parametrize("X", [X, VIEWS], ids=["rows", "views"])
    @pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: f"{type(d).__name__}-{d.calibration}")
    def test_flat_is_exact(self, detector, X):
        expected, offset = detector.fit(X).score_samples(X_NEW), detector.offset_
        flat = detector.set_params(backend="faiss").fit(X)
        np.testing.assert_allclose(flat.score_samples(X_NEW), expected, rtol=1e-4, atol=1e-6)
        assert flat.offset_ == pytest.approx(offset, rel=1e-4)
        assert flat.faiss_index_ is None
        detector.set_params(backend="exact")

    @pytest.mark.parametrize("make", [KNNDetector, lambda **kw: NNGuideDetector(TEXT, **kw)], ids=["knn", "nn_guide"])
    def test_an_approximate_index_is_kept(self, make):
        exact = make(n_neighbors=3).fit(X).score_samples(X_NEW)
        near = make(n_neighbors=3, backend="faiss", faiss_factory="IVF7,Flat", faiss_parameters="nprobe=4").fit(X)
        scores = near.score_samples(X_NEW)
        assert (scores <= exact + 1e-6 * np.abs(exact) + 1e-6).all()
        assert (scores < exact - 1e-3 * np.abs(exact)).any()
        assert np.corrcoef(scores, exact)[0, 1] > 0.9
        assert near.faiss_index_.dtype == np.uint8
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(near)).score_samples(X_NEW), scores)
        all_cells = near.set_params(faiss_parameters="nprobe=7").score_samples(X_NEW)
        np.testing.assert_allclose(all_cells, exact, rtol=1e-4, atol=1e-5)

    def test_an_index_grows(self):
        detector = KNNDetector(5, backend="faiss").fit(X[:100]).partial_fit(X[100:])
        expected = KNNDetector(5).fit(X)
        np.testing.assert_allclose(detector.score_samples(X_NEW), expected.score_samples(X_NEW), atol=1e-5)
        assert detector.offset_ == pytest.approx(expected.offset_, rel=1e-4)

    def test_a_new_fit_forgets_the_index(self):
        detector = KNNDetector(5, backend="faiss").fit(X[:50])
        scores = detector.fit(X).score_samples(X_NEW)
        np.testing.assert_allclose(scores, KNNDetector(5).fit(X).score_samples(X_NEW), atol=1e-5)

    def test_bad_words_to_faiss(self):
        with pytest.raises(ValueError, match="faiss_factory='Flut'"):
            KNNDetector(5, backend="faiss", faiss_factory="Flut").fit(X)


def test_without_faiss_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"skclip\[faiss\]"):
        KNNDetector(5, backend="faiss").fit(X)


def test_the_cpu_needs_no_torch():
    code = (
        "import sys, numpy as np\n"
        "from skclip.ood import KNNDetector, NNGuideDetector\n"
        "X = np.eye(4)\n"
        "KNNDetector(2, calibration='cv').fit(X).predict(X)\n"
        "NNGuideDetector(X, n_neighbors=2).fit(X).predict(X)\n"
        "assert 'torch' not in sys.modules and 'faiss' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(
    "detector", [KNNDetector(3), NNGuideDetector(np.eye(3, 6), n_neighbors=3)], ids=lambda d: type(d).__name__
)
def test_a_sample_of_the_bank_sets_the_threshold(detector, views, monkeypatch):
    monkeypatch.setattr(_detector, "_MOST_IN_SAMPLE", 40)
    rng = np.random.default_rng(0)
    rows = np.abs(np.repeat(np.eye(3, 6), 30, axis=0)[:, None] + 0.2 * rng.normal(size=(90, views, 6)))
    rows = rows[:, 0] if views == 1 else rows
    whole = clone(detector).fit(rows)
    drawn = np.random.RandomState(0).choice(90, 40, replace=False)
    scores = whole.score_samples(rows)
    assert whole.offset_ == pytest.approx(np.percentile(scores[drawn], 5), rel=1e-9)
    assert whole.offset_ != pytest.approx(np.percentile(scores, 5), rel=1e-6)
    grown = clone(detector).partial_fit(rows[:50]).partial_fit(rows[50:])
    assert grown.offset_ == pytest.approx(whole.offset_, rel=1e-9)
    # held out, all of them do: which costs no more fits
    held_out = clone(detector).set_params(calibration="cv").fit(rows)
    monkeypatch.setattr(_detector, "_MOST_IN_SAMPLE", 10_000)
    assert clone(held_out).fit(rows).offset_ == held_out.offset_


@pytest.mark.parametrize("backend", ["exact", "faiss"])
@pytest.mark.parametrize("detector", [KNNDetector(5), NNGuideDetector(TEXT)], ids=lambda d: type(d).__name__)
def test_a_threshold_that_cannot_be_set_takes_the_chunk_back(detector, backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    detector = clone(detector).set_params(backend=backend).fit(X[:200])
    state, scores = dict(vars(detector)), detector.score_samples(X_NEW)
    with pytest.raises(ValueError, match="3 features"):
        detector.set_params(calibration=X[:, :3]).partial_fit(X[200:])
    detector.set_params(calibration="in_sample")
    assert vars(detector).keys() == state.keys()
    assert all(value is state[name] for name, value in vars(detector).items() if name.endswith("_"))
    np.testing.assert_array_equal(detector.score_samples(X_NEW), scores)
    whole = clone(detector).fit(X)
    np.testing.assert_allclose(detector.partial_fit(X[200:]).score_samples(X_NEW), whole.score_samples(X_NEW))
