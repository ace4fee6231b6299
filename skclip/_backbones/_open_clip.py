"""The guarded import of open_clip."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_lock = threading.Lock()
# A torch Library withdraws its operators when it is collected: keep it for the life of the process.
_declared: list[Any] = []


def import_open_clip() -> ModuleType:
    """The ``open_clip`` module, imported so that a CPU torch beside PyPI's torchvision works too."""
    with _lock:
        if "open_clip" not in sys.modules:
            _import_torchvision()
        import open_clip

        return open_clip


def _import_torchvision() -> None:
    """Import torchvision; where its compiled operators do not match this torch, without them.

    torchvision registers shape functions for ``nms`` and ``qnms`` even when the library that defines
    the two could not be loaded, and fails on that. Only their schemas are missing: nothing in
    open_clip calls them. They must not be declared ahead of a library that does load.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_missing_operators()
        import torchvision  # noqa: F401


def _declare_missing_operators() -> None:
    import torch

    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in missing:
            library.define(schema)
        _declared.append(library)
