"""The file of a training that can be gone on with: its tensors and how far it has come."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]

_KIND = "skclip training"
_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, is damaged, or belongs to another training; the message says which."""


def check_writable(path: Path) -> None:
    """Make the folder of a checkpoint, and refuse a place where none can be written before hours are spent.

    Raises
    ------
    CheckpointError
    """
    if path.is_dir():
        raise CheckpointError(f"checkpoint={str(path)!r} is a folder; name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CheckpointError(f"checkpoint={str(path)!r} cannot be written: {error}.") from error


def write_checkpoint(path: Path, tensors: Tensors, facts: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Replace the checkpoint at once: the file is the old or the new one, also after a power failure.

    Parameters
    ----------
    path : Path
    tensors : dict of tensor
        On any device.
    facts : mapping
        Of what JSON can hold; floats come back to the last bit.
    fingerprint : mapping
        What the training is of, by name.

    Raises
    ------
    CheckpointError
        If the operating system refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    there = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    head = {"version": _VERSION, "fingerprint": dict(fingerprint), "facts": dict(facts)}
    text = json.dumps(head)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file(there, temporary, metadata={"kind": _KIND, "training": text, "digest": _digest(there, text)})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint={str(path)!r} cannot be written: {error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path, fingerprint: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]] | None:
    """Tensors, on the CPU, and facts of the training with this fingerprint; None where there is no file.

    Raises
    ------
    CheckpointError
        If the file is damaged, is none of ours, or has another fingerprint; then the message names what differs.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint={str(path)!r} cannot be read: {error}. It is damaged or no checkpoint of a training; remove "
            "it to begin anew."
        ) from error
    if metadata.get("kind") != _KIND:
        raise CheckpointError(f"checkpoint={str(path)!r} is no checkpoint of a training; give another path.")
    text = metadata["training"]
    if metadata.get("digest") != _digest(tensors, text):
        raise CheckpointError(f"checkpoint={str(path)!r} is damaged; remove it to begin anew.")
    head = json.loads(text)
    if head["version"] != _VERSION:
        raise CheckpointError(f"checkpoint={str(path)!r} was written by another version of skclip; give another path.")
    differences = _differences(head["fingerprint"], json.loads(json.dumps(dict(fingerprint))))
    if differences:
        raise CheckpointError(
            f"checkpoint={str(path)!r} holds another training: {'; '.join(differences)}. Give another path, or remove "
            "the file to begin anew."
        )
    return tensors, head["facts"]


def digest_of(*values: Any) -> str:
    """A short name of the contents of arrays, for a fingerprint."""
    import numpy as np

    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        array = np.ascontiguousarray(value)
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(array.data if array.dtype.kind in "biufc" else repr(array.tolist()).encode())
    return digest.hexdigest()


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints; values too long to read are named alone."""
    found = []
    for name in dict.fromkeys([*there, *here]):
        old, new = (json.dumps(one.get(name)) for one in (there, here))
        if old != new:
            is_short = max(len(old), len(new)) <= 31
            found.append(f"{name} is {old} there and {new} here" if is_short else f"{name} differs")
    return found


def _digest(tensors: Tensors, text: str) -> str:
    import torch

    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
