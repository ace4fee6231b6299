"""Whether a model binds attributes to their objects, or takes a picture for a bag of concepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.special import softmax
from scipy.stats import spearmanr
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skclip._media import PictureError, check_images, describe, read_picture
from skclip.features import CLIPTextFeatures
from skclip.metrics import cab_score, swap_rate
from skclip.utils._arrays import check_features, first_view, take_rows, unit_rows
from skclip.utils._base import SkclipBase, forget_fit
from skclip.utils._names import check_name_list, rows_of_labels
from skclip.utils._params import Interval, StrOptions, check_parameters

OBJECT, ATTRIBUTE = "{object}", "{attribute}"
DEFAULT_TEMPLATES = ("In this picture, the color of the {object} is {attribute}.",)

# what a scorer is: pictures as the probe got them and m sentences in, (n, m) scores out
Scorer = Callable[[Any, list[str]], ArrayLike]


class ConceptAssociationProbe(SkclipBase):
    """Ask for the attribute of one of two objects in a picture, and count how often the other's is answered.

    "In this picture, the color of the lemon is ...": a model that takes pictures for bags of concepts answers purple
    where an eggplant lies beside the lemon, because "purple" completes what the sentence has not named [1]_. The
    score is `skclip.metrics.cab_score`: 0 for a model that binds attributes to objects, 1 for one that always answers
    with the other object's, 0.5 for one without preference. A larger score is worse.

    Run the control first: `report` on pictures of single objects. Where the accuracy there is low, the probe measures
    recognition and not binding.

    Parameters
    ----------
    object_attribute : {str: str}
        True attribute of each object, such as ``{"lemon": "yellow", "eggplant": "purple"}``. Any relation that a
        sentence can state will do: parts, materials.
    model : str, default=None
        Model whose text tower encodes the sentences; must be the model of the features. None is the default model of
        `CLIPFeatures`. Not used with `scorer`.
    attributes : list of str, default=None
        What can be answered. None is what occurs in `object_attribute`.
    templates : str or list of str, default="In this picture, the color of the {object} is {attribute}."
        Sentences with ``{object}`` and ``{attribute}``; their embeddings are averaged. Synonyms and articles matter:
        use several.
    candidates : {"all", "pair"}, default="all"
        All attributes, or only those of the two objects in the picture, where guessing is right half of the time.
    logit_scale : float, default=100.0
        Multiplier of the cosines in `predict_proba`; predictions do not depend on it.
    debias : bool, default=False
        Subtract from the score of each (object, attribute) sentence its mean over the pictures of `fit`: what is left
        is not owed to sentences that score high with every picture.
    association : {"text"} or {str: {str: float}}, default=None
        How strongly each object calls each attribute to mind, as ``{object: {attribute: strength}}``, from a
        knowledge base for example; "text" takes the cosine of the two words in `model`. `report` then tells whether
        answers are swapped more where the association of the queried object with its own attribute is strong.
    scorer : callable, default=None
        ``scorer(X, sentences) -> (n, m)`` in place of cosines, for a model that reads picture and sentence together.
        Called for one queried object at a time, with X as passed in.

    Attributes
    ----------
    objects_, attributes_ : ndarray of str, of shape (O,) and (A,)
        Sorted.
    own_ : ndarray of shape (O,), int
        Position in `attributes_` of the attribute of each object.
    texts_ : ndarray of shape (O, A, T), str
        The sentences.
    prototypes_ : ndarray of shape (O, A, d) or None
        Unit vectors; None with `scorer`.
    offsets_ : ndarray of shape (O, A)
        What `debias` subtracts; zeros without.
    association_ : ndarray of shape (O, A) or None
        Strengths.
    n_features_in_ : int
        d; not with `scorer`.

    See Also
    --------
    skclip.metrics.cab_score : The measure, for answers from anywhere.
    compose_pairs : Two-object pictures from pictures of single objects.

    Notes
    -----
    Each of two objects in a picture can be asked for: score both orders. Rows whose two objects share the attribute
    tell nothing, are left out, and are counted in the report.

    The formula is this package's; the paper compares models by a score that grows with the bias.

    `fit` encodes ``O * A * T`` sentences in one pass, prediction costs O(n A d).

    References
    ----------
    .. [1] Y. Yamada, Y. Tang, Y. Zhang and I. Yildirim, "When are Lemons Purple? The Concept Association Bias of
       Vision-Language Models", EMNLP 2023, arXiv:2212.12043.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.evaluation import ConceptAssociationProbe
    >>> def color_of_anything(X, sentences):
    ...     return np.array([[max(x[0] * ("yellow" in s), x[1] * ("purple" in s)) for s in sentences] for x in X])
    >>> probe = ConceptAssociationProbe({"lemon": "yellow", "eggplant": "purple"}, scorer=color_of_anything)
    >>> X = [[0.5, 0.6], [0.5, 0.6]]
    >>> asked = [("lemon", "eggplant"), ("eggplant", "lemon")]
    >>> probe.fit().predict(X, asked)
    array(['purple', 'purple'], dtype='<U6')
    >>> probe.score(X, asked)
    0.5
    """

    _set_last = "offsets_"
    _parameter_constraints: dict[str, list[Any]] = {
        "object_attribute": [Mapping, None],
        "model": [str, None],
        "attributes": ["array-like", None],
        "templates": [str, Sequence],
        "candidates": [StrOptions({"all", "pair"})],
        "logit_scale": [Interval(Real, 0, None, closed="neither")],
        "debias": ["boolean"],
        "association": [StrOptions({"text"}), Mapping, None],
        "scorer": [callable, None],
    }

    def __init__(
        self,
        object_attribute: Mapping[str, str] | None = None,
        *,
        model: str | None = None,
        attributes: Sequence[str] | None = None,
        templates: str | Sequence[str] = DEFAULT_TEMPLATES,
        candidates: str = "all",
        logit_scale: float = 100.0,
        debias: bool = False,
        association: str | Mapping[str, Mapping[str, float]] | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self.object_attribute = object_attribute
        self.model = model
        self.attributes = attributes
        self.templates = templates
        self.candidates = candidates
        self.logit_scale = logit_scale
        self.debias = debias
        self.association = association
        self.scorer = scorer

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Encode the sentences.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), default=None
            Image features, which `debias` needs; with `scorer`, what that takes.
        y : Ignored

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If `object_attribute` is empty, an attribute is missing from `attributes`, a template lacks a slot,
            `debias` gets no pictures, or widths differ.
        """
        check_parameters(self)
        forget_fit(self)
        self.objects_, self.attributes_, self.own_ = read_pairs(self.object_attribute, self.attributes)
        self.texts_ = fill_slots(self.objects_, self.attributes_, check_slots(self.templates))
        self.prototypes_ = None
        if self.scorer is None:
            self.prototypes_ = self._encoded()
            self.n_features_in_ = int(self.prototypes_.shape[2])
            if X is not None:
                check_features(self, X)
        self.association_ = self._strengths()
        self.offsets_ = self._mean_scores(X)
        return self

    def predict(self, X: Any, objects: ArrayLike) -> NDArray:
        """The attribute that the sentences of the queried object choose.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d)
            Image features; with `scorer`, what that takes.
        objects : array-like of shape (n,) or (n, 2)
            The object asked for in each row, and the other object, which ``candidates="pair"`` needs.

        Returns
        -------
        ndarray of shape (n,), str
            Of equal scores the first in `attributes_`.
        """
        check_is_fitted(self)
        return self.attributes_[np.argmax(self._scores(X, self._codes(X, objects)), axis=1)]

    def predict_proba(self, X: Any, objects: ArrayLike) -> NDArray:
        """Softmax of the scaled scores over the candidates.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d)
            Image features; with `scorer`, what that takes.
        objects : array-like of shape (n,) or (n, 2)
            As in `predict`.

        Returns
        -------
        ndarray of shape (n, A)
            Columns in the order of `attributes_`; 0 for what is no candidate.
        """
        check_is_fitted(self)
        return softmax(self.logit_scale * self._scores(X, self._codes(X, objects)), axis=1)

    def score(self, X: Any, y: ArrayLike) -> float:
        """Concept association bias; larger is worse.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d)
            Image features; with `scorer`, what that takes.
        y : array-like of shape (n, 2)
            Queried and other object of each row.

        Returns
        -------
        float
            Between 0 and 1, see `skclip.metrics.cab_score`.

        Raises
        ------
        ValueError
            If y names one object per row, or the two objects share the attribute in every row.
        """
        check_is_fitted(self)
        codes = self._codes(X, y)
        if codes.shape[1] == 1:
            raise ValueError(
                "score needs y of shape (n, 2), queried and other object; report(X, y) gives the accuracy of pictures "
                "with a single object."
            )
        return cab_score(*self._answered(X, codes))

    def report(self, X: Any, y: ArrayLike) -> dict[str, Any]:
        """Accuracy, swaps and bias, in all and for each queried object.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d)
            Image features; with `scorer`, what that takes.
        y : array-like of shape (n,) or (n, 2)
            Queried and other object of each row; (n,) for pictures of single objects, the control.

        Returns
        -------
        dict
            "n_samples"; "n_same_attribute", rows left out because the two objects share the attribute; "chance",
            the accuracy of guessing; "accuracy". For pairs also "swap_rate", "cab", and with `association`
            "association_correlation": Spearman's rank correlation, over the rows, of a swap with the strength of the
            queried object and its own attribute (NaN where either is constant). "per_object" holds "n", "accuracy",
            "swap_rate" and "cab" by queried object; ``pandas.DataFrame(report["per_object"]).T`` is the table.

        Raises
        ------
        ValueError
            If the two objects share the attribute in every row.
        """
        check_is_fitted(self)
        codes = self._codes(X, y)
        own = self.own_[codes]
        kept = np.ones(len(codes), dtype=bool) if codes.shape[1] == 1 else own[:, 0] != own[:, 1]
        if not kept.any():
            raise ValueError("In every row the two objects share the attribute, so that a swap cannot be observed.")
        answers = self._answered(take_rows(X, np.flatnonzero(kept)), codes[kept])
        queried = self.objects_[codes[kept, 0]]
        report: dict[str, Any] = {
            "n_samples": len(codes),
            "n_same_attribute": int(np.sum(~kept)),
            "chance": 0.5 if self.candidates == "pair" else 1.0 / len(self.attributes_),
            **_rates(*answers),
        }
        if self.association_ is not None and codes.shape[1] == 2:
            strengths = self.association_[codes[kept, 0], own[kept, 0]]
            report["association_correlation"] = rank_correlation(strengths, answers[1] == answers[-1])
        report["per_object"] = {
            name: {"n": int(np.sum(queried == name)), **_rates(*(part[queried == name] for part in answers))}
            for name in np.unique(queried).tolist()
        }
        return report

    def _encoded(self) -> NDArray:
        rows = CLIPTextFeatures(self.model).transform(self.texts_.ravel().tolist())
        n_objects, n_attributes, n_templates = self.texts_.shape
        # the sum points where the mean points
        means = unit_rows(rows.reshape(n_objects * n_attributes, n_templates, -1).sum(axis=1))
        return means.reshape(n_objects, n_attributes, -1)

    def _strengths(self) -> NDArray | None:
        if self.association is None:
            return None
        if isinstance(self.association, str):
            if self.scorer is not None:
                raise ValueError('association="text" needs a text tower, and scorer has none; pass the strengths.')
            encoder = CLIPTextFeatures(self.model)
            objects, attributes = (encoder.transform(words.tolist()) for words in (self.objects_, self.attributes_))
            return objects.astype(np.float64) @ attributes.T
        missing = [
            (name, attribute)
            for name in self.objects_.tolist()
            for attribute in self.attributes_.tolist()
            if attribute not in self.association.get(name, {})
        ]
        if missing:
            raise ValueError(f"association holds no strength for {missing[0]!r} ({len(missing)} pairs are missing).")
        return np.array(
            [[self.association[name][attribute] for attribute in self.attributes_] for name in self.objects_],
            dtype=np.float64,
        )

    def _mean_scores(self, X: Any) -> NDArray:
        if not self.debias:
            return np.zeros(self.texts_.shape[:2])
        if X is None:
            raise ValueError("debias=True subtracts mean scores over pictures; pass them to fit(X).")
        if self.prototypes_ is not None:
            mean = self._rows(X).mean(axis=0, dtype=np.float64)
            return self.prototypes_ @ mean
        return np.stack([self._scored(X, code).mean(axis=0) for code in range(len(self.objects_))])

    def _rows(self, X: Any) -> NDArray:
        return unit_rows(first_view(*check_features(self, X)))

    def _codes(self, X: Any, objects: ArrayLike) -> NDArray:
        """Positions in `objects_`, (n, 1) or (n, 2)."""
        names = np.asarray(objects)
        if names.ndim not in (1, 2) or (names.ndim == 2 and names.shape[1] not in (1, 2)):
            raise ValueError(
                f"objects must be of shape (n,), the queried object, or (n, 2), queried and other; got {names.shape}."
            )
        check_consistent_length(X, names)
        names = names.reshape(len(names), -1)
        if self.candidates == "pair" and names.shape[1] == 1:
            raise ValueError('candidates="pair" needs objects of shape (n, 2), queried and other object.')
        codes = rows_of_labels(self.objects_, names.ravel(), what="objects", source="object_attribute")
        return codes.reshape(names.shape)

    def _answered(self, X: Any, codes: NDArray) -> tuple[NDArray, ...]:
        """Attribute of the queried object, of the other one where there is one, and the answer."""
        answer = np.argmax(self._scores(X, codes), axis=1)
        return tuple(self.attributes_[column] for column in (*self.own_[codes].T, answer))

    def _scores(self, X: Any, codes: NDArray) -> NDArray:
        """(n, A) scores of the sentences of the queried object; -inf for what is no candidate."""
        rows = X if self.prototypes_ is None else self._rows(X)
        scores = np.empty((len(codes), len(self.attributes_)))
        for code in np.unique(codes[:, 0]):
            asked = np.flatnonzero(codes[:, 0] == code)
            scores[asked] = self._scored(take_rows(rows, asked), code) - self.offsets_[code]
        if self.candidates == "pair":
            excluded = np.ones(scores.shape, dtype=bool)
            np.put_along_axis(excluded, self.own_[codes], False, axis=1)
            scores[excluded] = -np.inf
        return scores

    def _scored(self, rows: Any, code: int) -> NDArray:
        """(m, A) scores of the sentences of one object."""
        if self.prototypes_ is not None:
            return rows @ self.prototypes_[code].T.astype(rows.dtype, copy=False)
        texts = self.texts_[code]  # (A, T)
        scorer: Any = self.scorer
        given = np.asarray(scorer(rows, texts.ravel().tolist()), dtype=np.float64)
        if given.shape != (len(rows), texts.size) or not np.all(np.isfinite(given)):
            raise ValueError(
                f"scorer must return finite scores of shape ({len(rows)}, {texts.size}), one per picture and sentence; "
                f"got shape {given.shape}."
            )
        return given.reshape(len(rows), *texts.shape).mean(axis=2)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def compose_pairs(
    images_a: Any, images_b: Any, *, size: int | None = None, background: tuple[int, int, int] = (128, 128, 128)
) -> NDArray[np.uint8]:
    """Put pictures side by side, in pairs: two-object pictures from pictures of single objects.

    The canvas is square, so that both survive the centre crop of a CLIP model. Each picture fills its half as far as
    its proportions allow.

    Parameters
    ----------
    images_a, images_b : sequence of n pictures
        Left and right: paths, PIL pictures, encoded bytes or uint8 arrays.
    size : int, default=None
        Side of the canvas. None is twice the longest side of any picture, where nothing is shrunk.
    background : tuple of 3 int, default=(128, 128, 128)
        Colour of what they leave free.

    Returns
    -------
    pictures : ndarray of shape (n, size, size, 3), uint8

    Raises
    ------
    ValueError
        If the two sequences differ in length, or a picture cannot be read; the message names its position.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.evaluation import compose_pairs
    >>> red, blue = np.zeros((2, 1, 8, 8, 3), dtype=np.uint8)
    >>> red[..., 0], blue[..., 2] = 255, 255
    >>> compose_pairs(red, blue).shape
    (1, 16, 16, 3)
    """
    if size is not None and (not isinstance(size, Integral) or size < 2):
        raise ValueError(f"size must be an integer of at least 2, or None; got {size!r}.")
    left, right = _opened(images_a, "images_a"), _opened(images_b, "images_b")
    if len(left) != len(right):
        raise ValueError(f"images_a holds {len(left)} pictures and images_b {len(right)}; pairs need as many of each.")
    side = 2 * max(max(picture.size) for picture in left + right) if size is None else int(size)
    pictures = np.empty((len(left), side, side, 3), dtype=np.uint8)
    for canvas, pair in zip(pictures, zip(left, right)):
        drawn = Image.new("RGB", (side, side), background)
        for half, picture in enumerate(pair):
            ratio = min((side // 2) / picture.width, side / picture.height)
            width, height = (max(1, round(ratio * length)) for length in picture.size)
            if (width, height) != picture.size:
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            drawn.paste(picture, (half * (side // 2) + (side // 2 - width) // 2, (side - height) // 2))
        canvas[:] = np.asarray(drawn)
    return pictures


def read_pairs(object_attribute: Any, attributes: Any) -> tuple[NDArray, NDArray, NDArray]:
    """Sorted objects, sorted attributes, and the position of each object's own."""
    if not object_attribute:
        raise ValueError('object_attribute is empty; pass {object: attribute}, such as {"lemon": "yellow"}.')
    words = {str(name): attribute for name, attribute in object_attribute.items()}
    for role, given in (("keys", list(object_attribute)), ("values", list(object_attribute.values()))):
        for word in given:
            if not isinstance(word, str) or not word.strip():
                raise ValueError(f"The {role} of object_attribute are words for sentences; got {word!r}.")
    objects = np.unique(list(words))
    own = [words[name] for name in objects.tolist()]
    known = np.unique(own if attributes is None else check_name_list(list(attributes)))
    return objects, known, rows_of_labels(known, own, what="object_attribute", source="attributes")


def check_slots(templates: str | Sequence[str]) -> list[str]:
    """Templates as a list; ValueError naming one without both slots."""
    sentences = [templates] if isinstance(templates, str) else list(templates)
    if not sentences:
        raise ValueError("templates is empty; at least one sentence is needed.")
    for position, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or OBJECT not in sentence or ATTRIBUTE not in sentence:
            raise ValueError(
                f"templates[{position}] is {sentence!r}; a template is a sentence with {OBJECT} and {ATTRIBUTE}."
            )
    return sentences


def fill_slots(objects: NDArray, attributes: NDArray, templates: Sequence[str]) -> NDArray:
    """(O, A, T) sentences; an underscore in a name becomes a space."""
    return np.array(
        [
            [
                # not str.format: other braces of a sentence stay as they are
                [t.replace(OBJECT, o.replace("_", " ")).replace(ATTRIBUTE, a.replace("_", " ")) for t in templates]
                for a in attributes.tolist()
            ]
            for o in objects.tolist()
        ]
    )


def rank_correlation(strengths: NDArray, swapped: NDArray) -> float:
    """Spearman's; NaN where either does not vary."""
    if np.ptp(strengths) == 0.0 or swapped.all() or not swapped.any():
        return float("nan")
    return float(spearmanr(strengths, swapped).statistic)


def _rates(own: NDArray, *rest: NDArray) -> dict[str, float]:
    """Accuracy of the answers, which come last; swaps and bias where the other object's attributes come before."""
    accuracy = float(np.mean(own == rest[-1]))
    if len(rest) == 1:
        return {"accuracy": accuracy}
    other, answer = rest
    return {"accuracy": accuracy, "swap_rate": swap_rate(own, other, answer), "cab": cab_score(own, other, answer)}


def _opened(images: Any, name: str) -> list[Image.Image]:
    try:
        items = check_images(images)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    pictures = []
    for position, item in enumerate(items):
        try:
            pictures.append(read_picture(item).convert("RGB"))
        except PictureError as error:
            raise ValueError(f"{name}[{position}], {describe(item)}: {error}.") from None
    return pictures
