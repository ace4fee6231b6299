"""What the methods share that learn one context for all classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from skclip.tuning._setting import Setting
from skclip.tuning.prompts._coop import context_layout, start_of_context

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]


class SharedContext:
    """Mixin: learned vectors ``ctx`` around the names, the same for all classes, as `n_ctx` and `ctx_init` ask for."""

    def _start(self, setting: Setting) -> Tensors:
        return {"ctx": start_of_context(self, setting)}

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        ctx = learned["ctx"]
        return setting.text(context_layout(self, setting, len(ctx))(ctx))[0]

    def _publish(self, state: dict[str, NDArray], setting: Setting) -> None:
        self.ctx_: Any = state["ctx"]
