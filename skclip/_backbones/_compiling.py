"""Towers through `torch.compile`."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from skclip.utils import SkclipWarning

if TYPE_CHECKING:
    import torch

    Project = Callable[[torch.Tensor], torch.Tensor]

logger = logging.getLogger("skclip")


class CompileWarning(SkclipWarning):
    """A tower was asked for with ``compile=True`` and runs uncompiled: same features, without the gain."""


class CompiledTower:
    """A function of pictures, compiled at its first call; uncompiled from the first failure on.

    Parameters
    ----------
    project : callable
        From pictures (n, 3, H, W) to rows (n, d).
    name : str
        Of the model, for the warning.
    device : torch.device

    Warns
    -----
    CompileWarning
        Once, when it cannot be compiled.
    """

    def __init__(self, project: Project, name: str, device: torch.device) -> None:
        import torch

        self._project = project
        self._name = name
        self._on_cuda = device.type == "cuda"
        self._lock = threading.Lock()
        # CUDA graphs have one set of buffers: one call at a time
        self._one_at_a_time = threading.Lock() if self._on_cuda else nullcontext()
        self.failed = False
        if self._on_cuda:
            self._compiled: Project = torch.compile(project, dynamic=False, mode="reduce-overhead")
        elif device.type == "cpu":
            # lanes share out the cores: compiled loops that start threads of their own would get in their way
            self._compiled = torch.compile(project, dynamic=False, options={"cpp.threads": 1})
        else:
            self._compiled = torch.compile(project, dynamic=False)

    def __call__(self, pictures: torch.Tensor, size: int) -> torch.Tensor:
        """Rows of at most `size` pictures, for which it is compiled: fewer are filled up, few run uncompiled."""
        import torch
        from torch.nn.functional import pad

        n = len(pictures)
        if self.failed or n <= size // 2:
            return self._project(pictures)
        full = pad(pictures, (0, 0, 0, 0, 0, 0, 0, size - n)) if n < size else pictures
        try:
            with self._one_at_a_time:
                if self._on_cuda:
                    torch.compiler.cudagraph_mark_step_begin()
                    return self._compiled(full)[:n].clone()  # the next call writes where this one did
                return self._compiled(full)[:n]
        except Exception as error:  # of compilers there are many, and so are their errors
            if "out of memory" in str(error).lower():
                raise
            self._give_up(error)
        return self._project(pictures)

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            first, self.failed = not self.failed, True
        if first:
            cause = getattr(error, "inner_exception", error)  # of which torch's own begins with other lines
            lines = str(cause).strip().splitlines()
            reason = f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
            warnings.warn(
                f"{self._name} could not be compiled ({reason}) and runs uncompiled: the features are the same. "
                "torch.compile needs a C++ compiler on CPUs and Triton on CUDA. compile=False asks for it silently.",
                CompileWarning,
                stacklevel=2,
            )
            logger.debug("Compilation of %s failed.", self._name, exc_info=error)
