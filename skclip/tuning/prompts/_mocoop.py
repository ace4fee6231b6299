"""MoCoOp: several learned prompts, of which a router mixes the best two for each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.utils.validation import check_is_fitted

from skclip.templates import get_templates
from skclip.templates._templates import Templates
from skclip.tuning._losses import cross_entropy, text_to_text
from skclip.tuning._prompt_text import PromptLayout, PromptWords
from skclip.tuning._setting import Setting, Step, Term, in_float32
from skclip.tuning._tuned import SGD_CONSTRAINTS, Examples, PromptClassifier, sgd_recipe
from skclip.utils._arrays import check_features, first_view, unit_rows
from skclip.utils._cosine import cosine_logits
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames, check_name_list
from skclip.utils._params import Interval

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]

# the groups of the published code that belong to no data set
GENERAL_GROUPS: tuple[tuple[str, ...], ...] = (
    ("a photo of a {}.",),
    ("a photo of many {}.",),
    (
        "a low resolution photo of a {}.",
        "a low resolution photo of the {}.",
        "a pixelated photo of a {}.",
        "a pixelated photo of the {}.",
    ),
    ("a good photo of a {}.", "a good photo of the {}."),
)
# larger gradients are cut to this norm, as published
_CLIP_NORM = 1.0


@fill_doc
class MoCoOpClassifier(PromptClassifier):
    """Learn several prompts, and a router that mixes the best of them for each picture, given as features.

    Where the pictures of a class come in several styles, one prompt has to fit them all. Here each of G experts is a
    prompt of its own, that begins as a hand-written template, and a linear router on the picture's features picks
    `top_k` of them [1]_: ``logits = logit_scale * sum_g a_g cos(x, t_gc)`` with a softmax a over those picked. Training
    minimises the cross entropy, and two terms that hold experts and router to groups of templates.

    Takes new class names. With pictures of one style `KgCoOpClassifier` does the same for a G-th of the time.

    Parameters
    ----------
    %(model_of_text)s
    %(class_names)s
    template_groups : sequence of G groups, default=None
        Each a list of sentences with ``{}`` for the name, one such sentence, or a name of
        `skclip.templates.list_templates`. The expert begins as the first sentence; the mean of all is what it is held
        to. Full stops at the end are taken away. None is four groups of photographs: "a photo of a {}", of many, of low
        resolution, good. A group that says what is special about the pictures, such as "a photo of a {}, a type of
        pet", belongs in front of these.
    top_k : int, default=2
        Experts mixed for each picture.
    text_weight : float, default=5.0
        Of the term that each expert's class text is to be recognised among the class text of its group.
    gate_weight : float, default=1.0
        Of the term that the router is to prefer the groups whose text of the right class is nearest to the picture.
    gate_boost : float, default=10.0
        Added to the `top_k` largest cosines before the softmax that the router is to give: 10 makes it nearly an even
        share of these, 0 leaves nearly an even share of all.
    correction : bool, default=True
        Whether one more vector, the same for all classes and experts, is added to the class text.
    all_class_names : list of str, default=None
        More names for the term of the text, such as those of classes to come. The published figures use them.
    max_iter : int, default=50
        Epochs.
    learning_rate : float, default=0.032
        Of stochastic gradient descent; 1e-5 in the first tenth of the epochs, then from this value down along a
        cosine, by epochs. Gradients of a norm above 1 are cut to it.
    batch_size : int, default=32
        Pictures per step; what is left over at the end of an epoch waits for the next.
    momentum, weight_decay : float, default=0.9, 5e-4
        Of stochastic gradient descent.
    %(tuning)s

    Attributes
    ----------
    %(classes_)s
    %(tuned)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    CoOpClassifier : One prompt.
    BiomedCoOpClassifier : One prompt, held to many sentences.

    Notes
    -----
    Here `text_features_` has the shape (G, K, d): those of each expert.

    The words of an expert on both sides of the name are learned, as many as its first sentence has. An expert that is
    held to unit class text p by the term of the text meets unscaled cosines, whose softmax is nearly even: hence the
    weight of 5.

    The published code tunes the layer norms of the image tower as well, at a tenth of the learning rate, of which the
    paper says nothing; here the image tower stays as it is. The noise that it adds to the text of templates reaches no
    loss, and is left out.

    A step costs G passes of the text tower forwards and backwards; prediction `top_k` matrix products per picture.

    References
    ----------
    .. [1] Y. Du et al., "Mixture of prompts learning for vision-language models", Frontiers in Artificial Intelligence,
       2025, arXiv:2409.12011.

    Examples
    --------
    >>> from skclip import CLIPFeatures
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import MoCoOpClassifier
    >>> world = make_picture_world(64, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch", "dark"])
    >>> X = CLIPFeatures("skclip-tiny").fit_transform(world.images)
    >>> groups = [["a photo of a {}"], ["a sketch of a {}", "a line drawing of a {}"], ["a dark photo of a {}"]]
    >>> clf = MoCoOpClassifier("skclip-tiny", template_groups=groups, max_iter=3, random_state=0)
    >>> clf.fit(X, world.target).prompt_indices(X).shape
    (64, 2)
    >>> clf.with_classes(["green circle", "green star"]).predict_proba(X).shape
    (64, 2)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **SGD_CONSTRAINTS,
        "template_groups": [Sequence, None],
        "top_k": [Interval(Integral, 1, None, closed="left")],
        "text_weight": [Interval(Real, 0, None, closed="left")],
        "gate_weight": [Interval(Real, 0, None, closed="left")],
        "gate_boost": [Interval(Real, 0, None, closed="left")],
        "correction": ["boolean"],
        "all_class_names": ["array-like", None],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        template_groups: Sequence[Templates] | None = None,
        top_k: int = 2,
        text_weight: float = 5.0,
        gate_weight: float = 1.0,
        gate_boost: float = 10.0,
        correction: bool = True,
        all_class_names: Sequence[str] | None = None,
        max_iter: int = 50,
        learning_rate: float = 0.032,
        batch_size: int = 32,
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
        self.template_groups = template_groups
        self.top_k = top_k
        self.text_weight = text_weight
        self.gate_weight = gate_weight
        self.gate_boost = gate_boost
        self.correction = correction
        self.all_class_names = all_class_names
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

    def logits(self, X: Any) -> NDArray:
        """Scaled cosines of each row with each class, mixed of the experts that the router picks.

        %(logits)s
        """
        router = self.route(X)
        rows = self._feature_rows(X)
        chosen = _preferred(router, self.top_k)
        shares = softmax(np.take_along_axis(router, chosen, axis=1), axis=1)
        logits = np.zeros((len(rows), len(self.classes_)))
        for g, text in enumerate(self.text_features_):
            places, ranks = np.nonzero(chosen == g)
            logits[places] += shares[places, ranks, None] * cosine_logits(rows[places], text, self.logit_scale_)
        return logits

    def route(self, X: Any) -> NDArray:
        """What the router says of each expert.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n, G)
            Logits, experts in the order of `template_groups`.
        """
        check_is_fitted(self)
        return self._feature_rows(X) @ self.state_delta_["router.weight"].T + self.state_delta_["router.bias"]

    def prompt_indices(self, X: Any) -> NDArray[np.intp]:
        """The experts that are mixed for each picture.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n, top_k)
            Positions among `template_groups`, the preferred first.
        """
        return _preferred(self.route(X), self.top_k)

    def _feature_rows(self, X: Any) -> NDArray:
        return unit_rows(first_view(*check_features(self, X)))

    def _prepare(self, setting: Setting, examples: Examples) -> None:
        import torch

        groups = template_groups(self.template_groups, self.top_k)
        names = setting.names
        if self.all_class_names is not None:
            given = [name.replace("_", " ") for name in check_name_list(self.all_class_names)]
            known = set(names)  # two classes may have one name, and each is to keep its place
            names = [*names, *(name for name in dict.fromkeys(given) if name not in known)]
        everyone = replace(setting, names=names, constants={})
        setting.constants["experts"] = experts(everyone, groups)  # refuses long names, before anything cuts them
        super()._prepare(setting, examples)
        setting.constants["prototypes"] = torch.stack([everyone.class_text(group) for group in groups])

    def _start(self, setting: Setting) -> Tensors:
        import torch

        learned = {}
        for g, (words, _) in enumerate(setting.constants["experts"]):
            ids = torch.tensor([*words.before, *words.behind], dtype=torch.long, device=setting.device)
            learned[f"ctx.{g}"] = setting.text.embed(ids).float().cpu()
        n_experts, width = len(setting.constants["experts"]), setting.text.dim
        for name, shape in (("router.weight", (n_experts, width)), ("router.bias", (n_experts,))):
            learned[name] = (2.0 * torch.rand(shape, generator=setting.generator) - 1.0) / math.sqrt(width)
        if self.correction:
            learned["correction"] = torch.zeros(width)
        return learned

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        """Of all experts, (G, K, d); in training with the names of `all_class_names` behind."""
        import torch

        if "experts" not in setting.constants:
            groups = template_groups(self.template_groups, self.top_k)
            setting.constants["experts"] = experts(setting, groups, learned)
        rows = []
        for g, (words, prompt) in enumerate(setting.constants["experts"]):
            before, after = learned[f"ctx.{g}"].tensor_split([len(words.before)])
            rows.append(setting.text(prompt(before, after)))
        text = torch.cat(rows)
        return text + learned["correction"] if self.correction else text

    def _encode_classes(self, setting: Setting, state: dict[str, NDArray] | None = None) -> None:
        super()._encode_classes(replace(setting, constants={}), state)  # without names that are no classes

    def _scores(self, step: Step) -> torch.Tensor:
        text = step.text[:, : len(step.setting.names)]
        with in_float32(text):
            return step.setting.logit_scale * mixed_cosines(step.image, text, router_logits(step), self.top_k)

    def _terms(self, setting: Setting) -> dict[str, Term]:
        prototypes = setting.constants["prototypes"]

        def text(step: Step) -> torch.Tensor:
            return self.text_weight * text_to_text(step.text, prototypes)

        def gate(step: Step) -> torch.Tensor:
            targets = routing_targets(step.image, prototypes, step.batch.codes, self.gate_boost, self.top_k)
            return self.gate_weight * cross_entropy(router_logits(step), targets, step.batch.weights)

        return {**super()._terms(setting), "text": text, "gate": gate}

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        # the published 5 epochs of 50, 3 of 25, 1 of 10
        return replace(sgd_recipe(self, self.max_iter), warmup=math.ceil(self.max_iter / 10), clip_norm=_CLIP_NORM)


def template_groups(given: Sequence[Templates] | None, top_k: int) -> list[tuple[str, ...]]:
    """The sentences of each group, without full stops at their ends.

    Raises
    ------
    ValueError
        Fewer groups than `top_k`, or a group that is none; the message says which.
    """
    groups = []
    for g, group in enumerate(GENERAL_GROUPS if given is None else given):
        try:
            groups.append(tuple(sentence.rstrip(". ") for sentence in get_templates(group)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"template_groups[{g}]: {error}") from error
    if len(groups) < top_k:
        raise ValueError(f"top_k={top_k} experts are to be mixed, but template_groups holds {len(groups)}.")
    return groups


def experts(
    setting: Setting, groups: Sequence[Sequence[str]], learned: Tensors | None = None
) -> list[tuple[PromptWords, PromptLayout]]:
    """The first sentence of each group: its words, and the prompts in which all of them are learned.

    Behind the name stand as many vectors as `learned` has there, or as the sentence has words without any name.
    """
    made = []
    for g, (sentence, *_) in enumerate(groups):
        words = setting.words(sentence)
        n_after = len(words.behind) if learned is None else len(learned[f"ctx.{g}"]) - len(words.before)
        made.append((words, PromptLayout(setting.text, words, setting.names, len(words.before), n_after=n_after)))
    return made


def router_logits(step: Step) -> torch.Tensor:
    """What the router says of each expert for each picture, (b, G)."""
    with in_float32(step.image):
        return step.image @ step.learned["router.weight"].T + step.learned["router.bias"]


def mixed_cosines(image: torch.Tensor, text: torch.Tensor, router: torch.Tensor, top_k: int) -> torch.Tensor:
    """Cosines with the class text of the experts that a router picks, mixed by the softmax over these, (b, K).

    Equal to the product with mixed class text that is not normalised again.

    Parameters
    ----------
    image : tensor of shape (b, d)
        Unit rows.
    text : tensor of shape (G, K, d)
        Unit rows.
    router : tensor of shape (b, G)
    top_k : int
    """
    import torch

    picked, chosen = router.topk(top_k, dim=1)
    shares = torch.zeros_like(router).scatter(1, chosen, picked.softmax(dim=1))
    return torch.einsum("bg,bgk->bk", shares, torch.einsum("bd,gkd->bgk", image, text))


def routing_targets(
    image: torch.Tensor, prototypes: torch.Tensor, codes: torch.Tensor, boost: float, top_k: int
) -> torch.Tensor:
    """What a router is to say of training pictures, probabilities (b, G).

    Softmax of the cosines of a picture with its own class as each group of templates describes it, the `top_k` largest
    raised by `boost`.

    Parameters
    ----------
    image : tensor of shape (b, d)
        Unit rows.
    prototypes : tensor of shape (G, K, d)
        Unit rows.
    codes : tensor of shape (b,)
    boost : float
    top_k : int
    """
    import torch

    with in_float32(image):
        cosines = torch.einsum("bd,gbd->bg", image, prototypes[:, codes])
    best = cosines.topk(top_k, dim=1).indices
    return cosines.scatter_add(1, best, torch.full_like(cosines, boost)).softmax(dim=1)


def _preferred(router: NDArray, top_k: int) -> NDArray[np.intp]:
    return np.argsort(-router, axis=1, kind="stable")[:, :top_k]
