"""What every training step runs in: a precision, and words that help where memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from skclip._backbones import BackboneError, torch_dtype

if TYPE_CHECKING:
    import torch


def autocast(device: torch.device, precision: str) -> Any:
    """The context in which products are of this precision."""
    import torch

    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch_dtype(precision))


@contextmanager
def memory_advice(batch_size: int, name: str, instead: str) -> Iterator[None]:
    """Say what helps where memory runs out: a smaller batch, or what `instead` names."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        raise BackboneError(
            f"{name}: out of memory with batch_size={batch_size}; use a smaller one, {instead}."
        ) from error
