from __future__ import annotations

import subprocess
import sys
import threading

from skclip._backbones import _open_clip
from skclip._backbones._open_clip import import_open_clip


def test_a_fresh_process():
    # Importing costs nothing; then a first import of torchvision that failed must not stand in the way.
    code = """
import sys
import skclip._backbones as backbones
assert not {"torch", "open_clip", "torchvision", "huggingface_hub"} & set(sys.modules)
import torch
try:
    import torchvision
    fits = True
except RuntimeError:
    fits = False
from skclip._backbones import _open_clip
assert "ViT-B-32/openai" in backbones.list_models("ViT*")
assert "open_clip" in sys.modules
assert hasattr(torch.ops.torchvision, "nms") and hasattr(torch.ops.torchvision, "qnms") or fits
assert len(_open_clip._declared) == (0 if fits else 1), _open_clip._declared
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


def test_present_operators_are_left_alone():
    import_open_clip()
    before = list(_open_clip._declared)
    _open_clip._declare_missing_operators()
    assert _open_clip._declared == before


def test_threads_get_one_module():
    found = []
    threads = [threading.Thread(target=lambda: found.append(import_open_clip())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(module) for module in found}) == 1
