"""Nearest-neighbour guidance: the energy of the logits times the energies of similar training pictures."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_consistent_length

from skclip.ood._bank import (
    BANK_CONSTRAINTS,
    add_rows,
    check_rows,
    largest_in_bank,
    query_blocks,
    threshold_rows,
    threshold_scores,
)
from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LogitDetectorMixin, fit_classifier
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._scores import free_energy
from skclip.utils._arrays import check_features, first_view, unit_rows
from skclip.utils._base import SkclipBase, SkclipWarning, stack_level, unchanged_on_failure
from skclip.utils._docs import fill_doc
from skclip.utils._faiss import FLAT
from skclip.utils._params import check_parameters


def _learns_nothing(detector: Any) -> bool:
    classifier = detector.classifier
    if isinstance(classifier, FrozenEstimator) or (classifier is not None and not hasattr(classifier, "fit")):
        return True
    raise AttributeError(
        "partial_fit adds rows to the bank, while a classifier would have to be fitted anew on all of them: wrap one "
        f"that is fitted in FrozenEstimator. This is classifier={classifier!r}."
    )


@fill_doc
class NNGuideDetector(LogitDetectorMixin, SkclipBase):
    """Energy of the logits, guided by the training pictures that are most similar.

    ``E(x) mean_i E(f_i) cos(x, f_i)`` over the `n_neighbors` training rows f_i with the largest
    ``E(f_i) cos(x, f_i)`` [1]_, where ``E = log sum_k exp(L_k)`` is the energy of the logits. A picture passes
    that the classifier knows and that resembles pictures it knew well; overconfident logits far from all training
    pictures are damped.

    Parameters
    ----------
    %(classifier)s
        X holds features all the same: they are compared.
    n_neighbors : int, default=10
        Training rows that guide.
    %(bank_search)s
    %(contamination)s
    calibration : {"in_sample", "cv"} or array-like, default="in_sample"
        Pictures whose scores set the threshold.

        - "in_sample": those of `fit`, of more than 10,000 a random 10,000, each of which guides itself.
        - "cv": those of `fit`, each scored without itself: where `classifier` is frozen or an array exactly, by
          leaving its rows out of the bank, otherwise by detectors fitted without its fold (five folds, or as many as
          the smallest class has pictures).
        - in-distribution pictures of their own, as X of `fit`.

    Attributes
    ----------
    bank_ : ndarray of shape (m, d)
        Unit rows of the training pictures, every view of them, times their energies.
    energies_ : ndarray of shape (m,)
        E of each row of the bank.
    %(bank_attributes)s
    %(classifier_)s
    %(classes_of_classifier)s
    %(n_features_in_)s
    %(feature_names_in_)s
    %(offset_)s

    See Also
    --------
    EnergyDetector : Without neighbours.
    KNNDetector : Without logits.

    Notes
    -----
    The product makes sense for positive energies: a negative one turns the guidance around, so that the most similar
    training pictures count against. Logits with a scale of 100, as of class text, have energies of 20 to 30. `fit`
    warns where energies of training pictures are not positive; those of new pictures may be.

    Guidance needs a bank in which every known picture finds similar ones. With four pictures of each class of
    ImageNet (CLIP ViT-B/32) and flowers to be refused, it takes the AUROC of the energy from 0.89 to 0.71.

    The classifier gets X as it is given. Features are scaled to unit length for the comparison. Of X with shape
    (n, V, d) every view is a row of the bank with an energy of its own, and view 0 is scored.

    The bank scaled by its energies makes this one search by inner product. Cost: that of the classifier, and as for
    `KNNDetector`.

    References
    ----------
    .. [1] J. Park et al., "Nearest Neighbor Guidance for Out-of-Distribution Detection", ICCV 2023, arXiv:2309.14888.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import NNGuideDetector
    >>> rng = np.random.default_rng(0)
    >>> X = np.repeat(np.eye(4)[:2], 50, axis=0) + 0.1 * rng.normal(size=(100, 4))
    >>> detector = NNGuideDetector(np.eye(4)[:2]).fit(X)
    >>> detector.predict([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
    array([ 1, -1])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **CLASSIFIER_CONSTRAINTS,
        **BANK_CONSTRAINTS,
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        classifier: Any = None,
        *,
        n_neighbors: int = 10,
        device: str = "cpu",
        backend: str = "exact",
        faiss_factory: str = FLAT,
        faiss_parameters: str | None = None,
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.classifier = classifier
        self.n_neighbors = n_neighbors
        self.device = device
        self.backend = backend
        self.faiss_factory = faiss_factory
        self.faiss_parameters = faiss_parameters
        self.contamination = contamination
        self.calibration = calibration

    @available_if(_learns_nothing)
    def partial_fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Add pictures to the bank; after all chunks the detector is that of one `fit`. The classifier stays.

        Only with a `classifier` in a `FrozenEstimator`, or an array.

        %(partial_fit_bank)s
        """
        check_parameters(self)
        if not hasattr(self, "offset_"):
            return self.fit(X, y)
        rows, n_views = check_rows(self, X, reset=False)
        if y is not None:
            check_consistent_length(rows[::n_views], y)
        with unchanged_on_failure(self):
            self._add(X, rows, n_views)
            self.offset_ = self._offset(threshold_scores(self))
        return self

    def _learn(self, X: Any, y: ArrayLike | None, **params: Any) -> None:
        rows, n_views = check_rows(self, X, reset=True)
        fit_classifier(self, X, y, **params)
        self._add(X, rows, n_views)

    def _add(self, X: Any, rows: NDArray, n_views: int) -> None:
        energies = self._energies(X, rows)
        _check_energies(self.classifier_, energies)
        add_rows(self, unit_rows(rows) * energies[:, None].astype(rows.dtype), n_views)
        self.energies_ = np.concatenate([getattr(self, "energies_", np.empty(0)), energies])

    def _energies(self, X: Any, rows: NDArray) -> NDArray:
        """E of `rows`, which are those of X or views of it; classifiers need not know views."""
        return super()._scores(rows if getattr(X, "ndim", 2) == 3 else X)

    def _score_logits(self, logits: NDArray) -> NDArray:
        return free_energy(logits)

    def _scores(self, X: Any) -> NDArray:
        rows = first_view(*check_features(self, X))
        parts = query_blocks(self, len(rows))
        return self._energies(X, rows) * np.concatenate([self._guidance(unit_rows(rows[part])) for part in parts])

    def _held_out_scores(self, X: Any, y: ArrayLike | None, params: dict[str, Any]) -> NDArray:
        if hasattr(self, "partial_fit"):
            return self._bank_scores(held_out=True)
        return super()._held_out_scores(X, y, params)

    def _bank_scores(self, *, held_out: bool) -> NDArray:
        plain = threshold_rows(self, held_out=held_out)
        guidance = [
            self._guidance(
                unit_rows(self.bank_[plain[part]])
                * np.sign(self.energies_[plain[part], None]).astype(self.bank_.dtype),
                self.pictures_[plain[part]] if held_out else None,
            )
            for part in query_blocks(self, len(plain))
        ]
        return self.energies_[plain] * np.concatenate(guidance)

    def _guidance(self, queries: NDArray, pictures: NDArray | None = None) -> NDArray:
        return largest_in_bank(self, queries, pictures).mean(axis=1, dtype=np.float64)


def _check_energies(classifier: Any, energies: NDArray) -> None:
    bad = np.flatnonzero(~np.isfinite(energies))
    if bad.size:
        raise ValueError(f"The logits of {type(classifier).__name__} have energy {energies[bad[0]]} for row {bad[0]}.")
    n_negative = np.count_nonzero(energies <= 0.0)
    if n_negative:
        warnings.warn(
            f"{n_negative} of {len(energies)} training rows have energies that are not positive (the lowest "
            f"{energies.min():.3g}), which turns their guidance around. Take a classifier with larger logits, such as "
            "class text with its scale of 100, or without guidance EnergyDetector or KNNDetector.",
            SkclipWarning,
            stacklevel=stack_level(),
        )
