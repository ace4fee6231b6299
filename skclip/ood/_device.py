"""Where detectors compute: NumPy on the CPU, torch elsewhere."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DEVICE_CONSTRAINTS: dict[str, list[Any]] = {"device": [str]}

_missing_devices: set[str] = set()


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
    from skclip._backbones import resolve_device

    found = resolve_device(device)
    return None if found.type == "cpu" else found


def resolve_fitted(device: str) -> torch.device | None:
    """`resolve` for a fitted detector: a device that this machine lacks is the CPU, with one warning.

    Warns
    -----
    MissingDeviceWarning
        Once per device.
    """
    try:
        return resolve(device)
    except ValueError as error:
        if device not in _missing_devices:
            from skclip.features import MissingDeviceWarning

            _missing_devices.add(device)
            warnings.warn(f"{error} Running on the CPU instead.", MissingDeviceWarning, stacklevel=2)
        return None
