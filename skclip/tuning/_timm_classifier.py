"""A network of timm behind fit and predict_proba, trained on pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skclip._backbones import (
    BackboneError,
    build_network,
    cached_network,
    device_of_fitted,
    head_names,
    keep_network,
    network_card,
    network_weights,
    resolve_device,
    resolve_precision,
    run_batched,
    weights_file_digest,
)
from skclip._media import PictureTransform, check_images, stack_pictures
from skclip.tuning._advice import autocast
from skclip.tuning._network_training import NetworkRecipe, Pixels, train_network
from skclip.utils._arrays import check_weights, take_rows
from skclip.utils._base import SkclipBase, forget_fit
from skclip.utils._classifier import LogitsMixin
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval, StrOptions, check_parameters
from skclip.utils._training import check_target

if TYPE_CHECKING:
    import torch

_CHUNK = 256  # pictures read together for prediction


@fill_doc
class TimmClassifier(LogitsMixin, SkclipBase):
    """Train a network of timm on pictures, from scratch or from a checkpoint.

    The classifier that knows nothing of CLIP: a member for `COOkeDClassifier`, a baseline, or the model to deploy where
    thousands of labelled pictures are at hand. With fewer, a classifier on the features of a CLIP model is better, and
    fitted in a second.

    Parameters
    ----------
    model : str, default="resnet18"
        Name of a model of timm, with or without tag (``"resnet18.a1_in1k"``). Weights are not part of the name.
    pretrained : bool, str or path, default=False
        Weights to start from: random ones; True, those of the hub, downloaded once; or a checkpoint of the same
        architecture (safetensors, or a torch file of tensors alone) trained for any classes. The last layer is new.
    image_size : int, default=None
        Side of the square pictures that the network reads. None is the model's own.
    trainable : {"all", "head"}, default="all"
        Whether everything learns, or the last layer alone; the latter only with weights to start from.
    max_iter : int, default=100
        Epochs.
    learning_rate : float, default=None
        Of stochastic gradient descent. None is 0.1 from scratch and 0.01 from given weights [1]_. Transformers want
        less.
    batch_size : int, default=128
        Pictures per step, and per forward pass of a prediction, where it changes no result and is halved when memory
        runs out.
    momentum : float, default=0.9
    weight_decay : float, default=5e-4
        Not of biases and of the scales of normalisation layers.
    schedule : {"cosine", "constant"}, default="cosine"
        Whether the learning rate falls to 0 along a cosine after the warm-up.
    warmup : float, default=0.05
        Share of the steps in which the learning rate rises linearly.
    label_smoothing : float, default=0.0
        Share of each label given to all classes alike.
    augmentation : {"crop_flip"} or None, default="crop_flip"
        Random regions of half to all of the picture, mirrored half of the time; None trains on what prediction reads.
        Where left and right matter, as in digits, None.
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default="auto"
        Where to train and to predict. Where a fitted classifier lacks it, it predicts on the CPU.
    precision : {"auto", "float32", "bf16", "fp16"}, default="auto"
        Of the network's products; its weights are float32. "auto" is float32 on CPUs and fp16 on accelerators.
    n_workers : int, default=None
        Threads that read pictures. None is one per core, at most 8.
    random_state : int, RandomState or None, default=None
        Random weights, order of the pictures, crops. An integer gives the same network again on one CPU.
    %(verbose)s

    Attributes
    ----------
    %(classes_)s
    state_delta_ : dict of str to ndarray
        Weights and statistics, by name, that differ from those that training started with; all of them from scratch.
    start_digest_ : str
        SHA-256 of the file of the weights that training started with; "" for random ones.
    state_digest_ : str
        Names the trained network.
    preprocessing_ : dict
        How pictures are made: "image_size", "stored_size", "interpolation", "resize_mode", "mean", "std".
    loss_curve_ : list of float
        Mean loss of each epoch.
    n_iter_ : int
        Epochs run.

    See Also
    --------
    skclip.ensemble.COOkeDClassifier : Averages it with classifiers on CLIP features.
    skclip.CLIPClassifier : The better choice for few pictures.

    Notes
    -----
    The published recipe [1]_ names 100 epochs and the learning rates; momentum, decay, batch size and warm-up are
    choices of this package.

    Pictures are read once, by threads, into one uint8 array (`preprocess`), from which all epochs are trained:
    n * S * S * 3 bytes, where S is `image_size` over the share that the model's evaluation cuts out; 166 kB a picture
    for resnet18 at its own 224. `fit` and predictions take such an array in place of pictures, with identical results;
    so a search that fits often is given ``TimmClassifier(...).preprocess(X)``.

    A fitted classifier is pickled with its weights, never with the network, which each process builds when it predicts
    first; the four used last are kept (`clear_backbones` drops them). Where `state_delta_` is not all of the network,
    as with ``trainable="head"``, the checkpoint is read again, and another one is refused.

    Prediction uses stored statistics, so that a picture's answer depends on that picture alone. All that is random
    comes from generators of its own, or from those of torch, which go on afterwards as if nothing had been.

    Cost: epochs times n forward and backward passes. resnet18 at 32 pixels takes about 10 ms a picture and epoch on
    one CPU core.

    References
    ----------
    .. [1] "COOkeD: Ensemble-based OOD detection in the era of zero-shot CLIP", ICCV 2025 workshops, arXiv:2507.22576.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import TimmClassifier
    >>> world = make_picture_world(64, shapes=["circle"], colors=["red", "blue"], image_size=32)
    >>> clf = TimmClassifier("test_resnet", image_size=32, max_iter=2, batch_size=16, random_state=0)
    >>> clf.fit(world.images, world.target).predict_proba(world.images[:3]).shape
    (3, 2)
    """

    _set_last = "state_delta_"
    _parameter_constraints: dict[str, list[Any]] = {
        "model": [str],
        "pretrained": ["boolean", str, os.PathLike],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "trainable": [StrOptions({"all", "head"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "schedule": [StrOptions({"cosine", "constant"})],
        "warmup": [Interval(Real, 0, 1, closed="left")],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "augmentation": [StrOptions({"crop_flip"}), None],
        "device": [str],
        "precision": [StrOptions({"auto", "float32", "bf16", "fp16"})],
        "n_workers": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model: str = "resnet18",
        *,
        pretrained: bool | str | os.PathLike[str] = False,
        image_size: int | None = None,
        trainable: str = "all",
        max_iter: int = 100,
        learning_rate: float | None = None,
        batch_size: int = 128,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: str = "cosine",
        warmup: float = 0.05,
        label_smoothing: float = 0.0,
        augmentation: str | None = "crop_flip",
        device: str = "auto",
        precision: str = "auto",
        n_workers: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.image_size = image_size
        self.trainable = trainable
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup = warmup
        self.label_smoothing = label_smoothing
        self.augmentation = augmentation
        self.device = device
        self.precision = precision
        self.n_workers = n_workers
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Read the pictures and train the network.

        Parameters
        ----------
        %(pictures)s
            Or what `preprocess` has made of them.
        %(y_fit)s
        %(weights_fit)s

        %(self)s

        Raises
        ------
        ValueError
            If timm knows no such model, the device is not there, a picture cannot be read, y does not fit X or holds
            one class only, the network cannot read pictures of `image_size`, or the loss stops being finite.
        BackboneError
            If the weights cannot be fetched, are damaged or do not fit, or a batch does not fit into memory.
        """
        check_parameters(self)
        forget_fit(self)
        card = network_card(self.model)
        device = resolve_device(self.device)
        y = check_target(self, y)
        pictures = check_images(X)
        if len(pictures) != len(y):
            raise ValueError(f"X holds {len(pictures)} pictures and y {len(y)} labels; every picture needs one label.")
        weights = check_weights(sample_weight, len(y))
        kept = None
        if weights is not None and not weights.all():
            kept = np.flatnonzero(weights)
            pictures, y, weights = take_rows(pictures, kept), y[kept], weights[kept]
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y holds one class only, {classes[0].item()!r}; TimmClassifier needs at least two classes."
            )
        if self.trainable == "head" and self.pretrained is False:
            raise ValueError('trainable="head" leaves random weights as they are; give pretrained weights.')
        preprocessing = self._preprocessing()
        path = network_weights(card, self.pretrained)
        digest = weights_file_digest(path, card)
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=2).tolist()
        module = build_network(card, len(classes), preprocessing["image_size"], weights=path, seed=seeds[0])
        heads = head_names(module, card)
        if self.trainable == "head" and not heads:
            raise ValueError(f'trainable="head": timm does not say which layer of {self.model!r} is the last.')
        start = {} if path is None else _arrays(module)

        losses = train_network(
            module.to(device),
            heads if self.trainable == "head" else None,
            self._stacked(pictures, preprocessing, kept),
            codes,
            weights,
            self._recipe(),
            _pixels(preprocessing),
            device=device,
            precision=resolve_precision(self.precision, device),
            seed=seeds[1],
            verbose=self.verbose,
            name=type(self).__name__,
        )
        state = _arrays(module)
        # a new head is random, so the weights given do not give it again
        delta = {
            name: value
            for name, value in state.items()
            if name not in start or name in heads or not np.array_equal(value, start[name])
        }
        self.classes_ = classes
        self.preprocessing_ = preprocessing
        self.start_digest_ = digest
        self.state_digest_ = _digest(delta, digest, self.model)
        self.loss_curve_, self.n_iter_ = losses, len(losses)
        self.state_delta_ = delta
        keep_network((self.state_digest_, str(device)), module)
        return self

    def preprocess(self, X: Any) -> NDArray[np.uint8]:
        """Pictures as they are trained on and predicted from: resized, and cut to one size.

        The network reads their centres, and random regions of them in training. Needs no `fit`.

        Parameters
        ----------
        %(pictures)s
            What this method has made comes back as it is.

        Returns
        -------
        uint8 ndarray of shape (n, S, S, 3)
            `fit`, `logits` and all that rests on it take this in place of the pictures, with identical results.
        """
        if not hasattr(self, "state_delta_"):
            check_parameters(self)
        preprocessing = self.preprocessing_ if hasattr(self, "state_delta_") else self._preprocessing()
        return self._stacked(check_images(X), preprocessing)

    def logits(self, X: Any) -> NDArray:
        """Logits of pictures.

        Parameters
        ----------
        %(pictures)s
            Or what `preprocess` has made of them.

        Returns
        -------
        %(logits_array)s

        Raises
        ------
        BackboneError
            If the weights that training started with are needed and are not there, or are others.
        """
        import torch

        check_is_fitted(self)
        pictures = check_images(X)
        device, precision = self._where_to_predict()
        network = self._network(device)
        making = _pixels(self.preprocessing_)
        out = np.empty((len(pictures), len(self.classes_)), dtype=np.float32)
        shrink = 1
        for start, pixels in self._chunks(pictures):

            def project(lo: int, hi: int, pixels: NDArray = pixels) -> torch.Tensor:
                with autocast(device, precision):
                    return network(making.centre(pixels[lo:hi], device))

            rows = np.arange(start, start + len(pixels))
            with torch.inference_mode():
                shrink = run_batched(project, rows, out, rows_at=lambda _: self.batch_size, shrink=shrink)
        bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
        if bad.size:
            raise BackboneError(
                f"The network gave NaN or infinity for {len(bad)} of {len(out)} pictures (first at position {bad[0]}) "
                f"in precision={precision!r}; 'float32' may help."
            )
        return out.astype(np.float64)

    def decision_function(self, X: Any) -> NDArray:
        """Confidence scores in scikit-learn's shape.

        Parameters
        ----------
        %(pictures)s

        Returns
        -------
        ndarray of shape (n, K), or (n,) for two classes
            For two classes the difference of the logits: positive means ``classes_[1]``.
        """
        return super().decision_function(X)

    def predict_proba(self, X: Any) -> NDArray:
        """Softmax of the logits.

        Parameters
        ----------
        %(pictures)s

        Returns
        -------
        ndarray of shape (n, K)
            Rows sum to 1; columns in the order of `classes_`.
        """
        return super().predict_proba(X)

    def predict(self, X: Any) -> NDArray:
        """The label of the largest logit.

        Parameters
        ----------
        %(pictures)s

        Returns
        -------
        ndarray of shape (n,)
        """
        return super().predict(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    def _preprocessing(self) -> dict[str, Any]:
        """How the parameters ask for pictures to be made."""
        card = network_card(self.model)
        size = card.image_size if self.image_size is None else (int(self.image_size), int(self.image_size))
        return {
            "image_size": size,
            "stored_size": card.resized(size),
            "interpolation": card.interpolation,
            "resize_mode": card.resize_mode,
            "mean": card.mean,
            "std": card.std,
        }

    def _recipe(self) -> NetworkRecipe:
        rate = self.learning_rate
        if rate is None:
            rate = 0.1 if self.pretrained is False else 0.01
        return NetworkRecipe(
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            learning_rate=rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup=self.warmup,
            label_smoothing=self.label_smoothing,
            augmentation=self.augmentation,
        )

    def _stacked(
        self, pictures: Any, preprocessing: dict[str, Any], positions: Sequence[int] | NDArray | None = None
    ) -> NDArray[np.uint8]:
        size = preprocessing["stored_size"]
        if isinstance(pictures, np.ndarray) and pictures.shape[1:] == (*size, 3):
            return pictures
        transform = PictureTransform(size, preprocessing["interpolation"], preprocessing["resize_mode"])
        return stack_pictures(pictures, transform, n_workers=self.n_workers, positions=positions)

    def _chunks(self, pictures: Any) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Position of the first and pixels of consecutive pictures, read while the caller works on those before."""

        def read(start: int) -> NDArray[np.uint8]:
            stop = min(start + _CHUNK, len(pictures))
            return self._stacked(pictures[start:stop], self.preprocessing_, range(start, stop))

        starts = range(0, len(pictures), _CHUNK)
        with ThreadPoolExecutor(1) as ahead:
            future = ahead.submit(read, starts[0])
            for start in starts:
                pixels = future.result()
                if start != starts[-1]:
                    future = ahead.submit(read, start + _CHUNK)
                yield start, pixels

    def _where_to_predict(self) -> tuple[torch.device, str]:
        name, precision = device_of_fitted(self.device, self.precision)
        device = resolve_device(name)
        return device, resolve_precision(precision, device)

    def _network(self, device: torch.device) -> torch.nn.Module:
        """The trained network, from the cache of this process or built again."""
        return cached_network((self.state_digest_, str(device)), lambda: self._rebuilt().to(device))

    def _rebuilt(self) -> torch.nn.Module:
        import torch

        card, size = network_card(self.model), self.preprocessing_["image_size"]
        module = build_network(card, len(self.classes_), size)
        if set(module.state_dict()) - set(self.state_delta_) and self.start_digest_:
            path = network_weights(card, self.pretrained)
            if weights_file_digest(path, card) != self.start_digest_:
                raise BackboneError(
                    f"pretrained={self.pretrained!r} holds other weights than those that training started with "
                    f"(SHA-256 {self.start_digest_[:12]}...), so the network cannot be built again."
                )
            module = build_network(card, len(self.classes_), size, weights=path)
        state = {name: torch.from_numpy(np.array(value)) for name, value in self.state_delta_.items()}
        missing, unexpected = module.load_state_dict(state, strict=False)
        if unexpected or (missing and not self.start_digest_):
            raise BackboneError(
                f"model={self.model!r} was trained with another version of timm: {[*missing, *unexpected][0]!r} does "
                "not fit."
            )
        return module.eval().requires_grad_(False)


def _pixels(preprocessing: dict[str, Any]) -> Pixels:
    return Pixels(preprocessing["image_size"], preprocessing["mean"], preprocessing["std"])


def _arrays(module: torch.nn.Module) -> dict[str, NDArray]:
    return {name: np.array(value.detach().cpu().numpy()) for name, value in module.state_dict().items()}


def _digest(delta: dict[str, NDArray], start: str, model: str) -> str:
    """Names a network: where it comes from, and how it differs."""
    digest = hashlib.blake2b(f"{model} {start}".encode(), digest_size=16)
    for name, value in delta.items():
        digest.update(f"{name} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()
