from __future__ import annotations

import gc
import hashlib
import os
import shutil
import threading
import weakref

import numpy as np
import pytest
import torch

from skclip._backbones import BackboneError, clear_backbones, get_card, load_backbone, weights_digest
from skclip._backbones import _building as building
from skclip._backbones import _loading as loading
from skclip._backbones._tiny import tiny_weights_path

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def builds(monkeypatch):
    """Names of the models built in this test."""
    names: list[str] = []
    build = building.load_module

    def count(name, *args):
        names.append(name)
        return build(name, *args)

    monkeypatch.setattr(building, "load_module", count)
    return names


def test_loaded_backbone_is_frozen(models):
    backbone = load_backbone(models("vit"), device="cpu")
    assert not any(module.training for module in backbone.module.modules())
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert backbone.card == get_card(models("vit"))
    assert (str(backbone.device), backbone.precision) == ("cpu", "float32")
    assert backbone.logit_scale == pytest.approx(1 / 0.07, rel=1e-6)
    assert repr(backbone).endswith("on cpu, float32>")


def test_loaded_once(models, builds):
    first = load_backbone(models("vit"), device="cpu")
    assert load_backbone(models("vit"), device="auto" if not torch.cuda.is_available() else "cpu") is first
    assert len(builds) == 1
    half = load_backbone(models("vit"), device="cpu", precision="bf16")
    assert half is not first
    assert half.module.visual.proj.dtype is torch.bfloat16
    assert first.module.visual.proj.dtype is torch.float32
    assert len(builds) == 2


def test_threads_load_once(models, builds):
    found, barrier = [], threading.Barrier(4)

    def load(kind):
        barrier.wait()
        found.append(load_backbone(models(kind), device="cpu"))

    models("vit"), models("custom")
    threads = [threading.Thread(target=load, args=(kind,)) for kind in ("vit", "custom") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert len(builds) == len(set(builds)) == 2
    assert len({id(backbone) for backbone in found}) == 2


def test_cache_keeps_the_last_used(models, builds):
    kinds = ["vit", "quick", "custom"]
    assert loading.MAX_BACKBONES == 2
    first = load_backbone(models("vit"), device="cpu")
    load_backbone(models("quick"), device="cpu")
    assert load_backbone(models("vit"), device="cpu") is first  # used last: stays
    load_backbone(models("custom"), device="cpu")
    assert load_backbone(models("vit"), device="cpu") is first
    load_backbone(models("quick"), device="cpu")
    assert len(builds) == len(kinds) + 1


def test_clear_backbones_frees_the_module(models):
    gone = weakref.ref(load_backbone(models("vit"), device="cpu").module)
    gc.collect()
    assert gone() is not None
    clear_backbones()
    gc.collect()
    assert gone() is None
    assert not loading._cache
    assert not loading._loading


def test_failure_leaves_nothing_behind(own_folder, builds):
    model = f"local-dir:{own_folder}"
    whole = (own_folder / WEIGHTS).read_bytes()
    (own_folder / WEIGHTS).write_bytes(whole[:-100])
    for _ in range(2):
        with pytest.raises(BackboneError, match="truncated"):
            load_backbone(model, device="cpu")
    assert not loading._cache
    (own_folder / WEIGHTS).write_bytes(whole)
    assert load_backbone(model, device="cpu").digest == hashlib.sha256(whole).hexdigest()


def test_changed_weights_are_a_new_backbone(own_folder, models):
    model = f"local-dir:{own_folder}"
    before = load_backbone(model, device="cpu")
    state = dict(before.module.state_dict(), logit_scale=torch.tensor(2.0))
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in state.items()}, own_folder / WEIGHTS)
    os.utime(own_folder / WEIGHTS, ns=(1, 1))
    after = load_backbone(model, device="cpu")
    assert after is not before
    assert after.digest != before.digest
    assert after.logit_scale == pytest.approx(7.389056, rel=1e-6)


