from __future__ import annotations

import warnings
from types import MappingProxyType

import pytest
import torch

from skclip._backbones import SlowPrecisionWarning, load_backbone, resolve_device, resolve_precision
from skclip._backbones._device import _slow_precisions, torch_dtype, warn_slow_precision


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


def capabilities(monkeypatch, **found):
    _slow_precisions.clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(found), raising=False)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_slow_half_precision_is_said_once(monkeypatch, precision):
    capabilities(monkeypatch, avx2=True, avx512_bf16=False, avx512_fp16=False, amx_bf16=False, amx_fp16=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_backbone("skclip-tiny", device="cpu", precision=precision)
        load_backbone("skclip-tiny", device="cpu", precision=precision)
    assert [(warning.category, warning.filename) for warning in said] == [(SlowPrecisionWarning, __file__)]
    assert f"no instructions for precision='{precision}'" in str(said[0].message)


@pytest.mark.parametrize(
    ("precision", "device", "found"),
    [
        ("float32", "cpu", {"avx512_bf16": False}),
        ("bf16", "cuda", {"avx512_bf16": False}),
        ("bf16", "cpu", {"avx512_bf16": True, "amx_bf16": False}),
        ("bf16", "cpu", {"bf16": True, "sve_bf16": False}),
        ("fp16", "cpu", {"fp16_arith": True}),
        ("fp16", "cpu", {"architecture": "unheard of"}),
    ],
)
def test_no_word_where_half_precision_is_native_or_unknown(monkeypatch, precision, device, found):
    capabilities(monkeypatch, **found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_slow_precision(precision, torch.device(device))


@pytest.mark.parametrize(("capability", "is_slow"), [("AVX2", True), ("DEFAULT", False), ("AVX512", False)])
def test_slow_half_precision_where_torch_is_older(monkeypatch, capability, is_slow):
    _slow_precisions.clear()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_slow_precision("bf16", torch.device("cpu"))
        warn_slow_precision("float32", torch.device("cpu"))
    assert [warning.category for warning in said] == [SlowPrecisionWarning] * is_slow
