"""The way of pixels to the device and into the tower's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_AHEAD = 2  # batches that may wait on the device for those before


class PixelScale:
    """From uint8 pixels (n, H, W, 3) to normalised ones (n, 3, H, W) in the precision of a tower.

    Parameters
    ----------
    mean, std : sequence of 3 floats
        Of pixels between 0 and 1.
    device : torch.device
    dtype : torch.dtype
    channels_last : bool
        How the result lies in memory; its shape is the same.
    """

    def __init__(self, mean: Any, std: Any, device: torch.device, dtype: torch.dtype, channels_last: bool) -> None:
        import torch

        self._mean, self._std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (mean, std))
        self._factor = 1 / (255 * self._std)
        self._shift = -self._mean / self._std
        self._dtype = dtype
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._fold = dtype != torch.float32 and device.type != "mps"  # MPS mixes types in few operations

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        planes = pixels.permute(0, 3, 1, 2)
        if self._fold:
            # One pass: read bytes, compute in float32, write half precision.
            out = torch.empty(planes.shape, dtype=self._dtype, device=planes.device, memory_format=self._layout)
            return torch.addcmul(self._shift, planes, self._factor, out=out)
        # The order of ToTensor and Normalize: the same float32 pixels bit for bit.
        planes = planes.to(torch.float32, memory_format=self._layout, copy=True)
        return planes.div_(255).sub_(self._mean).div_(self._std).to(self._dtype)


def to_tensor(batch: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """The same bytes as a tensor; copies maps on disk and reversed views."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch
    if min(batch.strides) < 0:  # one row of a reversed view counts as contiguous
        batch = batch.copy()
    return torch.from_numpy(np.require(batch, requirements=["C", "W"]))


class Uploads:
    """Pictures on their way to an accelerator: the next batch is copied while the tower works on the one before.

    Parameters
    ----------
    batch : uint8 array or tensor of shape (n, H, W, 3)
        Copies run beside the work where it lies in pinned memory (`Backbone.empty_pictures`).
    device : torch.device
    """

    def __init__(self, batch: NDArray[np.uint8] | torch.Tensor, device: torch.device) -> None:
        import torch

        self._batch = batch
        self._device = device
        on_host = isinstance(batch, np.ndarray) or batch.device.type == "cpu"
        self._cuda: Any = torch.cuda if device.type == "cuda" and on_host else None
        self._side: Any = self._cuda.Stream(device) if self._cuda else None
        self._next: tuple[int, int, torch.Tensor, Any] | None = None
        self._begun: list[Any] = []

    def rows(self, lo: int, hi: int) -> torch.Tensor:
        """Rows ``lo`` to ``hi`` on the device; those that presumably follow are on their way when this returns."""
        if self._cuda is None:
            return to_tensor(self._batch[lo:hi]).to(self._device)
        ready, self._next = self._next, None
        if ready is None or ready[:2] != (lo, hi):  # the first, or memory ran out and batches are smaller now
            ready = self._copy(lo, hi)
        pixels, copied = ready[2:]
        work = self._cuda.current_stream(self._device)
        work.wait_event(copied)
        pixels.record_stream(work)  # its memory is not given to the next copy before the work on it is done
        self._begun.append(work.record_event())
        if len(self._begun) > _AHEAD:  # the host is far ahead: pixels would pile up on the device
            self._begun.pop(0).synchronize()
        if hi < len(self._batch):
            self._next = self._copy(hi, min(len(self._batch), 2 * hi - lo))
        return pixels

    def _copy(self, lo: int, hi: int) -> tuple[int, int, torch.Tensor, Any]:
        with self._cuda.stream(self._side):
            pixels = to_tensor(self._batch[lo:hi]).to(self._device, non_blocking=True)
        return lo, hi, pixels, self._side.record_event()
