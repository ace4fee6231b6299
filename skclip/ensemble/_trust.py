"""Several classifiers, each weighed by how far its confidence was right, and similar pictures where that is little."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import Bunch, get_tags
from sklearn.utils.metadata_routing import MetadataRouter, process_routing
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from skclip.adapters import GDAClassifier, SimilarityVoteClassifier
from skclip.ensemble._members import (
    Members,
    aligned,
    check_ensemble_target,
    check_members,
    check_two_classes,
    fit_clone,
    fit_router,
    held_out_splits,
    is_number_of_folds,
    params_of_fold,
    readable_members,
)
from skclip.features import CLIPFeatures
from skclip.metrics import confidence_correctness_correlation, expected_calibration_error, overconfidence_rate
from skclip.utils._arrays import take_rows
from skclip.utils._base import SkclipBase, SkclipWarning, forget_fit
from skclip.utils._members import copy_feature_names, copy_input_tags
from skclip.utils._params import HasMethods, Interval, StrOptions, check_parameters, check_unrouted
from skclip.zero_shot import CLIPClassifier

Report = dict[str, dict[str, float]]

RETRIEVER = "retriever"


class TrustOrchestrator(ClassifierMixin, SkclipBase, _BaseComposition):
    """Soft vote of classifiers weighed by their measured calibration, with a second look at similar labelled pictures.

    For classifiers of unequal quality, where it matters whose confidence means something: zero-shot classifiers of
    several models, probes, adapters. Each agent answers for training pictures that it has not seen; from these
    answers come its weight in the vote. A picture on which the agents disagree, or for which no trusted agent is
    confident, is looked at again: the labelled pictures most similar to it vote as one more agent.

    Compare it with `SimilarityVoteClassifier` alone, and with the best agent alone, before using it. In the published
    experiment [1]_ the whole system reached 0.856 and the similarity vote alone, on the same pictures, 0.963: where
    retrieval is that good, it needs no orchestra.

    Trust is ``w = (1 - ECE) (1 - OCR) (1 + CCC) / 2``: calibration error, share of confident errors, and correlation
    of confidence and correctness of `skclip.metrics`. The paper hands these three figures to a language model, which
    decides; the rule here is explicit.

    Parameters
    ----------
    agents : list of (str, classifier), default=None
        Names and classifiers with ``predict_proba``, cloned. X is passed to them as it is: matrices, paths and
        pictures alike, so that with pictures each agent is a `Pipeline` or a `CLIPClassifier`. An agent set to
        "drop" is left out. None is ``[("gda", GDAClassifier(alpha="cv"))]``, for feature matrices.
    retriever : classifier, default=None
        Whose vote is added on a second look; cloned. None is ``SimilarityVoteClassifier(n_neighbors)``, on the
        features that the first agent to read pictures gives its own classifier, where there is one.
    n_neighbors : int, default=10
        Labelled pictures that vote in the default retriever.
    overconfidence_threshold : float, default=0.8
        Confidence from which on an error counts as overconfident.
    n_bins : int, default=10
        Bins of equal width of the calibration error.
    trust : "product" or callable, default="product"
        "product" is the formula above. A callable takes the measures of all members,
        ``{name: {"accuracy", "ece", "ocr", "ccc"}}``, the retriever last, and returns one number of at least 0 for
        each, in that order.
    reevaluate : {"auto", "always", "never"}, default="auto"
        Which pictures get a second look: those on which the agents disagree, or where trust times confidence is below
        `min_trust` for every agent; all, as in the published runs; or none, and then there is no retriever.
    min_trust : float, default=0.5
        See `reevaluate`. 0 leaves disagreement alone as the reason, 1 looks again at nearly everything.
    cv : int, splitter or iterable of (train, test), default=5
        How pictures are held out. A number means stratified folds, at most as many as the smallest class with at
        least two pictures has; a picture alone in its class is never held out. Groups of pictures that must stay
        together take ``list(GroupKFold().split(X, y, groups))``.
    n_jobs : int, default=None
        Fits that run at the same time. None is 1 unless in a ``joblib.parallel_backend`` context.

    Attributes
    ----------
    classes_ : ndarray of shape (K,)
        Labels of y, sorted.
    estimators_ : list of A classifiers
        The fitted agents.
    named_estimators_ : dict
        The same by name.
    retriever_ : classifier or None
        The fitted retriever; None where `reevaluate` is "never".
    trust_ : ndarray of shape (A,) or (A + 1,)
        Trust of the agents and the retriever.
    report_ : dict of dict
        By name of the agent, and "retriever": "accuracy", "ece", "ocr" and "ccc" on held-out pictures, "trust", and
        "weight", the agent's share in the first vote (of the retriever, in the second).
        ``pandas.DataFrame(report_).T`` is the table.
    y_fit_ : ndarray of shape (n,)
        Labels of `fit`, which `explain` shows beside neighbours.
    n_features_in_ : int
        Where the first agent that tells has one.
    feature_names_in_ : ndarray
        The same.

    See Also
    --------
    skclip.adapters.SimilarityVoteClassifier : The second look alone.
    sklearn.ensemble.VotingClassifier : Equal weights, or given ones.
    sklearn.ensemble.StackingClassifier : Learns from held-out answers how to combine them; needs more pictures.

    Notes
    -----
    The calibration error does not ask in which direction: an agent that is right but shy is trusted little. Calibrate
    it first (a temperature, or `sklearn.calibration.CalibratedClassifierCV`).

    Nor does trust ask how often an agent is right: one that is seldom right and knows it weighs little only through
    its low confidences. Where the retriever's "accuracy" in `report_` is far below that of the agents, as with many
    classes and few pictures of each, the second look costs accuracy: set ``reevaluate="never"``, or give a `trust`
    that reads "accuracy" too.

    Trust must be measured on pictures an agent has not learned from. Agents in a `FrozenEstimator` are not fitted
    again: pass `fit` pictures that they have not seen. A nearest-neighbour retriever is measured by leaving out one
    picture of its memory at a time where `cv` is a number and nothing before it learns, and on the folds otherwise.

    The correlation is undefined where all answers are right or all confidences equal, and is then reported as 0. An
    agent that is never wrong is trusted as if it were 1: no error has escaped its confidence. Where no class has two
    pictures nothing can be held out: all are trusted alike, with one warning.

    Classes that an agent knows and y lacks are dropped from its answers, classes that it does not know get 0.

    ``sample_weight`` goes to the agents, all of which must take it (other metadata through metadata routing); pictures
    of weight 0 are still measured and still vote in the retriever: leave them out of X where that is not meant. The
    measures count every picture once.

    Cost: ``cv + 1`` fits of every agent that is not frozen. Pictures are encoded once as long as the feature store
    holds them.

    References
    ----------
    .. [1] K. I. Roumeliotis et al., "Orchestrator-Agent Trust: A Modular Agentic AI Visual Classification System with
       Trust-Aware Orchestration and RAG-Based Reasoning", 2025, arXiv:2507.10571.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from skclip.adapters import GDAClassifier
    >>> from skclip.ensemble import TrustOrchestrator
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["cat", "dog"], 20)
    >>> X = rng.normal(size=(40, 8)) + 2 * np.repeat(np.eye(2, 8), 20, axis=0)
    >>> clf = TrustOrchestrator([("gda", GDAClassifier()), ("bayes", GaussianNB())]).fit(X, y)
    >>> sorted(clf.report_)
    ['bayes', 'gda', 'retriever']
    >>> clf.predict_proba(X).shape
    (40, 2)
    >>> clf.explain(X[:3]).neighbor_labels.shape
    (3, 10)
    """

    _set_last = "y_fit_"
    _parameter_constraints: dict[str, list[Any]] = {
        "agents": [list, tuple, None],
        "retriever": [HasMethods(["fit", "predict_proba"]), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "overconfidence_threshold": [Interval(Real, 0, 1, closed="both")],
        "n_bins": [Interval(Integral, 1, None, closed="left")],
        "trust": [StrOptions({"product"}), callable],
        "reevaluate": [StrOptions({"auto", "always", "never"})],
        "min_trust": [Interval(Real, 0, 1, closed="both")],
        "cv": ["cv_object"],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        agents: Members | None = None,
        *,
        retriever: BaseEstimator | None = None,
        n_neighbors: int = 10,
        overconfidence_threshold: float = 0.8,
        n_bins: int = 10,
        trust: str | Callable[[Report], ArrayLike] = "product",
        reevaluate: str = "auto",
        min_trust: float = 0.5,
        cv: Any = 5,
        n_jobs: int | None = None,
    ) -> None:
        self.agents = agents
        self.retriever = retriever
        self.n_neighbors = n_neighbors
        self.overconfidence_threshold = overconfidence_threshold
        self.n_bins = n_bins
        self.trust = trust
        self.reevaluate = reevaluate
        self.min_trust = min_trust
        self.cv = cv
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: ArrayLike, **params: Any) -> Self:
        """Fit the agents, measure their trust, and remember the pictures.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the agents take.
        y : array-like of shape (n,)
            Labels, at least two different ones.
        **params : dict
            ``sample_weight`` for all agents; with metadata routing enabled, whatever the members request.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If agents are no list of names and classifiers, one lacks ``predict_proba`` or knows no label of y, the
            default retriever would be given pictures, or y holds one class only.

        Warns
        -----
        SkclipWarning
            If no class has two pictures, so that trust cannot be measured.
        """
        check_parameters(self)
        members = check_members(self, "agents", _default_agents(), kind="agent")
        forget_fit(self)
        y = check_ensemble_target(self, X, y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        check_two_classes(self, self.classes_, codes, params.get("sample_weight"))
        if self.reevaluate != "never":
            members = [*members, (RETRIEVER, self._checked_retriever(members, X))]
        fit_params = self._routed(members, params)

        fitted = Parallel(n_jobs=self.n_jobs)(
            delayed(fit_clone)(member, X, y, fit_params[name]) for name, member in members
        )
        held_out = self._held_out(members, fitted, X, y, codes, fit_params)
        self.report_, self.trust_ = self._measured([name for name, _ in members], held_out)

        n_agents = len(members) - (self.reevaluate != "never")
        self.estimators_ = fitted[:n_agents]
        self.named_estimators_ = {name: agent for (name, _), agent in zip(members, self.estimators_)}
        self.retriever_ = None if self.reevaluate == "never" else fitted[-1]
        self.y_fit_ = y
        copy_feature_names(self, self.estimators_)
        return self

    def predict_proba(self, X: Any) -> NDArray:
        """Weighted vote of the agents, and of the retriever where there is a second look.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the agents take.

        Returns
        -------
        ndarray of shape (n, K)
            Rows sum to 1; columns in the order of `classes_`.
        """
        return self._decide(X).probabilities

    def predict(self, X: Any) -> NDArray:
        """The label of the highest probability.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the agents take.

        Returns
        -------
        ndarray of shape (n,)
        """
        best = np.argmax(self._decide(X).probabilities, axis=1)
        return self.classes_[best]

    def explain(self, X: Any) -> Bunch:
        """How each answer came about.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the agents take.

        Returns
        -------
        explanation : :class:`~sklearn.utils.Bunch`
            agents : list of A str
                Their names.
            answers, confidences : ndarray of shape (n, A)
                Label of each agent and its probability.
            first_probabilities : ndarray of shape (n, K)
                The vote of the agents.
            reevaluated : ndarray of shape (n,), bool
                Whether there was a second look.
            neighbors, neighbor_labels, similarities : ndarray of shape (n, n_neighbors)
                The labelled pictures that vote on a second look, as rows of the X of `fit`, their labels and
                similarities; given for every row, whether looked at again or not. Not there where the retriever has
                no ``kneighbors`` or knows pictures of its own (``FrozenEstimator``). With another retriever,
                `similarities` is what its ``kneighbors`` gives first.
            probabilities : ndarray of shape (n, K)
                The final distribution.
            prediction : ndarray of shape (n,)
                The final label.
        """
        decision = self._decide(X)
        answers = self.classes_[np.argmax(decision.of_agents, axis=2)].T
        explanation = Bunch(
            agents=list(self.named_estimators_),
            answers=answers,
            confidences=decision.of_agents.max(axis=2).T,
            first_probabilities=decision.first,
            reevaluated=decision.again,
            probabilities=decision.probabilities,
            prediction=self.classes_[np.argmax(decision.probabilities, axis=1)],
        )
        if _has_memory(self.retriever_):
            similarities, neighbors = _kneighbors(self.retriever_, X)
            explanation.update(neighbors=neighbors, neighbor_labels=self.y_fit_[neighbors], similarities=similarities)
        return explanation

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of this object and of its agents.

        Parameters
        ----------
        deep : bool, default=True
            Also the agents, by name, and their parameters.

        Returns
        -------
        dict
        """
        return self._get_params("agents", deep=deep)

    def set_params(self, **params: Any) -> Self:
        """Set parameters of this object, replace agents by name, or set their parameters.

        Parameters
        ----------
        **params : dict
            ``name=classifier`` replaces an agent (or drops it, with "drop"), ``name__parameter=value`` changes one.

        Returns
        -------
        self : object
        """
        return self._set_params("agents", **params)

    def get_metadata_routing(self) -> MetadataRouter:
        """Metadata routing of this object.

        Returns
        -------
        MetadataRouter
            `fit` hands metadata to that of the agents and of the retriever.
        """
        return fit_router(self, [*self._agents(), (RETRIEVER, self.retriever)])

    def __sklearn_tags__(self) -> Any:
        return copy_input_tags(super().__sklearn_tags__(), [agent for _, agent in self._agents()])

    def _agents(self) -> Members:
        """Names and classifiers; none where they cannot be read."""
        return readable_members(self.agents, _default_agents())

    def _checked_retriever(self, agents: Members, X: Any) -> Any:
        if self.retriever is not None:
            if not is_classifier(self.retriever):
                raise ValueError(f"retriever={self.retriever!r} is not a classifier.")
            return self.retriever
        vote = SimilarityVoteClassifier(self.n_neighbors)
        encoders = [encoder for _, agent in agents if (encoder := raw_encoder(agent)) is not None]
        if encoders:
            return make_pipeline(clone(encoders[0]), vote)
        if holds_raw_items(X):
            raise ValueError(
                "X holds pictures or paths, and no agent is a Pipeline or a CLIPClassifier that tells retriever=None "
                "how to encode them. Pass retriever=make_pipeline(CLIPFeatures(model), SimilarityVoteClassifier()), or "
                "reevaluate='never'."
            )
        return vote

    def _routed(self, members: Members, params: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What the ``fit`` of each member gets of the metadata given to ours."""
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, "fit", **params)
            own_choice = {name for name, member in members if name == RETRIEVER and self.retriever is None}
            return {name: {} if name in own_choice else routed[name].fit for name, _ in members}
        check_unrouted(self, params)
        params = {name: value for name, value in params.items() if value is not None}
        for name, member in members:
            if params and name != RETRIEVER and not has_fit_parameter(member, "sample_weight"):
                raise ValueError(
                    f"agent {name!r}, {type(member).__name__}, takes no sample_weight in fit; leave it out, or "
                    "enable metadata routing and let the others request it."
                )
        return {name: {} if name == RETRIEVER else params for name, _ in members}

    def _held_out(
        self,
        members: Members,
        fitted: list[Any],
        X: Any,
        y: NDArray,
        codes: NDArray,
        fit_params: dict[str, dict[str, Any]],
    ) -> dict[str, _Answers] | None:
        """Answers of every member for pictures that it has not seen; None where nothing can be held out."""
        splits = held_out_splits(self.cv, y, codes)
        if splits is None:
            warnings.warn(
                "No class has two pictures, so no agent can be tried on a picture that it has not seen: all are "
                "trusted alike.",
                SkclipWarning,
                stacklevel=3,
            )
            return None
        everything = np.sort(np.concatenate([test for _, test in splits]))
        answers: dict[str, _Answers] = {}
        jobs: list[tuple[str, Any, NDArray, NDArray]] = []
        for (name, member), own in zip(members, fitted):
            if isinstance(member, FrozenEstimator):
                kept = np.unique(everything)
                probabilities = _probabilities(own, name, take_rows(X, kept), self.classes_)
                answers[name] = _Answers(probabilities, codes[kept])
            elif name == RETRIEVER and _leaves_one_out(own) and is_number_of_folds(self.cv):
                probabilities = aligned(_last(own).predict_proba(None), own.classes_, self.classes_, name)
                answers[name] = _Answers(probabilities[everything], codes[everything])
            else:
                jobs += [(name, member, train, test) for train, test in splits]
        done = Parallel(n_jobs=self.n_jobs)(
            delayed(_fold_answers)(name, member, X, y, fit_params[name], train, test, self.classes_)
            for name, member, train, test in jobs
        )
        for name in {name for name, *_ in jobs}:
            parts = [(rows, test) for rows, (of, _, _, test) in zip(done, jobs) if of == name]
            answers[name] = _Answers(
                np.concatenate([rows for rows, _ in parts]), codes[np.concatenate([test for _, test in parts])]
            )
        return answers

    def _measured(self, names: list[str], held_out: dict[str, _Answers] | None) -> tuple[Report, NDArray]:
        if held_out is None:
            report = {name: dict.fromkeys(("accuracy", "ece", "ocr", "ccc"), float("nan")) for name in names}
            trust = np.ones(len(names))
        else:
            report = {
                name: trust_measures(*held_out[name], self.overconfidence_threshold, self.n_bins) for name in names
            }
            trust = self._trust_of(report)
        n_agents = len(names) - (self.reevaluate != "never")
        weights = np.append(shares(trust[:n_agents]), shares(trust)[n_agents:])
        for name, of_member, weight in zip(names, trust.tolist(), weights.tolist()):
            report[name].update(trust=of_member, weight=weight)
        return report, trust

    def _trust_of(self, report: Report) -> NDArray:
        if not callable(self.trust):
            return np.array([product_trust(measures) for measures in report.values()])
        given = self.trust({name: dict(measures) for name, measures in report.items()})
        trust = np.asarray(given, dtype=np.float64)
        if trust.shape != (len(report),) or not np.all(np.isfinite(trust)) or np.any(trust < 0.0):
            raise ValueError(
                f"trust must return one finite number of at least 0 for each of {list(report)}, in that order; got "
                f"{given!r}."
            )
        return trust

    def _decide(self, X: Any) -> _Decision:
        check_is_fitted(self)
        of_agents = np.stack(
            [_probabilities(agent, name, X, self.classes_) for name, agent in self.named_estimators_.items()]
        )
        n_agents = len(of_agents)
        trust = self.trust_[:n_agents]
        first = np.tensordot(shares(trust), of_agents, axes=1)
        again = self._look_again(of_agents, trust)
        probabilities = first.copy()
        if again.any():
            weights = shares(self.trust_)
            retrieved = _probabilities(self.retriever_, RETRIEVER, take_rows(X, np.flatnonzero(again)), self.classes_)
            second = np.tensordot(weights[:n_agents], of_agents[:, again], axes=1) + weights[n_agents] * retrieved
            probabilities[again] = second
        return _Decision(of_agents, first, again, probabilities)

    def _look_again(self, of_agents: NDArray, trust: NDArray) -> NDArray:
        if self.reevaluate != "auto":
            return np.full(of_agents.shape[1], self.reevaluate == "always")
        answers = np.argmax(of_agents, axis=2)
        disagree = np.any(answers != answers[0], axis=0)
        most = np.max(trust[:, None] * of_agents.max(axis=2), axis=0)
        return disagree | (most < self.min_trust)


class _Answers(NamedTuple):
    """What a member said of held-out pictures."""

    probabilities: NDArray  # (m, K)
    codes: NDArray  # (m,) their classes


class _Decision(NamedTuple):
    of_agents: NDArray  # (A, n, K)
    first: NDArray  # (n, K)
    again: NDArray  # (n,) bool
    probabilities: NDArray  # (n, K)


def trust_measures(
    probabilities: NDArray, codes: NDArray, overconfidence_threshold: float, n_bins: int
) -> dict[str, float]:
    """Accuracy, and how far confidence tells right from wrong.

    Parameters
    ----------
    probabilities : ndarray of shape (m, K)
    codes : ndarray of shape (m,)
        True classes, 0..K-1.
    overconfidence_threshold : float
    n_bins : int

    Returns
    -------
    dict
        "accuracy", "ece", "ocr", and "ccc", which is 0 where the correlation is undefined.
    """
    correct = np.argmax(probabilities, axis=1) == codes
    confidence = np.clip(probabilities.max(axis=1), 0.0, 1.0)
    varies = bool(np.ptp(confidence) > 0.0) and bool(correct.any()) and not bool(correct.all())
    return {
        "accuracy": float(correct.mean()),
        "ece": float(expected_calibration_error(correct, confidence, n_bins=n_bins)),
        "ocr": float(overconfidence_rate(correct, confidence, threshold=overconfidence_threshold)),
        "ccc": float(confidence_correctness_correlation(correct, confidence)) if varies else 0.0,
    }


def product_trust(measures: Mapping[str, float]) -> float:
    """``(1 - ECE) (1 - OCR) (1 + CCC) / 2``; with ``CCC = 1`` for a member that is never wrong."""
    ccc = 1.0 if measures["accuracy"] == 1.0 else measures["ccc"]
    return (1.0 - measures["ece"]) * (1.0 - measures["ocr"]) * (1.0 + ccc) / 2.0


def shares(trust: NDArray) -> NDArray:
    """`trust` over its sum; equal shares where nobody is trusted."""
    total = trust.sum()
    return trust / total if total > 0.0 else np.full(len(trust), 1.0 / len(trust))


def _default_agents() -> Members:
    return [("gda", GDAClassifier(alpha="cv"))]


def raw_encoder(agent: Any) -> Any:
    """The transformer between pictures (or sentences) and the classifier of `agent`; None of one on matrices."""
    if isinstance(agent, FrozenEstimator):
        return raw_encoder(agent.estimator)
    if isinstance(agent, CLIPClassifier):
        given = agent.get_params(deep=False)
        return CLIPFeatures(**{name: given[name] for name in CLIPFeatures().get_params() if name in given})
    if isinstance(agent, Pipeline) and len(agent) > 1 and not get_tags(agent[0]).input_tags.two_d_array:
        return agent[:-1]
    return None


def holds_raw_items(X: Any) -> bool:
    """Whether X is a sequence of paths, encoded bytes or opened pictures, or an array of pixels."""
    if len(getattr(X, "shape", ())) > 1:
        return len(X.shape) > 3
    first = take_rows(X, np.array([0]))
    first = first.iloc[0] if hasattr(first, "iloc") else first[0]
    return isinstance(first, (str, bytes, bytearray, os.PathLike, Image.Image))


def _fold_answers(
    name: str,
    member: Any,
    X: Any,
    y: NDArray,
    fit_params: dict[str, Any],
    train: NDArray,
    test: NDArray,
    classes: NDArray,
) -> NDArray:
    fitted = fit_clone(member, take_rows(X, train), y[train], params_of_fold(fit_params, train, len(y)))
    return _probabilities(fitted, name, take_rows(X, test), classes)


def _probabilities(member: Any, name: str, X: Any, classes: NDArray) -> NDArray:
    return aligned(np.asarray(member.predict_proba(X)), member.classes_, classes, name)


def _last(member: Any) -> Any:
    return member[-1] if isinstance(member, Pipeline) else member


def _has_memory(retriever: Any) -> bool:
    """Whether neighbours of `retriever` are rows of our X."""
    return not isinstance(_last(retriever), FrozenEstimator) and hasattr(_last(retriever), "kneighbors")


def _leaves_one_out(retriever: Any) -> bool:
    """Whether `retriever` answers for the rows of its memory, each without itself, and has learned nothing else from
    them."""
    before = retriever.steps[:-1] if isinstance(retriever, Pipeline) else []
    votes = isinstance(_last(retriever), (SimilarityVoteClassifier, KNeighborsClassifier))
    return votes and not any(_learns(step) for _, step in before)


def _learns(step: Any) -> bool:
    if isinstance(step, Pipeline):
        return any(_learns(inner) for _, inner in step.steps)
    return step not in (None, "passthrough") and get_tags(step).requires_fit


def _kneighbors(retriever: Any, X: Any) -> tuple[NDArray, NDArray]:
    rows = retriever[:-1].transform(X) if isinstance(retriever, Pipeline) else X
    return _last(retriever).kneighbors(rows)
