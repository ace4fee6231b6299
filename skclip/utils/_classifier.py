"""Predictions of every classifier that has logits, in scikit-learn's shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import ClassifierMixin

from skclip.utils._docs import fill_doc


@fill_doc
class LogitsMixin(ClassifierMixin):
    """Adds `decision_function`, `predict_proba` and `predict` to a classifier on features with ``logits(X)``.

    Stands left of `SkclipBase`. The class defines ``logits(X) -> (n, K)``, columns in the order of ``classes_``, and
    takes (n, d) or (n, V, d).
    """

    logits: Any
    classes_: NDArray

    def decision_function(self, X: Any) -> NDArray:
        """Confidence scores in scikit-learn's shape.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n, K), or (n,) for two classes
            For two classes the difference of the logits: positive means ``classes_[1]``.
        """
        logits = self.logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> NDArray:
        """Softmax of the logits.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n, K)
            Rows sum to 1; columns in the order of ``classes_``.
        """
        return softmax(self.logits(X), axis=1)

    def predict(self, X: Any) -> NDArray:
        """The label of the largest logit.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n,)
        """
        best = np.argmax(self.logits(X), axis=1)
        return self.classes_[best]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
