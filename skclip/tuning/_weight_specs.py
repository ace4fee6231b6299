"""Which weights of a model are tuned, and how few numbers stand for them.

A specification reads a module, never changes it, and keeps nothing of it: trained numbers are tensors by name, and
`overrides` makes of them whole parameters for towers that take other weights for the length of one call.
"""

from __future__ import annotations

import math
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from skclip._backbones._matrices import (
    KINDS,
    SIDES,
    Matrix,
    block_matrices,
    side_parameters,
    tower_name,
    with_matrices,
)
from skclip._backbones._opened import OpenedTowerError

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

Layers = str | Sequence[str | int]
LAYER_NAMES = ("all", "bottom", "middle", "top", "lower_half", "upper_half")

_OTHER_SIDE = {"vision": "text", "text": "image"}
_SINGULAR_VALUES_STEP = 4  # ranks are multiples of it where a matrix is truncated, as in the official code


class WeightSpec(Protocol):
    """Trained numbers of a module, and the weights that they make."""

    def start(self, module: torch.nn.Module, generator: torch.Generator | None) -> Tensors:
        """Where training starts, on the CPU in float32: with these, the module computes what it did."""

    def overrides(self, module: torch.nn.Module, learned: Tensors) -> Tensors:
        """Whole parameters by full name; gradients reach `learned`."""

    def branches(
        self, module: torch.nn.Module, learned: Tensors, generator: torch.Generator | None
    ) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """What training adds to the output of projections in place of `overrides`; empty where there is no such way."""


def merge(spec: WeightSpec, module: torch.nn.Module, learned: Tensors) -> Tensors:
    """The weights for good: whole parameters by full name, without gradient, that share no memory with the module."""
    import torch

    with torch.no_grad():
        return {name: value.detach().clone() for name, value in spec.overrides(module, learned).items()}


@dataclass(frozen=True)
class LowRank:
    """Low-rank updates, ``W + alpha / sqrt(r) * B A`` with ``A`` (r, in) and ``B`` (out, r) trained.

    Hu et al., 2022 (LoRA), scaled as in CLIP-LoRA, Zanella and Ben Ayed, 2024. ``B`` starts at 0, ``A`` uniform
    within ``1 / sqrt(in)``. Trained are ``KEY.A`` and ``KEY.B`` of each matrix, see `Matrix.key`.

    Attributes
    ----------
    r : int, default=2
    alpha : float, default=1.0
    targets : sequence of {"q", "k", "v", "o"}, default=("q", "k", "v")
        Of the MLP, "fc1" and "fc2" too, but for `branches`.
    layers : str or sequence of str and int, default="all"
        See `layer_numbers`.
    sides : sequence of {"vision", "text"}
    dropout : float, default=0.25
        Share of the input of a branch that is set to 0 in training, each number by itself.
    """

    r: int = 2
    alpha: float = 1.0
    targets: Sequence[str] = ("q", "k", "v")
    layers: Layers = "all"
    sides: Sequence[str] = SIDES
    dropout: float = 0.25

    def start(self, module: torch.nn.Module, generator: torch.Generator | None) -> Tensors:
        import torch

        learned = {}
        for matrix in self._matrices(module):
            height, width = matrix.of(module).shape
            uniform = torch.rand((self.r, width), generator=generator)
            learned[f"{matrix.key}.A"] = (2.0 * uniform - 1.0) / math.sqrt(width)
            learned[f"{matrix.key}.B"] = torch.zeros((height, self.r))
        return learned

    def overrides(self, module: torch.nn.Module, learned: Tensors) -> Tensors:
        matrices = self._matrices(module)
        values = {}
        for matrix in matrices:
            down, up = learned[f"{matrix.key}.A"], learned[f"{matrix.key}.B"]
            values[matrix.key] = matrix.of(module) + self._scale * up @ down
        return with_matrices(module, matrices, values)

    def branches(
        self, module: torch.nn.Module, learned: Tensors, generator: torch.Generator | None
    ) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """Of every projection, its update with dropout; spares the gradient of whole matrices besides."""

        def branch(key: str) -> Callable[[torch.Tensor], torch.Tensor]:
            from torch.nn.functional import linear

            def update(tokens: torch.Tensor) -> torch.Tensor:
                down, up = (learned[f"{key}.{part}"].to(tokens.dtype) for part in "AB")
                return self._scale * linear(linear(_dropped(tokens, self.dropout, generator), down), up)

            return update

        return {matrix.key: branch(matrix.key) for matrix in self._matrices(module)}

    @property
    def _scale(self) -> float:
        return self.alpha / math.sqrt(self.r)

    def _matrices(self, module: torch.nn.Module) -> list[Matrix]:
        return chosen_matrices(module, self.sides, self.targets, self.layers)


