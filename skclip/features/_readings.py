"""What is read of a model for each picture: the picture as a whole, its places, the statistics of its layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skclip._backbones import Backbone, BackboneCard, VisionTower, grid_shape

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Reading:
    """What a row holds, and how it is made.

    Attributes
    ----------
    kind : str
        Names it in the keys of the store: rows of different kinds never mix.
    width : callable
        Numbers in a row, by the model's card.
    encode : callable
        ``encode(backbone, pixels, batch_size) -> rows``, from uint8 pixels (n, H, W, 3) to float32 (n, width).
    """

    kind: str
    width: Callable[[BackboneCard], int]
    encode: Callable[[Backbone, NDArray[np.uint8], Any], NDArray[np.float32]]


def tuned_reading(kind: str, width: int, project: Callable[[torch.Tensor], torch.Tensor]) -> Reading:
    """What a tuned tower makes of pictures.

    Parameters
    ----------
    kind : str
        Another one for every other tower.
    width : int
    project : callable
        From what the image tower reads, (b, 3, H, W), to (b, width); several threads may call it at once.
    """

    def encode(backbone: Backbone, pixels: NDArray[np.uint8], batch_size: Any) -> NDArray[np.float32]:
        return backbone.encode_through(project, pixels, width, batch_size)

    return Reading(f"tuned {kind}", lambda card: width, encode)


# functions with names, which a process of another device can be sent
def _whole_width(card: BackboneCard) -> int:
    return card.dim


def _encode_whole(backbone: Backbone, pixels: NDArray[np.uint8], batch_size: Any) -> NDArray[np.float32]:
    return backbone.encode_images(pixels, batch_size=batch_size)


def _places_width(card: BackboneCard) -> int:
    return (1 + prod(grid_shape(card))) * card.dim


def _encode_places(backbone: Backbone, pixels: NDArray[np.uint8], batch_size: Any) -> NDArray[np.float32]:
    return backbone.encode_places(pixels, batch_size=batch_size)


def layer_shape(card: BackboneCard) -> tuple[int, int]:
    """Blocks of the image tower, and the width of their tokens."""
    grid_shape(card)  # says why where the tower is of another kind
    vision = json.loads(card.config)["vision_cfg"]
    if isinstance(vision.get("layers", 12), list):
        raise ValueError(
            f"model={card.name!r}: its image tower is a ResNet, and statistics of tokens are those of a transformer, "
            "such as that of ViT-B-32."
        )
    return vision.get("layers", 12), vision.get("width", 768)


def _layers_width(card: BackboneCard) -> int:
    return card.dim + 2 * prod(layer_shape(card))


def _encode_layers(backbone: Backbone, pixels: NDArray[np.uint8], batch_size: Any) -> NDArray[np.float32]:
    import torch

    tower = VisionTower(backbone.module, backbone.card.name)

    def project(pictures: torch.Tensor) -> torch.Tensor:
        features, statistics = tower.layer_statistics(pictures)
        return torch.cat([features, statistics.flatten(1)], dim=1)

    return backbone.encode_through(project, pixels, _layers_width(backbone.card), batch_size)


WHOLE = Reading("picture", _whole_width, _encode_whole)
# the picture, then its places (`Backbone.encode_places`)
PLACES = Reading("value path", _places_width, _encode_places)
# the picture, then mean and standard deviation of the tokens after each block
LAYERS = Reading("layer statistics", _layers_width, _encode_layers)