def test_changed_configuration_is_a_new_backbone(own_folder):
    model = f"local-dir:{own_folder}"
    before = load_backbone(model, device="cpu")
    path = own_folder / "open_clip_config.json"
    path.write_text(path.read_text().replace('"embed_dim"', '"quick_gelu": true, "embed_dim"'))
    after = load_backbone(model, device="cpu")
    assert after.digest == before.digest
    assert after is not before
    assert after.card.config != before.card.config


def test_digest_is_of_the_content(own_folder, tmp_path, builds, monkeypatch):
    model = f"local-dir:{own_folder}"
    digest = weights_digest(model)
    assert digest == hashlib.sha256((own_folder / WEIGHTS).read_bytes()).hexdigest()
    shutil.copytree(own_folder, tmp_path / "elsewhere")
    assert weights_digest(f"local-dir:{tmp_path / 'elsewhere'}") == digest
    assert builds == []
    monkeypatch.setattr(hashlib, "file_digest", None)  # known by path, size and time: not read again
    assert weights_digest(model) == digest


def test_folder_without_weights(own_folder):
    (own_folder / WEIGHTS).unlink()
    for ask in (load_backbone, weights_digest):
        with pytest.raises(BackboneError, match=r"holds no weights.*\.safetensors"):
            ask(f"local-dir:{own_folder}")


def test_folder_weights_in_open_clips_order(own_folder):
    from open_clip.factory import _find_checkpoint_in_dir

    for name in (
        "zzz.bin",
        "aaa.pth",
        "model.pth",
        "pytorch_model.bin",
        "model.safetensors",
        "a.safetensors",
    ):
        (own_folder / name).touch()
    for _ in range(7):
        found = loading._folder_weights(own_folder, "name")
        assert str(found) == _find_checkpoint_in_dir(own_folder)
        found.unlink()


def test_arguments_are_checked_before_anything_is_read(own_folder):
    (own_folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="device='tpu'"):
        load_backbone(f"local-dir:{own_folder}", device="tpu")
    with pytest.raises(ValueError, match="precision='int8'"):
        load_backbone(f"local-dir:{own_folder}", precision="int8")


def test_missing_tokenizer_stops_texts_only(own_folder):
    path = own_folder / "open_clip_config.json"
    path.write_text(path.read_text().replace('"heads"', '"hf_tokenizer_name": "no-such/tokenizer", "heads"'))
    backbone = load_backbone(f"local-dir:{own_folder}", device="cpu")
    assert backbone.encode_images(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 24)
    with pytest.raises(BackboneError, match=r"its tokenizer .* could not be loaded"):
        backbone.encode_texts(["a dog"])


@pytest.mark.parametrize("name", ["skclip-tiny", "skclip-tiny-rn"])
def test_bundled_models(name):
    card = get_card(name)
    backbone = load_backbone(name, device="cpu")
    assert (card.name, card.architecture, card.tag) == (name, name, None)
    assert card.causal_text
    assert card.license
    assert backbone.logit_scale == pytest.approx(card.logit_scale, rel=1e-2)
    with tiny_weights_path(name).open("rb") as file:
        assert backbone.digest == weights_digest(name) == hashlib.file_digest(file, "sha256").hexdigest()
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}
    X = np.random.default_rng(0).integers(0, 256, (3, *card.image_size, 3), dtype=np.uint8)
    texts = ["a photo of a red circle", "a blue star"]
    images, words = backbone.encode_images(X), backbone.encode_texts(texts)
    assert images.shape == (3, card.dim)
    with torch.no_grad():
        full = backbone.module.encode_text(backbone.tokenizer(texts), normalize=False).numpy()
    np.testing.assert_allclose(words, full, atol=1e-6 * np.abs(full).max())
    half = load_backbone(name, device="cpu", precision="bf16")
    np.testing.assert_allclose(half.encode_images(X), images, atol=0.1 * np.abs(images).max())
    np.testing.assert_allclose(half.encode_texts(texts), words, atol=0.1 * np.abs(words).max())
    assert 0 < card.gflops_image < 1
