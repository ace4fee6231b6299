"""Where a backbone runs and in which precision."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from skclip.utils import SkclipWarning

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "bf16", "fp16")

# What a CPU says it has that computes in half precision, by torch's names; avx_ne_convert converts at least.
_NATIVE = {
    "bf16": ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "sve_bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "avx_ne_convert", "fp16_arith"),
}

_missing_devices: set[str] = set()
_slow_precisions: set[str] = set()


class MissingDeviceWarning(SkclipWarning):
    """An estimator was fitted for a device that this machine lacks; it runs on the CPU."""


class SlowPrecisionWarning(SkclipWarning):
    """Half precision was asked for on a CPU that has no instructions for it."""


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device that `device` means on this machine.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"} or torch.device, default="auto"
        "auto" is the first of CUDA, Apple's MPS, CPU that is there. "cuda" is the current CUDA device.

    Returns
    -------
    torch.device
        CUDA devices carry their index.

    Raises
    ------
    ValueError
        The device is not one of these, or this machine lacks it.
    """
    import torch

    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    present = ["cpu", *(f"cuda:{i}" for i in range(n_cuda)), *(["mps"] if has_mps else [])]
    if device == "auto":
        device = "cuda" if n_cuda else "mps" if has_mps else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device={device!r} is not one of 'auto', 'cpu', 'cuda', 'cuda:N', 'mps'.")
    if found.type != "cuda":
        found = torch.device(found.type)
    elif found.index is None and n_cuda:
        found = torch.device("cuda", torch.cuda.current_device())
    if str(found) not in present:
        raise ValueError(f"device={str(device)!r} is not on this machine, which has: {', '.join(present)}.")
    return found


def device_of_fitted(device: str, precision: str = "auto") -> tuple[str, str]:
    """Where and how an estimator runs that was fitted, perhaps on another machine.

    Returns
    -------
    device, precision : str
        As given; "cpu" and "auto" where this machine lacks the device. "cpu" imports no torch.

    Warns
    -----
    MissingDeviceWarning
        Once per missing device.
    """
    if device in ("auto", "cpu"):
        return device, precision
    try:
        resolve_device(device)
    except ValueError as error:
        if device not in _missing_devices:
            _missing_devices.add(device)
            warnings.warn(f"{error} Running on the CPU instead.", MissingDeviceWarning, stacklevel=5)
        return "cpu", "auto"
    return device, precision


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that `precision` means on `device`: "float32", "bf16" or "fp16".

    "auto" is "float32" on CPUs and "fp16" on accelerators: there half precision is several times faster,
    and of the two kinds fp16 keeps three more bits. An overflow is reported, never served. On CPUs without
    instructions for it half precision is up to a hundred times slower than float32.
    """
    if precision == "auto":
        return "float32" if device.type == "cpu" else "fp16"
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is not one of 'auto', {', '.join(map(repr, PRECISIONS))}.")
    return precision


def warn_slow_precision(precision: str, device: torch.device) -> None:
    """Say once per process that this CPU has no instructions for a resolved `precision`."""
    if device.type != "cpu" or precision in _slow_precisions or _is_native(precision):
        return
    _slow_precisions.add(precision)
    warnings.warn(
        f"This CPU has no instructions for precision={precision!r}: up to a hundred times slower than 'float32', "
        "which precision='auto' means here. warnings.simplefilter('ignore', skclip.utils.SkclipWarning) silences "
        "this.",
        SlowPrecisionWarning,
        stacklevel=3,
    )


def _is_native(precision: str) -> bool:
    """Whether this CPU computes in `precision`; True as well where torch does not know."""
    import torch

    names = _NATIVE.get(precision, ())
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.11
        return not names or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "NO AVX")
    found = torch.cpu.get_capabilities()
    known = [found[name] for name in names if name in found]
    return not known or any(known)


def torch_dtype(precision: str) -> torch.dtype:
    """The torch type of a resolved precision."""
    import torch

    return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
