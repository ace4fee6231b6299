"""Helpers shared by all rooms."""

from skclip.utils._base import SkclipBase, SkclipWarning
from skclip.utils._discovery import all_estimators
from skclip.utils._logits import get_logits

__all__ = ["SkclipBase", "SkclipWarning", "all_estimators", "get_logits"]
