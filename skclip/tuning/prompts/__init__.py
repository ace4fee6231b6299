"""Prompts that are learned: the words around the class names, and tokens among those of the pictures."""

from skclip.tuning.prompts._biomedcoop import BiomedCoOpClassifier
from skclip.tuning.prompts._cocoop import CoCoOpClassifier
from skclip.tuning.prompts._coop import CoOpClassifier
from skclip.tuning.prompts._cpe_clip import CPECLIPClassifier
from skclip.tuning.prompts._gopro import GOProClassifier
from skclip.tuning.prompts._ivlp import IVLPClassifier
from skclip.tuning.prompts._kgcoop import KgCoOpClassifier
from skclip.tuning.prompts._maple import MaPLeClassifier
from skclip.tuning.prompts._mocoop import MoCoOpClassifier
from skclip.tuning.prompts._nola import NoLAClassifier
from skclip.tuning.prompts._prograd import ProGradClassifier
from skclip.tuning.prompts._promptsrc import PromptSRCClassifier

__all__ = [
    "BiomedCoOpClassifier",
    "CPECLIPClassifier",
    "CoCoOpClassifier",
    "CoOpClassifier",
    "GOProClassifier",
    "IVLPClassifier",
    "KgCoOpClassifier",
    "MaPLeClassifier",
    "MoCoOpClassifier",
    "NoLAClassifier",
    "ProGradClassifier",
    "PromptSRCClassifier",
]
