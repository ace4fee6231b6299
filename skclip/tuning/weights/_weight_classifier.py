"""What the methods have in common that train weights of the towers, or numbers from which weights follow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skclip.tuning._setting import Setting, Step, scaled_cosines
from skclip.tuning._tuned import PICTURE_CONSTRAINTS, TRAINING_CONSTRAINTS, TowerClassifier
from skclip.tuning._weight_specs import LAYER_NAMES, WeightSpec, merge
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval, StrOptions

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]

WEIGHT_CONSTRAINTS: dict[str, list[Any]] = {
    **TRAINING_CONSTRAINTS,
    **PICTURE_CONSTRAINTS,
    "template": [str],
    "encoder": [StrOptions({"both", "vision", "text"})],
}
# of methods that tune chosen matrices, for so many steps per picture of a class
SHOTS_CONSTRAINTS: dict[str, list[Any]] = {
    **WEIGHT_CONSTRAINTS,
    "targets": [list, tuple],
    "layers": [StrOptions(set(LAYER_NAMES)), list, tuple],
    "logit_scale": [Interval(Real, 0, None, closed="neither"), None],
    "steps_per_shot": [Interval(Integral, 1, None, closed="left")],
    "max_iter": [Interval(Integral, 0, None, closed="left"), None],
}


@fill_doc
class WeightClassifier(TowerClassifier):
    """Base of the methods that train weights of one tower or both.

    A method says by `_spec` what it trains of the towers of `encoder`. With ``encoder="text"`` the image tower
    stays as it is: pictures are encoded once, and features do as well.
    """

    encoder: str
    template: str

    @abstractmethod
    def _spec(self, sides: Sequence[str]) -> WeightSpec:
        """What is trained of these towers."""

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learn from labelled pictures.

        Parameters
        ----------
        X : sequence of n pictures, or array-like of shape (n, d) or (n, V, d)
            Paths, PIL pictures, encoded bytes or uint8 arrays. With ``encoder="text"`` also their features by the same
            model; of V views each epoch draws one per picture.
        %(y_fit)s
        %(weights_fit)s

        %(self)s

        Raises
        ------
        %(raises_tuning)s
            Also if a picture cannot be read, or the model has no weights of the kind that is trained.
        """
        return self._fit(X, y, sample_weight)

    def merge(self) -> dict[str, NDArray]:
        """The tuned weights for good, to be used without this package.

        Returns
        -------
        dict of str to ndarray
            Every parameter that differs from the model's, by its name in the model's state dict: what
            ``load_state_dict(..., strict=False)`` of the open_clip model takes, as tensors.
        """
        check_is_fitted(self)
        setting = self._restored()
        merged = merge(self._spec(self._sides()), setting.backbone.module, self._tensors(setting))
        return {name: value.cpu().numpy() for name, value in merged.items()}

    def _changes_images(self) -> bool:
        return self.encoder != "text"

    def _sides(self) -> tuple[str, ...]:
        return ("vision", "text") if self.encoder == "both" else (self.encoder,)

    def _start(self, setting: Setting) -> Tensors:
        return self._spec(self._sides()).start(setting.backbone.module, setting.generator)

    def _in_place(
        self, learned: Tensors, setting: Setting, side: str, generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """What a tower is to be called with: branches in training where there are such, else weights."""
        if side not in self._sides():
            return {}
        spec, module = self._spec((side,)), setting.backbone.module
        branches = {} if generator is None else spec.branches(module, learned, generator)
        return {"branches": branches} if branches else {"weights": spec.overrides(module, learned)}

    def _image(
        self, learned: Tensors, setting: Setting, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        if self.encoder == "text":
            return inputs
        return setting.vision(inputs, **self._in_place(learned, setting, "vision", generator))

    def _image_encoder(self, learned: Tensors, setting: Setting) -> Callable[[torch.Tensor], torch.Tensor]:
        options = self._in_place(learned, setting, "vision")  # once for all batches
        return lambda inputs: setting.vision(inputs, **options)

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        return self._class_text(learned, setting)

    def _class_text(self, learned: Tensors, setting: Setting, generator: torch.Generator | None = None) -> torch.Tensor:
        """Projections of the classes, (K, d); `generator` where it is for training."""
        frozen, constants = self.encoder == "vision", setting.constants
        if "class_text" not in constants:
            sentences = [sentence for (sentence,) in setting.sentences([self.template])]
            constants["class_text"] = (setting.encode_texts if frozen else setting.backbone.text_ids)(sentences)
        if frozen:
            return constants["class_text"]
        return setting.text.encode_ids(constants["class_text"], **self._in_place(learned, setting, "text", generator))

    def _scores(self, step: Step) -> torch.Tensor:
        from torch.nn.functional import normalize

        if step.batch.generator is None:  # as prediction does
            return super()._scores(step)
        text = normalize(self._class_text(step.learned, step.setting, step.batch.generator).float(), dim=-1)
        return scaled_cosines(step.image, text, step.setting.logit_scale)


def checked_targets(targets: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The matrices to tune, each one of those that the method knows."""
    if not targets or not set(targets) <= set(known):
        raise ValueError(f"targets={targets!r} must hold some of {', '.join(map(repr, known))}.")
    return tuple(targets)


def recipe_by_shots(estimator: Any, n_pictures: int, n_classes: int, schedule: str = "cosine") -> Recipe:
    """AdamW for `max_iter` epochs, or without these for `steps_per_shot` steps per picture of a class."""
    from skclip.tuning._engine import Recipe

    shots = max(1, round(n_pictures / n_classes))
    return Recipe(
        max_iter=estimator.max_iter or 0,
        n_steps=estimator.steps_per_shot * shots if estimator.max_iter is None else None,
        batch_size=estimator.batch_size,
        learning_rate=estimator.learning_rate,
        optimizer="adamw",
        weight_decay=estimator.weight_decay,
        schedule=schedule,
        n_iter_no_change=estimator.n_iter_no_change if estimator.early_stopping else None,
    )
