"""`TunedCLIPFeatures`: a tuned image tower as the first step of a pipeline."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import HasMethods, check_parameters


@fill_doc
class TunedCLIPFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, SkclipBase):
    """Turn pictures into features by an image tower that was tuned to some classes.

    Stands before any adapter or detector, in the place of `CLIPFeatures`. A tuned classifier gives one of itself by
    ``as_features()``.

    Parameters
    ----------
    classifier : classifier with ``encode_image``, required
        Such as `CLIPLoRAClassifier` or `MaPLeClassifier`. It is cloned and fitted by `fit`; wrapped in
        `FrozenEstimator` it stays as it is.

    Attributes
    ----------
    classifier_ : object
        The fitted classifier.

    Notes
    -----
    Features by which a classifier was tuned lie closer to their classes for the pictures it was tuned with than for
    others: what learns from features learns from other pictures, or of classes too easy to tell apart.

    Examples
    --------
    >>> from skclip.adapters import GDAClassifier
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import CLIPLoRAClassifier
    >>> from sklearn.pipeline import make_pipeline
    >>> world = make_picture_world(32, shapes=["circle", "star"], colors=["red", "blue"])
    >>> tuned = CLIPLoRAClassifier("skclip-tiny", max_iter=1, random_state=0).fit(world.images, world.target)
    >>> pipe = make_pipeline(tuned.as_features(), GDAClassifier()).fit(world.images, world.target)
    >>> pipe.predict(world.images[:2]).shape
    (2,)
    """

    _set_last = "classifier_"
    _reads_pictures = True
    _parameter_constraints: dict[str, list[Any]] = {"classifier": [HasMethods(["fit", "predict"])]}

    def __init__(self, classifier: Any = None) -> None:
        self.classifier = classifier

    def fit(self, X: Any = None, y: ArrayLike | None = None) -> Self:
        """Fit a clone of the classifier; a frozen one reads neither X nor y.

        Parameters
        ----------
        X : sequence of n pictures, default=None
        y : array-like of shape (n,), default=None
            Labels.

        %(self)s

        Raises
        ------
        TypeError
            If the classifier tunes no image tower.
        """
        check_parameters(self)
        if not hasattr(_thawed(self.classifier), "encode_image"):
            raise TypeError(
                f"classifier={self.classifier!r} tunes no image tower; features that are not tuned are those of "
                "CLIPFeatures."
            )
        self.classifier_ = clone(self.classifier).fit(X, y)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features of pictures.

        Parameters
        ----------
        %(pictures)s

        Returns
        -------
        ndarray of shape (n, d), float32
            Unit rows, in input order.
        """
        check_is_fitted(self)
        return _thawed(self.classifier_).encode_image(X)

    @property
    def _n_features_out(self) -> int:
        return _thawed(self.classifier_).text_features_.shape[1]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def _thawed(classifier: Any) -> Any:
    return classifier.estimator if isinstance(classifier, FrozenEstimator) else classifier
