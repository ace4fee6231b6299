"""Helpers shared by all rooms."""

from skclip.utils._base import SkclipBase, SkclipWarning

__all__ = ["SkclipBase", "SkclipWarning"]
