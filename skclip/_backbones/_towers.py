"""Image towers opened: from pictures to the whole and the places of it, all in the space of the text."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from skclip._backbones._cards import BackboneCard
from skclip._backbones._opened import finish, project
from skclip._backbones._opened_vision import layers, read_out

if TYPE_CHECKING:
    import torch

# settings of open_clip's configurations that replace the attention block by another kind
_CUSTOM_BLOCKS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
_RESNET_STRIDE = 32


def grid_shape(card: BackboneCard) -> tuple[int, int]:
    """Rows and columns of the grid of places that `encode_places` gives.

    Raises
    ------
    ValueError
        If the image tower is of a kind that cannot be opened.
    """
    vision = json.loads(card.config)["vision_cfg"]
    trouble = _trouble(vision)
    if trouble:
        raise ValueError(
            f"model={card.name!r}: its image tower {trouble}, and features of places are read from open_clip's own "
            "VisionTransformer and ResNet towers alone, such as those of ViT-B-32, ViT-L-14 and RN50."
        )
    if isinstance(vision.get("layers"), list):
        strides: Any = _RESNET_STRIDE
    else:
        strides = vision.get("patch_size", 16)
    height, width = strides if isinstance(strides, list) else (strides, strides)
    return card.image_size[0] // height, card.image_size[1] // width


def _trouble(vision: dict[str, Any]) -> str | None:
    if vision.get("timm_model_name"):
        return f"is timm's {vision['timm_model_name']}"
    if isinstance(vision.get("layers"), list):
        return None
    if vision.get("attentional_pool"):
        return "pools its places by attention, as CoCa does"
    if vision.get("block_type") == "custom" or any(vision.get(name) for name in _CUSTOM_BLOCKS):
        return "has custom attention blocks"
    return "has a single block" if vision.get("layers", 12) < 2 else None


def encode_places(visual: Any, pictures: torch.Tensor) -> torch.Tensor:
    """The embedding of each picture as a whole, then of each of its places, in one pass of the trunk.

    Parameters
    ----------
    visual : torch.nn.Module
        A tower for which `grid_shape` has an answer; not changed.
    pictures : tensor of shape (n, 3, H, W)

    Returns
    -------
    tensor of shape (n, 1 + h * w, d)
        First what ``encode_image`` gives, then the places row by row; none normalised.
    """
    import torch

    pooled, places = (_resnet if hasattr(visual, "attnpool") else _vision_transformer)(visual, pictures)
    return torch.cat([pooled[:, None], places], dim=1)


def _vision_transformer(visual: Any, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = visual.transformer.resblocks
    hidden = next(islice(layers(visual, pictures), len(blocks) - 1, None))
    places = visual.ln_post(value_path(blocks[-1], hidden[:, 1:])) @ visual.proj
    return read_out(visual, hidden), places


def value_path(block: Any, hidden: torch.Tensor) -> torch.Tensor:
    """A residual attention block in which every token attends to itself alone, (n, T, D) to (n, T, D).

    ``z + out_proj(W_v ln_1(z) + b_v)``, then the block's own MLP.
    """
    (values,) = project(block, block.ln_1(hidden), kinds="v")
    return finish(block, hidden, values)


def _resnet(visual: Any, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # intermediates_only: open_clip cuts the tower at the wrong stage where it has to go on to the pool
    (last,) = visual.forward_intermediates(pictures, indices=[4], intermediates_only=True)["image_intermediates"]
    pool = visual.attnpool
    return pool(last), pool.c_proj(pool.v_proj(last.flatten(2).transpose(1, 2)))
