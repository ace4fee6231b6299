"""ImageNet: a thousand classes, class text and four pictures of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skclip import GDAClassifier, ZeroShotClassifier
from skclip.adapters import SimilarityVoteClassifier
from skclip.ensemble import TrustOrchestrator
from skclip.utils._arrays import unit_rows


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:Classes 264 and 474")  # two kinds of cardigan
def test_trusted_vote_of_text_and_pictures(realdata):
    path = Path(realdata) / "clip-vit-b-32-openai" / "imagenet.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    with np.load(path) as arrays:
        data = {name: values.astype(np.float32) if values.ndim == 2 else values for name, values in arrays.items()}
    text = unit_rows(unit_rows(data["text_a"]) + unit_rows(data["text_b"]))
    agents = [
        ("text", ZeroShotClassifier(prototypes=text)),
        ("gda", GDAClassifier(alpha="cv")),
        ("vote", SimilarityVoteClassifier()),
    ]
    clf = TrustOrchestrator(agents, reevaluate="never", cv=2).fit(data["X_train_4"], data["y_train_4"])
    seen, y = clf.explain(data["X_train_2"]), data["y_train_2"]
    alone = [np.mean(answers == y) for answers in seen.answers.T]
    soft = np.mean([agent.predict_proba(data["X_train_2"]) for agent in clf.estimators_], axis=0)
    reached = np.mean(seen.prediction == y)
    assert reached > max(alone) + 0.02
    assert reached > np.mean(clf.classes_[soft.argmax(axis=1)] == y) + 0.003
