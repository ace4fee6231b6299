"""Networks that are not open_clip's: timm's, by name, with random weights or those of a checkpoint."""

from __future__ import annotations

import difflib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from skclip._backbones._building import weights_trouble
from skclip._backbones._hub import BackboneError, hub_file
from skclip._backbones._loading import file_digest
from skclip._backbones._open_clip import import_open_clip

if TYPE_CHECKING:
    import torch

# An ensemble of networks uses each in turn; a ResNet-50 takes 100 MB.
MAX_NETWORKS = 4

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_INTERPOLATIONS = ("bicubic", "bilinear")
_PIXEL_MEAN, _PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_networks: OrderedDict[Hashable, Any] = OrderedDict()
_networks_lock = threading.Lock()
_random_lock = threading.RLock()


@dataclass(frozen=True)
class NetworkCard:
    """Facts about a network: how its pictures are made, and where its weights are.

    Attributes
    ----------
    name : str
        timm's name, ``"<architecture>"`` or ``"<architecture>.<tag>"``.
    image_size : (int, int)
        Height and width of its pictures.
    crop_fraction : float
        What the picture it reads is of the resized one.
    interpolation : {"bicubic", "bilinear"}
    resize_mode : {"shortest", "squash"}
    mean, std : (float, float, float)
        Of the pixels between 0 and 1.
    repository : str or None
        Of its weights on the hub.
    n_classes : int
        Of these weights.
    heads : tuple of str
        Names of the layers that give the logits.
    fixed_size : bool
        Whether the size of its pictures is part of the architecture.
    """

    name: str
    image_size: tuple[int, int]
    crop_fraction: float
    interpolation: str
    resize_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    repository: str | None
    n_classes: int
    heads: tuple[str, ...]
    fixed_size: bool

    def resized(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a picture of which `image_size` is cut out."""
        height, width = (math.floor(side / self.crop_fraction) for side in image_size)
        return height, width


def import_timm() -> ModuleType:
    """The ``timm`` module, which needs torchvision, whose import open_clip's guard makes safe."""
    import_open_clip()
    import timm

    return timm


@cache
def network_card(name: str) -> NetworkCard:
    """What timm knows of one of its models; nothing is downloaded.

    Raises
    ------
    ValueError
        Unknown name; the message has similar ones.
    """
    timm = import_timm()
    architecture, _, tag = name.partition(".")
    if ":" in name or "/" in name:
        raise ValueError(
            f"model={name!r} is no name of timm's; of a folder or a hub repository pass the architecture as model, "
            "and the file of the weights as pretrained."
        )
    if not timm.is_model(architecture):
        raise ValueError(f"model={name!r} is unknown to timm {timm.__version__}.{_similar(name, timm.list_models())}")
    if tag:
        tagged = [known for known in timm.list_pretrained() if known.partition(".")[0] == architecture]
        if name not in tagged:
            raise ValueError(
                f"model={name!r}: timm {timm.__version__} knows no weights {tag!r} of {architecture}."
                f"{_similar(name, tagged)}"
            )
    found = timm.get_pretrained_cfg(name, allow_unregistered=True)
    facts = {} if found is None else found.to_dict()
    heads = facts.get("classifier") or ()
    interpolation = facts.get("interpolation", "bicubic")
    return NetworkCard(
        name=name,
        image_size=tuple(facts.get("input_size", (3, 224, 224))[1:]),
        crop_fraction=float(facts.get("crop_pct") or 0.875),
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bicubic",
        resize_mode="squash" if facts.get("crop_mode") == "squash" else "shortest",
        mean=tuple(facts.get("mean") or _PIXEL_MEAN),
        std=tuple(facts.get("std") or _PIXEL_STD),
        repository=facts.get("hf_hub_id"),
        n_classes=int(facts.get("num_classes", 1000)),
        heads=(heads,) if isinstance(heads, str) else tuple(heads),
        fixed_size=bool(facts.get("fixed_input_size", False)),
    )


def _similar(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 3, cutoff=0.5)
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""


def network_weights(card: NetworkCard, pretrained: bool | str | PathLike[str]) -> Path | None:
    """The file of the weights to start from; fetched first where `pretrained` is True and it is not on disk.

    Returns
    -------
    Path or None
        None for random weights.

    Raises
    ------
    BackboneError
        There is no such file, or it cannot be fetched.
    """
    if pretrained is False:
        return None
    if pretrained is not True:
        path = Path(pretrained)
        if not path.is_file():
            raise BackboneError(f"pretrained={str(pretrained)!r}: there is no such file.")
        return path
    if card.repository is None:
        raise BackboneError(
            f"model={card.name!r} has no weights on the hub. Pass pretrained=<path to a checkpoint>, or "
            "pretrained=False to train from scratch."
        )
    return hub_file(
        card.repository,
        _WEIGHT_FILES,
        offline="pretrained=<path to a checkpoint> (safetensors, or a torch file of tensors) or pretrained=False "
        "(training from scratch)",
    )


def weights_file_digest(path: Path | None, card: NetworkCard) -> str:
    """SHA-256 of a file of weights; "" for random ones."""
    return "" if path is None else file_digest(path, card.name)


def build_network(
    card: NetworkCard, n_classes: int, image_size: tuple[int, int], *, weights: Path | None = None, seed: int = 0
) -> torch.nn.Module:
    """A network with a new head for `n_classes`, on the CPU in float32.

    Parameters
    ----------
    card : NetworkCard
    n_classes : int
    image_size : (int, int)
        Height and width of its pictures.
    weights : Path, default=None
        A checkpoint (safetensors, or torch's file of tensors alone). All but its head must fit. None is random.
    seed : int
        Of random weights.

    Raises
    ------
    ValueError
        The architecture cannot read pictures of this size.
    BackboneError
        The checkpoint is damaged, holds more than tensors, or does not fit.
    """
    timm = import_timm()
    size = {"img_size": image_size} if card.fixed_size else {}
    with private_random_numbers(seed):
        if weights is None:
            return _created(card, image_size, lambda: timm.create_model(card.name, num_classes=n_classes, **size))
        state = _read_weights(card, weights)
        n_known = next((len(state[f"{head}.weight"]) for head in card.heads if f"{head}.weight" in state), 0)
        overlay = {"state_dict": state, "num_classes": n_known, "custom_load": False, "source": None}
        # random weights first: a size that does not suit is then not taken for a checkpoint that does not fit
        _created(card, image_size, lambda: timm.create_model(card.name, num_classes=n_classes, **size))
        try:
            module = timm.create_model(
                card.name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=n_known, **size
            )
        except Exception as error:
            raise BackboneError(f"model={card.name!r}: {weights_trouble(weights, error)}") from error
        module.reset_classifier(n_classes)
        return module


def _created(card: NetworkCard, image_size: tuple[int, int], create: Callable[[], Any]) -> Any:
    """The network, tried on one picture."""
    import torch

    try:
        module = create()
        with torch.no_grad():  # not inference_mode: what a layer may remember has to serve training
            logits = module.eval()(torch.zeros(1, 3, *image_size))
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"model={card.name!r} cannot read pictures of {image_size[0]} x {image_size[1]} pixels "
            f"({type(error).__name__}: {reason[0] if reason else ''}); its own size is "
            f"{card.image_size[0]} x {card.image_size[1]}."
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise ValueError(f"model={card.name!r} gives no logits of one picture; choose a classification model.")
    return module


def _read_weights(card: NetworkCard, path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name; nothing in it is run."""
    import torch
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:
        raise BackboneError(f"model={card.name!r}: {weights_trouble(path, error)}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BackboneError(f"model={card.name!r}: {path} holds no tensors by name, so no weights.")
    return state


def head_names(module: torch.nn.Module, card: NetworkCard) -> set[str]:
    """Names of the parameters of the layers that give the logits."""
    return {name for name, _ in module.named_parameters() if any(name.startswith(f"{head}.") for head in card.heads)}


@contextmanager
def private_random_numbers(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let torch's global generators of the CPU and of a CUDA device start at `seed` inside, and go on outside as if
    nothing had been."""
    import torch

    cuda = [device] if device is not None and device.type == "cuda" else []
    with _random_lock, torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            torch.cuda.default_generators[one.index].manual_seed(seed)
        yield


def cached_network(key: Hashable, make: Callable[[], Any]) -> Any:
    """The network of this key in this process, made where it is not there; the four used last are kept."""
    with _networks_lock:
        if key in _networks:
            _networks.move_to_end(key)
            return _networks[key]
    made = make()
    keep_network(key, made)
    return made


def keep_network(key: Hashable, network: Any) -> None:
    """Put a network, which nobody may change any more, where `cached_network` finds it."""
    with _networks_lock:
        _networks[key] = network
        _networks.move_to_end(key)
        while len(_networks) > MAX_NETWORKS:
            _networks.popitem(last=False)


def clear_networks() -> None:
    """Forget every network of this process."""
    with _networks_lock:
        _networks.clear()
