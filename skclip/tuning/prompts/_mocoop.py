"""MoCoOp: several learned prompts, of which a router mixes the best two for each picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skclip.templates import get_templates
from skclip.templates._templates import Templates
from skclip.tuning._losses import cross_entropy, text_to_text
from skclip.tuning._prompt_text import PromptLayout, initial_context
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval

if TYPE_CHECKING:
    import torch

    from skclip.tuning._setting import Setting, Step, Term

    Tensors = dict[str, torch.Tensor]

# the groups of MoCoOp that belong to no data set
GENERAL_GROUPS: tuple[tuple[str, ...], ...] = (
    ("a photo of a {}",),
    ("a photo of many {}",),
    (
        "a low resolution photo of a {}",
        "a low resolution photo of the {}",
        "a pixelated photo of a {}",
        "a pixelated photo of the {}",
    ),
    ("a good photo of a {}", "a good photo of the {}"),
)


class MoCoOpClassifier:
    def _prepare(self, setting: Setting, training: Any) -> None:
        constants = setting.constants
        groups = self._groups()
        everyone = setting
        if training is not None and self.all_class_names is not None:
            others = [name for name in self.all_class_names if name not in setting.names]
            everyone = replace(setting, names=[*setting.names, *others], constants={})
        words = [everyone.words(group[0]) for group in groups]
        constants["words"] = words
        constants["prompts"] = [
            PromptLayout(setting.text, of_group, everyone.names, len(of_group.before), n_after=len(of_group.after[0]) - 1)
            for of_group in words
        ]
        if training is not None:
            import torch

            constants["prototypes"] = torch.stack([everyone.class_text(group) for group in groups])

    def _start(self, setting: Setting) -> Tensors:
        import torch

        learned = {}
        for g, words in enumerate(setting.constants["words"]):
            ids = torch.tensor(words.after[0][:-1], dtype=torch.long, device=setting.device)
            learned[f"before.{g}"] = initial_context(setting.text, words, len(words.before), setting.generator)
            learned[f"after.{g}"] = setting.text.embed(ids).float().cpu()
        bound = setting.text.dim**-0.5
        for name, shape in (("router.weight", (g + 1, setting.text.dim)), ("router.bias", (g + 1,))):
            learned[name] = bound * (2.0 * torch.rand(shape, generator=setting.generator) - 1.0)
        if self.correction:
            learned["correction"] = torch.zeros(setting.text.dim)
        return learned

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        """(G, K, d), of all names."""
        import torch

        rows = torch.cat(
            [
                setting.text(prompts(learned[f"before.{g}"], learned[f"after.{g}"]))
                for g, prompts in enumerate(setting.constants["prompts"])
            ]
        )
        return rows + learned["correction"] if self.correction else rows

    def _scores(self, step: Step) -> torch.Tensor:
        text = step.text[:, : len(step.setting.names)]
        return step.setting.logit_scale * mix_experts(step.image, text, router_logits(step), self.top_k)

    def _terms(self, setting: Setting) -> dict[str, Term]:
        prototypes = setting.constants["prototypes"]

        def gate(step: Step) -> torch.Tensor:
            targets = routing_targets(step.image.detach(), prototypes, step.batch.codes, self.gate_boost, self.top_k)
            return self.gate_weight * cross_entropy(router_logits(step), targets, step.batch.weights)

        terms = super()._terms(setting)
        terms["text"] = lambda step: self.text_weight * text_to_text(step.text, prototypes)
        terms["gate"] = gate
        return terms


def router_logits(step: Step) -> torch.Tensor:
    """How well each expert suits each picture, (b, G)."""
    return step.image @ step.learned["router.weight"].T + step.learned["router.bias"]


def mix_experts(image: torch.Tensor, text: torch.Tensor, router: torch.Tensor, top_k: int) -> torch.Tensor:
    """Cosines with the class text of the experts that a router prefers, mixed by the softmax over these, (b, K).

    Equal to the product with the mixed class text, which is not normalised again.

    Parameters
    ----------
    image : tensor of shape (b, d)
        Unit rows.
    text : tensor of shape (G, K, d)
        Unit rows.
    router : tensor of shape (b, G)
    top_k : int
    """
    import torch

    preferred, chosen = router.topk(top_k, dim=1)
    shares = torch.zeros_like(router).scatter(1, chosen, preferred.softmax(dim=1))
    return torch.einsum("bg,bd,gkd->bk", shares, image, text)


def routing_targets(
    image: torch.Tensor, prototypes: torch.Tensor, codes: torch.Tensor, boost: float, top_k: int
) -> torch.Tensor:
    """What the router is to say of training pictures, probabilities (b, G).

    Softmax of the cosines of a picture with its own class as each group of templates describes it, the `top_k`
    largest raised by `boost`.

    Parameters
    ----------
    image : tensor of shape (b, d)
        Unit rows.
    prototypes : tensor of shape (G, K, d)
        Unit rows.
    codes : tensor of shape (b,)
    boost : float
    top_k : int
    """
    import torch

    cosines = torch.einsum("bd,gbd->bg", image, prototypes[:, codes])
    best = cosines.topk(top_k, dim=1).indices
    return cosines.scatter_add(1, best, torch.full_like(cosines, boost)).softmax(dim=1)
