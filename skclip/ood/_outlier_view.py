"""Any estimator with a density or a confidence, as an outlier detector."""

from __future__ import annotations

from typing import Any, Self

from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_consistent_length

from skclip.ood._detector import CALIBRATION_CONSTRAINTS, DetectorMixin
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import HasMethods


def _needs_labels(estimator: Any) -> bool:
    if estimator is None or isinstance(estimator, FrozenEstimator):
        return estimator is None
    return get_tags(estimator).target_tags.required


def _knows_classes(view: Any) -> bool:
    return hasattr(view, "classes_") or hasattr(view.estimator, "classes_")


@fill_doc
class OutlierView(DetectorMixin, SkclipBase):
    """The outlier detector inside an estimator that scores samples.

    A classifier that also tells how familiar a picture is - `GDAClassifier`, `COOkeDClassifier`, either of them in a
    `CLIPClassifier` - remains a classifier: its `predict` names a class. This is the other side of it, whose `predict`
    accepts or refuses. Density estimators of scikit-learn serve as well.

    Parameters
    ----------
    estimator : estimator with ``score_samples``, default=None
        Larger scores must mean more in-distribution. Cloned and fitted, and kept as it is in a `FrozenEstimator`. None
        is `GDAClassifier`.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    estimator_ : estimator
        The fitted clone of `estimator`.
    classes_ : ndarray of shape (K,)
        Those of `estimator_`, where it has some.
    %(offset_)s

    Notes
    -----
    Cost: that of `estimator`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.frozen import FrozenEstimator
    >>> from skclip.adapters import GDAClassifier
    >>> from skclip.ood import OutlierView
    >>> rng = np.random.default_rng(0)
    >>> X = np.repeat(np.eye(2, 4), 30, axis=0) + 0.1 * rng.normal(size=(60, 4))
    >>> clf = GDAClassifier().fit(X, np.repeat(["cat", "dog"], 30))
    >>> detector = OutlierView(FrozenEstimator(clf)).fit(X)
    >>> detector.predict([[1.0, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 1.0]])
    array([ 1, -1])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "estimator": [HasMethods(["fit", "score_samples"]), None],
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(self, estimator: Any = None, *, contamination: float = 0.05, calibration: Any = "in_sample") -> None:
        self.estimator = estimator
        self.contamination = contamination
        self.calibration = calibration

    @classmethod
    def of_fitted(cls, estimator: Any, offset: float, contamination: float) -> Self:
        """A view of an estimator that knows its threshold.

        Parameters
        ----------
        estimator : estimator
            Fitted; kept, not copied.
        offset : float
            Its score below which a picture is refused.
        contamination : float
            Share of in-distribution pictures that is said to be refused.

        Returns
        -------
        OutlierView
            Fitted.
        """
        view = cls(FrozenEstimator(estimator), contamination=contamination)
        view._adopt(view.estimator)
        view.offset_ = float(offset)
        return view

    @available_if(_knows_classes)
    def predict_class(self, X: Any) -> NDArray:
        """Label of each picture, whether it would be refused or not.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n,)
        """
        return self.estimator_.predict(X)

    def _learn(self, X: Any, y: ArrayLike | None) -> None:
        estimator = self.estimator
        needs_labels = _needs_labels(estimator)
        if estimator is None:
            # one room further on the same floor, known by its public name
            from skclip.adapters import GDAClassifier

            estimator = GDAClassifier()
        if y is None and needs_labels:
            raise ValueError(
                f"OutlierView needs y, the labels of the in-distribution pictures, to fit its "
                f"{type(estimator).__name__}; got None. Wrap one that is fitted in FrozenEstimator."
            )
        self._adopt(clone(estimator).fit(X, y))
        check_consistent_length(X, y)  # a frozen one has not looked

    def _adopt(self, fitted: Any) -> None:
        self.estimator_ = fitted
        for name in ("classes_", "n_features_in_", "feature_names_in_"):
            if hasattr(fitted, name):
                setattr(self, name, getattr(fitted, name))

    def _scores(self, X: Any) -> NDArray:
        return self.estimator_.score_samples(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.estimator is not None:
            tags.input_tags = get_tags(self.estimator).input_tags
        tags.target_tags.required = _needs_labels(self.estimator)
        return tags
