"""Towers opened: blocks run by our own loop, with weights replaced for the length of one call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    Branches = Mapping[str, Callable[[Tensor], Tensor]]

T = TypeVar("T")


class OpenedTowerError(ValueError):
    """What was asked for cannot be done with this model's tower; the message names what can."""


def skeleton(module: nn.Module) -> nn.Module:
    """New module objects around the very tensors of `module`: its parameters can be swapped without touching it."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, memo)


class Opened:
    """A shared module on which functions are run, some of its parameters replaced for that run alone.

    Several threads may run functions at once: each works on a skeleton of its own, and the module never changes.

    Parameters
    ----------
    module : torch.nn.Module
        The whole open_clip model.
    name : str
        What errors call it.
    """

    def __init__(self, module: nn.Module, name: str = "") -> None:
        self.module = module
        self.name = name or type(module).__name__
        self._idle: list[nn.Module] = []

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.module.named_parameters(remove_duplicate=False))

    def run(self, function: Callable[[Any], T], weights: Mapping[str, Tensor] | None = None) -> T:
        """``function(module)``, with `weights` in place of the parameters of these full names.

        Raises
        ------
        OpenedTowerError
            A name that is no parameter's.
        """
        if not weights:
            return function(self.module)
        unknown = sorted(set(weights) - self._names)
        if unknown:
            raise OpenedTowerError(
                f"model={self.name!r} has no parameter {unknown[0]!r}; names are those of its state dict, such as "
                f"{min(self._names)!r}."
            )
        from torch.func import functional_call

        try:
            stage = self._idle.pop()
        except IndexError:
            stage = _stage(skeleton(self.module))
        try:
            return functional_call(stage, {f"module.{name}": value for name, value in weights.items()}, (function,))
        finally:
            self._idle.append(stage)


def _stage(module: nn.Module) -> nn.Module:
    """A module whose forward calls any function on `module`: `functional_call` swaps weights for a forward only."""
    from torch import nn

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, function: Callable[[nn.Module], T]) -> T:
            return function(self.module)

    return Stage()


def is_plain(block: nn.Module) -> bool:
    """Whether a block is open_clip's residual attention block without anything added."""
    from open_clip.transformer import ResidualAttentionBlock
    from torch import nn

    return type(block) is ResidualAttentionBlock and isinstance(block.attn, nn.MultiheadAttention)


def attend(
    block: Any, x: Tensor, *, mask: Tensor | None = None, branches: Branches | None = None, path: str = ""
) -> Tensor:
    """One residual attention block, opened; equal to calling it.

    Parameters
    ----------
    block : open_clip.transformer.ResidualAttentionBlock
    x : tensor of shape (B, T, D)
    mask : tensor that broadcasts to (B, heads, T, T), optional
        Added to the scores, or of bool with True where a query may read a key.
    branches : mapping, optional
        By ``"<path>.attn.<q|k|v|o>"``: functions of the input of a projection whose result is added to its output.
    path : str
        Full name of the block.

    Returns
    -------
    tensor of shape (B, T, D)
    """
    return finish(block, x, mix(block, x, mask=mask, branches=branches, path=path), branches, path)


def mix(
    block: Any, x: Tensor, *, mask: Tensor | None = None, branches: Branches | None = None, path: str = ""
) -> Tensor:
    """What the heads of a block read, one beside the other, (B, T, D): the input of its output projection."""
    from torch.nn.functional import scaled_dot_product_attention

    queries, keys, values = project(block, block.ln_1(x), branches, path)
    heads = block.attn.num_heads
    mask = mask.to(x.dtype) if mask is not None and mask.is_floating_point() else mask
    mixed = scaled_dot_product_attention(
        split_heads(queries, heads), split_heads(keys, heads), split_heads(values, heads), attn_mask=mask
    )
    return merge_heads(mixed)


def project(
    block: Any, normed: Tensor, branches: Branches | None = None, path: str = "", *, kinds: str = "qkv"
) -> tuple[Tensor, ...]:
    """Queries, keys and values of normalised tokens (..., D), or the neighbours among them that `kinds` names."""
    from torch.nn.functional import linear

    attention = block.attn
    first = "qkv".index(kinds) * attention.embed_dim
    rows = slice(first, first + len(kinds) * attention.embed_dim)
    bias = attention.in_proj_bias
    joint = linear(normed, attention.in_proj_weight[rows], None if bias is None else bias[rows])
    parts = joint.chunk(len(kinds), dim=-1)
    if not branches:
        return parts
    return tuple(_branched(part, normed, branches, f"{path}.attn.{kind}") for part, kind in zip(parts, kinds))


def finish(block: Any, x: Tensor, mixed: Tensor, branches: Branches | None = None, path: str = "") -> Tensor:
    """What a block makes of its input `x` (..., D) and of its heads' results `mixed` (..., D)."""
    from torch.nn.functional import linear

    out = linear(mixed, block.attn.out_proj.weight, block.attn.out_proj.bias)
    if branches:
        out = _branched(out, mixed, branches, f"{path}.attn.o")
    x = x + block.ls_1(out)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _branched(out: Tensor, tokens: Tensor, branches: Branches, key: str) -> Tensor:
    branch = branches.get(key)
    return out if branch is None else out + branch(tokens)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, D) to (B, heads, T, D / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, T, D / heads) to (B, T, D)."""
    return x.transpose(-2, -3).flatten(-2)


def renew(before: Tensor, after: Tensor, fresh: Tensor, start: int, held: int, mode: str) -> tuple[Tensor, int]:
    """The tokens that enter a block whose prompts are learned anew.

    Parameters
    ----------
    before, after : tensors of shape (B, T, D)
        What the previous block read and what it gave; `held` prompts stand in them from place `start` on.
    fresh : tensor of shape (n, D)
    mode : {"replace", "accumulate", "accumulate_same"}
        `fresh` takes the place of the prompts, comes after them, or comes after those that the previous block read.

    Returns
    -------
    tensor of shape (B, T', D), int
        How many prompts stand in it.
    """
    import torch

    stop = start + held
    kept = {"replace": after[:, :0], "accumulate": after[:, start:stop], "accumulate_same": before[:, start:stop]}[mode]
    own = fresh.to(after.dtype).expand(len(after), -1, -1)
    renewed = torch.cat([after[:, :start], kept, own, after[:, stop:]], dim=1)
    return renewed, kept.shape[1] + len(fresh)
