"""The text tower opened: prompts of learned vectors, what they share computed once, weights of one's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from skclip._backbones._opened import (
    Opened,
    OpenedTowerError,
    attend,
    finish,
    is_plain,
    merge_heads,
    project,
    renew,
    split_heads,
)
from skclip._backbones._text import end_positions, is_causal, pool_type, read_lengths, text_tower

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Branches = Mapping[str, Callable[[Tensor], Tensor]]

# tokens of which each may be compared with each: fewer, larger steps are then worth the products that a mask leaves out
_MOST_IN_ONE = 256


@dataclass
class PromptTokens:
    """C texts in R variants (one; or one per picture; or one per expert), as token embeddings without positions.

    Attributes
    ----------
    prefix : tensor of shape (R, P, w)
        The leading tokens, the same in all C texts, the start token first. A causal tower needs one at least.
    own : tensor of shape (1, C, L, w) or (R, C, L, w)
        The rest of each text, filled up at its end with anything.
    lengths : int64 tensor of shape (C,), on the CPU
        How many of the L count; the last of them is the end token.
    deep : sequence of tensors of shape (M, w)
        ``deep[i]`` enters before block i + 1, at M places behind the start token.
    deep_mode : {"replace", "accumulate", "accumulate_same"}, default="replace"
        Whether ``deep[i]`` takes the place of what block i made of the tokens there, comes after it, or comes after
        those tokens as they entered block i.
    deep_place : int, default=1
        Where those places begin; 0 where there is no start token.
    """

    prefix: Tensor
    own: Tensor
    lengths: Tensor
    deep: Sequence[Tensor] = ()
    deep_mode: str = "replace"
    deep_place: int = 1


class TextTower:
    """The text tower of an open_clip model as a function of prompts and of weights; it has none of its own.

    Where the tower is causal, what the texts have in common runs through it once for all of them, and nothing is
    computed that cannot reach the end token: the same features as by open_clip for a fraction of the work.

    Parameters
    ----------
    module : torch.nn.Module
        The whole model; shared, never changed.
    name : str
        What errors call it.
    pad_id : int, default=0
        The token that fills texts up to the context, for towers that read it.

    Attributes
    ----------
    width, dim, n_layers, context_length : int
    causal : bool
    device : torch.device
    """

    def __init__(self, module: nn.Module, name: str = "", pad_id: int = 0) -> None:
        tower: Any = text_tower(module)
        self.name = name or type(module).__name__
        self.pad_id = pad_id
        self.causal = is_causal(tower)
        self.context_length = tower.context_length or sys.maxsize  # relative positions know no limit
        self.width = _embedding(module).embedding_dim
        self._module = module
        self._opened = Opened(module, self.name)
        self._foreign = _is_foreign(tower)
        if self._foreign:
            self.dim, self.n_layers = tower.output_dim, tower.config.num_hidden_layers
        else:
            self.dim, self.n_layers = _out_width(tower), len(tower.transformer.resblocks)
        self._path = f"{'' if tower is module else 'text.'}transformer.resblocks"

    @property
    def device(self) -> torch.device:
        return _embedding(self._module).weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings without positions, (..., w), of ids (...)."""
        return _embedding(self._module)(ids.to(self.device))

    def __call__(
        self,
        prompts: PromptTokens,
        *,
        weights: Mapping[str, Tensor] | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """Raw projections of the prompts, (R, C, d).

        Parameters
        ----------
        prompts : PromptTokens
        weights : mapping of str to tensor, optional
            By full names of the model's parameters: what stands in for them.
        branches : mapping of str to callable, optional
            By ``"<block>.attn.<q|k|v|o>"``: functions of a projection's input whose result is added to it.

        Raises
        ------
        OpenedTowerError
            A tower that cannot be opened, or a text longer than it reads.
        """
        self._check(prompts, branches)

        def encode(module: Any) -> Tensor:
            tower = text_tower(module)
            if self._foreign:
                return _foreign_features(tower, prompts)
            if self.causal:
                return _causal_features(tower, prompts, branches, self._path)
            tokens = _whole_texts(prompts, self.context_length, _embedding(module).weight[self.pad_id])
            ends = _reading_places(tower, prompts.lengths + (prompts.prefix.shape[1] - 1), self.context_length)
            ends = ends.to(tokens.device).repeat(len(prompts.prefix))
            features = _two_way_features(tower, tokens, ends, prompts, branches, self._path)
            return features.unflatten(0, (len(prompts.prefix), -1))

        return self._opened.run(encode, weights)

    def encode_ids(
        self, ids: Tensor, *, weights: Mapping[str, Tensor] | None = None, branches: Branches | None = None
    ) -> Tensor:
        """Raw projections of plain texts, (C, d), cut at the last token that can matter.

        Parameters
        ----------
        ids : int64 tensor of shape (C, context_length), or of fewer columns where `read_lengths` allows
        weights, branches
            See `__call__`.

        Raises
        ------
        OpenedTowerError
            Branches on a tower that cannot be opened; weights go with every tower.
        """
        if branches:
            self._check_opened("branches beside projections", "Low-rank weights with dropout=0 need none.")
        ids = ids.to(self.device)
        return self._opened.run(lambda module: encode_plain(module, ids, branches, self._path), weights)

    def _check(self, prompts: PromptTokens, branches: Branches | None) -> None:
        if not self._foreign:
            self._check_opened("learned prompts")
        elif prompts.deep or branches:
            self._check_opened("prompts in deeper layers and branches")
        n_shared = prompts.prefix.shape[1]
        longest = n_shared + int(prompts.lengths.max())
        if longest > self.context_length:
            raise OpenedTowerError(
                f"model={self.name!r} reads texts of at most {self.context_length} tokens, and that at position "
                f"{int(prompts.lengths.argmax())} has {longest}; use fewer learned vectors or shorter names."
            )
        if len(prompts.deep) >= self.n_layers:
            raise OpenedTowerError(
                f"model={self.name!r} has {self.n_layers} text layers: prompts enter before {self.n_layers - 1} of "
                f"them at most, got {len(prompts.deep)}."
            )
        if prompts.deep and n_shared < prompts.deep_place + len(prompts.deep[0]):
            raise OpenedTowerError(
                f"Prompts in deeper layers stand where {len(prompts.deep[0])} learned vectors stand that all texts "
                f"share, and these share {n_shared - prompts.deep_place}; use such a prompt in deeper layers with "
                "vectors for all classes, before the names."
            )

    def _check_opened(self, what: str, alternative: str = "Adapters on features work with every model.") -> None:
        trouble = "is one of transformers" if self._foreign else _trouble(text_tower(self._module))
        if trouble:
            raise OpenedTowerError(
                f"model={self.name!r}: its text tower {trouble}, and {what} need a tower of OpenAI's kind, as those of "
                f"ViT-B-32 and ViT-L-14 are. {alternative}"
            )


def _is_foreign(tower: Any) -> bool:
    from open_clip.hf_model import HFTextEncoder

    return isinstance(tower, HFTextEncoder)


def _trouble(tower: Any) -> str | None:
    """Why a tower of open_clip's own cannot be opened."""
    if getattr(tower, "cls_emb", None) is not None:
        return "answers at a class token of its own, as CoCa's does"
    if getattr(tower, "use_pad_mask", False):
        return "masks its padding"
    if not all(is_plain(block) for block in tower.transformer.resblocks):
        return "has custom attention blocks"
    return None


def _embedding(module: nn.Module) -> Any:
    tower: Any = text_tower(module)
    return tower.token_embedding if hasattr(tower, "token_embedding") else tower.transformer.get_input_embeddings()


def _out_width(tower: Any) -> int:
    projection = tower.text_projection
    if projection is None:
        return tower.positional_embedding.shape[1]
    return getattr(projection, "out_features", None) or projection.shape[1]


def encode_plain(module: Any, ids: Tensor, branches: Branches | None = None, path: str = "") -> Tensor:
    """Raw projections (C, d) of token ids (C, T) by any tower; see `TextTower.encode_ids`."""
    tower = text_tower(module)
    lengths = read_lengths(module, ids).cpu()
    ids = ids[:, : int(lengths.max())]
    if _is_foreign(tower) or _trouble(tower):
        return _stock_features(module, ids)
    tokens = _embedding(module)(ids)
    if not is_causal(tower):
        ends = _reading_places(tower, end_positions(tower, ids), ids.shape[1])
        return _two_way_features(tower, tokens, ends, None, branches, path)
    shared = int((ids == ids[:1]).all(dim=0).int().cumprod(dim=0).sum())
    shared = min(shared, int(lengths.min()) - 1)  # the end token is each text's own
    prompts = PromptTokens(tokens[:1, :shared], tokens[None, :, shared:], lengths - shared)
    return _causal_features(tower, prompts, branches, path)[0]


def _stock_features(module: Any, ids: Tensor) -> Tensor:
    """The model's own forward, which insists on full rows where its tower is causal."""
    from torch.nn.functional import pad

    tower = text_tower(module)
    if is_causal(tower):
        ids = pad(ids, (0, tower.context_length - ids.shape[1]))
    return module.encode_text(ids, normalize=False)


def _foreign_features(tower: Any, prompts: PromptTokens) -> Tensor:
    """(R, C, d) by a two-way tower of transformers, which masks what does not count."""
    import torch

    n_shared, longest = prompts.prefix.shape[1], int(prompts.lengths.max())
    tokens = _sequences(prompts, longest).to(tower.transformer.get_input_embeddings().weight.dtype)
    counts = torch.arange(n_shared + longest) < n_shared + prompts.lengths[:, None]
    mask = counts.long().to(tokens.device).repeat(len(prompts.prefix), 1)
    out = tower.transformer(inputs_embeds=tokens, attention_mask=mask)
    features = tower.proj(tower.pooler(out, mask))
    return features.unflatten(0, (len(prompts.prefix), -1))


def _sequences(prompts: PromptTokens, length: int) -> Tensor:
    """All texts with `length` tokens of their own, variant by variant, (R * C, P + length, w)."""
    import torch

    n_variants, n_texts = len(prompts.prefix), len(prompts.lengths)
    shared = prompts.prefix[:, None].expand(-1, n_texts, -1, -1)
    own = prompts.own[:, :, :length].to(shared.dtype).expand(n_variants, -1, -1, -1)
    return torch.cat([shared, own], dim=2).flatten(0, 1)


def _whole_texts(prompts: PromptTokens, context_length: int, padding: Tensor) -> Tensor:
    """All texts filled up with `padding` (w,) to the whole context, (R * C, context_length, w)."""
    import torch
    from torch.nn.functional import pad

    n_shared = prompts.prefix.shape[1]
    tokens = _sequences(prompts, int(prompts.lengths.max()))
    tokens = pad(tokens, (0, 0, 0, context_length - tokens.shape[1]))
    counts = torch.arange(context_length) < n_shared + prompts.lengths[:, None]
    counts = counts.to(tokens.device).repeat(len(prompts.prefix), 1)
    return torch.where(counts[..., None], tokens, padding.to(tokens.dtype))


def _reading_places(tower: Any, ends: Tensor, length: int) -> Tensor:
    """Where a tower reads its answer in texts of `length` tokens whose end tokens stand at `ends`."""
    fixed = {"first": 0, "last": length - 1}.get(pool_type(tower) or "")
    return ends if fixed is None else ends.new_full(ends.shape, fixed)


def _two_way_features(
    tower: Any,
    tokens: Tensor,
    ends: Tensor,
    prompts: PromptTokens | None,
    branches: Branches | None,
    path: str,
) -> Tensor:
    """(B, d) by a tower without a mask, whose tokens (B, T, w) all see each other; of `prompts` the deep ones count."""
    import torch

    x = _at_places(tower, tokens, torch.arange(tokens.shape[1], device=tokens.device))
    deep = prompts.deep if prompts else ()
    held = len(deep[0]) if deep else 0
    for i, block in enumerate(tower.transformer.resblocks):
        before = x
        x = attend(block, x, branches=branches, path=f"{path}.{i}")
        if prompts and i < len(deep):
            x, held = renew(before, x, deep[i], prompts.deep_place, held, prompts.deep_mode)
    # prompts that came in beside others moved all that is behind them
    ends = torch.where(ends > 0, ends + (x.shape[1] - tokens.shape[1]), ends)
    return _answer(tower, x[torch.arange(len(x), device=x.device), ends])


def _causal_features(tower: Any, prompts: PromptTokens, branches: Branches | None, path: str) -> Tensor:
    """(R, C, d) by a causal tower: what the texts share is one row of tokens that never sees the rest.

    Its keys and values are all that the rest takes from it. The rest is packed: no padding goes through a layer.
    """
    import torch

    *blocks, last = tower.transformer.resblocks
    heads, n_shared = last.attn.num_heads, prompts.prefix.shape[1]
    packing = _pack(prompts.lengths, prompts.own.shape[2], prompts.own.device)
    shared = _at_places(tower, prompts.prefix, torch.arange(n_shared, device=prompts.prefix.device))
    own = _at_places(tower, prompts.own.flatten(1, 2)[:, packing.rows], n_shared + packing.places)
    x = torch.cat([shared, own.expand(len(shared), -1, -1)], dim=1)

    held = len(prompts.deep[0]) if prompts.deep else 0
    reading = _reading(packing, n_shared)
    for i, block in enumerate(blocks):
        projected = project(block, block.ln_1(x), branches, f"{path}.{i}")
        mixed = reading.of_all(*(split_heads(part, heads) for part in projected))
        before, x = x, finish(block, x, merge_heads(mixed), branches, f"{path}.{i}")
        if i < len(prompts.deep):
            x, held = renew(before, x, prompts.deep[i], prompts.deep_place, held, prompts.deep_mode)
            if x.shape[1] > before.shape[1]:
                n_shared += x.shape[1] - before.shape[1]
                reading = _reading(packing, n_shared)

    path = f"{path}.{len(blocks)}"
    normed, ends = last.ln_1(x), n_shared + packing.ends
    asking = project(last, normed[:, ends], branches, path, kinds="q")
    projected = (*asking, *project(last, normed, branches, path, kinds="kv"))
    read = reading.of_ends(*(split_heads(part, heads) for part in projected))
    answers = finish(last, x[:, ends], merge_heads(read), branches, path)
    return _answer(tower, answers[:, packing.back])


class _Reading(Protocol):
    """Attention of packed texts to the tokens that they share and, causally, to their own.

    Queries are tensors of shape (R, H, Q, e), keys and values of shape (R, H, n_shared + N, e).
    """

    def of_all(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What all tokens read, those that are shared first, (R, H, n_shared + N, e)."""
        ...

    def of_ends(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the last token of each text reads, (R, H, C, e)."""
        ...


def _reading(packing: _Packing, n_shared: int) -> _Reading:
    """The quicker of two ways to the same."""
    is_short = n_shared + len(packing.rows) <= _MOST_IN_ONE
    return _ReadingInOne(packing, n_shared) if is_short else _ReadingByLength(packing, n_shared)


class _ReadingInOne:
    """All tokens in one product, most of which a mask leaves out: little work, in few steps."""

    def __init__(self, packing: _Packing, n_shared: int) -> None:
        import torch

        texts, places = packing.texts, packing.places
        of_own = (texts[:, None] == texts) & (places[:, None] >= places)
        n = n_shared + len(texts)
        self.mask = torch.ones((n, n), dtype=torch.bool, device=texts.device).tril()
        self.mask[n_shared:, n_shared:] = of_own
        self.ends = n_shared + packing.ends

    def of_all(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        from torch.nn.functional import scaled_dot_product_attention

        return scaled_dot_product_attention(queries, keys, values, attn_mask=self.mask)

    def of_ends(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        from torch.nn.functional import scaled_dot_product_attention

        return scaled_dot_product_attention(queries, keys, values, attn_mask=self.mask[self.ends])


class _ReadingByLength:
    """Texts of one length together: work that grows with the number of texts, not with its square."""

    def __init__(self, packing: _Packing, n_shared: int) -> None:
        self.n_shared = n_shared
        self.every = [(count, length, length) for count, length in packing.groups]
        self.last = [(count, 1, length) for count, length in packing.groups]

    def of_all(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        asking, read, given = (part[:, :, : self.n_shared] for part in (queries, keys, values))
        of_shared = scaled_dot_product_attention(asking, read, given, is_causal=True)
        own = _read_both(queries[:, :, self.n_shared :], keys, values, self.n_shared, self.every)
        return torch.cat([of_shared, own], dim=2)

    def of_ends(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return _read_both(queries, keys, values, self.n_shared, self.last)


def _read_both(
    queries: Tensor, keys: Tensor, values: Tensor, n_shared: int, groups: Sequence[tuple[int, int, int]]
) -> Tensor:
    """Attention of packed texts to the tokens that they share and, causally, to their own.

    Parameters
    ----------
    queries : tensor of shape (R, H, Q, e)
    keys, values : tensors of shape (R, H, n_shared + N, e)
    groups : sequence of (count, q, k)
        So many texts, one after the other, have k tokens each, of which the last q ask.

    Returns
    -------
    tensor of shape (R, H, Q, e)
    """
    import torch

    asking, reading = [count * n for count, n, _ in groups], [count * n for count, _, n in groups]
    queries = queries * queries.shape[-1] ** -0.5
    shared_keys, *own_keys = keys.split([n_shared, *reading], dim=2)
    shared_values, *own_values = values.split([n_shared, *reading], dim=2)
    scores = queries @ shared_keys.transpose(-1, -2)  # of all texts in one product
    shares, mixed = [], []
    parts = zip(groups, queries.split(asking, dim=2), own_keys, own_values, scores.split(asking, dim=2))
    for (count, n_queries, n_keys), *tokens in parts:
        own_query, own_key, own_value, on_shared = (part.unflatten(2, (count, -1)) for part in tokens)
        later = queries.new_ones((n_queries, n_keys), dtype=torch.bool).triu(1 + n_keys - n_queries)
        on_own = (own_query @ own_key.transpose(-1, -2)).masked_fill(later, float("-inf"))
        share = torch.cat([on_shared, on_own], dim=-1).softmax(dim=-1)
        share_of_shared, share_of_own = share.split([n_shared, n_keys], dim=-1)
        shares.append(share_of_shared.flatten(2, 3))
        mixed.append((share_of_own @ own_value).flatten(2, 3))
    return torch.cat(mixed, dim=2) + torch.cat(shares, dim=2) @ shared_values


class _Packing(NamedTuple):
    """Which of C * L tokens count, the texts sorted by length."""

    rows: Tensor  # (N,)
    texts: Tensor  # (N,) which text each is of, in the sorted order
    places: Tensor  # (N,) of each in its text
    groups: list[tuple[int, int]]  # so many texts of such a length
    ends: Tensor  # (C,) of the N, each text's last
    back: Tensor  # (C,) from the sorted texts to the given ones


def _pack(lengths: Tensor, width: int, device: torch.device) -> _Packing:
    import torch

    ranked, order = lengths.sort(stable=True)
    places = torch.arange(width).expand(len(lengths), -1)
    counts = places < ranked[:, None]
    rows = (order[:, None] * width + places)[counts]
    groups = [(len(list(same)), length) for length, same in groupby(ranked.tolist())]
    texts = torch.arange(len(lengths)).repeat_interleave(ranked)
    tensors = (rows, texts, places[counts], ranked.cumsum(dim=0) - 1, order.argsort())
    rows, texts, places, ends, back = (tensor.to(device) for tensor in tensors)
    return _Packing(rows, texts, places, groups, ends, back)


def _at_places(tower: Any, tokens: Tensor, places: Tensor) -> Tensor:
    """Embeddings (..., n, w) with those of the places (n,) added, in the tower's own precision."""
    dtype = tower.transformer.get_cast_dtype()
    return tokens.to(dtype) + tower.positional_embedding[places].to(dtype)


def _answer(tower: Any, ends: Tensor) -> Tensor:
    """Projections (..., d) of the tokens (..., w) at which a tower is read."""
    from torch import nn

    pooled, projection = tower.ln_final(ends), tower.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
