from __future__ import annotations

import shutil
import threading
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skclip._backbones import CompileWarning, load_backbone
from skclip._backbones import _compiling as compiling
from skclip._backbones import _execution as execution


def pictures(n, size=32):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


class FakeCompiler:
    """In the place of `torch.compile`: writes down the shapes it is called with."""

    def __init__(self, error=None):
        self.error, self.sizes, self.options = error, [], None

    def __call__(self, function, **options):
        self.options = options

        def compiled(x):
            self.sizes.append(len(x))
            if self.error is not None:
                raise self.error
            return function(x)

        return compiled


@pytest.fixture
def compiler(monkeypatch):
    def install(error=None):
        fake = FakeCompiler(error)
        monkeypatch.setattr(torch, "compile", fake)
        return fake

    return install


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_compiled_tower_gives_the_same_features(models, monkeypatch, lanes):
    monkeypatch.setattr(execution, "n_lanes", lambda: lanes)
    plain = load_backbone(models("vit"), device="cpu")
    backbone = load_backbone(models("vit"), device="cpu", compile=True)
    X = pictures(13)
    expected = plain.encode_images(X)
    found = backbone.encode_images(X, batch_size=4)
    assert not backbone._compiled.failed
    assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert_array_equal(backbone.encode_images(X, batch_size=4), found)


def test_one_shape_is_compiled(models, compiler):
    fake = compiler()
    backbone = load_backbone(models("vit"), device="cpu", compile=True)
    expected = load_backbone(models("vit"), device="cpu").encode_images(pictures(13))
    for n in (13, 11, 8, 4, 3):
        assert_allclose(backbone.encode_images(pictures(13)[:n], batch_size=4), expected[:n], atol=1e-6)
    assert set(fake.sizes) == {4}
    assert fake.options == {"dynamic": False, "options": {"cpp.threads": 1}}


def test_few_pictures_run_uncompiled(models, compiler):
    fake = compiler()
    backbone = load_backbone(models("vit"), device="cpu", compile=True)
    backbone.encode_images(pictures(2), batch_size=4)
    assert fake.sizes == []
    backbone.encode_images(pictures(7), batch_size=4)
    assert fake.sizes == [4, 4]


def test_auto_keeps_its_size_when_compiled(models, compiler):
    fake = compiler()
    backbone = load_backbone(models("vit"), device="cpu", compile=True)
    backbone.encode_images(pictures(100))
    assert set(fake.sizes) == {backbone.picture_batch_size}
    assert fake.sizes[0] == execution._PICTURES["cpu"][0]


def test_failure_is_said_once_and_costs_no_features(models, compiler):
    fake = compiler(RuntimeError("no C++ compiler was found\nlong story"))
    backbone = load_backbone(models("vit"), device="cpu", compile=True)
    expected = load_backbone(models("vit"), device="cpu").encode_images(pictures(9), batch_size=3)
    with pytest.warns(
        CompileWarning, match=r"could not be compiled \(RuntimeError: no C\+\+ compiler was found\)"
    ) as said:
        found = backbone.encode_images(pictures(9), batch_size=3)
    assert len(said) == 1
    assert_allclose(found, expected, atol=1e-6)
    n_calls = len(fake.sizes)
    assert_allclose(backbone.encode_images(pictures(9), batch_size=3), expected, atol=1e-6)
    assert len(fake.sizes) == n_calls


def test_a_real_compilation_that_fails(models, monkeypatch):
    import torch._inductor.compile_fx as inductor

    def fail(*args, **options):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(inductor, "compile_fx", fail)
    torch._dynamo.reset()
    backbone = load_backbone(models("vit"), device="cpu", compile=True)
    expected = load_backbone(models("vit"), device="cpu").encode_images(pictures(5))
    with pytest.warns(CompileWarning, match="could not be compiled .*No working C\\+\\+ compiler found"):
        found = backbone.encode_images(pictures(5), batch_size=4)
    assert_allclose(found, expected, atol=1e-6)


def test_out_of_memory_is_no_failure_to_compile(models, compiler, monkeypatch):
    monkeypatch.setattr(execution, "n_lanes", lambda: 1)
    compiler(torch.OutOfMemoryError("out of memory"))
    backbone = load_backbone(models("vit"), device="cpu", compile=True)
    expected = load_backbone(models("vit"), device="cpu").encode_images(pictures(6))
    assert_allclose(backbone.encode_images(pictures(6), batch_size=4), expected, atol=1e-6)
    assert not backbone._compiled.failed


def test_on_cuda_results_are_copied_out_of_the_graph(compiler):
    fake = compiler()
    buffer, calls = torch.zeros(4, 2), []

    def project(x):
        assert lock_is_held()
        calls.append(len(x))
        return buffer.fill_(float(x.sum()))

    tower = compiling.CompiledTower(project, "a model", torch.device("cuda"))
    lock_is_held = tower._one_at_a_time.locked
    assert fake.options == {"dynamic": False, "mode": "reduce-overhead"}
    first = tower(torch.ones(3, 3, 1, 1), size=4)
    tower(torch.zeros(4, 3, 1, 1), size=4)
    assert_array_equal(first, np.full((3, 2), 9))
    assert calls == [4, 4]


def test_compiled_and_uncompiled_stand_side_by_side_in_the_cache(models, compiler):
    compiler()
    plain, compiled = (
        load_backbone(models("vit"), device="cpu"),
        load_backbone(models("vit"), device="cpu", compile=True),
    )
    assert plain is not compiled
    assert load_backbone(models("vit"), device="cpu") is plain
    assert load_backbone(models("vit"), device="cpu", compile=True) is compiled


def test_two_threads_and_one_failure(models, compiler):
    compiler(RuntimeError("broken"))
    backbone = load_backbone(models("vit"), device="cpu", compile=True)
    found = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        threads = [
            threading.Thread(target=lambda: found.append(backbone.encode_images(pictures(8), batch_size=4)))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(found) == 3
    assert [warning.category for warning in said] == [CompileWarning]
