"""Global and local maximum concept matching."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from numpy.typing import NDArray

from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._prompt_based import TEXT_CONSTRAINTS, PromptDetectorMixin, bytes_of_cosines, cosines
from skclip.ood._scores import max_softmax
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval


@fill_doc
class GLMCMDetector(PromptDetectorMixin, SkclipBase):
    """Refuse pictures of which neither the whole nor any region resembles a class name: GL-MCM.

    ``max_k softmax(c / T)_k + lambda max_{p, k} softmax(c_p / T)_k`` [1]_, with c the cosines of the picture and c_p
    those of its region p with the class text. Take it where a picture shows more than one thing and may show a known
    one in a corner: regions let it pass where `MCMDetector` refuses it.

    X holds the tokens of `DenseCLIPFeatures`, whole picture first::

        make_pipeline(
            DenseCLIPFeatures(model, layout="flat", global_token=True),
            GLMCMDetector(zero_shot=ZeroShotClassifier(model, class_names=names)),
        )

    Parameters
    ----------
    %(zero_shot_of_detector)s
    temperature : float, default=1.0
        T, the divisor of the cosines.
    lambda_local : float, default=1.0
        Weight of the regions. With 0 they are not read, and the score is that of `MCMDetector`.
    n_tokens : int, default=None
        Tokens in each row of X. None: its width divided by that of the prototypes.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    %(classes_of_text)s
    %(prototypes_of_text)s
    %(offset_of_text)s
    n_features_in_ : int
        ``n_tokens * d``. Only where it is known: after ``fit(None)`` it takes `n_tokens`.
    %(feature_names_in_)s

    See Also
    --------
    MCMDetector : Reads the whole picture alone.
    skclip.features.DenseCLIPFeatures : Makes the tokens.

    Notes
    -----
    Cost: ``O(n T K d)`` for T tokens, T times that of `MCMDetector`; blocks of pictures stay within scikit-learn's
    ``working_memory``.

    References
    ----------
    .. [1] A. Miyai, Q. Yu, G. Irie and K. Aizawa, "GL-MCM: Global and Local Maximum Concept Matching for Zero-Shot
       Out-of-Distribution Detection", IJCV 2025, arXiv:2304.04521.

    Examples
    --------
    Two classes, and pictures of one global and two local tokens:

    >>> import numpy as np
    >>> from skclip.ood import GLMCMDetector
    >>> whole, known, unknown = [1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]
    >>> detector = GLMCMDetector(np.eye(3)[:2]).fit()
    >>> detector.score_samples([whole + unknown + known, whole + unknown + unknown]).round(3)
    array([1.231, 1.   ])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **TEXT_CONSTRAINTS,
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "lambda_local": [Interval(Real, 0, None, closed="left")],
        "n_tokens": [Interval(Integral, 1, None, closed="left"), None],
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        zero_shot: Any = None,
        *,
        temperature: float = 1.0,
        lambda_local: float = 1.0,
        n_tokens: int | None = None,
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.zero_shot = zero_shot
        self.temperature = temperature
        self.lambda_local = lambda_local
        self.n_tokens = n_tokens
        self.contamination = contamination
        self.calibration = calibration

    def _check_width(self, n_features: int | None) -> None:
        if n_features is not None:
            self._count_tokens(n_features)
        elif self.n_tokens is not None:
            n_features = self.n_tokens * self.prototypes_.shape[1]
            self._count_tokens(n_features)
            self.n_features_in_: int = n_features

    def _count_tokens(self, n_features: int) -> int:
        width = self.prototypes_.shape[1]
        n_tokens, rest = divmod(n_features, width)
        if rest or self.n_tokens not in (None, n_tokens):
            wanted = "a multiple of it" if self.n_tokens is None else f"n_tokens={self.n_tokens} times that"
            raise ValueError(
                f"zero_shot holds prototypes of width {width}, but X has {n_features} features; tokens of one model "
                f"make {wanted}."
            )
        if n_tokens == 1 and self.lambda_local > 0:
            raise ValueError(
                f"X has {n_features} features, as many as the prototypes: one token per picture and none of a region. "
                'Pass what DenseCLIPFeatures(layout="flat", global_token=True) gives, or lambda_local=0.'
            )
        return n_tokens

    def _tokens(self, rows: NDArray) -> NDArray:
        """Tokens (n, T, d), that of the whole picture first."""
        return rows.reshape(len(rows), self._count_tokens(rows.shape[1]), -1)

    def _embeddings(self, rows: NDArray) -> NDArray:
        return self._tokens(rows)[:, 0]

    def _score_rows(self, X: NDArray) -> NDArray:
        tokens = self._tokens(X)
        scores = self._match(tokens[:, 0])
        if self.lambda_local > 0:
            regions = self._match(tokens[:, 1:].reshape(-1, tokens.shape[2]))
            scores += self.lambda_local * regions.reshape(len(X), -1).max(axis=1)
        return scores

    def _match(self, rows: NDArray) -> NDArray:
        return max_softmax(cosines(rows, self.prototypes_), self.temperature)

    def _bytes_per_row(self, n_features: int) -> int:
        return self._count_tokens(n_features) * bytes_of_cosines(*self.prototypes_.shape)
