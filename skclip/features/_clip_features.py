"""`CLIPFeatures`: pictures in, features out."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skclip._backbones import DEFAULT_MODEL, get_card
from skclip.features._readings import WHOLE
from skclip.features._transformer import (
    EXECUTION_CONSTRAINTS,
    READING_CONSTRAINTS,
    PictureTransformer,
    encode_training,
)
from skclip.utils._arrays import unit_rows
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval, StrOptions


@fill_doc
class CLIPFeatures(PictureTransformer):
    """Turn pictures into CLIP features: the first step of a pipeline.

    Parameters
    ----------
    model : str, default="ViT-B-32/datacomp_xl_s13b_b90k"
        ``"<architecture>/<pretrained tag>"`` of open_clip (`skclip.list_models`), ``"hf-hub:<repository>"``,
        ``"local-dir:<folder>"``, or the bundled ``"skclip-tiny"`` and ``"skclip-tiny-rn"``, which need no
        download but know coloured shapes and digits only.
    normalize : bool, default=True
        Divide each row by its Euclidean norm.
    n_views : int, default=1
        `fit_transform` gives this many views of each picture: view 0 is the plain picture, the others are
        random crops and mirrorings. `transform` always gives the plain picture alone.
    augmentation : {"crop_flip"} or None, default="crop_flip"
        How views are made: 50 to 100 % of the area, side ratio 3/4 to 4/3, mirrored half of the time. A view
        depends on the picture, `random_state` and its number, never on the position in X. None allows one
        view only.
    %(execution)s
    store : "memory", path or None, default="memory"
        Where features are kept, so that no picture is encoded twice: in this process, in a folder that
        several processes and later sessions share, or nowhere. `skclip.clear_store` empties it.
    on_error : {"raise", "nan"}, default="raise"
        What a picture that cannot be read does: raise, naming its position and the reason, or give a row of
        NaN and an `UnreadablePictureWarning` that lists all of them. No mode drops a row.
    random_state : int, RandomState instance or None, default=None
        Of the views. With None each fit makes new ones.
    verbose : int, default=0
        1 shows a progress bar.

    See Also
    --------
    CLIPTextFeatures : The same for texts.
    skclip.CLIPClassifier : Features and classifier in one object.

    Notes
    -----
    X is a list, array, Series or one-column data frame of paths, PIL images, encoded bytes or uint8 arrays, or
    a uint8 array (n, H, W, 3). Upright 8-bit RGB and grey pictures get open_clip's own pixels, bit for bit.
    Others are first made upright 8-bit RGB: EXIF orientation is applied, opacity is laid over white, palettes and
    CMYK are converted, 16 bits give their high byte, animations their first frame.

    `fit` reads no picture. Cost: one pass of the image tower per new picture (`skclip.get_card` tells its GFLOP);
    a picture in the store costs a look-up.

    References
    ----------
    A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.

    Examples
    --------
    >>> from skclip import CLIPFeatures
    >>> from skclip.datasets import make_picture_world
    >>> pictures = make_picture_world(3).images
    >>> CLIPFeatures("skclip-tiny").fit_transform(pictures).shape
    (3, 128)
    """

    _reading = WHOLE
    _parameter_constraints: dict[str, list[Any]] = {
        "model": [str],
        "normalize": ["boolean"],
        "n_views": [Interval(Integral, 1, None, closed="left")],
        "augmentation": [StrOptions({"crop_flip"}), None],
        "random_state": ["random_state"],
        **READING_CONSTRAINTS,
        **EXECUTION_CONSTRAINTS,
    }

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        normalize: bool = True,
        n_views: int = 1,
        augmentation: str | None = "crop_flip",
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
        self.normalize = normalize
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
        """Check the parameters; no picture is read.

        Parameters
        ----------
        X : sequence of n pictures
            Ignored.
        y : Ignored

        Returns
        -------
        self : CLIPFeatures
        """
        self._fit()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features of pictures.

        Parameters
        ----------
        X : sequence of n pictures

        Returns
        -------
        features : ndarray of shape (n, d), float32
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
        """Features of training pictures, with views where ``n_views`` asks for them.

        Parameters
        ----------
        X : sequence of n pictures
        y : Ignored

        Returns
        -------
        features : ndarray of shape (n, d), or (n, n_views, d) for ``n_views > 1``, float32
        """
        self._fit()
        return encode_training(self, X)

    def _check(self) -> None:
        super()._check()
        if self.augmentation is None and self.n_views > 1:
            raise ValueError(f"n_views={self.n_views} needs augmentation='crop_flip'; augmentation is None.")

    def _finish(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features (n, d) of raw rows."""
        return unit_rows(rows) if self.normalize else rows

    def _width(self) -> int:
        return get_card(self.model).dim
