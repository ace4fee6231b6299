from __future__ import annotations

import pytest
import torch

from skclip._backbones import resolve_device, resolve_precision
from skclip._backbones._device import torch_dtype


def test_cpu_is_always_there():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("cpu:0") == torch.device("cpu")


def test_auto_takes_the_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda:1")
    assert resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"device='cuda:2' is not on this machine.*cpu, cuda:0, cuda:1"):
        resolve_device("cuda:2")


def test_auto_takes_mps_before_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps")


def test_absent_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    for device in ("cuda", "cuda:0", "mps"):
        with pytest.raises(ValueError, match=rf"device='{device}' is not on this machine, which has: cpu"):
            resolve_device(device)


@pytest.mark.parametrize("device", ["gpu", "xla", "meta", "", 3.5, None])
def test_no_device(device):
    with pytest.raises(ValueError, match="is not one of 'auto', 'cpu'"):
        resolve_device(device)


def test_precision():
    cpu, cuda, mps = torch.device("cpu"), torch.device("cuda:0"), torch.device("mps")
    assert resolve_precision("auto", cpu) == "float32"
    assert resolve_precision("auto", cuda) == resolve_precision("auto", mps) == "fp16"
    for precision, dtype in {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
        assert resolve_precision(precision, cuda) == precision
        assert torch_dtype(precision) is dtype
    with pytest.raises(ValueError, match=r"precision='half' is not one of 'auto', 'float32', 'bf16', 'fp16'"):
        resolve_precision("half", cpu)
