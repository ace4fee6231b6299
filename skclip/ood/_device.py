"""Where detectors compute: NumPy on the CPU, torch elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skclip._backbones import device_of_fitted, resolve_device

if TYPE_CHECKING:
    import torch

DEVICE_CONSTRAINTS: dict[str, list[Any]] = {"device": [str]}


def resolve(device: str) -> torch.device | None:
    """The accelerator that `device` means on this machine; None for the CPU, which is NumPy's.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
        "cpu" imports no torch.

    Raises
    ------
    ValueError
        The device is not one of these, or this machine lacks it.
    """
    if device == "cpu":
        return None
    found = resolve_device(device)
    return None if found.type == "cpu" else found


def resolve_fitted(device: str) -> torch.device | None:
    """`resolve` for a fitted detector: a device that this machine lacks is the CPU, with one warning.

    Warns
    -----
    MissingDeviceWarning
        Once per device.
    """
    return resolve(device_of_fitted(device)[0])
