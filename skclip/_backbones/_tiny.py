"""The bundled tiny models: ordinary ``open_clip.CLIP`` objects with a word-level vocabulary.

Each lives beside this file in ``tiny/`` as NAME.json (configuration, vocabulary, how it was trained),
NAME.safetensors (float16 weights) and NAME.md (the model card).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skclip.utils import SkclipWarning

if TYPE_CHECKING:
    import torch

TINY_NAMES = ("skclip-tiny", "skclip-tiny-rn")
_FOLDER = Path(__file__).parent / "tiny"


class UnknownWordWarning(SkclipWarning):
    """A text holds words that the tiny model's vocabulary lacks; they are read as "unknown"."""


class TinyTokenizer:
    """Word-level tokeniser with open_clip's call signature.

    Ids: 0 = padding, 1 = unknown, 2 = start, then the words, and the end token last: open_clip pools
    the text tower where the id is largest.
    """

    pad_id, unknown_id, start_id = 0, 1, 2

    def __init__(self, vocabulary: Sequence[str], context_length: int) -> None:
        self.context_length = context_length
        self.vocab_size = len(vocabulary) + 4
        self.end_id = self.vocab_size - 1
        self._ids = {word: i for i, word in enumerate(vocabulary, start=3)}

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """(n, context_length) int64 ids; what does not fit is cut, the end token kept."""
        import torch

        texts = [texts] if isinstance(texts, str) else texts
        length = self.context_length if context_length is None else context_length
        ids = torch.zeros((len(texts), length), dtype=torch.long)
        unknown: dict[str, int] = {}
        for row, text in enumerate(texts):
            words = re.findall(r"\w+", text.lower())
            for word in words:
                if word not in self._ids:
                    unknown.setdefault(word, row)
            codes = [self._ids.get(word, self.unknown_id) for word in words[: length - 2]]
            ids[row, : len(codes) + 2] = torch.tensor([self.start_id, *codes, self.end_id])
        if unknown:
            some = ", ".join(f"{word!r} (text {row})" for word, row in list(unknown.items())[:5])
            warnings.warn(
                f"{len(unknown)} words are not in the tiny model's vocabulary and are read as unknown: {some}"
                f"{', ...' if len(unknown) > 5 else ''}. The bundled models know the picture world and digits only.",
                UnknownWordWarning,
                stacklevel=2,
            )
        return ids


def build_tiny(config: dict[str, Any]) -> torch.nn.Module:
    """An ``open_clip.CLIP`` of this configuration with random weights (torch's global generator)."""
    from torch import nn

    from skclip._backbones._open_clip import import_open_clip

    open_clip = import_open_clip()
    model_cfg = config["model_cfg"]
    module = open_clip.CLIP(**model_cfg)
    stem = config.get("stem")
    if stem:
        # A linear patch embedding learns colours but no shapes at this scale; a few
        # convolutions do. GroupNorm, so that tuning disturbs no running statistics.
        layers: list[nn.Module] = []
        c_in = 3
        for c_out, stride in stem:
            layers += [nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1), nn.GroupNorm(8, c_out), nn.ReLU()]
            c_in = c_out
        module.visual.conv1 = nn.Sequential(*layers[:-2])
    return module


def tiny_config(name: str) -> dict[str, Any]:
    """Configuration, preprocessing, vocabulary and training record of a bundled model."""
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def tiny_weights_path(name: str) -> Path:
    """Where the float16 weights lie."""
    return _FOLDER / f"{name}.safetensors"


def load_tiny(name: str) -> tuple[torch.nn.Module, TinyTokenizer]:
    """The bundled model in float32, in evaluation mode, and its tokeniser."""
    import torch
    from safetensors.torch import load_file

    config = tiny_config(name)
    state = {key: value.float() for key, value in load_file(tiny_weights_path(name)).items()}
    with torch.random.fork_rng(devices=[]):
        module = build_tiny(config)
    module.load_state_dict(state, strict=True)
    module.eval().requires_grad_(False)
    return module, TinyTokenizer(config["vocabulary"], config["model_cfg"]["text_cfg"]["context_length"])
