"""What became of the heads of an image tower, and what they see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skclip.tuning.weights._text_span import TextSpan

if TYPE_CHECKING:
    import torch

    from skclip._backbones._matrices import Matrix

# of a matrix and a number of heads, the numbers that belong to each head: before, and after
Split = Callable[["Matrix", int], tuple[Any, Any]]


class HeadChange(NamedTuple):
    """How far tuning has moved a head.

    Attributes
    ----------
    layer, head : int
        From 0.
    change : float
        ``abs(value) + abs(output)``.
    relative : float
        The same by the size of what was changed.
    value, output : float
        Of the matrices that write the head's values and its output; negative, with ``kind="code"``, where singular
        values fell.
    """

    layer: int
    head: int
    change: float
    relative: float
    value: float
    output: float


class HeadTexts(NamedTuple):
    """What a head tells apart.

    Attributes
    ----------
    layer, head : int
        From 0.
    texts : tuple of str
        The most telling first.
    explained : tuple of float
        Share of the variance of what the head adds to the features along each of the texts, beside those before it.
    """

    layer: int
    head: int
    texts: tuple[str, ...]
    explained: tuple[float, ...]


def head_changes(matrices: Sequence[Matrix], n_heads: int, split: Split, *, signed: bool) -> list[HeadChange]:
    """The changes of all heads by the "v" and "o" among `matrices`, the largest first."""
    by_kind = {(matrix.layer, matrix.kind): matrix for matrix in matrices}
    found = []
    for layer in range(1 + max(matrix.layer for matrix in matrices)):
        (value, v_size), (output, o_size) = (_moved(by_kind[layer, kind], n_heads, split, signed) for kind in "vo")
        change, size = np.abs(value) + np.abs(output), v_size + o_size
        relative = np.divide(change, size, out=np.zeros_like(change), where=size > 0)
        rows = zip(change.tolist(), relative.tolist(), value.tolist(), output.tolist())
        found += [HeadChange(layer, head, *row) for head, row in enumerate(rows)]
    return sorted(found, key=lambda head: -head.change)


def by_weights(module: torch.nn.Module, merged: Mapping[str, torch.Tensor]) -> Split:
    """A head's rows of the values' matrix, and its columns of the output's."""

    def split(matrix: Matrix, n_heads: int) -> tuple[NDArray, NDArray]:
        whole = merged.get(matrix.name, module.get_parameter(matrix.name))
        both = (matrix.of(module), whole[matrix.rows])
        before, after = ((rows.T if matrix.kind == "o" else rows).detach().double().cpu().numpy() for rows in both)
        return before.reshape(n_heads, -1), after.reshape(n_heads, -1)

    return split


def by_runs(singular_values: Mapping[str, tuple[NDArray, NDArray]]) -> Split:
    """Runs of the descending singular values, as many as heads; nothing of a matrix that was not tuned."""

    def split(matrix: Matrix, n_heads: int) -> tuple[list[NDArray], list[NDArray]]:
        before, after = singular_values.get(matrix.key, (np.zeros(0), np.zeros(0)))
        return np.array_split(before, n_heads), np.array_split(after, n_heads)

    return split


def texts_of_heads(
    contributions: NDArray, text_features: NDArray, texts: Sequence[str], layers: Sequence[int], n_texts: int, rank: int
) -> list[HeadTexts]:
    """The texts of each head by its contributions (n, layers, H, d) to the features of n pictures."""
    found = []
    for i, layer in enumerate(layers):
        for head in range(contributions.shape[2]):
            span = TextSpan(n_texts, rank=rank).fit(contributions[:, i, head], text_features)
            own = tuple(texts[index] for index in span.indices_)
            found.append(HeadTexts(layer, head, own, tuple(span.explained_variance_ratio_.tolist())))
    return found


def _moved(matrix: Matrix, n_heads: int, split: Split, signed: bool) -> tuple[NDArray, NDArray]:
    """By head, the norm of the change, and that of what was changed."""
    before, after = split(matrix, n_heads)
    steps = [new.astype(np.float64) - old for old, new in zip(before, after)]
    moved = np.array([np.linalg.norm(step) for step in steps])
    if signed:
        moved *= [np.sign(step.sum()) for step in steps]
    return moved, np.array([np.linalg.norm(old) for old in before])