@dataclass(frozen=True)
class SingularValues:
    """The singular values of the matrices themselves, their singular vectors kept: ``U diag(s) V^T`` with s trained.

    CLIP-SVD, 2025, arXiv:2509.03740. Nothing is added to the model. Trained is one vector per matrix, by its key.

    Attributes
    ----------
    targets : sequence of {"q", "k", "v", "o", "fc1", "fc2"}
        Each a decomposition of its own; queries, keys and values are taken apart.
    layers : str or sequence of str and int, default="all"
        See `layer_numbers`.
    sides : sequence of {"vision", "text"}
    rank_ratio : float, default=1.0
        Share of the largest singular values that is kept, rounded down to a multiple of 4; below 1 the model is not
        what it was.
    positive : bool, default=False
        Whether a value that passes 0 turns back, its magnitude taken; else it changes its sign.
    """

    targets: Sequence[str] = KINDS
    layers: Layers = "all"
    sides: Sequence[str] = SIDES
    rank_ratio: float = 1.0
    positive: bool = False

    def start(self, module: torch.nn.Module, generator: torch.Generator | None = None) -> Tensors:
        return {
            matrix.key: factors.values.float().cpu().clone()
            for matrix, factors in self.decompositions(module, self.matrices(module))
        }

    def overrides(self, module: torch.nn.Module, learned: Tensors) -> Tensors:
        # The update is added to the matrix: at the start it is exactly 0, and vectors of equal values, which
        # are not unique, matter only where training has told the values apart.
        matrices = self.matrices(module)
        values = {}
        for matrix, factors in self.decompositions(module, matrices):
            trained = learned[matrix.key].to(factors.values.dtype)
            if self.positive:
                trained = trained.abs()
            update = (factors.left * (trained - factors.values)) @ factors.right
            values[matrix.key] = self._base(matrix.of(module), factors) + update
        return with_matrices(module, matrices, values)

    def branches(
        self, module: torch.nn.Module, learned: Tensors, generator: torch.Generator | None
    ) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        return {}

    def matrices(self, module: torch.nn.Module) -> list[Matrix]:
        """The matrices that are decomposed, in the order of the blocks."""
        return chosen_matrices(module, self.sides, self.targets, self.layers)

    def decompositions(self, module: torch.nn.Module, matrices: Sequence[Matrix]) -> list[tuple[Matrix, Factors]]:
        """Each of `matrices` with its singular vectors and values, of the rank that is kept."""
        whole = decompose(module, matrices)
        return [(matrix, factors.cut(self._rank(len(factors.values)))) for matrix, factors in zip(matrices, whole)]

    def _rank(self, full: int) -> int:
        if self.rank_ratio >= 1:
            return full
        kept = int(self.rank_ratio * full)
        return max(kept - kept % _SINGULAR_VALUES_STEP, min(_SINGULAR_VALUES_STEP, full))

    def _base(self, matrix: torch.Tensor, factors: Factors) -> torch.Tensor:
        if len(factors.values) == min(matrix.shape):
            return matrix
        return (factors.left * factors.values) @ factors.right


class _Parameters(ABC):
    """Whole parameters, trained as they are under their own names."""

    def start(self, module: torch.nn.Module, generator: torch.Generator | None = None) -> Tensors:
        names = self.names(module)
        return {name: module.get_parameter(name).detach().float().cpu().clone() for name in names}

    def overrides(self, module: torch.nn.Module, learned: Tensors) -> Tensors:
        return {name: learned[name].to(module.get_parameter(name).dtype) for name in self.names(module)}

    def branches(
        self, module: torch.nn.Module, learned: Tensors, generator: torch.Generator | None
    ) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        return {}

    @abstractmethod
    def names(self, module: torch.nn.Module) -> list[str]:
        """Full names of the parameters that are trained."""


@dataclass(frozen=True)
class LayerNorms(_Parameters):
    """Weights and biases of every LayerNorm.

    Attributes
    ----------
    sides : sequence of {"vision", "text"}
    """

    sides: Sequence[str] = SIDES

    def names(self, module: torch.nn.Module) -> list[str]:
        from torch import nn

        norms = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, nn.LayerNorm))
        found: list[str] = []
        for side in self.sides:
            own = [name for name in side_parameters(module, side) if name.startswith(norms)]
            if not own:
                raise OpenedTowerError(f"The {tower_name(module, side)} has no LayerNorm to tune{_else_tune(side)}.")
            found += own
        return found


@dataclass(frozen=True)
class Biases(_Parameters):
    """Every bias, those of the norms included: BitFit, Ben Zaken et al., 2022.

    Attributes
    ----------
    sides : sequence of {"vision", "text"}
    """

    sides: Sequence[str] = SIDES

    def names(self, module: torch.nn.Module) -> list[str]:
        return [name for side in self.sides for name in side_parameters(module, side) if name.endswith("bias")]


@dataclass(frozen=True)
class Full(_Parameters):
    """Every parameter of the towers.

    Attributes
    ----------
    sides : sequence of {"vision", "text"}
    """

    sides: Sequence[str] = SIDES

    def names(self, module: torch.nn.Module) -> list[str]:
        return [name for side in self.sides for name in side_parameters(module, side)]


