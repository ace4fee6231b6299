"""The image tower opened: prompts among its tokens, weights of one's own, and what its layers and heads hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skclip._backbones._opened import Opened, OpenedTowerError, attend, finish, is_plain, mix, renew

if TYPE_CHECKING:
    from torch import Tensor, nn

    Branches = Mapping[str, Callable[[Tensor], Tensor]]

_PLACES = ("end", "after_cls")
_MODES = ("replace", "accumulate", "accumulate_same")
_PROMPTS = "visual prompts", "CoOpClassifier learns prompts of the text alone, with every model."
_SIDE = "visual."
_BLOCK = "visual.transformer.resblocks.{}"


@dataclass
class VisualPrompts:
    """Learned tokens among those of every picture.

    Attributes
    ----------
    tokens : sequence of tensors of shape (n, W)
        The first enters at the input, ``tokens[i]`` before block i.
    place : {"end", "after_cls"}, default="end"
        Behind the patches and before ``ln_pre``, which then normalises the first too (MaPLe, 2023), or between class
        token and patches, after ``ln_pre`` (VPT, 2022). None has a position embedding.
    mode : {"replace", "accumulate", "accumulate_same"}, default="replace"
        Whether ``tokens[i]`` takes the place of what block i - 1 made of its prompts, stands behind that, or behind the
        prompts as they entered block i - 1 (CPE-CLIP, 2023).
    """

    tokens: Sequence[Tensor]
    place: str = "end"
    mode: str = "replace"


@dataclass
class Contributions:
    """The embedding of each picture as a sum: ``heads.sum((1, 2)) + mlps.sum(1) + rest``.

    Attributes
    ----------
    heads : tensor of shape (B, L, H, d)
        What each head of each block writes, with an equal part of the bias of the block's output projection.
    mlps : tensor of shape (B, L, d)
    rest : tensor of shape (B, d)
        What enters the first block, and the bias of the last norm.
    """

    heads: Tensor
    mlps: Tensor
    rest: Tensor


class VisionTower:
    """The image tower of a shared open_clip model, which is never changed.

    Every tower gives embeddings, with weights of one's own too; all else needs open_clip's own VisionTransformer, and
    is an `OpenedTowerError` elsewhere.

    Parameters
    ----------
    module : torch.nn.Module
        The whole model.
    name : str
        What errors call it.

    Attributes
    ----------
    width, n_layers, n_heads : int
        Of its tokens, of its blocks, and of the heads of each.
    """

    def __init__(self, module: nn.Module, name: str = "") -> None:
        self._opened = Opened(module, name)
        self._trouble = _trouble(module.visual)

    @property
    def width(self) -> int:
        return self._blocks(*_PROMPTS)[0].attn.embed_dim

    @property
    def n_layers(self) -> int:
        return len(self._blocks(*_PROMPTS))

    @property
    def n_heads(self) -> int:
        return self._blocks("heads")[0].attn.num_heads

    def __call__(
        self,
        pictures: Tensor,
        *,
        prompts: VisualPrompts | None = None,
        weights: Mapping[str, Tensor] | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """Raw projections of normalised pictures.

        Parameters
        ----------
        pictures : tensor of shape (B, 3, H, W)
        prompts : VisualPrompts, optional
        weights : mapping of str to tensor, optional
            What stands in for the parameters of these full names.
        branches : mapping of str to callable, optional
            By ``"visual.transformer.resblocks.<i>.attn.<q|k|v|o>"``: functions of the input of a projection whose
            result is added to its output. Those of the text tower are passed over.

        Returns
        -------
        tensor of shape (B, d)

        Raises
        ------
        OpenedTowerError
            Prompts or branches for a tower that cannot be opened, or weights or branches of parts that it lacks.
        ValueError
            Prompts that do not fit the tower.
        """
        own = {key: branch for key, branch in (branches or {}).items() if key.startswith(_SIDE)}
        if own:
            self._check_branches(own)
        if prompts is not None:
            self._check_prompts(prompts)
        if self._trouble is not None:
            return self._opened.run(lambda module: module.encode_image(pictures, normalize=False), weights)
        return self._opened.run(lambda module: _encode(module.visual, pictures, prompts, own), weights)

    def layer_statistics(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the tokens behind each block, the class token among them.

        Parameters
        ----------
        pictures : tensor of shape (B, 3, H, W)

        Returns
        -------
        features : tensor of shape (B, d)
            Raw projections.
        statistics : tensor of shape (B, L, 2, W)
        """
        import torch

        self._blocks("statistics of layers", "CoCoOpClassifier conditions its prompts on the features alone.")
        visual: Any = self._opened.module.visual
        moments = []
        _, *states = layers(visual, pictures)
        for hidden in states:
            variance, mean = torch.var_mean(hidden, dim=1, correction=0)
            moments.append(torch.stack([mean, variance.sqrt()], dim=1))
        return _pool(visual, states[-1]), torch.stack(moments, dim=1)

    def head_contributions(self, pictures: Tensor, *, weights: Mapping[str, Tensor] | None = None) -> Contributions:
        """What each head, each MLP and the input add to the raw embedding of each picture.

        Exact: the last norm is linear once the mean and deviation that it divides by are those of the picture
        (Gandelsman, Efros and Steinhardt, 2024).

        Parameters
        ----------
        pictures : tensor of shape (B, 3, H, W)
        weights : mapping of str to tensor, optional
            What stands in for the parameters of these full names.
        """
        what = "contributions of heads"
        self._blocks(what)
        visual: Any = self._opened.module.visual
        if visual.attn_pool is not None:
            raise self._error(what, "pools its tokens by attention")
        return self._opened.run(lambda module: _contributions(module.visual, pictures), weights)

    def _blocks(self, what: str, alternative: str = "") -> Any:
        if self._trouble is not None:
            raise self._error(what, self._trouble, alternative)
        visual: Any = self._opened.module.visual
        return visual.transformer.resblocks

    def _error(self, what: str, trouble: str, alternative: str = "") -> OpenedTowerError:
        return OpenedTowerError(
            f"model={self._opened.name!r}: its image tower {trouble}; {what} can be had of open_clip's own "
            f"VisionTransformer alone, such as those of ViT-B-32 and ViT-L-14. {alternative}".rstrip()
        )

    def _check_branches(self, branches: Branches) -> None:
        blocks = self._blocks("branches beside its projections", "Low-rank weights with dropout=0 need none.")
        known = {f"{_BLOCK.format(i)}.attn.{kind}" for i in range(len(blocks)) for kind in "qkvo"}
        unknown = sorted(set(branches) - known)
        if unknown:
            raise OpenedTowerError(f"model={self._opened.name!r} has no projection {unknown[0]!r}.")

    def _check_prompts(self, prompts: VisualPrompts) -> None:
        blocks = self._blocks(*_PROMPTS)
        if prompts.place not in _PLACES:
            raise ValueError(f"place={prompts.place!r} is not one of {', '.join(_PLACES)}.")
        if prompts.mode not in _MODES:
            raise ValueError(f"mode={prompts.mode!r} is not one of {', '.join(_MODES)}.")
        if not 1 <= len(prompts.tokens) <= len(blocks):
            raise ValueError(
                f"Prompts for {len(prompts.tokens)} layers do not fit the {len(blocks)} blocks of the image tower."
            )
        for i, tokens in enumerate(prompts.tokens):
            if tokens.ndim != 2 or tokens.shape[1] != self.width:
                raise ValueError(f"tokens[{i}] has shape {tuple(tokens.shape)}; expected (n, {self.width}).")


