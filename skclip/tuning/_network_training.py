"""Training of a whole network on pictures in memory: batches, random crops, schedule, steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from skclip._backbones import private_random_numbers
from skclip.tuning._advice import autocast, memory_advice

if TYPE_CHECKING:
    import torch

_SCALE = (0.5, 1.0)
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class NetworkRecipe:
    """How to train."""

    max_iter: int  # epochs
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str  # "cosine" or "constant"
    warmup: float  # share of the steps
    label_smoothing: float
    augmentation: str | None  # "crop_flip"

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate of a step: rises linearly in the warm-up, then stays or falls to 0 along a cosine."""
        n_warm = round(self.warmup * n_steps)
        if step < n_warm:
            return self.learning_rate * (step + 1) / (n_warm + 1)
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - n_warm) / (n_steps - n_warm)))


@dataclass(frozen=True)
class Pixels:
    """From stored pixels to what a network reads."""

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def centre(self, batch: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
        """The central (H, W) of pictures (n, H', W', 3), normalised, (n, 3, H, W)."""
        height, width = self.image_size
        top, left = (batch.shape[1] - height) // 2, (batch.shape[2] - width) // 2
        return self.normalised(batch[:, top : top + height, left : left + width], device)

    def random(self, batch: NDArray[np.uint8], device: torch.device, generator: torch.Generator) -> torch.Tensor:
        """Random regions of pictures, mirrored half of the time, normalised."""
        return random_crops(self.normalised(batch, device), self.image_size, generator)

    def normalised(self, batch: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
        import torch

        pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(device)
        pictures = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (self.mean, self.std))
        return pictures.div_(255).sub_(mean).div_(std)


def random_crops(pictures: torch.Tensor, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """A random region of each picture (n, 3, H', W'), resized bilinearly and mirrored half of the time.

    The region takes between half and all of the area, at a side ratio between 3/4 and 4/3; a side never leaves the
    picture.
    """
    import torch

    n = len(pictures)
    draws = torch.rand((5, n), generator=generator)
    area = _SCALE[0] + (_SCALE[1] - _SCALE[0]) * draws[0]
    ratio = torch.exp(math.log(_RATIO[0]) + math.log(_RATIO[1] / _RATIO[0]) * draws[1])
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    # coordinates run from -1 to 1
    theta = torch.zeros((n, 2, 3))
    theta[:, 0, 0] = torch.where(draws[4] < 0.5, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (2.0 * draws[2] - 1.0) * (1.0 - width)
    theta[:, 1, 2] = (2.0 * draws[3] - 1.0) * (1.0 - height)
    grid = torch.nn.functional.affine_grid(theta.to(pictures.device), [n, 3, *size], align_corners=False)
    return torch.nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def train_network(
    module: torch.nn.Module,
    learned: set[str] | None,
    pixels: NDArray[np.uint8],
    codes: NDArray,
    weights: NDArray | None,
    recipe: NetworkRecipe,
    making: Pixels,
    *,
    device: torch.device,
    precision: str,
    seed: int,
    verbose: int = 0,
    name: str = "",
) -> list[float]:
    """Fit a network, in place, to labels by stochastic gradient on the weighted mean cross entropy.

    Parameters
    ----------
    module : torch.nn.Module
        On `device`; afterwards in evaluation mode, without gradients.
    learned : set of str or None
        Names of the parameters that learn; the others, and all statistics, stay. None is all.
    pixels : uint8 ndarray of shape (n, H, W, 3)
    codes : ndarray of shape (n,)
        Class of each picture, 0..K-1.
    weights : ndarray of shape (n,) or None
    recipe : NetworkRecipe
    making : Pixels
    device : torch.device
    precision : {"float32", "bf16", "fp16"}
        Of the products; parameters are float32.
    seed : int
        Order of the pictures, crops, dropout.
    verbose : int
        1 shows a progress bar.
    name : str
        What the progress bar and errors say.

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Raises
    ------
    ValueError
        If the loss stops being finite.
    BackboneError
        If a batch does not fit into memory.
    """
    import torch
    from tqdm.auto import tqdm

    generator = torch.Generator().manual_seed(seed)
    n = len(codes)
    n_batches = math.ceil(n / recipe.batch_size)
    if recipe.batch_size > 1:
        n_batches = min(n_batches, n // 2)  # batch statistics need more than one picture
    n_steps = recipe.max_iter * n_batches
    targets = torch.from_numpy(np.array(codes, dtype=np.int64)).to(device)
    # of mean 1 over all pictures, not over a batch: a heavy picture then weighs the same in whatever company
    shares = np.ones(n) if weights is None else weights / weights.mean()
    shares_there = torch.from_numpy(shares.astype(np.float32)).to(device)
    optimizer = _optimizer(module, learned, recipe)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    losses: list[float] = []
    _set_mode(module, learned)

    def step(batch: NDArray, rate: float) -> torch.Tensor:
        for group in optimizer.param_groups:
            group["lr"] = rate
        if recipe.augmentation is None:
            pictures = making.centre(pixels[batch], device)
        else:
            pictures = making.random(pixels[batch], device, generator)
        places = torch.from_numpy(batch).to(device)
        with autocast(device, precision):
            logits = module(pictures)
        each = torch.nn.functional.cross_entropy(
            logits.float(), targets[places], reduction="none", label_smoothing=recipe.label_smoothing
        )
        loss = (shares_there[places] * each).mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    stochastic = draws_random_numbers(module)
    with (
        private_random_numbers(seed, device) if stochastic else nullcontext(),
        tqdm(range(recipe.max_iter), desc=name, disable=not verbose, unit="epoch") as epochs,
    ):
        for epoch in epochs:
            order = torch.randperm(n, generator=generator).numpy()
            steps = []
            # of nearly equal size, so that none is left over alone
            for i, batch in enumerate(np.array_split(order, n_batches)):
                rate = recipe.rate(epoch * n_batches + i, n_steps)
                with advice(recipe.batch_size, name):
                    steps.append(step(batch, rate))
            of_steps = torch.stack(steps).cpu().numpy()
            bad = np.flatnonzero(~np.isfinite(of_steps))
            if bad.size:
                at = epoch * n_batches + int(bad[0])
                raise ValueError(
                    f"The loss of {name} is no longer finite at step {at + 1} of {n_steps} (epoch {epoch + 1}), where "
                    f"the learning rate was {recipe.rate(at, n_steps):.3g}; a smaller learning_rate than "
                    f"{recipe.learning_rate:g} or a longer warmup than {recipe.warmup:g} may help."
                )
            losses.append(float(of_steps @ [len(batch) for batch in np.array_split(order, n_batches)] / n))
            epochs.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)
    module.eval().requires_grad_(False)
    return losses


def draws_random_numbers(module: torch.nn.Module) -> bool:
    """Whether training the network draws from torch's global generator, as dropout does."""
    return any(
        getattr(layer, name, 0.0)
        for layer in module.modules()
        for name in ("p", "drop_prob", "drop_rate")
        if isinstance(getattr(layer, name, 0.0), float)
    )


def _set_mode(module: torch.nn.Module, learned: set[str] | None) -> None:
    module.train(learned is None)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(learned is None or name in learned)


def _optimizer(module: torch.nn.Module, learned: set[str] | None, recipe: NetworkRecipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent, without decay of biases and of the scales of normalisation."""
    import torch

    mine = [value for name, value in module.named_parameters() if learned is None or name in learned]
    groups = [
        {"params": [value for value in mine if value.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [value for value in mine if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)


@contextmanager
def advice(batch_size: int, name: str) -> Iterator[None]:
    """Say what helps where memory runs out, or a step sees a single picture."""
    try:
        with memory_advice(batch_size, name, "a smaller image_size or device='cpu'"):
            yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"{name}: batch_size={batch_size} leaves nothing to take batch statistics of; use a larger one."
        ) from error
