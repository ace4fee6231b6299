"""timm's networks by name: facts, building, weights read safely, the cache."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
from huggingface_hub import constants

from skclip._backbones import (
    BackboneError,
    build_network,
    cached_network,
    clear_backbones,
    head_names,
    network_card,
    network_weights,
    private_random_numbers,
    weights_file_digest,
)
from skclip._backbones import _foreign as foreign

torch = pytest.importorskip("torch")
SIZE = (32, 32)


def test_facts_are_those_of_timm():
    card = network_card("resnet18")
    assert card.image_size == (224, 224)
    assert card.resized((224, 224)) == (235, 235)
    assert card.interpolation == "bicubic"
    assert card.heads == ("fc",)
    assert card.n_classes == 1000
    assert card.repository == "timm/resnet18.a1_in1k"
    assert network_card("resnet18.tv_in1k").interpolation == "bilinear"
    assert network_card("test_vit").fixed_size


def test_every_model_of_timm_has_a_card():
    for name in foreign.import_timm().list_models()[::40]:
        card = network_card(name)
        assert 0.0 < card.crop_fraction <= 1.0
        assert len(card.mean) == len(card.std) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnett18", ["unknown to timm", "'resnet18'"]),
        ("resnet18.a1_in2k", ["no weights 'a1_in2k' of resnet18", "'resnet18.a1_in1k'"]),
        ("hf-hub:timm/resnet18.a1_in1k", ["pass the architecture as model"]),
        ("ViT-B-32/openai", ["no name of timm's"]),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name, words):
    with pytest.raises(ValueError, match="model=") as caught:
        network_card(name)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone(name):
    before = torch.random.get_rng_state()
    first, same, other = (build_network(network_card(name), 3, SIZE, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def save(module, path):
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(module.state_dict(), path)
    else:
        torch.save(module.state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("kind", [".safetensors", ".pth"])
def test_a_checkpoint_gives_all_but_the_head(name, kind, tmp_path):
    card = network_card(name)
    trained = build_network(card, 7, SIZE, seed=1)
    path = save(trained, tmp_path / f"weights{kind}")
    before = torch.random.get_rng_state()
    loaded = build_network(card, 3, SIZE, weights=path, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    heads = head_names(loaded, card)
    assert heads
    for key, value in loaded.state_dict().items():
        if key in heads:
            assert len(value) == 3
        else:
            assert torch.equal(value, trained.state_dict()[key]), key
    again = build_network(card, 3, SIZE, weights=path, seed=2)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in again.state_dict().items())


def test_checkpoints_wrapped_by_training_scripts_and_without_head(tmp_path):
    card = network_card("test_resnet")
    state = build_network(card, 7, SIZE, seed=1).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "wrapped.pth")
    heads = ("fc.weight", "fc.bias")
    torch.save({key: value for key, value in state.items() if key not in heads}, tmp_path / "headless.pth")
    for file in ("wrapped.pth", "headless.pth"):
        loaded = build_network(card, 3, SIZE, weights=tmp_path / file).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in loaded.items() if key not in heads)


class Malicious:
    def __reduce__(self):
        return (print, ("run",))


def test_damaged_and_foreign_checkpoints(tmp_path, capsys):
    card = network_card("test_resnet")
    cut = tmp_path / "cut.safetensors"
    whole = save(build_network(card, 2, SIZE), tmp_path / "whole.safetensors")
    cut.write_bytes(whole.read_bytes()[:5000])
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"no checkpoint")
    for path in (cut, garbage):
        with pytest.raises(BackboneError, match=r"'test_resnet'.*cannot be read"):
            build_network(card, 2, SIZE, weights=path)
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"fc.weight": Malicious()}, protocol=2))
    with pytest.raises(BackboneError):
        build_network(card, 2, SIZE, weights=evil)
    assert "run" not in capsys.readouterr().out
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(BackboneError, match="holds no tensors by name"):
        build_network(card, 2, SIZE, weights=tmp_path / "numbers.pth")


def test_a_checkpoint_of_another_architecture(tmp_path):
    path = save(build_network(network_card("test_efficientnet"), 2, SIZE), tmp_path / "other.safetensors")
    with pytest.raises(BackboneError, match="do not fit the architecture"):
        build_network(network_card("test_resnet"), 2, SIZE, weights=path)


def test_sizes_that_a_network_cannot_read():
    with pytest.raises(ValueError, match=r"'test_vit' cannot read pictures of 50 x 50 pixels.*160 x 160"):
        build_network(network_card("test_vit"), 2, (50, 50))


def test_weights_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    card = network_card("resnet18")
    with pytest.raises(BackboneError) as caught:
        network_weights(card, True)
    for part in ("timm/resnet18.a1_in1k", "pretrained=<path to a checkpoint>", "pretrained=False", "hf download"):
        assert part in str(caught.value)
    assert "skclip-tiny" not in str(caught.value)
    with pytest.raises(BackboneError, match="there is no such file"):
        network_weights(card, tmp_path / "none.safetensors")
    with pytest.raises(BackboneError, match="no weights on the hub"):
        network_weights(network_card("gcvit_base"), True)
    assert network_weights(card, False) is None
    assert weights_file_digest(None, card) == ""


def test_the_cache_keeps_the_networks_used_last():
    clear_backbones()
    made = []

    def make(key):
        return lambda: made.append(key) or key

    for key in [0, 1, 2, 3, 0, 4, 0, 1]:
        assert cached_network(key, make(key)) == key
    assert made == [0, 1, 2, 3, 4, 1]  # 1 made room for 4, as the one used longest ago
    clear_backbones()
    cached_network(0, make(0))
    assert made[-1] == 0
    clear_backbones()


def test_random_numbers_of_two_threads_do_not_mix():
    drawn = {}

    def draw(seed):
        with private_random_numbers(seed):
            drawn[seed] = np.concatenate([torch.rand(50).numpy() for _ in range(50)])

    before = torch.random.get_rng_state()
    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.random.get_rng_state(), before)
    for seed in range(4):
        alone = torch.Generator().manual_seed(seed)
        expected = np.concatenate([torch.rand(50, generator=alone).numpy() for _ in range(50)])
        np.testing.assert_array_equal(drawn[seed], expected)
