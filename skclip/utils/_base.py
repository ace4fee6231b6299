"""What every public estimator shares: its documentation link, its warnings."""

from __future__ import annotations

from sklearn.base import BaseEstimator


class SkclipWarning(UserWarning):
    """Category of every warning skclip raises by itself.

    Silence one kind with ``warnings.filterwarnings("ignore", category=...)``.
    """


class SkclipBase(BaseEstimator):
    """`BaseEstimator` whose HTML display links to skclip's own pages."""

    _doc_link_module = "skclip"
    _doc_link_template = "https://skclip.readthedocs.io/en/latest/generated/{estimator_module}.{estimator_name}.html"