def chosen_matrices(
    module: torch.nn.Module, sides: Sequence[str], targets: Sequence[str], layers: Layers
) -> list[Matrix]:
    """The matrices of the blocks that are tuned.

    Raises
    ------
    OpenedTowerError
        A tower without attention blocks, or whose blocks lack one of the targets.
    ValueError
        A choice of layers that leaves none.
    """
    chosen = []
    for side in sides:
        matrices = block_matrices(module, side)
        if not matrices:
            raise OpenedTowerError(
                f"The {tower_name(module, side)} has no attention blocks whose matrices could be tuned"
                f"{_else_tune(side)}, or take an adapter on features."
            )
        known = {matrix.kind for matrix in matrices}
        lacking = [kind for kind in targets if kind not in known]
        if lacking:
            raise OpenedTowerError(
                f"targets holds {lacking[0]!r}, which the blocks of the {tower_name(module, side)} lack; they have "
                f"{', '.join(repr(kind) for kind in KINDS if kind in known)}."
            )
        numbers = layer_numbers(layers, 1 + max(matrix.layer for matrix in matrices))
        chosen += [matrix for matrix in matrices if matrix.kind in targets and matrix.layer in numbers]
    return chosen


def layer_numbers(layers: Layers, n_layers: int) -> set[int]:
    """Positions of the chosen among the `n_layers` blocks of a tower, from 0.

    `layers` is "all"; "bottom", "middle" or "top", the thirds, of 4 blocks each in a tower of 12; "lower_half" or
    "upper_half"; or a sequence of these and of positions, negative ones from the end, which stands for all of them
    together.

    Raises
    ------
    ValueError
        An unknown name, a position that is none, or no block left.
    """
    third = max(1, round(n_layers / 3))
    bounds = {
        "all": (0, n_layers),
        "bottom": (0, third),
        "middle": (third, n_layers - third),
        "top": (n_layers - third, n_layers),
        "lower_half": (0, n_layers // 2),
        "upper_half": (n_layers // 2, n_layers),
    }
    chosen: set[int] = set()
    for choice in [layers] if isinstance(layers, str) else layers:
        if isinstance(choice, str):
            if choice not in bounds:
                raise ValueError(f"layers={layers!r} holds {choice!r}; names are {', '.join(map(repr, LAYER_NAMES))}.")
            chosen |= set(range(*bounds[choice]))
        elif -n_layers <= choice < n_layers:
            chosen.add(choice % n_layers)
        else:
            raise ValueError(f"layers={layers!r} holds {choice}, but a tower has {n_layers} blocks, 0..{n_layers - 1}.")
    if not chosen:
        raise ValueError(f"layers={layers!r} leaves none of the {n_layers} blocks of a tower.")
    return chosen


class Factors(NamedTuple):
    """A matrix (out, in) taken apart: ``left @ diag(values) @ right``."""

    left: torch.Tensor  # (out, rank)
    values: torch.Tensor  # (rank,), descending
    right: torch.Tensor  # (rank, in)

    def cut(self, rank: int) -> Factors:
        """The part of the largest `rank` values."""
        return Factors(self.left[:, :rank], self.values[:rank], self.right[:rank])


class _Decomposed:
    """The matrices of one module that have been taken apart."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.factors: dict[str, Factors] = {}


# A process loads a backbone once, and forgets it: its decompositions, a few times its size, live as long.
_decomposed: weakref.WeakKeyDictionary[Any, _Decomposed] = weakref.WeakKeyDictionary()
_decomposed_lock = threading.Lock()


def decompose(module: torch.nn.Module, matrices: Sequence[Matrix]) -> list[Factors]:
    """Singular value decompositions of `matrices`, computed once per loaded module and shared.

    In float64 on the CPU, so that another machine finds the same vectors unless values agree to some 10 digits; kept on
    the module's device, in float32 or its own float64.
    """
    with _decomposed_lock:
        own = _decomposed.setdefault(module, _Decomposed())
    with own.lock:
        for matrix in matrices:
            if matrix.key not in own.factors:
                own.factors[matrix.key] = _svd(matrix.of(module))
        return [own.factors[matrix.key] for matrix in matrices]


def _svd(matrix: torch.Tensor) -> Factors:
    import torch

    kind = torch.promote_types(matrix.dtype, torch.float32)
    with torch.no_grad():
        parts = torch.linalg.svd(matrix.detach().cpu().double(), full_matrices=False)
    return Factors(*(part.to(matrix.device, kind) for part in parts))


def _dropped(tokens: torch.Tensor, share: float, generator: torch.Generator | None) -> torch.Tensor:
    """`tokens` with a share of its numbers set to 0 and the others scaled up."""
    import torch

    if not share:
        return tokens
    where = tokens.device if generator is None else generator.device
    kept = torch.empty(tokens.shape, device=where).bernoulli_(1.0 - share, generator=generator)
    return tokens * (kept / (1.0 - share)).to(tokens)


def _else_tune(side: str) -> str:
    return f"; tune the {_OTHER_SIDE[side]} tower alone"
