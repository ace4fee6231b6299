"""Prompts that are learned: the words around the class names, and tokens among those of the pictures."""

from skclip.tuning.prompts._coop import CoOpClassifier

__all__ = ["CoOpClassifier"]
