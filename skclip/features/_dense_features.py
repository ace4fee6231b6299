"""`DenseCLIPFeatures`: pictures in, a grid of features out."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skclip._backbones import DEFAULT_MODEL, get_card, grid_shape
from skclip.features._readings import PLACES
from skclip.features._transformer import EXECUTION_CONSTRAINTS, READING_CONSTRAINTS, PictureTransformer
from skclip.utils._arrays import unit_rows
from skclip.utils._docs import fill_doc
from skclip.utils._params import StrOptions


@fill_doc
class DenseCLIPFeatures(PictureTransformer):
    """Turn pictures into grids of CLIP features: what is where, in the space of the text.

    The image tower's last attention gathers the whole picture into one embedding. Read without it, each place keeps
    its own, and a place that shows a dog is near "a photo of a dog".

    Parameters
    ----------
    model : str, default="ViT-B-32/datacomp_xl_s13b_b90k"
        As in `CLIPFeatures`. VisionTransformer and ResNet towers of open_clip's own; towers of timm and CoCa cannot be
        opened.
    mode : {"value"}, default="value"
        How a place is read. "value": through the last block with every token attending to itself alone [1]_, its
        residual path and MLP kept [2]_; of a ResNet through the value and output projections of the attention pool.
    layout : {"grid", "flat"}, default="grid"
        Shape of the output: a grid for each picture, or one long row, as estimators on matrices take it.
    global_token : bool, default=False
        Whether the row of a picture begins with its embedding as a whole, that of `CLIPFeatures`. Takes
        ``layout="flat"``.
    normalize : bool, default=True
        Divide each token by its Euclidean norm.
    %(execution)s
    store : "memory", path or None, default="memory"
        Where features are kept, see `CLIPFeatures`. A picture takes as much room as all its tokens: 0.1 MB of
        ViT-B-32, 0.4 MB of ViT-B-16, and the memory holds 1 GiB.
    on_error : {"raise", "nan"}, default="raise"
        What a picture that cannot be read does, see `CLIPFeatures`.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    grid_shape_ : tuple of int
        Rows and columns of the grid, (h, w).
    n_tokens_ : int
        Tokens of each picture, ``h * w``; one more with `global_token`.

    See Also
    --------
    CLIPFeatures : One row per picture.
    skclip.ood.GLMCMDetector : Reads ``layout="flat", global_token=True``.

    Notes
    -----
    X is what `CLIPFeatures` takes. Pictures are cropped to the model's size as there, and the grid is that of the crop.

    Cost: one pass of the image tower per new picture gives both the picture and its places.

    References
    ----------
    .. [1] C. Zhou, C. C. Loy and B. Dai, "Extract Free Dense Labels from CLIP", ECCV 2022, arXiv:2112.01071.
    .. [2] A. Miyai, Q. Yu, G. Irie and K. Aizawa, "GL-MCM: Global and Local Maximum Concept Matching for Zero-Shot
       Out-of-Distribution Detection", IJCV 2025, arXiv:2304.04521.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.features import DenseCLIPFeatures
    >>> pictures = make_picture_world(3).images
    >>> DenseCLIPFeatures("skclip-tiny").fit_transform(pictures).shape
    (3, 6, 6, 128)
    >>> DenseCLIPFeatures("skclip-tiny", layout="flat", global_token=True).fit_transform(pictures).shape
    (3, 4736)
    """

    _reading = PLACES
    _parameter_constraints: dict[str, list[Any]] = {
        "model": [str],
        "mode": [StrOptions({"value"})],
        "layout": [StrOptions({"grid", "flat"})],
        "global_token": ["boolean"],
        "normalize": ["boolean"],
        **READING_CONSTRAINTS,
        **EXECUTION_CONSTRAINTS,
    }

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        mode: str = "value",
        layout: str = "grid",
        global_token: bool = False,
        normalize: bool = True,
        device: str = "auto",
        precision: str = "auto",
        compile: bool = False,
        batch_size: int | str = "auto",
        decode: str = "exact",
        workers: str = "threads",
        n_workers: int | None = None,
        store: str | Path | None = "memory",
        on_error: str = "raise",
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.mode = mode
        self.layout = layout
        self.global_token = global_token
        self.normalize = normalize
        self.device = device
        self.precision = precision
        self.compile = compile
        self.batch_size = batch_size
        self.decode = decode
        self.workers = workers
        self.n_workers = n_workers
        self.store = store
        self.on_error = on_error
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
        self : DenseCLIPFeatures

        Raises
        ------
        ValueError
            If a parameter does not fit, or the image tower of the model cannot be opened.
        """
        self._fit()
        self.grid_shape_ = grid_shape(get_card(self.model))
        self.n_tokens_ = self._n_tokens()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Grids of features of pictures.

        Parameters
        ----------
        X : sequence of n pictures

        Returns
        -------
        features : ndarray of shape (n, h, w, d), or (n, n_tokens * d) for ``layout="flat"``, float32
            Row 0 of a grid is the top of the picture. Flat rows hold token after token, row by row of the grid.

        Raises
        ------
        ValueError
            If X is empty, or a picture cannot be read and ``on_error="raise"``.
        TypeError
            If X is a single picture, or an item is not a picture.
        """
        self._check()
        return self._encode(X)[:, 0]

    def _check(self) -> None:
        super()._check()
        if self.global_token and self.layout == "grid":
            raise ValueError('global_token=True has no place in layout="grid"; pass layout="flat".')

    def _finish(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of raw rows (n, (1 + h * w) * d), in the shape that `layout` asks for."""
        card = get_card(self.model)
        flat = rows.reshape(-1, card.dim)
        tokens = (unit_rows(flat) if self.normalize else flat).reshape(len(rows), -1, card.dim)
        if not self.global_token:
            tokens = tokens[:, 1:]
        if self.layout == "flat":
            return tokens.reshape(len(tokens), -1)
        return tokens.reshape(len(tokens), *grid_shape(card), -1)

    def _width(self) -> int:
        """Numbers in the row of one picture, whatever the layout."""
        return get_card(self.model).dim * self._n_tokens()

    def _n_names(self) -> int:
        """Columns of the flat layout, channels of the grid."""
        return self._width() if self.layout == "flat" else get_card(self.model).dim

    def _n_tokens(self) -> int:
        return prod(grid_shape(get_card(self.model))) + bool(self.global_token)
