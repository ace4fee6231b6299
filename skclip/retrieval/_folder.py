"""Arrays and a description in a folder: written as a whole or not at all, opened as memory maps, never unpickled.

The description is written last, in one step, and names the files of arrays, whose names are never used twice. What
is on the way, or was left by a process that died, is named by no description.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE_NAME = "skclip-retriever.json"
VERSION = 1

_ARRAY_FILE = re.compile(r"skclip-\w+-[0-9a-f]{32}\.npy")


def save_folder(folder: str | os.PathLike[str], description: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
    """Write `arrays` and a JSON-able `description`, in place of what was saved there before.

    Raises
    ------
    OSError
        If something cannot be written; what was there before is left as it was.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = uuid.uuid4().hex
    paths = {name: folder / f"skclip-{name}-{run}.npy" for name in arrays}
    draft = folder / f"{FILE_NAME}.{run}"
    try:
        files = {}
        for name, path in paths.items():
            with path.open("xb") as file:
                np.save(file, arrays[name], allow_pickle=False)
                _to_disk(file)
            files[name] = {"name": path.name, "bytes": path.stat().st_size}
        with draft.open("x", encoding="utf-8") as file:
            json.dump({"version": VERSION, **description, "files": files}, file, indent=1)
            _to_disk(file)
        os.replace(draft, folder / FILE_NAME)
    except BaseException:
        for path in (draft, *paths.values()):
            path.unlink(missing_ok=True)
        raise
    _delete_others(folder, {path.name for path in paths.values()})


def load_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """The description, and the arrays as read-only memory maps.

    Raises
    ------
    FileNotFoundError
        If nothing was saved there.
    ValueError
        If a file is missing, cut or of another kind, or the folder was written by a later version.
    """
    path = Path(folder) / FILE_NAME
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version, files = description["version"], dict(description.pop("files"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no saved CLIPRetriever: there is no {FILE_NAME}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, or not the description of a CLIPRetriever ({error!r}).") from error
    if version != VERSION:
        raise ValueError(f"{path} is of version {version!r}; this skclip reads version {VERSION}.")
    return description, {name: _open_array(path.parent, file) for name, file in files.items()}


def _open_array(folder: Path, file: Mapping[str, Any]) -> NDArray:
    path = folder / file["name"]
    if not _ARRAY_FILE.fullmatch(file["name"]) or not path.is_file():
        raise ValueError(f"{folder / FILE_NAME} names the file {file['name']!r}, which is not there.")
    if path.stat().st_size != file["bytes"]:
        raise ValueError(f"{path} has {path.stat().st_size} bytes and should have {file['bytes']}: it is damaged.")
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _delete_others(folder: Path, current: set[str]) -> None:
    """Files of arrays of earlier saves; maps of them that are open stay readable where the system allows that."""
    for path in folder.iterdir():
        if _ARRAY_FILE.fullmatch(path.name) and path.name not in current:
            try:
                path.unlink()
            except OSError:  # still open, on Windows: the next save deletes it
                continue
