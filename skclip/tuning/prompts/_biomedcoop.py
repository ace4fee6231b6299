"""BiomedCoOp: learned words held to many sentences about each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skclip.templates._templates import Descriptions, Templates, fill_templates
from skclip.tuning._losses import cosine_distance_to, kl_divergence, mse
from skclip.tuning._setting import Setting, Step, Term, in_float32, scaled_cosines
from skclip.tuning._tuned import Examples, PromptClassifier, sgd_recipe
from skclip.tuning.prompts._context import SharedContext
from skclip.tuning.prompts._coop import CONTEXT_CONSTRAINTS
from skclip.utils._arrays import row_batches
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval, StrOptions

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

_DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": mse,
    "cosine": cosine_distance_to,
}


@fill_doc
class BiomedCoOpClassifier(SharedContext, PromptClassifier):
    """Learn the words around the class names, held to sentences that describe each class, from features of pictures.

    `CoOpClassifier` with two more terms in the loss [1]_. The first holds the text of each class to the mean of its
    sentences, the second the predicted probabilities to those of the sentences, after sentences that do not fit the
    pictures have been left out.

    Made for medical pictures and a language model's descriptions, and of use wherever good descriptions are at hand and
    labelled pictures are few. Pictures of classes that were not there to learn from need a name alone (`with_classes`).

    Parameters
    ----------
    %(model_of_text)s
    %(class_names)s
    descriptions : {label: list of str}, callable, or templates, default="simple"
        P sentences about each class, where sentence i of each class is of the same kind: together they are kept or
        left out. A callable gives those of a name: ``descriptions("a name") -> list of str``. The default is sentences
        that say nothing of a class but its name, as `skclip.templates` has them.
    n_prompts : int, default=None
        P, if only the first of each class are to be used. None is all of them.
    n_ctx : int, default=4
        M, the learned vectors, each in the place of one token. Only with ``ctx_init=None``.
    ctx_init : str, default="a photo of a"
        Words to begin with; M is then the number of their tokens. None draws from N(0, 0.02^2).
    class_position : {"end", "middle", "front"}, default="end"
        Where the name stands: after the vectors, between their halves, or before them.
    sccm_weight : float, default=1.0
        Of the distance of class text from the mean of the sentences. Published: 0.25 to 20, by data set.
    sccm_reduction : {"mean", "cosine"}, default="mean"
        The distance: mean over all ``K d`` entries of the squared difference, as published, or
        ``1 - mean_c cos``, which is d / 2 times as much: with the first and d = 512, a weight of 20 is as one of 0.08.
    kdsp_weight : float, default=1.0
        Of the divergence from the probabilities of the sentences, which is divided by the number of classes. Published:
        0.25 to 20, by data set.
    tau : float, default=1.5
        Sentence i of all classes is left out where its mean largest score is more than `tau` standard deviations from
        that of all P sentences. At least 1; infinity keeps all. Published: 1.25 to 2.
    selection : {"batch", "dataset"}, default="batch"
        Whether sentences are left out in each step, by the pictures of that step, as published, or once by all.
    max_iter : int, default=100
        Epochs; the published code takes 50 where new classes are to come.
    learning_rate : float, default=0.0025
        Of stochastic gradient descent; 1e-5 in the first epoch, then from this value down along a cosine, by epochs.
    batch_size : int, default=4
        Pictures per step; what is left over at the end of an epoch waits for the next.
    momentum, weight_decay : float, default=0.9, 5e-4
        Of stochastic gradient descent.
    %(tuning)s

    Attributes
    ----------
    %(classes_)s
    ctx_ : ndarray of shape (M, w)
        The learned vectors, of the width of the text tower.
    kept_descriptions_ : ndarray of shape (P,), bool
        Which sentences all training pictures together keep.
    %(tuned)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    KgCoOpClassifier : Held to one hand-written prompt, which is this with ``sccm_reduction="cosine"`` and
        ``kdsp_weight=0``.

    Notes
    -----
    The score of sentence i is the mean, over pictures, of the largest ``logit_scale * cos(x, t0_ci)`` over classes. The
    published rule takes the distance from the median in units of the median deviation and then standardises it, which
    comes to the distance from the mean in units of the standard deviation, for any pictures. Where all scores are equal
    that gives no number, and here all sentences are kept.

    Works with every text tower, also those of transformers such as BiomedCLIP's, whose sentences are read in both
    directions. The name stands where `class_position` says; the published code takes it for one token long there.
    Features in place of pictures, and their views, are as of `CoOpClassifier`. The sentences are encoded once, K P
    passes forwards, and a step multiplies ``b K P d`` numbers beside the pass of the text tower.

    References
    ----------
    .. [1] T. Koleilat et al., "BiomedCoOp: Learning to Prompt for Biomedical Vision-Language Models", CVPR 2025,
       arXiv:2411.15232.

    Examples
    --------
    >>> from skclip import CLIPFeatures
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import BiomedCoOpClassifier
    >>> world = make_picture_world(64, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> X = CLIPFeatures("skclip-tiny").fit_transform(world.images)
    >>> clf = BiomedCoOpClassifier("skclip-tiny", descriptions=world.class_descriptions, max_iter=2, random_state=0)
    >>> clf.fit(X, world.target).kept_descriptions_
    array([ True,  True,  True])
    >>> clf.with_classes(["green circle", "green star"]).predict_proba(X).shape
    (64, 2)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **CONTEXT_CONSTRAINTS,
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "descriptions": [Mapping, callable, str, "array-like"],
        "n_prompts": [Interval(Integral, 1, None, closed="left"), None],
        "sccm_weight": [Interval(Real, 0, None, closed="left")],
        "sccm_reduction": [StrOptions(set(_DISTANCES))],
        "kdsp_weight": [Interval(Real, 0, None, closed="left")],
        "tau": [Interval(Real, 1, None, closed="both")],
        "selection": [StrOptions({"batch", "dataset"})],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        descriptions: Descriptions | Templates | Callable[[str], Sequence[str]] = "simple",
        n_prompts: int | None = None,
        n_ctx: int = 4,
        ctx_init: str | None = "a photo of a",
        class_position: str = "end",
        sccm_weight: float = 1.0,
        sccm_reduction: str = "mean",
        kdsp_weight: float = 1.0,
        tau: float = 1.5,
        selection: str = "batch",
        max_iter: int = 100,
        learning_rate: float = 0.0025,
        batch_size: int = 4,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        checkpoint: str | PathLike[str] | None = None,
        distributed: bool = False,
        device: str = "auto",
        precision: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.class_names = class_names
        self.descriptions = descriptions
        self.n_prompts = n_prompts
        self.n_ctx = n_ctx
        self.ctx_init = ctx_init
        self.class_position = class_position
        self.sccm_weight = sccm_weight
        self.sccm_reduction = sccm_reduction
        self.kdsp_weight = kdsp_weight
        self.tau = tau
        self.selection = selection
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.distributed = distributed
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    def _prepare(self, setting: Setting, examples: Examples) -> None:
        import torch

        super()._prepare(setting, examples)
        texts = described(self.descriptions, setting.classes.tolist(), setting.names, self.n_prompts)
        rows = setting.encode_texts([text for of_class in texts for text in of_class])
        sentences = setting.constants["sentences"] = rows.reshape(len(texts), -1, rows.shape[1])
        views = examples.X.reshape(-1, examples.X.shape[2])
        weights = None if examples.weights is None else np.repeat(examples.weights, examples.X.shape[1])
        parts = [
            sentence_scores(torch.tensor(views[part], device=setting.device), sentences)
            for part in row_batches(len(views), 8 * sentences.shape[0] * sentences.shape[1])
        ]
        scores = setting.logit_scale * mean_score(torch.cat(parts), weights)
        setting.constants["kept"] = kept_sentences(scores, self.tau)

    def _terms(self, setting: Setting) -> dict[str, Term]:
        sentences, kept_by_all = setting.constants["sentences"], setting.constants["kept"]
        centres = ensemble(sentences)
        of_all = ensemble(sentences[:, kept_by_all])
        distance = _DISTANCES[self.sccm_reduction]

        def teacher(step: Step) -> torch.Tensor:
            if self.selection == "dataset":
                return of_all
            found = setting.logit_scale * mean_score(sentence_scores(step.image, sentences), step.batch.weights)
            return ensemble(sentences[:, kept_sentences(found, self.tau)])

        def sccm(step: Step) -> torch.Tensor:
            return self.sccm_weight * distance(step.text, centres)

        def kdsp(step: Step) -> torch.Tensor:
            told = scaled_cosines(step.image, teacher(step), setting.logit_scale)
            divergence = kl_divergence(told, step.logits, reduction="batch_classes", weights=step.batch.weights)
            return self.kdsp_weight * divergence

        return {**super()._terms(setting), "sccm": sccm, "kdsp": kdsp}

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        return sgd_recipe(self, self.max_iter)

    def _publish(self, state: dict[str, NDArray], setting: Setting) -> None:
        super()._publish(state, setting)
        self.kept_descriptions_ = setting.constants["kept"].cpu().numpy()


def described(descriptions: Any, labels: Sequence[Any], names: Sequence[str], n_prompts: int | None) -> list[list[str]]:
    """The sentences of each class, equally many.

    Raises
    ------
    ValueError
        If a class has none, or fewer than another or than `n_prompts`; the message names it.
    """
    try:
        if callable(descriptions):
            texts = fill_templates(list(names), {name: list(descriptions(name)) for name in names})
        else:
            texts = fill_templates(dict(zip(labels, names)), descriptions)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("templates", "descriptions", 1)) from error
    counts = [len(of_class) for of_class in texts]
    fewest = int(np.argmin(counts))
    if n_prompts is not None:
        if counts[fewest] < n_prompts:
            raise ValueError(
                f"descriptions holds {counts[fewest]} sentences about {names[fewest]!r}, fewer than n_prompts="
                f"{n_prompts}."
            )
        return [of_class[:n_prompts] for of_class in texts]
    if max(counts) > counts[fewest]:
        most = int(np.argmax(counts))
        raise ValueError(
            f"descriptions holds {counts[fewest]} sentences about {names[fewest]!r} and {counts[most]} about "
            f"{names[most]!r}; every class needs equally many. n_prompts={counts[fewest]} takes the first of each."
        )
    return texts


