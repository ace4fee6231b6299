"""Refuse what was never seen: out-of-distribution detectors on features, logits and class text."""

from skclip.ood._msp import MSPDetector

__all__ = ["MSPDetector"]
