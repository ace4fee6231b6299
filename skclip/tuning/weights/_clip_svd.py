"""CLIP-SVD: the singular values of the model's own matrices, trained."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skclip._backbones._matrices import KINDS, block_matrices
from skclip.tuning._setting import Setting
from skclip.tuning._tuned import Examples, TowerClassifier, check_pictures
from skclip.tuning._weight_specs import Layers, SingularValues, layer_numbers, merge
from skclip.tuning.weights._heads import HeadChange, HeadTexts, by_runs, by_weights, head_changes, texts_of_heads
from skclip.tuning.weights._weight_classifier import (
    SHOTS_CONSTRAINTS,
    WeightClassifier,
    checked_targets,
    recipe_by_shots,
)
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval, StrOptions

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]

_TEXTS_AT_ONCE = 256


@fill_doc
class CLIPSVDClassifier(WeightClassifier):
    """Tune the singular values of CLIP's own matrices, from a few labelled pictures.

    Each matrix of the transformer blocks is taken apart, ``W = U diag(S) V^T``, and S alone is trained [1]_: the
    directions that a matrix reads and writes stay, how strongly it does so changes. Nothing is added to the model, and
    a merged one costs what CLIP costs. Class text and pictures are encoded anew at every step, and training minimises
    the cross entropy of their scaled cosines.

    Half the numbers of `CLIPLoRAClassifier`, and they say which heads have changed, see `head_changes` and `interpret`.

    Parameters
    ----------
    %(model_to_tune)s
    %(class_names)s
    template : str, default="a photo of a {}."
        The sentence of a class.
    targets : sequence of {"q", "k", "v", "o", "fc1", "fc2"}, default=all of them
        Matrices of queries, keys, values and of the attention's output, and the two of the MLP.
    encoder : {"both", "vision", "text"}, default="both"
        Towers to tune. With "text", `fit` takes features in the place of pictures, which it encodes only once.
    layers : str or sequence of str and int, default="all"
        Blocks to tune: "all", one of the thirds "bottom", "middle" and "top" or of "lower_half" and "upper_half", or a
        sequence of these and of positions.
    rank_ratio : float, default=1.0
        Share of the singular values that are kept, the largest, rounded down to a multiple of 4. Below 1 the model is
        not what it was even before training.
    positive : bool, default=False
        Whether the magnitude of a trained value counts. Else it may pass 0, and turns the direction that it writes.
    logit_scale : float, default=None
        Multiplier of the cosines. None is the model's own; the published code has 100, which is that of OpenAI's.
    steps_per_shot : int, default=200
        Steps of training per picture of a class; a class counts as having ``n / K`` pictures, rounded.
    max_iter : int, default=None
        Epochs, in the place of `steps_per_shot`.
    learning_rate : float, default=5e-4
        Of AdamW. Published for biomedical pictures: 0.0005 to 0.02, by data set.
    weight_decay : float, default=0.01
        Draws the singular values towards 0, not to where they were. Published for biomedical pictures: 0.
    schedule : {"cosine", "svd_code"}, default="cosine"
        The learning rate falls to 1e-6 along a cosine, step by step; "svd_code" does as the published code where it
        counts epochs: a cosine meant to span the epochs spans as many steps, and the rate swings up and down.
    batch_size : int, default=32
        Pictures per step; what is left over at the end of an epoch waits for the next.
    %(tuning_pictures)s
    %(tuning)s

    Attributes
    ----------
    %(classes_)s
    %(tuned)s
    singular_values_ : dict of str to (ndarray, ndarray)
        Of each matrix, by names such as ``"visual.transformer.resblocks.0.attn.q"``: the values before, descending,
        and those that training has put in their places.

    See Also
    --------
    CLIPLoRAClassifier : Adds updates of low rank to the matrices.
    CLIPFineTuneClassifier : Tunes every weight.
    TextSpan : The search behind `interpret`.

    Notes
    -----
    One number per direction: 92,160 for ViT-B-16, 0.06 % of the model (the 0.04 % of the paper are of the numbers that
    the decompositions hold). `state_delta_` holds S alone; U and V are computed again where a saved estimator is
    loaded. That is safe for two reasons. The weights must be those of `fit`, by their digest, or every method that
    needs the towers raises an error. And a decomposition in float64 gives the same products ``u_i v_i^T``, whatever its
    signs, on every machine, unless two values agree to some 10 digits, which those of trained matrices do not. What is
    added to a matrix is ``U diag(S' - S) V^T``: before training the model is what it was, to the bit.

    The decompositions are computed once for each loaded model, on the processor, and shared by all estimators: for
    ViT-B-16 a minute on one core, and one and a half times the memory of the matrices. Beside its forward and backward
    pass a step costs two products per matrix.

    References
    ----------
    .. [1] T. Koleilat, H. Rivaz and Y. Xiao, "Singular Value Few-shot Adaptation of Vision-Language Models", 2025,
       arXiv:2509.03740.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import CLIPSVDClassifier
    >>> world = make_picture_world(32, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> clf = CLIPSVDClassifier("skclip-tiny", max_iter=2, learning_rate=0.01, random_state=0)
    >>> clf.fit(world.images, world.target).predict_proba(world.images[:2]).shape
    (2, 4)
    >>> before, after = clf.singular_values_["visual.transformer.resblocks.0.attn.q"]
    >>> before.shape
    (96,)
    >>> len(clf.head_changes())
    16
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **SHOTS_CONSTRAINTS,
        "rank_ratio": [Interval(Real, 0, 1, closed="right")],
        "positive": ["boolean"],
        "schedule": [StrOptions({"cosine", "svd_code"})],
    }

    singular_values_: dict[str, tuple[NDArray, NDArray]]

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        template: str = "a photo of a {}.",
        targets: Sequence[str] = KINDS,
        encoder: str = "both",
        layers: Layers = "all",
        rank_ratio: float = 1.0,
        positive: bool = False,
        logit_scale: float | None = None,
        steps_per_shot: int = 200,
        max_iter: int | None = None,
        learning_rate: float = 5e-4,
        weight_decay: float = 0.01,
        schedule: str = "cosine",
        batch_size: int = 32,
        augmentation: str | None = "crop_flip",
        min_crop: float = 0.08,
        n_workers: int | None = None,
        store: str | Path | None = "memory",
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
        self.template = template
        self.targets = targets
        self.encoder = encoder
        self.layers = layers
        self.rank_ratio = rank_ratio
        self.positive = positive
        self.logit_scale = logit_scale
        self.steps_per_shot = steps_per_shot
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.min_crop = min_crop
        self.n_workers = n_workers
        self.store = store
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

    def head_changes(self, kind: str = "per_head") -> list[HeadChange]:
        """How far training has moved each head of the image tower.

        Parameters
        ----------
        kind : {"per_head", "code"}, default="per_head"
            "per_head" measures what became of the head's rows of the values' matrix, and of its columns of the
            output's, by their Frobenius norm. "code" does as the published code: it cuts the descending singular
            values of each of these matrices into as many runs as there are heads, and takes run h for head h, though a
            singular value belongs to no single head; the norm of the change has the sign of its mean.

        Returns
        -------
        list of HeadChange
            Named tuples ``(layer, head, change, relative, value, output)``, the largest change first; 0 where nothing
            was tuned.

        Raises
        ------
        ValueError
            An image tower that is none of open_clip's own transformers.
        """
        if kind not in ("per_head", "code"):
            raise ValueError(f"kind={kind!r} must be 'per_head' or 'code'.")
        check_is_fitted(self)
        setting = self._restored()
        module, matrices = setting.backbone.module, block_matrices(setting.backbone.module, "vision")
        if kind == "code":
            return head_changes(matrices, setting.vision.n_heads, by_runs(self.singular_values_), signed=True)
        merged = merge(self._spec(self._sides()), module, self._tensors(setting))
        return head_changes(matrices, setting.vision.n_heads, by_weights(module, merged), signed=False)

    def interpret(self, texts: Sequence[str], X: Any, *, n_texts: int = 10, layers: Layers = "top") -> list[HeadTexts]:
        """The texts that say best what each head of the tuned image tower tells apart, by `TextSpan`.

        Parameters
        ----------
        texts : sequence of M str
            To choose from, such as sentences about colours, shapes and places.
        X : sequence of n pictures
            At least 2, better hundreds; as `fit` takes them.
        n_texts : int, default=10
            Texts of each head.
        layers : str or sequence of str and int, default="top"
            Blocks to interpret, as of the parameter `layers`: those near the output write most of the features.

        Returns
        -------
        list of HeadTexts
            Named tuples ``(layer, head, texts, explained)``, block by block.

        Raises
        ------
        ValueError
            An image tower that is none of open_clip's own transformers.

        Warns
        -----
        TruncatedTextWarning
            Texts longer than the model reads.
        """
        import torch

        check_is_fitted(self)
        setting = self._restored()
        learned, pictures = self._tensors(setting), check_pictures(X, type(self).__name__)
        chosen = sorted(layer_numbers(layers, setting.vision.n_layers))
        with torch.no_grad():
            contributions = self._contributions(learned, setting, pictures, chosen)
            text_features = self._text_features(learned, setting, texts)
        rank = setting.vision.width // setting.vision.n_heads
        return texts_of_heads(contributions, text_features, texts, chosen, n_texts, rank)

    def _contributions(
        self, learned: Tensors, setting: Setting, pictures: Any, layers: Sequence[int]
    ) -> NDArray[np.float32]:
        """What the heads of some blocks add to the features, (n, layers, H, d)."""
        inputs = TowerClassifier._inputs(
            self, Examples(pictures, np.zeros(len(pictures)), None), setting, training=False
        )
        parts = np.array_split(np.arange(len(pictures)), -(-len(pictures) // self.batch_size))
        weights = self._in_place(learned, setting, "vision")
        rows = []
        for batch in inputs.batches(parts, 0, setting.generator):
            found = setting.vision.head_contributions(batch, **weights)
            whole = found.heads.sum(dim=(1, 2)) + found.mlps.sum(dim=1) + found.rest
            rows.append((found.heads[:, list(layers)] / whole.norm(dim=1)[:, None, None, None]).cpu().numpy())
        return np.concatenate(rows)

    def _text_features(self, learned: Tensors, setting: Setting, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit rows of texts by the tuned tower, (M, d)."""
        import torch
        from torch.nn.functional import normalize

        weights = self._in_place(learned, setting, "text")
        parts = setting.backbone.text_ids(texts).split(_TEXTS_AT_ONCE)
        rows = torch.cat([setting.text.encode_ids(ids, **weights) for ids in parts])
        return normalize(rows.float(), dim=1).cpu().numpy()

    def _spec(self, sides: Sequence[str]) -> SingularValues:
        targets = checked_targets(self.targets, KINDS)
        return SingularValues(targets, self.layers, tuple(sides), self.rank_ratio, self.positive)

    def _publish(self, state: dict[str, NDArray], setting: Setting) -> None:
        before = self._spec(self._sides()).start(setting.backbone.module)
        after = {name: np.abs(value) if self.positive else value for name, value in state.items()}
        self.singular_values_ = {name: (value.numpy(), after[name]) for name, value in before.items()}

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        return recipe_by_shots(self, n_pictures, n_classes, schedule=self.schedule)