def ensemble(sentences: torch.Tensor) -> torch.Tensor:
    """Unit mean of the unit rows (K, P, d) of each class, (K, d)."""
    from torch.nn.functional import normalize

    return normalize(sentences.mean(dim=1), dim=1)


def sentence_scores(image: torch.Tensor, sentences: torch.Tensor) -> torch.Tensor:
    """Largest cosine over classes of each picture with each kind of sentence, (b, P).

    Parameters
    ----------
    image : tensor of shape (b, d)
        Unit rows.
    sentences : tensor of shape (K, P, d)
        Unit rows.
    """
    with in_float32(image):
        cosines = image @ sentences.flatten(0, 1).T
    return cosines.reshape(len(image), *sentences.shape[:2]).amax(dim=1)


def mean_score(scores: torch.Tensor, weights: Any) -> torch.Tensor:
    """Weighted mean over pictures of (b, P)."""
    import torch

    if weights is None:
        return scores.mean(dim=0)
    shares = torch.as_tensor(weights, dtype=scores.dtype, device=scores.device)
    # autocast would multiply matrices in half precision, but not entries
    return (shares[:, None] * scores).sum(dim=0) / shares.sum()


def kept_sentences(scores: torch.Tensor, tau: float) -> torch.Tensor:
    """Which of the mean scores (P,) are at most `tau` standard deviations from their mean, (P,) bool.

    With ``tau >= 1`` some are.
    """
    import torch

    spread = scores.std() if len(scores) > 1 else scores.new_zeros(())
    distances = (scores - scores.mean()).abs()
    # of equal scores none is out
    return torch.where(spread > 0, distances <= tau * spread, torch.ones_like(distances, dtype=torch.bool))
