"""Negative labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state

from skclip.features import CLIPTextFeatures
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._prompt_based import TEXT_CONSTRAINTS, PromptDetectorMixin, bytes_of_cosines, cosines
from skclip.ood._scores import free_energy
from skclip.templates._templates import SLOT
from skclip.utils._arrays import check_prototypes, row_batches, unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._names import align_names
from skclip.utils._params import Interval
from skclip.zero_shot import ZeroShotClassifier

_KINDS = ("nouns", "adjectives")


def negative_label_score(known: NDArray, negative: NDArray, n_groups: int, logit_scale: float) -> NDArray:
    """Share of the softmax that falls on class names, beside each group of negatives, averaged over groups, (n,).

    Parameters
    ----------
    known : ndarray of shape (n, K)
        Cosines with the classes.
    negative : ndarray of shape (n, n_groups * m)
        Cosines with the negatives, group by group; without any the share is 1.
    """
    if negative.shape[1] == 0:
        return np.ones(len(known))
    own = free_energy(logit_scale * known)
    groups = negative.reshape(len(negative) * n_groups, -1)
    others = free_energy(logit_scale * groups).reshape(len(negative), n_groups)
    # e^a / (e^a + e^b) of the sums a over classes and b over a group
    return expit(own[:, None] - others).mean(axis=1)


def farthest(candidates: NDArray, known: NDArray, quantile: float, fraction: float) -> NDArray:
    """The `fraction` of `candidates`, at least one, whose `quantile` of cosines with the class names is smallest.

    Parameters
    ----------
    candidates : ndarray of shape (m, d)
        Of any length.
    known : ndarray of shape (K, d)
        Unit rows.

    Returns
    -------
    ndarray of int
        Rows of `candidates`, the farthest first.
    """
    nearness = np.empty(len(candidates))
    for part in row_batches(len(candidates), bytes_of_cosines(*known.shape)):
        nearness[part] = np.quantile(cosines(candidates[part], known), quantile, axis=1)
    # 0.29 of 100 is 29, though 0.29 * 100 is a little less
    n_kept = max(1, int(np.floor(fraction * len(candidates) + 1e-9)))
    return np.argsort(nearness, kind="stable")[:n_kept]


def into_groups(negatives: NDArray, n_groups: int, random_state: Any) -> tuple[NDArray, int]:
    """Shuffle, and leave out what does not fill `n_groups` equal groups; fewer negatives are as many groups of one.

    Returns
    -------
    negatives : ndarray
    n_groups : int
    """
    n_groups = min(n_groups, len(negatives))
    shuffled = check_random_state(random_state).permutation(negatives)
    return shuffled[: len(negatives) // n_groups * n_groups], n_groups


def read_candidates(candidates: Any) -> dict[str, Any]:
    """Candidates by kind, nouns first: a list of str of each, or an array (m, d) of each.

    Raises
    ------
    ValueError
        If there are none, a kind is unknown, words and features are mixed, or features are not finite.
    TypeError
        If one is neither.
    """
    if candidates is None:
        raise ValueError(
            "NegLabelDetector chooses its negatives from candidates, which is None. Pass a list of words, "
            '{"nouns": [...], "adjectives": [...]}, or text features (m, d).'
        )
    given = candidates if isinstance(candidates, Mapping) else {"nouns": candidates}
    unknown = [kind for kind in given if kind not in _KINDS]
    if unknown:
        raise ValueError(f"candidates holds {unknown[0]!r}; its keys can be {' and '.join(map(repr, _KINDS))}.")
    single = not isinstance(candidates, Mapping)
    read = {}
    for kind in _KINDS:
        if kind in given and (isinstance(given[kind], str) or len(given[kind])):
            read[kind] = _words_or_features(given[kind], "candidates" if single else f"candidates[{kind!r}]")
    if not read:
        raise ValueError("candidates is empty; there is nothing to choose negatives from.")
    if len({isinstance(of_kind, list) for of_kind in read.values()}) > 1:
        raise ValueError("candidates mixes words of one kind with text features of the other; pass one or the other.")
    return read


def _words_or_features(values: Any, name: str) -> list[str] | NDArray:
    if isinstance(values, str):
        raise TypeError(f"{name}={values!r:.60} is a single word; pass a list of them.")
    items = list(values)
    if not any(isinstance(item, str) for item in items):
        return check_prototypes(values, name)
    for position, item in enumerate(items):
        if not isinstance(item, str) or not item.strip():
            raise TypeError(f"{name}[{position}] is {item!r}, which is no word.")
    return [str(item) for item in items]


def _are_words(candidates: Mapping[str, Any]) -> bool:
    return all(isinstance(of_kind, list) for of_kind in candidates.values())


def _new_words(candidates: Mapping[str, list[str]], names: Sequence[str]) -> dict[str, list[str]]:
    """Words that are no class name, each once per kind, whatever its case."""
    known = {_folded(name) for name in names}
    words = {}
    for kind, of_kind in candidates.items():
        first: dict[str, str] = {}
        for word in of_kind:
            first.setdefault(_folded(word), word)
        kept = [word for key, word in first.items() if key not in known]
        if kept:
            words[kind] = kept
    if not words:
        raise ValueError("Every one of candidates is the name of a class; there is nothing to choose negatives from.")
    return words


def _folded(word: str) -> str:
    return " ".join(_spaced(word).split()).casefold()


def _spaced(word: str) -> str:
    """As class names are read in templates."""
    return word.replace("_", " ")


def _checked(template: str, name: str) -> str:
    if SLOT not in template:
        raise ValueError(f"{name}={template!r} has no '{{}}' for the word, so every word would get the same sentence.")
    return template


@fill_doc
class NegLabelDetector(PromptDetectorMixin, SkclipBase):
    """Refuse what resembles words that name no class: NegLabel.

    Of many words the farthest from all class names become negatives; a picture is in-distribution so far as a softmax
    over class names and negatives falls on the class names [1]_. Take it where there is a word list of everything
    that may turn up: it knows what the unknown could be, where `MCMDetector` knows the classes only.

    Parameters
    ----------
    %(zero_shot_of_detector)s
    candidates : list of str, array-like of shape (m, d), or mapping, default=None
        What negatives are chosen from, which `fit` cannot do without: words, all of them nouns; or their text
        features, of any length; or ``{"nouns": ..., "adjectives": ...}`` of either, each chosen from separately. The
        paper takes WordNet's. Words are encoded by the model of `zero_shot`, repeated ones once, and class names are
        left out, whatever their case.
    fraction : float, default=0.15
        Share of the candidates that become negatives, rounded down, but at least one of each kind.
    quantile : float, default=0.95
        A candidate is as near to the class names as this quantile of its cosines with them. Only at 1 does the nearest
        name count: at 0.95, the paper's, a synonym of a single class may become a negative.
    n_groups : int, default=100
        Negatives are shuffled into so many groups of equal size, those left over are dropped, and the score is the
        mean over groups. Fewer negatives than `n_groups` make as many groups of one.
    logit_scale : float, default=100.0
        Multiplier of the cosines.
    noun_template : str, default="the nice {}"
        Sentence of a noun, and of a class name where candidates are words and `zero_shot` has `class_names`; else the
        classes are the prototypes of `zero_shot`.
    adjective_template : str, default="This is a {} photo"
        Sentence of an adjective.
    random_state : int, RandomState instance or None, default=0
        Of the shuffle.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    %(classes_of_text)s
    %(prototypes_of_text)s
    negatives_ : ndarray of shape (G * m,)
        Words that became negatives, group by group; of features their positions, nouns first.
    negative_prototypes_ : ndarray of shape (G * m, d)
        Their unit text features.
    n_groups_ : int
        G, the groups in use.
    %(offset_of_text)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    MCMDetector : Needs no candidates.

    Notes
    -----
    Cost: one sentence per candidate at `fit`, ``O(n (K + m) d)`` for m negatives in prediction.

    Without groups (``n_groups=1``) the score is the plain share of the softmax; there the authors' code leaves out the
    softmax.

    References
    ----------
    .. [1] X. Jiang, F. Liu, Z. Fang, H. Chen, T. Liu, F. Zheng and B. Han, "Negative Label Guided OOD Detection with
       Pretrained Vision-Language Models", ICLR 2024, arXiv:2403.20078.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import NegLabelDetector
    >>> text = np.eye(4)
    >>> detector = NegLabelDetector(text[:2], candidates=text[2:], fraction=1.0).fit()
    >>> detector.score_samples([[1.0, 0.2, 0.1, 0.1], [0.2, 0.1, 1.0, 0.1]]).round(3)
    array([1. , 0.5])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **TEXT_CONSTRAINTS,
        "candidates": [Mapping, Sequence, "array-like", None],
        "fraction": [Interval(Real, 0, 1, closed="right")],
        "quantile": [Interval(Real, 0, 1, closed="both")],
        "n_groups": [Interval(Integral, 1, None, closed="left")],
        "logit_scale": [Interval(Real, 0, None, closed="neither")],
        "noun_template": [str],
        "adjective_template": [str],
        "random_state": ["random_state"],
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        zero_shot: Any = None,
        *,
        candidates: Any = None,
        fraction: float = 0.15,
        quantile: float = 0.95,
        n_groups: int = 100,
        logit_scale: float = 100.0,
        noun_template: str = "the nice {}",
        adjective_template: str = "This is a {} photo",
        random_state: int | np.random.RandomState | None = 0,
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.zero_shot = zero_shot
        self.candidates = candidates
        self.fraction = fraction
        self.quantile = quantile
        self.n_groups = n_groups
        self.logit_scale = logit_scale
        self.noun_template = noun_template
        self.adjective_template = adjective_template
        self.random_state = random_state
        self.contamination = contamination
        self.calibration = calibration

    def _learn(self, X: Any, y: ArrayLike | None) -> None:
        super()._learn(X, y)
        labels, rows = self._candidate_text()
        width = self.prototypes_.shape[1]
        for of_kind in rows:
            if of_kind.shape[1] != width:
                raise ValueError(
                    f"candidates are text features of width {of_kind.shape[1]}, but zero_shot holds prototypes of "
                    f"width {width}; both must come from one model."
                )
        starts = np.cumsum([0, *map(len, rows)])
        farthest_of_kind = [farthest(of_kind, self.prototypes_, self.quantile, self.fraction) for of_kind in rows]
        kept = np.concatenate([start + chosen for start, chosen in zip(starts, farthest_of_kind)])
        chosen, self.n_groups_ = into_groups(kept, self.n_groups, self.random_state)
        self.negatives_ = labels[chosen]
        self.negative_prototypes_ = unit_rows(np.concatenate(rows)[chosen].astype(np.float64))

    def _fit_text(self, y: ArrayLike | None) -> Any:
        """The fitted clone of `zero_shot`; names that stand beside words are put into the sentence of nouns."""
        encoder = self._encoder()
        if not _are_words(read_candidates(self.candidates)) or encoder is None or encoder.class_names is None:
            return super()._fit_text(y)
        labels = encoder.classes_ if isinstance(self.zero_shot, FrozenEstimator) else y
        return clone(encoder).set_params(templates=_checked(self.noun_template, "noun_template")).fit(None, labels)

    def _encoder(self) -> ZeroShotClassifier | None:
        """`zero_shot` itself, where it knows a text tower."""
        zero_shot = self.zero_shot.estimator if isinstance(self.zero_shot, FrozenEstimator) else self.zero_shot
        if not isinstance(zero_shot, ZeroShotClassifier) or (
            zero_shot.prototypes is not None and zero_shot.model is None
        ):
            return None
        return zero_shot

    def _candidate_text(self) -> tuple[NDArray, list[NDArray]]:
        """Words or positions (m,), and the text features of each kind in turn."""
        candidates = read_candidates(self.candidates)
        if not _are_words(candidates):
            rows = list(candidates.values())
            return np.arange(sum(map(len, rows))), rows
        encoder = self._encoder()
        if encoder is None:
            raise ValueError(
                "candidates are words, but zero_shot holds prototypes of unknown origin and cannot encode them. Pass "
                "ZeroShotClassifier(model, class_names=...), or candidates as text features, (m, d)."
            )
        names = [] if encoder.class_names is None else align_names(encoder.class_names, self.classes_)[1]
        words = _new_words(candidates, names)
        templates = {kind: _checked(getattr(self, f"{kind[:-1]}_template"), f"{kind[:-1]}_template") for kind in words}
        features = CLIPTextFeatures(
            encoder.model,
            device=encoder.device,
            precision=encoder.precision,
            batch_size=encoder.batch_size,
            store=encoder.store,
        )
        rows = [
            np.asarray(features.transform([templates[kind].replace(SLOT, _spaced(word)) for word in of_kind]))
            for kind, of_kind in words.items()
        ]
        return np.asarray([word for of_kind in words.values() for word in of_kind]), rows

    def _score_rows(self, X: NDArray) -> NDArray:
        known, negative = cosines(X, self.prototypes_), cosines(X, self.negative_prototypes_)
        return negative_label_score(known, negative, self.n_groups_, self.logit_scale)

    def _bytes_per_row(self, n_features: int) -> int:
        return bytes_of_cosines(len(self.prototypes_) + len(self.negative_prototypes_), n_features)
