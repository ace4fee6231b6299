"""Weights from disk or hub to a frozen module, and the per-process cache of loaded backbones."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from skclip._backbones._cards import Recipe, get_recipe
from skclip._backbones._device import resolve_device, resolve_precision, warn_slow_precision
from skclip._backbones._execution import Backbone
from skclip._backbones._hub import BackboneError, cached_file, hub_file

# A backbone is 0.3 to 10 GB: the cache holds as many as one comparison of two models needs.
MAX_BACKBONES = 2

# Which file of a folder holds the weights: open_clip's own order of preference.
_WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth")

_cache: OrderedDict[Hashable, Backbone] = OrderedDict()
_cache_lock = threading.Lock()
_loading: defaultdict[Hashable, threading.Lock] = defaultdict(threading.Lock)
_digests: dict[tuple[str, int, int], str] = {}


def load_backbone(model: str, *, device: str = "auto", precision: str = "auto", compile: bool = False) -> Backbone:
    """A model with its weights on a device, from the cache of this process where it is there.

    The cache holds the two backbones used last. Threads that ask for one model load it once.

    Parameters
    ----------
    model : str
        See `get_card`.
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default="auto"
    precision : {"auto", "float32", "bf16", "fp16"}, default="auto"
        "auto" is float32 on CPUs and fp16 on accelerators. On a CPU without instructions for it, half precision
        is up to a hundred times slower than float32.
    compile : bool, default=False
        Run the picture tower through `torch.compile`: a minute at the first call, then faster on CUDA. Batches
        have one size then, which "auto" does not search for.

    Returns
    -------
    Backbone

    Raises
    ------
    ValueError
        Unknown model, absent device, unknown precision.
    BackboneError
        The weights cannot be fetched, are damaged, or do not fit the architecture.

    Warns
    -----
    SlowPrecisionWarning
        Half precision on a CPU that has no instructions for it; once per process.
    CompileWarning
        The tower cannot be compiled and runs uncompiled; at the first call.
    """
    recipe = get_recipe(model)
    target = resolve_device(device)
    kind = resolve_precision(precision, target)
    warn_slow_precision(kind, target)
    path = _weights_path(recipe)
    digest = file_digest(path, recipe.card.name)
    key = (recipe.card, digest, str(target), kind, bool(compile))
    found = _cached(key)
    if found is not None:
        return found
    with _cache_lock:
        loading = _loading[key]
    with loading:
        found = _cached(key)
        if found is None:
            module, make_tokenizer = _load(recipe, path)
            found = Backbone(
                recipe.card,
                digest=digest,
                module=module,
                make_tokenizer=make_tokenizer,
                device=target,
                precision=kind,
                compile=compile,
            )
            _remember(key, found)
        return found


def clear_backbones() -> None:
    """Forget every loaded backbone of this process.

    Memory is free once nothing else refers to them.
    """
    import sys

    from skclip._backbones._foreign import clear_networks

    with _cache_lock:
        _cache.clear()
        _loading.clear()
    clear_networks()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def weights_digest(model: str) -> str:
    """SHA-256 of a model's weights file, without building the model; fetched first if not on disk.

    Parameters
    ----------
    model : str
        See `get_card`.

    Returns
    -------
    str
        64 hexadecimal digits. Computed once per file, size and time of change.
    """
    recipe = get_recipe(model)
    return file_digest(_weights_path(recipe), recipe.card.name)


def find_weights(model: str) -> Path | None:
    """The weights file of a model if it is on this machine, else None; nothing is fetched but what `get_card` needs.

    Raises
    ------
    BackboneError
        A folder without weights.
    """
    recipe = get_recipe(model)
    return cached_file(recipe.source, _hub_names(recipe)) if recipe.kind == "hub" else _weights_path(recipe)


def _cached(key: Hashable) -> Backbone | None:
    with _cache_lock:
        if key not in _cache:
            return None
        _cache.move_to_end(key)
        return _cache[key]


def _remember(key: Hashable, backbone: Backbone) -> None:
    with _cache_lock:
        _cache[key] = backbone
        _loading.pop(key, None)
        while len(_cache) > MAX_BACKBONES:
            _cache.popitem(last=False)


def _load(recipe: Recipe, path: Path) -> tuple[Any, Any]:
    """The module on the CPU in float32 and a function that makes its tokenizer."""
    name = recipe.card.name
    if recipe.kind == "tiny":
        from skclip._backbones._tiny import load_tiny

        module, tokenizer = load_tiny(name)
        return module, lambda: tokenizer

    from skclip._backbones._building import load_module

    config = json.loads(recipe.card.config)
    module = load_module(name, config, path)
    folder = recipe.source if recipe.kind == "folder" else None
    return module, lambda: _make_tokenizer(name, config["text_cfg"], folder)


def _make_tokenizer(name: str, text_cfg: dict[str, Any], folder: str | None) -> Any:
    from skclip._backbones._text import make_tokenizer

    try:
        return make_tokenizer(text_cfg, folder)
    except Exception as error:  # transformers' own and its downloads' fail in many ways
        where = folder or text_cfg.get("hf_tokenizer_name")
        raise BackboneError(
            f"model={name!r}: its tokenizer ({where}) could not be loaded ({type(error).__name__}: {error}). "
            "It needs the package transformers and the tokenizer's files, cached or from the hub; pictures "
            "can be encoded without it."
        ) from error


def _weights_path(recipe: Recipe) -> Path:
    if recipe.kind == "tiny":
        from skclip._backbones._tiny import tiny_weights_path

        return tiny_weights_path(recipe.source)
    if recipe.kind == "folder":
        return _folder_weights(Path(recipe.source), recipe.card.name)
    return hub_file(recipe.source, _hub_names(recipe))


def _hub_names(recipe: Recipe) -> list[str]:
    """What the weights of a hub repository may be called, best first."""
    from open_clip.constants import HF_WEIGHTS_NAME
    from open_clip.pretrained import _get_safe_alternatives

    filename = recipe.filename or HF_WEIGHTS_NAME
    return [*_get_safe_alternatives(filename), filename]


def _folder_weights(folder: Path, name: str) -> Path:
    found = [path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES]
    candidates = sorted(found, key=lambda path: (path.suffix != ".safetensors", path.name))
    if not candidates:
        raise BackboneError(
            f"model={name!r}: {folder} holds no weights: no {', '.join(_WEIGHT_NAMES[:2])} or other file "
            f"ending in {', '.join(_WEIGHT_SUFFIXES)}."
        )
    named = [path for known in _WEIGHT_NAMES for path in candidates if path.name == known]
    return (named or candidates)[0]


def file_digest(path: Path, name: str) -> str:
    """SHA-256 of a file of weights of the model `name`, computed once per file, size and time of change."""
    try:
        real = path.resolve(strict=True)
        # The hub cache names large files by their SHA-256.
        if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name):
            return real.name
        stat = real.stat()
        key = (str(real), stat.st_size, stat.st_mtime_ns)
        if key not in _digests:
            with real.open("rb") as file:
                _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return _digests[key]
    except OSError as error:
        raise BackboneError(f"model={name!r}: the weights file {path} cannot be read ({error}).") from error
