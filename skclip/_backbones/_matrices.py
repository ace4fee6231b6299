"""The weight matrices of a model's transformer blocks by what they do, whatever library wrote the tower."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

SIDES = ("vision", "text")
KINDS = ("q", "k", "v", "o", "fc1", "fc2")

_TOWERS = {"vision": "image tower", "text": "text tower"}
_NEITHER = ("logit_scale", "logit_bias", "text_decoder.")

# weight within a block: what holds it, and the matrices stacked in its rows
_PARTS = {
    # open_clip
    "attn.in_proj_weight": ("attn", ("q", "k", "v")),
    "attn.out_proj.weight": ("attn", ("o",)),
    "mlp.c_fc.weight": ("mlp", ("fc1",)),
    "mlp.c_proj.weight": ("mlp", ("fc2",)),
    # timm
    "attn.qkv.weight": ("attn", ("q", "k", "v")),
    "attn.q_proj.weight": ("attn", ("q",)),
    "attn.k_proj.weight": ("attn", ("k",)),
    "attn.v_proj.weight": ("attn", ("v",)),
    "attn.proj.weight": ("attn", ("o",)),
    "mlp.fc1.weight": ("mlp", ("fc1",)),
    "mlp.fc2.weight": ("mlp", ("fc2",)),
    # BERT and its kin in transformers
    "attention.self.query.weight": ("attention.self", ("q",)),
    "attention.self.key.weight": ("attention.self", ("k",)),
    "attention.self.value.weight": ("attention.self", ("v",)),
    "attention.output.dense.weight": ("attention.self", ("o",)),
    "intermediate.dense.weight": ("mlp", ("fc1",)),
    "output.dense.weight": ("mlp", ("fc2",)),
}
_BLOCK = r".*\b(?:resblocks|blocks|layer)\.\d+"
_WEIGHT = re.compile(rf"(?P<block>{_BLOCK})\.(?P<part>{'|'.join(map(re.escape, _PARTS))})")


class Matrix(NamedTuple):
    """A matrix (out, in) of a transformer block: some rows of a parameter."""

    side: str  # "vision" or "text"
    layer: int  # of the tower, from 0
    kind: str  # "q", "k", "v", "o", "fc1" or "fc2"
    name: str  # of the parameter, in the whole module
    rows: slice  # of the parameter
    path: str  # of the attention or MLP that it belongs to

    @property
    def key(self) -> str:
        """Its own name, such as "visual.transformer.resblocks.0.attn.q"."""
        return f"{self.path}.{self.kind}"

    def of(self, module: torch.nn.Module) -> torch.Tensor:
        """The matrix, a view of the parameter."""
        return module.get_parameter(self.name)[self.rows]


def side_parameters(module: torch.nn.Module, side: str) -> dict[str, torch.nn.Parameter]:
    """The parameters of a tower by their full name in the module; neither tower has the scale of the logits."""
    vision = side == "vision"
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if name.startswith("visual.") == vision and not name.startswith(_NEITHER)
    }


def tower_name(module: torch.nn.Module, side: str) -> str:
    """What errors call a tower, such as "image tower (ModifiedResNet)"."""
    tower = getattr(module, "visual" if side == "vision" else "text", module)
    network = getattr(tower, "trunk", tower)
    return f"{_TOWERS[side]} ({type(network).__name__})"


def block_matrices(module: torch.nn.Module, side: str) -> list[Matrix]:
    """The matrices of a tower's attention blocks, block by block.

    Parameters
    ----------
    module : torch.nn.Module
        A whole open_clip model; of a model on the meta device the shapes are enough.
    side : {"vision", "text"}

    Returns
    -------
    list of Matrix
        Empty where the tower has no attention blocks that are known, such as a ResNet: blocks of open_clip, of
        timm's transformers and of BERT and its kin are. Weights that are no matrix of a block, such as those of the
        patch embedding or of a pool by attention, are not among them.
    """
    found: dict[str, list[Matrix]] = {}
    for name, parameter in side_parameters(module, side).items():
        match = _WEIGHT.fullmatch(name)
        if match is None or parameter.ndim != 2:
            continue
        holder, kinds = _PARTS[match["part"]]
        height = len(parameter) // len(kinds)
        matrices = found.setdefault(match["block"], [])
        for i, kind in enumerate(kinds):
            path = f"{match['block']}.{holder}"
            matrices.append(Matrix(side, 0, kind, name, slice(i * height, (i + 1) * height), path))
    # a block of convolutions may have an MLP, too; stages count their blocks from 0, a tower counts through
    blocks = [matrices for matrices in found.values() if any(matrix.kind == "q" for matrix in matrices)]
    return [
        matrix._replace(layer=layer)
        for layer, matrices in enumerate(blocks)
        for matrix in sorted(matrices, key=lambda matrix: KINDS.index(matrix.kind))
    ]


def with_matrices(
    module: torch.nn.Module, matrices: Sequence[Matrix], values: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Whole parameters by name in which `values`, by `Matrix.key`, stand for the `matrices`; other rows stay.

    In the floating type of the module; gradients reach `values`.
    """
    import torch

    parameters: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        parameters.setdefault(matrix.name, []).append(matrix)
    whole = {}
    for name, parts in parameters.items():
        parameter = module.get_parameter(name)
        pieces, position = [], 0
        for matrix in sorted(parts, key=lambda matrix: matrix.rows.start):
            pieces += [parameter[position : matrix.rows.start], values[matrix.key].to(parameter.dtype)]
            position = matrix.rows.stop
        pieces.append(parameter[position:])
        pieces = [piece for piece in pieces if len(piece)]
        whole[name] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return whole
