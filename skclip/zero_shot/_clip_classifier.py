"""The front door: pictures in, labels out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Self

from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from skclip._backbones import DEFAULT_MODEL, get_card
from skclip._media import check_images
from skclip.features import CLIPFeatures
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames, check_labels
from skclip.utils._params import HasMethods, check_parameters

# the parameters handed to CLIPFeatures under their own names
_FEATURE_PARAMETERS = (
    "model",
    "normalize",
    "n_views",
    "augmentation",
    "device",
    "precision",
    "compile",
    "batch_size",
    "decode",
    "workers",
    "n_workers",
    "store",
    "on_error",
    "random_state",
    "verbose",
)


def _classifier_has(method: str) -> Callable[[CLIPClassifier], bool]:
    def check(self: CLIPClassifier) -> bool:
        getattr(self._delegate(), method)  # the classifier's own AttributeError says why
        return True

    return check


@fill_doc
class CLIPClassifier(ClassifierMixin, SkclipBase):
    """Classify pictures: `CLIPFeatures` and a classifier on features as one object.

    Pictures are encoded once (`CLIPFeatures`, with its feature store), then everything is left to the
    classifier. Class text inside the classifier is encoded by the same model, which nobody has to write
    twice.

    Parameters
    ----------
    model : str, default="ViT-B-32/datacomp_xl_s13b_b90k"
        The model that encodes pictures, and class text wherever `classifier` leaves its ``model`` None.
    classifier : estimator, default=None
        Any classifier on feature matrices, of skclip, of scikit-learn, or a pipeline of them; cloned, never
        changed. None is `GDAClassifier` as it comes. A classifier fitted before is kept by
        ``FrozenEstimator(classifier)``.
    normalize : bool, default=True
        Unit rows, see `CLIPFeatures`.
    n_views : int, default=1
        Views of each training picture; more than one needs a classifier that takes (n, V, d) features, as
        those of skclip do.
    augmentation : {"crop_flip"} or None, default="crop_flip"
        How views after the first are made.
    %(execution)s
    store : "memory", path or None, default="memory"
        Where features of pictures are kept; a folder is shared by the processes of a search that has
        ``n_jobs > 1``.
    on_error : {"raise", "nan"}, default="raise"
        What an unreadable picture does. "nan" needs a classifier that takes NaN.
    random_state : int, RandomState instance or None, default=None
        Of the views.
    verbose : int, default=0
        Progress of the encoding.

    Attributes
    ----------
    features_ : CLIPFeatures
        The encoder.
    classifier_ : estimator
        The fitted classifier.
    classes_ : ndarray of shape (K,)
        Those of `classifier_`.

    See Also
    --------
    ZeroShotClassifier : Class names only, on features.
    skclip.features.CLIPFeatures : The first half, for a `Pipeline` of your own.

    Notes
    -----
    At `fit` the clone of `classifier` is searched for `ZeroShotClassifier` and `CLIPTextFeatures` whose
    ``model`` is None and that hold no prototypes, and these get `model`. Another model named there is an
    error. Members that own a `CLIPFeatures`, and what a ``FrozenEstimator`` holds, are left alone.

    Searches reach everything by name: ``model``, ``n_views``, ``classifier``, ``classifier__alpha``. Each
    picture is encoded once per model as long as the store holds it.

    Where `classifier` can predict without `fit` (class names alone, or a ``FrozenEstimator``), so can this.

    Examples
    --------
    >>> from skclip import CLIPClassifier, ZeroShotClassifier
    >>> names = ZeroShotClassifier(class_names=["red circle", "blue square"], templates="a photo of a {}")
    >>> clf = CLIPClassifier("skclip-tiny", names)
    >>> clf.predict(["one.png", "two.png"])  # doctest: +SKIP
    array(['red circle', 'blue square'], dtype='<U11')
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "model": [str],
        "classifier": [HasMethods(["fit", "predict"]), None],
    }

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        classifier: BaseEstimator | None = None,
        *,
        normalize: bool = True,
        n_views: int = 1,
        augmentation: str | None = "crop_flip",
        device: str = "auto",
        precision: str = "auto",
        compile: bool = False,
        batch_size: int | str = "auto",
        decode: str = "exact",
        workers: str = "threads",
        n_workers: int | None = None,
        store: Any = "memory",
        on_error: str = "raise",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.classifier = classifier
        self.normalize = normalize
        self.n_views = n_views
        self.augmentation = augmentation
        self.device = device
        self.precision = precision
        self.compile = compile
        self.batch_size = batch_size
        self.decode = decode
        self.workers = workers
        self.n_workers = n_workers
        self.store = store
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None, **params: Any) -> Self:
        """Encode the pictures and fit a clone of `classifier` on their features.

        Parameters
        ----------
        X : sequence of n pictures
            Paths, PIL pictures, encoded bytes, uint8 arrays, or one uint8 array (n, height, width, 3); also
            as a Series or a data frame of one column.
        y : array-like of shape (n,), default=None
            Labels; None where the classifier needs none.
        sample_weight : array-like of shape (n,), default=None
            Handed to the classifier.
        **params : dict
            Handed to the ``fit`` of the classifier, through metadata routing where that is enabled.

        %(self)s

        Raises
        ------
        ValueError
            If X and y differ in length, a picture cannot be read, or a text-side estimator names another
            model.
        """
        check_parameters(self)
        X = check_images(X)
        if y is not None:
            y = check_labels(y)
            if len(y) != len(X):
                raise ValueError(f"X holds {len(X)} pictures and y {len(y)} labels; every picture needs one label.")
        classifier = self._prepared_classifier()
        fit_params = self._routed("fit", sample_weight, params)
        if "sample_weight" in fit_params and not has_fit_parameter(classifier, "sample_weight"):
            raise ValueError(f"{type(classifier).__name__} takes no sample_weight.")
        features = self._new_features()
        rows = features.fit_transform(X)
        self.classifier_ = classifier.fit(rows, y, **fit_params)
        self.features_ = features
        return self

    def predict(self, X: Any) -> NDArray:
        """Labels of pictures.

        Parameters
        ----------
        X : sequence of n pictures

        Returns
        -------
        ndarray of shape (n,)
        """
        return self._call("predict", X)

    @available_if(_classifier_has("predict_proba"))
    def predict_proba(self, X: Any) -> NDArray:
        """Class probabilities of pictures.

        Parameters
        ----------
        X : sequence of n pictures

        Returns
        -------
        ndarray of shape (n, K)
        """
        return self._call("predict_proba", X)

    @available_if(_classifier_has("decision_function"))
    def decision_function(self, X: Any) -> NDArray:
        """Confidence scores of pictures, in scikit-learn's shape.

        Parameters
        ----------
        X : sequence of n pictures

        Returns
        -------
        ndarray of shape (n, K), or (n,) for two classes
        """
        return self._call("decision_function", X)

    @available_if(_classifier_has("logits"))
    def logits(self, X: Any) -> NDArray:
        """Logits of pictures.

        Parameters
        ----------
        X : sequence of n pictures

        Returns
        -------
        ndarray of shape (n, K)
            Also for two classes.
        """
        return self._call("logits", X)

    @available_if(_classifier_has("score_samples"))
    def score_samples(self, X: Any) -> NDArray:
        """How well pictures fit what the classifier knows; larger is more in-distribution.

        Parameters
        ----------
        X : sequence of n pictures

        Returns
        -------
        ndarray of shape (n,)
        """
        return self._call("score_samples", X)

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, **params: Any) -> float:
        """The classifier's own score on pictures: accuracy, unless it says otherwise.

        Parameters
        ----------
        X : sequence of n pictures
        y : array-like of shape (n,)
            True labels.
        sample_weight : array-like of shape (n,), default=None
            Handed to the classifier.
        **params : dict
            Handed to the ``score`` of the classifier, through metadata routing where that is enabled.

        Returns
        -------
        float
        """
        return self._call("score", X, y, **self._routed("score", sample_weight, params))

    @available_if(_classifier_has("with_classes"))
    def with_classes(self, class_names: ClassNames) -> CLIPClassifier:
        """A new classifier, fitted, that knows other classes; this one is left as it is.

        Parameters
        ----------
        class_names : {label: str} or list of str
            As the ``with_classes`` of the classifier takes them.

        Returns
        -------
        CLIPClassifier
        """
        features, classifier = self._parts()
        new = clone(self)
        new.features_, new.classifier_ = features, classifier.with_classes(class_names)
        return new

    @property
    def classes_(self) -> NDArray:
        return self.classifier_.classes_

    def get_metadata_routing(self) -> MetadataRouter:
        """Metadata routing of this object.

        Returns
        -------
        MetadataRouter
            `fit` and `score` hand metadata to those of the classifier.
        """
        mapping = MethodMapping().add(caller="fit", callee="fit").add(caller="score", callee="score")
        return MetadataRouter(owner=self).add(classifier=self._delegate(), method_mapping=mapping)

    def __sklearn_is_fitted__(self) -> bool:
        try:
            self._parts()
        except NotFittedError:
            return False
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = get_tags(self._delegate())
        tags.classifier_tags = deepcopy(inner.classifier_tags)
        tags.target_tags = deepcopy(inner.target_tags)
        tags.requires_fit = inner.requires_fit
        tags.non_deterministic = inner.non_deterministic
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    def _delegate(self) -> Any:
        """The classifier that knows the methods and tags: the fitted one, or the one to be cloned."""
        if hasattr(self, "classifier_"):
            return self.classifier_
        return _default_classifier() if self.classifier is None else self.classifier

    def _new_features(self) -> CLIPFeatures:
        return CLIPFeatures(**{name: getattr(self, name) for name in _FEATURE_PARAMETERS})

    def _prepared_classifier(self) -> Any:
        classifier = _default_classifier() if self.classifier is None else clone(self.classifier)
        if not is_classifier(classifier):
            raise TypeError(
                f"classifier={self.classifier!r} is not a classifier; a regressor or a detector goes into a "
                "Pipeline after CLIPFeatures."
            )
        if owns_pictures(classifier):
            raise TypeError(
                f"classifier={self.classifier!r} reads pictures itself, but is given features here; pass the "
                "classifier that follows its CLIPFeatures."
            )
        fill_models(classifier, self.model)
        return classifier

    def _routed(self, method: str, sample_weight: ArrayLike | None, params: dict[str, Any]) -> dict[str, Any]:
        """What `method` of the classifier gets of the metadata given to ours."""
        if sample_weight is not None:
            params = {**params, "sample_weight": sample_weight}
        if get_config()["enable_metadata_routing"]:
            return getattr(process_routing(self, method, **params).classifier, method)
        return params

    def _parts(self) -> tuple[Any, Any]:
        """Encoder and classifier, ready to predict; those of `fit` where there was one."""
        if hasattr(self, "classifier_"):
            return self.features_, self.classifier_
        classifier = self._prepared_classifier()
        try:
            check_is_fitted(classifier)
        except NotFittedError as error:
            raise NotFittedError(
                f"This CLIPClassifier is not fitted yet, and its {type(classifier).__name__} cannot predict "
                "without fit. Call fit(X, y) first."
            ) from error
        return self._new_features(), classifier

    def _call(self, method: str, X: Any, *args: Any, **kwargs: Any) -> Any:
        features, classifier = self._parts()
        return getattr(classifier, method)(features.transform(X), *args, **kwargs)