def layers(visual: Any, pictures: Tensor) -> Iterator[Tensor]:
    """Tokens (B, T, W) as they enter each block of an open tower, and as they leave the last; made when asked for."""
    hidden = visual.ln_pre(_embed(visual, pictures))
    for block in visual.transformer.resblocks:
        yield hidden
        hidden = attend(block, hidden)
    yield hidden


def read_out(visual: Any, hidden: Tensor, prompts: slice = slice(0, 0), branches: Branches | None = None) -> Tensor:
    """Raw projections (B, d) of the tokens before the last block, where `prompts` are not read.

    Of the last block's output nothing is made but the tokens that the pool reads.
    """
    import torch

    def read(tokens: Tensor) -> Tensor:
        if visual.attn_pool is None and visual.pool_type == "tok":
            return tokens[:, :1]
        return torch.cat([tokens[:, : prompts.start], tokens[:, prompts.stop :]], dim=1)

    blocks = visual.transformer.resblocks
    path = _BLOCK.format(len(blocks) - 1)
    mixed = mix(blocks[-1], hidden, branches=branches, path=path)
    return _pool(visual, finish(blocks[-1], read(hidden), read(mixed), branches, path))


def _trouble(visual: Any) -> str | None:
    """Why a tower cannot be opened."""
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer):
        return f"is a {type(visual).__name__}"
    if not all(is_plain(block) for block in visual.transformer.resblocks):
        return "has attention blocks of another kind than those of OpenAI's CLIP"
    return None


