"""Search in pictures, by text or by picture."""

from skclip.retrieval._retriever import CLIPRetriever
from skclip.retrieval._support import retrieve_support

__all__ = ["CLIPRetriever", "retrieve_support"]
