"""From class names to the sentences that describe each class."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from skclip._backbones._templates import TEMPLATE_SETS, template_sets
from skclip.utils._names import ClassNames, check_name_list

SLOT = "{}"
Templates = str | Sequence[str]
Descriptions = Mapping[Any, str | Sequence[str]]


def list_templates() -> list[str]:
    """Names of the template sets.

    Returns
    -------
    list of str
        ``"none"`` (the name alone), ``"openai"`` (the 80 sentences of CLIP's ImageNet evaluation),
        ``"simple"`` (the seven of them that do most of the work).

    Examples
    --------
    >>> from skclip.templates import list_templates
    >>> list_templates()
    ['none', 'openai', 'simple']
    """
    return sorted(["none", *TEMPLATE_SETS])


def get_templates(templates: Templates) -> tuple[str, ...]:
    """Templates as strings in which ``{}`` stands for the class name.

    Parameters
    ----------
    templates : str or list of str
        A set of `list_templates`, one sentence with ``{}``, or a list of such sentences.

    Returns
    -------
    tuple of str

    Raises
    ------
    ValueError
        If a name is unknown, a sentence has no ``{}``, or the list is empty.
    TypeError
        If an entry is not a string.

    Examples
    --------
    >>> from skclip.templates import get_templates
    >>> get_templates("a photo of a {}.")
    ('a photo of a {}.',)
    >>> len(get_templates("simple"))
    7
    """
    if isinstance(templates, str):
        return _named_set(templates) if SLOT not in templates else (templates,)
    if isinstance(templates, Mapping) or not isinstance(templates, Sequence):
        raise TypeError(
            "templates must be the name of a set, a sentence with '{}' or a list of such sentences; "
            f"got {templates!r} of type {type(templates).__name__}."
        )
    if not templates:
        raise ValueError("templates is an empty list; 'none' encodes the class name alone.")
    for position, template in enumerate(templates):
        if not isinstance(template, str):
            raise TypeError(f"templates[{position}] is {template!r} of type {type(template).__name__}, not a str.")
        if SLOT not in template:
            raise ValueError(
                f"templates[{position}] is {template!r}, which has no '{{}}' for the class name, so every "
                "class would get the same sentence. Sentences of one class each go into a dict "
                "{label: [sentences]}."
            )
    return tuple(templates)


def fill_templates(class_names: ClassNames, templates: Templates | Descriptions = "openai") -> list[list[str]]:
    """The sentences of each class.

    Parameters
    ----------
    class_names : list of str or {label: str}
        Names of the K classes. An underscore in a name becomes a space.
    templates : str, list of str, or {label: list of str}, default="openai"
        What `get_templates` takes, or descriptions: the sentences of each class by label (by name where
        `class_names` is a list). A description may hold ``{}`` for the name, and need not.

    Returns
    -------
    list of K lists of str
        In the order of `class_names`.

    Raises
    ------
    ValueError
        If a class has no description, or as `get_templates`.

    Examples
    --------
    >>> from skclip.templates import fill_templates
    >>> fill_templates(["tree_frog", "kite"], ["a {}.", "one {}."])
    [['a tree frog.', 'one tree frog.'], ['a kite.', 'one kite.']]
    >>> fill_templates({0: "kite"}, {0: ["a {} in the sky", "a bird of prey"]})
    [['a kite in the sky', 'a bird of prey']]
    """
    if not isinstance(class_names, Mapping):
        class_names = (
            {name: name for name in check_name_list(class_names)}
            if isinstance(templates, Mapping)
            else dict(enumerate(check_name_list(class_names)))
        )
    if isinstance(templates, Mapping):
        return _fill_descriptions(class_names, templates)
    patterns = get_templates(templates)
    return [[_fill(pattern, name) for pattern in patterns] for name in class_names.values()]


def check_descriptions(descriptions: Descriptions) -> dict[Any, list[str]]:
    """Descriptions with a list of sentences for every label; errors name the label."""
    if not descriptions:
        raise ValueError("templates is an empty dict; give each label its sentences.")
    checked = {}
    for label, sentences in descriptions.items():
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        if not sentences:
            raise ValueError(f"templates[{label!r}] is empty; every class needs at least one sentence.")
        for sentence in sentences:
            if not isinstance(sentence, str) or not sentence.strip():
                raise ValueError(f"templates[{label!r}] holds {sentence!r}, which is not a sentence.")
        checked[label] = sentences
    return checked


def _named_set(name: str) -> tuple[str, ...]:
    if name == "none":
        return (SLOT,)
    if name in TEMPLATE_SETS:
        return template_sets()[name]
    near = difflib.get_close_matches(name, list_templates(), 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"templates={name!r} is neither a set ({', '.join(list_templates())}) nor a sentence with '{{}}' for "
        f"the class name.{hint}"
    )


def _fill_descriptions(class_names: Mapping[Any, str], descriptions: Descriptions) -> list[list[str]]:
    checked = check_descriptions(descriptions)
    missing = [label for label in class_names if label not in checked]
    if missing:
        raise ValueError(
            f"templates has no sentences for {missing[:5]!r} ({len(missing)} of {len(class_names)} classes); "
            f"it describes {list(checked)[:5]!r}."
        )
    return [[_fill(sentence, name) for sentence in checked[label]] for label, name in class_names.items()]


def _fill(pattern: str, name: str) -> str:
    # not str.format: other braces of a sentence stay as they are
    return pattern.replace(SLOT, name.replace("_", " "))
