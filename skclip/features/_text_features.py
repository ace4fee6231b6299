"""`CLIPTextFeatures`: texts in, features out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skclip._backbones import DEFAULT_MODEL, get_card
from skclip.features._extraction import Execution, encode_texts, plan_execution
from skclip.features._transformer import EXECUTION_CONSTRAINTS, ModelTransformer
from skclip.utils._arrays import unit_rows


class CLIPTextFeatures(ModelTransformer):
    """Turn texts into CLIP features, in the space of `CLIPFeatures` of the same model.

    Parameters
    ----------
    model : str or None, default=None
        As in `CLIPFeatures`. None means the model of the enclosing `CLIPClassifier`, or the default model of
        `CLIPFeatures` when alone.
    normalize : bool, default=True
        Divide each row by its Euclidean norm.
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default="auto"
        Where the model runs; "auto" takes an accelerator if there is one.
    precision : {"auto", "float32", "bf16", "fp16"}, default="auto"
        Of the model; "auto" is half precision on accelerators and float32 on CPUs.
    batch_size : int or "auto", default="auto"
        Texts per forward pass.
    store : "memory", path or None, default="memory"
        Where features are kept, see `CLIPFeatures`.

    See Also
    --------
    CLIPFeatures : The same for pictures.
    skclip.ZeroShotClassifier : Class names as a classifier.

    Notes
    -----
    Texts are sorted by length, and where the text tower is causal each batch is cut at its longest end token, which
    changes nothing but the time. A text longer than the model's context is cut, with a `TruncatedTextWarning`.

    Examples
    --------
    >>> from skclip import CLIPTextFeatures
    >>> CLIPTextFeatures("skclip-tiny").fit_transform(["a photo of a red circle", "a blue star"]).shape
    (2, 128)
    """

    # `CLIPClassifier` fills in the model of what encodes class names
    _encodes_text = True
    _parameter_constraints: dict[str, list[Any]] = {
        "model": [str, None],
        "normalize": ["boolean"],
        **EXECUTION_CONSTRAINTS,
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        normalize: bool = True,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | str = "auto",
        store: str | Path | None = "memory",
    ) -> None:
        self.model = model
        self.normalize = normalize
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.store = store

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters; no text is read.

        Parameters
        ----------
        X : sequence of n str
            Ignored.
        y : Ignored

        Returns
        -------
        self : CLIPTextFeatures
        """
        self._fit()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features of texts.

        Parameters
        ----------
        X : sequence of n str
            A list, array, Series or one-column data frame.

        Returns
        -------
        features : ndarray of shape (n, d), float32
            One row per text, in input order.

        Raises
        ------
        ValueError
            If X is empty or has several columns.
        TypeError
            If X is a single text, or an item is not a text; the message names its position.
        """
        self._check()
        rows = encode_texts(check_texts(X), self._execution())
        return unit_rows(rows) if self.normalize else rows

    def _model(self) -> str:
        return DEFAULT_MODEL if self.model is None else self.model

    def _execution(self) -> Execution:
        return plan_execution(self, self._model())

    def _n_names(self) -> int:
        return get_card(self._model()).dim


def check_texts(X: Any) -> list[str]:
    """Check a collection of texts and return it as a list."""
    if isinstance(X, (str, bytes)):
        raise TypeError(f"X is a single text ({X[:40]!r}); pass a list of texts: [X].")
    shape: tuple[int, ...] = getattr(X, "shape", ())
    if len(shape) == 2:  # an array or data frame
        if shape[1] != 1:
            raise ValueError(f"X has {shape[1]} columns; select the one that holds the texts.")
        X = np.asarray(X).ravel()
    if not hasattr(X, "__len__"):
        raise TypeError(f"X is a {type(X).__name__}; expected a list, array or Series of texts.")
    texts = list(X)
    if not texts:
        raise ValueError("Found 0 sample(s) in X while a minimum of 1 is required: X holds no texts.")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"X[{position}] is a {type(text).__name__}, not a text: {text!r:.80}.")
    return [str(text) for text in texts]
