"""Classifiers of different kinds, whose mean probabilities name the class and tell what none of them knows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, softmax
from sklearn import get_config
from sklearn.base import ClassifierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, process_routing
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from skclip._media import are_pictures
from skclip.adapters import LinearProbeClassifier, SimilarityVoteClassifier
from skclip.ensemble._members import (
    Members,
    aligned,
    check_ensemble_target,
    check_members,
    check_two_classes,
    fit_clone,
    fit_router,
    held_out_splits,
    params_of_fold,
    readable_members,
)
from skclip.ensemble._sharing import MemberInputs, front_end, member_inputs
from skclip.ood import OutlierView
from skclip.utils._arrays import take_rows
from skclip.utils._base import SkclipBase, SkclipWarning, forget_fit
from skclip.utils._class_text import resolve_text
from skclip.utils._docs import fill_doc
from skclip.utils._logits import get_logits
from skclip.utils._members import copy_feature_names, copy_input_tags
from skclip.utils._params import Interval, StrOptions, check_parameters, check_unrouted
from skclip.zero_shot import CLIPClassifier, ZeroShotClassifier
from skclip.zero_shot._clip_classifier import fill_models

ZERO_SHOT = "zero_shot"

_N_FOLDS = 5


@fill_doc
class COOkeDClassifier(ClassifierMixin, SkclipBase, _BaseComposition):
    """Mean probabilities of several kinds of classifiers: better answers, and an eye for unknown classes.

    Zero-shot CLIP, a linear probe on its features and a classifier that was trained on pictures err differently. The
    mean of their probabilities is a better classifier than each, and its entropy tells pictures of unknown classes
    better than theirs [1]_: on what none has met, they are unsure or contradict each other.

    Compare it with its best member (`member_probabilities`) on pictures that none has seen. The mean helps where the
    members are about equally good and err differently; **one weak or overconfident member makes it worse than the best
    one alone**. Leave such a member out ("drop"), weigh it less, or calm it by a `temperature`.

    Parameters
    ----------
    estimators : list of (str, classifier), default=None
        Names and classifiers with ``predict_proba``, cloned and fitted; kept as they are in a `FrozenEstimator`. X is
        passed to them as it is: matrices, paths and pictures alike. Of any number and kind: a member set to "drop" is
        left out. None is, for feature matrices, ``ZeroShotClassifier`` of `zero_shot` where that is given (its name is
        "zero_shot"), `LinearProbeClassifier` ("probe") and ``SimilarityVoteClassifier`` ("neighbors"), a classifier of
        ten neighbours.
    zero_shot : ZeroShotClassifier or array-like of shape (K, d), default=None
        Class text for ``estimators=None``; a classifier is cloned, the rows of an array belong to the labels 0..K-1.
        Rows are aligned with y by label. Among `estimators`, a `ZeroShotClassifier` is a member like all others.
    score : {"entropy", "msp"}, default="entropy"
        What `score_samples` gives: the negative entropy of the mean (the score of the paper's tables; the sign is
        flipped here), or its largest probability.
    weights : list of float or {str: float}, default=None
        Weight of each entry of `estimators`, dropped ones included, or by name, where those left out weigh 1. None is
        equal weights.
    logit_scale : float, default=None
        Multiplier of the cosines with `zero_shot`. None is its own, and 100 for an array, as in the paper.
    temperature : float or {str: float}, default=1.0
        The logits of a member are divided by it before they become probabilities: one for all, or by name, where those
        left out have 1. Above 1 it calms a member. Of a member without ``logits``, ``p^(1 / temperature)``, normalised,
        is the same.
    columns : {str: slice or array-like of int}, default=None
        Columns of X for members that take only some, where the features of several models stand side by side.
    tpr : float, default=0.95
        Share of in-distribution pictures, in [0.5, 1), that `as_outlier_detector` accepts.
    calibration : {"cv", "in_sample"}, array-like or None, default="cv"
        Whose scores set that threshold: pictures of `fit`, each scored by members fitted without its fold (five folds,
        or as many as the smallest class has pictures), so that about `tpr` of *new* pictures are accepted; pictures of
        `fit` as they are, cheaper, but refusing too many new ones where members remember their training pictures;
        in-distribution pictures of their own, as X; or none, for the classifier alone.
    n_jobs : int, default=None
        Fits that run at the same time. None is 1 unless in a ``joblib.parallel_backend`` context.

    Attributes
    ----------
    %(classes_)s
    estimators_ : list of A classifiers
        The fitted members.
    named_estimators_ : dict
        The same by name.
    weights_ : dict of {str: float}
        Weights of the members; their sum is 1.
    temperatures_ : dict of {str: float}
        Temperatures of the members.
    offset_ : float or None
        Threshold of `score_samples`; None without `calibration`.
    n_features_in_ : int
        Width of X with `columns`; else that of the first member that tells.
    feature_names_in_ : ndarray
        Where the first member that tells has them.

    See Also
    --------
    TrustOrchestrator : Weighs the members by their measured calibration.
    skclip.ood.EntropyDetector : The score of one classifier.
    sklearn.ensemble.VotingClassifier : With ``voting="soft"``, the same mean of members on one kind of X.

    Notes
    -----
    ``p = sum_a w_a p_a`` with weights of sum 1; ``H = -sum_k p_k log p_k``, between 0 and log K. `disagreement` is H
    less the mean entropy of the members: what they are unsure of only together.

    Columns are aligned by label. A class that a member does not know gets 0 from it; what a member gives to labels that
    y lacks is shared out in proportion among those it holds. Without y, where no member needs it, all must know the
    same classes.

    **Pictures** go through members that begin with `CLIPFeatures` (a `CLIPClassifier`; a `Pipeline`; either of them in
    a `FrozenEstimator` or `CalibratedClassifierCV`) or have a ``preprocess`` of their own
    (`skclip.tuning.TimmClassifier`). Each picture is then read and decoded once, and encoded once by each model,
    however many the members and folds and whether there is a feature store or not. Pictures are walked in chunks of at
    most 256 and about 256 MiB; rows of features outlast them, and, in `fit`, the pixels on which a network is trained.
    Any other member, a grid search among them, is given X and reads for itself. A `ZeroShotClassifier` in a pipeline
    whose ``model`` is None gets that of the `CLIPFeatures` before it. Views with ``random_state=None`` are encoded
    apart.

    ``sample_weight`` goes to the members that take it, with a warning that names those that do not (other metadata
    through metadata routing). It does not weigh the pictures that set the threshold.

    Cost: that of the members, in `fit` times six with ``calibration="cv"``, networks included.

    References
    ----------
    .. [1] G. Humblot-Renaud et al., "COOkeD: Ensemble-based OOD detection in the era of zero-shot CLIP", ICCV 2025
       workshops, arXiv:2507.22576.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ensemble import COOkeDClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["cat", "dog"], 20)
    >>> X = rng.normal(size=(40, 8)) + 4 * np.repeat(np.eye(2, 8), 20, axis=0)
    >>> clf = COOkeDClassifier().fit(X, y)
    >>> clf.predict_proba(X).shape
    (40, 2)
    >>> detector = clf.as_outlier_detector()
    >>> detector.predict([[5, 0, 0, 0, 0, 0, 0, 0], [3, 3, 0, 0, 0, 0, 0, 0]])
    array([ 1, -1])
    """

    _set_last = "offset_"
    _parameter_constraints: dict[str, list[Any]] = {
        "estimators": [list, tuple, None],
        "score": [StrOptions({"entropy", "msp"})],
        "weights": [Mapping, "array-like", None],
        "logit_scale": [Interval(Real, 0, None, closed="neither"), None],
        "temperature": [Interval(Real, 0, None, closed="neither"), Mapping],
        "columns": [Mapping, None],
        "tpr": [Interval(Real, 0.5, 1, closed="left")],
        "calibration": [StrOptions({"cv", "in_sample"}), "array-like", None],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        estimators: Members | None = None,
        *,
        zero_shot: Any = None,
        score: str = "entropy",
        weights: Sequence[float] | Mapping[str, float] | None = None,
        logit_scale: float | None = None,
        temperature: float | Mapping[str, float] = 1.0,
        columns: Mapping[str, Any] | None = None,
        tpr: float = 0.95,
        calibration: Any = "cv",
        n_jobs: int | None = None,
    ) -> None:
        self.estimators = estimators
        self.zero_shot = zero_shot
        self.score = score
        self.weights = weights
        self.logit_scale = logit_scale
        self.temperature = temperature
        self.columns = columns
        self.tpr = tpr
        self.calibration = calibration
        self.n_jobs = n_jobs

    @property
    def score(self) -> Any:
        """``score(X, y, sample_weight=None)``: accuracy on pictures with labels, as of every classifier.

        The parameter of the same name is read by ``get_params()["score"]``.
        """
        return super().score

    @score.setter
    def score(self, score: str) -> None:
        self.__dict__["score"] = score

    def fit(self, X: Any, y: ArrayLike | None = None, **params: Any) -> Self:
        """Fit the members, and set the threshold of `as_outlier_detector`.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the members take.
        y : array-like of shape (n,), default=None
            Labels, at least two different ones. None where no member needs them: all frozen, or class text.
        **params : dict
            ``sample_weight``; with metadata routing enabled, whatever the members request.

        %(self)s

        Raises
        ------
        ValueError
            If `estimators` is no list of names and classifiers, a member has no ``predict_proba``, knows no label of y,
            or answers with NaN; weights, temperatures or columns do not fit the members; X and y differ in length; or y
            holds one class only.
        PictureError
            If a picture cannot be read.

        Warns
        -----
        SkclipWarning
            If a member takes no ``sample_weight``, or ``calibration="cv"`` finds no class with two pictures.
        """
        check_parameters(self)
        forget_fit(self)
        members = self._checked_members()
        if self.estimators is None and are_pictures(X):
            raise ValueError(
                "X holds pictures, and the members of estimators=None take features. Pass "
                "CLIPClassifier(model, COOkeDClassifier(...)), or estimators that read pictures."
            )
        if y is not None or any(_needs_labels(member) for _, member in members):
            y = check_ensemble_target(self, X, y)
        self._check_names("columns", self.columns, members)
        weights, temperatures = self._checked_weights(members), self._checked_temperatures(members)
        self.weights_, self.temperatures_ = weights, temperatures
        codes = None
        if y is not None:
            self.classes_, codes = np.unique(y, return_inverse=True)
            check_two_classes(self, self.classes_, codes, params.get("sample_weight"))
        if self.columns:
            self._set_columns(X)
        members = [(name, self._prepared(name, member, X)) for name, member in members]
        fit_params = self._routed(members, params)

        training = [name for name, member in members if not isinstance(member, FrozenEstimator)]
        inputs = member_inputs(X, members, training=training, answer=self._says)
        given = {name: self._columns_of(name, inputs.of[name]) for name, _ in members}
        self.estimators_ = Parallel(n_jobs=self.n_jobs)(
            delayed(fit_clone)(member, given[name], y, fit_params[name]) for name, member in members
        )
        self.named_estimators_ = {name: fitted for (name, _), fitted in zip(members, self.estimators_)}
        if y is None:
            self.classes_ = _common_classes(self.named_estimators_)
        if not self.columns:
            copy_feature_names(self, self.estimators_)
        self.offset_ = self._offset(inputs, y, codes, dict(members), given, fit_params)
        return self

    def predict_proba(self, X: Any) -> NDArray:
        """Weighted mean of the members' probabilities.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the members take.

        Returns
        -------
        ndarray of shape (n, K), float64
            Rows sum to 1; columns in the order of `classes_`.
        """
        check_is_fitted(self)
        return self._mean(self._inputs(X))

    def predict(self, X: Any) -> NDArray:
        """The label of the highest mean probability.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the members take.

        Returns
        -------
        ndarray of shape (n,)
        """
        best = np.argmax(self.predict_proba(X), axis=1)
        return self.classes_[best]

    def score_samples(self, X: Any) -> NDArray:
        """How much each picture looks like one of the known classes: negative entropy or largest probability of the
        mean.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the members take.

        Returns
        -------
        ndarray of shape (n,), float64
            Larger = more in-distribution; in [-log K, 0] for "entropy", in [1 / K, 1] for "msp".
        """
        return self._score(self.predict_proba(X))

    def disagreement(self, X: Any) -> NDArray:
        """How far the members contradict each other: entropy of their mean less the mean of their entropies.

        The (weighted) Jensen-Shannon divergence of their answers: 0 where all give the same, whether they are sure or
        not, and at most the logarithm of the number of members.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the members take.

        Returns
        -------
        ndarray of shape (n,), float64
            At least 0; larger = more contradiction.
        """
        check_is_fitted(self)
        mean: Any = 0.0
        of_members: Any = 0.0
        for _, weight, answers in self._each(self._inputs(X)):
            mean = mean + weight * answers
            of_members = of_members + weight * _entropy(answers)
        return np.maximum(_entropy(mean) - of_members, 0.0)

    def member_probabilities(self, X: Any) -> dict[str, NDArray]:
        """What each member says, its temperature applied.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the members take.

        Returns
        -------
        dict of {str: ndarray of shape (n, K)}
            By name; columns in the order of `classes_`.
        """
        check_is_fitted(self)
        return {name: answers for name, _, answers in self._each(self._inputs(X))}

    def as_outlier_detector(self, X: Any = None) -> OutlierView:
        """This ensemble as an outlier detector, whose ``predict`` accepts (1) or refuses (-1) a picture.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures, default=None
            In-distribution pictures of which `tpr` are to be accepted, better ones that `fit` has not seen. None is the
            threshold `offset_`.

        Returns
        -------
        OutlierView
            Fitted: ``score_samples`` of this ensemble, ``decision_function``, ``predict``, ``predict_class``,
            ``calibrate``. It holds this ensemble, not a copy.

        Raises
        ------
        ValueError
            If X is None and the ensemble was fitted with ``calibration=None``.
        """
        check_is_fitted(self)
        offset = self.offset_ if X is None else self._threshold(self.predict_proba(X))
        if offset is None:
            raise ValueError(
                "calibration=None sets no threshold; pass in-distribution pictures, as_outlier_detector(X), or fit "
                "with another calibration."
            )
        return OutlierView.of_fitted(self, offset, round(1.0 - self.tpr, 12))

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
        params = self._get_params("estimators", deep=deep)
        params["score"] = self.__dict__["score"]
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters of this object, replace members by name, or set their parameters.

        Parameters
        ----------
        **params : dict
            ``name=classifier`` replaces a member (or drops it, with "drop"), ``name__parameter=value`` changes one.

        Returns
        -------
        self : object
        """
        return self._set_params("estimators", **params)

    def get_metadata_routing(self) -> MetadataRouter:
        """Metadata routing of this object.

        Returns
        -------
        MetadataRouter
            `fit` hands metadata to that of the members.
        """
        return fit_router(self, readable_members(self.estimators, _default_members()))

    def __sklearn_tags__(self) -> Any:
        members = readable_members(self.estimators, _default_members())
        tags = copy_input_tags(super().__sklearn_tags__(), [member for _, member in members])
        tags.target_tags.required = any(_needs_labels(member) for _, member in members)
        return tags

    def _checked_members(self) -> list[tuple[str, Any]]:
        members = check_members(self, "estimators", _default_members(), kind="member")
        if self.zero_shot is None:
            return members
        if self.estimators is not None:
            raise ValueError(
                "zero_shot is class text for the members of estimators=None; put a ZeroShotClassifier into estimators."
            )
        return [(ZERO_SHOT, ZeroShotClassifier()), *members]  # its prototypes follow when the classes are known

    def _names(self, members: Members) -> list[str]:
        """Those that weights and temperatures are given for, dropped ones included."""
        return [name for name, _ in (members if self.estimators is None else self.estimators)]

    def _check_names(self, parameter: str, given: Any, members: Members) -> None:
        names = self._names(members)
        unknown = sorted(set(given) - set(names)) if isinstance(given, Mapping) else []
        if unknown:
            raise ValueError(f"{parameter} names {unknown}; the members are {names}.")

    def _checked_weights(self, members: Members) -> dict[str, float]:
        names = self._names(members)
        self._check_names("weights", self.weights, members)
        if isinstance(self.weights, Mapping):
            given = [self.weights.get(name, 1.0) for name in names]
        else:
            given = [1.0] * len(names) if self.weights is None else list(self.weights)
        if len(given) != len(names):
            raise ValueError(f"weights holds {len(given)} numbers for {len(names)} members, {names}.")
        if not all(isinstance(weight, Real) for weight in given):
            raise ValueError(f"weights={self.weights!r} must be numbers.")
        weights = np.asarray(given, dtype=np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0.0).any():
            raise ValueError(f"weights={self.weights!r} must be finite numbers of at least 0.")
        kept = {name for name, _ in members}
        weights = weights[[name in kept for name in names]]
        if not weights.any():
            raise ValueError(f"weights={self.weights!r} are all zero; at least one member must weigh something.")
        return dict(zip([name for name, _ in members], (weights / weights.sum()).tolist()))

    def _checked_temperatures(self, members: Members) -> dict[str, float]:
        self._check_names("temperature", self.temperature, members)
        given = (
            self.temperature
            if isinstance(self.temperature, Mapping)
            else dict.fromkeys(dict(members), self.temperature)
        )
        temperatures = {name: given.get(name, 1.0) for name, _ in members}
        if not all(isinstance(one, Real) and 0.0 < one < np.inf for one in temperatures.values()):
            raise ValueError(f"temperature={self.temperature!r} must be finite and above 0.")
        return {name: float(one) for name, one in temperatures.items()}

    def _set_columns(self, X: Any) -> None:
        """The width of X and its names: what members that see some columns cannot tell."""
        if are_pictures(X) or np.ndim(X) < 2:
            raise ValueError("columns needs X to be a matrix of features.")
        self.n_features_in_ = int(np.shape(X)[-1])
        names = getattr(X, "columns", None)
        if names is not None and all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.asarray(names, dtype=object)
        for name in self.columns or ():
            self._columns_of(name, X)

    def _columns_of(self, name: str, X: Any) -> Any:
        if not self.columns:
            return X
        width = np.shape(X)[-1]
        if width != self.n_features_in_:
            raise ValueError(
                f"X has {width} features, but {type(self).__name__} is expecting {self.n_features_in_} features as "
                "input."
            )
        if name not in self.columns:
            return X
        wanted = self.columns[name]
        try:
            positions = np.atleast_1d(np.arange(width)[wanted if isinstance(wanted, slice) else np.asarray(wanted)])
        except IndexError as error:
            raise ValueError(f"columns[{name!r}]={wanted!r} does not fit the {width} columns of X.") from error
        if not positions.size:
            raise ValueError(f"columns[{name!r}]={wanted!r} leaves none of the {width} columns of X.")
        return X.iloc[:, positions] if hasattr(X, "iloc") else np.asarray(X)[..., positions]

    def _prepared(self, name: str, member: Any, X: Any) -> Any:
        """A clone, its class text resolved."""
        if name == ZERO_SHOT and self.estimators is None:
            n_features = np.shape(self._columns_of(name, X))[-1]
            text = resolve_text(self.zero_shot, self.classes_, n_features, self.logit_scale)
            assert text is not None
            return ZeroShotClassifier(prototypes=text.prototypes, classes=self.classes_, logit_scale=text.logit_scale)
        member = clone(member)
        model = getattr(front_end(member), "model", None)
        if isinstance(member, Pipeline) and model is not None:
            for _, step in member.steps[1:]:
                if hasattr(step, "get_params"):
                    try:
                        fill_models(step, model)
                    except ValueError as error:
                        raise ValueError(f"member {name!r}: {error}") from error
        return member

    def _routed(self, members: Members, params: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What the ``fit`` of each member gets of the metadata given to ours."""
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, "fit", **params)
            own_choice = {ZERO_SHOT} if self.estimators is None else set()
            return {name: {} if name in own_choice else routed[name].fit for name, _ in members}
        check_unrouted(self, params)
        weights = params.get("sample_weight")
        if weights is None:
            return {name: {} for name, _ in members}
        keys = {name: _weight_key(member) for name, member in members}
        without = [name for name, member in members if keys[name] is None and _learns(member)]
        if without:
            warnings.warn(
                f"{without} take no sample_weight in fit and count every picture once.", SkclipWarning, stacklevel=3
            )
        return {name: {} if key is None else {key: weights} for name, key in keys.items()}

    def _offset(
        self,
        inputs: MemberInputs,
        y: NDArray | None,
        codes: NDArray | None,
        members: dict[str, Any],
        given: dict[str, Any],
        fit_params: dict[str, dict[str, Any]],
    ) -> float | None:
        """The threshold; what it costs is said in the class."""
        if self.calibration is None:
            return None
        if not isinstance(self.calibration, str):
            return self._threshold(self._mean(self._inputs(self.calibration)))
        learning = [name for name, member in members.items() if _learns(member)]
        if self.calibration == "in_sample" or not learning or y is None or codes is None:
            return self._threshold(self._mean(inputs))
        splits = held_out_splits(_N_FOLDS, y, codes)
        if splits is None:
            warnings.warn(
                "No class has two pictures, so none can be held out: the threshold of as_outlier_detector follows "
                "pictures that the members know, and will refuse more of others.",
                SkclipWarning,
                stacklevel=3,
            )
            return self._threshold(self._mean(inputs))
        mean = np.zeros((len(y), len(self.classes_)))
        for _, weight, answers in self._each(inputs, [name for name in members if name not in learning]):
            mean += weight * answers
        jobs = [(name, train, test) for name in learning for train, test in splits]
        of_folds = Parallel(n_jobs=self.n_jobs)(
            delayed(_fold_answers)(
                name,
                members[name],
                given[name],
                y,
                fit_params[name],
                train,
                test,
                self.temperatures_[name],
                self.classes_,
            )
            for name, train, test in jobs
        )
        for (name, _, test), answers in zip(jobs, of_folds):
            mean[test] += self.weights_[name] * answers
        return self._threshold(mean[np.sort(np.concatenate([test for _, test in splits]))])

    def _threshold(self, probabilities: NDArray) -> float:
        return float(np.percentile(self._score(probabilities), 100.0 * (1.0 - self.tpr)))

    def _score(self, probabilities: NDArray) -> NDArray:
        return -_entropy(probabilities) if self.__dict__["score"] == "entropy" else probabilities.max(axis=1)

    def _mean(self, inputs: MemberInputs) -> NDArray:
        mean: Any = 0.0
        for _, weight, answers in self._each(inputs):
            mean = mean + weight * answers
        return mean

    def _inputs(self, X: Any) -> MemberInputs:
        return member_inputs(X, list(self.named_estimators_.items()), answer=self._says)

    def _each(self, inputs: MemberInputs, names: Sequence[str] | None = None) -> Iterator[tuple[str, float, NDArray]]:
        """Name, weight and probabilities (n, K) of each member."""
        for name in self.named_estimators_ if names is None else names:
            member, answers = self.named_estimators_[name], inputs.answers.get(name)
            if answers is None:
                answers = self._says(name, member, inputs.of[name])
            check_finite(name, answers)
            yield name, self.weights_[name], aligned(answers, np.asarray(member.classes_), self.classes_, name)

    def _says(self, name: str, member: Any, X: Any) -> NDArray:
        return member_says(name, member, self._columns_of(name, X), self.temperatures_[name])


def member_says(name: str, member: Any, X: Any, temperature: float) -> NDArray:
    """Probabilities of a fitted member for its own classes, float64, at a temperature.

    Raises
    ------
    ValueError
        If they have another shape.
    """
    if temperature != 1.0 and _has_logits(member):
        probabilities = softmax(np.asarray(get_logits(member, X), dtype=np.float64) / temperature, axis=1)
    else:
        probabilities = np.asarray(member.predict_proba(X), dtype=np.float64)
        if temperature != 1.0:
            with np.errstate(divide="ignore"):
                probabilities = softmax(np.log(probabilities) / temperature, axis=1)
    n_classes = len(member.classes_)
    if probabilities.ndim != 2 or probabilities.shape[1] != n_classes:
        raise ValueError(f"member {name!r} gives probabilities of shape {probabilities.shape} for {n_classes} classes.")
    return probabilities


def check_finite(name: str, probabilities: NDArray, positions: NDArray | None = None) -> None:
    """Refuse answers that are no numbers; `positions` are those of the rows in X."""
    bad = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if bad.size:
        place = bad[0] if positions is None else positions[bad[0]]
        raise ValueError(f"member {name!r} gives {probabilities[bad[0]].tolist()[:5]} for X[{place}]: not finite.")


def _entropy(probabilities: NDArray) -> NDArray:
    return entr(probabilities).sum(axis=1)


def _fold_answers(
    name: str,
    member: Any,
    X: Any,
    y: NDArray,
    fit_params: dict[str, Any],
    train: NDArray,
    test: NDArray,
    temperature: float,
    classes: NDArray,
) -> NDArray:
    fitted = fit_clone(member, take_rows(X, train), y[train], params_of_fold(fit_params, train, len(y)))
    answers = member_says(name, fitted, take_rows(X, test), temperature)
    check_finite(name, answers, test)
    return aligned(answers, np.asarray(fitted.classes_), classes, name)


def _default_members() -> Members:
    return [("probe", LinearProbeClassifier()), ("neighbors", SimilarityVoteClassifier())]


def _needs_labels(member: Any) -> bool:
    return not isinstance(member, FrozenEstimator) and get_tags(member).target_tags.required


def _learns(member: Any) -> bool:
    """Whether a member knows anything of the pictures of `fit`."""
    return _needs_labels(member) or (not isinstance(member, FrozenEstimator) and get_tags(member).requires_fit)


def _has_logits(member: Any) -> bool:
    """Whether a member has logits of which its probabilities are the softmax."""
    if isinstance(member, FrozenEstimator):
        return _has_logits(member.estimator)
    return hasattr(member[-1] if isinstance(member, Pipeline) else member, "logits")


def _weight_key(member: Any) -> str | None:
    """Under which name the ``fit`` of a member takes sample weights."""
    if isinstance(member, Pipeline):
        name, last = member.steps[-1]
        return f"{name}__sample_weight" if has_fit_parameter(last, "sample_weight") else None
    if isinstance(member, CLIPClassifier) and member.classifier is not None:
        return _weight_key(member.classifier)
    return "sample_weight" if has_fit_parameter(member, "sample_weight") else None


def _common_classes(members: Mapping[str, Any]) -> NDArray:
    """The classes that all members know.

    Raises
    ------
    ValueError
        If they differ.
    """
    first, *_ = members
    classes = np.sort(np.asarray(members[first].classes_))
    for name, member in members.items():
        own = np.asarray(member.classes_)
        if set(own.tolist()) != set(classes.tolist()):
            raise ValueError(
                f"Without y all members must know the same classes, but {first!r} knows {classes[:5].tolist()} "
                f"({len(classes)} in all) and {name!r} {own[:5].tolist()} ({len(own)}). Pass y, whose labels count."
            )
    return classes
