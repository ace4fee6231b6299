"""Several detectors on one scale, weighed by how they do on known classes held out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_array
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _num_samples, check_consistent_length, check_is_fitted

from skclip.ood._detector import CALIBRATION_CONSTRAINTS, DetectorMixin, folds
from skclip.ood._fusion import (
    evidence,
    held_out_weights,
    mean_log_p,
    normal_score_knots,
    normal_scores,
    smallest,
    weighted_mean,
)
from skclip.ood._knn import KNNDetector
from skclip.ood._mahalanobis import MahalanobisDetector
from skclip.ood._max_logit import MaxLogitDetector
from skclip.ood._mcm import MCMDetector
from skclip.ood._mean_matching import _MeanMatchingDetector
from skclip.ood._nn_guide import NNGuideDetector
from skclip.ood._prompt_based import TEXT_CONSTRAINTS
from skclip.ood._relative_mahalanobis import RelativeMahalanobisDetector
from skclip.utils._arrays import check_prototypes, take_rows
from skclip.utils._base import SkclipBase, SkclipWarning, forget_fit
from skclip.utils._class_text import resolve_text
from skclip.utils._docs import fill_doc
from skclip.utils._members import copy_feature_names, copy_input_tags
from skclip.utils._names import align_names
from skclip.utils._params import StrOptions, check_parameters
from skclip.utils._training import check_target
from skclip.zero_shot import ZeroShotClassifier

Detectors = Sequence[tuple[str, Any]]

_N_GROUPS = 5  # of classes, each held out once
_N_NEIGHBORS = 10

_RULES = {"mean": weighted_mean, "fisher": mean_log_p, "min": smallest}


class _HeldOutClasses(NamedTuple):
    """One group of classes that members are to have no knowledge of."""

    train: NDArray  # positions of pictures of other classes
    known: NDArray  # positions of other pictures of those classes
    unknown: NDArray  # positions of the pictures of the group
    labels: NDArray  # of the group


@fill_doc
class OODEnsemble(DetectorMixin, SkclipBase, _BaseComposition):
    """Refuse what several detectors together find unfamiliar; which of them to believe is learned from known classes.

    No score wins everywhere: on CLIP features the distance to neighbours tells pictures of a subject that the known
    classes hardly cover, and sees nothing of flowers among everyday things, where matching with class names does well.
    Which it will be is unknown before the unknown pictures come. This puts the scores of its members on one scale and
    adds up what they say, from in-distribution pictures alone.

    *Scale.* The score of each member becomes a normal score: its normal quantile among the scores of known pictures
    that the member has not seen (`calibration`), with straight lines beyond the outer 5 percent.

    *What is like a known class, but is none.* The classes of y are dealt into five groups. Each group is held out, with
    its text, from fresh members, which are then asked about its pictures and about new pictures of the classes that
    they know. Logistic regression without negative weights learns from these answers how much likelier normal scores
    are for known pictures. Members that do not help get the weight 0.

    *What is like nothing.* Far from all classes, what tells neighbouring classes apart may fail, and a member of weight
    0 may see clearly. The p-value of every member is turned into an e-value, the bet that it is too small for a known
    picture [1]_, and these are averaged, which is the way to combine them that holds whatever the dependence between
    members.

    The score is ``-log(half the one likelihood ratio + half the other)``: which kind an unknown picture will be is
    left open.

    Parameters
    ----------
    detectors : list of (str, detector), default=None
        Names and detectors with `fit` and `score_samples` (larger = more in-distribution, as here and in
        scikit-learn), cloned; X is passed to them as it is. Each "drop" is left out. A detector in a
        `FrozenEstimator` is kept as it is; as it cannot forget a class, it counts as evidence for what is like nothing
        alone. None is a list for feature matrices:

        - "mcm", "max_logit" and "nn_guide", with `zero_shot`: names, relative to each other and not, and neighbours;
        - "knn": ten neighbours, here as in "nn_guide", or as many as there are rows;
        - "relative_mahalanobis" with covariance "ks", with y;
        - "mahalanobis" with covariance "ks", without `zero_shot`;
        - "mean_matching", with both: `MCMDetector` with the means of the classes for their names.
    zero_shot : ZeroShotClassifier or array-like of shape (K, d), default=None
        Class text of the default members. A classifier is cloned and fitted; wrap it in `FrozenEstimator` to keep its
        fit. Rows of an array belong to the labels 0..K-1. Prototypes of classes absent from y are left out.
    combine : {"evidence", "mean", "fisher", "min"}, default="evidence"
        How normal scores become one.

        - "evidence": as above.
        - "mean": their weighted mean (Stouffer's method).
        - "fisher": the weighted mean of logarithms of p-values (Fisher's method).
        - "min": the smallest of those with a weight, so that any member can refuse.
    weights : array-like of shape (M,), default=None
        How much each of the M members counts, at least 0 each and more than 0 in all. None counts them alike. With
        "evidence" these are their shares in the average of e-values, and a member of weight 0 is left out of the
        regression.
    n_jobs : int, default=None
        Fits that run at the same time. None is 1 unless in a ``joblib.parallel_backend`` context.
    %(contamination)s
    calibration : {"cv", "in_sample"} or array-like, default="cv"
        Pictures whose scores make the scale and set the threshold: those of `fit`, each scored by members fitted
        without its fold (five folds, or as many as the smallest class has pictures); those of `fit` as they are, which
        nearest neighbours and class distances know too well; or in-distribution pictures of their own, as X of `fit`.

    Attributes
    ----------
    detectors_ : list of M detectors
        The fitted members.
    named_detectors_ : dict
        The same by name, in the order of the columns of `member_scores`.
    classes_ : ndarray of shape (K,) or None
        Labels of y, sorted; None without y.
    knots_ : list of M ndarray of shape (2, k)
        Scores of each member and the normal scores that they become, with straight lines between and beyond.
    shares_ : ndarray of shape (M,)
        `weights` over their sum.
    weights_ : ndarray of shape (M,) or None
        Of the regression on held-out classes: log-odds of a known picture per unit of normal score. None where it was
        not learned: `combine` is another, there is no y or fewer than three classes, a class has one picture, or every
        member is frozen.
    intercept_ : float
        Of the regression; 0 without one.
    %(offset_)s
    n_features_in_ : int
        Where the first member that tells has one.
    feature_names_in_ : ndarray
        The same.

    See Also
    --------
    skclip.ensemble.COOkeDClassifier : Averages the probabilities of classifiers instead.

    Notes
    -----
    Where one detector is known to suit the pictures to be refused, it alone is better: an average pays for what it
    guards against. Look at `member_scores` of some of them before.

    Held-out classes are as unknown as anything that known pictures can show, but resemble the known classes; the second
    half is what speaks for pictures that do not.

    Texts of held-out classes are taken from every `zero_shot` and every prototype array given as `classifier` within
    the members; a classifier in a `FrozenEstimator` keeps its classes, and its member then counts as a frozen one.

    Measured on features of a CLIP ViT-B/32: with four pictures and the name of each ImageNet class, or of some classes,
    its AUROC was within 0.03 of the best of 17 single detectors on 16 of 19 sets of unknown pictures, and 0.893 in the
    mean, that of the best of them 0.874. Without names, on eight sets, it was level with the best (0.961 and 0.964).

    Cost: `fit` takes 1 + 5 + 5 fits of each member, for use, for the scale and for held-out classes, fewer where a
    class has fewer pictures; scoring is that of the members. The scale takes 16 bytes per calibration picture and
    member.

    References
    ----------
    .. [1] V. Vovk and R. Wang, "E-values: Calibration, combination and applications", Annals of Statistics 49(3), 2021,
       arXiv:1912.06116.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import KNNDetector, MahalanobisDetector, OODEnsemble
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["cat", "dog", "owl"], 30)
    >>> X = np.repeat(np.eye(3, 8), 30, axis=0) + 0.1 * rng.normal(size=(90, 8))
    >>> members = [("knn", KNNDetector(5)), ("means", MahalanobisDetector(covariance="ks"))]
    >>> detector = OODEnsemble(members).fit(X, y)
    >>> detector.predict(np.eye(8)[[0, 1, 2, 6]])
    array([ 1,  1,  1, -1])
    >>> detector.member_scores(np.eye(8)).shape
    (8, 2)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "detectors": [list, tuple, None],
        **TEXT_CONSTRAINTS,
        "combine": [StrOptions({"evidence", *_RULES})],
        "weights": ["array-like", None],
        "n_jobs": [Integral, None],
        **CALIBRATION_CONSTRAINTS,
    }

    classes_: NDArray | None
    detectors_: list[Any]
    named_detectors_: dict[str, Any]
    shares_: NDArray
    knots_: list[NDArray]
    weights_: NDArray | None
    intercept_: float

    def __init__(
        self,
        detectors: Detectors | None = None,
        *,
        zero_shot: Any = None,
        combine: str = "evidence",
        weights: ArrayLike | None = None,
        n_jobs: int | None = None,
        contamination: float = 0.05,
        calibration: Any = "cv",
    ) -> None:
        self.detectors = detectors
        self.zero_shot = zero_shot
        self.combine = combine
        self.weights = weights
        self.n_jobs = n_jobs
        self.contamination = contamination
        self.calibration = calibration

    def member_scores(self, X: Any) -> NDArray:
        """What each member says, on the scale that they share.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n, M), float64
            Normal scores: standard normal for in-distribution pictures, larger = more in-distribution. Columns in the
            order of `named_detectors_`.
        """
        check_is_fitted(self)
        return self._normal_scores(X)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of this object and of its members.

        Parameters
        ----------
        deep : bool, default=True
            Also the members, by name, and their parameters.

        Returns
        -------
        dict
        """
        return self._get_params("detectors", deep=deep)

    def set_params(self, **params: Any) -> Self:
        """Set parameters of this object, replace members by name, or set their parameters.

        Parameters
        ----------
        **params : dict
            ``name=detector`` replaces a member (or drops it, with "drop"), ``name__parameter=value`` changes one.

        Returns
        -------
        self : object
        """
        return self._set_params("detectors", **params)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = self.detectors is None
        given: Any = self.detectors if _is_list_of_pairs(self.detectors) else []
        return copy_input_tags(tags, [member for _, member in given])

    def _fit(self, X: Any, y: ArrayLike | None, params: dict[str, Any]) -> Self:
        check_parameters(self)
        forget_fit(self)
        self.classes_, labels, codes = None, None, None
        if y is not None:
            labels = check_target(self, y)
            check_consistent_length(X, labels)
            self.classes_, codes = np.unique(labels, return_inverse=True)
        n = _num_samples(X)
        cross_fit = folds(n, labels) if n and isinstance(self.calibration, str) and self.calibration == "cv" else []
        groups = _groups_of_classes(codes, self.classes_) if self.combine == "evidence" else []

        smallest_fit = min([n, *(len(train) for train, _ in cross_fit), *(len(group.train) for group in groups)])
        members = self._checked_members(smallest_fit)
        self.shares_ = self._checked_shares(len(members))
        fit_members = Parallel(n_jobs=self.n_jobs)(
            delayed(_fitted)(name, member, X, labels) for name, member in members
        )
        self.named_detectors_ = {name: fitted for (name, _), fitted in zip(members, fit_members)}
        self.detectors_ = fit_members
        copy_feature_names(self, self.detectors_)

        scores = self._scores_of_calibration(members, X, labels, cross_fit)
        self.knots_ = [normal_score_knots(column) for column in scores.T]
        self.weights_, self.intercept_ = self._learned_weights(members, X, labels, groups)
        self.offset_ = self._offset(self._fused(_on_scale(self.knots_, scores)))
        return self

    def _checked_members(self, n_rows: int) -> list[tuple[str, Any]]:
        """Names and detectors in use; `n_rows` is the size of the smallest set that one is fitted to."""
        if self.detectors is None:
            return self._default_members(n_rows)
        if self.zero_shot is not None:
            raise ValueError(
                "zero_shot is for the members of detectors=None; detectors that are given have class text of their "
                "own. Leave one of the two at None."
            )
        if not _is_list_of_pairs(self.detectors):
            raise ValueError(f"detectors must be a list of (name, detector) or (name, 'drop'); got {self.detectors!r}.")
        self._validate_names([name for name, _ in self.detectors])
        members = [(name, member) for name, member in self.detectors if not _is_dropped(member)]
        for name, member in members:
            if isinstance(member, type) or not (hasattr(member, "fit") and hasattr(member, "score_samples")):
                raise ValueError(
                    f"detector {name!r}, {member!r}, is no detector: it needs fit and score_samples. A detector of the "
                    "logits of a classifier is, for one, MaxLogitDetector(classifier)."
                )
        if not members:
            raise ValueError("detectors holds no detector; at least one is needed, or None for the default ones.")
        return members

    def _default_members(self, n_rows: int) -> list[tuple[str, Any]]:
        n_neighbors = max(1, min(_N_NEIGHBORS, n_rows))
        text = resolve_text(self.zero_shot, self.classes_, None, None)
        has_labels = self.classes_ is not None
        members: list[tuple[str, Any]] = []
        if text is not None:
            known = self.classes_ if text.estimator is None or has_labels else text.estimator.classes_
            # fitted once: class text that warns does so once
            names = ZeroShotClassifier(prototypes=text.prototypes, classes=known, logit_scale=text.logit_scale)
            names = FrozenEstimator(names.fit())
            guided = NNGuideDetector(names, n_neighbors=n_neighbors)
            members += [("mcm", MCMDetector(names)), ("max_logit", MaxLogitDetector(names)), ("nn_guide", guided)]
        members.append(("knn", KNNDetector(n_neighbors)))
        if text is None:
            members.append(("mahalanobis", MahalanobisDetector("ks")))
        if has_labels:
            members.append(("relative_mahalanobis", RelativeMahalanobisDetector("ks")))
        if has_labels and text is not None:
            members.append(("mean_matching", _MeanMatchingDetector()))
        return members

    def _checked_shares(self, n_members: int) -> NDArray:
        if self.weights is None:
            return np.full(n_members, 1.0 / n_members)
        weights = check_array(self.weights, ensure_2d=False, dtype=np.float64, input_name="weights")
        if weights.shape != (n_members,):
            raise ValueError(
                f"weights must hold one number for each of the {n_members} detectors in use; got shape {weights.shape}."
            )
        if weights.min() < 0.0 or not weights.any():
            raise ValueError(f"weights must not be negative, and not all zero; got {weights.tolist()}.")
        return weights / weights.sum()

    def _scores_of_calibration(
        self, members: Detectors, X: Any, y: NDArray | None, cross_fit: list[tuple[NDArray, NDArray]]
    ) -> NDArray:
        """Scores (n, M) of known pictures, which make the scale."""
        if not isinstance(self.calibration, str):
            return self._raw_scores(self.calibration)
        scores = self._raw_scores(X)
        jobs = [
            (column, name, member, train, test)
            for column, (name, member) in enumerate(members)
            if not isinstance(member, FrozenEstimator)
            for train, test in cross_fit
        ]
        answers = Parallel(n_jobs=self.n_jobs)(
            delayed(_answers)(name, member, X, y, train, [test]) for _, name, member, train, test in jobs
        )
        for (column, _, _, _, test), (answer,) in zip(jobs, answers):
            scores[test, column] = answer
        return scores

    def _learned_weights(
        self, members: Detectors, X: Any, y: NDArray | None, groups: list[_HeldOutClasses]
    ) -> tuple[NDArray | None, float]:
        """Weights (M,) and intercept of the regression on held-out classes; None and 0 where none can be held out."""
        columns, jobs = [], []
        for column, (name, member) in enumerate(members):
            forgetful = [_without_classes(member, group.labels, y) for group in groups]
            if self.shares_[column] > 0.0 and forgetful and all(one is not None for one in forgetful):
                columns.append(column)
                jobs += [(name, one, group) for one, group in zip(forgetful, groups)]
        if not columns:
            return None, 0.0
        answers = Parallel(n_jobs=self.n_jobs)(
            delayed(_answers)(name, member, X, y, group.train, [group.known, group.unknown])
            for name, member, group in jobs
        )
        known, unknown = [], []
        for position in range(len(groups)):
            of_group = answers[position :: len(groups)]
            knots = [normal_score_knots(scores) for scores, _ in of_group]
            known.append(_on_scale(knots, np.column_stack([scores for scores, _ in of_group])))
            unknown.append(_on_scale(knots, np.column_stack([scores for _, scores in of_group])))
        weights = np.zeros(len(members))
        weights[columns], intercept = held_out_weights(np.concatenate(known), np.concatenate(unknown))
        return weights, intercept

    def _raw_scores(self, X: Any) -> NDArray:
        """Scores (n, M) of the fitted members."""
        return np.column_stack([_member_scores(name, member, X) for name, member in self.named_detectors_.items()])

    def _normal_scores(self, X: Any) -> NDArray:
        return _on_scale(self.knots_, self._raw_scores(X))

    def _fused(self, normal: NDArray) -> NDArray:
        if self.combine == "evidence":
            return evidence(normal, self.shares_, self.weights_, self.intercept_)
        return _RULES[self.combine](normal, self.shares_)

    def _scores(self, X: Any) -> NDArray:
        return self._fused(self._normal_scores(X))


def _is_dropped(member: Any) -> bool:
    return isinstance(member, str) and member == "drop"


def _is_list_of_pairs(detectors: Any) -> bool:
    if not isinstance(detectors, (list, tuple)):
        return False
    return all(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in detectors)


def _groups_of_classes(codes: NDArray | None, classes: NDArray | None) -> list[_HeldOutClasses]:
    """Classes dealt into groups, each with the pictures to learn from and to ask about; none where that is impossible.

    At least two classes must remain, and every class must have a picture to learn from and one to ask about.
    """
    if codes is None or classes is None or len(classes) < 3 or np.bincount(codes).min() < 2:
        return []
    n_groups = min(_N_GROUPS, len(classes))
    of_class = np.empty(len(classes), dtype=np.intp)
    of_class[np.random.default_rng(0).permutation(len(classes))] = np.arange(len(classes)) % n_groups
    group = of_class[codes]
    of_rows = folds(len(codes), codes)
    found = []
    for number in range(n_groups):
        train, test = of_rows[number % len(of_rows)]
        found.append(
            _HeldOutClasses(
                train=train[group[train] != number],
                known=test[group[test] != number],
                unknown=np.flatnonzero(group == number),
                labels=classes[of_class == number],
            )
        )
    return found


def _on_scale(knots: list[NDArray], scores: NDArray) -> NDArray:
    return np.column_stack([normal_scores(of_member, column) for of_member, column in zip(knots, scores.T)])


def _fitted(name: str, member: Any, X: Any, y: NDArray | None) -> Any:
    try:
        return clone(member).fit(X, y)
    except Exception as error:
        if type(error) in (ValueError, TypeError):
            raise type(error)(f"detector {name!r}: {error}") from error
        error.add_note(f"raised by fit of detector {name!r} of an OODEnsemble")
        raise


def _member_scores(name: str, member: Any, X: Any) -> NDArray:
    scores = np.asarray(member.score_samples(X), dtype=np.float64)
    if scores.shape != (_num_samples(X),):
        raise ValueError(
            f"detector {name!r} gives scores of shape {scores.shape} for {_num_samples(X)} pictures; one number each "
            "is needed."
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise ValueError(f"detector {name!r} gives {scores[bad[0]]} for X[{bad[0]}]; a scale needs numbers.")
    return scores


def _answers(name: str, member: Any, X: Any, y: NDArray | None, train: NDArray, asked: list[NDArray]) -> list[NDArray]:
    """Scores of the pictures at each of the positions `asked`, by a member that has learned from those at `train`."""
    member = clone(member)
    if isinstance(member, DetectorMixin):
        member.set_params(calibration="in_sample")  # its threshold is not asked for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkclipWarning)  # the fit to all pictures has given them
        fitted = _fitted(name, member, take_rows(X, train), None if y is None else y[train])
        return [_member_scores(name, fitted, take_rows(X, rows)) for rows in asked]


def _without_classes(member: Any, held_out: NDArray, y: NDArray | None) -> Any:
    """`member` with text of the classes taken out wherever it has some; None where it holds a fit, which stays."""
    if isinstance(member, FrozenEstimator):
        return None
    changes: dict[str, Any] = {}
    for name, value in sorted(member.get_params(deep=True).items()):
        if any(name.startswith(f"{changed}__") for changed in changes):
            continue
        text = value.estimator if isinstance(value, FrozenEstimator) else value
        if isinstance(text, ZeroShotClassifier):
            changes[name] = _text_without(value, text, held_out, y)
        elif isinstance(value, FrozenEstimator):
            return None
        elif name.rsplit("__")[-1] in ("zero_shot", "classifier") and isinstance(value, (list, tuple, np.ndarray)):
            prototypes = check_prototypes(value, name)
            changes[name] = _kept(prototypes, np.arange(len(prototypes)), None, held_out)
    return clone(member).set_params(**changes)


def _text_without(given: Any, text: ZeroShotClassifier, held_out: NDArray, y: NDArray | None) -> Any:
    if text.prototypes is not None or text.model is not None or text is not given:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkclipWarning)
            fitted = clone(given).fit(None, y)
        return _kept(fitted.prototypes_, fitted.classes_, fitted.logit_scale_, held_out)
    # the model is that of an enclosing CLIPClassifier: names, not vectors
    names, templates, gone = text.class_names, text.templates, set(held_out.tolist())
    if names is not None:
        classes, aligned = align_names(names, text.classes if text.classes is not None else y)
        names = {label: name for label, name in zip(classes.tolist(), aligned) if label not in gone}
    if isinstance(templates, Mapping):
        templates = {label: sentences for label, sentences in templates.items() if label not in gone}
    return clone(text).set_params(class_names=names, templates=templates, classes=None)


def _kept(prototypes: NDArray, classes: NDArray, logit_scale: float | None, held_out: NDArray) -> FrozenEstimator:
    """The text of all other classes, as a fit, which is not made and does not warn again."""
    rows = ~np.isin(classes, held_out)
    text = ZeroShotClassifier(prototypes=prototypes[rows], classes=classes[rows], logit_scale=logit_scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkclipWarning)
        return FrozenEstimator(text.fit())
