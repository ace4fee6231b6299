"""GOPro: learned words that are moved by the statistics of all layers, and agree across views of a picture."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skclip._backbones import get_card
from skclip.tuning._losses import mse, nt_xent
from skclip.tuning._setting import Setting, Step, Term
from skclip.tuning._tuned import Examples, PromptClassifier, sgd_recipe
from skclip.tuning.prompts._cocoop import logits_per_picture, own_cosines, start_of_linear, text_per_picture
from skclip.tuning.prompts._context import SharedContext
from skclip.tuning.prompts._coop import CONTEXT_CONSTRAINTS
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval, StrOptions

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Inputs, Recipe

    Tensors = dict[str, torch.Tensor]

# the plain picture, and a view of each of two kinds
_SHOWN = 3


@fill_doc
class GOProClassifier(SharedContext, PromptClassifier):
    """Learn the words around the class names, moved by style and content of the picture, from statistics of layers.

    As `CoCoOpClassifier`, but what moves the vectors of a picture is an affine map of the means and deviations of the
    tokens behind each block of the image tower, and the prompts of a picture are held to those of its augmented
    views [1]_.

    Meant for pictures whose style shifts between training and use; the figures of the bundled model in the guide
    :doc:`/user_guide/adaptation` show no clear gain over `CoOpClassifier` there. X are the rows of
    `CLIPLayerStatistics`, whose `fit_transform` gives the views. Each picture has class text of its own: n pictures of
    K classes cost n K prompts through the text tower, in training three times as many. Where style does not shift,
    `KgCoOpClassifier` costs less.

    Parameters
    ----------
    %(model_of_text)s
    %(class_names)s
    n_ctx : int, default=4
        M, the learned vectors, each in the place of one token. Only with ``ctx_init=None``.
    ctx_init : str, default="a photo of a"
        Words to begin with; M is then the number of their tokens. None draws from N(0, 0.02^2).
    class_position : {"end", "middle", "front"}, default="end"
        Where the name stands: after the vectors, between their halves, or before them.
    consistency_weight : float, default=1.0
        Of the mean squared difference between the class text of a picture and that of its views, summed over two views.
        It is a mean over all entries of unit rows, and so small: a weight of about 100 makes it count.
    ssl_weight : float, default=0.1
        Of the contrastive loss between the pictures of a step and their first views; with `distributed` each process
        contrasts those of its own share.
    ssl_temperature : float, default=0.1
        Of the contrastive loss.
    ssl_affects : {"head", "prompts"}, default="head"
        What the contrastive loss trains. "head", as the published code: a linear map with batch normalisation that
        nothing else reads, so that the loss moves no prediction. "prompts", after the paper, and experimental: linear
        maps of image and text, the identity to begin with, through which all cosines are taken.
    max_iter : int, default=50
        Epochs; the published number for 16 pictures per class.
    learning_rate : float, default=0.002
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
    %(tuned)s
    n_features_in_ : int
        d + 2 L W.
    %(feature_names_in_)s

    Warns
    -----
    SkclipWarning
        If a loss of views has a weight and X holds one view of each picture only.

    See Also
    --------
    skclip.features.CLIPLayerStatistics : Makes X.
    CoCoOpClassifier : Moved by the feature alone.

    Notes
    -----
    With mean mu_l and deviation sigma_l of the tokens behind block l of L, all vectors of a picture are moved by
    ``rho_0 + sum_l rho_l (A_l (mu_l + sigma_l) / 2 + a_l + B_l mu_l + b_l) / 2``: 2 L W w numbers, 9.4 million for a
    ViT-B, are learned beside the vectors. (rho_0, which moves all units alike, is as published; text towers that begin
    their blocks with a norm take it away.) ``text_features_`` are those of the vectors without a shift; predictions
    never read them.

    View 0 of X is the plain picture, the views of odd number are of one kind and those of even number of another
    (``augmentation="strong+augmix"``). Each epoch shows the plain picture and one view of each kind; more than 3 views
    stand in for augmenting afresh in every epoch. The published code takes the AugMix views of a whole batch from its
    first picture, augments pictures that are already normalised, and keeps the epoch that is best on the test set; none
    of it is done here.

    References
    ----------
    .. [1] M. Singha, A. Jha and B. Banerjee, "GOPro: Generate and Optimize Prompts in CLIP using Self-Supervised
       Learning", BMVC 2023, arXiv:2308.11605.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.features import CLIPLayerStatistics
    >>> from skclip.tuning import GOProClassifier
    >>> world = make_picture_world(24, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> statistics = CLIPLayerStatistics("skclip-tiny", n_views=3, random_state=0)
    >>> clf = make_pipeline(statistics, GOProClassifier("skclip-tiny", batch_size=8, max_iter=2, random_state=0))
    >>> clf.fit(world.images, world.target).predict_proba(world.images).shape
    (24, 4)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **CONTEXT_CONSTRAINTS,
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "consistency_weight": [Interval(Real, 0, None, closed="left")],
        "ssl_weight": [Interval(Real, 0, None, closed="left")],
        "ssl_temperature": [Interval(Real, 0, None, closed="neither")],
        "ssl_affects": [StrOptions({"head", "prompts"})],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        n_ctx: int = 4,
        ctx_init: str | None = "a photo of a",
        class_position: str = "end",
        consistency_weight: float = 1.0,
        ssl_weight: float = 0.1,
        ssl_temperature: float = 0.1,
        ssl_affects: str = "head",
        max_iter: int = 50,
        learning_rate: float = 0.002,
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
        self.n_ctx = n_ctx
        self.ctx_init = ctx_init
        self.class_position = class_position
        self.consistency_weight = consistency_weight
        self.ssl_weight = ssl_weight
        self.ssl_temperature = ssl_temperature
        self.ssl_affects = ssl_affects
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
        """Scaled cosines of each row with each class, as the row's own prompts name it.

        %(logits)s
        """
        return logits_per_picture(self, X)

    def _rows(self, X: NDArray) -> NDArray:
        from skclip.features._readings import layer_shape

        card = get_card(self._model_name())
        n_layers, width = layer_shape(card)
        expected = card.dim + 2 * n_layers * width
        if X.shape[1] != expected:
            raise ValueError(
                f"X has {X.shape[1]} columns, but GOProClassifier reads features with the statistics of all layers, "
                f"{card.dim} + 2 * {n_layers} * {width} = {expected} columns of model={card.name!r}: those of "
                f"CLIPLayerStatistics({card.name!r}). For features alone take CoCoOpClassifier."
            )
        features, statistics = np.split(X, [card.dim], axis=1)
        return np.hstack([unit_rows(features), statistics])

    def _inputs(self, examples: Examples, setting: Setting, *, training: bool) -> Inputs:
        import torch

        views = examples.X if training else examples.X[:, :1]
        return ViewsOfKinds(torch.tensor(views, device=setting.device))

    def _prepare(self, setting: Setting, examples: Examples) -> None:
        n_views = setting.constants["n_views"] = examples.X.shape[1]
        super()._prepare(setting, examples._replace(X=examples.X[..., : setting.text.dim]))
        if n_views == 1 and (self.consistency_weight or self.ssl_weight):
            warnings.warn(
                f"X holds one view of each picture, so that consistency_weight={self.consistency_weight} and "
                f"ssl_weight={self.ssl_weight} have nothing to compare. Fit with the views of "
                "CLIPLayerStatistics(n_views=3).fit_transform, or set both to 0.",
                SkclipWarning,
                stacklevel=5,
            )

    def _start(self, setting: Setting) -> Tensors:
        import torch

        from skclip.features._readings import layer_shape

        n_layers, width = layer_shape(setting.backbone.card)
        generator, dim = setting.generator, setting.text.dim
        learned = super()._start(setting)
        for name in ("style", "content"):
            learned.update(start_of_linear(name, width, setting.text.width, generator, stack=(n_layers,)))
        learned.update(start_of_linear("layers", n_layers, 1, generator))
        if self.ssl_affects == "head":
            learned.update(start_of_linear("head", dim, dim, generator))
            return {**learned, "norm.weight": torch.ones(dim), "norm.bias": torch.zeros(dim)}
        for name in ("image", "text"):
            learned.update({f"{name}.weight": torch.eye(dim), f"{name}.bias": torch.zeros(dim)})
        return learned

    def _image(
        self, learned: Tensors, setting: Setting, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return _through("image", inputs[:, 0, : setting.text.dim], learned)

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        from torch.nn.functional import normalize

        return _through("text", normalize(super()._text(learned, setting).float(), dim=-1), learned)

    def _scores(self, step: Step) -> torch.Tensor:
        return step.setting.logit_scale * _own_cosines(step.image, self._text_of_views(step)[:, 0], step.learned)

    def _cosines(self, rows: torch.Tensor, learned: Tensors, setting: Setting) -> torch.Tensor:
        """Logits (n, K) of rows (n, width)."""
        import torch
        from torch.nn.functional import normalize

        image = normalize(self._image(learned, setting, rows[:, None]), dim=1)
        texts = text_per_picture(self, shifts(rows[:, setting.text.dim :], learned), learned, setting)
        return setting.logit_scale * torch.cat([_own_cosines(image[part], text, learned) for part, text in texts])

    def _text_of_views(self, step: Step) -> torch.Tensor:
        """Class text of each view of each picture of a batch, unit rows (b, V, K, d), made once."""
        import torch

        made = vars(step)
        if "text_of_views" not in made:
            inputs = step.batch.inputs if self.consistency_weight else step.batch.inputs[:, :1]
            shift = shifts(inputs[..., step.setting.text.dim :].flatten(0, 1), step.learned)
            texts = [text for _, text in text_per_picture(self, shift, step.learned, step.setting)]
            made["text_of_views"] = torch.cat(texts).unflatten(0, inputs.shape[:2])
        return made["text_of_views"]

    def _terms(self, setting: Setting) -> dict[str, Term]:
        import torch

        def consistency(step: Step) -> torch.Tensor:
            plain, *others = self._text_of_views(step).unbind(dim=1)
            distances = [mse(plain, other, step.batch.weights) for other in others]
            return self.consistency_weight * torch.stack(distances).sum()

        def ssl(step: Step) -> torch.Tensor:
            first, second = step.batch.inputs[:, :2, : setting.text.dim].unbind(dim=1)
            return self.ssl_weight * self_supervision(first, second, step.learned, self.ssl_temperature)

        terms = super()._terms(setting)
        if setting.constants["n_views"] > 1:
            terms |= {"consistency": consistency} if self.consistency_weight else {}
            terms |= {"ssl": ssl} if self.ssl_weight else {}
        return terms

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        return sgd_recipe(self, self.max_iter)


class ViewsOfKinds:
    """Rows of n pictures: of each the plain one, and behind it one of its odd and one of its even views.

    Parameters
    ----------
    views : tensor of shape (n, V, width)
        On the device where they are wanted.
    """

    def __init__(self, views: torch.Tensor) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def batches(
        self, rows: Sequence[NDArray[np.intp]], epoch: int, generator: torch.Generator
    ) -> Iterator[torch.Tensor]:
        """Rows (b, min(V, 3), width) of each batch; which views an epoch shows follows from `generator`."""
        import torch

        n, n_views = self.views.shape[:2]
        shown = torch.zeros((n, min(n_views, _SHOWN)), dtype=torch.int64)
        for kind in range(1, shown.shape[1]):
            shown[:, kind] = kind + 2 * torch.randint((n_views - kind + 1) // 2, (n,), generator=generator)
        for batch in rows:
            places = torch.from_numpy(np.asarray(batch, dtype=np.int64))
            device = self.views.device
            yield self.views[places[:, None].to(device), shown[places].to(device)]


def shifts(statistics: torch.Tensor, learned: Tensors) -> torch.Tensor:
    """What the statistics (n, 2 L W) of each picture add to all vectors of its prompts, (n, w).

    The maps of style and content of all layers are one affine map, made before any picture is looked at.
    """
    import torch
    from torch.nn.functional import linear

    style, content, layers = learned["style.weight"], learned["content.weight"], learned["layers.weight"][0]
    maps = torch.stack([style / 4 + content / 2, style / 4], dim=1)  # (L, 2, w, W): of means, of deviations
    weight = (layers[:, None, None, None] * maps).permute(2, 0, 1, 3).flatten(1)
    bias = learned["layers.bias"] + layers @ (learned["style.bias"] + learned["content.bias"]) / 2
    return linear(statistics, weight, bias)


def self_supervision(
    first: torch.Tensor, second: torch.Tensor, learned: Tensors, temperature: float = 0.1
) -> torch.Tensor:
    """Contrastive loss of two views (b, d) behind the head, or behind the map of images where there is no head."""
    from torch.nn.functional import batch_norm, linear

    if len(first) == 1:
        return first.new_zeros(())  # a view has no other to be taken for
    if "head.weight" not in learned:
        return nt_xent(_through("image", first, learned), _through("image", second, learned), temperature)

    def head(rows: torch.Tensor) -> torch.Tensor:
        mapped = linear(rows, learned["head.weight"], learned["head.bias"])
        return batch_norm(mapped, None, None, learned["norm.weight"], learned["norm.bias"], training=True)

    return nt_xent(head(first), head(second), temperature)


def _through(side: str, rows: torch.Tensor, learned: Tensors) -> torch.Tensor:
    """Rows behind the linear map of their side, where one is learned."""
    from torch.nn.functional import linear

    name = f"{side}.weight"
    return linear(rows, learned[name], learned[f"{side}.bias"]) if name in learned else rows


def _own_cosines(image: torch.Tensor, text: torch.Tensor, learned: Tensors) -> torch.Tensor:
    """Cosines (b, K) of unit rows (b, d) with the text (b, K, d) of their own prompts."""
    from torch.nn.functional import normalize

    return own_cosines(image, normalize(_through("text", text, learned).float(), dim=-1))
