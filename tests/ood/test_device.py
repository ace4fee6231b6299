from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

from skclip.features import MissingDeviceWarning
from skclip.ood._device import resolve, resolve_fitted


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("skclip._backbones._device._missing_devices", set())


def test_cpu_is_numpy_and_needs_no_torch():
    code = (
        "import sys\n"
        "from skclip.ood._device import resolve, resolve_fitted\n"
        "assert resolve('cpu') is None and resolve_fitted('cpu') is None\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("device", ["auto", "cpu", "cpu:0"])
def test_without_accelerator_every_present_device_is_numpy(no_accelerator, device):
    assert resolve(device) is None
    assert resolve_fitted(device) is None


@pytest.mark.parametrize(("device", "found"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0")])
def test_accelerators_are_torch_devices(monkeypatch, device, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve(device) == resolve_fitted(device) == torch.device(found)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
def test_an_absent_device_is_an_error_before_the_fit_and_one_warning_after(no_accelerator, device):
    with pytest.raises(ValueError, match=rf"device='{device}' is not on this machine, which has: cpu"):
        resolve(device)
    with pytest.warns(MissingDeviceWarning, match=f"{device}.*Running on the CPU instead"):
        assert resolve_fitted(device) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_fitted(device) is None


def test_no_device():
    with pytest.raises(ValueError, match=r"device='gpu' is not one of 'auto', 'cpu'"):
        resolve("gpu")
