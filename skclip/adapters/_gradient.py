"""Training of small heads by stochastic gradient: NumPy in, NumPy out, torch between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from skclip._backbones import resolve_device
from skclip.utils._arrays import unit_rows
from skclip.utils._training import Training, validation_split

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

    @classmethod
    def of(cls, training: Training) -> Pictures:
        """Unit rows of a checked training set."""
        views = unit_rows(training.X).reshape(len(training.codes), training.n_views, -1)
        return cls(views, training.codes, training.weights)

    def take(self, chosen: NDArray) -> Pictures:
        return Pictures(self.views[chosen], self.codes[chosen], None if self.weights is None else self.weights[chosen])

    def flat(self) -> tuple[NDArray, NDArray, NDArray]:
        """Rows, codes and weights with every view as a row."""
        n_pictures, n_views, width = self.views.shape
        weights = np.ones(n_pictures) if self.weights is None else self.weights
        return self.views.reshape(-1, width), np.repeat(self.codes, n_views), np.repeat(weights, n_views)

    def split(self, fraction: float, rng: np.random.RandomState) -> tuple[Pictures, Pictures]:
        """Pictures to train on and to stop early by, see `validation_split`."""
        train, held = validation_split(self.codes, fraction, rng)
        return self.take(train), self.take(held)


def pictures_to_train_on(estimator: Any, training: Training) -> tuple[Pictures, Pictures | None, np.random.RandomState]:
    """Pictures to train on, those held out where `early_stopping` asks for it, and the random numbers to go on with."""
    rng = check_random_state(estimator.random_state)
    pictures = Pictures.of(training)
    if not estimator.early_stopping:
        return pictures, None, rng
    return *pictures.split(estimator.validation_fraction, rng), rng


class Trained(NamedTuple):
    parameters: dict[str, NDArray]
    loss_curve: list[float]
    validation_curve: list[float]
    n_iter: int


def fit_by_gradient(
    estimator: Any,
    logits: Callable[[Tensors, Tensors, torch.Tensor], torch.Tensor],
    parameters: Mapping[str, NDArray],
    pictures: Pictures,
    *,
    max_iter: int,
    optimizer: str = "sgd",
    optimizer_options: Mapping[str, Any],
    **options: Any,
) -> dict[str, NDArray]:
    """`minimise_cross_entropy` as the parameters of an estimator ask for it: returns what was learned, and sets
    ``loss_curve_``, ``validation_scores_`` and ``n_iter_``. `options` go to `minimise_cross_entropy`."""
    recipe = Recipe(
        max_iter=max_iter,
        batch_size=estimator.batch_size,
        learning_rate=estimator.learning_rate,
        optimizer=optimizer,
        optimizer_options=optimizer_options,
        n_iter_no_change=estimator.n_iter_no_change if estimator.early_stopping else None,
    )
    trained = minimise_cross_entropy(
        logits,
        parameters,
        pictures,
        recipe,
        device=estimator.device,
        verbose=estimator.verbose,
        name=type(estimator).__name__,
        **options,
    )
    estimator.loss_curve_, estimator.validation_scores_, estimator.n_iter_ = trained[1:]
    return trained.parameters


def minimise_cross_entropy(
    logits: Callable[[Tensors, Tensors, torch.Tensor], torch.Tensor],
    parameters: Mapping[str, NDArray],
    pictures: Pictures,
    recipe: Recipe,
    *,
    constants: Mapping[str, NDArray] | None = None,
    penalty: Callable[[Tensors, Tensors], torch.Tensor] | None = None,
    after_epoch: Callable[[Tensors, Tensors], None] | None = None,
    training_logits: Callable[[Tensors, Tensors, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
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
        ``penalty(parameters, constants) -> scalar``, added to the loss of every batch, and so to ``loss_curve``.
    after_epoch : callable, default=None
        ``after_epoch(parameters, constants)``; may change `constants` in place.
    training_logits : callable, default=None
        ``training_logits(parameters, constants, rows, places) -> (b, K)`` takes the place of `logits` in training,
        where pictures must not meet what was made of them; `places` are positions of the rows among `pictures`.
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

    def to_codes(array: NDArray) -> torch.Tensor:
        return torch.from_numpy(np.array(array, dtype=np.int64)).to(where)

    fixed = {key: to_torch(value) for key, value in (constants or {}).items()}
    learned = {key: to_torch(value).requires_grad_() for key, value in parameters.items()}
    views, codes = to_torch(pictures.views), to_codes(pictures.codes)
    # of mean 1 over all pictures, not over a batch: a heavy picture then weighs the same in whatever company
    weights = None if pictures.weights is None else to_torch(pictures.weights / pictures.weights.mean())
    held_out = None
    if validation is not None:
        shares = np.ones(len(validation.codes)) if validation.weights is None else validation.weights
        held_out = to_torch(validation.views[:, 0]), to_codes(validation.codes), to_torch(shares / shares.sum())
    n_pictures, n_views = pictures.views.shape[:2]
    n_steps = recipe.max_iter * math.ceil(n_pictures / recipe.batch_size)
    optimizer = _optimizer(list(learned.values()), recipe)
    progress = _Progress(recipe)
    best = {key: value.detach().clone() for key, value in learned.items()}
    step = 0

    with tqdm(range(recipe.max_iter), desc=name, disable=not verbose, unit="epoch") as epochs:
        for epoch in epochs:
            order = torch.from_numpy(random_state.permutation(n_pictures)).to(where)
            drawn = torch.from_numpy(random_state.randint(n_views, size=n_pictures, dtype=np.int64)).to(where)
            total = torch.zeros((), device=where, dtype=kind)
            for batch in order.split(recipe.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / n_steps))
                rows = views[batch, drawn[batch]]
                if training_logits is None:
                    scores = logits(learned, fixed, rows)
                else:
                    scores = training_logits(learned, fixed, rows, batch)
                losses = torch.nn.functional.cross_entropy(scores, codes[batch], reduction="none")
                loss = losses.mean() if weights is None else weights[batch] @ losses / len(batch)
                if penalty is not None:
                    loss = loss + penalty(learned, fixed)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * (len(batch) / n_pictures)
                step += 1
            if after_epoch is not None:
                with torch.no_grad():
                    after_epoch(learned, fixed)
            epoch_loss = float(total)
            if not math.isfinite(epoch_loss):
                raise ValueError(
                    f"The loss of {name} is no longer finite in epoch {epoch + 1}; a smaller learning_rate than "
                    f"{recipe.learning_rate:g} may help."
                )
            score = None if held_out is None else _accuracy(logits, learned, fixed, held_out, recipe.batch_size)
            improved, finished = progress.add(epoch_loss, score)
            if improved or held_out is None:
                for key, value in learned.items():
                    best[key].copy_(value.detach())
            epochs.set_postfix(loss=f"{epoch_loss:.4g}", refresh=False)
            if finished:
                break
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
    held_out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    batch_size: int,
) -> float:
    import torch

    rows, codes, shares = held_out
    with torch.no_grad():
        guesses = torch.cat([logits(learned, fixed, part).argmax(dim=1) for part in rows.split(batch_size)])
    return float(shares @ (guesses == codes).to(shares.dtype))
