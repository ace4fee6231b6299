"""Where learned vectors stand among the words of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from skclip.templates._templates import SLOT

if TYPE_CHECKING:
    import torch

    from skclip._backbones import PromptTokens, TextTower

POSITIONS = ("end", "middle", "front")


class PromptWords(NamedTuple):
    """Token ids of the prompts of K classes, cut where the name stands.

    Tokenisers may join the last sign of a name and the first behind it to one token, as CLIP's does with ``)`` and
    ``,``: `own` has the text as it is read, `names` and `after` the two parts as they are read apart.

    Attributes
    ----------
    start : list of int
        The start token, or nothing: some tokenisers write none.
    before : list of int
        What stands before the name, the same for all classes.
    behind : list of int
        What stands behind the name, read without any name.
    names : list of K lists of int
    after : list of K lists of int
        What stands after the name, the end token last.
    own : list of K lists of int
        Name and what stands after it, the end token last.
    """

    start: list[int]
    before: list[int]
    behind: list[int]
    names: list[list[int]]
    after: list[list[int]]
    own: list[list[int]]


def read_words(backbone: Any, template: str, names: Sequence[str]) -> PromptWords:
    """Token ids of a template with each name in it.

    Parameters
    ----------
    backbone : Backbone
    template : str
        With ``{}`` for the name.
    names : sequence of K str

    Raises
    ------
    ValueError
        If a tokeniser writes the words before the name otherwise next to some names.
    """
    before_text, _, after_text = template.partition(SLOT)
    nothing, before_ids, behind_ids = backbone.token_ids(["", before_text, after_text])
    n_start = len(nothing) - 1
    start, before, behind = before_ids[:n_start], before_ids[n_start:-1], behind_ids[n_start:-1]
    n_before = n_start + len(before)
    whole = backbone.token_ids([f"{before_text}{name}{after_text}" for name in names])
    without = backbone.token_ids([f"{before_text}{name}" for name in names])
    words = PromptWords(start, before, behind, [], [], [])
    for name, ids, ids_to_name in zip(names, whole, without):
        if not before == ids[n_start:n_before] == ids_to_name[n_start:n_before]:
            raise ValueError(f"The words {before_text!r} become other tokens before {name!r}; use another template.")
        own, name_ids = ids[n_before:], ids_to_name[n_before:-1]
        joined = own[: len(name_ids)] != name_ids
        words.names.append(name_ids)
        words.after.append([*behind, own[-1]] if joined else own[len(name_ids) :])
        words.own.append(own)
    return words


class PromptLayout:
    """Sequences of token embeddings in which learned vectors stand in for words.

    Parameters
    ----------
    text : TextTower
    words : PromptWords
    names : sequence of K str
        For errors.
    n_ctx : int
        Learned vectors. They take the place of the first `n_ctx` tokens before the name where there are so many, and
        of all of them where there are fewer.
    position : {"end", "middle", "front"}, default="end"
        Where the name stands among what is learned: after it; between its halves; before it.
    class_specific : bool, default=False
        Whether each class has vectors of its own.
    n_after : int, default=None
        How many learned vectors stand between name and end token, in place of the words there. None leaves the words.

    Raises
    ------
    ValueError
        If a prompt is longer than the tower reads; the message names the class.
    """

    def __init__(
        self,
        text: TextTower,
        words: PromptWords,
        names: Sequence[str],
        n_ctx: int,
        *,
        position: str = "end",
        class_specific: bool = False,
        n_after: int | None = None,
    ) -> None:
        import torch

        # learned vectors are numbered below the ids: -1, -2, ...
        learned, fixed = list(range(-1, -1 - n_ctx, -1)), words.before[n_ctx:]
        own = words.own
        if n_after is not None:
            behind = range(-1 - n_ctx, -1 - n_ctx - n_after, -1)
            own = [[*name, *behind, after[-1]] for name, after in zip(words.names, words.after)]
        first, rest = {"end": (learned, []), "middle": (learned[: n_ctx // 2], learned[n_ctx // 2 :])}.get(
            position, ([], learned)
        )
        prefix = [*words.start, *(first + fixed if position == "end" else first)]
        if position != "end":
            own = [[*name, *rest, *fixed, *after] for name, after in zip(words.names, words.after)]
        if class_specific:
            own = [
                [code if code >= 0 else code - k * n_ctx for code in prefix[len(words.start) :] + codes]
                for k, codes in enumerate(own)
            ]
            prefix = words.start
        self._n_start = len(words.start)
        self.lengths = torch.tensor([len(codes) for codes in own])
        longest = int(self.lengths.argmax())
        total = len(prefix) + len(own[longest])
        if total > text.context_length:
            raise ValueError(
                f"The prompt of class {names[longest]!r} has {total} tokens ({n_ctx} learned, "
                f"{len(words.names[longest])} of its name), more than the {text.context_length} that the model reads; "
                "use a smaller n_ctx or a shorter name."
            )
        ids = sorted({code for codes in [prefix, *own] for code in codes if code >= 0})
        place = {code: row for row, code in enumerate(ids)}
        self._words = text.embed(torch.tensor(ids, device=text.device))
        # on the device: places from elsewhere would be sent there, and waited for, at every step
        where = text.device
        self._prefix = torch.tensor([self._row(code, place) for code in prefix], dtype=torch.long, device=where)
        padded = [codes + [codes[-1]] * (len(own[longest]) - len(codes)) for codes in own]
        self._own = torch.tensor([[self._row(code, place) for code in codes] for codes in padded], device=where)
        self._own_is_words = all(code >= 0 for codes in own for code in codes)

    def __call__(
        self,
        ctx: torch.Tensor,
        after: torch.Tensor | None = None,
        *,
        deep: Sequence[torch.Tensor] = (),
        deep_mode: str = "replace",
    ) -> PromptTokens:
        """Prompts with these vectors.

        Parameters
        ----------
        ctx : tensor of shape (n_ctx, w), (R, n_ctx, w) for R variants, or (K * n_ctx, w) if specific to classes
        after : tensor of shape (n_after, w), default=None
        deep, deep_mode
            See `PromptTokens`.
        """
        import torch

        from skclip._backbones import PromptTokens

        learned = ctx if ctx.ndim == 3 else ctx[None]
        if after is not None:
            learned = torch.cat([learned, after.expand(len(learned), -1, -1)], dim=1)
        words = self._words.to(learned.dtype)
        # words first, then what is learned: the rows that `_row` counts
        rows = torch.cat([words.expand(len(learned), -1, -1), learned], dim=1)
        own = words[self._own][None] if self._own_is_words else rows[:, self._own]
        return PromptTokens(rows[:, self._prefix], own, self.lengths, deep, deep_mode, self._n_start)

    def _row(self, code: int, place: dict[int, int]) -> int:
        return place[code] if code >= 0 else len(place) - 1 - code


def initial_context(
    text: TextTower, words: PromptWords, n_ctx: int, generator: torch.Generator, n_classes: int | None = None
) -> torch.Tensor:
    """Vectors to begin with: the embeddings of the words before the name, or N(0, 0.02^2) where there are none.

    Parameters
    ----------
    text : TextTower
    words : PromptWords
    n_ctx : int
        As many of the words as there are, at most.
    generator : torch.Generator
    n_classes : int, default=None
        With it, as many copies (or draws), one below the other.

    Returns
    -------
    tensor of shape (n_ctx, w) or (n_classes * n_ctx, w), float32
    """
    import torch

    copies = 1 if n_classes is None else n_classes
    if not words.before:
        return 0.02 * torch.randn((copies * n_ctx, text.width), generator=generator)
    ids = torch.tensor(words.before[:n_ctx], device=text.device)
    return text.embed(ids).float().cpu().repeat(copies, 1)
