"""What all transformers that run a model share: nothing is learned, so that they work before `fit`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import TransformerMixin
from sklearn.utils import check_random_state

from skclip._media import Augmentation, check_images
from skclip.features._extraction import Execution, encode_pictures, plan_execution, reading_parameters
from skclip.features._readings import Reading
from skclip.utils import SkclipBase
from skclip.utils._params import Interval, StrOptions, check_parameters

EXECUTION_CONSTRAINTS: dict[str, list[Any]] = {
    "device": [str],
    "precision": [StrOptions({"auto", "float32", "bf16", "fp16"})],
    "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    "store": [str, Path, None],
}
READING_CONSTRAINTS: dict[str, list[Any]] = {
    "compile": ["boolean"],
    "decode": [StrOptions({"exact", "fast"})],
    "workers": [StrOptions({"threads", "processes"})],
    "n_workers": [Interval(Integral, 1, None, closed="left"), None],
    "on_error": [StrOptions({"raise", "nan"})],
    "verbose": ["verbose"],
}


class ModelTransformer(TransformerMixin, SkclipBase, ABC):
    """A transformer whose rows come from a model of which it learns nothing."""

    _n_features_out: int

    def get_feature_names_out(self, input_features: Any = None) -> NDArray:
        """Names of columns: that of the class in lower case, and a number.

        Parameters
        ----------
        input_features : Ignored

        Returns
        -------
        names : ndarray of str objects
        """
        width = self._n_features_out if hasattr(self, "_n_features_out") else self._n_names()
        return np.asarray([f"{type(self).__name__.lower()}{i}" for i in range(width)], dtype=object)

    def load_backbone(self) -> Any:
        """The model underneath, loaded into this process's cache if it is not there.

        Returns
        -------
        Backbone
            With ``module`` (the open_clip model, frozen: never change it), ``card``, ``tokenizer``, ``device``.
        """
        return self._execution().backbone()

    def _fit(self) -> None:
        self._check()
        if hasattr(self, "_n_features_out"):
            del self._n_features_out  # what follows is a new fit: a missing device is an error again
        self._execution()
        self._n_features_out = self._n_names()

    def _check(self) -> None:
        check_parameters(self)

    @abstractmethod
    def _execution(self) -> Execution:
        """How the parameters ask the model to be run."""

    @abstractmethod
    def _n_names(self) -> int:
        """Columns that have a name each."""

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_n_features_out")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        return tags


class PictureTransformer(ModelTransformer):
    """One that reads pictures; streaming extraction takes any."""

    _reading: ClassVar[Reading]
    model: str
    on_error: str

    @abstractmethod
    def _width(self) -> int:
        """Numbers in the row of one picture."""

    @abstractmethod
    def _finish(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """What `transform` returns for rows (n, width of the reading) as the model gives them."""

    def _encode(
        self, X: Any, *, n_views: int = 1, seed: int = 0, augmentation: Augmentation | None = None
    ) -> NDArray[np.float32]:
        """What `transform` returns, of every view: (n, n_views, ...)."""
        rows = encode_pictures(
            check_images(X),
            range(n_views),
            self._execution(),
            seed=seed,
            on_error=self.on_error,
            reading=self._reading,
            augmentation=augmentation,
        )
        finished = self._finish(rows.reshape(-1, rows.shape[2]))
        return finished.reshape(-1, n_views, *finished.shape[1:])

    def _n_names(self) -> int:
        return self._width()

    def _execution(self) -> Execution:
        return plan_execution(self, self.model, **reading_parameters(self))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def encode_training(transformer: Any, X: Any, augmentation: Augmentation | None = None) -> NDArray[np.float32]:
    """Rows (n, ...), or (n, n_views, ...) where a transformer makes several views of what it is fitted with."""
    if transformer.n_views == 1:
        return transformer._encode(X)[:, 0]
    seed = int(check_random_state(transformer.random_state).randint(2**31))
    return transformer._encode(X, n_views=transformer.n_views, seed=seed, augmentation=augmentation)
