"""Training of small heads by stochastic gradient: NumPy in, NumPy out, torch between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skclip._backbones import resolve_device

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    max_iter: int  # epochs
    batch_size: int
    learning_rate: float  # falls to 0 along a cosine, step by step
    optimizer: str = "sgd"  # or "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    tol: float = 0.0  # an improvement of the epoch's loss below this is none
    n_iter_no_change: int | None = None  # epochs without improvement before training ends


class Pictures(NamedTuple):
    """Rows to train on: an epoch visits each picture once, with one of its views."""

    views: NDArray  # (n, V, d)
    codes: NDArray  # (n,)
    weights: NDArray | None  # (n,)


class Trained(NamedTuple):
    parameters: dict[str, NDArray]
    loss_curve: list[float]
    validation_curve: list[float]
    n_iter: int


def minimise_cross_entropy(
    logits: Callable[[Tensors, Tensors, torch.Tensor], torch.Tensor],
    parameters: Mapping[str, NDArray],
    pictures: Pictures,
    recipe: Recipe,
    *,
    constants: Mapping[str, NDArray] | None = None,
    penalty: Callable[[Tensors, Tensors], torch.Tensor] | None = None,
    after_epoch: Callable[[Tensors, Tensors], None] | None = None,
    validation: Pictures | None = None,
    random_state: np.random.RandomState,
    device: str = "auto",
    verbose: int = 0,
    name: str = "",
) -> Trained:
    """Fit `parameters` to labels by stochastic gradient on the weighted mean cross entropy.

    Parameters
    ----------
    logits : callable
        ``logits(parameters, constants, rows) -> (b, K)``.
    parameters : dict of ndarray
        Where training starts; not modified.
    pictures : Pictures
        Training rows. Of several views, each epoch draws one per picture, which stands for encoding a new random
        crop.
    recipe : Recipe
    constants : dict of ndarray, default=None
        What `logits` and `penalty` need besides.
    penalty : callable, default=None
        ``penalty(parameters, constants) -> scalar``, added to the loss of every batch.
    after_epoch : callable, default=None
        ``after_epoch(parameters, constants)``; may change `constants` in place.
    validation : Pictures, default=None
        With it, the parameters of the best epoch by validation accuracy are returned (the first of equals), and
        ``recipe.n_iter_no_change`` counts epochs without a better one.
    random_state : RandomState
        Order of the pictures and choice of views.
    device : str
    verbose : int
        1 shows a progress bar.
    name : str
        What the progress bar says.

    Returns
    -------
    Trained
        Parameters in the floating type of the views; with ``max_iter=0`` the values they started with.

    Notes
    -----
    Computes in the floating type of the views on a CPU, in float32 on accelerators. Two runs with equal
    `random_state` are equal on one device.
    """
    import torch
    from tqdm.auto import tqdm

    where = resolve_device(device)
    kind = torch.float64 if where.type == "cpu" and pictures.views.dtype == np.float64 else torch.float32

    def to_torch(array: NDArray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(where, kind)  # a copy: arrays may be read-only

    fixed = {key: to_torch(value) for key, value in (constants or {}).items()}
    learned = {key: to_torch(value).requires_grad_() for key, value in parameters.items()}
    views, codes = to_torch(pictures.views), torch.from_numpy(np.array(pictures.codes, dtype=np.int64)).to(where)
    weights = None if pictures.weights is None else to_torch(pictures.weights)
    n_pictures, n_views = pictures.views.shape[:2]
    n_batches = math.ceil(n_pictures / recipe.batch_size)
    optimizer = _optimizer(list(learned.values()), recipe)
    progress = _Progress(recipe)
    best = {key: value.detach().clone() for key, value in learned.items()}

    epochs = tqdm(range(recipe.max_iter), desc=name, disable=not verbose, unit="epoch")
    for epoch in epochs:
        order = torch.from_numpy(random_state.permutation(n_pictures)).to(where)
        drawn = torch.from_numpy(random_state.randint(n_views, size=n_pictures, dtype=np.int64)).to(where)
        total, weight = 0.0, 0.0
        for step, batch in enumerate(order.split(recipe.batch_size)):
            for group in optimizer.param_groups:
                done = (epoch * n_batches + step) / (recipe.max_iter * n_batches)
                group["lr"] = recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
            scores = logits(learned, fixed, views[batch, drawn[batch]])
            losses = torch.nn.functional.cross_entropy(scores, codes[batch], reduction="none")
            if weights is None:
                loss, batch_weight = losses.mean(), float(len(batch))
            else:
                batch_weight = float(weights[batch].sum())
                loss = weights[batch] @ losses / batch_weight
            if penalty is not None:
                loss = loss + penalty(learned, fixed)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, weight = total + float(loss.detach()) * batch_weight, weight + batch_weight
        if after_epoch is not None:
            with torch.no_grad():
                after_epoch(learned, fixed)
        if not math.isfinite(total):
            raise ValueError(
                f"The loss of {name} is no longer finite in epoch {epoch + 1}; a smaller learning_rate than "
                f"{recipe.learning_rate:g} may help."
            )
        score = None
        if validation is not None:
            score = _accuracy(logits, learned, fixed, validation, to_torch, recipe.batch_size)
        improved, finished = progress.add(total / weight, score)
        if improved or validation is None:
            for key, value in learned.items():
                best[key].copy_(value.detach())
        epochs.set_postfix(loss=f"{total / weight:.4g}", refresh=False)
        if finished:
            break
    epochs.close()
    kept = {key: value.cpu().numpy().astype(pictures.views.dtype, copy=False) for key, value in best.items()}
    return Trained(kept, progress.losses, progress.scores, len(progress.losses))


class _Progress:
    """Losses and scores of the epochs, and when they stop improving."""

    def __init__(self, recipe: Recipe) -> None:
        self.tol, self.patience = recipe.tol, recipe.n_iter_no_change
        self.losses: list[float] = []
        self.scores: list[float] = []
        self._best = -math.inf
        self._idle = 0

    def add(self, loss: float, score: float | None) -> tuple[bool, bool]:
        """Whether this epoch is the best so far, and whether training is over."""
        self.losses.append(loss)
        if score is not None:
            self.scores.append(score)
        value = -loss if score is None else score
        improved = value > self._best + (self.tol if math.isfinite(self._best) else 0.0)
        self._idle = 0 if improved else self._idle + 1
        self._best = max(self._best, value)
        return improved, self.patience is not None and self._idle >= self.patience


def _optimizer(parameters: list[torch.Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    import torch

    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    return kinds[recipe.optimizer](parameters, lr=recipe.learning_rate, **recipe.optimizer_options)


def _accuracy(
    logits: Callable[[Tensors, Tensors, torch.Tensor], torch.Tensor],
    learned: Tensors,
    fixed: Tensors,
    pictures: Pictures,
    to_torch: Callable[[NDArray], torch.Tensor],
    batch_size: int,
) -> float:
    import torch

    weights = np.ones(len(pictures.codes)) if pictures.weights is None else pictures.weights
    right = 0.0
    with torch.no_grad():
        for start in range(0, len(pictures.codes), batch_size):
            part = slice(start, start + batch_size)
            best = logits(learned, fixed, to_torch(pictures.views[part, 0])).argmax(dim=1).cpu().numpy()
            right += float(weights[part] @ (best == pictures.codes[part]))
    return right / float(weights.sum())
