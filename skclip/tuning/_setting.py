"""What the methods work with: the frozen model, the classes, one batch with everything that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from skclip._backbones import TextTower, VisionTower
from skclip.templates import get_templates
from skclip.templates._templates import Templates, fill_templates
from skclip.tuning._prompt_text import PromptWords, read_words

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Batch

    Tensors = dict[str, torch.Tensor]


@dataclass
class Setting:
    """The frozen model and the classes, for the time of one call.

    Attributes
    ----------
    backbone : Backbone
        In float32; shared, never changed.
    classes : ndarray of shape (K,)
        Labels, sorted.
    names : list of K str
    logit_scale : float
        Multiplier of cosines.
    generator : torch.Generator
        On the CPU; all that is random in training comes from it.
    constants : dict
        What a method has made once, before training begins.
    """

    backbone: Any
    classes: NDArray
    names: list[str]
    logit_scale: float
    generator: torch.Generator
    constants: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @cached_property
    def text(self) -> TextTower:
        return TextTower(self.backbone.module, self.backbone.card.name, self.backbone.pad_id)

    @cached_property
    def vision(self) -> VisionTower:
        return VisionTower(self.backbone.module, self.backbone.card.name)

    def words(self, template: str) -> PromptWords:
        """Token ids of the template with each class name in it."""
        return read_words(self.backbone, template, self.names)

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit rows (n, d) of the frozen text tower, on the device."""
        import torch
        from torch.nn.functional import normalize

        rows = torch.from_numpy(self.backbone.encode_texts(list(texts)))
        return normalize(rows, dim=1).to(self.device)

    def sentences(self, templates: Templates) -> list[list[str]]:
        """The templates with the name of each class in them.

        Raises
        ------
        ValueError
            If a sentence is longer than the model reads; the message names the class.
        """
        sentences = fill_templates(dict(enumerate(self.names)), get_templates(templates))
        most = self.backbone.card.context_length
        for name, of_class in zip(self.names, sentences):
            longest = max(map(len, self.backbone.token_ids(of_class)))
            if longest > most:
                raise ValueError(
                    f"A sentence of class {name!r} has {longest} tokens, more than the {most} that the model reads; "
                    "use a shorter name or template."
                )
        return sentences

    def class_text(self, templates: Templates) -> torch.Tensor:
        """Unit rows (K, d): the normalised mean of the normalised sentences of each class, as zero-shot prototypes."""
        from torch.nn.functional import normalize

        sentences = self.sentences(templates)
        rows = self.encode_texts([sentence for of_class in sentences for sentence in of_class])
        return normalize(rows.reshape(len(self.names), -1, rows.shape[1]).mean(dim=1), dim=1)


class Step:
    """One batch; what the terms of the loss read is made when it is first asked for, and once.

    Attributes
    ----------
    setting : Setting
    learned : dict of str to tensor
    batch : Batch
        With ``rows``, ``inputs``, ``codes``, ``weights``, ``epoch``, ``generator``.
    """

    def __init__(self, method: Any, setting: Setting, learned: Tensors, batch: Batch) -> None:
        self._method = method
        self.setting = setting
        self.learned = learned
        self.batch = batch

    @cached_property
    def raw_image(self) -> torch.Tensor:
        """Projections of the pictures by the tuned tower, (b, d)."""
        return self._method._image(self.learned, self.setting, self.batch.inputs, self.batch.generator)

    @cached_property
    def image(self) -> torch.Tensor:
        """Unit rows of the pictures, (b, d)."""
        return _unit(self.raw_image)

    @cached_property
    def text(self) -> torch.Tensor:
        """Unit rows of the classes, (K, d), or of each (variant, class), (R, K, d)."""
        return _unit(self._method._text(self.learned, self.setting))

    @cached_property
    def logits(self) -> torch.Tensor:
        """(b, K)."""
        return self._method._scores(self)

    @cached_property
    def frozen_image(self) -> torch.Tensor:
        """Unit rows of the same inputs by the tower as it came, (b, d), without gradient."""
        import torch

        with torch.no_grad():
            return _unit(self.setting.vision(self.batch.inputs))


Term = Callable[[Step], "torch.Tensor"]


def cosine_scores(step: Step) -> torch.Tensor:
    """Scaled cosines, (b, K)."""
    return scaled_cosines(step.image, step.text, step.setting.logit_scale)


def scaled_cosines(image: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
    """Logits (b, K) of unit rows (b, d) and (K, d)."""
    with in_float32(image):
        return scale * image @ text.T


def in_float32(rows: torch.Tensor) -> Any:
    """The context in which products are float32 even where towers work in half precision.

    For logits: near 30, those of bf16 are 0.125 apart.
    """
    import torch

    return torch.autocast(rows.device.type, enabled=False)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import normalize

    return normalize(rows.float(), dim=-1)
