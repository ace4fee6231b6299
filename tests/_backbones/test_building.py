from __future__ import annotations

import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from skclip._backbones import BackboneError, load_backbone
from skclip._backbones._building import build_module, count_image_gflops

WEIGHTS = "open_clip_model.safetensors"


@pytest.mark.parametrize("kind", ["vit", "quick", "resnet", "custom", "eos", "two-way", "coca"])
def test_equals_open_clips_own_loading(models, kind):
    theirs = open_clip.create_model(models(kind)).eval()
    ours = load_backbone(models(kind), device="cpu").module
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs)
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_timm_tower_is_built_without_its_pretrained_weights():
    cfg = open_clip.get_model_config("vit_relpos_medium_patch16_cls_224")
    cfg["vision_cfg"]["timm_model_pretrained"] = True  # would ask the hub
    with torch.device("meta"):
        module = build_module(cfg)
    assert type(module.visual).__name__ == "TimmModel"


def test_truncated_weights(own_folder):
    path = own_folder / WEIGHTS
    for size in (path.stat().st_size // 2, 5, 0):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(BackboneError, match=rf"{WEIGHTS} \({size} bytes\) cannot be read.*truncated"):
            load_backbone(f"local-dir:{own_folder}", device="cpu")


def test_text_file_as_weights(own_folder):
    (own_folder / WEIGHTS).unlink()
    (own_folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone(f"local-dir:{own_folder}", device="cpu")


def test_pickled_code_is_refused(own_folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    (own_folder / WEIGHTS).unlink()
    torch.save({"visual.proj": Evil()}, own_folder / "model.pth")
    with pytest.raises(BackboneError, match="more than tensors"):
        load_backbone(f"local-dir:{own_folder}", device="cpu")
    assert not (tmp_path / "written").exists()


def test_torch_checkpoint_is_read(own_folder):
    expected = load_backbone(f"local-dir:{own_folder}", device="cpu").encode_texts(["a dog"])
    state = load_file(own_folder / WEIGHTS)
    (own_folder / WEIGHTS).unlink()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, own_folder / "x.pth")
    found = load_backbone(f"local-dir:{own_folder}", device="cpu").encode_texts(["a dog"])
    assert (found == expected).all()


@pytest.mark.parametrize("change", [{"width": 96}, {"layers": 3}, {"patch_size": 4}, {"layers": [1, 1, 1, 1]}])
def test_wrong_architecture(own_folder, change):
    path = own_folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="do not fit the architecture"):
        load_backbone(f"local-dir:{own_folder}", device="cpu")


def test_missing_and_surplus_tensors(own_folder):
    state = load_file(own_folder / WEIGHTS)
    save_file({**state, "foreign": torch.zeros(1)}, own_folder / WEIGHTS)
    with pytest.raises(BackboneError, match=r"do not fit the architecture.*foreign"):
        load_backbone(f"local-dir:{own_folder}", device="cpu")
    del state["visual.proj"]
    save_file(state, own_folder / WEIGHTS)
    with pytest.raises(BackboneError, match=r"do not fit the architecture.*visual\.proj"):
        load_backbone(f"local-dir:{own_folder}", device="cpu")


def test_configuration_that_describes_no_model(own_folder):
    path = own_folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"]["colour"] = "blue"
    path.write_text(json.dumps(config))
    with pytest.raises(BackboneError, match=r"could not be built.*colour"):
        load_backbone(f"local-dir:{own_folder}", device="cpu")


def test_loading_leaves_the_users_generator_alone(models):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_backbone(models("vit"), device="cpu")
    assert torch.equal(torch.rand(4), expected)


def test_gflops_of_a_known_tower():
    # One linear layer per patch, two blocks without hidden surprises: counted by hand.
    width, tokens, layers = 64, 17, 2
    block = 2 * tokens * width * (4 * width + 8 * width) + 4 * tokens**2 * width
    by_hand = 2 * 16 * 192 * width + layers * block + 2 * width * 24
    cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": layers, "width": width, "head_width": 32, "patch_size": 8},
        "text_cfg": {"vocab_size": 100, "width": 32, "heads": 2, "layers": 1},
    }
    assert count_image_gflops(cfg, (32, 32)) == pytest.approx(by_hand / 1e9)
