"""Trainings shared by several processes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip("torch")

from skclip.tuning._processes import Processes, join_processes  # noqa: E402

CPU = torch.device("cpu")


def test_shares_are_a_batch_cut_into_parts_that_differ_by_one_at_most():
    rows = np.array([7, 1, 5, 0, 3])
    shares = [Processes(CPU, index, 3).share(rows) for index in range(3)]
    assert_array_equal(np.concatenate(shares), rows)
    assert [len(share) for share in shares] == [2, 2, 1]
    assert [len(Processes(CPU, index, 3).share(rows[:1])) for index in range(3)] == [1, 0, 0]


def test_a_process_begun_alone_is_alone():
    alone = join_processes(CPU, False)
    assert alone == Processes(CPU, 0, 1)
    assert alone.is_main
    assert_array_equal(alone.share(np.arange(5)), np.arange(5))
    value = object()
    assert alone.from_main(value) is value
    tensor = torch.ones(3)
    alone.add([tensor])
    assert_array_equal(tensor, [1, 1, 1])


def test_without_accelerate_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'distributed=True needs accelerate: pip install "skclip\[accelerate\]"'):
        join_processes(CPU, True)


# A training of two processes: what each found is written to a file of its own.
SHARED = """
import json, os, sys
from pathlib import Path
import torch
from torch.nn.functional import cross_entropy
from skclip.tuning._averaging import EMA
from skclip.tuning._batches import FeatureInputs
from skclip.tuning._engine import Recipe, train

def run(distributed, stop=None, checkpoint=None, **changes):
    generator = torch.Generator().manual_seed(0)
    views = torch.randn((16, 2, 4), generator=generator)
    codes = torch.arange(16).numpy() % 3
    learned = {"weight": torch.zeros(4, 3) + (0 if main or not distributed else 9), "bias": torch.zeros(3)}
    def losses(batch):
        if batch.step == stop:
            raise KeyboardInterrupt
        epochs.append(batch.epoch)
        scores = batch.inputs @ learned["weight"] + learned["bias"]
        each = cross_entropy(scores, batch.codes, reduction="none")
        return {"fit": (each * batch.weights).mean(), "size": 0.01 * learned["weight"].square().sum()}
    epochs, scores = [], [0.1, 0.4, 0.3, 0.2]
    options = {"max_iter": 4, "batch_size": 5, "learning_rate": 0.3, "averaging": EMA(0.5), "clip_norm": 0.5}
    recipe = Recipe(**{**options, **changes})
    trained = train(learned, losses, FeatureInputs(views), codes, codes + 1.0, recipe, generator=generator,
        device=torch.device("cpu"), distributed=distributed, checkpoint=checkpoint, validate=lambda: scores[epochs[-1]])
    return trained._replace(learned={key: value.tolist() for key, value in trained.learned.items()})

main = os.environ["RANK"] == "0"
found = {"alone": run(False), "shared": run(True)}
# sixteen pictures in batches of three: of the last one the second process has none
found["rest alone"], found["rest shared"] = (run(one, batch_size=3, shuffle=False) for one in (False, True))
file = Path(sys.argv[1]) / "run"
try:
    run(True, stop=7, checkpoint=file)
except KeyboardInterrupt:
    found["resumed"] = run(True, checkpoint=file)
(Path(sys.argv[1]) / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
"""


def launch(path, code, n=2):
    """Run code in n processes of one machine, as ``torchrun`` does."""
    script = path / "script.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", str(script)]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    pytest.importorskip("accelerate")
    launch(tmp_path, SHARED)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name in ("shared", "rest shared", "resumed"):
        assert first[name] == second[name]  # to the last bit
    for shared, alone in (("shared", "alone"), ("rest shared", "rest alone"), ("resumed", "alone")):
        (learned, *curves), (learned_alone, *curves_alone) = first[shared], first[alone]
        for key, value in learned_alone.items():
            assert_allclose(learned[key], value, atol=1e-5)
        curve, terms, validation, n_iter = curves
        assert_allclose(curve, curves_alone[0], atol=1e-5)
        assert terms.keys() == curves_alone[1].keys()
        assert (validation, n_iter) == (curves_alone[2], curves_alone[3])


# All that is random differs between the processes, since there is no random_state, but for what the main one tells.
COOP = """
import json, os, sys
from pathlib import Path
import numpy as np
from skclip import CLIPFeatures
from skclip.datasets import make_picture_world
from skclip.tuning import CoOpClassifier

world = make_picture_world(24, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"], random_state=3)
X, y = CLIPFeatures("skclip-tiny").fit_transform(world.images), np.array(world.target)
options = {"model": "skclip-tiny", "max_iter": 2, "batch_size": 7, "device": "cpu"}
found = []
for more in ({"random_state": 0}, {"early_stopping": True, "validation_fraction": 0.3}):
    shared = CoOpClassifier(**options, **more, distributed=True).fit(X, y)
    found.append([shared.ctx_.tolist(), shared.loss_curve_, shared.validation_scores_, shared.logits(X).tolist()])
alone = CoOpClassifier(**options, random_state=0).fit(X, y)
found.append([alone.ctx_.tolist(), alone.loss_curve_, [], alone.logits(X).tolist()])
(Path(sys.argv[1]) / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_a_classifier_fitted_by_two_processes_is_that_of_one(tmp_path):
    pytest.importorskip("accelerate")
    launch(tmp_path, COOP)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first[:2] == second[:2]
    (ctx, curve, _, logits), _, (ctx_alone, curve_alone, _, logits_alone) = first
    assert_allclose(ctx, ctx_alone, atol=1e-5)
    assert_allclose(curve, curve_alone, atol=1e-5)
    assert_allclose(logits, logits_alone, atol=1e-3)
