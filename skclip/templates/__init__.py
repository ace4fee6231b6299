"""Prompt templates: the sentences a class name is put into before it is encoded."""

from skclip.templates._templates import fill_templates, get_templates, list_templates

__all__ = ["fill_templates", "get_templates", "list_templates"]
