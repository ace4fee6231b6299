"""Texts to token ids, and ids through the text tower without the positions that cannot matter."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from skclip.utils import SkclipWarning

if TYPE_CHECKING:
    import torch


class TruncatedTextWarning(SkclipWarning):
    """A text is longer than the model's context; what is beyond was not read."""


def make_tokenizer(text_cfg: dict[str, Any], folder: str | None = None) -> Any:
    """The tokenizer of a text configuration; `folder` holds its files where the model is a folder."""
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    context_length = text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH)
    options = text_cfg.get("tokenizer_kwargs") or {}
    name = text_cfg.get("hf_tokenizer_name")
    if not name:
        return SimpleTokenizer(context_length=context_length, **options)
    return HFTokenizer(
        folder or name,
        context_length=context_length,
        tokenizer_mode=text_cfg.get("tokenizer_mode"),
        **options,
    )


def tokenize(tokenizer: Any, unique: Sequence[str], texts: Sequence[str]) -> torch.Tensor:
    """(n, context_length) ids of the texts in `unique`; warn of those that were cut.

    `texts` are the user's, repeats included: the warning counts in them.
    """
    import torch

    if not unique:
        return torch.zeros((0, tokenizer.context_length), dtype=torch.long)
    ids = tokenizer(unique)
    cut = {unique[i] for i in _cut_rows(tokenizer, unique, ids)}
    if cut:
        positions = [i for i, text in enumerate(texts) if text in cut]
        warnings.warn(
            f"{len(positions)} of {len(texts)} texts are longer than the model's {ids.shape[1]} tokens and "
            f"were cut (first at position {positions[0]}: {texts[positions[0]][:60]!r}...).",
            TruncatedTextWarning,
            stacklevel=3,
        )
    return ids


def _cut_rows(tokenizer: Any, texts: Sequence[str], ids: torch.Tensor) -> list[int]:
    """Rows whose text was cut: full rows that a context of one more token fills too."""
    if getattr(tokenizer, "tokenizer_mode", ""):
        return []  # these modes end every row with a class token: full rows tell nothing
    padding = pad_id(tokenizer)
    full = [int(i) for i in (ids[:, -1] != padding).nonzero()[:, 0]]
    if not full:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said already when these texts were read the first time
        longer = tokenizer([texts[i] for i in full], context_length=ids.shape[1] + 1)
    return [i for i, last in zip(full, longer[:, -1].tolist()) if last != padding]


def pad_id(tokenizer: Any) -> int:
    """The token with which a tokenizer of open_clip fills texts up to the context."""
    return getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", 0) or 0


def filled_lengths(tokenizer: Any, ids: torch.Tensor) -> torch.Tensor:
    """Tokens of each row up to its end token, (n,) int64; some tokenizers fill up with end tokens."""
    import torch

    padding = pad_id(tokenizer)
    lengths = ((ids != padding) * torch.arange(1, ids.shape[1] + 1)).amax(dim=1)
    ends_as_padding = getattr(getattr(tokenizer, "tokenizer", None), "eos_token_id", None) == padding
    return (lengths + int(ends_as_padding)).clamp(max=ids.shape[1])


def read_lengths(module: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """How many leading tokens of each row can change its feature, (n,) int64.

    Up to the end token where the tower is causal and reads its answer there; up to the last token that
    is not padding where the tower masks padding; else all.
    """
    import torch
    from open_clip.hf_model import HFTextEncoder

    tower = text_tower(module)
    if is_causal(tower):
        return end_positions(tower, ids) + 1
    full = torch.full((len(ids),), ids.shape[1], dtype=torch.long)
    if not isinstance(tower, HFTextEncoder):
        return full
    filled = ids != tower.config.pad_token_id
    lengths = (filled * torch.arange(1, ids.shape[1] + 1)).amax(dim=1)
    padded_left = ~filled[:, 0]
    return torch.where(padded_left, full, lengths)


def encode_ids(module: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Raw projections of token ids, (n, dim); ids may be cut as `read_lengths` allows."""
    from skclip._backbones._opened_text import encode_plain

    return encode_plain(module, ids)


def text_tower(module: torch.nn.Module) -> Any:
    """The module that holds the text tower's parts: ``open_clip.CLIP`` keeps them on itself."""
    return getattr(module, "text", module)


def is_causal(tower: Any) -> bool:
    """Whether the answer is read at the end token and later tokens cannot reach it."""
    return (
        getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and pool_type(tower) in ("argmax", "eos")
    )


def end_positions(tower: Any, ids: torch.Tensor) -> torch.Tensor:
    """Where a causal tower reads its answer, (n,) int64; as open_clip's ``text_global_pool``."""
    if pool_type(tower) == "argmax":
        return ids.argmax(dim=-1)
    end = tower.text_eos_id if hasattr(tower, "text_eos_id") else tower.eos_id
    return (ids == end).int().argmax(dim=-1)


def pool_type(tower: Any) -> str | None:
    """Where a tower of open_clip reads its answer: "argmax", "eos", "last", "first"."""
    return getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
