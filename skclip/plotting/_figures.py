"""What all Displays share: matplotlib when it is needed, colours, pictures in axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from skclip._media import read_picture

# M. Okabe and K. Ito's palette, told apart with every kind of colour vision; yellow is left out
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1A1A1A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RIGHT, WRONG = COLORS[0], COLORS[1]
GRAY = "0.4"

_SHOWN_PIXELS = 256


def import_pyplot(caller: str) -> Any:
    """`matplotlib.pyplot`, or an ImportError that says how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f'{caller} needs matplotlib: pip install "skclip[plots]".') from error
    return plt


def divide(ax: Any, plt: Any, n_rows: int, n_columns: int, figsize: tuple[float, float], **grid: Any) -> Any:
    """A figure and a grid of fields in it: a new figure, or the place of `ax`, which disappears."""
    if ax is None:
        figure = plt.figure(figsize=figsize, layout="constrained")
        return figure, figure.add_gridspec(n_rows, n_columns, **grid)
    spec = ax.get_subplotspec()
    if spec is None:
        raise ValueError("ax must be one of plt.subplots(), so that it can be divided; got free-standing axes.")
    ax.set_axis_off()
    return ax.figure, spec.subgridspec(n_rows, n_columns, **grid)


def show_picture(ax: Any, picture: Any) -> Any:
    """Draw any kind of picture, small enough for a figure of many; returns matplotlib's image."""
    image = read_picture(picture)
    if max(image.size) > _SHOWN_PIXELS:
        image = image.copy()
        image.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS), Image.Resampling.BILINEAR)
    ax.set(xticks=[], yticks=[])
    return ax.imshow(np.asarray(image.convert("RGB")))


def frame(ax: Any, color: str, width: float) -> None:
    """A frame around a picture."""
    for spine in ax.spines.values():
        spine.set(color=color, linewidth=width)


def spare_axes(ax: Any) -> None:
    """No lines above and to the right of a plot."""
    ax.spines[["top", "right"]].set_visible(False)


def display_name(label: Any, class_names: Mapping[Any, str] | None) -> str:
    """How a label is written in a figure."""
    return str(label if class_names is None else class_names.get(label, label))
