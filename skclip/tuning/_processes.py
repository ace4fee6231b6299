"""One training by several processes, begun by ``accelerate launch`` or ``torchrun``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees it.

    Attributes
    ----------
    device : torch.device
        Of this process.
    index : int
        The process of index 0 is the main one: it alone writes files and shows progress.
    count : int
    """

    device: torch.device
    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """The rows of a batch that this process works on; the shares of the first processes may be larger by one."""
        return np.array_split(rows, self.count)[self.index]

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors of one type by their sums over all processes, in one message."""
        import torch

        if self.count == 1:
            return
        flat = torch.cat([value.reshape(-1) for value in tensors])
        torch.distributed.all_reduce(flat)
        for value, total in zip(tensors, flat.split([value.numel() for value in tensors])):
            value.copy_(total.view_as(value))

    def from_main(self, value: Any) -> Any:
        """What the main process has; the others pass anything."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]


def join_processes(device: torch.device, distributed: bool) -> Processes:
    """The processes to train with: this one alone, or all that were begun with it.

    Parameters
    ----------
    device : torch.device
        A CUDA device stands for one of each process.
    distributed : bool
        A process that was not begun by ``accelerate launch`` or ``torchrun`` is alone in any case.

    Raises
    ------
    ImportError
        If `distributed` and accelerate is not there.
    """
    if not distributed:
        return Processes(device)
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError('distributed=True needs accelerate: pip install "skclip[accelerate]".') from error
    state = PartialState(cpu=device.type == "cpu")
    where = state.device if device.type == "cuda" else device
    return Processes(where, state.process_index, state.num_processes)
