"""Checks of estimators that take pictures or sentences.

scikit-learn's own checks feed random matrices, so they skip such an estimator but for cloning. These take its
place: each is a function of one estimator, small enough to be encoded in milliseconds
(``model="skclip-tiny"``).

    @parametrize_with_raw_checks([MyPictureTransformer("skclip-tiny")])
    def test_raw_contract(estimator, check):
        check(estimator)
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from inspect import signature
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["NearestMeanClassifier", "check_raw_estimator", "parametrize_with_raw_checks", "raw_checks"]

Check = Callable[[Any], None]

ATOL = 1e-5
N_SAMPLES = 6
UNFITTED_BYTES = 2_000
FITTED_BYTES = 10_000
# loading a fitted estimator, or looking at it, must not need these
BACKBONE_MODULES = ("torch", "open_clip", "torchvision")

_TEXTS = (
    "a red circle",
    "a blue square",
    "a green triangle",
    "a yellow star",
    "a small red ring",
    "a large blue cross",
)


def raw_checks(estimator: BaseEstimator) -> Iterator[Check]:
    """The checks that apply to `estimator`.

    Parameters
    ----------
    estimator : estimator
        A transformer or classifier of pictures (tag ``three_d_array``) or sentences.

    Yields
    ------
    callable
        Takes `estimator`, raises AssertionError where the contract is broken.
    """
    yield check_clone
    yield check_init_is_a_record
    yield check_rows
    yield check_fit_twice
    yield check_prediction_writes_nothing
    yield check_containers
    yield check_permutation_and_subset
    yield check_batch_size
    yield check_empty
    yield check_bad_item
    yield check_pickle_size
    yield check_fresh_process
    yield check_skops
    yield check_missing_device_at_fit
    yield check_device_gone
    yield check_pipeline
    yield check_cross_val_score
    yield check_grid_search
    yield check_threads
    yield check_store
    if not is_classifier(estimator):
        yield check_column_transformer
        yield check_feature_names
        yield check_set_output


def check_raw_estimator(estimator: BaseEstimator) -> None:
    """Run all `raw_checks` on `estimator`; the first that fails raises.

    Parameters
    ----------
    estimator : estimator
        Not changed.
    """
    for check in raw_checks(estimator):
        try:
            check(estimator)
        except SkipTest as reason:
            warnings.warn(f"{check.__name__} skipped: {reason}", stacklevel=2)


def parametrize_with_raw_checks(estimators: Sequence[BaseEstimator]) -> Any:
    """Pytest decorator: one test for each estimator and each of its `raw_checks`.

    Parameters
    ----------
    estimators : sequence of estimators
        As `raw_checks` takes them.

    Returns
    -------
    decorator
        Of a test function with the arguments ``estimator`` and ``check``.
    """
    import pytest

    cases = [
        pytest.param(estimator, check, id=f"{_name(estimator)}-{check.__name__}")
        for estimator in estimators
        for check in raw_checks(estimator)
    ]
    return pytest.mark.parametrize(("estimator", "check"), cases)


def check_clone(estimator: Any) -> None:
    """A clone has equal parameters, and the clone of a fitted estimator holds nothing fitted."""
    fitted = _fit(_fresh(estimator), *_data(estimator))
    copy = clone(fitted)
    assert repr(copy) == repr(fitted)
    assert set(vars(copy)) == set(_init_names(estimator)), "clone keeps more than parameters"


def check_init_is_a_record(estimator: Any) -> None:
    """``__init__`` stores each argument under its name, the very object, and does nothing else."""
    names = _init_names(estimator)
    odd: tuple[Any, ...] = (-1, 3.0, "helloworld", np.array([1.0, 4.0]), [1], {}, [], None)
    for value in odd:
        made = type(estimator)(**dict.fromkeys(names, value))
        assert set(vars(made)) == set(names), f"__init__ sets {set(vars(made)) ^ set(names)}"
        for name in names:
            assert getattr(made, name) is value, f"__init__ changes {name}"


def check_rows(estimator: Any) -> None:
    """One finite row per input; of a transformer float32, and of unit tokens where it normalises."""
    X, y = _data(estimator)
    made = _fit(_fresh(estimator), X, y)
    rows = _answer(made, X)
    assert rows.shape[0] == len(X)
    assert np.isfinite(rows).all()
    if not is_classifier(estimator):
        assert rows.ndim == 2
        assert rows.dtype == np.float32
        if estimator.get_params().get("normalize"):
            tokens = rows.reshape(len(X), getattr(made, "n_tokens_", 1), -1)
            assert_allclose(np.linalg.norm(tokens, axis=2), 1.0, atol=ATOL)


def check_fit_twice(estimator: Any) -> None:
    """``fit`` returns self, leaves parameters and inputs as they are, and gives the same result again."""
    X, y = _data(estimator)
    before = [np.array(x) for x in X]
    made = _fresh(estimator)
    parameters = repr(made)
    assert _fit(made, X, y) is made
    first = _answer(made, X)
    assert repr(made) == parameters, "fit changes parameters"
    assert_allclose(_answer(_fit(made, X, y), X), first, atol=ATOL)
    for x, original in zip(X, before):
        assert_array_equal(x, original)


def check_prediction_writes_nothing(estimator: Any) -> None:
    """Prediction leaves the attributes of the estimator as they are."""
    X, y = _data(estimator)
    made = _fit(_fresh(estimator), X, y)
    before = pickle.dumps(made)
    _answer(made, X)
    assert pickle.dumps(made) == before, "prediction changes the state"


def check_containers(estimator: Any) -> None:
    """Equal rows from every kind of container, and from every kind of picture with the same pixels."""
    X, y = _data(estimator)
    made = _fit(_fresh(estimator), X, y)
    expected = _answer(made, X)
    with tempfile.TemporaryDirectory() as folder:
        for kind, same in _containers(X, Path(folder)).items():
            assert_allclose(_answer(made, same), expected, atol=ATOL, err_msg=f"{kind} differs from a list")


def check_permutation_and_subset(estimator: Any) -> None:
    """A row depends on its input alone: not on its position, nor on its neighbours."""
    X, y = _data(estimator)
    made = _fit(_fresh(estimator), X, y)
    expected = _answer(made, X)
    order = np.random.default_rng(0).permutation(len(X))
    assert_allclose(_answer(made, [X[i] for i in order]), expected[order], atol=ATOL)
    assert_allclose(_answer(made, X[2:4]), expected[2:4], atol=ATOL)


def check_batch_size(estimator: Any) -> None:
    """The batch size changes no row; of an estimator that learns batch by batch, that of prediction."""
    X, y = _data(estimator)
    if _learns_in_batches(estimator):
        made = _fit(_fresh(estimator), X, y)
        rows = [_answer(_set(copy(made), batch_size=size), X) for size in (1, len(X))]
    else:
        rows = [_answer(_fit(_fresh(estimator, batch_size=size), X, y), X) for size in (1, len(X))]
    assert_allclose(rows[0], rows[1], atol=ATOL)


def check_empty(estimator: Any) -> None:
    """An empty list is a ValueError, in `fit` of what reads its samples and in prediction."""
    X, y = _data(estimator)
    made = _fit(_fresh(estimator), X, y)
    assert isinstance(_error(lambda: _answer(made, [])), ValueError)
    if is_classifier(estimator):
        assert isinstance(_error(lambda: _fit(_fresh(estimator), [], y[:0])), ValueError)


def check_bad_item(estimator: Any) -> None:
    """The error of an item that cannot be read names its position."""
    X, y = _data(estimator)
    made = _fit(_fresh(estimator), X, y)
    bad: list[Any] = (
        ["there-is-no-such-file.png", b"not a picture", None, 3.5] if _takes_pictures(estimator) else [None, 3.5]
    )
    for item in bad:
        error = _error(lambda item=item: _answer(made, [*X[:2], item, *X[3:]]))  # type: ignore[misc]
        assert error is not None, f"{item!r} is accepted"
        assert "2" in str(error), f"the position of {item!r} is missing in: {error}"


def check_pickle_size(estimator: Any) -> None:
    """Unfitted within 2 kB; fitted within its arrays and 10 kB: the backbone stays out."""
    size = len(pickle.dumps(clone(estimator)))
    assert size < UNFITTED_BYTES, f"unfitted: {size} bytes"
    made = _fit(_fresh(estimator), *_data(estimator))
    size, arrays = len(pickle.dumps(made)), _array_bytes(made)
    assert size < arrays + FITTED_BYTES, f"fitted: {size} bytes, {arrays} of them arrays"


def check_fresh_process(estimator: Any) -> None:
    """A new process loads a fitted estimator, looks at it without loading a backbone, and gets equal rows.

    Looking is tab completion, ``repr`` and the HTML display.
    """
    X, y = _data(estimator)
    made = _fit(_fresh(estimator), X, y)
    code = f"""