def _encode(visual: Any, pictures: Tensor, prompts: VisualPrompts | None, branches: Branches) -> Tensor:
    hidden = _embed(visual, pictures)
    if prompts is None:
        hidden, prompts, start, held = visual.ln_pre(hidden), VisualPrompts(()), 0, 0
    else:
        start = hidden.shape[1] if prompts.place == "end" else 1
        hidden, held = _enter(visual, hidden, prompts), len(prompts.tokens[0])
    blocks = visual.transformer.resblocks
    read = hidden
    for i, block in enumerate(blocks):
        if 0 < i < len(prompts.tokens):
            hidden, held = renew(read, hidden, prompts.tokens[i], start, held, prompts.mode)
        if i < len(blocks) - 1:
            read, hidden = hidden, attend(block, hidden, branches=branches, path=_BLOCK.format(i))
    return read_out(visual, hidden, slice(start, start + held), branches)


def _enter(visual: Any, embedded: Tensor, prompts: VisualPrompts) -> Tensor:
    """Tokens before the first block, with the first prompts among them."""
    import torch

    first = prompts.tokens[0].to(embedded.dtype).expand(len(embedded), -1, -1)
    if prompts.place == "end":
        return visual.ln_pre(torch.cat([embedded, first], dim=1))
    hidden = visual.ln_pre(embedded)
    return torch.cat([hidden[:, :1], first, hidden[:, 1:]], dim=1)


def _embed(visual: Any, pictures: Tensor) -> Tensor:
    """Class token and patches with their positions, (B, T, W), before ``ln_pre``."""
    import torch

    patches = visual.conv1(pictures).flatten(2).transpose(1, 2)
    first = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    hidden = torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
    return visual.patch_dropout(hidden)


def _pool(visual: Any, hidden: Tensor) -> Tensor:
    """Raw projections (B, d) of the tokens behind the last block."""
    pooled, _ = visual._pool(hidden)
    return pooled if visual.proj is None else pooled @ visual.proj


def _contributions(visual: Any, pictures: Tensor) -> Contributions:
    import torch

    def read(tokens: Tensor) -> Tensor:
        """The tokens (B, T', W) that the last norm sees."""
        if visual.pool_type == "tok":
            return tokens[:, :1]
        places = tokens[:, 1:]
        return places.mean(dim=1, keepdim=True) if visual.final_ln_after_pool else places

    blocks, norm = visual.transformer.resblocks, visual.ln_post
    hidden = visual.ln_pre(_embed(visual, pictures))
    first = read(hidden)
    mixtures, mlps = [], []
    for block in blocks:
        mixed = mix(block, hidden)
        after = finish(block, hidden, mixed)
        mixtures.append(read(mixed))
        mlps.append(read(after) - read(hidden) - block.ls_1(block.attn.out_proj(mixtures[-1])))
        hidden = after
    # the norm with the deviations of these tokens, the mean over tokens and the projection: one linear map
    deviation = (read(hidden).var(dim=-1, keepdim=True, correction=0) + norm.eps).sqrt()
    share = 1 / (deviation * deviation.shape[1])
    identity = torch.eye(len(norm.weight), dtype=hidden.dtype, device=hidden.device)
    projection = identity if visual.proj is None else visual.proj
    out = (identity - 1 / len(identity)) @ (norm.weight[:, None] * projection)

    def heads(block: Any, mixed: Tensor) -> Tensor:
        n_heads, writer = block.attn.num_heads, block.attn.out_proj
        by_head = (mixed * share).sum(dim=1).unflatten(-1, (n_heads, -1))  # (B, H, W / H)
        written = torch.einsum("bhk,hkw->bhw", by_head, block.ls_1(writer.weight.T).unflatten(0, (n_heads, -1)))
        return (written + share.sum(dim=1)[:, None] * block.ls_1(writer.bias) / n_heads) @ out

    return Contributions(
        heads=torch.stack([heads(block, mixed) for block, mixed in zip(blocks, mixtures)], dim=1),
        mlps=torch.stack([(added * share).sum(dim=1) for added in mlps], dim=1) @ out,
        rest=(first * share).sum(dim=1) @ out + norm.bias @ projection,
    )
