"""What an estimator takes over from the members that it fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.utils import get_tags

_INPUT_TAGS = ("one_d_array", "two_d_array", "three_d_array", "string", "allow_nan", "sparse")


def copy_feature_names(estimator: Any, members: Sequence[Any]) -> None:
    """Take over what the first member that tells knows about the columns of X."""
    for attribute in ("n_features_in_", "feature_names_in_"):
        for member in members:
            if hasattr(member, attribute):
                setattr(estimator, attribute, getattr(member, attribute))
                break


def copy_input_tags(tags: Any, members: Sequence[Any]) -> Any:
    """Let `tags` say what every one of the members takes."""
    inner = [get_tags(member).input_tags for member in members if hasattr(member, "__sklearn_tags__")]
    for name in _INPUT_TAGS if inner else ():
        setattr(tags.input_tags, name, all(getattr(one, name) for one in inner))
    return tags
