"""`CLIPLayerStatistics`: pictures in, features and what the layers below them hold out."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skclip._backbones import DEFAULT_MODEL, get_card
from skclip._media import Augmentation
from skclip.features._readings import LAYERS, layer_shape
from skclip.features._transformer import (
    EXECUTION_CONSTRAINTS,
    READING_CONSTRAINTS,
    PictureTransformer,
    encode_training,
)
from skclip.utils._arrays import unit_rows
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval


@fill_doc
class CLIPLayerStatistics(PictureTransformer):
    """Turn pictures into CLIP features with the mean and the deviation of the tokens of every layer behind them.

    The statistics of the lower layers tell how a picture is made (its style), those of the upper ones what it shows.
    `GOProClassifier` writes prompts from them.

    Parameters
    ----------
    model : str, default="ViT-B-32/datacomp_xl_s13b_b90k"
        As in `CLIPFeatures`. VisionTransformer towers of open_clip's own; those of timm and ResNets cannot be read.
    n_views : int, default=1
        `fit_transform` gives this many views of each picture: view 0 is the plain picture, the others are as
        `augmentation` says. `transform` always gives the plain picture alone.
    augmentation : str, default="strong+augmix"
        How views are made; kinds joined by "+" take turns, view after view. A view depends on the picture,
        `random_state` and its number, never on the position in X. All of them begin with a random crop, mirrored half
        of the time.

        - "strong": of 8 to 100 % of the area; colours shift, a fifth of the views turn grey, all are blurred [1]_.
        - "augmix": of 8 to 100 % of the area, mixed with three chains of mild operations [2]_.
        - "crop_flip": of 50 to 100 % of the area, nothing besides.
        - "nola": of 20 to 100 % of the area; colours shift, half of the views are tilted, all are blurred.
    %(execution)s
    store : "memory", path or None, default="memory"
        Where rows are kept, see `CLIPFeatures`. Those of a ViT-B are 38 times as wide as features.
    on_error : {"raise", "nan"}, default="raise"
        What a picture that cannot be read does, see `CLIPFeatures`.
    random_state : int, RandomState instance or None, default=None
        Of the views. With None each fit makes new ones.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    layer_shape_ : tuple of int
        Blocks of the image tower and width of their tokens, (L, W).

    See Also
    --------
    CLIPFeatures : The features alone.
    skclip.tuning.GOProClassifier : Reads these rows.

    Notes
    -----
    X is what `CLIPFeatures` takes. A row holds d + 2 L W numbers: the feature, divided by its Euclidean norm, then, as
    they are, for each block the mean of the tokens behind it and their standard deviation (divisor the number of
    tokens), the class token among them: ``row[d:].reshape(L, 2, W)``.

    Cost: one pass of the image tower per new picture and view gives everything.

    References
    ----------
    .. [1] X. Chen, S. Xie and K. He, "An Empirical Study of Training Self-Supervised Vision Transformers" (MoCo v3),
       ICCV 2021.
    .. [2] D. Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty",
       ICLR 2020.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.features import CLIPLayerStatistics
    >>> pictures = make_picture_world(3).images
    >>> CLIPLayerStatistics("skclip-tiny", n_views=3, random_state=0).fit_transform(pictures).shape
    (3, 3, 896)
    """

    _reading = LAYERS
    _parameter_constraints: dict[str, list[Any]] = {
        "model": [str],
        "n_views": [Interval(Integral, 1, None, closed="left")],
        "augmentation": [str],
        "random_state": ["random_state"],
        **READING_CONSTRAINTS,
        **EXECUTION_CONSTRAINTS,
    }

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        n_views: int = 1,
        augmentation: str = "strong+augmix",
        device: str = "auto",
        precision: str = "auto",
        compile: bool = False,
        batch_size: int | str = "auto",
        decode: str = "exact",
        workers: str = "threads",
        n_workers: int | None = None,
        store: str | Path | None = "memory",
        on_error: str = "raise",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
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

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters and the model; no picture is read.

        Parameters
        ----------
        X : sequence of n pictures
            Ignored.
        y : Ignored

        Returns
        -------
        self : CLIPLayerStatistics

        Raises
        ------
        ValueError
            If a parameter does not fit, or the image tower of the model cannot be opened.
        """
        self._fit()
        self.layer_shape_ = layer_shape(get_card(self.model))
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features and statistics of pictures.

        Parameters
        ----------
        X : sequence of n pictures

        Returns
        -------
        rows : ndarray of shape (n, d + 2 * L * W), float32
            One row per picture, in input order.

        Raises
        ------
        ValueError
            If X is empty, or a picture cannot be read and ``on_error="raise"``.
        TypeError
            If X is a single picture, or an item is not a picture.
        """
        self._check()
        return self._encode(X)[:, 0]

    def fit_transform(self, X: Any, y: Any = None) -> NDArray[np.float32]:
        """Features and statistics of training pictures, with views where `n_views` asks for them.

        Parameters
        ----------
        X : sequence of n pictures
        y : Ignored

        Returns
        -------
        rows : ndarray of shape (n, width), or (n, n_views, width) for ``n_views > 1``, float32
            With ``width = d + 2 * L * W``.
        """
        self.fit(X)
        return encode_training(self, X, Augmentation(self.augmentation))

    def _check(self) -> None:
        super()._check()
        Augmentation(self.augmentation)

    def _finish(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows (n, width) of raw rows."""
        features, statistics = np.split(rows, [get_card(self.model).dim], axis=1)
        return np.hstack([unit_rows(features), statistics])

    def _width(self) -> int:
        return LAYERS.width(get_card(self.model))