def _default_classifier() -> Any:
    # one floor up, and therefore at call time: the front door opens on the best classifier without training
    from skclip.adapters import GDAClassifier

    return GDAClassifier()


def fill_models(estimator: Any, model: str) -> None:
    """Name `model` in every text-side estimator inside `estimator` that names none and needs one.

    Parameters
    ----------
    estimator : estimator
        Changed in place: pass a clone.
    model : str

    Raises
    ------
    ValueError
        If one of them names another model.
    """
    for path, member in _text_members(estimator, "classifier"):
        if member.model is None:
            if getattr(member, "prototypes", None) is None:
                member.set_params(model=model)
        elif not same_model(member.model, model):
            raise ValueError(
                f"{path}__model={member.model!r}, but the pictures are encoded by model={model!r}; features "
                f"of two models do not compare. Leave {path}__model=None."
            )


def same_model(one: str, other: str) -> bool:
    """Whether two model strings mean one model, however spelled."""
    return one == other or get_card(one).name == get_card(other).name


def _text_members(estimator: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Text-side estimators at and below `estimator`, with the parameter paths that lead to them."""
    if isinstance(estimator, FrozenEstimator) or owns_pictures(estimator):
        return
    if getattr(estimator, "_encodes_text", False):
        yield path, estimator
    for name, member in _members(estimator):
        yield from _text_members(member, f"{path}__{name}")


def _members(estimator: Any) -> list[tuple[str, Any]]:
    """Estimators directly inside `estimator`: parameters, steps of a pipeline, members of an ensemble."""
    params = estimator.get_params(deep=True)
    return [
        (name, value)
        for name, value in params.items()
        if "__" not in name and hasattr(value, "get_params") and not isinstance(value, type)
    ]


def owns_pictures(estimator: Any) -> bool:
    """Whether `estimator` encodes pictures itself, so that its X is pictures.

    True of `CLIPFeatures`, of `CLIPClassifier`, of what tunes an image tower, of what has one of these among its own
    members, and of a pipeline with such a step, frozen or not.
    """
    if isinstance(estimator, CLIPFeatures | CLIPClassifier) or getattr(estimator, "_reads_pictures", False):
        return True
    members = [member for _, member in _members(estimator)]
    if isinstance(estimator, Pipeline | FrozenEstimator):
        return any(owns_pictures(member) for member in members)
    return any(isinstance(member, CLIPFeatures) for member in members)
