"""From a configuration to an open_clip module: building, filling with weights, counting its work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skclip._backbones._hub import BackboneError
from skclip._backbones._open_clip import import_open_clip

if TYPE_CHECKING:
    import torch


def build_module(model_cfg: dict[str, Any]) -> torch.nn.Module:
    """The open_clip model of a configuration, with random weights; nothing is downloaded for it."""
    import_open_clip()
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    # open_clip's create_model does the same, but cannot start from a configuration in memory, and
    # announces random weights on the root logger.
    cfg = copy.deepcopy(model_cfg)
    custom_text = cfg.pop("custom_text", False) or bool(cfg["text_cfg"].get("hf_model_name"))
    if cfg["vision_cfg"].get("timm_model_name"):
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    if cfg["text_cfg"].get("hf_model_name"):
        cfg["text_cfg"]["hf_model_pretrained"] = False
    if not custom_text:
        return CLIP(**cfg)
    return (CoCa if "multimodal_cfg" in cfg else CustomTextCLIP)(**cfg)


def load_module(name: str, model_cfg: dict[str, Any], path: Path) -> torch.nn.Module:
    """The model of a configuration with the weights of a file, on the CPU in float32.

    Raises
    ------
    BackboneError
        The configuration describes no model, the file is damaged, or the two do not fit.
    """
    import torch

    open_clip = import_open_clip()
    try:
        with torch.random.fork_rng(devices=[]):  # random initial weights must not move the user's generator
            module = build_module(model_cfg)
    except Exception as error:
        raise BackboneError(
            f"model={name!r}: its configuration could not be built ({type(error).__name__}: {error})."
        ) from error
    try:
        open_clip.load_checkpoint(module, str(path), strict=True, weights_only=True)
    except Exception as error:
        raise BackboneError(f"model={name!r}: {weights_trouble(path, error)}") from error
    return module


def weights_trouble(path: Path, error: Exception) -> str:
    """What is wrong with a file of weights, in words, from the error of reading it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "loading state_dict" in str(error):
        return f"the weights in {path} do not fit the architecture of the configuration: " + " ".join(lines[1:3])[:400]
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
        return f"{path} holds more than tensors, which is refused because reading it could run foreign code."
    # torch's own words advise to switch that safeguard off: they are not passed on.
    own_words = lines and not lines[0].startswith("Weights only load failed")
    reason = f"{type(error).__name__}: {lines[0]}" if own_words else type(error).__name__
    return (
        f"the weights file {path} ({_size(path)}) cannot be read ({reason}); it is damaged, truncated or of "
        "another kind. Delete it and fetch it again."
    )


def _size(path: Path) -> str:
    return f"{path.stat().st_size} bytes" if path.exists() else "missing"


def count_image_gflops(model_cfg: dict[str, Any], image_size: tuple[int, int]) -> float | None:
    """10^9 floating-point operations of one picture, counted on shapes alone; None if a tower resists."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    try:
        module = _shapes_alone(model_cfg)
        # Gradients stay on: without them attention takes a fused path that the counter cannot see.
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            module.eval().visual(torch.empty(1, 3, *image_size))  # type: ignore[operator]
    except (RuntimeError, NotImplementedError):
        return None
    return counter.get_total_flops() / 1e9


def count_parameters(model_cfg: dict[str, Any]) -> int | None:
    """Trained numbers of both towers, counted on shapes alone; None if a tower resists."""
    try:
        return sum(parameter.numel() for parameter in _shapes_alone(model_cfg).parameters())
    except (RuntimeError, NotImplementedError):
        return None


def _shapes_alone(model_cfg: dict[str, Any]) -> torch.nn.Module:
    """A model without numbers."""
    import torch

    from skclip._backbones._tiny import build_tiny

    stem = model_cfg.pop("stem", None)
    with torch.device("meta"):
        return build_tiny({"model_cfg": model_cfg, "stem": stem}) if stem else build_module(model_cfg)
