"""A network with one hidden layer on feature matrices: the head of NoLA's teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skclip._backbones import resolve_device
from skclip.tuning._losses import cross_entropy
from skclip.utils._arrays import check_features, first_view
from skclip.utils._base import SkclipBase
from skclip.utils._classifier import LogitsMixin
from skclip.utils._training import check_training

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Batch

    Tensors = dict[str, torch.Tensor]


class _Perceptron(LogitsMixin, SkclipBase):
    """Linear, ReLU, linear, trained by Adam on the cross entropy.

    Features are centred and divided by one number, the root of their mean square, so that the unit they are measured
    in plays no part; the layers that are kept take them as they come.
    """

    _set_last = "layers_"

    def __init__(
        self,
        *,
        n_hidden: int = 256,
        max_iter: int = 50,
        learning_rate: float = 1e-3,
        batch_size: int = 32,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.n_hidden = n_hidden
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike) -> Self:
        import torch

        from skclip.tuning._batches import FeatureInputs
        from skclip.tuning._engine import Recipe, train

        training = check_training(self, X, y)
        rows = first_view(training.X, training.n_views).astype(np.float32)
        centre = rows.mean(axis=0)
        scale = float(np.sqrt(np.mean((rows - centre) ** 2))) or 1.0
        device = resolve_device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        learned = {
            **_linear("hidden", rows.shape[1], self.n_hidden, generator),
            **_linear("out", self.n_hidden, len(self.classes_), generator),
        }

        def losses(batch: Batch) -> Tensors:
            return {"cross_entropy": cross_entropy(_forward(learned, batch.inputs), batch.codes)}

        recipe = Recipe(
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer="adamw",
            weight_decay=0.0,  # without decay AdamW is Adam
            schedule="constant",
            drop_last=False,
        )
        inputs = FeatureInputs(torch.from_numpy((rows - centre) / scale)[:, None].to(device))
        trained = train(
            learned,
            losses,
            inputs,
            training.codes,
            None,
            recipe,
            generator=generator,
            device=device,
            verbose=self.verbose,
            name="teacher",
        )
        layers = trained.learned
        layers["hidden.weight"] = layers["hidden.weight"] / scale
        layers["hidden.bias"] = layers["hidden.bias"] - layers["hidden.weight"] @ centre
        self.loss_curve_, self.n_iter_ = trained.loss_curve, trained.n_iter
        self.layers_: dict[str, NDArray] = layers
        return self

    def logits(self, X: Any) -> NDArray:
        check_is_fitted(self)
        rows = first_view(*check_features(self, X))
        hidden = rows @ self.layers_["hidden.weight"].T + self.layers_["hidden.bias"]
        return np.maximum(hidden, 0.0) @ self.layers_["out.weight"].T + self.layers_["out.bias"]


def _linear(name: str, n_in: int, n_out: int, generator: torch.Generator) -> Tensors:
    """A layer as torch initialises it: uniform within one over the root of its inputs."""
    import torch

    limit = n_in**-0.5
    weight, bias = torch.empty(n_out, n_in), torch.empty(n_out)
    for tensor in (weight, bias):
        tensor.uniform_(-limit, limit, generator=generator)
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _forward(layers: Tensors, rows: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import linear, relu

    hidden = relu(linear(rows, layers["hidden.weight"], layers["hidden.bias"]))
    return linear(hidden, layers["out.weight"], layers["out.bias"])
