"""Pass or fail by the most similar exemplars of each class, and the exemplars as the explanation."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, logit, softmax
from sklearn.utils.validation import check_is_fitted

from skclip.adapters._similarity_vote import nearest_rows, picture_rows
from skclip.utils._arrays import check_features, first_view, row_batches, unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils._class_text import set_unscaled_text
from skclip.utils._classifier import LogitsMixin
from skclip.utils._cosine import cosine_logits
from skclip.utils._docs import fill_doc
from skclip.utils._params import HasMethods, Interval, check_parameters
from skclip.utils._training import check_target, check_training


class _Segment(NamedTuple):
    """Exemplars of one class."""

    rows: NDArray  # their places among all exemplars, ascending
    shares: NDArray  # how much the similarity of each rank counts, best first


@fill_doc
class FewShotInspector(LogitsMixin, SkclipBase):
    """Accept or reject pictures by their most similar nominal and defective exemplars.

    For inspection with some tens of pictures of good and of bad parts: nothing is trained, a new kind of defect is
    taught by one more exemplar, and every verdict comes with the exemplars it rests on (`explain`). Strong where
    defects are of several distinct kinds, each of which looks like its exemplars. Not the right choice where a defect
    is a small change in pictures that vary much otherwise - position, light, several components -, which drowns in
    whole-picture similarity: `GDAClassifier` learns what to disregard.

    ``s_k(x)`` = mean of the `n_neighbors` largest cosines with the exemplars of class k;
    ``P(k) = softmax_k(s_k / temperature)`` [1]_. Rows are scaled to unit length here.

    Parameters
    ----------
    n_neighbors : int, default=1
        Exemplars of each class that count; all of a class that has fewer. 1 is the method of [1]_; more forgive a
        mislabelled exemplar.
    temperature : float, default=0.01
        What similarities are divided by. Only probabilities depend on it, neither their order nor, at the threshold
        0.5, the verdicts. The released code of [1]_ has none, which is 1.0: all its probabilities lie between 0.48
        and 0.52. For probabilities to be believed wrap the inspector in
        `sklearn.calibration.CalibratedClassifierCV`.
    pos_label : label, default=None
        Of two classes, the one that `threshold` is for: the defective one. None is ``classes_[1]``, the last label in
        sorted order.
    threshold : float, default=0.5
        Of two classes, `predict` gives `pos_label` where its probability is above the threshold, and the other label
        where it is equal or below. `sklearn.model_selection.TunedThresholdClassifierCV` finds one by cost.
    balanced : bool, default=False
        The more exemplars a class has, the higher its best similarity. True takes, for every class, the expected
        value of ``s_k`` for a random subset of as many exemplars as the smallest class has: the mean over all
        subsets, without drawing any.
    %(zero_shot)s
        Used where `text_weight` is positive. Not in [1]_, where texts are only attached to exemplars.
    text_weight : float, default=0.0
        Weight of the cosine with the prototype of a class, added to ``s_k``.

    Attributes
    ----------
    %(classes_)s
    pos_label_ : label or None
        The positive class of two; None where there are more.
    X_fit_ : ndarray of shape (n, d)
        Unit rows of the exemplars, in the order of `fit`; of several views of a picture the mean, of unit length
        again.
    codes_ : ndarray of shape (n,)
        Class of each, an index into `classes_`.
    descriptions_ : ndarray of shape (n,), str, or None
        What `fit` was told about each exemplar.
    %(prototypes_)s
    %(zero_shot_)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    GDAClassifier : Learns which directions of the features matter.
    SimilarityVoteClassifier : The nearest exemplars whatever their class.

    Notes
    -----
    With ``n_neighbors=1`` and no text this is the nearest neighbour in cosine distance, with probabilities from the
    best exemplar of each class.

    Exemplars and test pictures must be different pictures: an exemplar is its own best match.

    With one class only there is nothing to compare: outlier detectors are for that.

    Prediction is O(n m d) for m exemplars, in blocks within scikit-learn's ``working_memory``; `fit` keeps one copy
    of the rows. `balanced` and `n_neighbors` above 1 add a partial sort.

    References
    ----------
    .. [1] F. M. Megahed et al., "Adapting OpenAI's CLIP Model for Few-Shot Image Inspection in Manufacturing Quality
       Control: An Expository Case Study with Multiple Application Examples", 2025, arXiv:2501.12596.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import FewShotInspector
    >>> X = np.array([[1.0, 0.0, 0.1], [0.9, 0.1, 0.0], [0.8, 0.6, 0.0], [0.8, 0.0, 0.6]])
    >>> y = ["good", "good", "scratch", "stain"]
    >>> clf = FewShotInspector().fit(X, y, descriptions=["A1", "A2", "left edge", "oil"])
    >>> clf.predict([[0.8, 0.1, 0.5]])
    array(['stain'], dtype='<U7')
    >>> table = clf.explain([[0.8, 0.1, 0.5]])
    >>> table["class"].tolist(), table["description"].tolist()
    (['good', 'scratch', 'stain'], ['A1', 'left edge', 'oil'])
    """

    _set_last = "codes_"
    _parameter_constraints: dict[str, Any] = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "pos_label": "no_validation",
        "threshold": [Interval(Real, 0, 1, closed="both")],
        "balanced": ["boolean"],
        "zero_shot": [HasMethods(["fit"]), "array-like", None],
        "text_weight": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        n_neighbors: int = 1,
        *,
        temperature: float = 0.01,
        pos_label: Any = None,
        threshold: float = 0.5,
        balanced: bool = False,
        zero_shot: Any = None,
        text_weight: float = 0.0,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.temperature = temperature
        self.pos_label = pos_label
        self.threshold = threshold
        self.balanced = balanced
        self.zero_shot = zero_shot
        self.text_weight = text_weight

    def fit(self, X: Any, y: ArrayLike, descriptions: ArrayLike | None = None) -> Self:
        """Keep the exemplars.

        Parameters
        ----------
        %(X_fit)s
        %(y_fit)s
        descriptions : array-like of str of shape (n,), default=None
            One text for each exemplar - a file name, what is wrong with the part -, which `explain` gives back.
            Nothing is computed from it.

        %(self)s

        Raises
        ------
        ValueError
            If y holds one class only, every row of a class is all zeros, X, y and descriptions differ in length,
            `pos_label` is not in y, `pos_label` or `threshold` is set for more than two classes, or `text_weight` is
            positive without `zero_shot`.
        """
        check_parameters(self)
        labels = np.unique(check_target(self, y))
        if len(labels) == 1:
            raise ValueError(
                f"y holds one class only, {labels[0].item()!r}; FewShotInspector compares exemplars of at least two "
                "classes. With nominal pictures alone fit an outlier detector to the features, for example "
                "skclip.ood.KNNDetector(n_neighbors=1, calibration='cv')."
            )
        training = check_training(self, X, y)
        self.pos_label_ = self._positive()
        self.descriptions_ = _checked_descriptions(descriptions, len(training.codes))
        self._set_text()
        self.X_fit_, self.codes_ = picture_rows(training), training.codes
        return self

    def logits(self, X: Any) -> NDArray:
        """Similarity of each row with each class, over the temperature.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n, K), float64
            ``(s_k + text_weight * cos(x, t_k)) / temperature``, columns in the order of `classes_`, also for two
            classes.
        """
        check_is_fitted(self)
        rows = unit_rows(first_view(*check_features(self, X)))
        return self._logits(rows, self._similarities(rows))

    def predict(self, X: Any) -> NDArray:
        """The verdict on each picture.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n,)
            Of two classes `pos_label` where its probability is above `threshold`; a tie is not. Of more, the class of
            the highest probability.
        """
        logits = self.logits(X)
        if len(self.classes_) > 2:
            return self.classes_[np.argmax(logits, axis=1)]
        positive = int(np.flatnonzero(self.classes_ == self.pos_label_)[0])
        above = logits[:, positive] - logits[:, 1 - positive] > logit(float(self.threshold))
        return self.classes_[np.where(above, positive, 1 - positive)]

    def explain(self, X: Any) -> dict[str, NDArray]:
        """What each verdict rests on: the most similar exemplar of each class.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        dict of ndarray of shape (n * K,)
            Columns of a table, ready for ``pandas.DataFrame``, with K lines for each picture in the order of
            `classes_`; ``column.reshape(n, K)`` has one row per picture.

            - "row": position of the picture in X;
            - "class": label;
            - "probability": of this class;
            - "exemplar": position of the most similar exemplar of the class in the X of `fit`;
            - "similarity": its cosine with the picture;
            - "description": of the exemplar; empty where `fit` was told none.
        """
        check_is_fitted(self)
        rows = unit_rows(first_view(*check_features(self, X)))
        shape = len(rows), len(self.classes_)
        best = np.empty(shape, dtype=np.intp)
        similarities, highest = np.empty(shape), np.empty(shape)
        for part, k, segment, found in self._by_class(rows):
            place = np.argmax(found, axis=1)
            best[part, k] = segment.rows[place]
            highest[part, k] = found[np.arange(len(found)), place]
            similarities[part, k] = mean_of_ranks(found, segment.shares)
        logits = self._logits(rows, similarities)
        exemplars, descriptions = best.ravel(), self.descriptions_
        return {
            "row": np.repeat(np.arange(shape[0]), shape[1]),
            "class": np.tile(self.classes_, shape[0]),
            "probability": softmax(logits, axis=1).ravel(),
            "exemplar": exemplars,
            "similarity": highest.ravel(),
            "description": np.full(len(exemplars), "") if descriptions is None else descriptions[exemplars],
        }

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None) -> tuple[NDArray, NDArray]:
        """The most similar exemplars, whatever their class.

        %(kneighbors)s
        """
        check_is_fitted(self)
        return nearest_rows(self, X, n_neighbors, default=int(self.n_neighbors))

    def _positive(self) -> Any:
        n_classes = len(self.classes_)
        if n_classes > 2:
            if self.pos_label is not None or self.threshold != 0.5:
                raise ValueError(
                    f"pos_label={self.pos_label!r} and threshold={self.threshold!r} are for two classes, but y holds "
                    f"{n_classes}; leave them at None and 0.5, or merge the defects into one class."
                )
            return None
        if self.pos_label is None:
            return self.classes_[1].item()
        if self.pos_label not in self.classes_.tolist():
            raise ValueError(f"pos_label={self.pos_label!r} is none of the labels of y, {self.classes_.tolist()}.")
        return self.pos_label

    def _set_text(self) -> None:
        if self.text_weight > 0 and self.zero_shot is None:
            raise ValueError(f"text_weight={self.text_weight!r} weighs class text; pass zero_shot as well.")
        set_unscaled_text(self)

    def _similarities(self, rows: NDArray) -> NDArray:
        """s_k of unit rows, (n, K), float64."""
        similarities = np.empty((len(rows), len(self.classes_)))
        for part, k, segment, found in self._by_class(rows):
            similarities[part, k] = mean_of_ranks(found, segment.shares)
        return similarities

    def _logits(self, rows: NDArray, similarities: NDArray) -> NDArray:
        if self.prototypes_ is not None and self.text_weight > 0:
            similarities = similarities + cosine_logits(rows, self.prototypes_, float(self.text_weight))
        return similarities / float(self.temperature)

    def _by_class(self, rows: NDArray) -> Iterator[tuple[slice, int, _Segment, NDArray]]:
        """Cosines of blocks of unit rows with the exemplars of each class."""
        bank = self.X_fit_.astype(rows.dtype, copy=False)
        segments = self._segments()
        for part in row_batches(len(rows), 3 * rows.dtype.itemsize * len(bank)):
            found = rows[part] @ bank.T
            for k, segment in enumerate(segments):
                yield part, k, segment, found[:, segment.rows]

    def _segments(self) -> list[_Segment]:
        counts = np.bincount(self.codes_)
        members = np.split(np.argsort(self.codes_, kind="stable"), np.cumsum(counts)[:-1])
        n_drawn = int(counts.min()) if self.balanced else None
        return [_Segment(rows, rank_shares(len(rows), int(self.n_neighbors), n_drawn)) for rows in members]


def rank_shares(n: int, n_neighbors: int, n_drawn: int | None = None) -> NDArray:
    """How much the r-th largest of n values counts in the mean of the `n_neighbors` largest.

    Parameters
    ----------
    n : int
    n_neighbors : int
        More than there are means all.
    n_drawn : int, default=None
        The expected value for `n_drawn` of the n values, drawn without replacement: the r-th largest counts with the
        probability that it is drawn and fewer than `n_neighbors` of the r - 1 larger ones are. None draws all.

    Returns
    -------
    ndarray of shape (n_ranks,)
        Sums to 1; ranks that hardly count are cut off.
    """
    if n_drawn is None or n_drawn >= n:
        k = min(n_neighbors, n)
        return np.full(k, 1.0 / k)
    k = min(n_neighbors, n_drawn)
    # by then k are drawn almost surely
    last = min(n, int(np.ceil(n / n_drawn * (k + 6.0 * np.sqrt(k) + 24.0))))
    larger, of_these = np.arange(last)[:, None], np.arange(k)
    ways = _log_binomial(larger, of_these) + _log_binomial(n - 1 - larger, n_drawn - 1 - of_these)
    shares = np.exp(ways - _log_binomial(n - 1, n_drawn - 1)).sum(axis=1)
    return shares / shares.sum()


def _log_binomial(n: Any, k: Any) -> NDArray:
    """Logarithm of "n choose k", ``-inf`` where k is greater than n."""
    rest = np.maximum(np.subtract(n, k), 0)
    return np.where(np.less(n, k), -np.inf, gammaln(np.add(n, 1)) - gammaln(np.add(k, 1)) - gammaln(rest + 1))


def mean_of_ranks(values: NDArray, shares: NDArray) -> NDArray:
    """Sum of the values of each row, largest first, times `shares`, (n,)."""
    n_ranks = len(shares)
    if n_ranks == 1:
        return values.max(axis=1)
    if n_ranks < values.shape[1]:
        values = np.partition(values, values.shape[1] - n_ranks, axis=1)[:, -n_ranks:]
    return np.sort(values, axis=1)[:, ::-1].astype(np.float64) @ shares


def _checked_descriptions(descriptions: ArrayLike | None, n: int) -> NDArray | None:
    if descriptions is None:
        return None
    texts = [descriptions] if isinstance(descriptions, str) else list(np.asarray(descriptions, dtype=object).ravel())
    if isinstance(descriptions, str) or len(texts) != n:
        raise ValueError(f"descriptions must hold one text for each of the {n} exemplars, got {len(texts)}.")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"descriptions[{position}] is {text!r}; a text is needed for every exemplar.")
    return np.array(texts, dtype=np.str_)