def backbones():
    return set({BACKBONE_MODULES!r}) & set(sys.modules)

assert not backbones(), "unpickling imports a backbone"
for name in dir(estimator):
    getattr(estimator, name, None)
repr(estimator)
assert not backbones(), "a property or the repr imports a backbone"
estimator._repr_html_()
assert not backbones(), "the HTML display imports a backbone"
from skclip.utils.estimator_checks import _answer
np.save(folder / "rows.npy", _answer(estimator, X))
"""
    with tempfile.TemporaryDirectory() as folder:
        _in_fresh_process(code, made, X, Path(folder))
        assert_allclose(np.load(Path(folder) / "rows.npy"), _answer(made, X), atol=ATOL)


def check_skops(estimator: Any) -> None:
    """skops saves and loads the fitted estimator; of its types only those of skclip need trust."""
    try:
        from skops import io as skops_io
    except ImportError:
        raise SkipTest("skops is not installed") from None
    X, y = _data(estimator)
    made = _fit(_fresh(estimator), X, y)
    saved = skops_io.dumps(made)
    foreign = [name for name in skops_io.get_untrusted_types(data=saved) if not name.startswith("skclip.")]
    assert not foreign, f"skops does not trust {foreign}"
    loaded = skops_io.loads(saved, trusted=skops_io.get_untrusted_types(data=saved))
    assert_allclose(_answer(loaded, X), _answer(made, X), atol=ATOL)


def check_missing_device_at_fit(estimator: Any) -> None:
    """``fit`` on a device that is missing raises, naming it."""
    if "device" not in _init_names(estimator):
        raise SkipTest("no parameter device")
    error = _error(lambda: _fit(_fresh(estimator, device="cuda:77"), *_data(estimator)))
    assert error is not None, "fit accepts a device that is missing"
    assert "cuda:77" in str(error), f"the device is missing in: {error}"


def check_device_gone(estimator: Any) -> None:
    """What was fitted on a device that is missing here still predicts, on the CPU."""
    if "device" not in _init_names(estimator):
        raise SkipTest("no parameter device")
    X, y = _data(estimator)
    made = _fit(_fresh(estimator, device="cpu"), X, y)
    expected = _answer(made, X)
    elsewhere = pickle.loads(pickle.dumps(made))
    _set_device(elsewhere, "cuda:77")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = _answer(elsewhere, X)
    assert_allclose(rows, expected, atol=ATOL)


def check_pipeline(estimator: Any) -> None:
    """A `Pipeline` passes a list of raw items through."""
    X, y = _data(estimator)
    pipeline = _in_pipeline(_fresh(estimator)).fit(X, y)
    assert pipeline.predict(X).shape == (len(X),)
    assert set(pipeline.predict(X)) <= set(y)


def check_cross_val_score(estimator: Any) -> None:
    """``cross_val_score`` on lists."""
    X, y = _data(estimator)
    scores = cross_val_score(_in_pipeline(_fresh(estimator)), X, list(y), cv=_folds(), error_score="raise")
    assert np.isfinite(scores).all()


def check_grid_search(estimator: Any) -> None:
    """``GridSearchCV`` in two processes."""
    X, y = _data(estimator)
    with tempfile.TemporaryDirectory() as folder:
        # a folder, because a store in memory is not shared by processes
        pipeline = _in_pipeline(_set(clone(estimator), store=folder))
        free = "batch_size" in _init_names(estimator) and not _learns_in_batches(estimator)
        grid = {"raw__batch_size": [2, 3]} if free else {}
        search = GridSearchCV(pipeline, grid, cv=_folds(), n_jobs=2, error_score="raise").fit(X, y)
        scores = search.cv_results_["mean_test_score"]
        assert_allclose(scores, scores[0])
        assert search.predict(X).shape == (len(X),)


def check_threads(estimator: Any) -> None:
    """Two threads use one fitted estimator at once."""
    X, y = _data(estimator)
    made = _fit(_fresh(estimator), X, y)
    expected = _answer(made, X)
    rows: list[Any] = [None, None]

    def work(i: int) -> None:
        rows[i] = _answer(made, X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in rows:
        assert result is not None, "a thread failed"
        assert_allclose(result, expected, atol=ATOL)


def check_store(estimator: Any) -> None:
    """Equal rows with the feature store off, cold and warm, in memory and in a folder."""
    if "store" not in _init_names(estimator):
        raise SkipTest("no parameter store")
    from skclip.features import clear_store

    X, y = _data(estimator)
    expected = _answer(_fit(_fresh(estimator, store=None), X, y), X)
    clear_store("memory")
    with tempfile.TemporaryDirectory() as folder:
        for store in ("memory", folder):
            for state in ("cold", "warm"):
                rows = _answer(_fit(_fresh(estimator, store=store), X, y), X)
                assert_allclose(rows, expected, atol=ATOL, err_msg=f"store={store!r}, {state}")
        clear_store(folder)


def check_column_transformer(estimator: Any) -> None:
    """A `ColumnTransformer` hands over one column of a data frame."""
    pandas = _needs("pandas")
    X, y = _data(estimator)
    with tempfile.TemporaryDirectory() as folder:
        column = _write_pictures(X, Path(folder)) if _takes_pictures(estimator) else X
        frame = pandas.DataFrame({"raw": column, "number": np.arange(len(X), dtype=float)})
        made = _fit(_fresh(estimator), column, y)
        rows = ColumnTransformer([("raw", _fresh(estimator), "raw")], remainder="passthrough").fit_transform(frame)
        expected = _answer(made, column)
    assert rows.shape == (len(X), expected.shape[1] + 1)
    assert_allclose(rows[:, :-1], expected, atol=ATOL)


def check_feature_names(estimator: Any) -> None:
    """One name per column, each with the class in lower case."""
    X, y = _data(estimator)
    made = _fit(_fresh(estimator), X, y)
    names = made.get_feature_names_out()
    assert_array_equal(names, [f"{_name(estimator).lower()}{i}" for i in range(_answer(made, X).shape[1])])


def check_set_output(estimator: Any) -> None:
    """``set_output`` for pandas and polars, with equal values."""
    X, y = _data(estimator)
    expected = _answer(_fit(_fresh(estimator), X, y), X)
    for library in ("pandas", "polars"):
        module = _needs(library)
        frame = _fit(_fresh(estimator).set_output(transform=library), X, y).transform(X)
        assert isinstance(frame, module.DataFrame)
        assert list(frame.columns) == [f"{_name(estimator).lower()}{i}" for i in range(expected.shape[1])]
        assert_allclose(frame.to_numpy(), expected, atol=ATOL)


def _name(estimator: Any) -> str:
    return type(estimator).__name__


def _learns_in_batches(estimator: Any) -> bool:
    return {"batch_size", "max_iter"} <= set(_init_names(estimator))


def _takes_pictures(estimator: Any) -> bool:
    return bool(get_tags(estimator).input_tags.three_d_array)


def _data(estimator: Any) -> tuple[list[Any], NDArray]:
    """Small pictures (of one size) or sentences, and two alternating labels."""
    y = np.array(["one", "two"] * (N_SAMPLES // 2))
    if not _takes_pictures(estimator):
        return list(_TEXTS), y
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (N_SAMPLES, 1, 1, 3))
    noise = rng.integers(-40, 40, (N_SAMPLES, 40, 40, 3))
    return list(np.clip(colors + noise, 0, 255).astype(np.uint8)), y


def _fresh(estimator: Any, **params: Any) -> Any:
    """A clone that computes every row, its store being off; `params` are set where the class has them."""
    return _set(clone(estimator), **{"store": None, **params})


def _set(estimator: Any, **params: Any) -> Any:
    names = _init_names(estimator)
    return estimator.set_params(**{name: value for name, value in params.items() if name in names})


def _init_names(estimator: Any) -> list[str]:
    return list(signature(type(estimator)).parameters)


def _fit(estimator: Any, X: Any, y: NDArray) -> Any:
    return estimator.fit(X, y)


def _answer(estimator: Any, X: Any) -> NDArray:
    """What the estimator says of X, as an array of numbers with one row per input."""
    for method in ("transform", "predict_proba", "decision_function"):
        if hasattr(estimator, method):
            return np.asarray(getattr(estimator, method)(X))
    raise TypeError(f"{_name(estimator)} has none of transform, predict_proba and decision_function.")


def _error(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _in_pipeline(estimator: Any) -> Pipeline:
    steps = [("raw", estimator)]
    return Pipeline(steps if is_classifier(estimator) else [*steps, ("head", LogisticRegression())])


def _folds() -> StratifiedKFold:
    return StratifiedKFold(2)


def _containers(X: list[Any], folder: Path) -> dict[str, Any]:
    """`X` in other containers and encodings."""
    as_objects = np.empty(len(X), dtype=object)
    as_objects[:] = X
    same: dict[str, Any] = {"tuple": tuple(X), "object array": as_objects}
    columns: list[Any] = X
    if isinstance(X[0], np.ndarray):
        from PIL import Image

        columns = _write_pictures(X, folder)
        same["uint8 batch"] = np.stack(X)
        same["PIL pictures"] = [Image.fromarray(x) for x in X]
        same["encoded bytes"] = [_png(x) for x in X]
        same["path strings"] = columns
        same["paths"] = [Path(path) for path in columns]
    else:
        same["string array"] = np.array(X)
    for library in ("pandas", "polars"):
        try:
            module = _needs(library)
        except SkipTest:
            continue
        same[f"{library} Series"] = module.Series(columns)
        same[f"{library} DataFrame"] = module.DataFrame({"raw": columns})
    return same


def _png(pixels: NDArray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _write_pictures(X: list[Any], folder: Path) -> list[str]:
    paths = [folder / f"picture-{i}.png" for i in range(len(X))]
    for path, pixels in zip(paths, X):
        path.write_bytes(_png(pixels))
    return [str(path) for path in paths]


def _needs(library: str) -> Any:
    try:
        return __import__(library)
    except ImportError:
        raise SkipTest(f"{library} is not installed") from None


def _in_fresh_process(code: str, estimator: Any, X: Any, folder: Path) -> None:
    """Run `code` in a new process that has ``estimator``, ``X`` and ``folder``."""
    (folder / "state.pkl").write_bytes(pickle.dumps((estimator, X)))
    head = (
        "import pickle, sys\nfrom pathlib import Path\nimport numpy as np\nfolder = Path(sys.argv[1])\n"
        "estimator, X = pickle.loads((folder / 'state.pkl').read_bytes())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", head + code, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _array_bytes(value: Any) -> int:
    """Bytes of all arrays in the state of an estimator, those of estimators inside it included."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_array_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_array_bytes, value))
    return _array_bytes(vars(value)) if isinstance(value, BaseEstimator) else 0


def _set_device(estimator: Any, device: str) -> None:
    """Write `device` where fitting on it would have left it: here and in every fitted part."""
    if hasattr(estimator, "device"):
        estimator.device = device
    for name, value in vars(estimator).items():
        if name.endswith("_") and isinstance(value, BaseEstimator):
            _set_device(value, device)


class NearestMeanClassifier(ClassifierMixin, BaseEstimator):
    """A classifier with linear logits for checks of what is built on one: scikit-learn's give outlier detectors no
    labels, and without labels this one tells the halves of its training rows apart."""

    def fit(self, X: Any, y: Any = None) -> NearestMeanClassifier:
        X = validate_data(self, X, dtype=np.float64)
        labels = X[:, 0] > np.median(X[:, 0]) if y is None else np.asarray(y)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        self.means_ = np.stack([X[codes == k].mean(axis=0) for k in range(len(self.classes_))])
        return self

    def logits(self, X: Any) -> NDArray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return X @ self.means_.T - 0.5 * np.square(self.means_).sum(axis=1)

    def predict(self, X: Any) -> NDArray:
        return self.classes_[self.logits(X).argmax(axis=1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags
