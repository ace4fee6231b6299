"""What importing the package costs, each time in a fresh process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

HEAVY = ("torch", "open_clip", "torchvision", "matplotlib", "pandas", "polars", "transformers", "timm")


def run_fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_after(statement: str) -> list[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    return json.loads(run_fresh(code))


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import skclip") == []


def test_estimators_on_features_add_nothing_heavy_to_scikit_learn():
    # scikit-learn brings pandas along where it is installed
    brought = loaded_after("import sklearn")
    statement = """
import numpy as np
import skclip, skclip.templates, skclip.utils
for name in skclip.__all__:
    getattr(skclip, name)
assert set(skclip.__all__) <= set(dir(skclip))
repr(skclip.CLIPClassifier())
skclip.ZeroShotClassifier(prototypes=np.eye(3)).fit(np.eye(3), [0, 1, 2]).predict(np.eye(3))
skclip.GDAClassifier().fit(np.eye(4), [0, 0, 1, 1]).predict(np.eye(4))"""
    assert loaded_after(statement) == brought


def test_nothing_that_learns_without_a_gradient_needs_torch():
    brought = loaded_after("import sklearn")
    statement = """
import numpy as np
import skclip.adapters, skclip.ensemble, skclip.evaluation, skclip.metrics, skclip.plotting, skclip.retrieval
from skclip.adapters import *
rng = np.random.default_rng(0)
names, y = np.array(["cat", "dog", "owl"]), np.repeat([0, 1, 2], 6)
text = rng.normal(size=(3, 8))
X = text[y] + 0.1 * rng.normal(size=(18, 8))
zero_shot = skclip.ZeroShotClassifier(prototypes=text, classes=names)
trained = {"CLAPClassifier", "CLIPAdapterClassifier", "TipAdapterFClassifier"}
for name in sorted(set(skclip.adapters.__all__) - trained):
    cls = getattr(skclip.adapters, name)
    known = cls().get_params()
    for text_side in [None, zero_shot] if "zero_shot" in known else [None]:
        params = {"zero_shot": text_side, "text_weight": float(text_side is not None)}
        searched = {key: "cv" for key in ("alpha", "beta", "gamma", "C") if isinstance(known.get(key), float)}
        if name == "UnsupervisedGDA":
            searched = {}
        fitted = cls(**{key: value for key, value in (params | searched).items() if key in known}).fit(X, names[y])
        assert fitted.predict(text).tolist() == names.tolist(), name
agents = [("gda", GDAClassifier()), ("cache", TipAdapterClassifier(zero_shot))]
ensemble = skclip.ensemble.TrustOrchestrator(agents, n_neighbors=3).fit(X, names[y])
ensemble.explain(text)
retriever = skclip.retrieval.CLIPRetriever().fit(X, names[y])
skclip.retrieval.retrieve_support(retriever, zero_shot, 2)
skclip.evaluation.RobustnessReport(ensemble.estimators_[0]).evaluate(X, names[y])
skclip.metrics.get_scorer("neg_expected_calibration_error")(ensemble, X, names[y])"""
    assert loaded_after(statement) == brought


def test_import_is_quick():
    # within 0.3 s of scikit-learn, which `import skclip` does not even load
    code = "import time\nstart = time.perf_counter()\nimport skclip\nprint(time.perf_counter() - start)"
    assert statistics.median(float(run_fresh(code)) for _ in range(5)) < 0.3
