"""The prompt template sets that open_clip ships, as plain strings."""

from __future__ import annotations

from functools import cache

TEMPLATE_SETS = {
    "openai": "OPENAI_IMAGENET_TEMPLATES",
    "simple": "SIMPLE_IMAGENET_TEMPLATES",
}


@cache
def template_sets() -> dict[str, tuple[str, ...]]:
    """Templates of each set; ``{}`` stands where open_clip's functions put the class name."""
    from skclip._backbones._open_clip import import_open_clip

    open_clip = import_open_clip()
    return {
        name: tuple(template("{}") for template in getattr(open_clip, constant))
        for name, constant in TEMPLATE_SETS.items()
    }
