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


def test_import_is_quick():
    # within 0.3 s of scikit-learn, which `import skclip` does not even load
    code = "import time\nstart = time.perf_counter()\nimport skclip\nprint(time.perf_counter() - start)"
    assert statistics.median(float(run_fresh(code)) for _ in range(5)) < 0.3
